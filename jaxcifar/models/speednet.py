"""Build a small network for fast training: whitened patches, three pooled blocks, a maximum at the end.

After Jordan 2024 (arXiv:2404.00498).
"""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcifar.machine.errors import UserError
from jaxcifar.models.convolution import convolve
from jaxcifar.models.layers import Layers

PATCH = 2  # pixels of a whitened patch's side
WHITENINGS = ('bias',)  # what may be added to it


class Whiten(nn.Module):
    """Compute the patches' principal components, each scaled to variance 1, and their negatives.

    The filters are statistics of the training images (`fit` draws them), not parameters: no gradient
    or decay touches them. A bias is a parameter; its gradient takes a fifth of a step on a CPU.
    """

    channels: int
    bias: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = PATCH * PATCH * x.shape[-1]
        shape = PATCH, PATCH, x.shape[-1], min(self.channels, 2 * size)
        filters = self.variable('batch_stats', 'filters', jnp.zeros, shape)
        y = convolve(x.astype(self.dtype), filters.value.astype(self.dtype), 1, ((0, 0), (0, 0)))
        if self.bias:
            y += self.param('bias', nn.initializers.zeros, shape[-1:]).astype(self.dtype)
        return y


def whitening_filters(images: np.ndarray, count: int, epsilon: float = 5e-4) -> np.ndarray:
    """Return filters [2,2,C,count] for normalised images [N,H,W,C]: v/sqrt(λ+ε), largest λ, and negatives."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (PATCH, PATCH), axis=(1, 2))
    patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, PATCH * PATCH * images.shape[-1])
    values, vectors = np.linalg.eigh(np.cov(patches, rowvar=False))
    # `eigh` sorts upwards, and every filter has its negative, so half the count is needed.
    largest = np.argsort(values)[::-1][: count // 2]
    filters = vectors[:, largest] / np.sqrt(values[largest] + epsilon)
    # A GELU would lose the negative half of each component.
    both = np.concatenate([filters, -filters], axis=1)
    return both.reshape(PATCH, PATCH, images.shape[-1], -1).astype(np.float32)


def halve(x: jax.Array) -> jax.Array:
    """Return the maximum of each 2x2 block of pixels; an odd row or column at the edge is dropped.

    Its gradient is elementwise, which takes a tenth of the time of `nn.max_pool`'s on a CPU.
    """
    batch, height, width, channels = x.shape
    # A reshape into 2x2 blocks needs even sides.
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))


class SpeedNet(nn.Module):
    """Join whitening and blocks of conv - pool - norm - GELU - conv - norm - GELU.

    With a depth of 3, a block has one more conv - norm, and the output of its first GELU is added before
    the last GELU.
    """

    num_classes: int
    layers: Layers
    widths: Sequence[int] = (64, 256, 256)
    depth: int = 2  # convolutions of a block
    whitened: int = 24
    whitening: str = ''  # 'bias' adds a trained bias
    last_norm = None
    drops = False  # whether blocks have dropout and may be skipped

    @staticmethod
    def fit(variables, images: np.ndarray):
        """Return the variables with the filters that whiten these normalised images [N,H,W,C]."""
        stats = variables['batch_stats']
        filters = whitening_filters(images, stats['whiten']['filters'].shape[-1])
        whiten = {**stats['whiten'], 'filters': filters}
        return {**variables, 'batch_stats': {**stats, 'whiten': whiten}}

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        a = self.layers
        x = nn.gelu(Whiten(self.whitened, self.whitening == 'bias', a.dtype, name='whiten')(x))
        for i, width in enumerate(self.widths, 1):
            if min(x.shape[1:3]) < 2:
                smallest = 2 ** len(self.widths) + PATCH - 1
                raise UserError(f'speednet needs images of {smallest} pixels or more: set another network')
            x = halve(a.conv(width, 3, name=f'layer{i}_conv1')(x))
            x = first = nn.gelu(a.norm(f'layer{i}_bn1')(x))
            for j in range(2, self.depth + 1):
                x = a.norm(f'layer{i}_bn{j}')(a.conv(width, 3, name=f'layer{i}_conv{j}')(x))
                x = nn.gelu(x + first if j == 3 else x)
        features = x.astype(jnp.float32).max((1, 2))
        # The division makes the first logits small, and lets this layer have the others' learning rate.
        return nn.Dense(self.num_classes, use_bias=False, name='fc')(features) / 9, features


SpeedNetSmall = partial(SpeedNet, widths=(64, 128, 256))
SpeedNetLarge = partial(SpeedNet, widths=(128, 384, 512))
SpeedNetDeep = partial(SpeedNet, widths=(128, 384, 512), depth=3)
