"""Evaluate weights: from images to logits to the scores of members and ensemble."""

import contextlib
import math
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jaxcifar.augment.pipeline import normalise
from jaxcifar.data.loader import in_order
from jaxcifar.data.splits import Images
from jaxcifar.engine.couplings import has_head, make_head
from jaxcifar.engine.head import append_fused_logits
from jaxcifar.engine.population import Population
from jaxcifar.engine.state import Weights
from jaxcifar.machine import hosts, status
from jaxcifar.machine.compiler import compiler_options
from jaxcifar.machine.errors import UserError, lookup
from jaxcifar.runs.metrics import (
    compare_fused,
    log_probabilities,
    mean_and_std,
    mean_of_probabilities,
    summarise,
)
from jaxcifar.runs.session import Session
from jaxcifar.runs.trained import TrainedRun, open_trained

IN_FLIGHT = 4  # batches that the host may be ahead of the devices
KEPT = 2**28  # bytes of images to evaluate that stay on the devices; CIFAR's test images are 31 MB


class EvalStep:
    """Turn `Weights` into a function from uint8 images [B,H,W,C] to logits [K,B,C].

    The logits are [K+1,B,C] if the coupling has a head, whose prediction is the last row.
    """

    def __init__(self, config: ConfigDict, population: Population, dataset):
        head = make_head(config, population)
        # Compiled separately, so that exported weights, which `show` gives, score the same to the bit.
        self._show = jax.jit(population.show)
        # Images already on the devices, with their batch size and batches: they stay for the next evaluation.
        self._sent: list[tuple[np.ndarray, int, list[tuple[jax.Array, int]]]] = []

        def forward(shown, weights: Weights, images: jax.Array) -> jax.Array:
            def predict(images: jax.Array) -> jax.Array:
                # False: evaluation uses the running statistics, so a padded batch changes no image's logits.
                logits, features, _ = population.forward(shown, weights.stats, images, False)
                return append_fused_logits(head, weights.head, logits, features)

            images = normalise(images, dataset.mean, dataset.std)
            return over_views(predict, images, config.eval)

        self._forward = jax.jit(forward, compiler_options=compiler_options())

    def __call__(self, weights: Weights) -> Callable[[jax.Array], jax.Array]:
        """Return the function of images for these weights."""
        return partial(self._forward, self._show(weights.params), weights._replace(params=None))

    def batches(self, images, size: int, workers: int, sharding: NamedSharding) -> Generator:
        """Yield (images on the devices [size,H,W,C], how many of them count); the caller must close it.

        Arrays stay on the devices for the next time while they take no more than KEPT bytes together.
        """
        for array, sent_size, sent in self._sent:
            if array is images and sent_size == size:
                yield from sent
                return
        sent = []
        kept = sum(array.nbytes for array, _, _ in self._sent)
        # Files are read anew each time: their pixels may be more than a device holds.
        keep = isinstance(images, np.ndarray) and kept + images.nbytes <= KEPT
        with contextlib.closing(in_order(images, size, workers)) as parts:
            for part in parts:
                # A last, shorter batch is filled up: evaluation has no batch statistics to disturb.
                filled = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), part.dtype)])
                batch = hosts.put(filled, sharding), len(part)
                if keep:
                    sent.append(batch)
                yield batch
        if keep:
            # Only a whole pass is kept: an interrupted one would lack its last batches.
            self._sent.append((images, size, sent))


def over_views(predict: Callable, images: jax.Array, views: ConfigDict) -> jax.Array:
    """Return predict(images [B,H,W,C]), averaged over the views of eval.flip and eval.shift."""

    def both_ways(images: jax.Array) -> jax.Array:
        logits = predict(images)
        return (logits + predict(images[:, :, ::-1])) / 2 if views.flip else logits

    logits = both_ways(images)
    if not views.shift:
        return logits
    up, down = (both_ways(moved) for moved in shifted(images, views.shift))
    # The unmoved image weighs as much as the two moved ones together.
    return logits / 2 + (up + down) / 4


def shifted(images: jax.Array, pixels: int) -> tuple[jax.Array, jax.Array]:
    """Shift images [B,H,W,C] up and left, and down and right; the gaps are filled by reflection."""
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (pixels,) * 2, (pixels,) * 2, (0, 0)), 'reflect')
    return padded[:, 2 * pixels :, 2 * pixels :], padded[:, :height, :width]


