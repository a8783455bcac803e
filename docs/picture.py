"""Draw the pictures of these pages: python docs/picture.py WORKDIR… FILE.png

One run: its members' curves, as of the quickstart in the README. Several runs of long tails: accuracy by
class, from the most frequent to the rarest, the mean of each run's members in bins of ten classes.

    python docs/picture.py runs/quickstart docs/quickstart.png
    python docs/picture.py runs/cross_entropy runs/balanced_softmax docs/long_tail.png
"""

import csv
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

COLOURS = ['#0072B2', '#D55E00', '#009E73', '#CC79A7']  # Okabe and Ito's
PANELS = (
    ('loss', 'training loss (nats)', 'train', 1),
    ('accuracy', 'held-out accuracy (%)', 'validation', 100),
)
BIN = 10  # classes


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


def draw_tails(workdirs: list[str]) -> Figure:
    """Return training accuracy over the epochs, and test accuracy over the classes, a line a run."""
    figure = Figure((8, 2.8), layout='constrained')
    left, right = figure.subplots(1, 2)
    for workdir, colour in zip(workdirs, COLOURS):
        style = {'color': colour, 'label': Path(workdir).name.replace('_', ' '), 'lw': 1.8}
        train = [row for row in read(workdir, 'metrics.csv') if row['split'] == 'train']
        epochs = sorted({int(row['epoch']) for row in train})
        of_epoch = [np.mean([float(r['accuracy']) for r in train if int(r['epoch']) == e]) for e in epochs]
        left.plot(epochs, 100 * np.array(of_epoch), **style)
        classes = [row for row in read(workdir, 'per_class.csv') if row['split'] == 'test']
        count = 1 + max(int(row['class']) for row in classes)
        recalls = np.zeros(count)
        for row in classes:
            recalls[int(row['class'])] += float(row['recall'])
        recalls *= count / len(classes)  # the members' mean
        # A hundred single classes would be a thicket.
        bins = recalls.reshape(-1, BIN).mean(1)
        right.plot(BIN * (np.arange(len(bins)) + 0.5), 100 * bins, marker='o', ms=4, **style)
    finish(left, 'training accuracy (%)', 'epoch')
    finish(right, f'test accuracy (%), {BIN} classes a point', 'classes, the most frequent first')
    right.set_ylim(0)
    return figure


def main(*words: str):
    """Write the picture of the runs."""
    *workdirs, path = words
    figure = draw_tails(workdirs) if workdirs[1:] else draw_members(read(workdirs[0], 'metrics.csv'))
    figure.savefig(path, dpi=120)


if __name__ == '__main__':
    main(*sys.argv[1:])
