"""Several hosts, here processes on the loopback: they make what one process makes, and stop together."""

import contextlib
import os
import shutil
import signal
import socket
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcifar.machine import hosts
from jaxcifar.machine.errors import Preempted, UserError
from tests.processes import checkpoints, finish, frozen, outcome, started, state

FIELDS = {
    'network': 'resnet8',  # a smaller one would have ended before both hosts agree to stop
    'devices': 4,
    'data__loader': 'host',
    'data__validation': 'none',
    'epochs': 7,
    'checkpoint__keep': 9,
}


@contextlib.contextmanager
def pair(workdir, npz):
    """Two processes with two devices each."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{free.getsockname()[1]}'
    flags = f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count=2'  # the last one counts
    environment = {'XLA_FLAGS': flags}
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                started(workdir, npz, f'--coordinator={address}', '--processes=2', f'--process={i}',
                        environment=environment, **FIELDS)
            )
            for i in range(2)
        ]  # fmt: skip


def test_two_processes_make_what_one_process_makes_and_stop_together(small_npz, tmp_path):
    """They take up what one process has saved, and it goes on with what they have saved."""
    one = finish(tmp_path / 'one', small_npz, **FIELDS)
    last = checkpoints(one)[-1]
    workdir = shutil.copytree(one, tmp_path / 'two')
    start, *later = checkpoints(one)
    for step in later:
        shutil.rmtree(workdir / 'checkpoints' / str(step))
    (workdir / 'results.json').unlink()
    with pair(workdir, small_npz) as processes:
        first, second = processes
        with frozen(first, lambda: checkpoints(workdir)[-1] > start):
            second.send_signal(signal.SIGTERM)
        ends = [outcome(process) for process in processes]
    stopped = checkpoints(workdir)[-1]
    assert [status for status, _, _ in ends] == [75, 75], ends
    says = [' '.join(out.split()) for _, out, _ in ends]
    resumed = f'resumed at step {start},'
    assert (
        resumed in says[0] and resumed not in says[1] and 'epoch' not in says[1]
    )  # the first writes for both
    line = f'saved at step {stopped}, epoch '
    assert all(any(s.startswith(line) for s in err.splitlines()) for _, _, err in ends) and stopped > start
    finish(workdir, small_npz, **FIELDS)
    assert checkpoints(workdir)[-1] == last > stopped
    # Sums over four devices are taken in another order between processes than within one.
    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # noqa: E731
    jax.tree.map(near, state(workdir, last), state(one, last))
    assert (workdir / 'metrics.csv').read_text().count('\n') == (one / 'metrics.csv').read_text().count('\n')


def test_a_host_reads_what_its_devices_hold(monkeypatch):
    """A mesh of two members and four shards over hosts of two devices, and of three over hosts of four."""
    monkeypatch.setattr(hosts, 'alone', lambda: False)
    mesh = SimpleNamespace(shape=(2, 12))

    def of_host(first: int, count: int, shape: tuple[int, int], size: tuple[int, int]):
        ids = range(first, first + count)
        height, width = size[0] // shape[0], size[1] // shape[1]
        boxes = {
            i: (slice(i // shape[1] * height, (i // shape[1] + 1) * height),
                slice(i % shape[1] * width, (i % shape[1] + 1) * width))
            for i in ids
        }  # fmt: skip
        sharding = SimpleNamespace(addressable_devices_indices_map=lambda _: boxes)
        return hosts.local_slices(sharding, size)

    assert of_host(2, 2, (2, 4), mesh.shape) == (slice(0, 1), slice(6, 12))
    assert of_host(4, 4, (2, 4), mesh.shape) == (slice(1, 2), slice(0, 12))
    with pytest.raises(UserError, match='do not divide evenly over the hosts'):
        of_host(4, 4, (2, 6), mesh.shape)
    monkeypatch.undo()
    whole = NamedSharding(Mesh(jax.devices(), 'data'), PartitionSpec('data'))
    assert hosts.local_slices(whole, (8,)) == (slice(8),)


def test_hosts_that_do_not_meet_are_a_line(small_npz, tmp_path, monkeypatch):
    with started(tmp_path, small_npz, '--coordinator=nowhere', '--processes=2', '--process=2') as process:
        status, _, err = outcome(process)
    assert (status, err.count('\n')) == (1, 1) and '--process must be from 0 to 1, got 2' in err

    def nobody(**_):
        raise RuntimeError('deadline exceeded')

    monkeypatch.setattr(jax.distributed, 'initialize', nobody)
    said = pytest.raises(
        UserError, match=r'the hosts could not connect \(deadline exceeded\): give all of them the same'
    )
    with said, hosts.joined('nowhere:1', 2, 1):
        pass


def test_slurms_tasks_drive_all_gpus_of_their_node_or_one_each(monkeypatch):
    asked = []
    monkeypatch.setattr(jax.distributed, 'initialize', lambda **where: asked.append(where))
    monkeypatch.setattr(jax.distributed, 'shutdown', lambda: asked.append('left'))
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0,1,2,3')
    with hosts.joined():
        assert asked == []  # no Slurm
    for nodes, gpus in (('2', [0, 1, 2, 3]), ('1', None)):
        monkeypatch.setenv('SLURM_STEP_NUM_TASKS', '2')
        monkeypatch.setenv('SLURM_STEP_NUM_NODES', nodes)
        with hosts.joined():
            assert asked[-1].get('local_device_ids') == gpus and asked[-1]['initialization_timeout'] == 120
        assert asked[-1] == 'left'
    with pytest.raises(KeyError), hosts.joined():
        raise KeyError  # a fault of one: it does not wait here for the others
    assert asked[-1] != 'left'
    with pytest.raises(Preempted), hosts.joined():
        raise Preempted
    assert asked[-1] == 'left'
