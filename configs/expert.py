"""Experts for fusion: four networks that each see a part of CIFAR-100, in one run.

    python -m jaxcifar.main --config configs/expert.py:resnet18,strong --workdir runs/experts
    python -m jaxcifar.main --config configs/expert.py:resnet18,strong,pool --workdir runs/pool

The argument is a network, a split and a recipe, each optional, joined by commas. The recipe depends on the
network, so name the network here. --config.member_ids=2 trains the third expert alone.

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
    family = next(own for name, own in FAMILIES.items() if name in c.network)
    of_family = family if recipe == 'strong' else {}
    c.update_from_flattened_dict({**RECIPES[recipe], **of_family, **OF_NETWORK.get(c.network, {})})
    c.split, c.data.validation = SPLITS[split]
    c.data.order = 'member'  # experts are trained as if alone, and so are several baselines in one run
    if c.data.validation == 'none':
        c.early_stopping.patience = 0
    if epochs := _environment('EPOCHS'):
        c.epochs = _number('EPOCHS', epochs)
    if expert := _environment('EXPERT_ID'):
        c.member_ids = (_number('EXPERT_ID', expert),)
    return c


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
