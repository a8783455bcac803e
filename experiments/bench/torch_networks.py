"""Build the networks in PyTorch: torchvision's, and small references of those that it does not have.

Layers carry the names that `jaxcifar.torch_weights` gives ours.
"""

from collections.abc import Callable
from functools import partial

from torch import nn
from torch.nn import BatchNorm2d as norm

from jaxcifar.data.vision import import_torchvision

models = import_torchvision().models


def conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


class ShortcutA(nn.Module):
    def forward(self, x):
        half = x.shape[1] // 2
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half))


def basic(shortcut, inputs, outputs, stride):
    """Return torchvision's block with He et al.'s shortcut A or B."""
    change = stride > 1 or inputs != outputs
    project = (
        ShortcutA() if shortcut == 'A' else nn.Sequential(conv(inputs, outputs, 1, stride), norm(outputs))
    )
    return models.resnet.BasicBlock(inputs, outputs, stride, project if change else None)


class PreAct(nn.Module):
    """Compute a block of He et al. 2016b; with `wide` its shortcut sees the activated input.

    The wide form is of Zagoruyko & Komodakis 2016.
    """

    def __init__(self, wide, inputs, outputs, stride):
        super().__init__()
        self.wide, self.bn1, self.bn2 = wide, norm(inputs), norm(outputs)
        self.conv1, self.conv2 = conv(inputs, outputs, 3, stride), conv(outputs, outputs, 3)
        self.shortcut = None
        if stride > 1 or inputs != outputs:
            project = conv(inputs, outputs, 1, stride)
            self.shortcut = project if wide else nn.Sequential(project)

    def forward(self, x):
        active = nn.functional.relu(self.bn1(x))
        y = self.conv2(nn.functional.relu(self.bn2(self.conv1(active))))
        if self.shortcut is None:
            return x + y
        return self.shortcut(active if self.wide else x) + y


class ResNeXt(nn.Module):
    """Compute a block of Xie et al. 2017: `groups` paths of outputs/4 channels, then to `outputs`."""

    def __init__(self, groups, preact, inputs, outputs, stride):
        super().__init__()
        width, self.preact, self.shortcut = groups * outputs // 4, preact, None
        self.conv1, self.conv3 = conv(inputs, width, 1), conv(width, outputs, 1)
        self.conv2 = conv(width, width, 3, stride, groups)
        sizes = (inputs, width, width) if preact else (width, width, outputs)
        self.bn1, self.bn2, self.bn3 = map(norm, sizes)
        if stride > 1 or inputs != outputs:
            project = conv(inputs, outputs, 1, stride)
            self.shortcut = nn.Sequential(project) if preact else nn.Sequential(project, norm(outputs))

    def forward(self, x):
        rest = x if self.shortcut is None else self.shortcut(x)
        if self.preact:
            y = self.conv1(nn.functional.relu(self.bn1(x)))
            y = self.conv2(nn.functional.relu(self.bn2(y)))
            return rest + self.conv3(nn.functional.relu(self.bn3(y)))
        y = nn.functional.relu(self.bn1(self.conv1(x)))
        y = nn.functional.relu(self.bn2(self.conv2(y)))
        return nn.functional.relu(rest + self.bn3(self.conv3(y)))


class Network(nn.Module):
    """Compute a 3x3 stem of `stem` channels, stages of `blocks` blocks with these widths, and the head.

    `first`: norm and ReLU follow the stem instead of the last block.
    """

    def __init__(self, block, stem, widths, blocks, first, classes=10):
        super().__init__()
        self.conv1, self.fc = conv(3, stem, 3), nn.Linear(widths[-1], classes)
        self.bn1 = norm(stem) if first else None
        self.bn = None if first else norm(widths[-1])
        self.stages, inputs = len(widths), stem
        for i, width in enumerate(widths, 1):
            layers = [block(inputs, width, 2 if i > 1 else 1)]
            layers += [block(width, width, 1) for _ in range(blocks - 1)]
            setattr(self, f'layer{i}', nn.Sequential(*layers))
            inputs = width

    def forward(self, x):
        x = self.conv1(x)
        if self.bn1:
            x = nn.functional.relu(self.bn1(x))
        for i in range(1, self.stages + 1):
            x = getattr(self, f'layer{i}')(x)
        if self.bn:
            x = nn.functional.relu(self.bn(x))
        return self.fc(x.mean((2, 3)))


def cifar_densenet(growth, blocks, width, classes=10):
    """Return a DenseNet with a 3x3 stem and no pooling behind it."""
    network = models.DenseNet(growth, blocks, width, num_classes=classes)
    network.features.conv0 = conv(3, width, 3)
    network.features.pool0 = nn.Identity()
    return network


def cifar_mobilenet(classes=10):
    """Return a MobileNetV2 whose stem and first strided stage do not halve the image."""
    network = models.mobilenet_v2(num_classes=classes, dropout=0)
    network.features[0][0].stride = network.features[2].conv[1][0].stride = (1, 1)
    return network


def cifar_resnet(make, classes=10):
    """Return torchvision's network for large images with a 3x3 stem and no pooling behind it."""
    network = make(num_classes=classes)
    network.conv1, network.maxpool = conv(3, 64, 3), nn.Identity()
    return network


def small_resnet(shortcut='A', blocks=1, classes=10):
    """Return ResNet-8, -20, -32 …: 6 `blocks` and 2 layers."""
    return Network(partial(basic, shortcut), 16, (16, 32, 64), blocks, True, classes)


def wide_resnet(depth, widen, classes=10):
    widths = 16 * widen, 32 * widen, 64 * widen
    return Network(partial(PreAct, True), 16, widths, (depth - 4) // 6, False, classes)


def resnext(groups, preact=False, classes=10):
    return Network(partial(ResNeXt, groups, preact), 64, (256, 512, 1024), 3, not preact, classes)


def preact_resnet(width=64, blocks=2, classes=10):
    widths = width, 2 * width, 4 * width, 8 * width
    return Network(partial(PreAct, False), width, widths, blocks, False, classes)


# Every network of `jaxcifar.models`, a function of the number of classes.
TORCH: dict[str, Callable] = {
    **{f'resnet{6 * n + 2}': partial(small_resnet, 'A', n) for n in (1, 3, 5, 7, 9, 18)},
    'resnet18': partial(cifar_resnet, models.resnet18),
    'resnet34': partial(cifar_resnet, models.resnet34),
    'resnet50': partial(cifar_resnet, models.resnet50),
    'preact_resnet18': preact_resnet,
    'wideresnet28_2': partial(wide_resnet, 28, 2),
    'wideresnet28_10': partial(wide_resnet, 28, 10),
    'wideresnet40_2': partial(wide_resnet, 40, 2),
    'resnext29_8x64d': partial(resnext, 8),
    'resnext29_16x64d': partial(resnext, 16),
    'preact_resnext29_8x64d': partial(resnext, 8, True),
    'densenet121': partial(cifar_densenet, 32, (6, 12, 24, 16), 64),
    'densenet169': partial(cifar_densenet, 32, (6, 12, 32, 32), 64),
    'densenet201': partial(cifar_densenet, 32, (6, 12, 48, 32), 64),
    'efficient_densenet': partial(cifar_densenet, 12, (16, 16, 16), 24),
    'mobilenetv2': cifar_mobilenet,
}
