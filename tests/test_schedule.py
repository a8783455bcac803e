"""The learning rate that is drawn before training."""

import numpy as np
import pytest
from PIL import Image

from jaxcifar import schedule
from jaxcifar.config.command_line import parse
from jaxcifar.config.short_form import spell_out
from jaxcifar.runs.resolve import finalize


def of(words: str) -> schedule.Schedule:
    config, _ = parse(['main', *spell_out(words.split())])
    return schedule.Schedule(finalize(config))


@pytest.mark.parametrize(
    ('words', 'lines'),
    [
        ('single --epochs 9 --lr .1,.1,.2 --members 3', ['0_resnet20 and 1_resnet20', '2_resnet20']),
        ('fusion --epochs 20 --fusion.lr_head .01', ['all 4 members', 'fusion', 'global_head']),
        ('long_tail --epochs 9', ['all 3 members']),
    ],
)
def test_members_of_one_rate_share_a_line(words, lines, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drawn = of(words)
    headings, *rows = drawn.table()
    assert list(drawn.lines) == headings[3:] == lines
    assert [row[0] for row in rows] == ['start', '25 %', '50 %', '75 %', 'end']
    assert not list(tmp_path.iterdir())  # CIFAR is neither read nor fetched


def test_a_sweep_of_many_rates_is_cut_in_the_table_and_the_legend(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rates = ','.join(f'{k / 100:g}' for k in range(1, 31))
    drawn = of(
        f'single --schedule.name step --step_size 1 --gamma .5 --drop_last True --members 30 --lr {rates}'
    )
    assert drawn.epoch_steps == 45_000 // 128
    np.testing.assert_allclose(drawn.rates([0, drawn.epoch_steps])[:, 9], [0.1, 0.05])
    assert {len(row) for row in drawn.table()} == {3 + 6} and '6 of 30 lines' in drawn.notes()[0]
    figure = drawn.draw()
    assert len(figure.axes[0].lines) == 30
    assert [text.get_text() for text in figure.legends[0].get_texts()][-2:] == ['15_resnet20', 'and 14 more']


def test_the_command_prints_a_table_and_writes_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sys.argv', ['schedule', 'quickstart', '--lr', '.1,.2,.3', '--epochs', '4'])
    schedule.main()
    said = capsys.readouterr().out
    assert said.startswith('4 epochs of 20 steps') and '75 %' in said and '2_resnet8' in said
    with Image.open('schedule.png') as image:
        assert len(np.unique(np.asarray(image).reshape(-1, 4), axis=0)) > 50
