"""Convert kernels to codes in {-1, 0, 1} with scales, and back.

TWN (Li et al. 2016, eqs. 5 and 6): Δ = .7·mean|W|, codes sign(W)·1[|W| > Δ], scale the mean of |W| where
|W| > Δ. TTQ (Zhu et al. 2017): Δ = .05·max|W|, and the two scales are learned. Δ and scales are per tensor,
or per output channel, the last axis of a kernel [h,w,in,out] or [in,out].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

TWN_THRESHOLD = 0.7  # of the mean of |W|
TTQ_THRESHOLD = 0.05  # of the largest |W|
PER = ('tensor', 'channel')


class Ternary(NamedTuple):
    """Hold a kernel whose value is `positive` at a code of 1, -`negative` at -1, and 0 at 0."""

    codes: jax.Array  # int8, of the kernel's shape
    positive: jax.Array  # [1] of a tensor, or [out]; not negative
    negative: jax.Array  # the same


def twn(kernel: jax.Array, per: str = 'tensor', scale: bool = True) -> Ternary:
    """Return nearly the closest ternary kernel: Δ and scale as above; without `scale` the values are ±1."""
    size = jnp.abs(kernel)
    codes = _codes(kernel, TWN_THRESHOLD * size.mean(_axes(kernel, per)))
    alpha = mean_of_kept(kernel, codes, per)
    alpha = alpha if scale else jnp.ones_like(alpha)
    return Ternary(codes, alpha, alpha)


def ttq(kernel: jax.Array, positive: jax.Array, negative: jax.Array) -> Ternary:
    """Return the kernel with learned scales, [1] or [out] each; their length decides what Δ is taken over."""
    per = 'tensor' if len(positive) == 1 else 'channel'
    return Ternary(_ttq_codes(kernel, per), positive, negative)


def ttq_scale(kernel: jax.Array, per: str = 'tensor', start: float = 0.0) -> jax.Array:
    """Return both scales' initial value, [1] or [out]: `start`, or if that is 0, mean |W| where |W| > Δ.

    Scales far below 1 leave few zeros. `ttq_quantize` multiplies the gradient of a kept weight by its scale,
    but that of a zero by 1, which soon drives zeros past Δ. The authors' code also starts at 1.
    """
    scale = mean_of_kept(kernel, _ttq_codes(kernel, per), per)
    return jnp.full_like(scale, start) if start else scale


def dequantize(ternary: Ternary, dtype=jnp.float32) -> jax.Array:
    """Return the kernel's values: at most three of them, or three a channel."""
    codes, positive, negative = ternary
    return jnp.where(codes > 0, positive, jnp.where(codes < 0, -negative, 0)).astype(dtype)


def mean_of_kept(kernel: jax.Array, codes: jax.Array, per: str) -> jax.Array:
    """Return the mean of |W| where the code is not 0, [1] or [out]; 0 where all codes are."""
    axes, kept = _axes(kernel, per), codes != 0
    total = jnp.where(kept, jnp.abs(kernel), 0).sum(axes)
    # A channel of zeros keeps no weight: the guard avoids 0/0.
    return jnp.atleast_1d(total / jnp.maximum(kept.sum(axes), 1))


def _ttq_codes(kernel: jax.Array, per: str) -> jax.Array:
    return _codes(kernel, TTQ_THRESHOLD * jnp.abs(kernel).max(_axes(kernel, per)))


def _codes(kernel: jax.Array, threshold: jax.Array) -> jax.Array:
    return (jnp.sign(kernel) * (jnp.abs(kernel) > threshold)).astype(jnp.int8)


def _axes(kernel: jax.Array, per: str) -> tuple[int, ...]:
    return tuple(range(kernel.ndim - (per == 'channel')))


@jax.custom_vjp
def straight_through(kernel: jax.Array, shown: jax.Array) -> jax.Array:
    """Return `shown`, and pass its gradient to `kernel` as it is (Bengio et al. 2013)."""
    return shown


straight_through.defvjp(
    lambda kernel, shown: (shown, None),
    lambda _, gradient: (gradient, jnp.zeros_like(gradient)),
)


@jax.custom_vjp
def ttq_quantize(kernel: jax.Array, positive: jax.Array, negative: jax.Array) -> jax.Array:
    """Return the values of `ttq`, with the gradients of Zhu et al. 2017, eqs. 7 and 8.

    Let g be the gradient of the values. The kernel gets p·g where its code is 1, g at 0, and n·g at -1. A
    scale gets the sum of g over its codes, negated for `negative`: it acts as -n (the paper omits the sign).
    """
    return dequantize(ttq(kernel, positive, negative), kernel.dtype)


def _ttq_forward(kernel, positive, negative):
    ternary = ttq(kernel, positive, negative)
    return dequantize(ternary, kernel.dtype), ternary


def _ttq_backward(ternary: Ternary, gradient: jax.Array):
    codes, positive, negative = ternary
    axes = _axes(codes, 'tensor' if len(positive) == 1 else 'channel')
    # The forward pass saves int8 codes, a quarter of the memory that the float kernel would take.
    to_kernel = gradient * jnp.where(codes > 0, positive, jnp.where(codes < 0, negative, 1))
    to_positive = jnp.where(codes > 0, gradient, 0).sum(axes)
    to_negative = -jnp.where(codes < 0, gradient, 0).sum(axes)
    return to_kernel, jnp.atleast_1d(to_positive), jnp.atleast_1d(to_negative)


ttq_quantize.defvjp(_ttq_forward, _ttq_backward)
