"""Long-tail experts: cross entropy, logit adjustment and balanced softmax side by side, K=3.

    python -m jaxcifar.main --config configs/long_tail.py --workdir runs/long_tail

CIFAR-100-LT with imbalance 100 in six parts (8,677 to train on, chosen on val_lt), ResNet-32, 256 epochs.
`long_tail.py:standard` is the standard protocol, which published numbers use: all 10,847 images, the whole
balanced test set, the last epoch. `:cifar10` is CIFAR-10-LT. `:strong` trains three networks with balanced
softmax, AutoAugment and Cutout for 400 epochs. Words can be joined: `:strong,standard`.
"""

from collections.abc import Iterable

from configs import base
from jaxcifar.machine.errors import parse_argument

KINDS: dict[str, Iterable[str]] = {
    'dataset': ('cifar10', 'cifar100'),
    'protocol': ('standard',),
    'recipe': ('strong',),
}


def get_config(argument: str = ''):
    """Return the config; `argument` joins words of KINDS by commas."""
    given = parse_argument('configs/long_tail.py', argument, KINDS)
    c = base.get_config()
    c.dataset = given.get('dataset', 'cifar100')
    c.network, c.model.shortcut, c.model.init = 'resnet32', 'B', 'torch'
    c.loss = 'cross_entropy+logit_adjustment+balanced_softmax'
    c.split, c.data.validation = 'long_tail', 'val_lt'
    if 'protocol' in given:
        c.split, c.data.validation = 'long_tail_standard', 'none'
    c.epochs = 256
    c.optimizer.lr, c.optimizer.nesterov, c.optimizer.weight_decay = 0.4, False, 1e-4
    c.schedule.name, c.schedule.per = 'multistep', 'epoch'
    c.schedule.milestones = (96, 192, 224)
    c.schedule.warmup_steps = 15
    if 'recipe' in given:
        c.loss, c.members, c.epochs = 'balanced_softmax', 3, 400
        c.augment = 'crop(4)+flip+auto_augment+cutout(16)'
        c.optimizer.lr, c.optimizer.nesterov, c.optimizer.weight_decay = 0.1, True, 5e-4
        c.schedule.name, c.schedule.per, c.schedule.warmup_steps = 'cosine', 'step', 340
    return c
