"""Convolutions: some in forms that are fast on a CPU, and those of several members as one on a GPU.

XLA's CPU backend is slow at grouped convolutions. One convolution per group, or sums of shifted products
where each channel is a group, take a third to a tenth of the time. Wide 3x3 convolutions take two thirds in
`winograd`. On a CPU no convolution belongs in a loop (`scan`, `map`), where XLA runs its gradients 30 to 100
times slower.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcifar.machine.compiler import block_diagonal
from jaxcifar.models.winograd import convolve_3x3

LAYOUT = ('NHWC', 'HWIO', 'NHWC')
# With fewer channels or pixels, Winograd's transforms take longer than its products on a CPU.
WINOGRAD_CHANNELS, WINOGRAD_PIXELS = 128, 512
DENSE_CHANNELS = 256  # of all members together: up to here they run as one dense convolution
Padding = tuple[tuple[int, int], tuple[int, int]]


def vary_alike(*arrays: jax.Array) -> list[jax.Array]:
    """Cast arrays so that all vary over the mesh axes that any of them varies over.

    Under `shard_map` a custom gradient must vary over the same axes as its input. This cast gives each
    shard its own copy of parameters that all shards share; the gradient of the cast is the sum.
    """
    over = [jax.typeof(a).mat.varying for a in arrays]
    all_axes = frozenset().union(*over)
    return [jax.lax.pcast(a, tuple(all_axes - own), to='varying') for a, own in zip(arrays, over)]


def convolve(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, groups: int = 1, members_as: str = 'loop'
) -> jax.Array:
    """Return the cross-correlation [B,H',W',D] of x [B,H,W,C] with kernel [h,w,C/groups,D].

    members_as: the form that it takes under a `vmap` over K members. With 'loop' and 'grouped', JAX makes
        one grouped convolution. 'dense' makes one with a block-diagonal kernel; 'one' chooses by width. The
        last two can be differentiated only outside of such a `vmap`.
    """
    alone = partial(_convolve, stride=stride, padding=padding, groups=groups)
    if groups > 1 or members_as in ('loop', 'grouped'):
        return alone(x, kernel)
    return _side_by_side(alone, members_as)(x, kernel)


def is_dense(count: int, inputs: int, outputs: int) -> bool:
    """Return whether K members of this width should run as one dense convolution, not as a grouped one.

    The dense form takes K times the products, all but a Kth of them with zeros. A GPU's tensor cores have
    that capacity to spare where the layer is narrow. DENSE_CHANNELS is an estimate, not measured.
    """
    return count * max(inputs, outputs) <= DENSE_CHANNELS


def _side_by_side(alone, members_as: str):
    """Return the convolution `alone` as one whose `vmap` over members takes the form that is asked for."""
    mapped = jax.custom_batching.custom_vmap(alone)

    @mapped.def_vmap
    def members(count: int, batched: list[bool], x, kernel):
        if all(batched) and (members_as == 'dense' or is_dense(count, *kernel.shape[-2:])):
            return _block_diagonal(alone, x, kernel), True
        # Where all members see the same images, JAX lays their filters side by side, which wastes nothing.
        return jax.vmap(alone, [0 if own else None for own in batched])(x, kernel), True

    return mapped


def _block_diagonal(alone, x, kernel):
    """Convolve x [K,B,H,W,C] with kernel [K,h,w,C,D] as one with K·C channels: [K,B,H',W',D]."""
    count, height, width, inputs, outputs = kernel.shape
    # The kernel becomes [h,w,K,C,K,D], zero wherever the two members differ.
    own = jnp.eye(count, dtype=bool)[:, None, :, None]
    blocks = jnp.where(own, jnp.moveaxis(kernel, 0, 2)[..., None, :], jnp.zeros((), kernel.dtype))
    # Members move beside the channels: [B,H,W,K·C].
    wide = jnp.moveaxis(x, 0, 3).reshape(*x.shape[1:4], count * inputs)
    with block_diagonal(count):
        y = alone(wide, blocks.reshape(height, width, count * inputs, count * outputs))
    return jnp.moveaxis(y.reshape(*y.shape[:3], count, outputs), 3, 0)


def _convolve(x, kernel, *, stride, padding, groups):
    native = partial(_native, stride=stride, padding=padding, groups=groups)
    # The platform is chosen at lowering, since an export may name several.
    on_cpu = _on_cpu(x.shape, kernel.shape, stride, padding, groups)
    return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=native) if on_cpu else native(x, kernel)


def _on_cpu(shape, kernel_shape, stride, padding, groups):
    """Return the form that is faster on a CPU than XLA's own, where there is one."""
    # With one kernel per channel there is no matrix product to gain from.
    if groups == shape[-1] == kernel_shape[-1]:
        return partial(_depthwise, stride=stride, padding=padding)
    if groups > 1:
        return partial(_separate, stride=stride, padding=padding, groups=groups)
    batch, height, width, _ = shape
    if (
        (*kernel_shape[:2], stride, padding) == (3, 3, 1, ((1, 1), (1, 1)))
        and height % 2 == width % 2 == 0
        and isinstance(batch, int)  # not a symbol, in a program that is exported for any batch
        and batch * height * width >= WINOGRAD_PIXELS
        and min(kernel_shape[2:]) >= WINOGRAD_CHANNELS
    ):
        return _winograd
    return None


