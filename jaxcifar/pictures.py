"""Draw plots of a run into WORKDIR/pictures: python -m jaxcifar.pictures RUN

Training does this at its end, too, unless log.pictures=False. It uses the chosen weights.
curves.png       loss, accuracy and learning rate over the epochs
confusion.png    the confusion matrix of the test images
per_class.png    the accuracy of each class
mistakes.png     the misclassified test images with the highest confidence
first_batch.png  the first training batch, as the networks saw it
sweep.png        accuracy against a number that differs between members, such as the learning rate
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxcifar.data.loader import in_order
from jaxcifar.data.splits import Images, train_counts
from jaxcifar.machine import hosts, status
from jaxcifar.machine.command import command_line_for, command_parser, run_command
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.files import write_bytes
from jaxcifar.runs.ending import chosen
from jaxcifar.runs.evaluation import open_evaluation
from jaxcifar.runs.first_batch import read_first_batch
from jaxcifar.runs.metrics import confusion, log_probabilities, mean_of_probabilities, worst_mistakes
from jaxcifar.runs.session import Session
from jaxcifar.runs.weights import load_weights

# matplotlib takes half a second to import: only functions that draw import what needs it.
if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jaxcifar.report.run_files import RunFiles

FOLDER = 'pictures'
NAMES = 'curves', 'sweep', 'confusion', 'per_class', 'mistakes', 'first_batch'
MISTAKES, BATCH = 16, 48  # images on a sheet
DOTS = 6  # members up to which each has its dots


def write_pictures(
    session: Session,
    workdir: Path,
    logits: np.ndarray,
    say: Callable[[str], None],
    show: Callable[[dict[str, Path]], None] = lambda drawn: None,
) -> dict[str, Path]:
    """Draw and write all pictures of a run whose test images have these logits, [K,N,C] or [K+1,N,C].

    Returns {name: path}, with which `show` has been called. A failure is reported in one line and raises
    nothing, because a finished run must not fail for a picture. Of several hosts, only the first draws.
    """
    drawn: dict[str, Path] = {}
    if not session.config.log.pictures:
        return drawn
    try:
        with status.during('drawing pictures'):
            _draw_all(session, workdir, logits, drawn)
            show(drawn)
    except Exception as error:
        why = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
        again = command_line_for('pictures', workdir)
        say(f'drew {len(drawn)} pictures, then failed ({why}); to try again: {again}')
    return drawn


def _draw_all(session: Session, workdir: Path, logits: np.ndarray, drawn: dict[str, Path]):
    """Draw and write the pictures, and add each to `drawn`."""
    if not hosts.is_first():
        return
    from jaxcifar.report.figures import png

    for name, draw in _recipes(session, workdir, logits):
        path = workdir / FOLDER / f'{name}.png'
        write_bytes(path, png(draw))
        drawn[name] = path
    # Delete old pictures that no longer apply: a continued run may make no mistakes any more.
    for name in NAMES:
        if name not in drawn:
            (workdir / FOLDER / f'{name}.png').unlink(missing_ok=True)


class Judged(NamedTuple):
    """Hold the predictions for the test images.

    log_p [N,C]: of the fused prediction, the best of a sweep's members, or the members' ensemble. shares
    [C,C]: the confusion matrix of the same; for an ensemble, the mean over its members. recalls [K,C]: each
    member's accuracy in each class. accuracy: over all images.
    """

    name: str
    log_p: np.ndarray
    shares: np.ndarray
    recalls: np.ndarray
    accuracy: float


def judge(logits: np.ndarray, labels: np.ndarray, run: 'RunFiles') -> Judged:
    """Compare a run's logits, [K,N,C] or [K+1,N,C] with a fused prediction, with the labels [N]."""
    log_p = log_probabilities(logits)
    shares = np.stack([confusion(p.argmax(1), labels, logits.shape[-1]) for p in log_p])
    recalls = np.diagonal(shares[: len(run.members)], axis1=1, axis2=2)
    if run.fused or len(run.members) == 1:
        name, rows = 'fused prediction' if run.fused else run.members[0], [-1]
    elif (best := run.best_of_sweep()) is not None:
        # The mean of a sweep would include the members with bad values.
        name, rows = run.titles()[best], [best]
    else:
        name, rows = f'mean of {len(log_p)} members', [*range(len(log_p))]
    joint = log_p[rows[0]] if len(rows) == 1 else mean_of_probabilities(log_p)
    right = np.mean([log_p[k].argmax(1) == labels for k in rows])
    return Judged(name, joint, shares[rows].mean(0), recalls, float(right))


