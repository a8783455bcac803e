"""Evaluate a run's weights: python -m jaxcifar.evaluate --workdir DIR

Prints JSON: accuracy, top-5, negative log-likelihood (nats) and calibration error of each member,
their mean and standard deviation, and of the ensemble (the mean of the members' probabilities). Of a
fused run also those of the fused prediction, the mean of the logits, and the best single member.
"""

import argparse
import contextlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jaxcifar import config as configs
from jaxcifar import hosts, portable
from jaxcifar.cli import run_command
from jaxcifar.compiler import compiler_options
from jaxcifar.couplings import has_head, make_head
from jaxcifar.data.augment import normalise
from jaxcifar.data.datasets import Dataset, load_dataset
from jaxcifar.data.loader import in_order
from jaxcifar.data.splits import Images, evaluation_images, make_split, train_counts
from jaxcifar.errors import UserError, lookup
from jaxcifar.fusion import join
from jaxcifar.logs import read_json
from jaxcifar.losses import log_priors, of_outputs
from jaxcifar.members import member_losses, member_names, member_networks
from jaxcifar.metrics import compare_fused, log_probabilities, mean_of_probabilities, summarise
from jaxcifar.population import Population, make_mesh
from jaxcifar.state import Weights
from jaxcifar.weights import assemble, load_calibrated, load_weights

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

        images = normalise(images, dataset.mean, dataset.std)
        logits = predict(images)
        return (logits + predict(images[:, :, ::-1])) / 2 if config.eval.flip else logits

    compiled = jax.jit(forward, compiler_options=compiler_options())
    return lambda weights: partial(compiled, show(weights.params), weights._replace(params=None))


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


def compare(run, logits: np.ndarray, images: Images) -> dict:
    """The fused prediction of a run's logits [K+1,N,C], and what it has to beat."""
    return compare_fused(logits, run.names, images.labels, images.class_counts)


def mean_and_std(members: list[dict]) -> tuple[dict, dict]:
    """Over members; the standard deviation is the sample's, and 0 for one member."""
    values = {k: np.array([m[k] for m in members]) for k in members[0]}
    ddof = min(1, len(members) - 1)
    mean = {k: float(v.mean()) for k, v in values.items()}
    return mean, {k: float(v.std(ddof=ddof)) for k, v in values.items()}


def _as_trained(dataset: Dataset, trained_on: dict) -> Dataset:
    """The data set normalised as that which networks learnt; `UserError` where it is of another kind."""
    found = dataset.num_classes, dataset.image_size
    wanted = len(trained_on['classes']), trained_on['image_size']
    if found != wanted:
        here, there = (f'{classes} classes of {size} pixels' for classes, size in (found, wanted))
        raise UserError(f'{dataset.name} has {here}, and not {there}: name another --dataset')
    return replace(dataset, mean=tuple(trained_on['mean']), std=tuple(trained_on['std']))


class Evaluation:
    """A run's images and its networks, ready to be evaluated with whatever weights.

    trained_on: classes, image_size, mean and std of exported networks.
    """

    def __init__(
        self,
        workdir: Path,
        flip: bool = False,
        poll: Callable = lambda: None,
        config: ConfigDict | None = None,
        trained_on: dict | None = None,
    ):
        self.workdir, self.poll = workdir, poll
        self.config = config or configs.load(workdir / 'config.json')
        self.config.eval.flip = self.config.eval.flip or flip
        self.config.devices = None
        self.config.data.root = self.config.data.root or configs.data_root()
        self.dataset = load_dataset(self.config.dataset, self.config.data.root, self.config.data.image_size)
        if trained_on:
            self.dataset = _as_trained(self.dataset, trained_on)
        self.split = make_split(self.dataset, self.config)
        self.images = evaluation_images(self.dataset, self.split)
        self.names = member_names(self.config)
        self.mesh = make_mesh(self.config)
        shape = self.dataset.num_classes, self.dataset.image_size
        self.population = Population(self.config, *shape, self.mesh)
        self.eval_step = make_eval_step(self.config, self.population, self.dataset)

    def logits(self, weights, name: str) -> np.ndarray:
        """Logits of the images called `name`, [K,N,C], or [K+1,N,C] where the coupling has a head."""
        images = self.images[name].images
        return predict_logits(self.eval_step, weights, images, self.config, self.mesh, self.poll)


