"""Transform images affinely, as torchvision does: nearest neighbour, zeros from outside.

A matrix (a, b, c, d, e, f) maps an output pixel to its source: column a·x + b·y + c and row
d·x + e·y + f. Here x (right) and y (down) are in pixels from the image's centre. Column and row are
on torch's scale, which has -1 and 1 at the image's edges.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

GEOMETRIC = ('shear_x', 'shear_y', 'translate_x', 'translate_y', 'rotate')


def inverse_matrix(op: str, magnitude: float, height: int, width: int) -> np.ndarray:
    """Return the matrix, [6], of one of GEOMETRIC; any other op leaves the pixels where they are.

    Magnitudes follow torchvision. Shears are ratios and keep the upper left corner fixed. Translations
    are in pixels, truncated to whole ones. Positive angles (in degrees) turn counter-clockwise.
    """
    cos, sin = math.cos(math.radians(magnitude)), math.sin(math.radians(magnitude))
    matrix = {
        'shear_x': (1, magnitude, magnitude * height / 2, 0, 1, 0),
        'shear_y': (1, 0, 0, magnitude, 1, magnitude * width / 2),
        'translate_x': (1, 0, -int(magnitude), 0, 1, 0),
        'translate_y': (1, 0, 0, 0, 1, -int(magnitude)),
        'rotate': (cos, -sin, 0, sin, cos, 0),
    }.get(op, (1, 0, 0, 0, 1, 0))
    # torch's scale goes from -1 to 1 over a side, so pixels are divided by half of it.
    half_sizes = [width / 2] * 3 + [height / 2] * 3
    return np.array(matrix, np.float32) / np.array(half_sizes, np.float32)


def affine(images: jax.Array, matrices: jax.Array) -> jax.Array:
    """Move the pixels of each image [B,H,W,C] by its own matrix, [B,6]."""
    batch, height, width, channels = images.shape
    x, y = _centred(width), _centred(height)[:, None]
    a, b, c, d, e, f = (m[:, None, None] for m in jnp.moveaxis(matrices, -1, 0))
    column = _to_pixel(x, y, (a, b, c), width)
    row = _to_pixel(x, y, (d, e, f), height)
    # Sources outside the image read pixel 0, and are painted black afterwards.
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    source = jnp.where(inside, row * width + column, 0).reshape(batch, -1, 1)
    moved = jnp.take_along_axis(images.reshape(batch, -1, channels), source, 1)
    return jnp.where(inside[..., None], moved.reshape(images.shape), 0).astype(images.dtype)


def _centred(size: int) -> np.ndarray:
    return np.arange(size, dtype=np.float32) - (size - 1) / 2


def _to_pixel(x, y, line, size: int) -> jax.Array:
    """Return the nearest row or column, rounding to float32 wherever torch does.

    These roundings break ties for points half-way between two pixels, such as whole rows of a shear.
    """
    across, down, offset = line
    scaled = _rounded_product(x, across) + _rounded_product(y, down) + offset
    return jnp.round((scaled + 1) * np.float32(size / 2) - 0.5).astype(jnp.int32)


def _rounded_product(x: np.ndarray, y: jax.Array) -> jax.Array:
    """Return x·y rounded to float32, for x of at most 12 bits.

    XLA computes a·b + c without rounding a·b. With y split into two halves, both products are exact, and
    only their sum is rounded.
    """
    # The mask keeps the upper 12 of the 24 bits of y's significand.
    bits = jax.lax.bitcast_convert_type(y, jnp.int32)
    high = jax.lax.bitcast_convert_type(bits & ~0xFFF, jnp.float32)
    return x * high + x * (y - high)
