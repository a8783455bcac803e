"""Random changes to a training batch, on the device and inside the compiled step.

An augmentation is a function of (key, uint8 images [B,H,W,C]) made by calling its name with
parameters; a config joins several: 'crop(4)+flip'. Every draw is a function of the key alone.
"""

import ast
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcifar.errors import UserError, lookup

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


AUGMENTATIONS = {'crop': random_crop, 'flip': random_flip}


def parse(text: str) -> Callable:
    """'crop(4, mode="reflect")+flip' -> a function of (key, images); '' or 'none' changes nothing."""
    steps = [] if text in ('', 'none') else [_call(node) for node in _terms(text)]

    def augment(key: jax.Array, images: jax.Array) -> jax.Array:
        for i, step in enumerate(steps):
            images = step(jax.random.fold_in(key, i), images)
        return images

    return augment


def _terms(text: str) -> list[ast.expr]:
    try:
        node = ast.parse(text, mode='eval').body
    except SyntaxError:
        raise UserError(f'cannot read augment={text!r}; write it like crop(4)+flip') from None
    terms: list[ast.expr] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        terms.insert(0, node.right)
        node = node.left
    return [node, *terms]


def _call(node: ast.expr) -> Callable:
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    text = ast.unparse(node)
    if not isinstance(call.func, ast.Name):
        raise UserError(f'cannot read {text!r} in augment; write it like crop(4)+flip')
    make = lookup('augmentation', AUGMENTATIONS, call.func.id)
    try:
        args = [ast.literal_eval(a) for a in call.args]
        return make(*args, **{k.arg or '**': ast.literal_eval(k.value) for k in call.keywords})
    except (TypeError, ValueError) as error:
        raise UserError(f'wrong parameters of {text!r} in augment: {error}') from None


def normalise(images: jax.Array, mean, std) -> jax.Array:
    """uint8 [...,C] -> float32 with the mean and standard deviation of the training images taken out."""
    mean, std = jnp.asarray(mean, jnp.float32) * 255, jnp.asarray(std, jnp.float32) * 255
    return (images.astype(jnp.float32) - mean) / std


def augment_batch(augment: Callable, keys: jax.Array, images: jax.Array) -> jax.Array:
    """Apply to a batch [B,H,W,C] with one key, or to one batch per member [K,B,H,W,C] with K keys."""
    return augment(keys, images) if images.ndim == 4 else jax.vmap(augment)(keys, images)
