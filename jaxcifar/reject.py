"""Classify selectively from exported logits: python -m jaxcifar.reject RUN

Chow's rule (1970): a network answers where its largest probability is at least t, for each member and
for the uniform mean of the members' calibrated probabilities. As t falls from 1 to 0, the share of
images that are answered, the coverage, grows from 0 to 1. Writes WORKDIR/rejection.json, which the report
shows: areas under the risk-coverage curves with 95 % bootstrap intervals. Needs no accelerator.

Risks follow Narasimhan et al. (Learning to reject meets long-tail learning, ICLR 2024): with groups G of
classes, and images weighted so that each class has its share of the training images,

    e_G = P(wrong | answered, class in G)    balanced = mean of e_G    worst = max of e_G

over two groups, the classes with at most 20 training images and the others (of classes all larger, the
smaller half and the larger). A group without an answer has made no error, a convention that flatters
networks which rarely answer for the tail.
"""

from pathlib import Path

import numpy as np

from jaxcifar.config import saved
from jaxcifar.machine.command import command_line_for, command_parser, run_command
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.files import read_json, reading, write_json
from jaxcifar.report.long_tail import RISKS, rejection_table
from jaxcifar.runs.metrics import class_groups, log_probabilities, mean_of_probabilities

FILE = 'rejection.json'
PARTS = ('test', 'test_lt')
TAIL = 20  # training images of a tail class, at most
POINTS = np.linspace(0.01, 1, 100)  # coverages at which curves are kept


def group_errors(wrong, weights, group):
    """Return coverage [N] and errors [G,N] of the n most confident images, n = 1…N; 0 for a group with none.

    The arguments are ordered by falling confidence: wrong [N] bool, weights [N] of sum 1, group [N] of 0…G-1.
    """
    errors = []
    for g in range(group.max() + 1):
        # The n most confident images are answered, for every n at once.
        answered = np.cumsum(weights * (group == g))
        missed = np.cumsum(weights * (group == g) * wrong)
        # 0/0 is 0 here: a group without an answer has made no error.
        errors.append(np.divide(missed, answered, out=np.zeros_like(missed), where=answered > 0))
    return np.cumsum(weights), np.array(errors)


def risk_coverage(confidence, wrong, weights, group) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return (coverage [M], {risk: [M]}) at the M distinct confidences, from the highest down.

    error: of all answers; balanced and worst: the mean and the largest of the groups' errors.
    """
    # A stable sort keeps the result the same on every machine.
    order = np.argsort(-confidence, kind='stable')
    confidence, wrong, weights, group = (a[order] for a in (confidence, wrong, weights, group))
    # Images of equal confidence are answered together: only the last of them is a threshold.
    thresholds = np.flatnonzero(np.append(confidence[1:] != confidence[:-1], True))
    weights = weights / weights.sum()
    coverage, errors = group_errors(wrong, weights, group)
    with np.errstate(invalid='ignore'):  # a bootstrap sample may lack the first images
        error = np.nan_to_num(np.cumsum(weights * wrong) / coverage)
    risks = {'error': error, 'balanced': errors.mean(0), 'worst': errors.max(0)}
    return coverage[thresholds], {name: risk[thresholds] for name, risk in risks.items()}


def area(coverage: np.ndarray, risk: np.ndarray) -> float:
    """Return ∫ risk d(coverage) from 0 to 1: the risk at each threshold, times the coverage that it adds."""
    # The curve is a staircase, so this sum is exact.
    return float(np.sum(risk * np.diff(coverage, prepend=0.0)))


def prior_weights(labels: np.ndarray, class_counts: np.ndarray) -> np.ndarray:
    """Return weights [N] that sum to 1 and give each class its share of the training images."""
    # A class that is absent from the labels divides by 1 instead of 0.
    weights = (class_counts / np.maximum(np.bincount(labels, minlength=len(class_counts)), 1))[labels]
    return weights / weights.sum()


def bootstrap(
    confidence, wrong, labels, group, weights, samples: int, seed: int = 0
) -> dict[str, list[float]]:
    """Return 95 % percentile intervals of the areas, from resampling each class's images with replacement."""
    # Sorted by class, the images of each class are neighbours: `first` and `images` are their range.
    rng, order = np.random.default_rng(seed), np.argsort(labels, kind='stable')
    images = np.bincount(labels)[labels[order]]
    first = np.searchsorted(labels[order], labels[order])
    areas: dict[str, list[float]] = {name: [] for name in RISKS}
    for _ in range(samples):
        # One draw for every image, from those of its own class.
        drawn = order[first + rng.integers(0, images)]
        # Weights instead of copies: the order by confidence needs no new arrays.
        times = np.bincount(drawn, minlength=len(labels))
        coverage, risks = risk_coverage(confidence, wrong, weights * times, group)
        for name in RISKS:
            areas[name].append(area(coverage, risks[name]))
    return {name: np.percentile(a, (2.5, 97.5)).tolist() for name, a in areas.items()}


