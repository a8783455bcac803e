"""Draw the figures of a report, and lay its tables out as Markdown and HTML."""

import base64
import html
import io
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxcifar.machine.text import escape_markdown
from jaxcifar.report.runs import Run, show
from jaxcifar.report.template import TEMPLATE

UNFINISHED, ON_TEST = 'running/unfinished', 'SELECTED ON TEST'
Table = list[list[str]]  # the first row is the header
Picture = dict[str, bytes]  # theme -> PNG
# Okabe and Ito's colours without black and yellow, which vanish on a dark and on a light page.
COLOURS = ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00']
DPI = 140
STYLES = ['-', '--', ':', '-.']
THEMES = {  # background, text, grid
    'light': ('#ffffff', '#24292f', '#e3e7ec'),
    'dark': ('#161b22', '#d1d7e0', '#2b323b'),
}


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
    ax.plot(epochs, mean, marker=marker, ms=5, lw=1.7, **line)
    if len(values) > 1:
        ax.fill_between(epochs, mean - std, mean + std, color=line['color'], alpha=0.18, lw=0)
    if len(values) > 1 and members:
        ax.plot(epochs, values.T, color=line['color'], marker=marker, ms=2, lw=0.6, alpha=0.5)


def add_legend(owner: Axes | Figure, lines: Sequence, **where):
    """Add a legend whose labels are taken literally: names come from files and may hold a '$'."""
    if lines:
        for text in owner.legend(lines, [line.get_label() for line in lines], **where).get_texts():
            text.set_parse_math(False)


def label(panels: Sequence[Axes], titles: Sequence[str]):
    """Give each panel its title, and one without curves the words 'nothing yet'."""
    for ax, title in zip(panels, titles):
        ax.set_xlabel('epoch')
        ax.set_title(title, loc='left')
        if not ax.lines:
            ax.text(0.5, 0.5, 'nothing yet', ha='center', va='center', transform=ax.transAxes)


def draw_run(run: Run) -> Figure:
    """Draw loss, accuracy and learning rate of one run."""
    figure = Figure(figsize=(12, 3.3), layout='constrained')
    loss, accuracy, rate = figure.subplots(1, 3)
    # One colour a split in both panels, solid for members and dashed for a fused prediction.
    for split, colour in zip(('train_batch', 'train', run.watched), (COLOURS[4], *COLOURS)):
        for ax, field, factor in ((loss, 'loss', 1), (accuracy, 'accuracy', 100)):
            epochs, values = run.curve(split, field)
            draw(ax, epochs, factor * values, color=colour, label=split)
            if run.fused:
                epochs, values = run.curve(split, field, fused=True)
                draw(ax, epochs, factor * values, color=colour, ls='--', label=f'{split}, fused')
    draw(rate, *run.curve('train', 'lr'), color=COLOURS[2], label='learning rate')
    label((loss, accuracy, rate), ('loss (NLL, nats)', 'accuracy (%)', 'learning rate'))
    for ax in (loss, accuracy):
        # matplotlib names lines without a label _child0, and so on: the thin ones of members.
        add_legend(ax, [line for line in ax.lines if not line.get_label().startswith('_')])
    return figure


def draw_comparison(runs: Sequence[Run]) -> Figure:
    """Draw the accuracy of all runs on the split that each of them watches."""
    figure = Figure(figsize=(12, max(4, 0.24 * len(runs) + 1)), layout='constrained')
    whole, end = figure.subplots(1, 2)
    finished = any(run.results for run in runs)
    for i, run in enumerate(runs):
        # When the colours are used up, they begin again with another style of line.
        colour, style = COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % len(STYLES)]
        # The number finds the run in the table, where its full name stands.
        name = f'{run.number}. {shorten(run.name)} ({run.watched})'
        epochs, values = run.curve(run.watched, 'accuracy', run.fused)
        # Runs that have only begun would stretch the axis on which finished runs are told apart.
        late = (epochs >= 0.7 * run.epoch) & (bool(run.results) or not finished)
        for ax, part in ((whole, epochs > 0), (end, late)):
            shown = epochs[part], 100 * values[:, part]
            draw(ax, *shown, members=False, color=colour, ls=style, label=name)
    ending = 'last 30% of finished runs' if finished else 'last 30% so far'
    label((whole, end), ('accuracy (%)', f'accuracy (%), {ending}'))
    add_legend(figure, whole.lines, loc='outside right upper')
    return figure


def shorten(name: str, length: int = 32) -> str:
    """Return a name for a figure: short, and without letters that its font may lack."""
    name = show(name).encode('ascii', 'replace').decode()
    return name if len(name) <= length else f'{name[: length - 10]}...{name[-7:]}'


def render(draw_figure: Callable[[], Figure]) -> Picture:
    """Return the figure as a PNG for each theme."""
    picture = {}
    for theme, (page, ink, grid) in THEMES.items():
        style = {
            **dict.fromkeys(('figure.facecolor', 'axes.facecolor', 'legend.facecolor'), page),
            **dict.fromkeys(('text.color', 'axes.labelcolor', 'xtick.color', 'ytick.color'), ink),
            **dict.fromkeys(('axes.edgecolor', 'grid.color', 'legend.edgecolor'), grid),
            **dict.fromkeys(('axes.spines.top', 'axes.spines.right'), False),
            **dict.fromkeys(('axes.grid', 'axes.axisbelow'), True),
            **dict.fromkeys(('font.size', 'axes.titlesize'), 10),
        }
        # The style counts at drawing: each theme draws the figure anew.
        file = io.BytesIO()
        with mpl.rc_context(style):  # type: ignore[arg-type]
            draw_figure().savefig(file, format='png', dpi=DPI)
        picture[theme] = file.getvalue()
    return picture


