"""What a run says when it goes on, when it is over, and while it is at something that takes long."""

import io
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from configs import base
from jaxcifar.config import saved
from jaxcifar.config.resume_command import resume_command
from jaxcifar.engine.couplings import make_learning_rates
from jaxcifar.machine import status
from jaxcifar.machine.files import write_json
from jaxcifar.runs import continuation
from jaxcifar.runs.progress import Progress
from jaxcifar.runs.resolve import finalize
from jaxcifar.runs.selection import Selection
from jaxcifar.runs.sources import split_checkpoint, split_sources

STEPS = 10  # an epoch


def session(**fields):
    """Return what `continuation` asks of a session, of a config with these fields."""
    c = base.get_config()
    c.update_from_flattened_dict(fields)
    config = finalize(c)
    names = [f'{i}_resnet20' for i in range(config.members)]
    rates = make_learning_rates(config, STEPS)
    return SimpleNamespace(
        config=config, names=names, epoch_steps=STEPS, total=STEPS * config.epochs, learning_rates=rates
    )


def progress(epoch: int, members: int = 1, **selection) -> Progress:
    start = Selection.start(members)
    for name, values in selection.items():
        setattr(start, name, np.array(values))
    return Progress(STEPS, start, step=epoch * STEPS)


def said(folder, epoch: int, old: dict, new: dict, **selection) -> list[str]:
    """Return what a run of the `old` fields says when it goes on after this epoch with the `new` ones."""
    before, now = session(**old), session(**{**old, **new})
    write_json(folder / 'config.json', saved.to_dict(before.config))
    return continuation.changes(now, folder, progress(epoch, now.config.members, **selection))


@pytest.mark.parametrize(('old', 'new', 'line'), [
    ({}, {'epochs': 500}, 'a longer cosine lifts the learning rate at epoch 76 from 0.085 to 0.0944'),
    ({}, {'epochs': 200}, 'a shorter cosine lowers the learning rate at epoch 76 from 0.085 to 0.0684'),
    ({'optimizer.lr': (0.1, 0.2), 'members': 2}, {'epochs': 500}, 'a longer cosine lifts the learning rate '
     'at epoch 76 from 0.085, 0.17 to 0.0944, 0.189'),
    ({'schedule.name': 'multistep'}, {'schedule.milestones': (60, 90)},
     'the new schedule lowers the learning rate at epoch 90 from 0.01 to 0.001'),
])  # fmt: skip
def test_a_resumed_run_says_what_happens_to_its_learning_rate(old, new, line, tmp_path):
    *changed, rate = said(tmp_path, 76, {'epochs': 300, **old}, new)
    assert rate == line
    assert changed[0].startswith(f'changed: {next(iter(new))} ')


def test_a_resumed_run_says_nothing_where_nothing_changes(tmp_path):
    assert said(tmp_path, 76, {'epochs': 300}, {'log.every_steps': 5, 'checkpoint.keep': 3}) == []
    stepped = {'epochs': 300, 'schedule.name': 'step'}
    assert said(tmp_path, 76, stepped, {'epochs': 500}) == ['changed: epochs 300 -> 500']
    assert said(tmp_path, 0, {'epochs': 300}, {'epochs': 500}) == []  # it has not begun
    (tmp_path / 'config.json').unlink()
    assert continuation.changes(session(), tmp_path, progress(5)) == []


def test_a_run_says_which_other_one_it_takes_up(tmp_path):
    other, own = tmp_path / 'other', tmp_path / 'own'
    own.mkdir(), other.mkdir()
    write_json(other / 'config.json', saved.to_dict(session(epochs=9).config))
    now = session(epochs=9, resume_from=f'{other}@30')
    assert continuation.changes(now, own, progress(3)) == [f'continued from {other}@30']
    write_json(own / 'config.json', saved.to_dict(now.config))
    assert continuation.changes(now, own, progress(3)) == []  # it is its own by then


