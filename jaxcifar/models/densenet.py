"""Build densely connected networks: Huang et al. 2017, with bottlenecks and compression (DenseNet-BC)."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcifar.machine.errors import UserError
from jaxcifar.models.layers import Layers, head


class DenseLayer(nn.Module):
    """Compute norm - ReLU - conv1x1 to 4g channels - norm - ReLU - conv3x3 to g, of all maps before it."""

    growth: int
    depth: float
    layers: Layers

    @nn.compact
    def __call__(self, maps: list[jax.Array]) -> jax.Array:
        a = self.layers
        y = nn.relu(a.norm('norm1')(jnp.concatenate(maps, -1)))
        y = a.conv(4 * self.growth, 1, name='conv1')(y)
        y = a.conv(self.growth, 3, name='conv2')(nn.relu(a.norm('norm2')(y)))
        return a.skip(a.drop(y), self.depth)


class DenseNet(nn.Module):
    """Join dense blocks by transitions: norm - ReLU - conv1x1 to half the channels - mean of 2x2."""

    blocks: Sequence[int]
    growth: int
    width: int
    num_classes: int
    layers: Layers
    stem: str = 'cifar'
    last_norm = None

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        a, done, total = self.layers, 0, max(sum(self.blocks) - 1, 1)
        large = self.stem == 'imagenet'
        # Each transition halves the maps, and the large stem divides by four, rounding up.
        smallest = 2 ** (len(self.blocks) - 1)
        smallest = 4 * smallest - 3 if large else smallest
        if min(x.shape[1:3]) < smallest:
            raise UserError(f'this DenseNet needs images of {smallest} pixels or more: set another network')
        x = a.conv(self.width, 7 if large else 3, 2 if large else 1, name='features_conv0')(x)
        x = nn.relu(a.norm('features_norm0')(x))
        if large:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for b, size in enumerate(self.blocks, 1):
            # A list, not one growing array: its gradient compiles in two thirds of the time.
            maps = [x]
            for i in range(1, size + 1):
                name = f'features_denseblock{b}_denselayer{i}'
                maps.append(DenseLayer(self.growth, done / total, a, name=name)(maps))
                done += 1
            x = jnp.concatenate(maps, -1)
            # The head takes the last block's maps, so no transition follows it.
            if b < len(self.blocks):
                x = nn.relu(a.norm(f'features_transition{b}_norm')(x))
                x = a.conv(x.shape[-1] // 2, 1, name=f'features_transition{b}_conv')(x)
                x = nn.avg_pool(x, (2, 2), (2, 2))
        x = nn.relu(a.norm('features_norm5')(x))  # torchvision's name, however many blocks
        return head(x, self.num_classes, 'classifier')


DenseNet121 = partial(DenseNet, blocks=(6, 12, 24, 16), growth=32, width=64)
DenseNet169 = partial(DenseNet, blocks=(6, 12, 32, 32), growth=32, width=64)
DenseNet201 = partial(DenseNet, blocks=(6, 12, 48, 32), growth=32, width=64)
EfficientDenseNet = partial(DenseNet, blocks=(16, 16, 16), growth=12, width=24)
