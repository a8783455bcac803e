"""Apply random changes to a training batch, on the device and inside the compiled step.

A config joins augmentations by name: 'crop(4)+flip+erasing(.25)+cutmix(1.0)'. They come in three
stages: on uint8 pixels, on normalised images, and mixing images with their labels. Every draw depends
on the key alone, except in `alternating_flip`, which depends on the image and the epoch.
"""

import ast
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcifar.augment.erasing import cutout, random_erasing
from jaxcifar.augment.mixing import Mix, Targets, check_together, cutmix, mix_batch, mixup
from jaxcifar.augment.policies import auto_augment, color_jitter, randaugment, trivial_augment
from jaxcifar.machine.errors import UserError, lookup

PADDINGS = {'zeros': 'constant', 'reflect': 'reflect'}


def random_crop(padding: int, mode: str = 'zeros') -> Callable:
    """Shift by up to `padding` pixels in each direction, filling the border with zeros or a reflection."""
    mode = lookup('padding', PADDINGS, mode)
    if not isinstance(padding, int) or padding < 0:
        raise ValueError(f'padding must be a whole number of pixels from 0 up, got {padding!r}')

    def crop(key: jax.Array, images: jax.Array) -> jax.Array:
        batch, height, width, channels = images.shape
        # A corner at `padding` leaves the image in place.
        corners = jax.random.randint(key, (batch, 2), 0, 2 * padding + 1)
        padded = jnp.pad(images, ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)), mode)
        # A slice per image is the fastest form on CPU; one-hot products are slow there.
        return jax.vmap(
            lambda image, corner: jax.lax.dynamic_slice(
                image, (corner[0], corner[1], 0), (height, width, channels)
            )
        )(padded, corners)

    return crop


def random_flip(probability: float = 0.5) -> Callable:
    """Mirror left and right."""
    if not 0 <= probability <= 1:
        raise ValueError(f'probability must be from 0 to 1, got {probability}')

    def flip(key: jax.Array, images: jax.Array) -> jax.Array:
        flips = jax.random.bernoulli(key, probability, (len(images), 1, 1, 1))
        return jnp.where(flips, images[:, :, ::-1], images)

    return flip


def alternating_flip() -> Callable:
    """Mirror each image in every other epoch: a fixed half in even ones, the rest in odd (Jordan 2024)."""

    def flip(images: jax.Array, index: jax.Array, epoch: jax.Array) -> jax.Array:
        # A hash of the index fixes each image's half without a table of the data set.
        hashed = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(jax.random.key(0), i)))(index)
        flips = ((hashed + epoch.astype(hashed.dtype)) % 2 == 1)[:, None, None, None]
        return jnp.where(flips, images[:, :, ::-1], images)

    return flip


# The four stages. Of pixels: (key, uint8 images [B,H,W,C]) -> images.
PIXELS: dict[str, Callable] = {
    'crop': random_crop,
    'flip': random_flip,
    'color_jitter': color_jitter,
    'randaugment': randaugment,
    'trivial_augment': trivial_augment,
    'auto_augment': auto_augment,
}
# Of pixels, by image and epoch: (images, indices [B], epoch) -> images.
INDEXED: dict[str, Callable] = {'alternating_flip': alternating_flip}
# Of normalised images: (key, float32 images) -> images.
NORMALISED: dict[str, Callable] = {'erasing': random_erasing, 'cutout': cutout}
# Of two images and their labels: a `Mix`.
MIXES: dict[str, Callable] = {'mixup': mixup, 'cutmix': cutmix}
AUGMENTATIONS = {**PIXELS, **INDEXED, **NORMALISED, **MIXES}
# The required order of the stages; stages of one rank may come in any order.
RANKS: tuple[tuple[dict, ...], ...] = ((PIXELS, INDEXED), (NORMALISED,), (MIXES,))

# Whole recipes: seed000 and strong_* of the expert networks, fusion_* of the fusion rules.
PRESETS = {
    'basic': 'crop(4)+flip',
    'seed000': 'crop(4,"reflect")+flip+erasing(.25)+mixup(.2)',
    'strong_resnet': 'crop(4,"reflect")+flip+color_jitter(.2,.2,.2,.1)+erasing(.25)+cutmix(1.0)',
    'strong_densenet': 'crop(4,"reflect")+flip+randaugment(2,9)+erasing(.1)+cutmix(1.0)',
    'strong_wrn': 'crop(4,"reflect")+flip+randaugment(3,14)+erasing(.3)+cutmix(1.0)',
    'strong_resnext': 'crop(4,"reflect")+flip+trivial_augment+erasing(.25)+cutmix(1.0)',
    'fusion_multiplicative': 'crop(4)+flip+cutmix(1.0)',
    'fusion_multiplicativeAddition': 'crop(4)+flip+randaugment(3,14)+erasing(.3)',
    'fusion_concatenation': 'crop(4)+flip+randaugment(3,14)+erasing(.3)',
    'fusion_TransformerBase': 'crop(4)+flip+trivial_augment+erasing(.25)',
}


class Pipeline(NamedTuple):
    """Hold a config's parsed `augment`: (stage, function) pairs in order, and the mixes."""

    steps: list[tuple[dict, Callable]]
    mixes: list[Mix]


