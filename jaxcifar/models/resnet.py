"""Residual networks for 32x32 images: He et al. 2016, sections 4.1 (ResNet-18/34/50) and 4.2."""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcifar.models.layers import BatchNorm, Conv, Dense


def subsample(x: jax.Array, filters: int, strides: int, conv, norm) -> jax.Array:
    """Shortcut A: every `strides`-th pixel, new channels zero, half on each side; no parameters."""
    x = x[:, ::strides, ::strides]
    extra = filters - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))


def project(x: jax.Array, filters: int, strides: int, conv, norm) -> jax.Array:
    """Shortcut B: a strided 1x1 convolution and a norm."""
    return norm(name='shortcut_norm')(conv(filters, (1, 1), strides, name='shortcut_conv')(x))


class BasicBlock(nn.Module):
    """conv3x3 - norm - ReLU - conv3x3 - norm, added to the shortcut."""

    filters: int
    strides: int
    conv: Callable
    norm: Callable
    shortcut: Callable
    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(self.filters, (3, 3), self.strides, padding=1)(x)
        y = nn.relu(self.norm()(y))
        y = self.norm()(self.conv(self.filters, (3, 3), padding=1)(y))
        if x.shape != y.shape:
            x = self.shortcut(x, self.filters, self.strides, self.conv, self.norm)
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """conv1x1 - conv3x3 (which carries the stride) - conv1x1 to four times the width."""

    filters: int
    strides: int
    conv: Callable
    norm: Callable
    shortcut: Callable
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = self.filters * self.expansion
        y = nn.relu(self.norm()(self.conv(self.filters, (1, 1))(x)))
        y = nn.relu(self.norm()(self.conv(self.filters, (3, 3), self.strides, padding=1)(y)))
        y = self.norm()(self.conv(width, (1, 1))(y))
        if x.shape != y.shape:
            x = self.shortcut(x, width, self.strides, self.conv, self.norm)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A 3x3 stem, stages of blocks, mean over the pixels, one dense layer.

    Returns (logits [B,C], features [B,D]), both float32; D is the last stage's width.
    """

    stages: Sequence[int]
    num_classes: int
    train: bool
    width: int = 64
    block: type[nn.Module] = BasicBlock
    shortcut: Callable = project
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        conv = partial(Conv, use_bias=False, dtype=self.dtype)
        norm = partial(BatchNorm, self.train, self.axis_name, self.dtype)
        x = nn.relu(norm()(conv(self.width, (3, 3), padding=1)(x)))
        for stage, blocks in enumerate(self.stages):
            for i in range(blocks):
                strides = 2 if stage > 0 and i == 0 else 1
                x = self.block(self.width * 2**stage, strides, conv, norm, self.shortcut)(x)
        features = x.astype(jnp.float32).mean((1, 2))
        return Dense(self.num_classes)(features), features


ResNet18 = partial(ResNet, stages=(2, 2, 2, 2))
ResNet34 = partial(ResNet, stages=(3, 4, 6, 3))
ResNet50 = partial(ResNet, stages=(3, 4, 6, 3), block=Bottleneck)

CifarResNet = partial(ResNet, width=16, shortcut=subsample)
ResNet8 = partial(CifarResNet, stages=(1, 1, 1))
ResNet20 = partial(CifarResNet, stages=(3, 3, 3))
ResNet32 = partial(CifarResNet, stages=(5, 5, 5))
ResNet44 = partial(CifarResNet, stages=(7, 7, 7))
ResNet56 = partial(CifarResNet, stages=(9, 9, 9))
ResNet110 = partial(CifarResNet, stages=(18, 18, 18))
