"""What the doctor sees, and what it takes for a fault."""

import errno
import os
import re
from pathlib import Path

import pytest

from configs.__main__ import page
from jaxcifar import doctor
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
    monkeypatch.delenv('JAX_PLATFORMS')
    assert "'.[cuda]'" in fault('machine')


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
