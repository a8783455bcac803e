"""Evaluate a run's weights: python -m jaxcifar.evaluate --workdir DIR

Prints JSON: accuracy, top-5, negative log-likelihood (nats) and calibration error of each member,
their mean and standard deviation, and of the ensemble (the mean of the members' probabilities). Of a
fused run also those of the fused prediction, the mean of the logits, and the best single member.
"""

import json
from pathlib import Path

import numpy as np

from jaxcifar.config import saved
from jaxcifar.config.members import member_losses, member_networks
from jaxcifar.data.splits import train_counts
from jaxcifar.engine.couplings import has_head
from jaxcifar.engine.losses import log_priors, of_outputs
from jaxcifar.formats import portable
from jaxcifar.machine.command import command_parser, run_command
from jaxcifar.machine.errors import UserError, lookup
from jaxcifar.machine.files import read_json
from jaxcifar.runs.evaluation import compare, evaluate_logits, open_evaluation
from jaxcifar.runs.metrics import mean_and_std
from jaxcifar.runs.weights import assemble, load_calibrated, load_weights


def add_improvement(rows: list[dict], networks: list[str], baseline: Path):
    """Put each member's accuracy, less the mean of the same network in the run `baseline`, beside it.

    That mean is of the test images, and of the baseline's chosen weights where it chose any.
    """
    found = read_json(baseline / 'results.json')
    if found is None:
        raise UserError(f'{baseline} has no results.json: the baseline is not finished')
    theirs = member_networks(saved.load(baseline / 'config.json'))
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
    evaluation = open_evaluation(workdir, flip, config, exported[0].about if exported else None)
    run = evaluation.session
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
    logits = evaluation.logits(weights, split) / temperatures[:, None, None]
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
        'shift': run.config.eval.shift,
        'posthoc_tau': posthoc_tau,
        'selected_on': run.config.data.validation,
        'members': rows,
        'mean': mean,
        'std': std,
        'ensemble': ensemble,
        **({'fusion': compare(run.names, logits, chosen)} if has_head(run.config) else {}),
    }


def main():
    """The command line."""
    parser = command_parser('jaxcifar.evaluate', __doc__)
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