def _recipes(
    session: Session, workdir: Path, logits: np.ndarray
) -> Iterator[tuple[str, Callable[[], 'Figure']]]:
    """Yield (name, what draws it) of the pictures of a run."""
    from jaxcifar.report import figures, predictions, run_files

    # Of the whole run, and of its numbers.
    (run,) = run_files.load([workdir])
    yield 'curves', lambda: figures.draw_run(run)
    if run.results and (numbers := run.numbers()):
        yield 'sweep', lambda: predictions.draw_sweep(numbers, _scores(run))

    # Of classes, which a long tail orders by its training images.
    images, classes = session.tests['test'], np.array(session.dataset.classes)
    counts = session.split.class_counts
    judged = judge(logits, images.labels, run)
    by_count = None if counts is None else np.argsort(-counts, kind='stable')
    title = f'{len(images.labels):,} test images, {judged.name}, {100 * judged.accuracy:.2f} % right'
    near = predictions.order(judged.shares) if by_count is None else by_count
    yield (
        'confusion',
        lambda: predictions.draw_confusion(judged.shares[np.ix_(near, near)], classes[near], title),
    )
    bars, dots = np.diagonal(judged.shares), _dots(run, judged)
    names = classes
    if counts is not None:
        trained_on = train_counts(session.dataset, session.split)[0]
        names = np.array([f'{c} ({n:,})' for c, n in zip(classes, trained_on)])
    ranks = np.argsort(-bars, kind='stable') if by_count is None else by_count
    dots = {name: recalls[..., ranks] for name, recalls in dots.items()}
    yield 'per_class', lambda: predictions.draw_classes(bars[ranks], dots, names[ranks], title, judged.name)

    # Of single images.
    rows = worst_mistakes(judged.log_p, images.labels, MISTAKES)
    if len(rows):
        yield 'mistakes', lambda: _draw_mistakes(images, classes, judged, rows)
    # Several hosts hold parts of the batch. One that failed here alone would leave the others waiting.
    if hosts.alone():
        seen = read_first_batch(session, [0])[1][0]
        caption = f'The first batch: augment = {session.config.augment}'
        yield (
            'first_batch',
            lambda: predictions.draw_sheet(seen.images[:BATCH], seen.titles[:BATCH], 8, caption),
        )


def _dots(run: 'RunFiles', judged: Judged) -> dict[str, np.ndarray]:
    """Return the recalls to draw beside the joint ones: a series per member that differs, or one for all."""
    if run.differ and len(run.members) <= DOTS:
        return dict(zip(run.titles(), judged.recalls))
    return {'each member': judged.recalls} if len(run.members) > 1 else {}


def _scores(run: 'RunFiles') -> dict[str, np.ndarray]:
    """Return the members' accuracies, [K] each, on the images that chose their weights and on the test."""
    held_out = run.held_out()
    held = {} if held_out is None else {run.watched: held_out}
    return {**held, 'test': run.scores(chosen(run.results), 'accuracy')}


def _draw_mistakes(images: Images, classes: np.ndarray, judged: Judged, rows: np.ndarray) -> 'Figure':
    """Draw the misclassified images of these rows with their true and predicted classes."""
    from jaxcifar.report.figures import shorten
    from jaxcifar.report.predictions import draw_sheet

    predicted = judged.log_p[rows].argmax(1)
    titles = [
        f'{shorten(classes[y], 18)}, taken for\n{shorten(classes[p], 18)} {100 * np.exp(log_p[p]):.1f} %'
        for y, p, log_p in zip(images.labels[rows], predicted, judged.log_p[rows])
    ]
    # Files are read here; arrays are only cut.
    pixels = np.concatenate([*in_order(images.images[rows], MISTAKES, 0)])
    caption = f'The {len(rows)} most certain mistakes in {len(images.labels):,} test images, {judged.name}'
    return draw_sheet(pixels, titles, 8, caption)


def main():
    """Run the command line."""
    parser = command_parser('jaxcifar.pictures', __doc__, 'folder of a run')
    workdir = parser.parse_args().workdir
    evaluation = open_evaluation(workdir)
    session, faults = evaluation.session, list[str]()
    session.config.log.pictures = True  # whatever was wanted while it trained
    weights, _ = load_weights(session.config, session.population, workdir, None)
    drawn = write_pictures(session, workdir, evaluation.logits(weights, 'test'), faults.append)
    print(*drawn.values(), sep='\n')
    if faults:
        raise UserError(faults[0])


if __name__ == '__main__':
    run_command(main)