def add_improvement(rows: list[dict], networks: list[str], baseline: Path):
    """Put each member's accuracy, less the mean of the same network in the run `baseline`, beside it.

    That mean is of the test images, and of the baseline's chosen weights where it chose any.
    """
    found = read_json(baseline / 'results.json')
    if found is None:
        raise UserError(f'{baseline} has no results.json: the baseline is not finished')
    theirs = member_networks(configs.load(baseline / 'config.json'))
    for row, network in zip(rows, networks):
        scores = [m.get('best', m['last']) for m, n in zip(found['members'], theirs) if n == network]
        if not scores:
            raise UserError(f'{baseline} has no {network}, only {", ".join(dict.fromkeys(theirs))}')
        row['improvement'] = row['accuracy'] - float(np.mean([s['test']['accuracy'] for s in scores]))


def evaluate(
    workdir: Path,
    which: str | None,
    split: str,
    flip: bool,
    posthoc_tau: float = 0.0,
    baseline: Path | None = None,
    dataset: str | None = None,
) -> dict:
    """What the command prints."""
    exported = portable.read(workdir) if portable.is_portable(workdir) else []
    config = portable.config_of(workdir, exported) if exported else None
    if config and dataset:
        config.dataset = dataset
    elif dataset:
        raise UserError(f'--dataset is for exported networks; {workdir} is a run, and its config says which')
    run = Evaluation(workdir, flip, config=config, trained_on=exported[0].about if exported else None)
    chosen = lookup('split', run.images, split)
    temperatures = np.ones(1)
    if exported:
        if which:
            raise UserError(f'{workdir} holds one set of weights: leave out --checkpoint {which}')
        head = portable.read_head(workdir)
        weights = assemble(run.population, *portable.dense(exported), head and head.params)
        if head is None:
            temperatures = np.array([m.about.get('temperature', 1.0) for m in exported])
        step = None
    elif which == 'calibrated':
        weights, step, temperatures = load_calibrated(run.config, run.population, workdir)
    else:
        weights, step = load_weights(run.config, run.population, workdir, which)
    logits = run.logits(weights, split) / temperatures[:, None, None]
    if posthoc_tau:
        # Members whose loss was adjusted in training are not adjusted again.
        plain = of_outputs(run.config, np.array(member_losses(run.config)) == 'cross_entropy')
        log_prior = of_outputs(run.config, log_priors(train_counts(run.dataset, run.split)))
        logits = logits - posthoc_tau * plain[:, None, None] * log_prior[:, None]
    members, ensemble = evaluate_logits(logits[: len(run.names)], chosen)
    mean, std = mean_and_std(members)
    rows = [{'name': n, **m} for n, m in zip(run.names, members)]
    if baseline is not None:
        add_improvement(rows, member_networks(run.config), baseline)
    return {
        'workdir': str(workdir),
        'step': step,
        'split': split,
        'images': len(chosen.labels),
        'flip': run.config.eval.flip,
        'posthoc_tau': posthoc_tau,
        'selected_on': run.config.data.validation,
        'members': rows,
        'mean': mean,
        'std': std,
        'ensemble': ensemble,
        **({'fusion': compare(run, logits, chosen)} if has_head(run.config) else {}),
    }


def main():
    """The command line."""
    usage = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser('python -m jaxcifar.evaluate', None, __doc__, formatter_class=usage)
    where = 'of a run; or a folder or file of jaxcifar.export, as float or packed weights'
    parser.add_argument('--workdir', type=Path, required=True, help=where)
    parser.add_argument('--checkpoint', help='best | last | STEP | calibrated (best, where there is one)')
    splits = 'train | validation | test, or a part of the split (test)'
    parser.add_argument('--split', default='test', help=splits)
    parser.add_argument('--flip', action='store_true', help='average an image and its mirror image')
    tau = 'subtract τ·log π, π the share of each class in training, from the logits of cross entropy (0)'
    parser.add_argument('--posthoc-tau', type=float, default=0.0, help=tau)
    better = 'a finished run of independent networks: how much better each member is on the test images'
    parser.add_argument('--baseline', type=Path, help=better)
    here = 'of exported networks: where their images are here, as --config.dataset (npz:FILE)'
    parser.add_argument('--dataset', help=here)
    args = parser.parse_args()
    found = evaluate(args.workdir, args.checkpoint, args.split, args.flip, args.posthoc_tau, args.baseline,
                     args.dataset)  # fmt: skip
    print(json.dumps(found, indent=2))


if __name__ == '__main__':
    run_command(main)
