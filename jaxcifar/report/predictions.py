"""Draw what networks did with their images: confusions, classes, mistakes, and accuracy against a number."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from scipy.cluster import hierarchy

from jaxcifar.report.figures import COLOURS, add_legend, shorten

FEW = 20  # up to this many classes, cells show numbers and classes keep their order
NAMED = 120  # up to this many classes, each is named
# Up to this many classes, the best order of the tree's leaves is searched for: the time grows cubically.
BEST_ORDER = 200
Names = Sequence[str] | np.ndarray
MARKERS = 'osD^vP'


def order(shares: np.ndarray) -> np.ndarray:
    """Return the order in which to draw a confusion matrix's classes: clustered, unless they are few."""
    return np.arange(len(shares)) if len(shares) <= FEW else cluster_order(np.nan_to_num(shares))


def cluster_order(shares: np.ndarray) -> np.ndarray:
    """Return an order of the classes [C] in which those that are mistaken for one another are neighbours.

    shares [C,C]: the share of each true class's images (rows) that is predicted as each class.
    """
    mistaken = shares + shares.T
    np.fill_diagonal(mistaken, 0)
    distance = mistaken.max() - mistaken
    tree = hierarchy.linkage(distance[np.triu_indices(len(shares), 1)], 'average')
    if len(shares) <= BEST_ORDER:
        tree = hierarchy.optimal_leaf_ordering(tree, distance[np.triu_indices(len(shares), 1)])
    return hierarchy.leaves_list(tree)


def draw_confusion(shares: np.ndarray, classes: Names, title: str) -> Figure:
    """Draw the confusion matrix `shares` [C,C], whose rows are the true classes."""
    count = len(classes)
    shares = np.nan_to_num(shares)  # a class without images has a row without numbers
    side = 6.2 if count <= 12 else 9 if count <= 50 else 12
    figure = Figure(figsize=(side + 0.6, side), layout='constrained')
    ax = figure.subplots()
    # Most of the colours are for small shares: a linear scale would show the diagonal alone.
    scale = PowerNorm(0.45, 0, 100)
    drawn = ax.imshow(100 * shares, cmap='Blues', norm=scale)
    figure.colorbar(drawn, ax=ax, shrink=0.6, ticks=[0, 1, 5, 20, 50, 100], label='% of the true class')
    _name_axes(ax, classes, 9 if count <= FEW else max(4.6, 8 - count / 33))
    if count <= FEW:
        for (row, column), share in np.ndenumerate(shares):
            text = _cell(share)
            ink = 'white' if scale(100 * share) > 0.6 else 'black'
            ax.text(column, row, text, ha='center', va='center', color=ink, fontsize=8)
    ax.set(xlabel='predicted', ylabel='true')
    ax.set_title(title, loc='left', parse_math=False)
    ax.grid(False)
    return figure


def _cell(share: float) -> str:
    """Return a share in percent, in as few digits as it needs; nothing for none."""
    if not share > 0:
        return ''
    return f'{100 * share:.0f}' if share >= 0.1 else f'{100 * share:.1f}' if share >= 0.001 else '<.1'


def _name_axes(ax: Axes, classes: Names, size: float):
    """Write the classes at both axes, where they are few enough to be read."""
    if len(classes) > NAMED:
        ax.set(xticks=[], yticks=[])
        return
    names = [shorten(name, 20) for name in classes]
    upright = max(map(len, names)) > 3 or len(names) > FEW
    ax.set_xticks(range(len(names)), names, rotation=90 if upright else 0, fontsize=size, parse_math=False)
    ax.set_yticks(range(len(names)), names, fontsize=size, parse_math=False)


