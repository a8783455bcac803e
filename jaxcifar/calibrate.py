"""Calibrate a long-tail run's members and export their logits: python -m jaxcifar.calibrate RUN

Training does this at its end, too. It uses the chosen weights and, under NAME_last, the last ones:
WORKDIR/outputs/logits/NAME/MEMBER/PART.npy   float16 [n,C] of z/T, in the order of the part's index file
WORKDIR/outputs/logits/NAME/MEMBER/PART.npz   their labels and indices
WORKDIR/calibrated/MEMBER/STEP.npz            the weights with their temperature T
WORKDIR/calibration.json                      T, and NLL and calibration error before and after
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import scipy  # loads its parts when they are used: a training that calibrates nothing needs none

from jaxcifar.config.members import member_losses
from jaxcifar.data import long_tail
from jaxcifar.data.splits import Images
from jaxcifar.machine import hosts, status
from jaxcifar.machine.command import command_parser, run_command
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.files import read_json_or_set_aside, write_arrays, write_json
from jaxcifar.runs import results_file
from jaxcifar.runs.checkpoint import saved_steps
from jaxcifar.runs.evaluation import Evaluation, Scored, open_evaluation
from jaxcifar.runs.metrics import BINS, log_probabilities, mean_of_probabilities, reliability, summarise
from jaxcifar.runs.session import Session
from jaxcifar.runs.weights import BestWeights, load_weights

FILE = 'calibration.json'
FITTED_ON = 'val_lt'
SHOWN = ('val_lt', 'test_lt', 'test')
RANGE = np.log(0.05), np.log(20)  # of log T: without mistakes no T is best, and float16 may overflow


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return T > 0 for which softmax(z/T) has the lowest NLL (Guo et al. 2017, section 4.2).

    logits [N,C], labels [N]; a one-dimensional search over log T, to eight digits.
    """
    # float32 would flatten the minimum, and T has eight digits.
    logits = logits.astype(np.float64)

    def nll(log_t: float) -> float:
        log_p = log_probabilities(logits / np.exp(log_t))
        return -log_p[np.arange(len(labels)), labels].mean()

    # In log T the range is symmetric, and T stays positive.
    minimise = scipy.optimize.minimize_scalar
    return float(np.exp(minimise(nll, bounds=RANGE, method='bounded', options={'xatol': 1e-8}).x))


def fit(logits: dict[str, np.ndarray], images: Mapping[str, Images], names: list[str]) -> dict:
    """Return temperatures and their effect, from the logits [K,n,C] of each part.

    The mean averages the calibrated members' probabilities p, and its temperature divides log p. Its
    numbers `before` average the members as they were trained.
    """
    # Without validation images nothing is fitted: T is 1, and the logits are only exported.
    fitted = FITTED_ON in logits
    log_p = {part: log_probabilities(z) for part, z in logits.items()}
    report: dict = {'members': []}
    scaled: dict[str, list[np.ndarray]] = {part: [] for part in logits}
    # Each member by itself: its own temperature, and its scores before and after.
    for k, name in enumerate(names):
        t = temperature(logits[FITTED_ON][k], images[FITTED_ON].labels) if fitted else 1.0
        after = {part: log_probabilities(z[k].astype(np.float64) / t) for part, z in logits.items()}
        before = {part: p[k] for part, p in log_p.items()}
        report['members'].append({'name': name, 'temperature': t, 'parts': _compare(before, after, images)})
        for part, p in after.items():
            scaled[part].append(p)
    # Then their mean. Averaging calibrated members makes it too cautious, so it gets a temperature too.
    mean = {part: mean_of_probabilities(np.stack(p)) for part, p in scaled.items()}
    t = temperature(mean[FITTED_ON], images[FITTED_ON].labels) if fitted else 1.0
    before = {part: mean_of_probabilities(p) for part, p in log_p.items()}
    # Dividing log p and normalising again is what dividing logits would be.
    after = {part: log_probabilities(p / t) for part, p in mean.items()}
    report['mean'] = {'temperature': t, 'parts': _compare(before, after, images)}
    return report


def _compare(before: dict, after: dict, images: Mapping[str, Images]) -> dict:
    """Return NLL, calibration error and reliability, before and after, on the parts that are shown."""

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


def calibrate_if_stale(
    workdir: Path, step: int, evaluation: Evaluation | None = None, scored: Mapping[str, Scored] | None = None
):
    """Call `calibrate` and print what it did, unless it has been done since step `step`."""
    # The file has the step that it is about, so that a finished run is not calibrated twice.
    if (read_json_or_set_aside(workdir / FILE, step=int) or {}).get('step') != step:
        with status.during('calibrating'):
            report = calibrate(workdir, evaluation, scored)
        if hosts.is_first():
            print(*lines(report), sep='\n', flush=True)


