"""Build MobileNetV2: Sandler et al. 2018, table 2."""

import flax.linen as nn
import jax

from jaxcifar.models.layers import Layers, head

# expansion t, channels c, blocks n, stride s
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# Blocks that are added to their input, numbered from 1: all but the first of each stage.
REPEATED = [block for block, i in enumerate((i for _, _, n, _ in STAGES for i in range(n)), 1) if i > 0]


class InvertedResidual(nn.Module):
    """Compute conv1x1 to t times the channels - depthwise conv3x3 - conv1x1; add an input of that shape."""

    filters: int
    expansion: int
    stride: int
    depth: float
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        a, hidden, y, i = self.layers, x.shape[-1] * self.expansion, x, 0
        # Without expansion torchvision leaves this layer out, and its names move up by one.
        if self.expansion > 1:
            y = nn.relu6(a.norm('conv_0_1')(a.conv(hidden, 1, name='conv_0_0')(y)))
            i = 1
        y = a.conv(hidden, 3, self.stride, hidden, name=f'conv_{i}_0')(y)
        y = nn.relu6(a.norm(f'conv_{i}_1')(y))
        y = a.norm(f'conv_{i + 2}')(a.conv(self.filters, 1, name=f'conv_{i + 1}')(y))
        return x + a.skip(y, self.depth) if x.shape == y.shape else y


class MobileNetV2(nn.Module):
    """Join a stem of 32, seven stages, a 1x1 convolution to 1280, dropout, and the head.

    The CIFAR form keeps the image's size in the stem and in the first stage that would halve it.
    """

    num_classes: int
    layers: Layers
    stem: str = 'cifar'
    last_norm = rf'features_({"|".join(map(str, REPEATED))})/conv_3/'

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        a, large = self.layers, self.stem == 'imagenet'
        x = a.conv(32, 3, 2 if large else 1, name='features_0_0')(x)
        x = nn.relu6(a.norm('features_0_1')(x))
        block, total = 0, sum(n for _, _, n, _ in STAGES) - 1
        for stage, (t, c, n, s) in enumerate(STAGES):
            for i in range(n):
                # Small images stay whole in the second stage too, or too few pixels would reach the last.
                stride = s if i == 0 and (large or stage != 1) else 1
                block += 1
                x = InvertedResidual(c, t, stride, (block - 1) / total, a, name=f'features_{block}')(x)
        x = nn.relu6(a.norm('features_18_1')(a.conv(1280, 1, name='features_18_0')(x)))
        return head(x, self.num_classes, 'classifier_1', a.drop)
