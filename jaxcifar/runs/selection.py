"""Choose which epoch's weights a member keeps, and when it stops."""

from dataclasses import dataclass

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxcifar.engine.views import float_phase


@dataclass
class Selection:
    """Hold the best validation accuracy so far of each member, its epoch, and evaluations since: [K] each."""

    best: np.ndarray
    best_epoch: np.ndarray
    patience: np.ndarray

    @classmethod
    def start(cls, members: int) -> 'Selection':
        """Return the selection before the first evaluation."""
        # Below every accuracy: even 0 is a first best.
        return cls(np.full(members, -1.0), np.zeros(members, int), np.zeros(members, int))

    def update(self, accuracy: np.ndarray, epoch: int, config: ConfigDict) -> np.ndarray:
        """Record an evaluation [K], and return which members have a new best, [K] bool.

        Stopped members' numbers stay as they are. Ties keep the earlier weights. An extra last entry is the
        accuracy of a fused prediction, which then chooses for all members.
        """
        if len(accuracy) > len(self.best):
            # Members and head must come from one epoch, or the fused prediction would be another.
            accuracy = np.repeat(accuracy[-1], len(self.best))
        active = self.active(config)
        better = active & (accuracy > self.best)
        self.best = np.where(better, accuracy, self.best)
        self.best_epoch = np.where(better, epoch, self.best_epoch)
        # The first epochs are noisy, so waiting for a new best starts after them. Ternary weights are noisy,
        # too, as long as they come from floats that were not trained to be ternary.
        counts = epoch > max(config.early_stopping.min_epochs, float_phase(config))
        waited = np.where(better, 0, self.patience + counts)
        self.patience = np.where(active, waited, self.patience)
        return better

    def active(self, config: ConfigDict) -> np.ndarray:
        """Return which members still train, [K] bool."""
        limit = config.early_stopping.patience
        # A patience of 0 stands for no early stopping.
        return self.patience < limit if limit else np.ones(len(self.best), bool)

    def diverged(self, values, config: ConfigDict) -> np.ndarray:
        """Return which active members have a number in their tree of `values` that is not finite, [K] bool.

        [K+1] with a fused prediction, which counts as active.
        """
        finite = [all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)) for tree in values]
        # A stopped member takes no more steps, and must not end the run of the others.
        return np.resize(self.active(config), len(finite)) & ~np.array(finite)

    def columns(self, outputs: int) -> dict[str, np.ndarray]:
        """Return columns for metrics.csv, one number per output; the fused output repeats the members'."""
        return {name: np.resize(getattr(self, name), outputs) for name in ('best', 'patience')}

    def to_json(self) -> dict:
        """Return lists of exact numbers."""
        return {k: v.tolist() for k, v in vars(self).items()}

    @classmethod
    def from_json(cls, data: dict) -> 'Selection':
        """Return the selection that `to_json` gave."""
        return cls(**{k: np.array(v) for k, v in data.items()})
