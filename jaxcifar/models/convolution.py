"""A convolution whose gradients are convolutions in the one layout that XLA runs fast on a CPU.

Autodiff's gradients of a convolution permute dimension numbers. XLA's CPU backend runs those well at
the top of a program and 30 to 40 times slower within a loop (`scan`, `map`); written as NHWC/HWIO
convolutions with explicit transposes they are fast everywhere. Grouped convolutions are naive there
too: one convolution a group, and shifted products for depthwise ones, are 3 to 5 times faster. Other
backends run the groups as they are.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

LAYOUT = ('NHWC', 'HWIO', 'NHWC')
Padding = tuple[tuple[int, int], tuple[int, int]]


def vary_alike(*arrays: jax.Array) -> list[jax.Array]:
    """Cast arrays so that all vary over the mesh axes that any of them varies over.

    Under `shard_map` a gradient of one's own must vary as its input does. Parameters that all shards of
    a batch share are cast to each shard's own by this; that cast's gradient is the sum.
    """
    over = [jax.typeof(a).mat.varying for a in arrays]
    all_axes = frozenset().union(*over)
    return [jax.lax.pcast(a, tuple(all_axes - own), to='varying') for a, own in zip(arrays, over)]


def convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Cross-correlation of x [B,H,W,C] with kernel [h,w,C,D]; returns [B,H',W',D]."""
    x, kernel = vary_alike(x, kernel)
    return _convolve(x, kernel, stride, padding)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x, kernel, stride, padding):
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT)


def _forward(x, kernel, stride, padding):
    return _convolve(x, kernel, stride, padding), (x, kernel)


def _backward(stride, padding, saved, g):
    x, kernel = saved
    height, width, _, _ = kernel.shape
    sizes = zip(x.shape[1:3], g.shape[1:3], (height, width), padding)
    # What the stride left over at the far edge has no gradient; the paddings below make up for it.
    rest = [n + low + high - k - (m - 1) * stride for n, m, k, (low, high) in sizes]
    far = [k - 1 - high + r for k, (_, high), r in zip((height, width), padding, rest)]
    near = [k - 1 - low for k, (low, _) in zip((height, width), padding)]
    dx = jax.lax.conv_general_dilated(
        g,
        kernel[::-1, ::-1].transpose(0, 1, 3, 2),
        (1, 1),
        tuple(zip(near, far)),
        lhs_dilation=(stride, stride),
        dimension_numbers=LAYOUT,
    )
    cut = tuple((low, high - r) for (low, high), r in zip(padding, rest))
    dkernel = jax.lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),  # the batch is summed over, as channels are
        g.transpose(1, 2, 0, 3),
        (1, 1),
        cut,
        rhs_dilation=(stride, stride),
        dimension_numbers=LAYOUT,
    )
    return dx, dkernel.transpose(1, 2, 0, 3)


_convolve.defvjp(_forward, _backward)


def convolve_groups(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, groups: int):
    """Channels in `groups` that do not see each other: kernel [h,w,C/groups,D]."""
    if groups == 1:
        return convolve(x, kernel, stride, padding)
    depthwise = groups == x.shape[-1] == kernel.shape[-1]
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=partial(_shifted if depthwise else _separate, stride=stride, padding=padding, groups=groups),
        default=partial(_native, stride=stride, padding=padding, groups=groups),
    )


def _native(x, kernel, *, stride, padding, groups):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT, feature_group_count=groups
    )


def _separate(x, kernel, *, stride, padding, groups):
    """One convolution a group."""
    parts = zip(jnp.split(x, groups, -1), jnp.split(kernel, groups, -1))
    return jnp.concatenate([convolve(a, k, stride, padding) for a, k in parts], -1)


def _shifted(x, kernel, *, stride, padding, groups):
    """One product of the whole image for each pixel of the kernel."""
    height, width = kernel.shape[:2]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = ((n - k) // stride + 1 for n, k in zip(x.shape[1:3], (height, width)))

    def shifted(i: int, j: int) -> jax.Array:
        i_end, j_end = i + (rows - 1) * stride + 1, j + (columns - 1) * stride + 1
        return x[:, i:i_end:stride, j:j_end:stride]

    return sum(shifted(i, j) * kernel[i, j, 0] for i in range(height) for j in range(width))


class Conv(nn.Module):
    """A convolution without bias, square, padded by `padding` zeros on each side."""

    filters: int
    size: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.filters)
        kernel = self.param('kernel', nn.initializers.zeros, shape)
        pads = ((self.padding, self.padding),) * 2
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return convolve_groups(x, kernel, self.stride, pads, self.groups)
