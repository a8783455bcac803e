"""Deep mutual learning: networks that learn from the labels and from each other (Zhang et al. 2018).

    python -m jaxcifar.main --config configs/mutual.py --workdir runs/mutual
    python -m jaxcifar.main --config configs/mutual.py:resnet32+wideresnet28_2 --workdir runs/mixed
    python -m jaxcifar.main --config configs/mutual.py:strong --workdir runs/strong

Four ResNet-32 on CIFAR-100, or the networks that are named; --config.members=2 for two of them. The
recipe is that of configs/single.py:resnet32,cifar100, which is the independent baseline.

Public numbers for the mean of the nodes at the last of 200 epochs, one run each, trained on all 50,000
images (--config.data.validation=none, 781 steps an epoch): one network alone 71.2 %, two nodes 72.1,
three 72.6, four 73.2; ResNet-32 with WRN-28-2 72.9 and 76.5 (alone 75.6). By default, 10 % of the images
are held out of training to choose each node's best weights.

strong: 300 epochs, separate augmentation of each image for every node, temperature 3, and evaluation of
the weights' moving average. The best public mean of online distillation is 75.8 %.
"""

from collections.abc import Iterable

from configs import single
from jaxcifar.machine.errors import parse_argument

KINDS: dict[str, Iterable[str]] = {**single.KINDS, 'recipe': ('strong',)}


def get_config(argument: str = ''):
    """Return the config; `argument` joins NETWORK[+NETWORK…], a dataset and strong by commas."""
    given = parse_argument('configs/mutual.py', argument, KINDS)
    network = given.get('network', 'resnet32')
    c = single.get_config(f'{network},{given.get("dataset", "cifar100")}')
    c.coupling = 'mutual'
    c.members = None if '+' in network else 4
    if 'recipe' in given:
        c.epochs = 300
        c.augment_each = True
        c.mutual.temperature = 3.0
        c.ema = 0.999
    return c
