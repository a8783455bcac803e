"""Apply the augmentation policies of torchvision: RandAugment, TrivialAugmentWide, AutoAugment, ColorJitter.

A table built when the step is compiled lists all ops and strengths that a policy can choose. Each
image draws a row, and one pass serves every possible row: one gather moves pixels, all colour ops run
elementwise and fused, and the result of the chosen op is kept.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcifar.augment import colour
from jaxcifar.augment.geometry import GEOMETRIC, affine, inverse_matrix

SIGNED = (*GEOMETRIC, 'brightness', 'saturation', 'contrast', 'sharpness')
OPS = ('identity', *SIGNED, 'posterize', 'solarize', 'autocontrast', 'equalize')

# (images, amount [B]) -> images
COLOURS: dict[str, Callable] = {
    'brightness': lambda images, amount: colour.brightness(images, 1 + amount),
    'saturation': lambda images, amount: colour.saturation(images, 1 + amount),
    'contrast': lambda images, amount: colour.contrast(images, 1 + amount),
    'sharpness': lambda images, amount: colour.sharpness(images, 1 + amount),
    'posterize': colour.posterize,
    'solarize': colour.solarize,
    'autocontrast': lambda images, amount: colour.autocontrast(images),
    'equalize': lambda images, amount: colour.equalize(images),
    'invert': lambda images, amount: colour.invert(images),
    'hue': colour.hue,
}


class Change(NamedTuple):
    """Hold one op per image: arrays with a table's leading axes, or a batch's, [B]."""

    matrix: Any  # [...,6] of `geometry.affine`
    colour: Any  # [...] position in COLOURS, or -1
    amount: Any  # [...] of that colour


class Ranges(NamedTuple):
    """Hold the magnitudes of the strongest bin; the weakest bin changes nothing."""

    shear: float
    translate: float | None  # pixels; None is 150/331 of the image
    rotate: float  # degrees
    factor: float  # how far brightness, saturation, contrast and sharpness go from 1
    bits: int  # that posterize takes away


USUAL = Ranges(0.3, None, 30.0, 0.9, 4)
WIDE = Ranges(0.99, 32.0, 135.0, 0.99, 6)


def magnitudes(op: str, ranges: Ranges, bins: int, size: tuple[int, ...]) -> np.ndarray:
    """Return the op's magnitude in each bin, from weak to strong, as in torchvision: float64 [bins]."""
    if op == 'posterize':
        # torchvision counts the bits that are kept, from 8 down.
        return np.round(8 - np.arange(bins) / ((bins - 1) / ranges.bits))
    if op == 'solarize':
        return 255 * linspace(1.0, 0.0, bins)
    height, width = size
    kind = op.partition('_')[0]
    ends: dict[str, float] = {'shear': ranges.shear, 'rotate': ranges.rotate}
    if kind == 'translate':
        side = width if op == 'translate_x' else height
        ends[kind] = 150 / 331 * side if ranges.translate is None else ranges.translate
    end = ends.get(kind, ranges.factor if op in SIGNED else 0.0)
    return linspace(0.0, end, bins)


