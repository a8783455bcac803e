"""Record how far a run has come: what its checkpoints hold besides the state."""

from dataclasses import dataclass

import numpy as np

from jaxcifar.runs.selection import Selection
from jaxcifar.runs.session import Session


@dataclass
class Progress:
    """Hold the steps taken, the best epochs so far, and what has been logged."""

    epoch_steps: int  # steps of an epoch when these were counted
    selection: Selection
    step: int = 0
    pending: bool = False  # the epoch is over, but not yet evaluated and logged
    metrics_length: int = 0  # bytes of metrics.csv
    # Rates [K] of a pending epoch: if `epochs` has been raised since, the schedule would give others.
    lr: np.ndarray | None = None

    @classmethod
    def start(cls, session: Session) -> 'Progress':
        """Return the progress of a run before its first step."""
        return cls(session.epoch_steps, Selection.start(session.config.members))

    @property
    def epoch(self) -> int:
        """Return how many epochs are over."""
        return self.step // self.epoch_steps

    def goes_on(self, session: Session) -> bool:
        """Return whether there are steps left and members that have not been stopped."""
        return self.step < session.total and bool(self.selection.active(session.config).any())

    def save_is_due(self, session: Session) -> bool:
        """Return whether a checkpoint belongs here: after so many epochs or steps, and at the end."""
        every = session.config.checkpoint
        if every.every_steps and self.step and self.step % every.every_steps == 0:
            return True
        if self.step % self.epoch_steps:
            return False
        # A run whose members have all stopped ends here, whatever the rhythm says.
        return self.step > 0 and (self.epoch % every.every_epochs == 0 or not self.goes_on(session))

    def to_json(self) -> dict:
        """Return what a checkpoint keeps, exactly."""
        return {
            'step': self.step,
            'pending': self.pending,
            'epoch_steps': self.epoch_steps,
            'selection': self.selection.to_json(),
            'metrics_length': self.metrics_length,
            'lr': None if self.lr is None else self.lr.tolist(),
        }

    @classmethod
    def from_json(cls, meta: dict, session: Session) -> 'Progress':
        """Return the progress saved by `to_json`, or by older versions and torch_weights, which save less.

        Saved rates are dropped if another coupling now has a different number of outputs.
        """
        lr = meta.get('lr') or []
        return cls(
            meta.get('epoch_steps', session.epoch_steps),
            Selection.from_json(meta['selection']),
            meta['step'],
            meta['pending'],
            meta['metrics_length'],
            np.array(lr, np.float32) if len(lr) == len(session.outputs) else None,
        )
