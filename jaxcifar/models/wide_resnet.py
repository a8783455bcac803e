"""Build wide residual networks: Zagoruyko & Komodakis 2016."""

from functools import partial

import flax.linen as nn
import jax

from jaxcifar.models.layers import Layers, head


class WideBlock(nn.Module):
    """Compute norm - ReLU - conv3x3 - norm - ReLU - dropout - conv3x3.

    Where the shape changes the shortcut is a 1x1 convolution of the activated input.
    """

    filters: int
    stride: int
    depth: float
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        a = self.layers
        active = nn.relu(a.norm('bn1')(x))
        y = a.conv(self.filters, 3, self.stride, name='conv1')(active)
        y = a.conv(self.filters, 3, name='conv2')(a.drop(nn.relu(a.norm('bn2')(y))))
        if x.shape != y.shape:
            x = a.conv(self.filters, 1, self.stride, name='shortcut')(active)
        return x + a.skip(y, self.depth)


class WideResNet(nn.Module):
    """Join three stages of (depth - 4) / 6 blocks, of widths 16k, 32k and 64k."""

    depth: int
    widen: int
    num_classes: int
    layers: Layers
    last_norm = None  # no norm ends a block

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        a, blocks = self.layers, (self.depth - 4) // 6
        x = a.conv(16, 3, name='conv1')(x)
        for stage in range(3):
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                depth = (stage * blocks + i) / (3 * blocks - 1)
                filters = 16 * self.widen * 2**stage
                x = WideBlock(filters, stride, depth, a, name=f'layer{stage + 1}_{i}')(x)
        return head(nn.relu(a.norm('bn')(x)), self.num_classes)


WideResNet28_10 = partial(WideResNet, depth=28, widen=10)
WideResNet28_2 = partial(WideResNet, depth=28, widen=2)
WideResNet40_2 = partial(WideResNet, depth=40, widen=2)
