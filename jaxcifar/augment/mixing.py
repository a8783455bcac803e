"""Mix each image of a batch with another, and their labels: Mixup and CutMix."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcifar.machine.errors import UserError, lookup

PER = {'batch': 'batch', 'image': 'image'}


class Targets(NamedTuple):
    """Hold the labels to train on, [B] or [K,B]; mixed images also have a second label and a share."""

    first: jax.Array
    second: jax.Array | None = None
    weight: jax.Array | None = None  # λ, the share of the first

    def mixed(self, of: Callable) -> jax.Array:
        """Return λ·of(first) + (1-λ)·of(second); `of` maps labels to one number an example."""
        value = of(self.first)
        if self.second is None or self.weight is None:
            return value
        return self.weight * value + (1 - self.weight) * of(self.second)


class Mix(NamedTuple):
    """Hold one way to mix: `own_share` is (key, count, height, width) -> the share kept of each pixel."""

    name: str
    probability: float
    per: str
    own_share: Callable


def _beta(key: jax.Array, alpha: float, shape: tuple[int, ...]) -> jax.Array:
    """Draw from Beta(α, α).

    α = 1 is uniform, and needs no rejection loop, whose end the host of a GPU would have to wait for.
    """
    return jax.random.uniform(key, shape) if alpha == 1 else jax.random.beta(key, alpha, alpha, shape)


def mixup(alpha: float = 1.0, probability: float = 1.0, per: str = 'batch') -> Mix:
    """Mix λ·x + (1-λ)·x' with λ ~ Beta(α, α), one per batch or per image (Zhang et al. 2018)."""
    _check(alpha, probability, per)

    def own_share(key: jax.Array, count: int, height: int, width: int) -> jax.Array:
        return _beta(key, alpha, (count, 1, 1))

    return Mix('mixup', probability, per, own_share)


def cutmix(alpha: float = 1.0, probability: float = 1.0, per: str = 'batch') -> Mix:
    """Paste a box of another image (Yun et al. 2019).

    The box has sides √(1-λ) of the image's, with λ ~ Beta(α, α), and a random centre. It is clipped at
    the edges, so the share kept may be larger than λ.
    """
    _check(alpha, probability, per)

    def own_share(key: jax.Array, count: int, height: int, width: int) -> jax.Array:
        share, place = jax.random.split(key)
        # The kept share follows from the clipped box, not from λ.
        half = jnp.sqrt(1 - _beta(share, alpha, (count,))) / 2
        y, x = jax.random.uniform(place, (2, count, 1))

        def inside(chance, size: int):
            centre = (chance * size).astype(jnp.int32)
            reach = (half * size).astype(jnp.int32)[:, None]
            return (jnp.arange(size) >= centre - reach) & (jnp.arange(size) < centre + reach)

        box = inside(y, height)[:, :, None] & inside(x, width)[:, None]
        return 1 - box.astype(jnp.float32)

    return Mix('cutmix', probability, per, own_share)


def _check(alpha: float, probability: float, per: str):
    if not 0 < alpha < float('inf'):
        raise ValueError(f'alpha must be above 0 and finite, got {alpha}')
    if not 0 <= probability <= 1:
        raise ValueError(f'probability must be from 0 to 1, got {probability}')
    lookup('per', PER, per)


def check_together(mixes: list[Mix]):
    """Raise `UserError` unless one draw can choose between the mixes."""
    if len({mix.per for mix in mixes}) > 1:
        raise UserError(
            f'expected the same per for {" and ".join(m.name for m in mixes)}, which share a draw'
        )
    if sum(mix.probability for mix in mixes) > 1:
        chances = ' + '.join(str(mix.probability) for mix in mixes)
        names = ' and '.join(mix.name for mix in mixes)
        raise UserError(
            f'expected chances of {names} of at most 1 together, got {chances}: lower one of them'
        )


def mix_batch(mixes: list[Mix], key: jax.Array, images: jax.Array, labels: jax.Array):
    """Return (mixed images [B,H,W,C], Targets); one draw chooses at most one of the mixes.

    Each image is mixed with its partner in a random permutation of the batch.
    """
    batch, height, width, _ = images.shape
    count = 1 if mixes[0].per == 'batch' else batch
    # Every mix has a key of its own, so that adding one changes no draw of the others.
    first, second, *keys = jax.random.split(key, 2 + len(mixes))
    # Each mix owns a piece of [0, 1), as long as its probability; none owns what is left.
    chance = jax.random.uniform(first, (count, 1, 1))
    partner = jax.random.permutation(second, batch)
    # A share of 1 leaves the image as it is, where no mix happens.
    kept, start = jnp.ones((count, 1, 1)), 0.0
    for mix, mix_key in zip(mixes, keys):
        happens = (start <= chance) & (chance < start + mix.probability)
        kept = jnp.where(happens, mix.own_share(mix_key, count, height, width), kept)
        start += mix.probability
    weight = jnp.broadcast_to(kept.mean((1, 2)), labels.shape)
    mixed = kept[..., None] * images + (1 - kept[..., None]) * images[partner]
    return mixed, Targets(labels, labels[partner], weight)
