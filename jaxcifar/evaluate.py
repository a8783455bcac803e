"""Evaluate runs' weights: python -m jaxcifar.evaluate RUN…

Prints a table: accuracy, negative log-likelihood (nats), top-5 and calibration error of each member, their
mean and standard deviation, and of the ensemble (the mean of the members' probabilities). A fused run also
has the fused prediction and the mean of the logits. Training accuracy and loss are from the epoch of the
weights. --csv writes the same rows to a file, --json prints all numbers.
"""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxcifar.config import saved
from jaxcifar.config.members import member_losses, member_networks, network_of
from jaxcifar.data.splits import train_counts
from jaxcifar.engine.losses import log_priors, per_output
from jaxcifar.machine.command import a_path, command_line_for, command_parser, run_command
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.files import read_json, reading
from jaxcifar.report.scores import print_scores, score_rows, write_scores
from jaxcifar.runs import shipped_networks
from jaxcifar.runs.evaluation import Evaluation
from jaxcifar.runs.metrics import verdict
from jaxcifar.runs.networks import Trained
from jaxcifar.runs.session import Session
from jaxcifar.runs.trained import open_trained
from jaxcifar.runs.workdirs import check_same_images


def evaluate(
    path: Path,
    checkpoint: str | None = None,
    split: str = 'test',
    flip: bool = False,
    posthoc_tau: float = 0.0,
    dataset: str | None = None,
    test_images: str | None = None,
) -> dict:
    """Return what `--json` prints, but not rounded, and without a comparison with a baseline."""
    if not math.isfinite(posthoc_tau):
        raise UserError(f'--posthoc-tau must be a finite number, got {posthoc_tau}')
    if test_images is not None:
        _check_alone(test_images, {'split': split != 'test', 'posthoc-tau': posthoc_tau})
    # What is evaluated: networks, images, and the weights on the devices.
    trained = open_trained(path, checkpoint, dataset)
    _check_split(trained, split, posthoc_tau, 'index files', 'an export leaves them out')
    # The flag can only add to what the run's config says.
    trained.config.eval.flip = trained.config.eval.flip or flip
    evaluation = Evaluation(trained.with_test_images(test_images) if test_images else trained.with_images())
    _check_split(trained, split, posthoc_tau, 'images', f'{trained.config.dataset} has others')
    images, session = evaluation.images(split), evaluation.session
    # The logits, with temperatures and priors applied.
    restored = trained.restore(session.population)
    logits = restored.calibrate(evaluation.logits(restored.weights, split))
    # Menon et al. 2021: subtracting τ·log π favours rare classes, as a balanced test set does.
    if posthoc_tau:
        logits = logits - posthoc_tau * log_priors_to_take(session)
    return {
        'workdir': str(path),
        'step': restored.steps,
        'split': split,
        'test_images': test_images,
        'images': len(images.labels),
        'flip': session.config.eval.flip,
        'posthoc_tau': posthoc_tau,
        'selected_on': trained.selected_on,
        **evaluation.scores(logits, split),
    }


def _check_split(trained: Trained, split: str, posthoc_tau: float, what: str, why: str):
    """Raise `UserError` where flags need the split of a training that is not known here."""
    if not trained.has_split and (posthoc_tau or split != 'test'):
        flag, path = '--posthoc-tau' if posthoc_tau else f'--split {split}', trained.path
        raise UserError(f'{flag} needs the {what} that {path} was trained with, and {why}: evaluate the run')


def _check_alone(test_images: str, flags: Mapping):
    """Raise `UserError` where --test-images is combined with flags that need the data set's own images."""
    if not test_images:
        raise UserError('--test-images must not be empty: leave it out for those of the data set')
    if given := [flag for flag, is_given in flags.items() if is_given]:
        raise UserError(
            f'--{given[0]} goes with the images of the data set, got --test-images: leave one out'
        )


def log_priors_to_take(session: Session) -> np.ndarray:
    """Return log π [K,1,C], π the classes' shares in training; 0 for members whose loss has used it."""
    config = session.config
    # Losses that adjusted logits in training have taken the prior out already.
    plain = per_output(config, np.array(member_losses(config)) == 'cross_entropy')
    log_prior = per_output(config, log_priors(train_counts(session.dataset, session.split)))
    return plain[:, None, None] * log_prior[:, None]


def improve_on(rows: list[dict], baseline: Path) -> list[dict]:
    """Return members' rows with their `improvement`: accuracy minus the same network's mean in `baseline`.

    That mean is over the baseline's members, on its test images, with its chosen weights if it chose any.
    """
    results = read_json(baseline / 'results.json')
    if results is None:
        raise UserError(f'--baseline: expected a finished run, got {baseline}, which has no results.json')
    networks = member_networks(saved.load(baseline / 'config.json'))
    with reading(baseline / 'results.json'):
        # One mean for each network, since a baseline may have several members of it.
        scores = [m.get('best', m['last'])['test']['accuracy'] for m in results['members']]
        of_network = {n: [s for s, theirs in zip(scores, networks) if theirs == n] for n in networks}
        means = {network: float(np.mean(values)) for network, values in of_network.items()}
    improved = []
    for row in rows:
        # A name is ID_NETWORK.
        network = network_of(row['name'])
        if network not in means:
            raise UserError(
                f'--baseline: expected a run with {network}, got {baseline}, which has {", ".join(means)}'
            )
        improved.append({**row, 'improvement': row['accuracy'] - means[network]})
    return improved


