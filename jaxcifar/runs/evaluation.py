"""Evaluate weights: images to logits to the numbers of members and ensemble."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jaxcifar.augment.pipeline import normalise
from jaxcifar.config import saved
from jaxcifar.data.datasets import Dataset, load_dataset
from jaxcifar.data.loader import in_order
from jaxcifar.data.splits import Images
from jaxcifar.engine.couplings import make_head
from jaxcifar.engine.head import join
from jaxcifar.engine.population import Population
from jaxcifar.engine.state import Weights
from jaxcifar.machine import hosts
from jaxcifar.machine.compiler import compiler_options
from jaxcifar.machine.errors import UserError
from jaxcifar.runs import resolve
from jaxcifar.runs.metrics import compare_fused, log_probabilities, mean_of_probabilities, summarise
from jaxcifar.runs.session import Session, prepare
from jaxcifar.runs.workdirs import check_dataset

IN_FLIGHT = 4  # batches that the host may be ahead of the devices


def make_eval_step(config: ConfigDict, population: Population, dataset):
    """`Weights` -> (uint8 images [B,H,W,C] -> logits [K,B,C]) of the weights as the networks see them.

    [K+1,B,C] where the coupling has a head, whose prediction is the last.
    """
    head = make_head(config, population)
    # Apart from what follows: whoever exports what `show` gives gets the same numbers, to the bit.
    show = jax.jit(population.show)

    def forward(shown, weights: Weights, images: jax.Array) -> jax.Array:
        def predict(images: jax.Array) -> jax.Array:
            logits, features, _ = population.forward(shown, weights.stats, images, False)
            return join(head, weights.head, logits, features)

        def both_ways(images: jax.Array) -> jax.Array:
            logits = predict(images)
            return (logits + predict(images[:, :, ::-1])) / 2 if config.eval.flip else logits

        images = normalise(images, dataset.mean, dataset.std)
        logits = both_ways(images)
        if not config.eval.shift:
            return logits
        up, down = (both_ways(moved) for moved in shifted(images, config.eval.shift))
        return logits / 2 + (up + down) / 4

    compiled = jax.jit(forward, compiler_options=compiler_options())
    return lambda weights: partial(compiled, show(weights.params), weights._replace(params=None))


def shifted(images: jax.Array, pixels: int) -> tuple[jax.Array, jax.Array]:
    """Move images [B,H,W,C] up and left, and down and right; what comes in is a reflection."""
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (pixels,) * 2, (pixels,) * 2, (0, 0)), 'reflect')
    return padded[:, 2 * pixels :, 2 * pixels :], padded[:, :height, :width]


def predict_logits(
    eval_step, weights: Weights, images, config: ConfigDict, mesh: Mesh, poll: Callable = lambda: None
) -> np.ndarray:
    """Logits [K,N,C] of images [N,H,W,C] or of files, [K+1,N,C] where the coupling has a head.

    `poll()` is called between batches.
    """
    shards = mesh.shape['data']
    batch = math.ceil(min(config.eval.batch_size, len(images)) / shards) * shards
    sharding = NamedSharding(mesh, PartitionSpec('data'))
    see, outputs, sizes = eval_step(weights), list[jax.Array](), list[int]()
    with contextlib.closing(in_order(images, batch, config.data.workers)) as parts:
        for part in parts:
            poll()
            # A last, shorter batch is filled up: evaluation has no batch statistics to disturb.
            filled = np.concatenate([part, np.zeros((batch - len(part), *part.shape[1:]), part.dtype)])
            outputs.append(see(hosts.put(filled, sharding)))
            sizes.append(len(part))
            jax.block_until_ready(outputs[-IN_FLIGHT:][0])
    return np.concatenate([hosts.fetch(z)[:, :n] for z, n in zip(outputs, sizes)], 1)


def member_metrics(logits: np.ndarray, images: Images) -> dict[str, np.ndarray]:
    """The columns of metrics.csv, [K] each, from logits [K,N,C]; loss is the NLL."""
    members, _ = evaluate_logits(logits, images)
    columns = {k: np.array([m[k] for m in members]) for k in members[0]}
    return {'loss': columns.pop('nll'), **columns}


def evaluate_logits(logits: np.ndarray, images: Images) -> tuple[list[dict], dict]:
    """Metrics of each member and of the ensemble from logits [K,N,C] of N images."""
    log_p = log_probabilities(logits)
    ensemble = summarise(mean_of_probabilities(log_p), images.labels, images.class_counts)
    return [summarise(member, images.labels, images.class_counts) for member in log_p], ensemble


def compare(names: list[str], logits: np.ndarray, images: Images) -> dict:
    """Return the fused prediction's scores from logits [K+1,N,C], and what it has to beat."""
    return compare_fused(logits, names, images.labels, images.class_counts)


def _as_trained(dataset: Dataset, trained_on: dict) -> Dataset:
    """The data set normalised as that which networks learnt; `UserError` where it is of another kind."""
    found = dataset.num_classes, dataset.image_size
    wanted = len(trained_on['classes']), trained_on['image_size']
    if found != wanted:
        here, there = (f'{classes} classes of {size} pixels' for classes, size in (found, wanted))
        raise UserError(f'{dataset.name} has {here}, and not {there}: name another --dataset')
    return replace(dataset, mean=tuple(trained_on['mean']), std=tuple(trained_on['std']))


class Scored(NamedTuple):
    """Weights, the step of each of the K members' weights, and logits by the names of the images."""

    weights: Weights
    steps: list[int]
    logits: dict[str, np.ndarray]


class Evaluation:
    """A session's images and networks, ready to be evaluated with whatever weights.

    The networks are compiled once for each shape of a batch. `poll()` is called between batches.
    """

    def __init__(self, session: Session, poll: Callable = lambda: None):
        self.session, self.poll = session, poll
        self.eval_step = make_eval_step(session.config, session.population, session.dataset)

    def logits(self, weights: Weights, name: str) -> np.ndarray:
        """Logits of the images called `name`, [K,N,C], or [K+1,N,C] where the coupling has a head."""
        images, session = self.session.images[name].images, self.session
        return predict_logits(self.eval_step, weights, images, session.config, session.mesh, self.poll)


def open_evaluation(
    workdir: Path,
    flip: bool = False,
    config: ConfigDict | None = None,
    trained_on: dict | None = None,
) -> Evaluation:
    """Return the evaluation of a run, or by their `config` of exported networks.

    trained_on: classes, image_size, mean and std of exported networks. Raises `UserError` where the images
    are not those of the run.
    """
    of_run, config = config is None, config or saved.load(workdir / 'config.json')
    config.eval.flip = config.eval.flip or flip
    config.devices = None
    config.data.root = config.data.root or resolve.data_root()
    dataset = load_dataset(config.dataset, config.data.root, config.data.image_size)
    session = prepare(config, _as_trained(dataset, trained_on) if trained_on else dataset)
    if of_run:
        check_dataset(workdir, session)
    return Evaluation(session)
