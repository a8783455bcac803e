"""What breaks around a run: one line says so, nothing that was saved is lost, and it can go on."""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import processes
from tests.conftest import small_images
from tests.processes import (
    Ahead,
    assert_same,
    checkpoints,
    finish,
    frozen,
    outcome,
    started,
    state,
    train,
)


@pytest.fixture(scope='module')
def reference(small_npz) -> Path:
    return processes.reference(small_npz)


def assert_says(result: tuple[int, str, str], *parts: str):
    """Exit status 1, and on stderr one line that holds these parts."""
    status, _, err = result
    assert (status, err.count('\n'), err[:7]) == (1, 1, 'error: '), err
    assert [p for p in parts if p not in err] == [], err


def largest(folder: Path) -> Path:
    return max((p for p in folder.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(path: Path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path):
    """One bit, in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# Checkpoints.


def the_only_one(newest: Path):
    largest(newest / 'state' / 'd').unlink()
    shutil.rmtree(newest.with_name('20'))


DAMAGES = {
    'truncated': lambda newest: truncate(largest(newest / 'state' / 'd')),
    'a bit of the arrays': lambda newest: flip(largest(newest / 'state' / 'd')),
    'a bit of the rest': lambda newest: flip(newest / 'meta' / 'metadata'),
    'a file of the only one': the_only_one,
}


@pytest.fixture(scope='module')
def damaged(reference, small_npz, tmp_path_factory):
    """What became of a finished run whose newest checkpoint was damaged: (workdir, outcome)."""
    folder = tmp_path_factory.mktemp('damaged')

    def run(name):
        workdir = shutil.copytree(reference, folder / name)
        DAMAGES[name](workdir / 'checkpoints' / '24')
        saved = next(workdir.glob('best/0_tiny/*.npz'))
        shutil.copy(saved, saved.with_name('23.npz'))  # of steps that went differently, and were given up
        return workdir, train(workdir, small_npz)

    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(run, name) for name in DAMAGES}


@pytest.mark.parametrize('name', DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(damaged, reference, name):
    workdir, (status, _, err) = damaged[name].result()
    instead = 'starting from the beginning' if name == 'a file of the only one' else 'resuming from step 20'
    assert (status, err.count('\n')) == (0, 1)
    assert err.startswith(f'warning: checkpoint {workdir}/checkpoints/24 is damaged: ')
    assert err.endswith(f'; {instead}\n')
    assert (workdir / 'damaged' / '24').is_dir()
    # Whoever deleted checkpoints to save space may still want the weights that were chosen.
    assert any(workdir.glob('damaged/best/0_tiny/*.npz')) == (name == 'a file of the only one')
    assert_same(workdir, reference)


# Workdirs that a process cannot go on with. Each of these prepares one and gives the fields to ask for.


def another_config(workdir, reference):
    return {'optimizer__lr': 0.1, 'batch_size': 16}


def other_images(workdir, reference):
    """The run's dataset file, a copy, with other images."""
    path, config = workdir.with_suffix('.npz'), workdir / 'config.json'
    dataset = json.loads(config.read_text())['dataset']
    config.write_text(config.read_text().replace(dataset, f'npz:{path}'))
    (x, y), (x_test, y_test) = small_images(), small_images(40, seed=2)
    np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    return {'dataset': f'npz:{path}'}


def damaged_config(workdir, reference):
    truncate(workdir / 'config.json')
    return {}


def damaged_best_weights(workdir, reference):
    (workdir / 'results.json').unlink()  # or the run would be finished
    flip(max(workdir.glob('best/0_tiny/*'), key=lambda p: int(p.stem)))
    return {}


def below_a_file(workdir, reference):
    shutil.rmtree(workdir)
    workdir.write_text('')
    return {}


def no_such_step(workdir, reference):
    shutil.rmtree(workdir)
    return {'resume_from': f'{reference}@3'}


def another_population(workdir, reference):
    shutil.rmtree(workdir)
    return {'resume_from': reference, 'members': 2}


def other_batches(workdir, reference):
    shutil.rmtree(workdir)
    return {'resume_from': reference, 'batch_size': 20}


def damaged_source(workdir, reference):
    source = workdir.rename(workdir.with_suffix('.source'))
    flip(largest(source / 'checkpoints' / '24' / 'state' / 'd'))
    return {'resume_from': source}


REFUSED = {
    another_config: ('batch_size was 24, now 16', 'optimizer.lr was 0.05, now 0.1'),
    other_images: ('images', 'are not those that'),
    damaged_config: ('config.json is not a jaxcifar file',),
    damaged_best_weights: ('best/0_tiny/', 'is damaged'),
    below_a_file: ('below_a_file',),
    no_such_step: ('resume_from', '[20, 24] of'),
    another_population: ('checkpoints/24 was saved with another network',),
    other_batches: ('resume_from', 'has it, got 20'),
    damaged_source: ('checkpoints/24 is damaged',),
}


@pytest.fixture(scope='module')
def refused(reference, small_npz, tmp_path_factory):
    """Outcomes of one more process on each of these workdirs."""
    folder = tmp_path_factory.mktemp('refused')

    def run(prepare):
        workdir = shutil.copytree(reference, folder / prepare.__name__)
        return train(workdir, small_npz, **prepare(workdir, reference))

    with ThreadPoolExecutor(2) as pool:
        yield {prepare: pool.submit(run, prepare) for prepare in REFUSED}


@pytest.mark.parametrize('prepare', REFUSED, ids=lambda p: p.__name__)
def test_what_cannot_go_on_is_refused_with_a_line(refused, prepare):
    assert_says(refused[prepare].result(), *REFUSED[prepare])


ahead = Ahead()


@pytest.fixture(scope='module')
def running(request, small_npz, reference):
    yield from ahead.run(request, small_npz, reference)


@ahead
def test_a_second_process_is_refused_and_the_first_goes_on(folder, npz, reference):
    with started(folder, npz) as process:
        with frozen(process, lambda: checkpoints(folder)):
            assert_says(train(folder, npz), f'process {process.pid} on ', f' is training in {folder}: choose')
        assert outcome(process)[::2] == (0, '')
    assert_same(folder, reference)


# Disks.


@contextlib.contextmanager
def mounted(folder):
    """A file system of 8 MB, in memory."""
    folder.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f'cannot mount a file system here: {error}')
    try:
        yield
    finally:
        subprocess.run(['umount', '-l', str(folder)], check=True)


def assert_keeps_what_it_has(workdir, npz, reference, spoil, mend):
    """When nothing can be written after the first checkpoint, a line; when it can again, as ever."""
    with started(workdir, npz, log__tensorboard=True) as process:
        with frozen(process, lambda: checkpoints(workdir)):
            spoil(process)
        assert_says(outcome(process), 'the disk is full', 'make room and run it again')
    kept = checkpoints(workdir)
    assert kept and all(state(workdir, step)['step'] == step for step in kept)
    mend()
    assert_same(finish(workdir, npz), reference)


@ahead
def test_a_full_disk(folder, npz, reference):
    filler = folder / 'filler'

    def fill(process):
        with pytest.raises(OSError), open(filler, 'wb', buffering=0) as file:
            while True:
                file.write(bytes(4096))

    with mounted(folder):
        assert_keeps_what_it_has(folder / 'run', npz, reference, fill, filler.unlink)


@ahead
def test_a_limit_of_file_size(folder, npz, reference):
    def limit(process):
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100, 100))

    assert_keeps_what_it_has(folder, npz, reference, limit, lambda: None)


