"""Show the first training batch of a run as viewable images: as it is read, and as networks see it."""

import contextlib
import copy
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcifar.augment.pipeline import has_own_batches
from jaxcifar.data.loader import batches
from jaxcifar.engine.step import TrainStep
from jaxcifar.machine import hosts
from jaxcifar.machine.compiler import compiler_options
from jaxcifar.runs.session import Session


class Shown(NamedTuple):
    """Hold viewable images, uint8 [B,H,W,3], and their labels as B titles."""

    images: np.ndarray
    titles: list[str]


def read_first_batch(session: Session, epochs: Sequence[int]) -> tuple[Shown, list[Shown]]:
    """Return the first batch as it is read, and as augmented in the first step of each of these epochs.

    Where members have their own batches or augmentations, the first member's are returned. All hosts must
    call this.
    """
    # This batch is read once: it needs neither workers nor the whole data set on the devices.
    config = copy.deepcopy(session.config)
    config.data.loader, config.data.workers, config.steps_per_call = 'host', 0, 1
    dataset, classes = session.dataset, session.dataset.classes
    # The very function that training augments with, so that the draws are the same.
    step = TrainStep(config, session.population, dataset, session.epoch_steps)
    see = jax.jit(step.augment_batch, compiler_options=compiler_options(once=True))
    with contextlib.closing(batches(config, dataset, session.order, session.mesh, range(1))) as source:
        placed = next(source)
    plain = hosts.fetch(placed)
    plain = of_first(plain, has_own_batches(plain['image']))
    seen = []
    for epoch in epochs:
        images, targets = hosts.fetch(see(placed, jnp.int32(epoch * session.epoch_steps)))
        # Members that share a batch may still augment it independently.
        images = visible(of_first(images, has_own_batches(images)), dataset.mean, dataset.std)
        targets = of_first(targets, targets.first.ndim == 2)
        seen.append(Shown(images, [label(targets, i, classes) for i in range(len(images))]))
    return Shown(plain['image'], [classes[y] for y in plain['label']]), seen


def of_first(tree, own: bool):
    """Return the first member's part of arrays [K,B,…] if members have their own, or all of [B,…]."""
    return jax.tree.map(lambda x: x[0], tree) if own else tree


def visible(images: np.ndarray, mean, std) -> np.ndarray:
    """Turn normalised images back to uint8."""
    # Clipped: rounding and colour operations may leave the range of bytes.
    return np.clip(np.rint(255 * (images * np.array(std) + np.array(mean))), 0, 255).astype(np.uint8)


def label(targets, i: int, classes) -> str:
    """Return 'cat', or where two images are mixed 'cat .70 / ship .30'."""
    first = classes[targets.first[i]]
    if targets.second is None or targets.weight[i] == 1:
        return first
    second, share = classes[targets.second[i]], float(targets.weight[i])
    return f'{first} {share:.2f} / {second} {1 - share:.2f}'
