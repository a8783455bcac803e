"""Normalise batches, with a hand-written gradient."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcifar.models.convolution import vary_alike

# XLA adds up to 4,096 pixels in one stage. For 64 channels that is one block of threads, on one of an H200's
# 132 processors, for which XLA expects some 20 µs. In two stages, the first of 16 parts, it expects 1 to 2.
TWO_STAGES, PARTS = range(1024, 4096 + 1), 16


class BatchNorm(nn.Module):
    """Normalise a batch over all axes but the last; as in torch, the running variance is unbiased.

    Ioffe & Szegedy 2015. Statistics are float32 whatever the compute type. With `axis_name`, the
    statistics of a training batch are those of the whole batch on that mesh axis.
    """

    train: bool
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, channels)
        running_var = self.variable('batch_stats', 'var', jnp.ones, channels)
        scale = self.param('scale', nn.initializers.ones, (channels,))
        bias = self.param('bias', nn.initializers.zeros, (channels,))
        if self.train:
            y, mean, var = normalise_batch(x, scale, bias, self.epsilon, self.axis_name)
            # Initialisation sees a dummy batch, which must not enter the statistics.
            if not self.is_initializing():
                m, n = self.momentum, _pixels(x, self.axis_name)
                running_mean.value = m * running_mean.value + (1 - m) * mean
                # The running variance is unbiased, N/(N-1), though the batch is normalised by the biased.
                running_var.value = m * running_var.value + (1 - m) * var * (n / max(n - 1, 1))
        else:
            y = _affine(x, running_mean.value, running_var.value + self.epsilon, scale, bias)
        return y.astype(self.dtype)


def normalise_batch(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis_name: str | None):
    """Return (normalised x, mean [C], biased variance [C]) of x [...,C]; only the first has a gradient."""
    x, scale, bias = vary_alike(x, scale, bias)
    return _normalise(x, scale, bias, epsilon, axis_name)


def _affine(x, mean, variance, scale, bias):
    # Written as `x*a + b` with per-channel a and b, which XLA fuses into one pass.
    a = scale * jax.lax.rsqrt(variance)
    return x * a + (bias - mean * a)


def _sums(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Sum each float32 array [...,C] over all axes but the last: [C] each.

    A GPU computes all sums in one kernel. On a CPU, summing one array at a time is faster for some shapes.
    """
    return jax.lax.platform_dependent(*arrays, cpu=_one_by_one, default=_in_one_pass)


def _one_by_one(*arrays):
    return tuple(a.sum(_pixel_axes(a)) for a in arrays)


def _in_one_pass(*arrays):
    zeros, add = tuple(jnp.zeros_like(a, shape=()) for a in arrays), partial(jax.tree.map, jnp.add)
    pixels, channels = arrays[0].size // arrays[0].shape[-1], arrays[0].shape[-1]
    if pixels in TWO_STAGES and pixels % PARTS == 0:
        arrays = tuple(a.reshape(PARTS, pixels // PARTS, channels) for a in arrays)
        # The kernel that uses the sums adds up so few parts itself, unless they are reduced together.
        return tuple(part.sum(0) for part in jax.lax.reduce(arrays, zeros, add, (1,)))
    return jax.lax.reduce(arrays, zeros, add, _pixel_axes(arrays[0]))


def _pixel_axes(x):
    return tuple(range(x.ndim - 1))


def _pixels(x: jax.Array, axis_name: str | None) -> int:
    return x.size // x.shape[-1] * (1 if axis_name is None else jax.lax.axis_size(axis_name))


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalise(x, scale, bias, epsilon, axis_name):
    return _forward(x, scale, bias, epsilon, axis_name)[0]


def _forward(x, scale, bias, epsilon, axis_name):
    # The input is kept in its own type, half the memory of float32 under bfloat16.
    saved, x = x, x.astype(jnp.float32)
    mean, square = (total / (x.size // x.shape[-1]) for total in _sums(x, x * x))
    if axis_name is not None:
        # Shards are of equal size, so the mean of their means is that of the batch.
        mean, square = jax.lax.pmean((mean, square), axis_name)
    # Rounding may take E[x²] - E[x]² below 0, whose root would be NaN.
    var = jnp.maximum(square - mean * mean, 0.0)
    y = _affine(x, mean, var + epsilon, scale, bias)
    return (y, mean, var), (saved, mean, var + epsilon, scale)


def _backward(epsilon, axis_name, saved, gradients):
    """Compute dβ = Σg, dγ = Σg·x̂ and dx = γ/σ·(g - dβ/N - x̂·dγ/N) over N pixels, with x̂ = (x-m)/σ.

    That takes one pass for two sums, and one for dx = a·g + b·x + c with per-channel a, b and c.
    Autodiff needs half as many operations again for the same result, which costs compile time.
    """
    x, mean, variance, scale = saved
    # Running statistics pass no gradient on, so only the first counts.
    g, _, _ = gradients
    dtype, x = x.dtype, x.astype(jnp.float32)
    d_bias, products = _sums(g, g * x)
    d_scale = (products - mean * d_bias) * jax.lax.rsqrt(variance)
    # Parameters take this shard's sums; only dx needs those of the whole batch.
    sums = d_bias, d_scale
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
    # b and c end in a division, because XLA recomputes anything cheaper for every pixel.
    divisor = _pixels(x, axis_name) * variance
    b = -scale * sums[1] / divisor
    c = scale * (mean * sums[1] - jnp.sqrt(variance) * sums[0]) / divisor
    a = scale * jax.lax.rsqrt(variance)
    return (a * g + (b * x + c)).astype(dtype), d_scale, d_bias


_normalise.defvjp(_forward, _backward)