def curves(run: Run) -> dict[str, Picture]:
    """Return {file stem: picture} of a run's curves."""
    # Names of runs become names of files, on any file system.
    slug = re.sub(r'[^\w.-]+', '_', run.name, flags=re.ASCII)[:60]
    return {f'curves_{run.number:02d}_{slug}': render(partial(draw_run, run))}


def comparison(runs: Sequence[Run]) -> dict[str, Picture]:
    """Return {file stem: picture} of several runs laid over one another; empty for one."""
    return {'comparison': render(partial(draw_comparison, runs))} if len(runs) > 1 else {}


def markdown(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Return the tables, the second under the heading 'Settings that differ', and the notes."""
    parts = [markdown_table(tables[0]), *(f'- {escape_markdown(note)}' for note in notes)]
    if tables[1]:
        parts += ['', '### Settings that differ', '', markdown_table(tables[1])]
    return '\n'.join(parts) + '\n'


def markdown_table(table: Table) -> str:
    """Return a table in Markdown, its first row the header."""
    # The warning must not be overlooked, in this format either.
    rows = [[f'**{text}**' if text == ON_TEST else escape_markdown(text) for text in row] for row in table]
    # Padded cells keep the table readable as plain text.
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows.insert(1, ['-' * width for width in widths])
    lines = [' | '.join(text.ljust(w) for text, w in zip(row, widths)) for row in rows]
    return ''.join(f'| {line} |\n' for line in lines)


def html_table(table: Table, links: bool = False) -> str:
    """Return the table as HTML; with `links`, its n-th row leads to the section of the n-th run."""
    number = re.compile(r'\d[\d.,:/ ±]*|nan')
    # A column of numbers is aligned to the right; the first one holds names.
    right = [i > 0 and any(map(number.fullmatch, c[1:])) for i, c in enumerate(zip(*table))]
    rows = []
    for n, row in enumerate(table):
        cells = []
        for i, (text, numeric) in enumerate(zip(row, right)):
            tag = 'th' if n == 0 or i == 0 else 'td'
            content = html.escape(re.sub(r' (?=[±%])|(?<=±) ', '\xa0', text))  # no break here,
            content = re.sub(r'([_/=,-])(?=\w{3})', r'\1<wbr>', content)  # but here
            if text in (UNFINISHED, ON_TEST):
                content = f'<b class="{"bad" if text == ON_TEST else "wait"}">{content}</b>'
            if links and n and not i:
                content = f'<a href="#run-{n}">{content}</a>'
            cells.append(f'<{tag}{" class=n" if numeric else ""}>{content}</{tag}>')
        rows.append(f'<tr>{"".join(cells)}</tr>')
    body = f'<thead>{rows[0]}</thead><tbody>{"".join(rows[1:])}</tbody>'
    return f'<div class="scroll"><table>{body}</table></div>'


def html_picture(picture: Picture, alt: str) -> str:
    """Return a picture within the page, in the theme of its reader."""
    light, dark = (base64.b64encode(picture[theme]).decode() for theme in ('light', 'dark'))
    return (
        '<picture><source media="screen and (prefers-color-scheme: dark)" '
        f'srcset="data:image/png;base64,{dark}">'
        f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{light}"></picture>'
    )


def page(
    tables: Sequence[Table],
    notes: Sequence[str],
    sections: Sequence[tuple[Run, Table, Sequence, Table]],
    drawn: dict[str, Picture],
) -> str:
    """Return the whole page, with a section per run; every word that comes from a file is escaped."""
    # What all runs have together, and then each run by itself.
    parts = [html_table(tables[0], links=True)]
    parts += ['<ul class="notes">', *(f'<li>{html.escape(note)}</li>' for note in notes), '</ul>']
    if 'comparison' in drawn:
        parts += ['<h2>Comparison</h2>', html_picture(drawn['comparison'], 'accuracy of all runs')]
    if tables[1]:
        parts += ['<h2>Settings that differ</h2>', html_table(tables[1])]
    # The pictures of runs come first in the dict, in the order of the sections.
    for (run, members, extras, sessions), picture in zip(sections, drawn.values()):
        title = f'{run.number}. {show(run.name)}'
        parts.append(f'<section id="run-{run.number}"><h2>{html.escape(title)}</h2>')
        parts.append(html_picture(picture, f'loss, accuracy and learning rate of {title}'))
        parts += ['<h3>Members</h3>', html_table(members)] if members else []
        for heading, table, drawing in extras:
            parts += [f'<h3>{html.escape(heading)}</h3>', html_picture(drawing, f'{heading} of {title}')]
            parts += [html_table(table)] if table else []
        parts += ['<h3>Provenance</h3>', html_table(sessions)] if sessions else []
        parts.append('</section>')
    done = sum(bool(run.results) for run, *_ in sections)
    subtitle = f'{done} of {len(sections)} runs finished · {datetime.now():%Y-%m-%d %H:%M}'
    return TEMPLATE.substitute(body='\n'.join(parts), subtitle=subtitle)
