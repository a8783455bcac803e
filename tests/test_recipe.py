"""A network or data set that a recipe was not made for: what stays that of another is said."""

import pytest

from jaxcifar.config import recipe, short
from jaxcifar.config.command_line import parse

OF_MUTUAL = (
    'network=wideresnet28_10: batch_size=64, epochs=200, model.init=he_dense, optimizer.lr=0.1, '
    'optimizer.weight_decay=0.0005, schedule.per=epoch stay those of mutual:resnet32 for resnet32'
)
OF_EXPERTS = (
    'network=densenet121: model.dropout=0.3, optimizer.weight_decay=0.0001 stay those of expert:pool for '
    'resnet18; --config=expert:densenet121,pool sets batch_size=64, model.dropout=0.2, '
    'optimizer.weight_decay=0.0005'
)


@pytest.mark.parametrize(('words', 'lines'), [
    ('mutual:resnet32 --network wideresnet28_10', [OF_MUTUAL]),
    ('expert:pool --network densenet121 --batch_size 32', [OF_EXPERTS]),
    ('single --dataset cifar10 --epochs 3', []),  # what it is made for
    ('configs/base.py --network resnet8', []),  # sets nothing that could be another's
])  # fmt: skip
def test_fields_that_stay_those_of_another_network_are_said(words, lines):
    argv = ['main', *short.spell_out([*words.split(), '--workdir', 'x'])]
    config, _ = parse(argv)
    assert recipe.stays(recipe.named(argv), config) == lines
    assert recipe.stays(config, config) == []  # a config made in Python has no recipe


def test_a_recipe_that_depends_on_the_data_set_names_the_other_one():
    config, _ = parse(['main', '--config', 'single', '--workdir=x', '--config.dataset=cifar100'])
    (line,) = recipe.stays('single', config)
    assert '--config=single:cifar100 sets batch_size=64, data.drop_last=True' in line
