"""Format numbers and values for readers, each kind in one way only."""

import html
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

# Unicode's categories of control characters, lone surrogates, and separators of lines and paragraphs.
BREAKS = ('Cc', 'Cs', 'Zl', 'Zp')
WIDE = 1000  # columns of a terminal that cuts nothing off


def duration(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{rest:02d}'


def about(seconds: float) -> str:
    """Return a time in the largest unit of which it has at least two: 'about 17 days'."""
    # At least two of a unit, since rounding 1.5 days to 2 would mislead.
    for unit, size in (('days', 86_400), ('hours', 3600), ('minutes', 60)):
        if seconds >= 2 * size:
            return f'about {seconds / size:.0f} {unit}'
    return f'about {max(1, round(seconds))} s'


def plus_minus(mean: float, std: float | None = None, form: str = '.2f') -> str:
    """Return 'mean ± std' with both numbers in the format `form`, or the mean alone."""
    return f'{mean:{form}}' if std is None else f'{mean:{form}} ± {std:{form}}'


def spread(values: Sequence[float] | np.ndarray, form: str = '.2f') -> str:
    """Return the mean of K numbers ± their sample standard deviation, which one number does not have."""
    return plus_minus(
        float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, form
    )


def percent(share: float, std: float | None = None) -> str:
    """Return a fraction in percent, '93.12 %', or with its standard deviation '93.12 ± 0.10 %'."""
    return plus_minus(100 * share, None if std is None else 100 * std) + ' %'


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1):
    """Print rows under their headings, the first `left` columns to the left and the others to the right."""
    # Rich takes a tenth of a second to import, and few commands print a table.
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify='left' if i < left else 'right', no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # Wider than any terminal: a file or a narrow window must not lose a column.
    Console(width=WIDE, highlight=False, markup=False).print(table)


def show(value, length: int = 60) -> str:
    """Return a value as errors show it, shortened: text as it is, anything else as its repr."""
    try:
        words = value if isinstance(value, str) and value.isprintable() and value else repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        is_number = isinstance(value, int)
        words = f'a number of about {value.bit_length() * 3 // 10:,} digits' if is_number else 'huge numbers'
    # An error is one line, whatever the value holds.
    words = ' '.join(words.split())
    return words if len(words) <= length else f'{words[: length - 3]}...'


def is_plain(text: str) -> bool:
    """Return whether text can be printed on one line: no control characters and no undecodable bytes."""
    return not any(unicodedata.category(c) in BREAKS for c in text)


def one_line(text: str) -> str:
    """Return text with characters that are not `is_plain` escaped as in Python: a line break as \\n."""
    return ''.join(c if is_plain(c) else repr(c)[1:-1] for c in text)


def escape_markdown(text: str) -> str:
    """Return text as Markdown that shows it as it is: names in it come from files."""
    # Within a word an underscore is literal in Markdown already.
    return html.escape(re.sub(r'([\\|`*\[\]~]|(?<!\w)_|_(?!\w))', r'\\\1', text), quote=False)
