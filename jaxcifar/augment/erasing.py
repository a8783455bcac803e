"""Paint over boxes of normalised images; 0 is the mean colour of the training images."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

TRIES = 10  # attempts to find a box that fits, as in torchvision


def random_erasing(
    probability: float = 0.5,
    scale: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
    value: float | tuple[float, ...] = 0.0,
) -> Callable:
    """Paint over a box: area uniform in `scale`, aspect log-uniform in `ratio` (Zhong et al. 2020).

    `value` is one number, or one per channel. The first of ten random boxes that fits is used; if none
    fits, the image is left unchanged. Raises ValueError for numbers out of range.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f'probability must be from 0 to 1, got {probability}')
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f'scale must be two growing shares of the area, got {scale}')
    if not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f'ratio must be two growing numbers above 0, got {ratio}')
    if np.shape(value) not in ((), (3,)):
        raise ValueError(f'value must be one number or three, got {value}')
    colour = np.asarray(value, np.float32)

    def erase(key: jax.Array, images: jax.Array) -> jax.Array:
        count, *size = images.shape[:3]
        # One draw for all: areas and aspects of the tries, the corner, and whether it happens.
        chances = jax.random.uniform(key, (count, 2 * TRIES + 3))
        area, aspect, place, happens = jnp.split(chances, (TRIES, 2 * TRIES, 2 * TRIES + 2), 1)
        area = (scale[0] + area * (scale[1] - scale[0])) * math.prod(size)
        aspect = ratio[0] * (ratio[1] / ratio[0]) ** aspect
        sides = jnp.round(jnp.stack([jnp.sqrt(area * aspect), jnp.sqrt(area / aspect)], -1))
        fits = (sides < jnp.array(size)).all(-1)
        # argmax finds the first try that fits; where none does, nothing is painted.
        side = jnp.take_along_axis(sides, fits.argmax(1)[:, None, None], 1)[:, 0]  # [B,2]
        # Every place where the box lies within the image is equally likely.
        corner = jnp.floor(place * (jnp.array(size) - side + 1))
        happens = (happens[:, 0] < probability) & fits.any(1)
        return _paint(images, corner, corner + side, happens, colour)

    return erase


def cutout(size: int) -> Callable:
    """Paint over a square of `size` pixels at a random centre, clipped at edges (DeVries, Taylor 2017)."""
    if not isinstance(size, int) or size < 1:
        raise ValueError(f'size must be a whole number of pixels from 1 up, got {size!r}')

    def cut(key: jax.Array, images: jax.Array) -> jax.Array:
        count, height, width, _ = images.shape
        centre = jax.random.randint(key, (count, 2), 0, jnp.array([height, width]))
        corner = centre - size // 2
        return _paint(images, corner, corner + size, jnp.ones(count, bool), jnp.zeros(()))

    return cut


def _paint(images, corner, end, happens, colour) -> jax.Array:
    """Paint boxes from `corner` [B,2] up to but excluding `end` [B,2], each (row, column), in one colour."""

    def inside(axis: int) -> jax.Array:
        at = jnp.arange(images.shape[1 + axis])
        return (at >= corner[:, axis, None]) & (at < end[:, axis, None])

    # Comparing coordinates avoids slices whose size would differ between images.
    box = inside(0)[:, :, None] & inside(1)[:, None] & happens[:, None, None]
    return jnp.where(box[..., None], colour, images)
