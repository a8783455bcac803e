"""The program for a borrowed GPU: its rehearsal, its end in time, and data that come in halves."""

import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from experiments import carried_data, on_gpu, results
from experiments.gpu_steps import STEPS, Step
from jaxcifar.machine.errors import Preempted, UserError
from tests.conftest import CACHED


@pytest.fixture
def go(tmp_path, monkeypatch):
    """Call the program with further flags; its folders lie in tmp_path."""
    monkeypatch.setattr(on_gpu.results, 'FOLDER', tmp_path / 'own')
    monkeypatch.setattr(results, 'device_kind', lambda: 'a device')
    folders = [f'--{name}={tmp_path}/{name}' for name in ('workdir', 'out', 'data', 'carried')]

    def call(*flags):
        monkeypatch.setattr(sys, 'argv', ['on_gpu', *folders, *flags])
        on_gpu.main()

    return call


FEW = 'smoke', 'mutual'  # without data and with; the others take minutes


@pytest.mark.parametrize(
    'names', [FEW, pytest.param(tuple(STEPS), marks=pytest.mark.slow)], ids=['few', 'all']
)
def test_a_rehearsal_runs_every_step_and_brings_its_rows_back(names, go, tmp_path, monkeypatch, capsys):
    for name, value in CACHED.items():
        monkeypatch.setenv(name, value)
    go('--rehearse', '--budget', '1800', '--only', ','.join(names))
    said = capsys.readouterr().out
    waiting = [name for name in names if STEPS[name].data]
    assert said.count('] waits for cifar') == len(waiting)  # in the first call, with a half of each set
    finished = [row['step'] for row in results.read('on_gpu')]
    assert finished == [name for name in names if name not in waiting] + waiting
    assert list((tmp_path / 'workdir' / 'smoke' / 'profile').rglob('*.xplane.pb'))
    with zipfile.ZipFile(tmp_path / 'out' / 'on_gpu.zip') as archive:
        names, steps = archive.namelist(), names
    tables = {'accuracy', 'on_gpu'} | ({'members', 'options'} & {*steps})
    assert {f'results/{name}.csv' for name in tables} <= {*names} and 'mutual/results.json' in names
    assert len(list((tmp_path / 'out').iterdir())) == 1
    kept = {name: results.read(name) for name in tables}
    monkeypatch.setattr(results, 'FOLDER', tmp_path / 'own')
    for _ in range(2):  # the second time there is nothing new
        go('--take', str(tmp_path / 'out' / 'on_gpu.zip'))
        assert {name: results.read(name) for name in tables} == kept


def test_steps_run_once_and_stop_in_time(go, tmp_path, monkeypatch, capsys):
    made = 'timeit -n1 -r1 -s "import pathlib" "pathlib.Path(\'{workdir}/made\').touch()"'
    there = made.replace('touch', 'stat')
    child = "timeit -n1 -r1 -s \"import subprocess\" \"subprocess.run(['sh', '-c', '%s'])\""
    sleep = child % 'echo $$ > {workdir}/child; exec sleep 60'
    commands = {'quick': f'{made} && {there}', 'broken': 'no_such_module && timeit', 'long': sleep}
    steps = {name: Step('', command, '', least=0) for name, command in commands.items()}
    monkeypatch.setattr(on_gpu, 'STEPS', steps | {'waiting': Step('', '', '', data='cifar10')})
    with pytest.raises(UserError, match='failed: broken'):
        go('--only', 'quick,broken,waiting')
    assert (tmp_path / 'workdir' / 'made').exists()
    assert '[waiting] waits for cifar10: carry both' in capsys.readouterr().out
    go('--only', 'quick')
    assert '[quick] finished before on a device, in ' in capsys.readouterr().out
    go('--only', 'waiting', '--budget', '1')
    monkeypatch.setattr(on_gpu, 'SAVE_SECONDS', 1)
    with pytest.raises(Preempted, match='stopped in time'):
        go('--only', 'long', '--budget', '8')
    wait_for_end((tmp_path / 'workdir' / 'child').read_text().strip())


def wait_for_end(pid: str):
    """Until there is no such process but one that has ended."""
    stat, end = Path('/proc', pid, 'stat'), time.monotonic() + 10
    while stat.exists() and stat.read_text().rpartition(')')[2].split()[0] != 'Z':
        assert time.monotonic() < end
        time.sleep(0.05)


def test_halves_become_the_same_images_again_wherever_they_arrive(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {'x_train': rng.integers(0, 256, (850, 8, 8, 3), np.uint8), 'y_train': np.arange(850) % 10,
              'x_test': rng.integers(0, 256, (10, 8, 8, 3), np.uint8), 'y_test': np.arange(10)}  # fmt: skip
    np.savez(tmp_path / 'small.npz', **arrays)
    first, second = carried_data.split(tmp_path / 'small.npz', tmp_path / 'carried')
    away, data = tmp_path / 'away', tmp_path / 'data'
    away.mkdir()
    second.rename(away / second.name)
    assert carried_data.collect(tmp_path / 'carried', data) == []
    assert carried_data.collect(away, data) == ['small']
    with np.load(data / 'small.npz') as joined:
        for name, array in arrays.items():
            np.testing.assert_array_equal(joined[name], array)
    arrays['x_train'] = arrays['x_train'][::-1]
    np.savez(tmp_path / 'small.npz', **arrays)
    carried_data.split(tmp_path / 'small.npz', away)
    with pytest.raises(UserError, match='expected two halves of one set'):
        carried_data.join([first, away / second.name], tmp_path / 'mixed.npz')
