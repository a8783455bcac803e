"""The learning rate that is drawn before training."""

import numpy as np
import pytest
from PIL import Image

from jaxcifar import schedule
from jaxcifar.config.command_line import parse
from jaxcifar.config.short import spell_out
from jaxcifar.runs.resolve import finalize


def of(words: str) -> schedule.Schedule:
    config, _ = parse(['main', *spell_out(words.split())])
    return schedule.Schedule(finalize(config))


@pytest.mark.parametrize(
    ('words', 'lines', 'turns'),
    [
        (
            'single --epochs 10 --schedule.name multistep --milestones 4,8 --warmup_steps 100',
            ['0_resnet20'],
            ['start', 'warmed up', 'milestone', 'milestone', 'end'],
        ),
        (
            'single --epochs 9 --lr .1,.1,.2 --members 3',
            ['0_resnet20, 1_resnet20', '2_resnet20'],
            ['start', 'a quarter', 'half', 'three quarters', 'end'],
        ),
        (
            'fusion --epochs 20 --fusion.lr_head .01',
            ['all 4 members', 'fusion', 'global_head'],
            ['start', 'a quarter, restart', 'half', 'three quarters, restart', 'end'],
        ),
    ],
)
def test_lines_and_turns(words, lines, turns, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drawn = of(words)
    table = drawn.table()
    assert list(drawn.lines) == lines and [row[0] for row in table] == turns
    assert all(len(row) == 3 + len(lines) for row in table)
    assert not list(tmp_path.iterdir())  # CIFAR is neither read nor fetched


def test_a_table_of_many_turns_is_cut(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drawn = of('single --schedule.name step --step_size 1 --gamma .5 --epochs 30 --drop_last True')
    assert drawn.epoch_steps == 45_000 // 128
    assert [row[0] for row in drawn.table()] == ['start'] + ['step down'] * 6 + ['end']
    np.testing.assert_allclose(drawn.rates([0, drawn.epoch_steps])[:, 0], [0.1, 0.05])


def test_the_command_prints_a_table_and_writes_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sys.argv', ['schedule', 'quickstart', '--lr', '.1,.2,.3', '--epochs', '4'])
    schedule.main()
    said = capsys.readouterr().out
    assert said.startswith('4 epochs of 20 steps') and 'warmed up' in said and '2_resnet8' in said
    with Image.open('schedule.png') as image:
        assert len(np.unique(np.asarray(image).reshape(-1, 4), axis=0)) > 50
