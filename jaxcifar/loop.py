"""The one training loop: steps, epochs, evaluation, the end."""

import contextlib
import itertools
from collections import deque
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxcifar import calibrate
from jaxcifar.data.loader import batches
from jaxcifar.data.splits import train_counts
from jaxcifar.engine.couplings import has_head, make_learning_rates
from jaxcifar.engine.state import eval_weights, new_sums
from jaxcifar.engine.step import make_train_step
from jaxcifar.machine import hosts, process
from jaxcifar.machine.profile import Compiled, Tracer
from jaxcifar.runs import evaluation, results, sparsity, workdirs
from jaxcifar.runs.console import Clock, Console
from jaxcifar.runs.logs import open_logger
from jaxcifar.runs.metrics import group_names
from jaxcifar.runs.resolve import finalize
from jaxcifar.runs.resume import Resumable
from jaxcifar.runs.weights import load_best


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
            calibrate.keep(workdir, found['step'])
        return found


class Run(Resumable):
    """A run that goes on: what is done after each step and each epoch, and at the end."""

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
        self.eval_step = evaluation.make_eval_step(config, self.population, self.dataset)
        self.clock = Clock(self.train_step)

    def _train(self):
        """Steps from here to the end of the run."""
        steps = range(self.step, self.total)
        calls = self.order.calls(self.config, steps.start, steps.stop)
        source = batches(self.config, self.dataset, self.order, self.population.mesh, steps)
        in_flight: deque = deque()
        with contextlib.closing(source):
            ready = itertools.chain([next(source)], source)  # where the loader starts, the clock stands
            self.clock.start()
            for call, batch in zip(calls, ready):
                self.tracer.before(self.step)
                self.state, row = self.train_step(self.state, batch)
                self.tracer.after(call.stop - 1, row)
                in_flight.append(row)
                if len(in_flight) > evaluation.IN_FLIGHT:
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
        if seconds:  # not where only an evaluation was left to do
            self.logger.write_timing(epoch, self.step, seconds, rate)
        row = {
            **{name: value / sums['count'] for name, value in sums.items() if name != 'count'},
            'lr': self.lr,
        }
        self._require_finite(row['loss'])
        due = epoch % config.eval.every_epochs == 0 or self.step >= self.total
        metrics = None
        if self.validation is not None and due:
            weights = eval_weights(self.state)
            metrics = evaluation.member_metrics(self._logits(self.validation, weights), self.validation)
        self.logger.write(epoch, self.step, 'train', row)
        if metrics is not None:
            self._choose(metrics, epoch)
        self._put(active=self.selection.active(config), sums=new_sums(config))
        self.pending, self.lr = False, None
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
            head = hosts.fetch(weights.head or {})
            self._require_finite([*members, head])
            for k in np.flatnonzero(better):
                self.best.save(self.names[k], self.step, *members[k])
            for part, params in head.items():
                self.best.save(part, self.step, params, {})
        row = {**metrics, **self.selection.columns(len(self.outputs))}
        self.logger.write(epoch, self.step, str(self.chooses_on), row)

    def _logits(self, images: evaluation.Images, weights) -> np.ndarray:
        mesh = self.population.mesh
        return evaluation.predict_logits(
            self.eval_step, weights, images.images, self.config, mesh, self._poll
        )

    def _test_logits(self, weights) -> dict[str, np.ndarray]:
        return {name: self._logits(images, weights) for name, images in self.tests.items()}

    def _finish(self) -> dict:
        """The test images, with the last and with the chosen weights; then results.json."""
        weights = {'last': eval_weights(self.state)}
        logits = {'last': self._test_logits(weights['last'])}
        if self.validation is not None:
            if (self.selection.best_epoch * self.epoch_steps == self.step).all():
                weights['best'], logits['best'] = weights['last'], logits['last']
            else:
                weights['best'], _ = load_best(self.config, self.population, self.workdir, self.step)
                logits['best'] = self._test_logits(weights['best'])
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
