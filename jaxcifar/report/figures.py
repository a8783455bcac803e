"""Draw figures in one style, and the curves of runs."""

import io
from collections.abc import Callable, Sequence
from functools import cache

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter

from jaxcifar.report.run_files import FUSED, RunFiles, show

Picture = dict[str, bytes]  # theme -> PNG
# Okabe and Ito's colours without black and yellow, which vanish on a dark and on a light page.
COLOURS = ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00']
DPI = 140
STYLES = ['-', '--', ':', '-.']
THEMES = {  # background, text, grid
    'light': ('#ffffff', '#24292f', '#e3e7ec'),
    'dark': ('#161b22', '#d1d7e0', '#2b323b'),
}
MOST_NAMES = 16  # of members in a legend


def png(draw_figure: Callable[[], Figure], theme: str = 'light') -> bytes:
    """Return the figure as a PNG; matplotlib's settings are left as they were."""
    page, ink, grid = THEMES[theme]
    style = {
        **dict.fromkeys(('figure.facecolor', 'axes.facecolor', 'legend.facecolor'), page),
        **dict.fromkeys(('text.color', 'axes.labelcolor', 'xtick.color', 'ytick.color'), ink),
        **dict.fromkeys(('axes.edgecolor', 'grid.color', 'legend.edgecolor'), grid),
        **dict.fromkeys(('axes.spines.top', 'axes.spines.right'), False),
        **dict.fromkeys(('axes.grid', 'axes.axisbelow'), True),
        **dict.fromkeys(('font.size', 'axes.titlesize'), 10),
    }
    file = io.BytesIO()
    with mpl.rc_context():
        # A notebook's own style must not reach the picture.
        mpl.rcdefaults()
        mpl.rcParams.update(style)  # type: ignore[arg-type]
        # The style applies while drawing, so each theme draws the figure again.
        draw_figure().savefig(file, format='png', dpi=DPI)
    return file.getvalue()


def render(draw_figure: Callable[[], Figure]) -> Picture:
    """Return the figure as a PNG for each theme."""
    return {theme: png(draw_figure, theme) for theme in THEMES}


def draw(ax: Axes, epochs: np.ndarray, values: np.ndarray, members: bool = True, **line):
    """Draw the mean over the members as a line, ±std as a band and each member as a thin line."""
    if not len(epochs):
        return
    with np.errstate(invalid='ignore'):  # as in `report.spread`
        # values [K,E]: K members over E epochs.
        mean = values.mean(axis=0)
        # The sample deviation of one member is undefined; its line needs no band.
        std = values.std(axis=0, ddof=1) if len(values) > 1 else 0 * mean
    marker = 'o' if len(epochs) < 3 else None  # a line through one point cannot be seen
    ax.plot(epochs, mean, **{'marker': marker, 'ms': 5, 'lw': 1.7, **line})
    if len(values) > 1:
        # Clip the band to the members' range: on a logarithmic axis a loss must stay above zero.
        low, high = np.maximum(mean - std, values.min(0)), np.minimum(mean + std, values.max(0))
        ax.fill_between(epochs, low, high, color=line['color'], alpha=0.18, lw=0)
    if len(values) > 1 and members:
        ax.plot(epochs, values.T, color=line['color'], marker=marker, ms=2, lw=0.6, alpha=0.5)


def add_legend(owner: Axes | Figure, lines: Sequence, **where):
    """Add a legend whose labels are taken literally: names come from files and may hold a '$'."""
    if lines:
        for text in owner.legend(lines, [line.get_label() for line in lines], **where).get_texts():
            text.set_parse_math(False)


def first_of(lines: Sequence[Line2D]) -> list[Line2D]:
    """Return the lines that a legend names: the first MOST_NAMES, and one that counts the others."""
    more = len(lines) - MOST_NAMES
    return [*lines[:MOST_NAMES], *([Line2D([], [], ls='', label=f'and {more} more')] if more > 0 else [])]


def label(panels: Sequence[Axes], titles: Sequence[str]):
    """Give each panel its title, and one without curves the words 'nothing yet'."""
    for ax, title in zip(panels, titles):
        ax.set_xlabel('epoch')
        ax.xaxis.set_major_locator(MaxNLocator('auto', integer=True))
        ax.set_title(title, loc='left')
        if not ax.lines:
            ax.text(0.5, 0.5, 'nothing yet', ha='center', va='center', transform=ax.transAxes)


def draw_run(run: RunFiles) -> Figure:
    """Draw loss, accuracy and learning rate of one run: the mean of members that are alike, or each."""
    figure = Figure(figsize=(12, 3.3), layout='constrained')
    panels = figure.subplots(1, 3)
    loss, accuracy, _ = panels
    if run.differ and len(run.members) > 1:
        _draw_each(run, panels)
        add_legend(figure, _legend(run), loc='outside right upper', fontsize=8)
    else:
        _draw_means(run, panels)
        for ax in (loss, accuracy):
            # matplotlib names lines without a label _child0, and so on: the thin ones of members.
            add_legend(ax, [line for line in ax.lines if not line.get_label().startswith('_')])
    several = '' if run.differ or len(run.members) < 2 else f', mean ± std of {len(run.members)} members'
    label(panels, ('loss (NLL, nats)', f'accuracy (%){several}', 'learning rate'))
    _spread_out(loss)
    return figure


