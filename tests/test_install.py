"""The package as pip installs it: away from the checkout, by its own command."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from jaxcifar.config import short_form
from jaxcifar.machine import files
from jaxcifar.machine.errors import UserError
from tests.conftest import CACHED
from tests.processes import ROOT


@pytest.fixture(scope='module')
def installed(tmp_path_factory) -> Path:
    """Return a folder that holds what the wheel holds, and nothing else."""
    folder = tmp_path_factory.mktemp('wheel')
    for name in ('jaxcifar', 'configs', 'experiments'):  # a copy: pip leaves its build where it builds
        shutil.copytree(ROOT / name, folder / 'source' / name)
    for name in ('pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, folder / 'source' / name)
    build = [
        sys.executable,
        '-m',
        'pip',
        'wheel',
        '-q',
        '--no-deps',
        '-w',
        str(folder),
        str(folder / 'source'),
    ]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob('jaxcifar-*.whl')
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / 'site')
    return folder / 'site'


def test_the_wheel_trains_exports_and_predicts_from_any_folder(installed, tmp_path):
    def jaxcifar(*words: str) -> str:
        program = f'import sys, jaxcifar.__main__ as m; sys.argv = ["jaxcifar", *{words!r}]; m.start()'
        environ = {**os.environ, **CACHED, 'PYTHONPATH': str(installed), 'JAXCIFAR_DATA': str(tmp_path)}
        command = [sys.executable, '-P', '-c', program]
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    shrunk = '--network', 'resnet8', '--members', '2', '--epochs', '1', '--devices', '1'
    said = jaxcifar('train', 'mutual:digits', *shrunk, '--workdir', 'run', '--log.tensorboard', 'False')
    assert said.startswith('workdir: run\n') and 'test accuracy' in said
    assert json.loads((tmp_path / 'run' / 'results.json').read_text())['epoch'] == 1
    jaxcifar('export', '--workdir', 'run', '--format', 'safetensors', '--output', 'exported')
    assert list((tmp_path / 'exported').glob('*.safetensors'))
    Image.new('RGB', (40, 30), 'navy').save(tmp_path / 'sea.png')
    assert jaxcifar('predict', '--model', 'resnet20-ternary', 'sea.png').startswith('sea.png  ')


@pytest.mark.parametrize(
    ('words', 'expected'),
    [
        ('quickstart --workdir x', ['--config=quickstart', '--workdir=x']),
        ('quickstart --workdir=x --lr .8', ['--workdir=x', '--config.optimizer.lr=.8']),
        ('single --optimizer adamw --verbose', ['--config.optimizer.name=adamw', '--verbose']),
        ('--config.eval.flip=True single:resnet8 --workdir x', ['--config=single:resnet8']),
    ],
)
def test_the_short_form_spells_out_the_long_one(words, expected):
    assert set(expected) <= set(short_form.spell_out(words.split()))


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ('', 'expected one config, got none'),
        ('single mutual', 'expected one config, got single mutual'),
        ('single --dropout .1', 'expected --model.dropout or --fusion.dropout'),
        ('single --epoch 3', "unknown field 'epoch'; did you mean 'epochs'"),
        ('single --epochs', '--epochs needs a value'),
        ('single -lr .1', 'expected two dashes before a flag, got -lr: write --lr'),
        ('single --schedule.nam step', "did you mean 'schedule.name'?"),
        ('single --bogus 3', "unknown field 'bogus'; --help lists them"),
    ],
)
def test_mistakes_in_the_short_form_end_in_one_line(words, message):
    with pytest.raises(UserError) as caught:
        short_form.spell_out(words.split())
    assert message in str(caught.value) and '\n' not in str(caught.value)


def test_a_workdir_of_its_own_is_new(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = short_form.make_workdir('mutual:resnet32,cifar10')
    assert first.parent.name == 'runs' and first.name.startswith('mutual-resnet32-cifar10-20')
    assert first.is_dir() and short_form.new_workdir('mutual:resnet32,cifar10').name == f'{first.name}-2'
    # What stays empty is removed when the process ends.
    files.remove_empty_folders()
    assert list(tmp_path.iterdir()) == []
