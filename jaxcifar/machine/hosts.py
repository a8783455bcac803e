"""Use several hosts as one machine: a process each, that all run the same program in step.

All hold parts of the same arrays and write checkpoints together; of all else, only the first writes.
With one process everything here is what JAX does anyway.
"""

import contextlib
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from jaxcifar.machine import files, status
from jaxcifar.machine.command import slurm_tasks
from jaxcifar.machine.errors import Preempted, UserError

CONNECT = 120  # seconds in which the hosts of a job must have found each other
LEAVE = 60  # … and that one waits for the others when it goes


@contextlib.contextmanager
def joined(coordinator: str = '', processes: int = 0, process: int = 0) -> Iterator[None]:
    """Be one of several processes, which flags name or Slurm's step has started; otherwise alone.

    coordinator: HOST:PORT of the first. Must come before anything asks JAX for devices.
    """
    if not coordinator and slurm_tasks() == 1:
        yield
        return
    where: dict = {}
    if coordinator:
        where = {'coordinator_address': coordinator, 'num_processes': processes, 'process_id': process}
    if coordinator or slurm_tasks() == int(os.environ['SLURM_STEP_NUM_NODES']):
        # JAX takes a task of Slurm's to mean a GPU: alone on its node, it drives all of them.
        where['local_device_ids'] = _own_gpus()
    try:
        jax.distributed.initialize(
            **where, initialization_timeout=CONNECT, shutdown_timeout_seconds=LEAVE
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f'the hosts could not connect ({error}): give all of them the same --coordinator and --processes'
        ) from error
    # All hosts call the writers of files; from here on only the first one's calls write.
    if not is_first():
        files.leave_to_the_first_host()
        status.leave_to_the_first_host()
    try:
        yield
    except Preempted:  # all leave, and none may take it for a fault of another
        jax.distributed.shutdown()
        raise
    jax.distributed.shutdown()


def _own_gpus() -> list[int]:
    # JAX must not be asked yet: that would start it without the other hosts.
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    found = visible.split(',') if visible else [p.name for p in Path('/dev').glob('nvidia[0-9]*')]
    return list(range(len(found)))


def alone() -> bool:
    """Return whether this process is the only one."""
    return jax.process_count() == 1


def is_first() -> bool:
    """Return whether this process is the one that writes."""
    return jax.process_index() == 0


def anywhere(flag: bool) -> bool:
    """Return whether `flag` is true on any host; every host must call this."""
    return flag if alone() else bool(multihost_utils.process_allgather(np.array(flag)).any())


def wait(name: str):
    """Wait until all hosts are here; `name` is the place."""
    if not alone():
        multihost_utils.sync_global_devices(name)


class Stop:
    """Ask whether SIGTERM came to any of the hosts. All must ask equally often, and they agree on when."""

    def __init__(self):
        self._asked = 0

    def __call__(self) -> bool:
        self._asked += 1
        return multihost_utils.reached_preemption_sync_point(self._asked)


def put(tree, sharding: Sharding):
    """Return arrays that every host has as arrays on the devices."""
    if alone():
        return jax.device_put(tree, sharding)

    def place(array):
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(place, tree)


def fetch(tree):
    """Return arrays on the devices as whole numpy arrays on every host; all must call it."""
    return jax.device_get(tree) if alone() else multihost_utils.process_allgather(tree, tiled=True)


def local_slices(sharding: Sharding, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Return what this host's devices hold of an array with these leading axes: one box of it."""
    if alone():
        return tuple(slice(n) for n in shape)
    # Replicas hold the same part twice, so that a set counts each part once.
    indices: Iterable = sharding.addressable_devices_indices_map(shape).values()
    parts = {tuple(s.indices(n)[:2] for s, n in zip(index, shape)) for index in indices}
    box = [(min(low), max(high)) for low, high in (zip(*ends) for ends in zip(*parts))]
    # Parts that do not fill their box leave holes, which a loader cannot cut a batch for.
    if sum(_volume(p) for p in parts) != _volume(box):
        raise UserError('the members do not divide evenly over the hosts: take fewer hosts or other members')
    return tuple(slice(*ends) for ends in box)


def _volume(box) -> int:
    return math.prod(high - low for low, high in box)


def assemble(batch, sharding: Sharding):
    """Join every host's `share` of a batch: return the batch, on the devices of all."""
    if alone():
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
