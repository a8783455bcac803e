"""A network or data set that a recipe was not made for: what stays that of another is said."""

import pytest

from jaxcifar.config import recipe, short_form
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
