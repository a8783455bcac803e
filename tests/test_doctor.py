"""What the doctor sees, and what it takes for a fault."""

import errno
import os
import re
import runpy
import subprocess
import tomllib
from pathlib import Path

import pytest

from configs.__main__ import page
from jaxcifar import doctor
from jaxcifar.machine import memory, versions
from jaxcifar.machine.errors import UserError
from tests.processes import ROOT


def test_a_healthy_run_is_timed_and_leaves_nothing(config, tiny_networks, tmp_path, capsys):
    config.network, config.members, config.steps_per_call = 'linear', 2, 2
    found = doctor.Doctor()
    found.machine()
    found.run(config, tmp_path / 'runs' / 'new')
    said = capsys.readouterr().out
    assert found.faults == [] and list(tmp_path.iterdir()) == []
    assert 'jax 0.' in said and '4 x cpu for jax' in said and 'GB of memory are free' in said
    assert 'can be written' in said and 'linear x 2 on npz:' in said and 'compiled the step' in said
    assert re.search(r'2 epochs of 3 steps take about \d+ s on this CPU, evaluation not included', said)
    assert 'a checkpoint takes 0.00' in said
    # A long tail keeps files of indices, but not for a look at it.
    config.split, config.long_tail.imbalance, config.data.root = 'long_tail_standard', 2.0, str(tmp_path)
    found.run(config, tmp_path / 'new')
    assert found.faults == [] and list(tmp_path.iterdir()) == []


def fault(find, *arguments) -> str:
    """The one fault that is found."""
    found = doctor.Doctor()
    getattr(found, find)(*arguments)
    (text,) = found.faults
    return text


def test_faults_are_named_in_plain_words(config, tiny_networks, tmp_path, monkeypatch):
    config.network = 'linear'
    (tmp_path / 'file').touch()
    assert 'file' in fault('run', config, tmp_path / 'file' / 'run')
    config.epochs = 0
    assert fault('run', config, tmp_path) == 'the config: epochs must be at least 1, got 0'
    config.epochs, config.batch_size = 1, 1000
    config.data.drop_last = True
    assert (
        fault('run', config, tmp_path)
        == 'the run: expected 1000 training images or more, a batch, got 80: set a smaller batch_size'
    )
    config.dataset, config.data.root = 'cifar100', str(tmp_path)
    assert f'cifar100.npz is not in {tmp_path}' in fault('run', config, tmp_path)
    config.dataset = 'npz:nowhere.npz'
    assert 'the data: ' in fault('run', config, tmp_path) and 'nowhere.npz' in fault('run', config, tmp_path)
    (tmp_path / 'gpus' / '0000:01').mkdir(parents=True)
    monkeypatch.setattr(doctor, 'NVIDIA', str(tmp_path / 'gpus'))
    assert 'knows 1 NVIDIA GPUs' in fault('machine') and 'JAX_PLATFORMS=cpu hides them' in fault('machine')


def test_the_reason_that_hides_gpus_is_named(monkeypatch):
    packages: list[str] = []
    monkeypatch.setattr(versions, 'installed', lambda package: '1.0' * (package in packages))
    monkeypatch.delenv('JAX_PLATFORMS', raising=False)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    assert doctor.why_unseen() == 'CUDA_VISIBLE_DEVICES= hides them'
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0')
    assert doctor.why_unseen().startswith('this jax is for CPUs') and "'.[cuda]'" in doctor.why_unseen()
    packages.append('jax-cuda12-plugin')
    assert doctor.why_unseen().startswith('jax-cuda12-plugin needs driver 525 or newer; nvidia-smi')
    packages[:] = ['jax-cuda13-plugin']
    assert re.search(r"^jax-cuda13-plugin needs driver 580 .* '\.\[cuda12\]'; nv", doctor.why_unseen())
    # What the doctor and the page name can be installed.
    extras = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies']
    named = (ROOT / 'docs/first-run.md').read_text() + str(doctor.PLUGINS)
    assert {*re.findall(r'\.\[(\w+)\]', named)} <= extras.keys()
    assert {bound.partition('>')[2] for bound in (extras['cuda'][0], extras['cuda12'][0])} == {'=0.10'}


