"""What a run says of its fields: those that stay another network's, and those without an effect."""

import pytest

from jaxcifar.config import recipe, short_form, unused
from jaxcifar.config.command_line import parse

OF_MUTUAL = (
    'network=wideresnet28_10: batch_size=64, epochs=200, model.init=he_dense, optimizer.lr=0.1, '
    'optimizer.weight_decay=0.0005, schedule.per=epoch keep the values that mutual:resnet32 sets for resnet32'
)
OF_DATA = (
    'dataset=cifar100: batch_size=128, epochs=200, optimizer.lr=0.1, optimizer.weight_decay=0.0005 keep '
    'the values that single sets for cifar10'
)


@pytest.mark.parametrize(('words', 'lines'), [
    ('mutual:resnet32 --network wideresnet28_10', [OF_MUTUAL]),
    ('single --dataset cifar100', [OF_DATA]),
    ('single --dataset cifar10 --epochs 3', []),  # what it is made for
    ('configs/base.py --network resnet8', []),  # sets nothing that could be another's
])  # fmt: skip
def test_fields_that_stay_those_of_another_network_are_said(words, lines):
    argv = ['main', *short_form.spell_out([*words.split(), '--workdir', 'x'])]
    assert recipe.of_command_line(argv, parse(argv)[0]) == lines


def test_a_config_file_of_the_user_runs_once(tmp_path, capsys):
    file = tmp_path / 'mine.py'
    file.write_text(
        'from configs import base\n\n\ndef get_config():\n    print("runs")\n    return base.get_config()\n'
    )
    argv = ['main', f'--config={file}', '--workdir=x', '--config.network=resnet8']
    assert recipe.of_command_line(argv, parse(argv)[0]) == []
    assert capsys.readouterr().out == 'runs\n'


@pytest.mark.parametrize(('words', 'lines'), [
    ('single --milestones 100,150',
     ['schedule.milestones=(100, 150) has no effect: it is for schedule.name=multistep']),
    ('single --schedule multistep --milestones 100,150', []),
    ('single --ternary.rule ttq --imbalance 10', [
        'ternary.rule=ttq has no effect: it is for view=ternary',
        'long_tail.imbalance=10.0 has no effect: it is for split=long_tail',
    ]),
    ('ternary:resnet20,cifar10,ttq --ternary.scale False',
     ['ternary.scale=False has no effect: it is for ternary.rule=twn']),
    ('ternary:resnet20,cifar10,ttq --view none', []),  # what the recipe sets besides waits for its part
    ('long_tail --split_seed 1', ['data.split_seed=1 has no effect: it is for data.validation=holdout']),
    ('single --b1 .8 --momentum .5', ['optimizer.b1=0.8 has no effect: it is for optimizer.name=adamw']),
])  # fmt: skip
def test_fields_without_an_effect_are_named(words, lines):
    argv = ['main', *short_form.spell_out([*words.split(), '--workdir', 'x'])]
    config, _ = parse(argv)
    assert unused.without_effect(config, unused.set_by(argv, config)) == lines


def test_fields_of_a_file_of_ones_own_are_judged_too(tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text(
        'from configs import base\n\n\ndef get_config():\n    c = base.get_config()\n'
        '    c.mutual.temperature = 3.0\n    return c\n'
    )
    argv = ['main', f'--config={file}', '--workdir=x']
    config, _ = parse(argv)
    assert unused.set_by(argv, config) == ['mutual.temperature']