def draw_classes(
    bars: np.ndarray,
    dots: Mapping[str, np.ndarray],
    classes: Names,
    title: str,
    name: str,
) -> Figure:
    """Draw the accuracy of each class as a bar called `name`, bars [C].

    dots: {name: [C] or [M,C]}, others' accuracies beside it.
    """
    count = len(classes)
    if count > NAMED:
        return _draw_ranks(bars, title)
    columns = -(-count // 25)
    rows = -(-count // columns)
    figure = Figure(figsize=(2.2 + 3 * columns, 1.3 + 0.23 * rows), layout='constrained')
    panels = figure.subplots(1, columns, sharex=True, squeeze=False)[0]
    # A common axis from 0: bars that begin elsewhere exaggerate.
    for i, ax in enumerate(panels):
        part = slice(i * rows, (i + 1) * rows)
        at = np.arange(len(bars[part]))
        ax.barh(at, 100 * bars[part], color='#9cc3de', height=0.72, label=name)
        for j, (other, values) in enumerate(dots.items()):
            style = {'ls': '', 'marker': MARKERS[j % len(MARKERS)], 'color': COLOURS[j % len(COLOURS)]}
            # The offset keeps the dots of equally good members from hiding one another.
            beside = at + 0.2 * (j - (len(dots) - 1) / 2)
            values = 100 * np.atleast_2d(values)[:, part].T
            lines = ax.plot(values, beside, ms=3.2, alpha=0.8, clip_on=False, zorder=3, **style)
            lines[0].set_label(other)
        names = [shorten(c, 24) for c in classes[part]]
        ax.set_yticks(at, names, fontsize=8, parse_math=False)
        ax.set(xlim=(0, 102), ylim=(rows - 0.4, -0.6), xlabel='accuracy (%)')
        ax.grid(False, axis='y')
    figure.suptitle(title, x=0.01, ha='left', fontsize=10, parse_math=False)
    handles = [panels[0].containers[0], *(x for x in panels[0].lines if not x.get_label().startswith('_'))]
    if dots:
        add_legend(figure, handles, loc='outside lower center', ncols=2 * columns, fontsize=8)
    return figure


def _draw_ranks(bars: np.ndarray, title: str) -> Figure:
    """Draw the accuracies of classes in the given order, where they are too many to be named."""
    figure = Figure(figsize=(8, 3.6), layout='constrained')
    ax = figure.subplots()
    ax.plot(np.arange(1, len(bars) + 1), 100 * bars, '.', ms=3, color=COLOURS[0])
    ax.set(xlabel='rank of the class', ylabel='accuracy (%)', ylim=(0, 102))
    ax.set_title(title, loc='left', parse_math=False)
    return figure


def draw_sheet(images: np.ndarray, titles: Sequence[str], columns: int, caption: str) -> Figure:
    """Draw uint8 images [N,H,W,3] in rows of so many, each below its title of at most two lines."""
    # Small images are enlarged, or their pixels would be too coarse a grid to place titles on.
    larger = max(1, 64 // images.shape[1])
    rows, side = -(-len(images) // columns), images.shape[1] * larger
    lines = 1 + max((title.count('\n') for title in titles), default=0)
    # All in one array: an Axes for each image would take seconds.
    gap, head = max(1, side // 12), math.ceil(side * (0.06 + 0.1 * lines))
    height, width = head + side, side + gap
    sheet = np.full((rows * height, columns * width - gap, 3), 255, np.uint8)
    inches = 1.35 if lines == 1 else 1.5
    figure = Figure(figsize=(inches * columns, inches * rows * height / width + 0.25))
    ax = figure.add_axes((0.006, 0.006, 0.988, 1 - 0.25 / figure.get_figheight()))
    for i, (image, title) in enumerate(zip(images, titles)):
        row, column = divmod(i, columns)
        top, left = (row + 1) * height - side, column * width
        sheet[top : top + side, left : left + side] = image.repeat(larger, 0).repeat(larger, 1)
        title = '\n'.join(shorten(line, 30) for line in title.split('\n'))
        ax.text(left, top - 0.03 * side, title, fontsize=6.5, va='bottom', parse_math=False, linespacing=1.05)
    ax.imshow(sheet, aspect='auto')
    ax.set_axis_off()
    figure.suptitle(caption, x=0.006, y=0.995, ha='left', va='top', fontsize=9, parse_math=False)
    return figure


def draw_sweep(numbers: Mapping[str, Sequence[float]], scores: Mapping[str, np.ndarray]) -> Figure:
    """Draw accuracy against each number in which members differ, {field: [K]}; scores {images: [K]}."""
    figure = Figure(figsize=(max(5.2, 4.4 * len(numbers)), 3.7), layout='constrained')
    panels = figure.subplots(1, len(numbers), sharey=True, squeeze=False)[0]
    for ax, (field, values) in zip(panels, numbers.items()):
        at = np.unique(values)
        for (images, accuracies), colour, marker in zip(scores.items(), COLOURS, MARKERS):
            ax.plot(values, 100 * accuracies, ls='', marker=marker, color=colour, ms=5, label=images)
            # Members that share a number are repetitions, and the line joins their means.
            means = [100 * accuracies[np.equal(values, x)].mean() for x in at]
            ax.plot(at, means, color=colour, lw=1.2, alpha=0.6)
        _scale(ax, at)
        ax.set_xlabel(field)
    panels[0].set_ylabel('accuracy (%)')
    named = [line for line in panels[0].lines if not line.get_label().startswith('_')]
    add_legend(panels[0], named, fontsize=9)
    return figure


def _scale(ax: Axes, values: np.ndarray):
    """Mark the values [n], increasing; on a logarithmic axis where they span a decade."""
    positive = values[values > 0]
    if len(positive) and positive[-1] >= 10 * positive[0]:
        if values[0] <= 0:
            # Zero has a place of its own, a step left of the smallest.
            ax.set_xscale('symlog', linthresh=positive[0], linscale=0.4)
        else:
            ax.set_xscale('log')
    if len(values) <= FEW:
        names = [f'{value:g}' for value in values]
        ax.set_xticks(values, names, rotation=45, ha='right', rotation_mode='anchor')
        ax.minorticks_off()
