"""The one training loop: build, resume, epochs, evaluate, save, stop."""

import contextlib
from collections import deque
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxcifar import calibrate, evaluate, fusion_log, hosts, process, results, sparsity, workdirs
from jaxcifar.checkpoint import BestWeights, Checkpoints
from jaxcifar.config import finalize
from jaxcifar.console import Clock, Console
from jaxcifar.couplings import check_images, has_head, output_names
from jaxcifar.data.datasets import load_dataset
from jaxcifar.data.loader import Order, batches
from jaxcifar.data.splits import evaluation_images, make_split, train_counts, validation_split
from jaxcifar.errors import Preempted, UserError
from jaxcifar.init import begin_from
from jaxcifar.logs import open_logger
from jaxcifar.members import member_names
from jaxcifar.metrics import group_names
from jaxcifar.optim import make_learning_rates
from jaxcifar.population import Population, check_batch, make_mesh
from jaxcifar.profile import Compiled, Tracer
from jaxcifar.selection import Selection
from jaxcifar.state import eval_weights, init_state, new_sums
from jaxcifar.step import make_eval_step, make_train_step
from jaxcifar.weights import load_best

FITTED = 2000  # training images that networks fit their first variables to
IN_FLIGHT = 4  # steps that the host may be ahead of the devices


def train(config: ConfigDict, workdir: str | Path) -> dict:
    """Train, or go on training, in `workdir`; returns what its results.json holds.

    Raises `UserError` for what the user can mend and `Preempted` when SIGTERM came and all is saved.
    """
    config, workdir = finalize(config), Path(workdir)
    process.keep_compiled(config.compile_cache)
    with process.locked(workdir), process.signals() as terminated, contextlib.ExitStack() as stack:
        run = Run(config, workdir, terminated, stack)
        found = run.run()
        if run.split.class_counts is not None:
            calibrate.keep(workdir, found['step'], run._poll)
        return found


