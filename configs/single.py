"""One network on CIFAR: the plain recipe that everything else is compared with.

    python -m jaxcifar.main --config configs/single.py:resnet20,cifar10 --workdir runs/resnet20

200 epochs, SGD with Nesterov momentum, cosine, crop and flip. Error bars from three networks in one
run: --config.members=3. ResNet-20 on CIFAR-10 ends near 92 % (He et al. 2016: 91.25).

On CIFAR-100 the recipe is that of mutual learning, field by field, but for the coupling: batches of 64
without the last, shorter one, and a learning rate that moves once an epoch. ResNet-32 on all 50,000
images (--config.data.validation=none) ends near 71.2 %.
"""

from configs import base
from jaxcifar.machine.errors import UserError, unknown

DATASETS = ('cifar10', 'cifar100')


def get_config(argument: str = 'resnet20,cifar10'):
    """`argument` is NETWORK or NETWORK,DATASET."""
    network, _, dataset = argument.partition(',')
    if ',' in dataset:
        raise UserError(f'configs/single.py takes NETWORK,DATASET; not {argument!r}')
    c = base.get_config()
    c.network = network
    c.dataset = dataset or 'cifar10'
    if c.dataset not in DATASETS and ':' not in c.dataset:
        raise unknown('dataset', c.dataset, DATASETS)
    c.epochs = 200
    if c.dataset == 'cifar100':
        c.batch_size = 64
        c.data.drop_last = True
        c.schedule.per = 'epoch'
        c.model.init = 'he_dense'
    return c
