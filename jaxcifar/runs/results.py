"""Score a finished run on the test images, and record how its weights were chosen."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from jaxcifar.config.members import member_losses, member_views, own_numbers
from jaxcifar.config.values import flatten
from jaxcifar.data.expert_splits import rows_of
from jaxcifar.data.splits import train_counts
from jaxcifar.engine.couplings import has_head
from jaxcifar.engine.state import TrainState, Weights, eval_weights
from jaxcifar.machine import files
from jaxcifar.runs.evaluation import Evaluation, Scored, compare, evaluate_logits, member_metrics
from jaxcifar.runs.metrics import (
    class_recalls,
    log_probabilities,
    mean_and_std,
    mean_of_probabilities,
)
from jaxcifar.runs.progress import Progress
from jaxcifar.runs.session import Session
from jaxcifar.runs.weights import load_best


def score(
    evaluation: Evaluation, workdir: Path, state: TrainState, progress: Progress, known: dict[str, np.ndarray]
) -> dict[str, Scored]:
    """Return the last weights, and the best where there are any, with the test images' logits.

    known: logits of the last weights by image set; these need not be computed again.
    """
    session = evaluation.session

    def of(weights: Weights, steps: list[int], known: dict[str, np.ndarray]) -> Scored:
        logits = {name: evaluation.logits(weights, name) for name in session.tests if name not in known}
        return Scored(weights, steps, {**known, **logits})

    last = of(eval_weights(state), [progress.step] * len(session.names), known)
    best_epoch = progress.selection.best_epoch
    if session.chooses_on is None or not best_epoch.all():
        return {'last': last}
    # The last epoch was the best of every member: its logits are known already.
    if (best_epoch * session.epoch_steps == progress.step).all():
        return {'last': last, 'best': last}
    weights, steps = load_best(session.config, session.population, workdir, progress.step)
    return {'last': last, 'best': of(weights, steps, {})}


def summarise(session: Session, progress: Progress, scored: Mapping[str, Scored]) -> dict:
    """Return what results.json holds, from the test images' logits with the weights `last` and `best`.

    Mean, std and ensemble at the top level are for the images called test; others have their own key.
    """
    config, names, selection = session.config, session.names, progress.selection
    # How many images each member has seen: one row for all, or one for each.
    sizes = [len(row) for row in rows_of(session.split.train)]
    own_images = session.split.train.ndim == 2
    sizes = sizes if own_images else sizes * len(names)
    members: list[dict] = [{'name': n, 'train_images': size} for n, size in zip(names, sizes)]
    # results.json keeps the order of these keys.
    results: dict = {
        'step': progress.step,
        'epoch': progress.epoch,
        'selection': config.data.validation,
        'own_images': own_images,
        'members': members,
        'mean': {},
        'std': {},
        'ensemble': {},
    }
    # Every choice of weights on every set of test images.
    for checkpoint, name, z in _test_logits(session, scored):
        images = session.tests[name]
        scores, ensemble = evaluate_logits(z[: len(members)], images)
        # The last of z [K+1,N,C] is the fused prediction; the members come before it.
        if has_head(config):
            fused = results.setdefault('fusion', {}).setdefault(checkpoint, {})
            fused[name] = compare(names, z, images)
        # The images called test keep the top level, where files of older runs have them.
        top = results if name == 'test' else results.setdefault(name, {'mean': {}, 'std': {}, 'ensemble': {}})
        top['mean'][checkpoint], top['std'][checkpoint] = mean_and_std(scores)
        top['ensemble'][checkpoint] = ensemble
        for member, score in zip(members, scores):
            member.setdefault(checkpoint, {})[name] = score
    # How members differ, and which epoch was best.
    kinds = {'loss': member_losses(config), 'view': member_views(config)}
    numbers = own_numbers(flatten(config), len(members))
    for k, member in enumerate(members):
        member |= {kind: of[k] for kind, of in kinds.items() if len(set(of)) > 1}
        member |= {'numbers': {field: of[k] for field, of in numbers.items()}} if numbers else {}
        if 'best' in member:
            epoch, accuracy = int(selection.best_epoch[k]), float(selection.best[k])
            member['best']['epoch'] = epoch
            # A fused prediction chooses for all members, so it holds the validation accuracy.
            by = results.get('fusion', member)
            by['best'] |= {'epoch': epoch, 'validation_accuracy': accuracy}
    return results


def _test_logits(session: Session, scored: Mapping[str, Scored]) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield (checkpoint, name of the images, logits) of all tests."""
    for checkpoint, tested in scored.items():
        yield from ((checkpoint, name, tested.logits[name]) for name in session.tests)


def log(session: Session, progress: Progress, scored: Mapping[str, Scored], workdir: Path, logger):
    """Write the rows of metrics.csv that belong to `summarise`, and per_class.csv."""
    for checkpoint, name, z in _test_logits(session, scored):
        # Where the test images chose, their rows of the last epoch are there already.
        if checkpoint == 'best' or session.chooses_on != name:
            row = member_metrics(z, session.tests[name])
            logger.write(progress.epoch, progress.step, name, row, checkpoint)
    write_classes(session, scored, workdir)


def _images_of_classes(session: Session) -> dict[str, np.ndarray]:
    """Return {output: training images per class [C]} that it has seen; outputs that join members see all."""
    outputs = [*session.outputs, 'ensemble']
    rows = train_counts(session.dataset, session.split)
    if len(rows) == 1:
        return dict.fromkeys(outputs, rows[0])
    # An image that several members see is one image.
    joint = np.bincount(session.images['train'].labels, minlength=rows.shape[1])
    return {**dict.fromkeys(outputs, joint), **dict(zip(session.names, rows))}


def write_classes(session: Session, scored: Mapping[str, Scored], workdir: Path):
    """Write per_class.csv: the recall of each class by each output and by the members' ensemble."""
    columns = ('member', 'checkpoint', 'split', 'class', 'name', 'train_images', 'images', 'recall')
    rows: list[tuple] = []
    classes, counts = session.dataset.classes, _images_of_classes(session)
    for checkpoint, split, z in _test_logits(session, scored):
        labels = session.tests[split].labels
        images = np.bincount(labels, minlength=len(classes))
        log_p = log_probabilities(z)
        # The fused prediction is no member: the ensemble leaves it out.
        mean = mean_of_probabilities(log_p[: len(session.names)])
        for member, p in zip([*session.outputs, 'ensemble'], [*log_p, mean], strict=True):
            recalls = class_recalls(p.argmax(1) == labels, labels, len(classes))
            for c, recall in enumerate(recalls):
                row = (c, classes[c], counts[member][c], images[c], f'{recall:.6g}')
                rows.append((member, checkpoint, split, *row))
    files.write_csv(workdir / 'per_class.csv', columns, rows)
