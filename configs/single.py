"""One network on CIFAR: the plain recipe that everything else is compared with.

    python -m jaxcifar.main --config configs/single.py:resnet20,cifar10 --workdir runs/resnet20

200 epochs, SGD with Nesterov momentum, cosine, crop and flip. Error bars from three networks in one
run: --config.members=3. ResNet-20 on CIFAR-10 ends near 92 % (He et al. 2016: 91.25).

On CIFAR-100 the recipe equals that of mutual learning in every field except the coupling: batches of 64,
without a shorter last one, and a learning rate that changes once an epoch. ResNet-32 on all 50,000 images
(--config.data.validation=none) ends near 71.2 %.
"""

from collections.abc import Iterable

from configs import base
from jaxcifar.machine.errors import parse_argument
from jaxcifar.models import NETWORKS

# Those that end in : have a path behind it.
DATASETS = ('cifar10', 'cifar100', 'digits', 'npz:', 'folder:', 'imagenet:', 'stream:')
KINDS: dict[str, Iterable[str]] = {'network': NETWORKS, 'dataset': DATASETS}


def get_config(argument: str = ''):
    """Return the config; `argument` joins a network and a dataset by a comma."""
    given = parse_argument('configs/single.py', argument, KINDS)
    c = base.get_config()
    c.network = given.get('network', 'resnet20')
    c.dataset = given.get('dataset', 'cifar10')
    c.epochs = 200
    if c.dataset == 'cifar100':
        c.batch_size = 64
        c.data.drop_last = True
        c.schedule.per = 'epoch'
        c.model.init = 'he_dense'
    return c
