"""Draw the pictures of these pages: python docs/picture.py WORKDIR… FILE.png

One run: its members' curves, as of the quickstart in the README. Several runs: training accuracy over epochs
and test accuracy over the classes, the mean of each run's members. Many classes come ten at a time. Runs
without per_class.csv have their training loss instead.

    python docs/picture.py runs/quickstart docs/quickstart.png
    python docs/picture.py runs/cross_entropy runs/balanced_softmax docs/long_tail.png
    python docs/picture.py runs/resnet20-fp32=floats runs/ttq=TTQ docs/ternary.png
    python docs/picture.py 'runs/94_0=seed 0' 'runs/94_1=seed 1' 'runs/94_2=seed 2' docs/speedrun.png

A name after = stands in the legend in place of the folder's.
"""

import csv
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

COLOURS = ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9']  # Okabe and Ito's
PANELS = (
    ('loss', 'training loss (nats)', 'train', 1),
    ('accuracy', 'held-out accuracy (%)', 'validation', 100),
)
POINTS = 10  # of a line over the classes: a hundred would be a thicket


def read(workdir: str, name: str) -> list[dict]:
    """Return the rows of a run's CSV."""
    with open(Path(workdir) / name, newline='') as file:
        return list(csv.DictReader(file))


def finish(axis, title: str, across: str):
    """Give an axis its words and a light grid."""
    axis.set_title(title, loc='left', fontsize=10)
    axis.set_xlabel(across)
    axis.grid(color='#e3e7ec')
    axis.spines[['top', 'right']].set_visible(False)
    axis.legend(frameon=False, fontsize=9)


def draw_members(rows: list[dict]) -> Figure:
    """Return training loss and validation accuracy over the epochs, a line a member."""
    figure = Figure((8, 2.6), layout='constrained')
    members = sorted({row['member'] for row in rows})
    for axis, (field, title, split, factor) in zip(figure.subplots(1, 2), PANELS):
        for member, colour in zip(members, COLOURS):
            own = [row for row in rows if (row['member'], row['split']) == (member, split)]
            epochs = [int(row['epoch']) for row in own]
            axis.plot(epochs, [factor * float(row[field]) for row in own], color=colour, label=member, lw=1.8)
        finish(axis, title, 'epoch')
    return figure


def class_recalls(workdir: str) -> tuple[list[dict], np.ndarray]:
    """Return the last rows of a run's members on the test images, and the members' mean recalls [C]."""
    last = [
        row for row in read(workdir, 'per_class.csv') if (row['checkpoint'], row['split']) == ('last', 'test')
    ]
    # Outputs made of all members have rows of their own.
    rows = [row for row in last if row['member'] not in ('ensemble', 'fused')]
    count = 1 + max(int(row['class']) for row in rows)
    recalls = np.zeros(count)
    for row in rows:
        recalls[int(row['class'])] += float(row['recall'])
    return rows, recalls * count / len(rows)


def epoch_means(workdir: str, field: str) -> tuple[list[int], np.ndarray]:
    """Return the epochs, and the members' mean of a training number in each."""
    rows = [row for row in read(workdir, 'metrics.csv') if row['split'] == 'train']
    epochs = sorted({int(row['epoch']) for row in rows})
    means = [np.mean([float(row[field]) for row in rows if int(row['epoch']) == epoch]) for epoch in epochs]
    return epochs, np.array(means)


def draw_classes(axis, runs: list[tuple[str, dict]]):
    """Draw test accuracy over the classes, a line a run."""
    for workdir, style in runs:
        rows, recalls = class_recalls(workdir)
        count = len(recalls)
        size = max(1, count // POINTS)
        points = recalls[: size * (count // size)].reshape(-1, size).mean(1)
        axis.plot(size * np.arange(len(points)) + (size - 1) / 2, 100 * points, marker='o', ms=4, **style)
    # Long tails number their classes by frequency.
    is_tail = len({row['train_images'] for row in rows}) > 1
    if size == 1:
        names = {int(row['class']): row['name'] for row in rows}
        axis.set_xticks([*names], names.values(), rotation=30, fontsize=8)
    title = 'test accuracy (%)' + f', {size} classes a point' * (size > 1)
    finish(axis, title, 'class, the most frequent first' if is_tail else '')


def draw_runs(workdirs: list[str]) -> Figure:
    """Return training accuracy over the epochs, and test accuracy over the classes, a line a run.

    Where a run has no accuracy of classes, the second is the training loss.
    """
    figure = Figure((8, 2.8), layout='constrained')
    left, right = figure.subplots(1, 2)
    runs = []
    for named, colour in zip(workdirs, COLOURS):
        workdir, _, name = named.partition('=')
        label = name or Path(workdir).name.replace('_', ' ')
        runs.append((workdir, {'color': colour, 'label': label, 'lw': 1.8}))
    panels = [(left, 'accuracy', 'training accuracy (%)', 100)]
    if all((Path(workdir) / 'per_class.csv').exists() for workdir, _ in runs):
        draw_classes(right, runs)
    else:
        panels.append((right, 'loss', 'training loss (nats)', 1))
    for axis, field, title, factor in panels:
        for workdir, style in runs:
            epochs, means = epoch_means(workdir, field)
            axis.plot(epochs, factor * means, **style)
        finish(axis, title, 'epoch')
    return figure


def main(*words: str):
    """Write the picture of the runs."""
    *workdirs, path = words
    if len(workdirs) > len(COLOURS):
        raise SystemExit(f'expected at most {len(COLOURS)} runs, got {len(workdirs)}')
    figure = draw_runs(workdirs) if workdirs[1:] else draw_members(read(workdirs[0], 'metrics.csv'))
    figure.savefig(path, dpi=120)


if __name__ == '__main__':
    main(*sys.argv[1:])
