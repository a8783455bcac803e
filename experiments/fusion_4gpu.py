"""Compare experts with their fusion, each job on a GPU.

    python -m experiments.run experiments/fusion_4gpu.py --jobs 4

The four pairs of the original launcher: DenseNet-121 with multiplicative, ResNet-18 with
multiplicativeAddition, WRN-28-10 with TransformerBase, ResNeXt-29 with concatenation. Each network's experts
are trained first, and the networks to compare with: one on the same 49,000 images, one on all 50,000.
--slurm submits the same as jobs; --follow prints every line as [task-i-network-rule].

    experiments/fusion_4gpu.py:all                                                   all sixteen pairs
    experiments/fusion_4gpu.py:resnet18+wideresnet28_10,multiplicative+concatenation that grid
    experiments/fusion_4gpu.py:strong                                                … the recipe beside
    experiments/fusion_4gpu.py:short                                                 an hour on a CPU

Words join by commas.
"""

from itertools import product
from typing import Any

from experiments.mutual_table import small_cifar10
from experiments.run import Run, Sweep
from jaxcifar.engine.fusion import RULES
from jaxcifar.machine.errors import unknown
from jaxcifar.models import NETWORKS

PAIRS = {
    'densenet121': 'multiplicative',
    'resnet18': 'multiplicativeAddition',
    'wideresnet28_10': 'TransformerBase',
    'preact_resnext29_8x64d': 'concatenation',
}
WORDS = ('all', 'strong', 'short')
BASELINE = 'one network, the same images'
EPOCHS, FUSION_EPOCHS = 8, 10  # of the short version
# In few epochs nothing is learnt with the strong augmentations.
SHORT = {'augment': 'basic', 'model.dropout': 0.0, 'early_stopping.patience': 0, 'label_smoothing': 0.0}
SHORT_FUSION = {'epochs': FUSION_EPOCHS, 'augment': 'basic', 'label_smoothing': 0.0, 'data.drop_last': True}


def get_sweep(argument: str = '') -> Sweep:
    """Return the sweep; `argument`: WORDS, networks joined by + and rules joined by +, between commas."""
    words = [word for word in argument.split(',') if word]
    grids: dict[str, list[str]] = {'networks': [], 'rules': []}
    # A word is known by what it names, so words may come in any order.
    for word in words:
        names = word.split('+')
        if set(names) <= set(NETWORKS):
            grids['networks'] += names
        elif set(names) <= set(RULES):
            grids['rules'] += names
        elif word not in WORDS:
            raise unknown('word of experiments/fusion_4gpu.py', word, [*WORDS, *PAIRS, *RULES])
    short, networks, rules = 'short' in words, grids['networks'], grids['rules']
    if short and not networks:
        networks = ['resnet8']
    if 'all' in words or networks or rules:
        pairs = list(product(networks or PAIRS, rules or RULES))
    else:
        pairs = list(PAIRS.items())
    size: dict[str, Any] = {'dataset': f'npz:{small_cifar10(50_000)}', 'devices': 1} if short else {}
    runs: list[Run] = []
    # Each network's experts are trained once, however many rules fuse them.
    for network in dict.fromkeys(network for network, _ in pairs):
        runs += before_fusion(network, {**size, **SHORT, 'epochs': EPOCHS} if short else {})
    recipes = ('', 'strong') if 'strong' in words else ('',)
    fused = {**size, **SHORT_FUSION} if short else {}
    for (network, rule), recipe in product(pairs, recipes):
        runs.append(fusion(network, rule, recipe, fused))
    title = (
        'Fusion of four experts, chosen on 1,000 held-out images (all 50,000: last epoch), test images once'
    )
    if short:
        title = (
            f'SHORTENED: {"+".join(networks)}, {EPOCHS} epochs for the experts and single networks and '
            f'{FUSION_EPOCHS} for fusion instead of 250 and 100, CIFAR-10 instead of CIFAR-100, at 16x16 '
            'pixels; crop and flip only; one seed'
        )
    return Sweep(title, runs, BASELINE)


def before_fusion(network: str, changes: dict) -> list[Run]:
    """Return the experts of a network, and what their fusion has to be compared with."""
    config = f'configs/expert.py:{network},strong'
    return [
        Run(f'experts-{network}', 'four experts', config, changes),
        Run(f'single-{network}', BASELINE, f'{config},pool_fusion', changes),
        Run(f'all-{network}', 'one network, all images', f'{config},all', changes),
    ]


def fusion(network: str, rule: str, recipe: str, changes: dict) -> Run:
    """Return one fused run, from the experts' best weights."""
    name = '-'.join(filter(None, (network, rule, recipe)))
    config = 'configs/fusion.py:' + ','.join(filter(None, (network, rule, recipe)))
    if recipe and changes:
        changes = {**changes, 'fusion.freeze_epochs': 2, 'ema': 0.9}
    experts = f'experts-{network}'
    row = f'fusion, {rule}{", strong" if recipe else ""}'
    return Run(name, row, config, {'init_from': '{folder}/' + experts, **changes}, after=(experts,))