def _spread_out(ax: Axes):
    """Make the value axis logarithmic where one bad epoch would flatten all the others."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in ax.lines] or [np.ones(1)])
    values = values[np.isfinite(values) & (values > 0)]
    if len(values) and values.max() > 20 * np.median(values):
        ax.set_yscale('log')
        ax.yaxis.set_major_formatter('{x:g}')
        ax.yaxis.set_minor_formatter(NullFormatter())


def _draw_means(run: RunFiles, panels: Sequence[Axes]):
    """Draw a colour for each split in both panels, solid for members and dashed for a fused prediction."""
    loss, accuracy, rate = panels
    for split, colour in zip(('train_batch', 'train', run.watched), (COLOURS[4], *COLOURS)):
        for ax, field, factor in ((loss, 'loss', 1), (accuracy, 'accuracy', 100)):
            epochs, values = run.curve(split, field)
            draw(ax, epochs, factor * values, color=colour, label=split)
            if run.fused:
                epochs, values = run.curve(split, field, fused=True)
                draw(ax, epochs, factor * values, color=colour, ls='--', label=f'{split}, fused')
    draw(rate, *run.curve('train', 'lr'), color=COLOURS[2], label='learning rate')


def _draw_each(run: RunFiles, panels: Sequence[Axes]):
    """Draw a colour for each member, which differ: solid for the images that choose, dotted for training."""
    lines = [('train', STYLES[2], 1.2), (run.watched, STYLES[0], 1.6)]
    for ax, field, factor in zip(panels, ('loss', 'accuracy', 'lr'), (1, 100, 1)):
        for split, style, width in [('train', STYLES[0], 1.6)] if field == 'lr' else lines:
            epochs, values = run.curve(split, field)
            # One member [1,E] at a time: a mean over different members would say nothing.
            for colour, line in zip(member_colours(run), values):
                draw(ax, epochs, factor * line[None], color=colour, ls=style, lw=width)
            if run.fused and field != 'lr':
                epochs, values = run.curve(split, field, fused=True)
                draw(ax, epochs, factor * values, color=mpl.rcParams['text.color'], ls=style, lw=width + 0.6)


def _legend(run: RunFiles) -> list[Line2D]:
    """Return what stands for the members, the fused prediction, and the two kinds of images."""
    ink = mpl.rcParams['text.color']
    lines = [
        Line2D([], [], color=colour, label=shorten(name))
        for name, colour in zip(run.titles(), member_colours(run))
    ]
    lines = first_of(lines)
    if run.fused:
        lines.append(Line2D([], [], color=ink, lw=2.2, label=FUSED))
    styles = ((run.watched, STYLES[0]), ('train', STYLES[2]))
    return lines + [Line2D([], [], color=ink, ls=style, lw=1, label=name) for name, style in styles]


def member_colours(run: RunFiles) -> list:
    """Return a colour for each member; if members differ in a number, from dark to light by this number."""
    return colours(len(run.members), next(iter(run.numbers().values()), None))


def colours(count: int, numbers: Sequence[float] | None = None) -> list:
    """Return a colour for each of `count` lines: from dark to light by `numbers`, or if lines are many."""
    if numbers is None and count <= len(COLOURS):
        return COLOURS[:count]
    order = np.arange(count) if numbers is None else np.argsort(np.argsort(numbers))
    # The yellow end of viridis cannot be seen on a white page, nor its dark end on a dark page.
    dark = mpl.rcParams['figure.facecolor'] == THEMES['dark'][0]
    ends = (0.3, 1.0) if dark else (0.0, 0.88)
    return [mpl.colormaps['viridis'](np.interp(i, (0, max(1, count - 1)), ends)) for i in order]


def draw_comparison(runs: Sequence[RunFiles]) -> Figure:
    """Draw the accuracy of all runs on the split that each of them watches, or else in training."""
    figure = Figure(figsize=(12, max(4, 0.24 * len(runs) + 1)), layout='constrained')
    whole, end = figure.subplots(1, 2)
    finished = any(run.results for run in runs)
    for i, run in enumerate(runs):
        # After the last colour, the colours repeat with another line style.
        colour, style = COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % len(STYLES)]
        # The number identifies the run in the table, which shows its full name.
        split, (epochs, values) = run.watched, run.curve(run.watched, 'accuracy', run.fused)
        # A run without held-out images is tested once, at its end: a point is no curve.
        if len(epochs) < 2 < run.epoch:
            split, (epochs, values) = 'train', run.curve('train', 'accuracy', run.fused)
        name = f'{run.number}. {shorten(run.name)} ({split})'
        # Runs that have only begun would stretch the axis on which finished runs are told apart.
        late = (epochs >= 0.7 * run.epoch) & (bool(run.results) or not finished)
        for ax, part in ((whole, epochs > 0), (end, late)):
            shown = epochs[part], 100 * values[:, part]
            draw(ax, *shown, members=False, color=colour, ls=style, label=name)
    ending = 'last 30% of finished runs' if finished else 'last 30% so far'
    label((whole, end), ('accuracy (%)', f'accuracy (%), {ending}'))
    add_legend(figure, whole.lines, loc='outside right upper')
    return figure


@cache
def _letters() -> frozenset[int]:
    """Return the letters that the font of the figures has."""
    return frozenset(font_manager.get_font(font_manager.findfont('DejaVu Sans')).get_charmap())


def shorten(name: str, length: int = 32) -> str:
    """Return a name for a figure: short, and with a ? for each letter that its font lacks."""
    name = ''.join(c if ord(c) in _letters() else '?' for c in show(name))
    if len(name) <= length:
        return name
    end = min(7, length // 3)
    return f'{name[: length - 3 - end]}...{name[-end:]}'