def test_a_finished_run_goes_on_from_the_end_of_its_schedule(tmp_path):
    lines = said(tmp_path, 10, {'epochs': 10, 'schedule.per': 'epoch'}, {'epochs': 20})
    assert lines[-1] == 'a longer cosine lifts the learning rate at epoch 10 from 0.00245 to 0.05'


def test_more_patience_lets_members_go_on(tmp_path):
    lines = said(
        tmp_path, 9, {'early_stopping.patience': 2, 'members': 2}, {'early_stopping.patience': 4},
        patience=[2, 1],
    )  # fmt: skip
    assert lines[1:] == ['0_resnet20 trains again: early_stopping has changed']


@pytest.mark.parametrize(('epoch', 'patience', 'why', 'more'), [
    (8, [0, 0], 'it reached epochs=8', ' --epochs=16'),
    (11, [0, 0], 'it has 11 epochs, more than epochs=8', ' --epochs=22'),  # which was lowered since
    (8, [3, 0], 'it reached epochs=8; early_stopping.patience=3 stopped 0_resnet20 (its best is epoch 4)',
     ' --epochs=16'),
    (7, [3, 3], 'early_stopping.patience=3 stopped 0_resnet20 (its best is epoch 4), 1_resnet20 (its best is '
     'epoch 2) by epoch 7 of 8', ' --early_stopping.patience=6'),
])  # fmt: skip
def test_a_finished_run_says_what_ended_it(epoch, patience, why, more, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['/a/jaxcifar/main.py', '--config=single', '--workdir=x'])
    monkeypatch.setattr(sys, 'orig_argv', ['python', '/bin/jaxcifar', 'train', 'single'])
    over = session(members=2, epochs=8, **{'early_stopping.patience': 3})
    lines = continuation.finished(over, 'w', progress(epoch, 2, patience=patience, best_epoch=[4, 2]), {})
    assert lines == [f'w is finished: {why}', f'to continue it: jaxcifar train single --workdir=w{more}']


@pytest.mark.parametrize(('argv', 'command'), [
    (['/jaxcifar/main.py', '--config', 'a.py:b', '--workdir', 'x', '--config.epochs', '3', '--config.seed=1'],
     'python -m jaxcifar.main --config a.py:b --config.seed=1 --workdir=w --config.epochs=5'),
    (['notebook'], "jaxcifar.train(…, workdir='w', epochs=5)"),
])  # fmt: skip
def test_the_command_that_goes_on(argv, command, monkeypatch):
    monkeypatch.setattr(sys, 'argv', argv)
    monkeypatch.setattr(sys, 'orig_argv', ['python', '-m', 'jaxcifar.main'])
    assert resume_command('w', {'epochs': 5}) == command


def test_a_log_is_told_once_what_takes_long(monkeypatch):
    monkeypatch.setattr(status, 'SILENCE', 0.01)
    monkeypatch.setattr(status, 'BLINK', 0.0)
    log = io.StringIO()
    with status.logged(log):
        for what in ('compiling the step', 'a short one', 'compiling the step'):
            with status.during(what):
                assert status.line() == f'{what} … 0 s'
                time.sleep(0.05 * (what != 'a short one'))
    with status.during('another command'):
        time.sleep(0.05)
    assert log.getvalue() == 'compiling the step …\n' and status.line() == ''


def test_a_plus_or_an_at_in_a_name_that_is_there_belongs_to_it(tmp_path):
    for name in ('a+b', 'c@d', 'e'):
        (tmp_path / name).mkdir()
    a, c, e = (f'{tmp_path}/{name}' for name in ('a+b', 'c@d', 'e'))
    text = f'{a}@last+{c}+{e}@12+absent+{c}@best'
    assert split_sources(text) == [f'{a}@last', c, f'{e}@12', 'absent', f'{c}@best']
    found = [split_checkpoint(source) for source in split_sources(text)]
    assert found == [
        (Path(a), 'last'), (Path(c), ''), (Path(e), '12'), (Path('absent'), ''), (Path(c), 'best')
    ]  # fmt: skip
    assert split_checkpoint(f'{"x" * 5000}@best')[1] == 'best'
