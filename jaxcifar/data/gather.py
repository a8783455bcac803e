"""Gather batches in a DataLoader, and start the worker processes of one that decodes files.

This module must not import JAX, whose threads forbid a fork.
"""

import signal
import sys
import types
import warnings
from collections.abc import Iterable
from multiprocessing.context import ForkServerContext, ForkServerProcess

import numpy as np


def data_loader(dataset, requests: Iterable[tuple[int, np.ndarray]], workers: int):
    """Build a PyTorch DataLoader of the batches that `dataset.__getitems__` makes of (epoch, indices)."""
    import torch
    from torch.utils.data import DataLoader

    # On a single core torch advises against more workers. How many there are is the user's choice.
    warnings.filterwarnings('ignore', 'This DataLoader will create', UserWarning)
    context = None
    if workers:
        context = WorkerContext()
        context.set_forkserver_preload([type(dataset).__module__, 'torch.utils.data'])
    return DataLoader(
        dataset,
        batch_sampler=requests,  # type: ignore[arg-type]
        collate_fn=identity,
        num_workers=workers,
        worker_init_fn=leave_sigterm if workers else None,
        multiprocessing_context=context,
        generator=torch.Generator(),  # so that worker seeds are not drawn from the global generator
    )


class Worker(ForkServerProcess):
    """Start without the user's program, which a worker does not need and would run once more."""

    def start(self):
        """Start the process."""
        program = sys.modules['__main__']
        # What Python sends to a new process says which file to import as its main module.
        sys.modules['__main__'] = types.ModuleType('__main__')
        try:
            super().start()
        finally:
            sys.modules['__main__'] = program


class WorkerContext(ForkServerContext):
    """Make workers from a server process: a fork under JAX's threads deadlocks."""

    Process = Worker  # type: ignore[assignment]


class Gather:
    """Serve whole batches as a PyTorch dataset: one fancy index, not B Python calls."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images, self.labels = images, labels

    def __getitems__(self, request: tuple[int, np.ndarray]) -> dict[str, np.ndarray]:
        """Gather (epoch, indices): 'image', 'label' and 'index'."""
        _, indices = request
        index = indices.astype(np.int32)
        return {'image': self.images[indices], 'label': self.labels[indices], 'index': index}


def leave_sigterm(worker: int):
    """Ignore SIGTERM in a worker: a scheduler signals all processes, but the main one must save first."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def identity(batch):
    """Return the batch unchanged, as the collate function for ready-made batches."""
    return batch