class Run:
    """A run in memory: everything in it is rebuilt from the config and a checkpoint."""

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
        few = np.unique(self.split.train)[:FITTED] if self.population.fits else None
        images = None if few is None else self.dataset.normalised(few)
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
        if not self.checkpoints.set_aside:  # which was said
            workdirs.warn_of_losses(self.workdir, self.step, self.epoch_steps)
        self.best.forget_after(self.step)

    def going_on(self) -> bool:
        """Whether there are steps left and members that have not been stopped."""
        return self.step < self.total and bool(self.selection.active(self.config).any())

    def run(self) -> dict:
        """Epochs until the end, then the test images."""
        if self.results is not None and not self.going_on():
            if hosts.is_first():
                print(f'{self.workdir} is finished; more config.epochs would continue it')
            return self.results
        self._open()
        self.terminated.can_save = True
        if self.step:
            self._save()  # what was taken over from another workdir
        if self.pending:
            self._end_epoch()
        if self.going_on():
            self._train()
        return self._finish()

    def _open(self):
        """What only a run that goes on needs: logs and compiled programs."""
        config = self.config
        groups = group_names(self.split.class_counts)
        self.logger = open_logger(config, self.workdir, self.outputs, self.step, self.metrics_length, groups)
        self.stack.callback(self.logger.close)
        workdirs.record(self.workdir, config, self.dataset, self.state.params, self.split)
        self.console = Console(self.chooses_on, self.step, self.total)
        self.stack.callback(self.console.close)
        say = self.console.say
        self.tracer = Tracer(config.profile.steps, self.workdir, self.step, self.total, say)
        self.stack.callback(self.tracer.stop)
        self.learning_rates = make_learning_rates(config, self.epoch_steps)
        self.console.greet(self)
        counts = train_counts(self.dataset, self.split)
        step = make_train_step(config, self.population, self.dataset, self.epoch_steps, self.state, counts)
        poll = self._poll if hosts.alone() else lambda: None  # others may be compiling still
        self.train_step = Compiled(step, say, poll)
        self.eval_step = make_eval_step(config, self.population, self.dataset)
        self.clock = Clock(self.train_step)

    def _train(self):
        """Steps from here to the end of the run."""
        steps = range(self.step, self.total)
        calls = self.order.calls(self.config, steps.start, steps.stop)
        source = batches(self.config, self.dataset, self.order, self.population, steps)
        in_flight: deque = deque()
        self.clock.start()
        with contextlib.closing(source):
            for call, batch in zip(calls, source):
                self.tracer.before(self.step)
                self.state, row = self.train_step(self.state, batch)
                self.tracer.after(call.stop - 1, row)
                in_flight.append(row)
                if len(in_flight) > IN_FLIGHT:
                    jax.block_until_ready(in_flight.popleft())
                self.step = call.stop
                self.clock.count(batch['label'].shape[-1], len(call))
                self.console.step(self.step, self.clock.rate())
                self._after_step(row)
                if not self.going_on():
                    return

    def _after_step(self, row):
        """Log, evaluate, save and leave where it is time to."""
        log_every, save_every = self.config.log.every_steps, self.config.checkpoint.every_steps
        if log_every and self.step % log_every == 0:
            row = jax.device_get(row)
            self._require_finite(row['loss'])
            self.logger.write(self.step / self.epoch_steps, self.step, 'train_batch', row)
        self.pending = self.step % self.epoch_steps == 0
        if self.pending:
            self._end_epoch()
        elif save_every and self.step % save_every == 0:
            self._save()
        self._poll()

    def _end_epoch(self):
        """Evaluate, choose, log and save. If SIGTERM comes before the end, none of it has happened."""
        config, epoch = self.config, self.step // self.epoch_steps
        sums = jax.device_get(self.state.sums)
        seconds, rate = self.clock.stop()
        if self.lr is None:  # kept in the checkpoint: after more epochs were asked for, it would be another
            self.lr = np.asarray(self.learning_rates(self.step - 1))[: len(self.outputs)]
        row = {
            **{name: value / sums['count'] for name, value in sums.items() if name != 'count'},
            'lr': self.lr,
        }
        self._require_finite(row['loss'])
        due = epoch % config.eval.every_epochs == 0 or self.step >= self.total
        metrics = None
        if self.validation is not None and due:
            weights = eval_weights(self.state)
            metrics = evaluate.member_metrics(self._logits(self.validation, weights), self.validation)
        self.logger.write(epoch, self.step, 'train', row)
        if metrics is not None:
            self._choose(metrics, epoch)
        self._put(active=self.selection.active(config), sums=new_sums(config))
        self.pending, self.lr = False, None
        if seconds:  # not where only an evaluation was left to do
            self.logger.write_timing(epoch, self.step, seconds, rate)
        best = self.selection.best if self.selection.best_epoch.all() else None
        row |= {'validation': metrics and metrics['accuracy'], 'best': best}
        if has_head(config):  # the fused prediction's numbers are the run's
            row = {name: value if value is None else value[-1:] for name, value in row.items()}
        self.console.epoch(epoch, config.epochs, row, seconds, rate)
        if epoch % config.checkpoint.every_epochs == 0 or not self.going_on():
            self._save()
        self.clock.start()

    def _choose(self, metrics: dict[str, np.ndarray], epoch: int):
        """Take in all outputs' validation metrics and keep the weights that are new bests."""
        going_on = self.selection.active(self.config)
        better = self.selection.update(metrics['accuracy'], epoch, self.config)
        self.console.stopped(self, going_on & ~self.selection.active(self.config), epoch)
        if better.any():
            weights = eval_weights(self.state)
            members = self.population.disassemble(tuple(zip(weights.params, weights.stats)))
            self._require_finite(members)
            for k in np.flatnonzero(better):
                self.best.save(self.names[k], self.step, *members[k])
            for part, params in hosts.fetch(weights.head or {}).items():
                self.best.save(part, self.step, params, {})
        row = {**metrics, **self.selection.columns(len(self.outputs))}
        self.logger.write(epoch, self.step, str(self.chooses_on), row)

    def _put(self, **fields):
        self.state = self.state.replace(**hosts.put(fields, self.population.sharding()))

    def _logits(self, images: evaluate.Images, weights) -> np.ndarray:
        mesh = self.population.mesh
        return evaluate.predict_logits(self.eval_step, weights, images.images, self.config, mesh, self._poll)

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

    def _finish(self) -> dict:
        """The test images, with the last and with the chosen weights; then results.json."""
        weights = {'last': eval_weights(self.state)}
        if self.validation is not None:
            weights['best'], _ = load_best(self.config, self.population, self.workdir, self.step)
        logits = {
            which: {name: self._logits(images, w) for name, images in self.tests.items()}
            for which, w in weights.items()
        }
        found = results.summarise(self, logits)
        sparsity.record(self, weights, found)
        results.log(self, logits)
        self.checkpoints.wait()
        found['metrics_length'] = self.logger.flush()
        results.write(self.workdir, found)
        self.console.close()
        if self.clock.mean_rate():
            self.console.say(workdirs.record_speed(self.workdir, self.train_step, self.clock))
        for line in [*self.dataset.complaints(), *results.lines(found)]:
            self.console.say(line)
        return found