def tail_classes(class_counts: np.ndarray) -> np.ndarray:
    """Return [C] bool: classes of at most 20 training images, or the smaller half if all or none are."""
    tail = class_counts <= TAIL
    # Both groups must have classes, or there is nothing to compare.
    return tail if 0 < tail.sum() < len(tail) else class_groups(class_counts)['tail']


def evaluate_rule(log_p: np.ndarray, labels: np.ndarray, group: np.ndarray, weights, samples: int) -> dict:
    """Return areas, intervals and curves of Chow's rule: log_p [N,C]; labels, groups, weights [N]."""
    confidence, wrong = np.exp(log_p.max(1)), log_p.argmax(1) != labels
    coverage, risks = risk_coverage(confidence, wrong, weights, group)
    intervals = bootstrap(confidence, wrong, labels, group, weights, samples)
    # The first threshold that reaches a coverage; rounding must not skip it.
    at = np.minimum(np.searchsorted(coverage, POINTS - 1e-9), len(coverage) - 1)
    return {
        name: {'area': area(coverage, risk), 'interval': intervals[name], 'curve': risk[at].tolist()}
        for name, risk in risks.items()
    }


def reject(workdir: Path, samples: int = 1000) -> dict:
    """Apply Chow's rule to a calibrated run's exported logits; return what rejection.json holds.

    Raises `UserError` where there are none.
    """
    calibration = read_json(workdir / 'calibration.json')
    if calibration is None:
        raise UserError(f'{workdir} has no calibration.json: {_remedy(workdir)}')
    remedy = f'make it again with {command_line_for("calibrate", workdir)}'
    with reading(workdir / 'calibration.json', remedy):
        # The chosen weights are first in the file.
        which, report = next(iter(calibration['weights'].items()))
        names = [member['name'] for member in report['members']]
        counts = np.array(calibration['class_counts'], float)
        folder, exported = workdir / report['logits'], report['members'][0]['parts']
        tail = tail_classes(counts)
    found: dict = {
        'step': calibration['step'],
        'weights': which,
        'tail_classes': int(tail.sum()),
        'head_classes': int((~tail).sum()),
        'coverage': POINTS.tolist(),
        'parts': {},
    }
    for part in (part for part in PARTS if part in exported):
        with reading(folder / names[0] / part, remedy):
            labels, log_p = _exported(folder, names, part, len(counts))
        rules = dict(zip(names, log_p)) | ({'mean': mean_of_probabilities(log_p)} if len(names) > 1 else {})
        group, weights = tail[labels].astype(int), prior_weights(labels, counts)
        found['parts'][part] = {
            n: evaluate_rule(p, labels, group, weights, samples) for n, p in rules.items()
        }
    write_json(workdir / FILE, found)
    return found


def _exported(folder: Path, names: list[str], part: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels [N] and log probabilities [K,N,C] that `calibrate` wrote; ValueError for other arrays."""
    # Opened here, since numpy leaves a damaged file open.
    with (folder / names[0] / f'{part}.npz').open('rb') as file, np.load(file) as rows:
        labels = rows['labels']
    # The exported logits are calibrated already: z/T.
    logits = np.stack([np.load(folder / name / f'{part}.npy') for name in names])
    if logits.shape[1:] != (len(labels), classes) or not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f'expected logits of {len(labels)} images and {classes} classes, got {logits.shape}')
    return labels, log_probabilities(logits)


def _remedy(workdir: Path) -> str:
    """Return what makes the calibration that a run lacks, or why none can be made."""
    split = saved.load(workdir / 'config.json').split
    if not split.startswith('long_tail'):
        return f'rejection is for long tails, and this is a run of split={split}'
    if not (workdir / 'results.json').exists():
        return 'the run is not finished; the end of its training calibrates it'
    return f'make it with {command_line_for("calibrate", workdir)}'


def main():
    """Run the command line."""
    parser = command_parser('jaxcifar.reject', __doc__, 'folder of a calibrated run')
    parser.add_argument('--samples', type=int, default=1000, help='of the bootstrap (1000)')
    args = parser.parse_args()
    if not 1 <= args.samples <= 1_000_000:
        parser.error(f'--samples must be from 1 to 1,000,000, got {args.samples}')
    saved.load(args.workdir / 'config.json')  # ends in one line if this is not a workdir
    for row in rejection_table(reject(args.workdir, args.samples)):
        print('  '.join(f'{cell:<24}' for cell in row).rstrip())


if __name__ == '__main__':
    run_command(main)