class Term(NamedTuple):
    """Hold one parsed augmentation; its stage is one of PIXELS, INDEXED, NORMALISED and MIXES."""

    name: str
    stage: dict
    made: Any  # what the stage's function returns

    @property
    def rank(self) -> int:
        """Return the position of its stage in RANKS."""
        return next(i for i, stages in enumerate(RANKS) if self.stage in stages)


def parse(text: str) -> Pipeline:
    """Read 'crop(4, mode="reflect")+flip', a preset's name, or both joined; '' or 'none' changes nothing.

    Raises `UserError` for an unknown name, a wrong parameter or a wrong order.
    """
    terms = [] if text in ('', 'none') else [_call(node) for node in _terms(text)]
    # Terms added to a preset are sorted into place. Without a preset, the user's order must be right.
    if any(name in text for name in PRESETS):
        terms.sort(key=lambda term: term.rank)
    for before, term in pairwise(terms):
        if term.rank < before.rank:
            names = ' | '.join(' '.join(n for stage in stages for n in stage) for stages in RANKS)
            raise UserError(f'augment: expected the order {names}, got {term.name} after {before.name}')
    mixes = [term.made for term in terms if term.stage is MIXES]
    check_together(mixes)
    return Pipeline([(term.stage, term.made) for term in terms if term.stage is not MIXES], mixes)


def _terms(text: str) -> list[ast.expr]:
    """Parse the terms joined by +, with each preset replaced by its own terms."""
    try:
        node = ast.parse(text, mode='eval').body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UserError(f'augment must be written like crop(4)+flip, got {text!r}') from None
    terms: list[ast.expr] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        # Python nests a sum to the left, so its last term comes out first.
        terms.insert(0, node.right)
        node = node.left
    expanded: list[ast.expr] = []
    for term in (node, *terms):
        preset = PRESETS.get(term.id) if isinstance(term, ast.Name) else None
        expanded += _terms(preset) if preset else [term]
    return expanded


def _call(node: ast.expr) -> Term:
    """Build the augmentation that a name, with or without literal parameters, stands for."""
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    text = ast.unparse(node)
    if not isinstance(call.func, ast.Name):
        raise UserError(f'augment must be written like crop(4)+flip, got {text!r} in it')
    name = call.func.id
    lookup('augmentation', AUGMENTATIONS | PRESETS, name)
    if name in PRESETS:
        raise UserError(f'expected the preset {name} without parameters, got {text}; it is {PRESETS[name]}')
    stage = next(stage for stages in RANKS for stage in stages if name in stage)
    try:
        args = [_literal(a) for a in call.args]
        keywords = {k.arg or '**': _literal(k.value) for k in call.keywords}
        return Term(name, stage, stage[name](*args, **keywords))
    except (TypeError, ValueError, IndexError, OverflowError) as error:
        raise UserError(f'wrong parameters of {text!r} in augment: {error}') from None


def _literal(node: ast.expr) -> Any:
    """Read a number, a quoted word, or a tuple of them."""
    try:
        return ast.literal_eval(node)
    except ValueError:  # its message shows an object of Python's parser
        raise ValueError(f'expected numbers or quoted words, got {ast.unparse(node)}') from None


def has_own_batches(images) -> bool:
    """Tell whether images are [K,B,H,W,C], a batch for each member, or [B,H,W,C], one that all share."""
    return images.ndim == 5


def normalise(images: jax.Array, mean, std) -> jax.Array:
    """Normalise uint8 [...,C] by the training images' mean and standard deviation, as float32."""
    mean, std = jnp.asarray(mean, jnp.float32) * 255, jnp.asarray(std, jnp.float32) * 255
    return (images.astype(jnp.float32) - mean) / std


class Augmentation:
    """Turn (key, batch, epoch) into (normalised float32 images, `Targets`).

    batch: 'image' uint8 [B,H,W,C], 'label' [B] and 'index' [B], each image's position among the
    training images; or, where members have their own batches, [K,B,...] with K keys.
    """

    def __init__(self, text: str, mean, std):
        self.steps, self.mixes = parse(text)
        self.mean, self.std = mean, std

    def __call__(self, key: jax.Array, batch: dict[str, jax.Array], epoch: jax.Array):
        if has_own_batches(batch['image']):
            return jax.vmap(self._augment, (0, 0, None))(key, batch, epoch)
        return self._augment(key, batch, epoch)

    def _augment(self, key: jax.Array, batch: dict[str, jax.Array], epoch: jax.Array):
        images = batch['image']
        # Each step's key depends on its position, so appending a step leaves earlier draws unchanged.
        keys = [jax.random.fold_in(key, i) for i in range(len(self.steps) + 1)]
        for (stage, step), step_key in zip(self.steps, keys):
            if stage is NORMALISED and images.dtype == jnp.uint8:
                images = normalise(images, self.mean, self.std)
            images = step(images, batch['index'], epoch) if stage is INDEXED else step(step_key, images)
        # Where no step works on normalised images, they are not normalised yet.
        if images.dtype == jnp.uint8:
            images = normalise(images, self.mean, self.std)
        if not self.mixes:
            return images, Targets(batch['label'])
        return mix_batch(self.mixes, keys[-1], images, batch['label'])
