"""Build residual networks: He et al. 2016 (ResNet-18/34/50 and, in section 4.2, ResNet-20 to 110), and the
pre-activation form of their second paper.

Layers carry torchvision's names, `layer1_0` for `layer1.0`, so that weights can be exchanged.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcifar.models.layers import Layers, head


def subsample(x: jax.Array, filters: int, stride: int, layers: Layers) -> jax.Array:
    """Take every `stride`-th pixel; new channels are zero, half on each side: shortcut A."""
    x = x[:, ::stride, ::stride]
    # Zeros need no parameters, which the paper's small networks rely on.
    extra = filters - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))


def project(x: jax.Array, filters: int, stride: int, layers: Layers) -> jax.Array:
    """Project by a strided 1x1 convolution and a norm: shortcut B."""
    return layers.norm('downsample_1')(layers.conv(filters, 1, stride, name='downsample_0')(x))


SHORTCUTS = {'A': subsample, 'B': project}


class BasicBlock(nn.Module):
    """Add conv3x3 - norm - ReLU - conv3x3 - norm to the shortcut."""

    filters: int
    stride: int
    depth: float
    layers: Layers
    shortcut: Callable
    expansion = 1
    last_norm = 'bn2'

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        a = self.layers
        y = nn.relu(a.norm('bn1')(a.conv(self.filters, 3, self.stride, name='conv1')(x)))
        y = a.norm('bn2')(a.conv(self.filters, 3, name='conv2')(a.drop(y)))
        if x.shape != y.shape:
            x = self.shortcut(x, self.filters, self.stride, a)
        return nn.relu(x + a.skip(y, self.depth))


class Bottleneck(nn.Module):
    """Compute conv1x1 - conv3x3 (which carries the stride) - conv1x1 to four times the width."""

    filters: int
    stride: int
    depth: float
    layers: Layers
    shortcut: Callable
    expansion = 4
    last_norm = 'bn3'

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        a, width = self.layers, self.filters * self.expansion
        y = nn.relu(a.norm('bn1')(a.conv(self.filters, 1, name='conv1')(x)))
        y = nn.relu(a.norm('bn2')(a.conv(self.filters, 3, self.stride, name='conv2')(y)))
        y = a.norm('bn3')(a.conv(width, 1, name='conv3')(a.drop(y)))
        if x.shape != y.shape:
            x = self.shortcut(x, width, self.stride, a)
        return nn.relu(x + a.skip(y, self.depth))


class PreActBlock(nn.Module):
    """Add norm - ReLU - conv3x3 - norm - ReLU - conv3x3 to the input, or to a 1x1 convolution of it."""

    filters: int
    stride: int
    depth: float
    layers: Layers
    shortcut: Callable
    expansion = 1
    last_norm = None
    lacks = ('shortcut',)  # it has one of its own

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        a = self.layers
        y = a.conv(self.filters, 3, self.stride, name='conv1')(nn.relu(a.norm('bn1')(x)))
        y = a.conv(self.filters, 3, name='conv2')(a.drop(nn.relu(a.norm('bn2')(y))))
        if x.shape != y.shape:
            x = a.conv(self.filters, 1, self.stride, name='shortcut_0')(x)
        # There is no ReLU on this path, so the identity reaches the head unchanged.
        return x + a.skip(y, self.depth)


class ResNet(nn.Module):
    """Join a stem, stages of blocks, and the head; every stage but the first halves the image.

    The stem is a 3x3 convolution or, for large images, ImageNet's 7x7 convolution of stride 2 and a pooling.
    """

    stages: Sequence[int]
    num_classes: int
    layers: Layers
    width: int = 64
    block: Any = BasicBlock
    shortcut: str = 'B'
    stem: str = 'cifar'

    @property
    def last_norm(self) -> str | None:
        """Return the paths of the norms that end a block, as a regular expression."""
        return self.block.last_norm and rf'layer\d_\d+/{self.block.last_norm}'

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        a, preact = self.layers, self.block is PreActBlock
        if self.stem == 'imagenet':
            x = nn.relu(a.norm('bn1')(a.conv(self.width, 7, 2, name='conv1')(x)))
            # The padding is torch's, one pixel on each side; Flax's 'SAME' would pad one side only.
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        else:
            x = a.conv(self.width, 3, name='conv1')(x)
            # A pre-activation block begins with norm and ReLU, so its stem has neither.
            x = x if preact else nn.relu(a.norm('bn1')(x))
        # A block's depth runs from 0 to 1; a single block must not divide by 0.
        done, total = 0, max(sum(self.stages) - 1, 1)
        for stage, blocks in enumerate(self.stages):
            for i in range(blocks):
                # The first stage keeps the image's size: the stem has already halved large ones.
                stride = 2 if stage > 0 and i == 0 else 1
                make = partial(self.block, layers=a, shortcut=SHORTCUTS[self.shortcut])
                x = make(self.width * 2**stage, stride, done / total, name=f'layer{stage + 1}_{i}')(x)
                done += 1
        # A pre-activation block ends without a norm, so the last sum needs one here.
        if preact:
            x = nn.relu(a.norm('bn')(x))
        return head(x, self.num_classes)


ResNet18 = partial(ResNet, stages=(2, 2, 2, 2))
ResNet34 = partial(ResNet, stages=(3, 4, 6, 3))
ResNet50 = partial(ResNet, stages=(3, 4, 6, 3), block=Bottleneck)
PreActResNet18 = partial(ResNet18, block=PreActBlock)

CifarResNet = partial(ResNet, width=16, shortcut='A')
ResNet8 = partial(CifarResNet, stages=(1, 1, 1))
ResNet20 = partial(CifarResNet, stages=(3, 3, 3))
ResNet32 = partial(CifarResNet, stages=(5, 5, 5))
ResNet44 = partial(CifarResNet, stages=(7, 7, 7))
ResNet56 = partial(CifarResNet, stages=(9, 9, 9))
ResNet110 = partial(CifarResNet, stages=(18, 18, 18))