def calibrate(
    workdir: Path, evaluation: Evaluation | None = None, scored: Mapping[str, Scored] | None = None
) -> dict:
    """Calibrate, export and save; returns what calibration.json holds.

    A run that has just ended passes its own `evaluation`, and its weights with known logits as `scored`.
    Raises `UserError` unless the run has a long tail.
    """
    # The command opens the run; a training passes on what it has in memory.
    evaluation = evaluation or open_evaluation(workdir)
    session = evaluation.session
    counts = session.split.class_counts
    if counts is None:
        raise UserError(f'expected a run of a long tail, got {workdir} of split={session.config.split}')
    if scored is None:
        checkpoints = ['last'] if session.chooses_on is None else ['best', 'last']
        if session.chooses_on and not saved_steps(workdir):  # they may have been deleted to save space
            checkpoints = ['best']
        scored = {checkpoint: _load(workdir, session, checkpoint) for checkpoint in checkpoints}
    (workdir / FILE).unlink(missing_ok=True)  # until everything has been written again
    report: dict = {
        'step': scored['last'].steps[0] if 'last' in scored else results_file.last_step(workdir),
        'fitted_on': FITTED_ON if FITTED_ON in session.images else None,
        'bins': BINS,
        'class_counts': counts.tolist(),
        'weights': {},
    }
    # The chosen weights come first, and have the folder without a suffix.
    for checkpoint in sorted(scored):
        main = not report['weights']
        folder = long_tail.folder_name(session.config) + ('' if main else '_last')
        report['weights'][checkpoint] = _calibrate_one(
            workdir, evaluation, scored[checkpoint], str(Path('outputs', 'logits', folder)), main
        )
    write_json(workdir / FILE, report)
    return report


def _load(workdir: Path, session: Session, checkpoint: str) -> Scored:
    weights, steps = load_weights(session.config, session.population, workdir, checkpoint)
    return Scored(weights, steps if isinstance(steps, list) else [steps] * len(session.names), {})


def _calibrate_one(workdir: Path, evaluation: Evaluation, scored: Scored, folder: str, main: bool) -> dict:
    """Calibrate the members with one choice of weights, and save them if they are the `main` choice."""
    session, names = evaluation.session, evaluation.session.names
    logits = {}
    for part in session.images:
        # The end of a run has evaluated the test images already.
        known = scored.logits.get(part)
        z = evaluation.logits(scored.weights, part) if known is None else known
        logits[part] = z[: len(names)]  # without a fused prediction
    report = fit(logits, session.images, names)
    for member, loss in zip(report['members'], member_losses(session.config)):
        member['loss'] = loss
    report['logits'] = folder
    with status.during('exporting logits'):
        _export(workdir, session, logits, report)
    if main:
        _save_weights(workdir, session, scored, report)
    return report


def lines(calibration: dict) -> list[str]:
    """Return what calibration did to the chosen weights, a line for each member and for their mean."""
    if calibration['fitted_on'] is None:
        return ['logits exported; nothing to calibrate on']
    report = next(iter(calibration['weights'].values()))
    text = []
    for row in [*report['members'], {'name': 'mean', **report['mean']}]:
        before, after = (row['parts']['test_lt'][when] for when in ('before', 'after'))
        text.append(
            f'{row["name"]}: temperature {row["temperature"]:.3f}; on test_lt '
            f'NLL {before["nll"]:.3f} -> {after["nll"]:.3f}, ECE {before["ece"]:.3f} -> {after["ece"]:.3f}'
        )
    return text


def _export(workdir: Path, session: Session, logits: dict[str, np.ndarray], report: dict):
    for part, z in logits.items():
        rows = {'labels': session.images[part].labels, 'indices': session.images[part].indices}
        for k, member in enumerate(report['members']):
            # float16 halves the files; its three digits are enough for probabilities.
            scaled = (z[k] / member['temperature']).astype(np.float16)
            file = workdir / report['logits'] / member['name'] / part
            write_arrays(file.with_suffix('.npy'), scaled)
            write_arrays(file.with_suffix('.npz'), rows)


def _save_weights(workdir: Path, session: Session, scored: Scored, report: dict):
    kept = BestWeights(workdir, 'calibrated')
    # Delete all weights of an earlier calibration, which would mix with these; every step is after -1.
    kept.forget_after(-1)
    if FITTED_ON not in session.images:
        return  # nothing was fitted
    # One (params, batch statistics) for each of the K members.
    members = session.population.disassemble(tuple(zip(scored.weights.params, scored.weights.stats)))
    for member, step, (params, stats) in zip(report['members'], scored.steps, members):
        kept.save(member['name'], step, params, stats, member['temperature'])


def main():
    """Run the command line."""
    parser = command_parser('jaxcifar.calibrate', __doc__, 'folder of a finished run of a long tail')
    print(*lines(calibrate(parser.parse_args().workdir)), sep='\n')


if __name__ == '__main__':
    run_command(main)