def predict_logits(
    step: EvalStep, weights: Weights, images, config: ConfigDict, mesh: Mesh, poll: Callable = lambda: None
) -> np.ndarray:
    """Return logits [K,N,C] of images [N,H,W,C] or of files, [K+1,N,C] where the coupling has a head.

    `poll()` is called between batches.
    """
    shards = mesh.shape['data']
    # A batch must split evenly over the data shards, and need not be larger than the number of images.
    size = math.ceil(min(config.eval.batch_size, len(images)) / shards) * shards
    sharding = NamedSharding(mesh, PartitionSpec('data'))
    see, outputs, counts = step(weights), list[jax.Array](), list[int]()
    with contextlib.closing(step.batches(images, size, config.data.workers, sharding)) as batches:
        for batch, count in batches:
            poll()
            outputs.append(see(batch))
            counts.append(count)
            # Without a limit the host would queue all batches, and their images fill the memory.
            jax.block_until_ready(outputs[-IN_FLIGHT:][0])
    return np.concatenate([hosts.fetch(z)[:, :n] for z, n in zip(outputs, counts)], 1)


def member_metrics(logits: np.ndarray, images: Images) -> dict[str, np.ndarray]:
    """Return the columns of metrics.csv, [K] each, from logits [K,N,C]; loss is the NLL."""
    members, _ = evaluate_logits(logits, images)
    columns = {k: np.array([m[k] for m in members]) for k in members[0]}
    return {'loss': columns.pop('nll'), **columns}


def evaluate_logits(logits: np.ndarray, images: Images) -> tuple[list[dict], dict]:
    """Return metrics of each member and of the ensemble from logits [K,N,C] of N images."""
    log_p = log_probabilities(logits)
    ensemble = summarise(mean_of_probabilities(log_p), images.labels, images.class_counts)
    return [summarise(member, images.labels, images.class_counts) for member in log_p], ensemble


def compare(names: list[str], logits: np.ndarray, images: Images) -> dict:
    """Return the fused prediction's scores from logits [K+1,N,C], and the scores that it has to beat."""
    return compare_fused(logits, names, images.labels, images.class_counts)


class Scored(NamedTuple):
    """Hold weights, the K steps they are from, one per member, and logits by the name of the image set."""

    weights: Weights
    steps: list[int]
    logits: dict[str, np.ndarray]


class Evaluation:
    """Evaluate a session's networks on its images, with whatever weights.

    The networks are compiled once for each shape of a batch. `poll()` is called between batches.
    """

    def __init__(self, session: Session, poll: Callable = lambda: None):
        self.session, self.poll = session, poll
        self.eval_step = EvalStep(session.config, session.population, session.dataset)

    def images(self, name: str) -> Images:
        """Return the images called `name`: train, validation, test, or a part of the split."""
        return lookup('split', dict(self.session.images), name)

    def logits(self, weights: Weights, name: str) -> np.ndarray:
        """Return logits of the images called `name`, [K,N,C], or [K+1,N,C] where the coupling has a head."""
        images = self.images(name).images
        with status.during(f'evaluating {len(images):,} {name} images'):
            return self._logits(weights, images)

    def _logits(self, weights: Weights, images) -> np.ndarray:
        session = self.session
        return predict_logits(self.eval_step, weights, images, session.config, session.mesh, self.poll)

    def scores(self, logits: np.ndarray, name: str) -> dict:
        """Return the metrics of `logits` on the images called `name`.

        Keys: members, K dicts with names; mean and std over members; ensemble; with a head also fusion.
        """
        images, names = self.images(name), self.session.names
        members, ensemble = evaluate_logits(logits[: len(names)], images)
        mean, std = mean_and_std(members)
        rows = [{'name': name, **scores} for name, scores in zip(names, members)]
        fusion = {'fusion': compare(names, logits, images)} if has_head(self.session.config) else {}
        return {'members': rows, 'mean': mean, 'std': std, 'ensemble': ensemble, **fusion}


def open_evaluation(path: Path) -> Evaluation:
    """Return the evaluation of a run; `UserError` if there is none, or the images here are not the run's."""
    trained = open_trained(path)
    # This is refused before the images of an export would be downloaded.
    if not isinstance(trained, TrainedRun):
        raise UserError(f'expected the workdir of a run, got {path}, which holds only weights')
    return Evaluation(trained.with_images())
