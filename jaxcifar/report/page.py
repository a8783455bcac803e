"""Lay the tables and figures of a report out as Markdown and HTML."""

import base64
import html
import re
from collections.abc import Sequence
from datetime import datetime
from functools import partial

from jaxcifar.machine.text import escape_markdown
from jaxcifar.report.figures import Picture, draw_comparison, draw_run, render
from jaxcifar.report.runs import Run, show
from jaxcifar.report.template import TEMPLATE

UNFINISHED, ON_TEST = 'running/unfinished', 'SELECTED ON TEST'
Table = list[list[str]]  # the first row is the header


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
