"""Draw a run's members: python docs/picture.py WORKDIR FILE.png

The README's picture is of the quickstart: python docs/picture.py runs/quickstart docs/quickstart.png
"""

import csv
import sys
from pathlib import Path

from matplotlib.figure import Figure

COLOURS = ['#0072B2', '#D55E00', '#009E73', '#CC79A7']  # Okabe and Ito's
PANELS = (
    ('loss', 'training loss (nats)', 'train', 1),
    ('accuracy', 'held-out accuracy (%)', 'validation', 100),
)


def draw(rows: list[dict]) -> Figure:
    """Return training loss and validation accuracy over the epochs, a line a member."""
    figure = Figure((8, 2.6), layout='constrained')
    members = sorted({row['member'] for row in rows})
    for axis, (field, title, split, factor) in zip(figure.subplots(1, 2), PANELS):
        for member, colour in zip(members, COLOURS):
            own = [row for row in rows if (row['member'], row['split']) == (member, split)]
            epochs = [int(row['epoch']) for row in own]
            axis.plot(epochs, [factor * float(row[field]) for row in own], color=colour, label=member, lw=1.8)
        axis.set_title(title, loc='left', fontsize=10)
        axis.set_xlabel('epoch')
        axis.grid(color='#e3e7ec')
        axis.spines[['top', 'right']].set_visible(False)
    axis.legend(frameon=False, loc='lower right')
    return figure


def main(workdir: str, path: str):
    """Write the picture of a run's metrics.csv."""
    with open(Path(workdir) / 'metrics.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    draw(rows).savefig(path, dpi=120)


if __name__ == '__main__':
    main(*sys.argv[1:])
