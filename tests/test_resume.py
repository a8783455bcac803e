"""Killed, stopped, extended and taken over: the run that goes on is the run that never stopped."""

import csv
import random
import shutil
import signal
import time

import numpy as np
import pytest

from jaxcifar.loop import train as train_here
from tests.conftest import small_images
from tests.processes import (
    Ahead,
    assert_same,
    assert_same_state,
    checkpoints,
    contents,
    finish,
    frozen,
    meta,
    outcome,
    reference,
    started,
    train,
)

THREE = {
    'members': 3,
    'seed': 3,  # one stops at epoch 3, one at 5, one not at all
    'batch_size': 32,  # 32, 32, 16
    'data__validation': 'holdout',
    'data__validation_size': 16,
    'ema': 0.9,
    'optimizer__lr': '.05,.02,0',
    'early_stopping__patience': 2,
    'log__every_steps': 1,
    'checkpoint__every_steps': 2,
}


ahead = Ahead()


@pytest.fixture(scope='module')
def three(small_npz, tmp_path_factory):
    """The workdir of three members that nothing happened to."""
    return finish(tmp_path_factory.mktemp('three') / 'run', small_npz, **THREE)


@pytest.fixture(scope='module')
def running(request, small_npz, three):
    yield from ahead.run(request, small_npz, reference(small_npz), three)


def during_a_save(workdir):
    return any(workdir.glob('checkpoints/*.orbax-checkpoint-tmp*'))


def between_best_weights_and_checkpoint(workdir):
    saved = [int(p.name.partition('.')[0]) for p in workdir.glob('checkpoints/*')]
    return max((int(p.stem) for p in workdir.glob('best/*/[0-9]*.npz')), default=0) > max(saved, default=0)


def timed_epochs(workdir) -> int:
    path = workdir / 'timing.csv'
    return path.read_text().count('\n') - 1 if path.exists() else 0


def some_time_later(rng):
    """A condition that holds from a random time on after it is first asked."""
    until = None

    def condition(workdir):
        nonlocal until
        until = until or time.monotonic() + rng.uniform(0, 0.1)
        return time.monotonic() >= until

    return condition


def killed(workdir, npz, **fields):
    """A run that was killed in a moment of each kind, each from a checkpoint on, and then left alone."""
    later = some_time_later(random.Random(len(fields)))
    for step, moment in (2, between_best_weights_and_checkpoint), (8, during_a_save), (12, later):

        def now(step=step, moment=moment):
            return checkpoints(workdir)[-1:] >= [step] and moment(workdir)

        with started(workdir, npz, **fields) as process, frozen(process, now):
            process.kill()
    return finish(workdir, npz, **fields)


@ahead
def test_a_killed_run_ends_as_if_it_had_not_been(folder, npz, one, three):
    # The undisturbed run keeps its images in device memory.
    assert_same(killed(folder, npz, **THREE, data__loader='host'), three)


def test_the_three_stop_at_different_times(three):
    with open(three / 'metrics.csv') as file:
        rows = [r for r in csv.DictReader(file) if r['split'] == 'validation']
    stopped = [r['member'] for r in rows if r['patience'] == '2' and float(r['epoch']) < 6]
    assert 0 < len(set(stopped)) < 3


def assert_saved_by_sigterm(process, workdir, pending):
    """Send SIGTERM; `pending` is whether an evaluation is still to be done."""
    process.send_signal(signal.SIGTERM)
    at = time.monotonic()
    status, _, err = outcome(process)
    assert time.monotonic() - at < 60  # a second or two, where nothing else runs
    step = checkpoints(workdir)[-1]
    assert status == 75 and err.startswith(f'saved at step {step}, epoch ') and err.count('\n') == 1
    assert 'to continue: python -m jaxcifar.main --config=' in err
    assert meta(workdir, step)['pending'] == pending


@ahead
def test_sigterm_in_training_saves_within_seconds(folder, npz, one, three):
    with started(folder, npz) as process:
        with frozen(process, lambda: during_a_save(folder)):
            pass
        assert_saved_by_sigterm(process, folder, pending=False)
    assert_same(finish(folder, npz), one)


@ahead
def test_sigterm_in_evaluation_saves_within_seconds(folder, npz, one, three):
    folder.mkdir()
    x, y = small_images(500)
    np.savez(folder / 'many.npz', x_train=x[:24], y_train=y[:24], x_test=x, y_test=y)
    # One step an epoch, and then images one by one for longer than all else takes.
    fields = {'npz': folder / 'many.npz', 'eval__batch_size': 1, 'epochs': 2}
    with started(folder / 'run', **fields) as process:
        with frozen(process, lambda: timed_epochs(folder / 'run') == 2):  # written before its evaluation
            pass
        assert_saved_by_sigterm(process, folder / 'run', pending=True)
    assert_same(finish(folder / 'run', **fields), finish(folder / 'reference', **fields))


@ahead
def test_a_finished_run_says_so_and_leaves_all_as_it_is(folder, npz, one, three):
    workdir = shutil.copytree(one, folder)
    status, out, err = train(workdir, npz)
    assert (status, err) == (0, '')
    first, *results, last = out.splitlines()
    assert first == f'{workdir} is finished: it reached epochs=6' and 'test accuracy' in results[0]
    assert last.startswith('to continue it: python -m') and last.endswith(' --config.epochs=12')
    assert contents(workdir, '**/[!.]*') == contents(one, '**/[!.]*')


@ahead
def test_more_epochs_continue_a_finished_run(folder, npz, one, three):
    killed, whole = (shutil.copytree(one, folder / name) for name in ('killed', 'whole'))
    with started(killed, npz, epochs=8) as process, frozen(process, lambda: during_a_save(killed)):
        process.kill()
    assert_same(finish(killed, npz, epochs=8), finish(whole, npz, epochs=8))
    before, after = ((workdir / 'metrics.csv').read_bytes() for workdir in (one, whole))
    assert after.startswith(before)
    assert [row.split(b',')[0] for row in after[len(before) :].splitlines()] == [b'7'] * 2 + [b'8'] * 3


@ahead
def test_a_new_workdir_starts_from_the_newest_checkpoint_of_another(folder, npz, one, three):
    finish(folder, npz, resume_from=one)
    written = 'results.json', 'metrics.csv'
    assert contents(folder, *written) == contents(one, *written)
    assert contents(folder, 'best/*/*').items() <= contents(one, 'best/*/*').items()
    assert_same_state(folder, one)


@ahead
def test_a_new_workdir_starts_from_a_checkpoint_of_another(folder, npz, one, three):
    assert_same(finish(folder, npz, resume_from=f'{one}@20'), one)


def test_a_stopped_member_goes_on_at_once_when_it_may(tiny_networks, config, tmp_path):
    config.network, config.epochs, config.optimizer.lr = 'tiny', 3, 0.0  # batch statistics move all the same
    config.early_stopping.patience = 1
    assert train_here(config, tmp_path / 'stopped')['epoch'] == 2
    config.early_stopping.patience = 0
    for name in ('stopped', 'whole'):
        assert train_here(config, tmp_path / name)['epoch'] == 3
    assert_same_state(tmp_path / 'stopped', tmp_path / 'whole')
