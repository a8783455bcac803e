"""The frame of every command: what is no command, names that are nearly right, and remedies that work."""

import copy
import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxcifar
from jaxcifar.calibrate import calibrate
from jaxcifar.config import saved
from jaxcifar.loop import train
from jaxcifar.machine.command import COMMANDS, NO_FILES, NO_MEMORY, command_parser, explain
from jaxcifar.machine.errors import UserError, parse_argument, suggestions
from jaxcifar.machine.text import about
from jaxcifar.models import NETWORKS
from jaxcifar.reject import reject
from jaxcifar.runs import networks
from jaxcifar.runs.resolve import finalize
from tests.processes import ROOT


def python(*words: str, **environment: str) -> subprocess.CompletedProcess:
    environ = {**os.environ, 'PYTHONPATH': str(ROOT), **environment}
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=environ, capture_output=True, text=True)


def test_a_module_that_is_no_command_says_so():
    package = Path(jaxcifar.__file__).parent
    runnable = {p for p in package.rglob('*.py') if "\nif __name__ == '__main__':" in p.read_text()}
    named = {p.parent.name if p.stem == '__main__' else p.stem for p in runnable}
    assert named - {'jaxcifar'} == set(COMMANDS)  # python -m jaxcifar is a word before each of them
    for module, words in (('loop', 'valid: calibrate, doctor'), ('evalute', "did you mean 'evaluate'?")):
        done = python('-m', f'jaxcifar.{module}')
        assert (done.returncode, done.stdout, done.stderr.count('\n')) == (1, '', 1)
        assert done.stderr.startswith(f"error: unknown command '{module}'") and words in done.stderr


@pytest.mark.parametrize('words', ['r --top 2 a.png', 'a.png --workdir r', '--workdir=r a.png'])
def test_the_first_word_may_be_the_run(words):
    parser = command_parser('jaxcifar.predict', None, 'folder of a run')
    parser.add_argument('--top', type=int)
    parser.add_argument('images', nargs='+')
    args = parser.parse_args(words.split())
    assert (args.workdir, args.images) == (Path('r'), ['a.png'])


def test_what_a_terminal_cannot_show_ends_no_command():
    code = "from jaxcifar.machine.command import run_command; run_command(lambda: print('93.1 ± 0.2'))"
    done = python('-c', code, PYTHONIOENCODING='ascii')
    assert (done.returncode, done.stdout, done.stderr) == (0, '93.1 ? 0.2\n', '')


def test_too_many_files_are_not_too_little_memory():
    many = os.strerror(errno.EMFILE)
    assert explain(OSError(errno.EMFILE, many, 'x.npz')) == NO_FILES
    assert explain(ValueError(f'RESOURCE_EXHAUSTED: {many} [OS error 24]')) == NO_FILES
    assert explain(ValueError('RESOURCE_EXHAUSTED: Out of memory')) == NO_MEMORY


@pytest.mark.parametrize(('name', 'near'), [
    ('resnet21', ['resnet20']),
    ('ResNet-18', ['resnet18']),
    ('resnet', [f'resnet{n}' for n in (18, 110, 20, 32, 34, 44, 50, 56, 8)]),
    ('densenet', ['densenet121', 'densenet169', 'densenet201']),
    ('resnext', ['preact_resnext29_8x64d', 'resnext29_16x64d', 'resnext29_8x64d']),
    ('improved_wideresnet28_10', ['wideresnet28_10']),
    ('wrn28_10', ['wideresnet28_10']),
    ('WRN-40-2', ['wideresnet40_2']),
    ('wideresnet28-10', ['wideresnet28_10']),
    ('xxx', []),
])  # fmt: skip
def test_names_that_are_meant(name, near):
    assert suggestions(name, sorted(NETWORKS)) == near


def test_words_of_an_argument_come_in_any_order():
    kinds = {'network': NETWORKS, 'size': ('small', 'large')}
    assert parse_argument('x.py', 'small,resnet8', kinds) == parse_argument('x.py', 'resnet8,small', kinds)
    with pytest.raises(UserError, match=r"x\.py takes one size, got 'small' and 'large': leave one out"):
        parse_argument('x.py', 'small,resnet8,large', kinds)


def test_times_are_told_in_their_largest_unit():
    assert [about(s) for s in (0.2, 100, 150, 8000, 1_473_700)] == [
        'about 1 s', 'about 100 s', 'about 2 minutes', 'about 2 hours', 'about 17 days'
    ]  # fmt: skip


@pytest.mark.parametrize(('field', 'value'), [('optimizer.lr', 0.1), ('batch_size', 16), ('network', 'tiny')])
def test_a_changed_run_goes_on_as_its_error_says(config, tiny_networks, tmp_path, field, value):
    config.network, config.epochs = 'linear', 1
    train(copy.deepcopy(config), tmp_path / 'old')
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError) as caught:
        train(copy.deepcopy(config), tmp_path / 'old')
    remedy = str(caught.value).partition('choose a new --workdir')[2]
    advised = re.match(r'; --config\.(\w+)=(\S+) ', remedy)
    expected = {'optimizer.lr': 'resume_from', 'batch_size': 'init_from', 'network': None}[field]
    assert (advised and advised[1]) == expected
    if advised:
        config[advised[1]], config.epochs = advised[2], 2
        assert train(config, tmp_path / 'new')['epoch'] == 2


def test_rejection_names_a_remedy_only_where_there_is_one(config, tmp_path):
    fields = saved.to_dict(finalize(config))
    for split, words in (('shared', 'this is a run of split=shared'), ('long_tail', 'is not finished')):
        (tmp_path / 'config.json').write_text(json.dumps({**fields, 'split': split}))
        with pytest.raises(UserError, match=words):
            reject(tmp_path)


def test_an_export_is_not_calibrated_and_its_images_are_not_downloaded(monkeypatch):
    monkeypatch.setattr(networks, 'load_images', None)
    with pytest.raises(UserError, match='expected the workdir of a run, got resnet20-ternary, which'):
        calibrate(Path('resnet20-ternary'))