@ahead
def test_a_disk_that_is_read_only(folder, npz, reference):
    with mounted(folder):
        shutil.copytree(reference, folder / 'run')
        subprocess.run(['mount', '-o', 'remount,ro', str(folder)], check=True)
        assert_says(train(folder / 'run', npz, epochs=8), f'{folder}/run', 'Read-only file system')


# Steps.


@ahead
def test_a_diverged_member_is_named_and_not_saved(folder, npz, reference):
    # The weights after step 5 are not finite, the loss that step 5 reports still is.
    result = train(folder, npz, optimizer__lr=2.0, schedule__gamma=3e38, checkpoint__every_steps=1)
    says = '0_tiny diverged: not all numbers are finite at step 5', 'kept checkpoints: [3, 4]'
    assert_says(result, *says)
    leaves = [leaf for step in (3, 4) for leaf in jax.tree.leaves(state(folder, step))]
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert checkpoints(folder) == [3, 4]


@ahead
def test_an_infinite_loss_is_no_checkpoint(folder, npz, reference):
    result = train(folder, npz, optimizer__lr=1e20, log__every_steps=1)
    assert_says(result, '0_tiny diverged: not all numbers are finite at step', 'kept checkpoints: []')
    assert checkpoints(folder) == []


@ahead
def test_too_large_a_batch_says_so_and_may_be_changed(folder, npz, reference):
    images, labels = np.zeros((40_000, 24, 24, 3), np.uint8), np.arange(40_000) % 4
    arrays = {'x_train': images, 'y_train': labels, 'x_test': images[:20], 'y_test': labels[:20]}
    folder.mkdir()
    np.savez_compressed(folder / 'many.npz', **arrays)
    gigabytes = 8 << 30, 8 << 30
    with started(folder / 'run', folder / 'many.npz', batch_size=40_000, network='resnet8') as process:
        resource.prlimit(process.pid, resource.RLIMIT_DATA, gigabytes)
        assert_says(outcome(process), 'out of memory', 'half the batch_size', 'optimizer.accumulate=2')
    assert_same(finish(folder / 'run', npz), reference)


@ahead
def test_an_interrupt_says_what_is_saved_and_how_to_go_on(folder, npz, reference):
    with started(folder, npz) as process:
        with frozen(process, lambda: checkpoints(folder)):
            process.send_signal(signal.SIGINT)
        status, _, err = outcome(process)
    step = checkpoints(folder)[-1]
    assert status == 130 and err.startswith(f'stopped; saved up to step {step}, epoch {step / 4:.3g} of 6')
    command = err.partition(': python -m jaxcifar.main ')[2]
    assert '--config=tests/small.py' in command and command.endswith(f'--workdir={folder}\n')


def test_a_deleted_checkpoint_is_said(small_npz, tmp_path, reference):
    workdir = shutil.copytree(reference, tmp_path / 'run')
    shutil.rmtree(workdir / 'checkpoints' / '24')
    status, _, err = train(workdir, small_npz)
    assert status == 0
    assert err == f'warning: newer checkpoints of {workdir} are missing; resuming from step 20\n'
    assert_same(workdir, reference)


def test_sigterm_while_compiling_ends_at_once(small_npz, tmp_path):
    """A network that takes a minute to compile, and is not in the cache of compiled programs."""
    fresh = {'compile_cache': tmp_path / 'cache', 'network': 'resnet110'}
    with started(tmp_path / 'run', small_npz, **fresh) as process:
        with frozen(process, lambda: (tmp_path / 'run' / 'run.json').exists()):
            process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        status, _, err = outcome(process)
    assert (status, err.count('\n')) == (75, 1)
    assert time.monotonic() - begun < 30
