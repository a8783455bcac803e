"""Our networks beside PyTorch's with the same weights."""

from functools import partial

from experiments.bench.torch_networks import (
    cifar_densenet,
    cifar_mobilenet,
    models,
    preact_resnet,
    resnext,
    small_resnet,
    wide_resnet,
)

IMAGENET = {'stem': 'imagenet'}
# Our network and its options, torch's, and the side of the images.
PAIRS = {
    'resnet18': ('resnet18', IMAGENET, partial(models.resnet18, num_classes=10), 64),
    'resnet34': ('resnet34', IMAGENET, partial(models.resnet34, num_classes=10), 64),
    'resnet50': ('resnet50', IMAGENET, partial(models.resnet50, num_classes=10), 64),
    'densenet121': ('densenet121', IMAGENET, partial(models.densenet121, num_classes=10), 64),
    'mobilenetv2': ('mobilenetv2', IMAGENET, partial(models.mobilenet_v2, num_classes=10, dropout=0), 64),
    'bottleneck': (
        'resnet50',
        {**IMAGENET, 'stages': (2, 1, 1, 1)},
        partial(models.ResNet, models.resnet.Bottleneck, [2, 1, 1, 1], num_classes=10),
        64,
    ),
    'shortcut A': ('resnet8', {'shortcut': 'A'}, partial(small_resnet, 'A'), 16),
    'shortcut B': ('resnet8', {'shortcut': 'B'}, partial(small_resnet, 'B'), 16),
    'preact': (
        'preact_resnet18',
        {'width': 8, 'stages': (1, 1, 1, 1)},
        partial(preact_resnet, 8, 1),
        16,
    ),
    'wide': (
        'wideresnet28_10',
        {'depth': 16, 'widen': 2},
        partial(wide_resnet, 16, 2),
        16,
    ),
    'resnext': (
        'resnext29_8x64d',
        {'groups': 2},
        partial(resnext, 2),
        8,
    ),
    'preact resnext': (
        'preact_resnext29_8x64d',
        {'groups': 2},
        partial(resnext, 2, True),
        8,
    ),
    'small dense': (
        'efficient_densenet',
        {'blocks': (2, 2), 'growth': 4, 'width': 8},
        partial(cifar_densenet, 4, (2, 2), 8),
        16,
    ),
    'small mobile': ('mobilenetv2', {}, cifar_mobilenet, 16),
}