@pytest.mark.parametrize(('lines', 'limits', 'gigabytes'), [
    ('0::/user/job/step', {'user/memory.max': 3, 'user/job/memory.max': 2, 'memory.max': 'max'}, 2),
    ('4:cpu,memory:/job\n1:cpu:/x\n0::/', {'memory/job/memory.limit_in_bytes': 1, 'x/memory.max': 0}, 1),
    ('3:memory:/outside', {'memory/memory.limit_in_bytes': 5}, 5),
    ('', {'memory.max': 4}, 4),
])  # fmt: skip
def test_memory_is_at_most_what_the_smallest_group_may_have(lines, limits, gigabytes, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, 'GROUPS', tmp_path / 'groups')
    monkeypatch.setattr(memory, 'OWN_GROUPS', tmp_path / 'own')
    monkeypatch.setattr(memory, 'MEMORY', tmp_path / 'meminfo')
    monkeypatch.setattr(os, 'sysconf', lambda name: 10**10 if name == 'SC_PHYS_PAGES' else 1)
    if lines:
        (tmp_path / 'own').write_text(lines)
    for name, limit in limits.items():
        (tmp_path / 'groups' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'groups' / name).write_text(limit if isinstance(limit, str) else f'{limit * 10**9}\n')
    assert memory.total() == gigabytes * 10**9
    assert memory.available() is None  # no Linux
    (tmp_path / 'meminfo').write_text('MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n')
    assert memory.available() == memory.total()


def test_steps_are_timed_in_the_pages_of_training(monkeypatch):
    done: list[str] = []
    monkeypatch.setattr(memory, 'restart_in_huge_pages', lambda: done.append('restarted'))
    monkeypatch.setattr('jaxcifar.machine.command.run_command', lambda main: done.append('run'))
    runpy.run_path(str(doctor.__file__), run_name='__main__')
    assert done == ['restarted', 'run']


def test_the_commit_is_not_that_of_another_project(tmp_path, monkeypatch):
    monkeypatch.delenv('JAXCIFAR_COMMIT', raising=False)
    monkeypatch.setattr(versions, '__file__', str(tmp_path / 'venv' / 'versions.py'))
    (tmp_path / 'venv').mkdir()
    (tmp_path / 'venv' / 'versions.py').touch()

    def git(*words: str):
        who = ('-c', 'user.name=a', '-c', 'user.email=a@b')
        subprocess.run(['git', *who, *words], cwd=tmp_path, check=True, capture_output=True)

    git('init')
    git('commit', '--allow-empty', '-m', 'theirs')
    assert versions.git_commit() == ''
    git('add', 'venv')
    git('commit', '-m', 'ours')
    assert re.fullmatch('[0-9a-f]{40,64}', versions.git_commit())


def test_a_full_disk_is_a_fault(tmp_path, monkeypatch):
    def full(**_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(doctor.tempfile, 'TemporaryFile', full)
    assert 'cannot be written: the disk is full' in fault('folder', 'the workdir', tmp_path)


def test_the_command_says_how_many_problems_there_are(monkeypatch, capsys):
    monkeypatch.setattr(doctor.Doctor, 'machine', lambda self: None)
    with pytest.raises(UserError, match='1 problem found; the config: unknown config'):
        doctor.main(['doctor', '--config', 'configs/sinlge.py'])
    assert "PROBLEM: the config: unknown config 'configs/sinlge.py'" in capsys.readouterr().out


def test_the_page_of_fields_is_of_today():
    """python -m configs > configs/README.md"""
    assert (ROOT / 'configs' / 'README.md').read_text() == page()
    assert Path(ROOT / 'configs' / 'README.md').read_text().count('\n| `') > 70