def linspace(start: float, end: float, count: int) -> np.ndarray:
    """Compute torch.linspace with a single rounding: a float32 step, counted from both ends.

    Otherwise 16 pixels would become 15.999. On some processors torch's own last bit differs.
    """
    first, last, i = np.float32(start), np.float32(end), np.arange(count)
    step = float((last - first) / np.float32(max(count - 1, 1)))
    exact = np.where(i < count // 2, first + step * i, last - step * (count - 1 - i))
    return exact.astype(np.float32).astype(float)


def change(op: str, magnitude: float, size: tuple[int, ...]) -> Change:
    """Return one op as a table's row."""
    position = list(COLOURS).index(op) if op in COLOURS else -1
    matrix = inverse_matrix(op, magnitude, *size)
    return Change(matrix, np.int32(position), np.float32(magnitude))


def stack(rows: list) -> Change:
    """Stack rows to a table, or tables to one with another leading axis."""
    return Change(*(np.stack(values) for values in zip(*rows)))


def both_signs(op: str, magnitude: float, size: tuple[int, ...]) -> Change:
    """Return two rows: the op and its opposite, or the op twice where it has none."""
    opposite = -magnitude if op in SIGNED else magnitude
    return stack([change(op, magnitude, size), change(op, opposite, size)])


def draw(table: Change, *chances: jax.Array) -> Change:
    """Draw a row for each image, from a uniform number in [0, 1) for each leading axis, [B] each."""
    ends = table.colour.shape
    positions = tuple((chance * end).astype(jnp.int32) for chance, end in zip(chances, ends))
    return Change(*(jnp.asarray(values)[positions] for values in table))


def apply(images: jax.Array, change: Change, colours) -> jax.Array:
    """Change each image [B,H,W,C] in its own way; `colours` names those that can occur.

    An op changes either colours or positions. Colours come first: fused after the gather, they would
    repeat it for each of the nine pixels that they read.
    """
    coloured = apply_colour(images, change.colour, change.amount, colours)
    return affine(coloured, change.matrix)


def apply_colour(images: jax.Array, chosen: jax.Array, amount: jax.Array, colours) -> jax.Array:
    """Change the colours of each image; `chosen` [B] are positions in COLOURS, or -1 for none."""
    names = list(COLOURS)
    # Every op runs on every image, since a branch for each image would be a loop on the device.
    changed = [COLOURS[name](images, amount) for name in colours]
    conditions = [(chosen == names.index(name))[:, None, None, None] for name in colours]
    return jnp.select(conditions, changed, images)


def randaugment(n: int, m: int, bins: int = 31) -> Callable:
    """Apply `n` ops drawn with replacement, all of strength `m` of 0..bins-1 (Cubuk et al. 2020)."""
    if not (isinstance(n, int) and n >= 0 and isinstance(m, int) and 0 <= m < bins):
        raise ValueError(
            f'n and m must be whole numbers, n from 0 up and m from 0 to {bins - 1}, got {n!r} and {m!r}'
        )

    def augment(key: jax.Array, images: jax.Array) -> jax.Array:
        size, count = images.shape[1:3], len(images)
        strengths = {op: magnitudes(op, USUAL, bins, size)[m] for op in OPS}
        table = stack([both_signs(op, strength, size) for op, strength in strengths.items()])
        colours = [op for op in OPS if op in COLOURS]
        for op, sign in jax.random.uniform(key, (n, 2, count)):
            images = apply(images, draw(table, op, sign), colours)
        return images

    return augment


def trivial_augment(bins: int = 31) -> Callable:
    """Apply one op of any strength in the wide ranges (Müller and Hutter 2021)."""
    if not isinstance(bins, int) or bins < 2:
        raise ValueError(f'bins must be a whole number from 2 up, got {bins!r}')

    def augment(key: jax.Array, images: jax.Array) -> jax.Array:
        size, count = images.shape[1:3], len(images)
        strengths = {op: magnitudes(op, WIDE, bins, size) for op in OPS}
        table = stack([stack([both_signs(op, m, size) for m in ms]) for op, ms in strengths.items()])
        drawn = draw(table, *jax.random.uniform(key, (3, count)))
        return apply(images, drawn, [op for op in OPS if op in COLOURS])

    return augment


# Pairs of (op, probability, bin of 10), Cubuk et al. 2019, table 7.
CIFAR10_POLICY = (
    (('invert', 0.1, 0), ('contrast', 0.2, 6)),
    (('rotate', 0.7, 2), ('translate_x', 0.3, 9)),
    (('sharpness', 0.8, 1), ('sharpness', 0.9, 3)),
    (('shear_y', 0.5, 8), ('translate_y', 0.7, 9)),
    (('autocontrast', 0.5, 0), ('equalize', 0.9, 0)),
    (('shear_y', 0.2, 7), ('posterize', 0.3, 7)),
    (('saturation', 0.4, 3), ('brightness', 0.6, 7)),
    (('sharpness', 0.3, 9), ('brightness', 0.7, 9)),
    (('equalize', 0.6, 0), ('equalize', 0.5, 0)),
    (('contrast', 0.6, 7), ('sharpness', 0.6, 5)),
    (('saturation', 0.7, 7), ('translate_x', 0.5, 8)),
    (('equalize', 0.3, 0), ('autocontrast', 0.4, 0)),
    (('translate_y', 0.4, 3), ('sharpness', 0.2, 6)),
    (('brightness', 0.9, 6), ('saturation', 0.2, 8)),
    (('solarize', 0.5, 2), ('invert', 0.0, 0)),
    (('equalize', 0.2, 0), ('autocontrast', 0.6, 0)),
    (('equalize', 0.2, 0), ('equalize', 0.6, 0)),
    (('saturation', 0.9, 9), ('equalize', 0.6, 0)),
    (('autocontrast', 0.8, 0), ('solarize', 0.2, 8)),
    (('brightness', 0.1, 3), ('saturation', 0.7, 0)),
    (('solarize', 0.4, 5), ('autocontrast', 0.9, 0)),
    (('translate_y', 0.9, 9), ('translate_y', 0.7, 9)),
    (('autocontrast', 0.9, 0), ('solarize', 0.8, 3)),
    (('equalize', 0.8, 0), ('invert', 0.1, 0)),
    (('translate_y', 0.7, 9), ('autocontrast', 0.9, 0)),
)


def auto_augment() -> Callable:
    """Apply one of AutoAugment's 25 pairs for CIFAR-10; each of the two ops happens with its probability."""

    def augment(key: jax.Array, images: jax.Array) -> jax.Array:
        size, count = images.shape[1:3], len(images)
        # Five numbers an image: the pair, two signs, and whether each op happens.
        pair, *chances = jax.random.uniform(key, (5, count))
        position = (pair * len(CIFAR10_POLICY)).astype(jnp.int32)
        for column, sign, chance in zip(zip(*CIFAR10_POLICY), chances[:2], chances[2:]):
            ops, probability, bins = zip(*column)
            strengths = [magnitudes(op, USUAL, 10, size)[b] for op, b in zip(ops, bins)]
            # The sign is an axis of the table, so that one gather picks both.
            table = stack([both_signs(op, m, size) for op, m in zip(ops, strengths)])
            changed = apply(images, draw(table, pair, sign), sorted({*ops} & {*COLOURS}))
            happens = chance < jnp.array(probability)[position]
            images = jnp.where(happens[:, None, None, None], changed, images)
        return images

    return augment


def color_jitter(
    brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0
) -> Callable:
    """Scale by factors from 1-b to 1+b and shift the hue by -h to h, in a random order."""
    limits = {'brightness': brightness, 'contrast': contrast, 'saturation': saturation, 'hue': hue}
    for name, limit in limits.items():
        if not 0 <= limit <= (0.5 if name == 'hue' else float('inf')):
            raise ValueError(f'{name} must be from 0{" to .5" if name == "hue" else " up"}, got {limit}')
    active = [name for name, limit in limits.items() if limit]
    positions = np.array([list(COLOURS).index(name) for name in active], int)
    high = np.array([limits[name] for name in active], np.float32)
    low = -np.array([min(limits[name], 1) for name in active], np.float32)  # no factor is negative

    def augment(key: jax.Array, images: jax.Array) -> jax.Array:
        chances, order = jax.random.uniform(key, (2, len(images), len(active)))
        # Sorting uniform numbers gives each image a random permutation.
        order = order.argsort(1)
        amounts = jnp.take_along_axis(low + chances * (high - low), order, 1)
        # An op may come first for one image and last for another, so each pass must offer every op.
        for i in range(len(active)):
            images = apply_colour(images, jnp.asarray(positions)[order[:, i]], amounts[:, i], active)
        return images

    return augment
