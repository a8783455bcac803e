"""Calibrate a long-tail run's members and export their logits: python -m jaxcifar.calibrate --workdir DIR

The end of a training run does it too. Members are the chosen weights and, under NAME_last, the last:
WORKDIR/outputs/logits/NAME/MEMBER/PART.npy   float16 [n,C] of z/T, in the order of the part's index file
WORKDIR/outputs/logits/NAME/MEMBER/PART.npz   their labels and indices
WORKDIR/calibrated/MEMBER/STEP.npz            the weights with their temperature T
WORKDIR/calibration.json                      T, and NLL and calibration error before and after
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar

from jaxcifar.config.members import member_losses
from jaxcifar.data import long_tail
from jaxcifar.machine import hosts
from jaxcifar.machine.command import run_command
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.files import read_json, write_arrays, write_json
from jaxcifar.runs.evaluation import Evaluation
from jaxcifar.runs.metrics import BINS, log_probabilities, mean_of_probabilities, reliability, summarise
from jaxcifar.runs.weights import BestWeights, load_weights

FILE = 'calibration.json'
FITTED_ON = 'val_lt'
SHOWN = ('val_lt', 'test_lt', 'test')
RANGE = np.log(0.05), np.log(20)  # of T: correct predictions only have no best one, and float16 an end


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """T > 0 for which softmax(z/T) has the lowest NLL (Guo et al. 2017, section 4.2).

    logits [N,C], labels [N]; a one-dimensional search over log T, to eight digits.
    """
    logits = logits.astype(np.float64)

    def nll(log_t: float) -> float:
        log_p = log_probabilities(logits / np.exp(log_t))
        return -log_p[np.arange(len(labels)), labels].mean()

    return float(np.exp(minimize_scalar(nll, bounds=RANGE, method='bounded', options={'xatol': 1e-8}).x))


def fit(logits: dict[str, np.ndarray], images: dict, names: list[str]) -> dict:
    """Temperatures and what they do, from logits [K,n,C] of each part.

    The mean is that of the calibrated members' probabilities p, and its temperature divides log p; its
    numbers `before` are those of the members as they were trained.
    """
    fitted = FITTED_ON in logits
    log_p = {part: log_probabilities(z) for part, z in logits.items()}
    found: dict = {'members': []}
    scaled: dict[str, list[np.ndarray]] = {part: [] for part in logits}
    for k, name in enumerate(names):
        t = temperature(logits[FITTED_ON][k], images[FITTED_ON].labels) if fitted else 1.0
        after = {part: log_probabilities(z[k].astype(np.float64) / t) for part, z in logits.items()}
        before = {part: p[k] for part, p in log_p.items()}
        found['members'].append({'name': name, 'temperature': t, 'parts': _compare(before, after, images)})
        for part, p in after.items():
            scaled[part].append(p)
    mean = {part: mean_of_probabilities(np.stack(p)) for part, p in scaled.items()}
    t = temperature(mean[FITTED_ON], images[FITTED_ON].labels) if fitted else 1.0
    before = {part: mean_of_probabilities(p) for part, p in log_p.items()}
    after = {part: log_probabilities(p / t) for part, p in mean.items()}
    found['mean'] = {'temperature': t, 'parts': _compare(before, after, images)}
    return found


def _compare(before: dict, after: dict, images: dict) -> dict:
    """NLL, calibration error and reliability on the parts that are shown."""

    def numbers(log_p: np.ndarray, labels: np.ndarray) -> dict:
        scores = summarise(log_p, labels)
        curve = reliability(np.exp(log_p.max(1)), log_p.argmax(1) == labels)
        return {'nll': scores['nll'], 'ece': scores['ece'], 'reliability': curve}

    return {
        part: {
            'before': numbers(before[part], images[part].labels),
            'after': numbers(after[part], images[part].labels),
        }
        for part in SHOWN
        if part in before
    }


def keep(workdir: Path, step: int, poll: Callable = lambda: None):
    """`calibrate` and say so, unless it has been done since step `step`."""
    if (read_json(workdir / FILE) or {}).get('step') != step:
        found = calibrate(workdir, poll)
        if hosts.is_first():
            print(*lines(found), sep='\n', flush=True)


def calibrate(workdir: Path, poll: Callable = lambda: None) -> dict:
    """Calibrate, export and save; returns what calibration.json holds.

    Raises `UserError` where the run is not one of a long tail. `poll()` is called between batches.
    """
    run = Evaluation(workdir, poll=poll)
    counts = run.split.class_counts
    if counts is None:
        raise UserError(f'{workdir} is a run of split={run.config.split}, not of a long tail')
    step = load_weights(run.config, run.population, workdir, 'last')[1]
    (workdir / FILE).unlink(missing_ok=True)  # until all of it is there again
    chosen = [] if run.config.data.validation == 'none' else ['best']
    found: dict = {
        'step': step,
        'fitted_on': FITTED_ON if FITTED_ON in run.images else None,
        'bins': BINS,
        'class_counts': counts.tolist(),
        'weights': {},
    }
    for which in [*chosen, 'last']:
        weights, steps = load_weights(run.config, run.population, workdir, which)
        logits = {part: run.logits(weights, part)[: len(run.names)] for part in run.images}
        report = fit(logits, run.images, run.names)
        for member, loss in zip(report['members'], member_losses(run.config)):
            member['loss'] = loss
        main = which == [*chosen, 'last'][0]
        name = long_tail.folder_name(run.config) + ('' if main else '_last')
        report['logits'] = str(Path('outputs', 'logits', name))
        _export(run, logits, report)
        if main:
            stamps = steps if isinstance(steps, list) else [steps] * len(run.names)
            _save_weights(run, weights, stamps, report)
        found['weights'][which] = report
    write_json(workdir / FILE, found)
    return found


def lines(found: dict) -> list[str]:
    """What calibration did to the chosen weights, a line for each member and for their mean."""
    if found['fitted_on'] is None:
        return ['logits exported; nothing to calibrate on']
    report = next(iter(found['weights'].values()))
    text = []
    for row in [*report['members'], {'name': 'mean', **report['mean']}]:
        before, after = (row['parts']['test_lt'][when] for when in ('before', 'after'))
        text.append(
            f'{row["name"]}: temperature {row["temperature"]:.3f}; on test_lt '
            f'NLL {before["nll"]:.3f} -> {after["nll"]:.3f}, ECE {before["ece"]:.3f} -> {after["ece"]:.3f}'
        )
    return text


def _export(run: Evaluation, logits: dict[str, np.ndarray], report: dict):
    for part, z in logits.items():
        rows = {'labels': run.images[part].labels, 'indices': run.images[part].indices}
        for k, member in enumerate(report['members']):
            scaled = (z[k] / member['temperature']).astype(np.float16)
            file = run.workdir / report['logits'] / member['name'] / part
            write_arrays(file.with_suffix('.npy'), scaled)
            write_arrays(file.with_suffix('.npz'), rows)


def _save_weights(run: Evaluation, weights, steps: list[int], report: dict):
    kept = BestWeights(run.workdir, 'calibrated')
    kept.forget_after(-1)
    members = run.population.disassemble(tuple(zip(weights.params, weights.stats)))
    for member, step, (params, stats) in zip(report['members'], steps, members):
        kept.save(member['name'], step, params, stats, member['temperature'])


def main():
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='python -m jaxcifar.calibrate',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--workdir', type=Path, required=True)
    print(*lines(calibrate(parser.parse_args().workdir)), sep='\n')


if __name__ == '__main__':
    run_command(main)
