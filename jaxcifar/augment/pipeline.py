"""Random changes to a training batch, on the device and inside the compiled step.

A config joins augmentations by name: 'crop(4)+flip+erasing(.25)+cutmix(1.0)'. They come in three
stages: on uint8 pixels, on normalised images, and mixing images with their labels. Every draw is a
function of the key alone, but for `alternating_flip`, which goes by the image and the epoch.
"""

import ast
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcifar.augment.erasing import cutout, random_erasing
from jaxcifar.augment.mixing import Mix, Targets, check_together, cutmix, mix_batch, mixup
from jaxcifar.augment.policies import auto_augment, color_jitter, randaugment, trivial_augment
from jaxcifar.machine.errors import UserError, lookup

PADDINGS = {'zeros': 'constant', 'reflect': 'reflect'}


def random_crop(padding: int, mode: str = 'zeros') -> Callable:
    """Shift by up to `padding` pixels in each direction; what comes in is zeros, or a reflection."""
    mode = lookup('padding', PADDINGS, mode)
    if not isinstance(padding, int) or padding < 0:
        raise ValueError(f'padding={padding!r} is not a number of pixels')

    def crop(key: jax.Array, images: jax.Array) -> jax.Array:
        batch, height, width, channels = images.shape
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
        raise ValueError(f'probability={probability} is not from 0 to 1')

    def flip(key: jax.Array, images: jax.Array) -> jax.Array:
        flips = jax.random.bernoulli(key, probability, (len(images), 1, 1, 1))
        return jnp.where(flips, images[:, :, ::-1], images)

    return flip


def alternating_flip() -> Callable:
    """Mirror every image in every other epoch; a fixed half of them in the even ones (Jordan 2024)."""

    def flip(images: jax.Array, index: jax.Array, epoch: jax.Array) -> jax.Array:
        hashed = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(jax.random.key(0), i)))(index)
        flips = ((hashed + epoch.astype(hashed.dtype)) % 2 == 1)[:, None, None, None]
        return jnp.where(flips, images[:, :, ::-1], images)

    return flip


# (key, uint8 images [B,H,W,C]) -> images
PIXELS: dict[str, Callable] = {
    'crop': random_crop,
    'flip': random_flip,
    'color_jitter': color_jitter,
    'randaugment': randaugment,
    'trivial_augment': trivial_augment,
    'auto_augment': auto_augment,
}
INDEXED: dict[str, Callable] = {
    'alternating_flip': alternating_flip
}  # (images, indices [B], epoch) -> images
NORMALISED: dict[str, Callable] = {
    'erasing': random_erasing,
    'cutout': cutout,
}  # (key, float32 images) -> images
# a `Mix` of images and labels of two
MIXES: dict[str, Callable] = {'mixup': mixup, 'cutmix': cutmix}
AUGMENTATIONS = {**PIXELS, **INDEXED, **NORMALISED, **MIXES}

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
    """What a config's augment says: (stage, function) in their order, and the mixes."""

    steps: list[tuple[dict, Callable]]
    mixes: list[Mix]


def parse(text: str) -> Pipeline:
    """'crop(4, mode="reflect")+flip', a preset's name, or both joined; '' or 'none' changes nothing."""
    terms = [] if text in ('', 'none') else [_call(node) for node in _terms(text)]
    order: list[tuple[dict, ...]] = [(PIXELS, INDEXED), (NORMALISED,), (MIXES,)]
    if any(name in text for name in PRESETS):  # what a preset is continued by goes where it belongs
        terms.sort(key=lambda term: next(i for i, stages in enumerate(order) if term[1] in stages))
    ranks = [next(i for i, stages in enumerate(order) if stage in stages) for _, stage, _ in terms]
    for i in range(1, len(terms)):
        if ranks[i] < ranks[i - 1]:
            names = ' | '.join(' '.join(n for stage in stages for n in stage) for stages in order)
            raise UserError(
                f'augment={text!r} has {terms[i][0]} after {terms[i - 1][0]}; the order is {names}'
            )
    mixes = [made for _, stage, made in terms if stage is MIXES]
    check_together(mixes)
    return Pipeline([(stage, made) for _, stage, made in terms if stage is not MIXES], mixes)


def _terms(text: str) -> list[ast.expr]:
    try:
        node = ast.parse(text, mode='eval').body
    except SyntaxError:
        raise UserError(f'cannot read augment={text!r}; write it like crop(4)+flip') from None
    terms: list[ast.expr] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        terms.insert(0, node.right)
        node = node.left
    expanded: list[ast.expr] = []
    for term in (node, *terms):
        preset = PRESETS.get(term.id) if isinstance(term, ast.Name) else None
        expanded += _terms(preset) if preset else [term]
    return expanded


def _call(node: ast.expr) -> tuple[str, dict, Any]:
    """(name, stage, what its maker returns)"""
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    text = ast.unparse(node)
    if not isinstance(call.func, ast.Name):
        raise UserError(f'cannot read {text!r} in augment; write it like crop(4)+flip')
    name = call.func.id
    lookup('augmentation', AUGMENTATIONS | PRESETS, name)
    if name in PRESETS:
        raise UserError(f'{name} is a preset and takes no parameters; it is {PRESETS[name]}')
    stage = next(stage for stage in (PIXELS, INDEXED, NORMALISED, MIXES) if name in stage)
    try:
        args = [ast.literal_eval(a) for a in call.args]
        keywords = {k.arg or '**': ast.literal_eval(k.value) for k in call.keywords}
        return name, stage, stage[name](*args, **keywords)
    except (TypeError, ValueError) as error:
        raise UserError(f'wrong parameters of {text!r} in augment: {error}') from None


def normalise(images: jax.Array, mean, std) -> jax.Array:
    """uint8 [...,C] -> float32 with the mean and standard deviation of the training images taken out."""
    mean, std = jnp.asarray(mean, jnp.float32) * 255, jnp.asarray(std, jnp.float32) * 255
    return (images.astype(jnp.float32) - mean) / std


class Augmentation:
    """(key, batch, epoch) -> (normalised float32 images, `Targets`).

    batch: 'image' uint8 [B,H,W,C], 'label' [B] and 'index' [B], each image's number among the
    training images; or [K,B,...] where members have their own, with K keys.
    """

    def __init__(self, text: str, mean, std):
        self.steps, self.mixes = parse(text)
        self.mean, self.std = mean, std

    def __call__(self, key: jax.Array, batch: dict[str, jax.Array], epoch: jax.Array):
        if batch['image'].ndim == 4:
            return self._augment(key, batch, epoch)
        return jax.vmap(self._augment, (0, 0, None))(key, batch, epoch)

    def _augment(self, key: jax.Array, batch: dict[str, jax.Array], epoch: jax.Array):
        images = batch['image']
        keys = [jax.random.fold_in(key, i) for i in range(len(self.steps) + 1)]
        for (stage, step), step_key in zip(self.steps, keys):
            if stage is NORMALISED and images.dtype == jnp.uint8:
                images = normalise(images, self.mean, self.std)
            images = step(images, batch['index'], epoch) if stage is INDEXED else step(step_key, images)
        if images.dtype == jnp.uint8:
            images = normalise(images, self.mean, self.std)
        if not self.mixes:
            return images, Targets(batch['label'])
        return mix_batch(self.mixes, keys[-1], images, batch['label'])
