"""What a run is between two steps: built from a config and a checkpoint, and saved again."""

import contextlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxcifar.config.members import member_names
from jaxcifar.data.datasets import load_dataset
from jaxcifar.data.expert_splits import rows_of
from jaxcifar.data.loader import Order
from jaxcifar.data.splits import evaluation_images, make_split, validation_split
from jaxcifar.engine.couplings import check_images, has_head, output_names
from jaxcifar.engine.population import Population, check_batch, make_mesh
from jaxcifar.engine.state import init_state
from jaxcifar.machine import hosts
from jaxcifar.machine.errors import Preempted, UserError
from jaxcifar.runs import fusion_log, results, workdirs
from jaxcifar.runs.checkpoint import Checkpoints
from jaxcifar.runs.init_from import begin_from, warn_of_seen
from jaxcifar.runs.selection import Selection
from jaxcifar.runs.weights import BestWeights

FITTED = 2000  # training images that networks fit their first variables to


class Resumable:
    """A run in memory: everything in it is rebuilt from the config and a checkpoint."""

    logger: Any  # of `train.Run`, as soon as there is anything to be logged
    learning_rates: Any

    def __init__(self, config: ConfigDict, workdir: Path, terminated, stack: contextlib.ExitStack):
        self.config, self.workdir, self.terminated, self.stack = config, workdir, terminated, stack
        workdirs.check_config(workdir, config)
        self.names, self.outputs = member_names(config), output_names(config)
        self.dataset = load_dataset(config.dataset, config.data.root, config.data.image_size)
        mesh = make_mesh(config)
        check_batch(config, mesh)
        self.population = Population(config, self.dataset.num_classes, self.dataset.image_size, mesh)
        self.split = make_split(self.dataset, config)
        workdirs.check_dataset(workdir, self.dataset, self.split)
        self.order = Order(config, self.split.train, mesh.shape['data'] * config.optimizer.accumulate)
        check_images(config, self.order.own)
        self.epoch_steps = self.order.steps_per_epoch
        self.total = config.epochs * self.epoch_steps
        images = evaluation_images(self.dataset, self.split)
        self.tests = {name: images[name] for name in ('test', 'test_lt') if name in images}
        self.chooses_on = validation_split(config)
        self.validation = images[self.chooses_on] if self.chooses_on else None
        self._restore()

    def _restore(self):
        """Take up the newest checkpoint, or another run's, or begin."""
        images = None
        if self.population.fits:
            seen = np.unique(np.concatenate(rows_of(self.split.train)))
            images = self.dataset.normalised(seen[:FITTED])
        self.state = init_state(self.config, self.population, images)
        self.checkpoints = Checkpoints(self.workdir, self.config.checkpoint.keep)
        self.stack.callback(self.checkpoints.close)
        self.best = BestWeights(self.workdir)
        # `pending`: the epoch is over, but not yet evaluated and logged.
        self.step, self.pending, self.saved, self.lr = 0, False, None, None
        self.selection = Selection.start(self.config.members)
        self.metrics_length, self.results = 0, None
        restored = self.checkpoints.restore_newest(self.state)
        if restored is not None:
            self.saved = restored[1]['step'], restored[1]['pending']
        elif self.config.resume_from:
            restored = workdirs.take_over(self.config, self.state, self.workdir)
        if restored is not None:
            self.state, meta = restored
            workdirs.check_clock(meta, self.epoch_steps)
            self.step, self.pending, lr = meta['step'], meta['pending'], meta.get('lr') or []
            self.lr = np.array(lr, np.float32) if len(lr) == len(self.outputs) else None
            self.selection = Selection.from_json(meta['selection'])
            self._put(active=self.selection.active(self.config))  # early_stopping may have changed
            if not self.pending:
                self.results = results.read(self.workdir, self.step)
            self.metrics_length = (self.results or meta)['metrics_length']
        elif self.config.init_from:
            self.state = begin_from(self.config, self.population, self.state)
            if hosts.is_first():
                warn_of_seen(self.config, self.dataset, self.split)
        if not self.checkpoints.set_aside:  # which was said
            workdirs.warn_of_losses(self.workdir, self.step, self.epoch_steps)
        self.best.forget_after(self.step)

    def going_on(self) -> bool:
        """Whether there are steps left and members that have not been stopped."""
        return self.step < self.total and bool(self.selection.active(self.config).any())

    def _put(self, **fields):
        self.state = self.state.replace(**hosts.put(fields, self.population.sharding()))

    def _save(self):
        """Save all that the next process needs to go on as if nothing had happened."""
        if self.saved == (self.step, self.pending):
            return
        weights = self.population.disassemble(tuple(zip(self.state.params, self.state.stats, self.state.opt)))
        trees = *weights, jax.device_get(self.state.head)
        self._require_finite(zip(trees, jax.device_get(self.state.sums['loss'])))
        meta = {
            'step': self.step,
            'pending': self.pending,
            'epoch_steps': self.epoch_steps,
            'selection': self.selection.to_json(),
            'metrics_length': self.logger.flush(),
            'lr': None if self.lr is None else self.lr.tolist(),
        }
        if has_head(self.config) and hosts.is_first():
            fusion_log.write(self.workdir, self.config, self.learning_rates)
        self.checkpoints.save(self.step, self.state, meta)
        self.saved = self.step, self.pending
        self.best.prune(self.checkpoints.steps())

    def _poll(self):
        """Save and leave if SIGTERM came."""
        if self.terminated.is_set():
            self._save()
            self.checkpoints.wait()
            raise Preempted(f'saved at step {self.step}; the same command goes on from there')

    def _require_finite(self, values):
        """`UserError` unless the numbers of all outputs that go on, a tree of each, are finite."""
        diverged = self.selection.diverged(values, self.config)
        if diverged.any():
            self.checkpoints.wait()
            names = ', '.join(np.array(self.outputs)[np.flatnonzero(diverged)])
            raise UserError(
                f'{names} diverged: not all numbers are finite at step {self.step}; try a smaller '
                f'optimizer.lr, or optimizer.clip; kept checkpoints: {self.checkpoints.steps()}'
            )
