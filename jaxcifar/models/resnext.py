"""Build aggregated residual networks: Xie et al. 2017, in their 29-layer form for CIFAR."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax

from jaxcifar.models.layers import Layers, head


class ResNeXtBlock(nn.Module):
    """Compute conv1x1 - grouped conv3x3 - dropout - conv1x1, with norm and ReLU after each convolution."""

    planes: int
    stride: int
    depth: float
    groups: int
    layers: Layers
    last_norm = 'bn3'

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        a, width, out = self.layers, self.planes * self.groups, self.planes * 4
        y = nn.relu(a.norm('bn1')(a.conv(width, 1, name='conv1')(x)))
        y = nn.relu(a.norm('bn2')(a.conv(width, 3, self.stride, self.groups, name='conv2')(y)))
        y = a.norm('bn3')(a.conv(out, 1, name='conv3')(a.drop(y)))
        if x.shape != y.shape:
            x = a.norm('shortcut_1')(a.conv(out, 1, self.stride, name='shortcut_0')(x))
        return nn.relu(x + a.skip(y, self.depth))


class PreActResNeXtBlock(nn.Module):
    """Compute a ResNeXt block with norm and ReLU before each convolution, and a 1x1 shortcut on raw input."""

    planes: int
    stride: int
    depth: float
    groups: int
    layers: Layers
    last_norm = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        a, width, out = self.layers, self.planes * self.groups, self.planes * 4
        y = a.conv(width, 1, name='conv1')(nn.relu(a.norm('bn1')(x)))
        y = a.conv(width, 3, self.stride, self.groups, name='conv2')(nn.relu(a.norm('bn2')(y)))
        y = a.conv(out, 1, name='conv3')(a.drop(nn.relu(a.norm('bn3')(y))))
        if x.shape != y.shape:
            x = a.conv(out, 1, self.stride, name='shortcut_0')(x)
        return x + a.skip(y, self.depth)


class ResNeXt29(nn.Module):
    """Join three stages of three blocks: 64, 128, 256 planes per group and 256, 512, 1024 output channels."""

    groups: int
    num_classes: int
    layers: Layers
    block: Any = ResNeXtBlock

    @property
    def last_norm(self) -> str | None:
        """Return the paths of the norms that end a block, as a regular expression."""
        return self.block.last_norm and rf'layer\d_\d/{self.block.last_norm}'

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        a, preact = self.layers, self.block is PreActResNeXtBlock
        x = a.conv(64, 3, name='conv1')(x)
        x = x if preact else nn.relu(a.norm('bn1')(x))
        for stage in range(3):
            for i in range(3):
                stride = 2 if stage > 0 and i == 0 else 1
                make = partial(self.block, 64 * 2**stage, stride, (3 * stage + i) / 8, self.groups, a)
                x = make(name=f'layer{stage + 1}_{i}')(x)
        if preact:
            x = nn.relu(a.norm('bn')(x))
        return head(x, self.num_classes)


ResNeXt29_8x64d = partial(ResNeXt29, groups=8)
ResNeXt29_16x64d = partial(ResNeXt29, groups=16)
PreActResNeXt29_8x64d = partial(ResNeXt29, groups=8, block=PreActResNeXtBlock)