def _winograd(x, kernel):
    """Compute in float32, as XLA on a CPU computes convolutions of bfloat16 too."""
    given, kernel = vary_alike(x.astype(jnp.float32), kernel.astype(jnp.float32))
    return convolve_3x3(given, kernel).astype(x.dtype)


def _native(x, kernel, *, stride, padding, groups=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT, feature_group_count=groups
    )


def _separate(x, kernel, *, stride, padding, groups):
    """Run one convolution a group."""
    parts = zip(jnp.split(x, groups, -1), jnp.split(kernel, groups, -1))
    return jnp.concatenate([_native(a, k, stride=stride, padding=padding) for a, k in parts], -1)


def _depthwise(x, kernel, *, stride, padding):
    """Convolve each channel with a kernel of its own: kernel [h,w,1,C]."""
    # A custom gradient must vary as its input does, so the cast is done outside of it.
    x, kernel = vary_alike(x, kernel)
    return _shifted_sum(x, kernel, stride, padding)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _shifted_sum(x, kernel, stride, padding):
    """Add up one product of the whole image for each pixel of the kernel."""
    return sum(part * kernel[i, j, 0] for (i, j), part in _shifted(x, kernel.shape, stride, padding))


def _shifted(x, kernel_shape, stride, padding):
    """Yield ((i, j), the pixels [B,H',W',C] of x that entry i, j of the kernel multiplies)."""
    height, width = kernel_shape[:2]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    # The far edge may leave pixels over that no window reaches.
    rows, columns = ((n - k) // stride + 1 for n, k in zip(x.shape[1:3], (height, width)))
    for i in range(height):
        for j in range(width):
            # The slice ends right after the last pixel read, so that no stride can add another.
            ends = i + (rows - 1) * stride + 1, j + (columns - 1) * stride + 1
            yield (i, j), x[:, i : ends[0] : stride, j : ends[1] : stride]


def _forward(x, kernel, stride, padding):
    return _shifted_sum(x, kernel, stride, padding), (x, kernel)


def _backward(stride, padding, saved, g):
    """Return both gradients; autodiff would add up one padded image after the other for each kernel pixel."""
    x, kernel = saved
    # Sums over the batch and the image lose too much in bfloat16.
    products = [(part * g).astype(jnp.float32) for _, part in _shifted(x, kernel.shape, stride, padding)]
    # A reduction of many arrays reads them in one pass; separate sums would take one each.
    zeros = [jnp.zeros_like(products[0], shape=())] * len(products)
    sums = jax.lax.reduce(products, zeros, partial(jax.tree.map, jnp.add), (0, 1, 2))
    # The gradient is dilated by the stride and convolved with the mirrored kernel. Pixels that the stride
    # skipped at the far edge have no gradient.
    spread = [
        (k - 1 - low, n + low - 1 - (m - 1) * stride, stride - 1)
        for n, m, k, (low, _) in zip(x.shape[1:3], g.shape[1:3], kernel.shape, padding)
    ]
    g = jax.lax.pad(g, jnp.zeros((), g.dtype), ((0, 0, 0), *spread, (0, 0, 0)))
    # All padding is in g already.
    dx = _shifted_sum(g, kernel[::-1, ::-1], 1, ((0, 0), (0, 0)))
    return dx, jnp.stack(sums).reshape(kernel.shape).astype(kernel.dtype)


_shifted_sum.defvjp(_forward, _backward)


class Conv(nn.Module):
    """Apply a convolution without bias, square, padded by `padding` zeros on each side."""

    filters: int
    size: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    dtype: jnp.dtype = jnp.float32
    members_as: str = 'loop'

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.filters)
        kernel = self.param('kernel', nn.initializers.zeros, shape)
        pads = ((self.padding, self.padding),) * 2
        # Parameters stay float32; only the computation is in the narrower type.
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return convolve(x, kernel, self.stride, pads, self.groups, self.members_as)
