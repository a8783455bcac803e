"""Compare mutual learning with independent networks: python -m experiments.run experiments/mutual_table.py

Zhang et al. 2018, table 2, and the seed of this project: ResNet-32 on CIFAR-100 alone, with 2, 3 and 4
nodes, and beside a WRN-28-2; 200 epochs of all 50,000 images, three seeds, the last epoch. Public, one
run each: 71.19 alone, 72.12, 72.64, 73.21; mixed 72.86 and 76.49, WRN-28-2 alone 75.58.

experiments/mutual_table.py:resnet20 has a smaller network, 60 epochs, alone and with 2 and 4 nodes: two hours
a network on two CPU cores, and seed 1 first.
experiments/mutual_table.py:short takes about half an hour on two CPU cores; it says what it shortens.
"""

from pathlib import Path

import numpy as np

from experiments.run import Run, Sweep
from jaxcifar.data.datasets import load_dataset
from jaxcifar.machine.errors import lookup
from jaxcifar.machine.files import write_arrays
from jaxcifar.runs.resolve import data_root

SEEDS = (1, 2, 3)
ALONE = 'independent'
RESNET20_EPOCHS = 60
IMAGES, EPOCHS = 5000, 12  # of the short version


def get_sweep(argument: str = '') -> Sweep:
    """Return the sweep; `argument` is nothing, resnet20 or short."""
    return lookup('argument', {'': full, 'resnet20': resnet20, 'short': short}, argument)()


def full() -> Sweep:
    """Return the whole table: weeks on a CPU, some hours on a GPU."""
    pair = 'resnet32+wideresnet28_2'
    runs = [alone(network, {}) for network in pair.split('+')]
    # Nodes that teach each other are one sample, so each seed is a run of its own.
    for seed in SEEDS:
        runs += [together('resnet32', nodes, seed, {}) for nodes in (2, 3, 4)]
        runs.append(together(pair, 2, seed, {}))
    title = (
        'Mutual learning on CIFAR-100, 200 epochs of 50,000 images, last epoch: mean ± standard deviation '
        'over seeds, each the mean of its nodes'
    )
    return Sweep(title, runs, ALONE)


def resnet20() -> Sweep:
    """Return the comparison with a smaller network of the paper's shape: some 30 hours on two CPU cores."""
    runs = both('resnet20', (2, 4), {'epochs': RESNET20_EPOCHS, 'eval.every_epochs': 10})
    title = (
        f'Mutual learning on CIFAR-100, ResNet-20 instead of ResNet-32, {RESNET20_EPOCHS} epochs instead of '
        '200, all 50,000 images, last epoch: mean ± standard deviation over seeds, each the mean of its nodes'
    )
    return Sweep(title, runs, ALONE)


def short() -> Sweep:
    """Return the same comparison without what makes it long."""
    size = {'dataset': f'npz:{small_cifar10()}', 'epochs': EPOCHS, 'devices': 1}
    runs = both('resnet8', (2, 3, 4), size)
    title = (
        f'SHORTENED: ResNet-8 instead of ResNet-32, {EPOCHS} epochs instead of 200, the first {IMAGES:,} '
        'training images of CIFAR-10 instead of all of CIFAR-100, at 16x16 instead of 32x32 pixels, '
        'without the mixed pair. The recipe is the same; last epoch, mean ± standard deviation over seeds, '
        'each the mean of its nodes'
    )
    return Sweep(title, runs, ALONE)


def both(network: str, nodes: tuple[int, ...], size: dict) -> list[Run]:
    """Return the network alone, and then for each seed the runs with these numbers of nodes."""
    return [alone(network, size), *(together(network, n, seed, size) for seed in SEEDS for n in nodes)]


def alone(network: str, size: dict) -> Run:
    """Return one run of as many single networks as seeds, each with its own order of the data."""
    seeds = {'members': len(SEEDS), 'seed': ','.join(map(str, SEEDS)), 'data.order': 'member'}
    config = f'configs/single.py:{network},cifar100'
    return Run(f'{ALONE}-{network}', ALONE, config, {**seeds, 'data.validation': 'none', **size})


def together(network: str, nodes: int, seed: int, size: dict) -> Run:
    """Return one run of mutual learning."""
    changes = {'members': nodes, 'seed': seed, 'data.validation': 'none', **size}
    row = 'mutual, mixed pair' if '+' in network else f'mutual, {nodes} nodes'
    return Run(f'mutual-{network}-{nodes}-seed{seed}', row, f'configs/mutual.py:{network}', changes)


def small_cifar10(images: int = IMAGES) -> Path:
    """Return a file of the first images of CIFAR-10, each pixel the mean of four."""
    path = Path('runs') / f'cifar10-16x16-{images}.npz'
    # Made once, and shared by all runs and by other tables.
    if not path.exists():
        data = load_dataset('cifar10', data_root())
        path.parent.mkdir(exist_ok=True)
        x_train, x_test = halved(np.asarray(data.x_train)[:images]), halved(np.asarray(data.x_test))
        labels = {'y_train': data.y_train[:images], 'y_test': data.y_test}
        # Whole or not at all: another table may be making the same file.
        write_arrays(path, {'x_train': x_train, 'x_test': x_test, **labels})
    return path


def halved(images: np.ndarray) -> np.ndarray:
    """Return uint8 [N,H,W,C] as [N,H/2,W/2,C]."""
    n, height, width, channels = images.shape
    return images.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4)).round().astype(np.uint8)
