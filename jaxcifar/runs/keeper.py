"""Keep a run's checkpoints, and the weights of its members' best epochs."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np

from jaxcifar.engine.couplings import has_head
from jaxcifar.engine.state import TrainState, eval_weights
from jaxcifar.machine import hosts
from jaxcifar.machine.errors import UserError
from jaxcifar.runs import fusion_log
from jaxcifar.runs.checkpoint import Checkpoints
from jaxcifar.runs.progress import Progress
from jaxcifar.runs.session import Session
from jaxcifar.runs.weights import BestWeights


class Keeper:
    """Keep the checkpoints and best weights in a run's workdir; both are written while training goes on."""

    def __init__(self, session: Session, workdir: Path):
        self.session, self.workdir = session, workdir
        # A sealed checkpoint counts, so the best weights that it refers to must be on disk before the seal.
        self.checkpoints = Checkpoints(workdir, session.config.checkpoint.keep, self.wait_for_best)
        self.best = BestWeights(workdir)
        self._writer = ThreadPoolExecutor(1, 'best weights')
        self._writing: Future | None = None
        self.saved: tuple[int, bool] | None = None  # step and pending of the newest checkpoint

    def save(self, state: TrainState, progress: Progress, logger):
        """Save all that the next process needs to go on as if nothing had happened."""
        # The same step is another state once its epoch has been evaluated.
        if self.saved == (progress.step, progress.pending):
            return
        session, population = self.session, self.session.population
        # A checkpoint with a NaN would replace the last one worth going back to.
        weights = population.disassemble(tuple(zip(state.params, state.stats, state.opt)))
        trees = *weights, jax.device_get(state.head)
        self.require_finite(progress, zip(trees, jax.device_get(state.sums['loss'])))
        # Rows that are not on disk yet would be missing after a crash.
        progress.metrics_length = logger.flush()
        if has_head(session.config) and hosts.is_first():
            fusion_log.write(self.workdir, session.config, session.learning_rates)
        self.checkpoints.save(progress.step, state, progress.to_json())
        self.saved = progress.step, progress.pending
        # Older best weights are deleted only now: a crash before this save would have gone back to them.
        self.best.prune(self.checkpoints.steps())

    def choose(self, state: TrainState, progress: Progress, accuracy: np.ndarray) -> np.ndarray:
        """Record validation accuracies, one per output, and write the weights of members with a new best.

        Returns the members that stop here, [K] bool.
        """
        config, selection = self.session.config, progress.selection
        # The mask from before the update tells which members stop in this very epoch.
        before = selection.active(config)
        better = selection.update(accuracy, progress.epoch, config)
        if better.any():
            # What is kept is what was scored: the average of the weights where there is one.
            weights = eval_weights(state)
            members = self.session.population.disassemble(tuple(zip(weights.params, weights.stats)))
            head = hosts.fetch(weights.head or {})
            self.require_finite(progress, [*members, head])
            files = [(self.session.names[k], *members[k]) for k in np.flatnonzero(better)]
            # A fused prediction chooses for all, so that its head belongs to every new best.
            files += [(part, params, {}) for part, params in head.items()]
            # At most one set of weights may wait in memory to be written.
            self.wait_for_best()
            self._writing = self._writer.submit(self._write, progress.step, files)
        return before & ~selection.active(config)

    def _write(self, step: int, files: list[tuple[str, dict, dict]]):
        for name, params, stats in files:
            self.best.save(name, step, params, stats)

    def wait_for_best(self):
        """Wait until the best weights so far are on disk; raise the error if writing them failed."""
        if self._writing is not None:
            self._writing.result()

    def require_finite(self, progress: Progress, values):
        """Raise `UserError` unless `values`, a tree per output, are finite for all that still train."""
        diverged = progress.selection.diverged(values, self.session.config)
        if diverged.any():
            # The message lists what is on disk, which a save in flight is not.
            self.checkpoints.wait()
            names = ', '.join(np.array(self.session.outputs)[np.flatnonzero(diverged)])
            raise UserError(
                f'{names} diverged: not all numbers are finite at step {progress.step}; try a smaller '
                f'optimizer.lr, or optimizer.clip; kept checkpoints: {self.checkpoints.steps()}'
            )

    def close(self):
        """Wait until all saves are on disk."""
        self._writer.shutdown()
        self.checkpoints.close()
