"""Experts for fusion: four networks that each see a part of CIFAR-100, in one run.

    python -m jaxcifar.main --config configs/expert.py:resnet18,strong --workdir runs/experts
    python -m jaxcifar.main --config configs/expert.py:resnet18,strong,pool --workdir runs/pool

The argument is a network, a split and a recipe, each optional, joined by commas. The recipe depends on the
network, so name the network here. --config.member_ids=2 trains the third expert alone. Four networks joined
by + each have their own rate, weight decay and smoothing; augmentation, batch and dropout are the usual ones.

Splits: overlap (four experts of 22,000: 16,000 shared and 6,000 of their own), disjoint (25 classes
each), and one network as baseline: pool (the 40,000 that the four have seen), pool_fusion (the 49,000
that they and their fusion have), all (50,000, last epoch). overlap, disjoint and pool do not train on the
10,000 images of the fusion holdout, which choose their weights.

Recipes: seed (250 epochs, warm restarts, mixup) and strong (cosine, CutMix, an augmentation for each
family of networks). Use strong for results: seed ends in the middle of a cycle, at a third of lr.

MODEL_TYPE, EXPERT_ID and EPOCHS in the environment override the recipe. The command line overrides them.
Public numbers on 22,000 images, best epoch on the test set: ResNet-18 71.2 %, DenseNet-121 75.3,
pre-activation ResNeXt-29 76.2, WRN-28-10 78.8; on all 50,000: 80.4, 83.7, 84.8, 84.7.
"""

import os
import sys
from collections.abc import Iterable

from configs import base
from jaxcifar.config.fields import PER_MEMBER
from jaxcifar.config.values import get
from jaxcifar.machine.errors import UserError, parse_argument
from jaxcifar.models import NETWORKS, has_dropout

# word -> config.split, and what chooses the weights
SPLITS = {
    'overlap': ('overlap', 'fusion_holdout'),
    'disjoint': ('disjoint', 'fusion_holdout'),
    'pool': ('shared', 'fusion_holdout'),
    'pool_fusion': ('shared', 'fusion_validation'),
    'all': ('shared', 'none'),
}

SEED = {
    'epochs': 250,
    'augment': 'seed000',
    'label_smoothing': 0.05,
    'model.dropout': 0.3,
    'optimizer.clip': 1.0,
    'schedule.name': 'warm_restarts',
    'schedule.per': 'epoch',
    'early_stopping.patience': 15,
    'early_stopping.min_epochs': 50,
}
STRONG = {
    **SEED,
    'schedule.name': 'cosine',
    'schedule.per': 'step',
    'early_stopping.patience': 30,
    'early_stopping.min_epochs': 120,
}
RECIPES = {'seed': SEED, 'strong': STRONG}

# Changes of the strong recipe by a part of the network's name: weaker augmentation gets more smoothing.
FAMILIES = {
    'wideresnet': {'augment': 'strong_wrn', 'label_smoothing': 0.03},
    'resnext': {'augment': 'strong_resnext', 'label_smoothing': 0.05},
    'densenet': {'augment': 'strong_densenet', 'label_smoothing': 0.05},
    '': {'augment': 'strong_resnet', 'label_smoothing': 0.1},
}
DENSENET = {'batch_size': 64, 'model.dropout': 0.2}
OF_NETWORK = {
    'densenet121': DENSENET,
    'densenet169': DENSENET,
    'densenet201': {**DENSENET, 'batch_size': 32},
    'efficient_densenet': DENSENET,
    'preact_resnet18': {'optimizer.lr': 0.2},
    **{name: {'model.dropout': 0.0} for name in NETWORKS if not has_dropout(name)},
    **{name: {'optimizer.weight_decay': 1e-4} for name in ('resnet18', 'resnet34', 'resnet50')},
}
KINDS: dict[str, Iterable[str]] = {'recipe': RECIPES, 'split': SPLITS, 'network': NETWORKS}


def get_config(argument: str = ''):
    """Return the config; `argument` joins a network, one of RECIPES and one of SPLITS by commas."""
    given = parse_argument('configs/expert.py', argument, KINDS)
    recipe, split = given.get('recipe', 'seed'), given.get('split', 'overlap')
    c = base.get_config()
    c.dataset = 'cifar100'
    c.network = given.get('network') or _environment('MODEL_TYPE') or 'resnet18'
    with c.ignore_type():  # a tuple may take the place of a number
        c.update_from_flattened_dict(_joint_recipe(recipe, c))
    c.split, c.data.validation = SPLITS[split]
    c.data.order = 'member'  # experts are trained as if alone, and so are several baselines in one run
    if c.data.validation == 'none':
        c.early_stopping.patience = 0
    if epochs := _environment('EPOCHS'):
        c.epochs = _number('EPOCHS', epochs)
    if expert := _environment('EXPERT_ID'):
        c.member_ids = (_number('EXPERT_ID', expert),)
    return c


def _recipe(recipe: str, network: str) -> dict:
    """Return the fields of a recipe for one network; '' stands for a network without changes of its own."""
    family = next(own for name, own in FAMILIES.items() if name in network)
    return {**RECIPES[recipe], **(family if recipe == 'strong' else {}), **OF_NETWORK.get(network, {})}


def _joint_recipe(recipe: str, config) -> dict:
    """Return the fields for all networks of a config, those of PER_MEMBER with a number for each.

    Other fields in which networks differ keep the recipe's usual value, which is reported on stderr.
    """
    networks, usual = config.network.split('+'), _recipe(recipe, '')
    own = {name: _recipe(recipe, name) for name in networks}
    joint, apart = {}, []
    for field in dict.fromkeys(field for fields in own.values() for field in fields):
        plain = usual.get(field, get(config, field))
        values = {name: own[name].get(field, plain) for name in networks}
        if field == 'model.dropout':
            # Only networks without dropout have 0. They ignore it, so they do not count beside others.
            values = {name: value for name, value in values.items() if value} or values
        if len(set(values.values())) == 1:
            joint[field] = next(iter(values.values()))
        elif field in PER_MEMBER:
            joint[field] = tuple(values[name] for name in networks)
        else:
            joint[field] = plain
            others = ', '.join(f'{name} {value}' for name, value in values.items() if value != plain)
            apart.append(f'{field}={plain} (alone: {others})')
    if apart:
        print(f'configs/expert.py: for all networks {", ".join(apart)}', file=sys.stderr)
    return joint


def _environment(name: str) -> str:
    """Return an environment variable, '' if it is not set, and report on stderr one that is set."""
    value = os.environ.get(name, '')
    if value:
        print(f'configs/expert.py: {name}={value} of the environment', file=sys.stderr)
    return value


def _number(name: str, value: str) -> int:
    if not value.isdecimal():
        raise UserError(f'{name} in the environment must be a whole number, got {value}')
    return int(value)
