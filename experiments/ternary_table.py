"""Measure what ternary weights cost: python -m experiments.run experiments/ternary_table.py

ResNet-18 and MobileNetV2 on CIFAR-10 with floats, TWN, TTQ, and TWN with stem and classifier too; three
seeds of each are one run; 300 epochs of all 50,000 images, the last epoch. Public: ResNet-18 96.07 with
floats, 95.07 ternary but for the stem, 94.64 throughout; MobileNetV2 ternary 93.38. The zeros of each
layer go to experiments/results/sparsity.csv.

experiments/ternary_table.py:resnet20 has the network of Zhu et al. 2017, table 1: 91.77 with floats, 91.13 by
TTQ from the trained floats, stem and classifier as floats. 100 epochs, weight decay 2e-4 as there.
experiments/ternary_table.py:short takes less than an hour on two CPU cores; it says what it shortens.
experiments/ternary_table.py:recipes compares ways to higher accuracy with plain TWN, on ResNet-18.
"""

from typing import Any

from configs.ternary import VARIANTS
from experiments.mutual_table import small_cifar10
from experiments.run import Run, Sweep
from jaxcifar.machine.errors import lookup

SEEDS = {'members': 3, 'seed': '1,2,3', 'data.order': 'member'}
ALL_IMAGES = {'data.validation': 'none', 'early_stopping.patience': 0}
EPOCHS = 6  # of the short version
ROWS = dict(zip(VARIANTS, ('floats', 'TWN', 'TTQ', 'TWN, all layers')))
RECIPES: dict[str, dict[str, Any]] = {
    'TWN': {},
    'per channel': {'ternary.per': 'channel'},
    'blended in, 100 epochs': {'ternary.blend_epochs': 100},
    'floats for 100 epochs': {'ternary.float_epochs': 100},
    'average of the latent weights': {'ema': 0.999},
    '600 epochs': {'epochs': 600},
}
TAUGHT = 'beside a network of floats, mutual learning'


def get_sweep(argument: str = '') -> Sweep:
    """Return the sweep; `argument` is nothing, resnet20, short or recipes."""
    makers = {'': full, 'resnet20': resnet20, 'short': short, 'recipes': recipes}
    return lookup('argument', makers, argument)()


def full() -> Sweep:
    """Return the whole table: a day on a GPU."""
    title = 'Ternary weights on CIFAR-10, 300 epochs, last epoch: mean ± standard deviation over seeds'
    return Sweep(
        title, [run for n in ('resnet18', 'mobilenetv2') for run in each_variant(n, SEEDS)], 'floats'
    )


def resnet20() -> Sweep:
    """Return floats, TWN and TTQ of the paper's smallest network: minutes on a GPU."""
    plain = {'epochs': 100, 'label_smoothing': 0.0, 'augment': 'crop(4)+flip', 'optimizer.weight_decay': 2e-4}
    floats, twn, ttq, _ = each_variant('resnet20', {**SEEDS, **plain, 'eval.every_epochs': 10})
    begun = {**ttq.changes, 'init_from': f'{{folder}}/{floats.name}@last'}
    ttq = ttq._replace(row='TTQ from the floats', changes=begun, after=(floats.name,))
    title = 'Ternary ResNet-20 on CIFAR-10, 100 epochs, last epoch: mean ± standard deviation over seeds'
    return Sweep(title, [floats, twn, ttq], 'floats')


def short() -> Sweep:
    """Return one seed of a small network."""
    size = {'dataset': f'npz:{small_cifar10(50_000)}', 'devices': 1, 'epochs': EPOCHS}
    size |= {'augment': 'crop(2)+flip', 'label_smoothing': 0.0}
    title = (
        f'SHORTENED: ResNet-8 instead of ResNet-18 and MobileNetV2, {EPOCHS} epochs instead of 300, '
        'therefore without CutMix and label smoothing, at 16x16 pixels; one seed. CIFAR-10, all 50,000 '
        'images, last epoch'
    )
    return Sweep(title, each_variant('resnet8', size), 'floats')


def each_variant(network: str, changes: dict[str, Any]) -> list[Run]:
    """Return the same run with each kind of weights."""
    return [
        Run(f'{network}-{v}', row, f'configs/ternary.py:{network},cifar10,{v}', {**ALL_IMAGES, **changes})
        for v, row in ROWS.items()
    ]


def recipes() -> Sweep:
    """Return what may bring ternary networks closer to floats."""
    config, runs = 'configs/ternary.py:resnet18,cifar10,twn', []
    for row, changes in RECIPES.items():
        name = row.replace(',', '').replace(' ', '-')
        runs.append(Run(f'recipe-{name}', row, config, {**ALL_IMAGES, **SEEDS, **changes}))
    # The teacher of floats sees the same images, and both learn from each other.
    pair = {'members': 2, 'view': 'none+ternary', 'coupling': 'mutual', 'mutual.temperature': 3}
    runs += [Run(f'recipe-taught-{s}', TAUGHT, config, {**ALL_IMAGES, **pair, 'seed': s}) for s in (1, 2, 3)]
    title = 'Ternary ResNet-18 on CIFAR-10 by TWN, 300 epochs where not said otherwise, last epoch'
    return Sweep(title, runs, 'TWN')
