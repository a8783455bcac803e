"""What runs in a DataLoader's worker processes: it must not import JAX, whose threads forbid it."""

import signal

import numpy as np


class Gather:
    """A PyTorch dataset of whole batches: one fancy index, not B Python calls."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images, self.labels = images, labels

    def __getitems__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        index = indices.astype(np.int32)
        return {'image': self.images[indices], 'label': self.labels[indices], 'index': index}


def leave_sigterm(worker: int):
    """Called in each worker: a scheduler signals all processes, but the main one must save first."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def identity(batch):
    """A collate function for batches that are made already."""
    return batch
