"""Use several hosts as one machine: each runs a process, and all run the same program in step.

The processes hold parts of the same arrays and write checkpoints together. The first alone writes all other
files. With one process, everything here does what JAX does anyway.
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

CONNECT = 120  # seconds in which the hosts of a job must find each other
LEAVE = 60  # … and for which a host waits for the others at the end


@contextlib.contextmanager
def joined(coordinator: str = '', processes: int = 0, process: int = 0) -> Iterator[None]:
    """Join the processes that the flags name or the Slurm step has started; without any, stay alone.

    coordinator: HOST:PORT of the first process. Enter this before anything asks JAX for devices.
    """
    if not coordinator and slurm_tasks() == 1:
        yield
        return
    where: dict = {}
    if coordinator:
        where = {'coordinator_address': coordinator, 'num_processes': processes, 'process_id': process}
    if coordinator or slurm_tasks() == int(os.environ['SLURM_STEP_NUM_NODES']):
        # JAX assumes one GPU per Slurm task, but a task that is alone on its node drives all its GPUs.
        where['local_device_ids'] = _own_gpus()
    try:
        jax.distributed.initialize(
            **where, initialization_timeout=CONNECT, shutdown_timeout_seconds=LEAVE
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f'the hosts could not connect ({error}): give all of them the same --coordinator and --processes'
        ) from error
    # All hosts call the functions that write files; from here on, only the first host really writes.
    if not is_first():
        files.leave_to_the_first_host()
        status.leave_to_the_first_host()
    try:
        yield
    except Preempted:  # all hosts leave, and none may mistake this for a failure of another
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
    """Wait until all hosts have reached this point, which is called `name`."""
    if not alone():
        multihost_utils.sync_global_devices(name)


class Stop:
    """Ask whether SIGTERM reached any host. All must ask equally often, and learn of it at the same call."""

    def __init__(self):
        self._asked = 0

    def __call__(self) -> bool:
        self._asked += 1
        return multihost_utils.reached_preemption_sync_point(self._asked)


def put(tree, sharding: Sharding):
    """Put arrays, of which every host has a copy, on the devices."""
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
    """Return the slices of an array with these leading axes that this host's devices hold, as one box."""
    if alone():
        return tuple(slice(n) for n in shape)
    # Replicas hold the same part twice, so that a set counts each part once.
    indices: Iterable = sharding.addressable_devices_indices_map(shape).values()
    parts = {tuple(s.indices(n)[:2] for s, n in zip(index, shape)) for index in indices}
    box = [(min(low), max(high)) for low, high in (zip(*ends) for ends in zip(*parts))]
    # If the parts do not fill the box, it has holes, and a loader cannot cut such a batch.
    if sum(_volume(p) for p in parts) != _volume(box):
        raise UserError('the members do not divide evenly over the hosts: take fewer hosts or other members')
    return tuple(slice(*ends) for ends in box)


def _volume(box) -> int:
    return math.prod(high - low for low, high in box)


def assemble(batch, sharding: Sharding):
    """Join each host's part of a batch and return the whole batch, on the devices of all hosts."""
    if alone():
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
