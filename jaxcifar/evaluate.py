"""Evaluate a run's weights: python -m jaxcifar.evaluate --workdir DIR

Prints JSON: accuracy, top-5, negative log-likelihood (nats) and calibration error of each member,
their mean and standard deviation, and of the ensemble (the mean of the members' probabilities).
"""

import argparse
import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jaxcifar import config as configs
from jaxcifar.checkpoint import BestWeights, Checkpoints
from jaxcifar.cli import run_command
from jaxcifar.data.datasets import load_dataset
from jaxcifar.data.loader import in_order
from jaxcifar.data.splits import Images, evaluation_images, make_split
from jaxcifar.errors import UserError, lookup
from jaxcifar.members import member_names
from jaxcifar.metrics import log_probabilities, mean_of_probabilities, summarise
from jaxcifar.population import Population, make_mesh
from jaxcifar.state import eval_weights, init_state
from jaxcifar.step import make_eval_step


def predict_logits(
    eval_step, weights, images, config: ConfigDict, mesh: Mesh, poll: Callable = lambda: None
) -> np.ndarray:
    """Logits [K,N,C] of images [N,H,W,C] or of files; `poll()` is called between batches."""
    params, stats = weights
    shards = mesh.shape['data']
    batch = math.ceil(min(config.eval.batch_size, len(images)) / shards) * shards
    sharding = NamedSharding(mesh, PartitionSpec('data'))
    outputs = []
    with contextlib.closing(in_order(images, batch, config.data.workers)) as parts:
        for part in parts:
            poll()
            # A last, shorter batch is filled up: evaluation has no batch statistics to disturb.
            filled = np.concatenate([part, np.zeros((batch - len(part), *part.shape[1:]), part.dtype)])
            logits = eval_step(params, stats, jax.device_put(filled, sharding))
            outputs.append(jax.device_get(logits)[:, : len(part)])
    return np.concatenate(outputs, 1)


def member_metrics(logits: np.ndarray, images: Images) -> dict[str, np.ndarray]:
    """The columns of metrics.csv, [K] each, from logits [K,N,C]; loss is the NLL."""
    members, _ = evaluate_logits(logits, images.labels)
    columns = {k: np.array([m[k] for m in members]) for k in ('accuracy', 'top5', 'ece')}
    return {'loss': np.array([m['nll'] for m in members]), **columns}


def evaluate_logits(logits: np.ndarray, labels: np.ndarray) -> tuple[list[dict], dict]:
    """Metrics of each member and of the ensemble from logits [K,N,C] and labels [N]."""
    log_p = log_probabilities(logits)
    ensemble = summarise(mean_of_probabilities(log_p), labels)
    return [summarise(member, labels) for member in log_p], ensemble


def mean_and_std(members: list[dict]) -> tuple[dict, dict]:
    """Over members; the standard deviation is the sample's, and 0 for one member."""
    values = {k: np.array([m[k] for m in members]) for k in members[0]}
    ddof = min(1, len(members) - 1)
    mean = {k: float(v.mean()) for k, v in values.items()}
    return mean, {k: float(v.std(ddof=ddof)) for k, v in values.items()}


def load_weights(config: ConfigDict, population: Population, workdir: Path, which: str | None):
    """((params, stats), step) of `last`, `best` or a step; each member's own best step for `best`.

    None is `best`, or `last` where nothing was chosen.
    """
    which = which or ('last' if config.data.validation == 'none' else 'best')
    like = init_state(config, population)
    checkpoints = Checkpoints(workdir, config.checkpoint.keep)
    try:
        steps = checkpoints.steps()
        if not steps:
            raise UserError(f'{workdir} has no checkpoint yet')
        if which == 'best':
            return load_best(config, population, workdir, steps[-1])
        if which != 'last' and which not in map(str, steps):
            raise UserError(f'{workdir} has no checkpoint {which!r}; it has best, last, {steps}')
        step = steps[-1] if which == 'last' else int(which)
        return eval_weights(checkpoints.restore(like, step)[0]), step
    finally:
        checkpoints.close()


def load_best(config: ConfigDict, population: Population, workdir: Path, upto: int):
    """((params, stats), steps [K]) of every member's best weights not after step `upto`."""
    if config.data.validation == 'none':
        raise UserError('data.validation=none chose no best weights; use --checkpoint last')
    best = BestWeights(workdir)
    params, stats, steps = zip(*(best.load(m, upto) for m in member_names(config)))
    return (population.assemble(params), population.assemble(stats)), list(steps)


def evaluate(workdir: Path, which: str | None, split: str, flip: bool) -> dict:
    """What the command prints."""
    config = configs.load(workdir / 'config.json')
    config.eval.flip = config.eval.flip or flip
    config.devices = None
    dataset = load_dataset(config.dataset, config.data.root, config.data.image_size)
    images = evaluation_images(dataset, make_split(dataset.y_train, config))
    chosen = lookup('split', images, split)
    mesh = make_mesh(config)
    population = Population(config, dataset.num_classes, dataset.image_size, mesh)
    weights, step = load_weights(config, population, workdir, which)
    eval_step = make_eval_step(config, population, dataset)
    logits = predict_logits(eval_step, weights, chosen.images, config, mesh)
    members, ensemble = evaluate_logits(logits, chosen.labels)
    mean, std = mean_and_std(members)
    return {
        'workdir': str(workdir),
        'step': step,
        'split': split,
        'images': len(chosen.labels),
        'flip': config.eval.flip,
        'selected_on': config.data.validation,
        'members': [{'name': n, **m} for n, m in zip(member_names(config), members)],
        'mean': mean,
        'std': std,
        'ensemble': ensemble,
    }


def main():
    """The command line."""
    parser = argparse.ArgumentParser(prog='python -m jaxcifar.evaluate', description=__doc__)
    parser.add_argument('--workdir', type=Path, required=True)
    parser.add_argument('--checkpoint', help='best | last | STEP (best, where there is one)')
    parser.add_argument('--split', default='test', help='train | validation | test (test)')
    parser.add_argument('--flip', action='store_true', help='average an image and its mirror image')
    args = parser.parse_args()
    print(json.dumps(evaluate(args.workdir, args.checkpoint, args.split, args.flip), indent=2))


if __name__ == '__main__':
    run_command(main)
