"""What a run is between two steps: taken up from a checkpoint, its own or another run's, and saved again."""

import contextlib
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxcifar.config import saved
from jaxcifar.config.members import member_names
from jaxcifar.config.values import flatten
from jaxcifar.data.expert_splits import rows_of
from jaxcifar.engine.couplings import check_images, has_head, head_parts
from jaxcifar.engine.population import check_batch
from jaxcifar.engine.state import init_state
from jaxcifar.machine import hosts
from jaxcifar.machine.errors import Preempted, UserError
from jaxcifar.runs import fusion_log, results, workdirs
from jaxcifar.runs.checkpoint import Checkpoints
from jaxcifar.runs.init_from import begin_from, warn_of_seen
from jaxcifar.runs.selection import Selection
from jaxcifar.runs.session import prepare
from jaxcifar.runs.weights import BestWeights

FITTED = 2000  # training images that networks fit their first variables to

# What gives a run's steps and scores their meaning.
SAME_CLOCK = ('dataset', 'network', 'members', 'member_ids', 'split', 'batch_size', 'optimizer.accumulate',
              'data.drop_last', 'data.validation', 'data.validation_size', 'data.split_seed',
              'long_tail.imbalance', 'long_tail.seed', 'experts.count', 'experts.seed',
              'experts.holdout', 'experts.validation', 'experts.shared', 'experts.unique',
              'files.train', 'files.validation')  # fmt: skip

# What makes of the same weights another network, whose scores have nothing to do with those before.
SAME_VIEW = ('view', 'ternary.rule', 'ternary.per', 'ternary.scale', 'ternary.layers', 'fusion.rule',
             'fusion.residual', 'fusion.heads')  # fmt: skip


def take_over(config: ConfigDict, like, workdir: Path):
    """(state, meta) of config.resume_from, WORKDIR or WORKDIR@STEP, with its metrics and best weights.

    The new run goes on from that step as if it had been its own, under its own config, which may have
    another recipe but not other data, batches or members: those give steps and scores their meaning.
    With another view, choosing the best weights begins anew.
    """
    path, _, step = config.resume_from.partition('@')
    source = Path(path)
    if not (source / 'checkpoints').is_dir():
        raise UserError(f'resume_from: {source} has no checkpoints')
    before = saved.load(source / 'config.json')
    checkpoints = Checkpoints(source, before.checkpoint.keep)
    try:
        steps = checkpoints.steps()
        if not steps or (step and step not in map(str, steps)):
            raise UserError(f'resume_from: {source} has the checkpoints {steps}, not {step or "any"}')
        state, meta = checkpoints.restore(like, int(step) if step else steps[-1])
    finally:
        checkpoints.close()
    now = flatten(saved.to_dict(config))
    old = flatten(saved.to_dict(before))
    for field in SAME_CLOCK if meta['step'] else ():
        if old[field] != now[field]:
            raise UserError(f'resume_from: {source} has {field}={old[field]}, not {now[field]}')
    seen_alike = all(old[field] == now[field] for field in SAME_VIEW)
    if hosts.is_first():
        shutil.copy(source / 'metrics.csv', workdir / 'metrics.csv')
        if seen_alike:
            _copy_best(source, workdir, config, meta['step'])
    hosts.wait('copied')
    return state, meta if seen_alike else {**meta, 'selection': Selection.start(config.members).to_json()}


def _copy_best(source: Path, workdir: Path, config: ConfigDict, step: int):
    """The best weights of each member, and of a head, up to this step."""
    for member in [*member_names(config), *head_parts(config)]:
        stamps = [s for s in BestWeights(source).steps(member) if s <= step]
        if stamps:
            (workdir / 'best' / member).mkdir(parents=True, exist_ok=True)
            name = Path('best') / member / f'{stamps[-1]}.npz'
            shutil.copy(source / name, workdir / name)


class Resumable:
    """A run in memory: everything in it is rebuilt from the config and a checkpoint."""

    logger: Any  # of `train.Run`, as soon as there is anything to be logged
    learning_rates: Any

    def __init__(self, config: ConfigDict, workdir: Path, terminated, stack: contextlib.ExitStack):
        self.config, self.workdir, self.terminated, self.stack = config, workdir, terminated, stack
        workdirs.check_config(workdir, config)
        session = prepare(config)
        check_batch(config, session.mesh)
        workdirs.check_dataset(workdir, session)
        check_images(config, session.order.own)
        self.names, self.outputs = session.names, session.outputs
        self.dataset, self.population, self.split = session.dataset, session.population, session.split
        self.order, self.epoch_steps, self.total = session.order, session.epoch_steps, session.total
        self.tests, self.chooses_on, self.validation = session.tests, session.chooses_on, session.validation
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
            restored = take_over(self.config, self.state, self.workdir)
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
