"""Lay the tables and figures of a report out as Markdown and HTML."""

import base64
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

from jaxcifar.machine.text import escape_markdown
from jaxcifar.report.classes import WIDE
from jaxcifar.report.figures import Picture

UNFINISHED, ON_TEST = 'running/unfinished', 'SELECTED ON TEST'
Table = list[list[str]]  # the first row is the header


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


def numeric(table: Table) -> list[bool]:
    """Return which columns hold numbers, which are aligned to the right; the first one holds names."""
    number = re.compile(r'\d[\d.,:/ ±]*|nan')
    return [i > 0 and any(map(number.fullmatch, c[1:])) for i, c in enumerate(zip(*table))]


def breakable(text: str) -> Markup:
    """Return a cell's text as HTML that may break within names, but not between a number and its unit."""
    kept = str(escape(re.sub(r' (?=[±%])|(?<=±) ', '\xa0', text)))
    return Markup(re.sub(r'([_/=,-])(?=\w{3})', r'\1<wbr>', kept))


def data(png: bytes) -> str:
    """Return a PNG as a data URI, so that it is embedded in the page."""
    return f'data:image/png;base64,{base64.b64encode(png).decode()}'


class Section(NamedTuple):
    """Hold one run's section of the page: tables, which may be empty, and pictures.

    curves follow the reader's theme; drawn are the PNG files that the run has written, by their headings.
    """

    number: int
    title: str
    finished: bool
    curves: Picture
    members: Table
    long_tail: Sequence
    drawn: dict[str, bytes]
    classes: Table
    sessions: Table


def page(
    tables: Sequence[Table], notes: Sequence[str], sections: Sequence[Section], comparison: Picture | None
) -> str:
    """Return the whole page, with a section per run; every word that comes from a file is escaped."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    environment.filters.update(numeric=numeric, breakable=breakable, data=data)
    done = sum(section.finished for section in sections)
    return environment.get_template('page.html').render(
        tables=tables,
        notes=notes,
        runs=sections,
        comparison=comparison,
        subtitle=f'{done} of {len(sections)} runs finished · {datetime.now():%Y-%m-%d %H:%M}',
        unfinished=UNFINISHED,
        on_test=ON_TEST,
        wide=WIDE,
    )
