"""Ternary networks: weights -α, 0 and α, trained through the quantiser (Li et al. 2016, Zhu et al. 2017).

    python -m jaxcifar.main --config configs/ternary.py --workdir runs/ternary
    python -m jaxcifar.main --config configs/ternary.py:mobilenetv2,cifar10,ttq --workdir runs/ttq
    python -m jaxcifar.main --config configs/ternary.py:resnet18,imagenet:DIR --workdir runs/imagenet

The default is ResNet-18 on CIFAR-10 with TWN in all layers but the stem and the classifier. A third word may
be `fp32` (the same recipe with floats), `twn`, `ttq` or `all` (TWN, stem and classifier too). 300 epochs of
SGD .1 with a cosine, label smoothing .1, CutMix on half of the batches; stops after 40 without a new best.

Public marks for ResNet-18 on CIFAR-10 after 300 epochs: floats 96.07 %, ternary 95.07 with a float stem,
94.64 throughout; MobileNetV2 ternary 93.38.
"""

from collections.abc import Iterable

from configs import base, single
from jaxcifar.machine.errors import parse_argument

VARIANTS = ('fp32', 'twn', 'ttq', 'all')
KINDS: dict[str, Iterable[str]] = {**single.KINDS, 'variant': VARIANTS}


def get_config(argument: str = ''):
    """Return the config; `argument` joins a network, a dataset and one of VARIANTS by commas."""
    given = parse_argument('configs/ternary.py', argument, KINDS)
    variant, dataset = given.get('variant', 'twn'), given.get('dataset', 'cifar10')
    c = base.get_config()
    c.network, c.dataset = given.get('network', 'resnet18'), dataset
    c.view = 'none' if variant == 'fp32' else 'ternary'
    c.ternary.rule = 'ttq' if variant == 'ttq' else 'twn'
    if variant == 'all':
        c.ternary.layers = '.*'
    c.epochs, c.batch_size = 300, 128
    c.optimizer.lr, c.optimizer.momentum, c.optimizer.nesterov = 0.1, 0.9, False
    c.optimizer.weight_decay = 5e-4
    c.schedule.name, c.schedule.per = 'cosine', 'epoch'
    c.label_smoothing = 0.1
    c.augment = 'crop(4)+flip+cutmix(1.0,.5)'
    c.early_stopping.patience = 40
    c.checkpoint.every_epochs = 10
    # Images that stay on disk are cropped and mirrored while they are read.
    if dataset.startswith(('imagenet:', 'stream:')):
        c.augment, c.data.workers = 'cutmix(1.0,.5)', 4
    if dataset.startswith('imagenet:'):
        c.model.stem = 'imagenet'
    return c