def rounded(tree):
    """Return a tree of JSON with its numbers to six digits: more of them only look exact."""
    if isinstance(tree, dict):
        return {key: rounded(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [rounded(value) for value in tree]
    return float(f'{tree:.6g}') if isinstance(tree, float) else tree


def evaluate_all(folders: list[Path], baseline: Path | None = None, **options) -> list[dict]:
    """Return the result of `evaluate` for each folder; of several, those that fail are named on stderr."""
    found = []
    if baseline and options.get('split', 'test') != 'test':
        raise UserError(f'--baseline compares test images, got --split {options["split"]}: leave one out')
    if options.get('test_images') is not None:
        _check_alone(options['test_images'], {'baseline': baseline})
    for folder in folders:
        try:
            scores = evaluate(folder, **options)
            if baseline:
                check_same_images(folder, baseline)
                scores['members'] = improve_on(scores['members'], baseline)
        except UserError as error:
            if len(folders) == 1:
                raise
            # A sweep may have runs that do not exist yet; the others still get their table.
            print(f'left out: {error}', file=sys.stderr)
        else:
            found.append(scores)
    if not found:
        given = ', '.join(map(str, folders)) or 'none'
        raise UserError(
            f'expected a run or more, got {given}: {command_line_for("evaluate", "runs/quickstart")}'
        )
    return found


def headline(scores: dict) -> str:
    """Return what was evaluated in one line."""
    steps = scores['step']
    several = isinstance(steps, list) and len(set(steps)) > 1
    step = steps[0] if isinstance(steps, list) else steps
    when = '' if step is None else f', weights of steps {steps}' if several else f', weights of step {step}'
    how = ', flipped too' * scores['flip'] + f', τ={scores["posthoc_tau"]:g}' * bool(scores['posthoc_tau'])
    chosen = f', chosen on {scores["selected_on"]}' if scores['selected_on'] != 'none' else ''
    others = f' of {scores["test_images"]}' if scores['test_images'] else ''
    images = f'{scores["images"]:,} {scores["split"]} images{others}'
    return f'{scores["workdir"]}: {images}{when}{chosen}{how}'


def _parser():
    parser = command_parser('jaxcifar.evaluate', __doc__)
    where = 'of a run; or a folder or file of jaxcifar.export, or of PyTorch weights, or '
    where += shipped_networks.names()
    parser.add_argument('runs', nargs='*', type=a_path, metavar='RUN', help=f'folder {where}')
    flags, same = ('--workdir', '--model'), 'the same as a flag'
    parser.add_argument(*flags, type=a_path, action='append', default=[], metavar='RUN', help=same)
    parser.add_argument('--checkpoint', help='best | last | STEP | calibrated (best, where there is one)')
    splits = 'train | validation | test, or a part of the split (test)'
    parser.add_argument('--split', default='test', help=splits)
    parser.add_argument('--flip', action='store_true', help='average an image and its mirror image')
    tau = 'subtract τ·log π, π the share of each class in training, from the logits of cross entropy (0)'
    parser.add_argument('--posthoc-tau', type=float, default=0.0, help=tau)
    better = 'a finished run of independent networks; prints the gain of each member on the test images'
    parser.add_argument('--baseline', type=a_path, help=better)
    here = 'for exports and weight files: where the images are, as --config.dataset (npz:FILE)'
    parser.add_argument('--dataset', help=here)
    own = 'evaluate these instead: npz:FILE of x_test and y_test, folder:DIR of test/<class>/* or <class>/*'
    parser.add_argument('--test-images', metavar='NAME', help=own)
    parser.add_argument('--csv', type=a_path, metavar='FILE', help='write a row for each member of each run')
    parser.add_argument('--json', action='store_true', help='print JSON; of several runs a list')
    return parser


def main():
    """Run the command line."""
    args = vars(_parser().parse_args())
    folders, as_json, path = [*args.pop('workdir'), *args.pop('runs')], args.pop('json'), args.pop('csv')
    found = evaluate_all(folders, **args)
    rows = [row for scores in found for row in score_rows(scores)]
    # The numbers are printed first, so that they are not lost if the file cannot be written.
    if as_json:
        print(json.dumps(rounded(found if len(folders) > 1 else found[0]), indent=2))
    else:
        print(*(headline(scores) for scores in found), '', sep='\n')
        print_scores(rows)
        for scores in (s for s in found if 'fusion' in s):
            print(f'{scores["workdir"]}: the learned rule {verdict(scores["fusion"])}')
    if path:
        write_scores(path, rows)
        if not as_json:
            print(f'\n{path}')


if __name__ == '__main__':
    run_command(main)
