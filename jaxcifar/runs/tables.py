"""Append rows to CSV files, and continue them when a run is resumed."""

import csv
import io
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from jaxcifar.machine.files import set_aside, write_bytes, write_csv, write_text

LOST = '\ufffd'  # Unicode's replacement character, for bytes that are not text


class Table:
    """Append rows to a CSV file, which keeps the columns that it began with."""

    def __init__(self, path: Path, columns: tuple[str, ...]):
        self._file = path.open('a+', newline='')
        self._file.seek(0)
        # A newer version with more columns keeps to the old ones, so that rows stay aligned.
        self.columns = next(csv.reader(self._file), None) or columns
        self._file.seek(0, os.SEEK_END)
        self._writer = csv.DictWriter(self._file, self.columns, lineterminator='\n')
        if self._file.tell() == 0:
            self._writer.writeheader()

    def write(self, **row):
        """Append a row; what is missing stays empty."""
        self._writer.writerow({k: _format(row.get(k)) for k in self.columns})

    def flush(self) -> int:
        """Put all rows on disk; returns the file's length in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self):
        """Close the file."""
        self._file.close()


def _format(value) -> str:
    if value is None:
        return ''
    return f'{value:.8g}' if isinstance(value, float) else str(value)


def take_up(path: Path, needed: set[str], length: int | None = None, step: int = sys.maxsize):
    """Cut a table back to the `length` bytes that a run had written at `step`; None keeps all of it.

    needed: columns without which the file is not ours, and is set aside. If bytes are missing, only intact
    rows up to the step are kept, and a line on stderr says so.
    """
    data = path.read_bytes() if path.exists() else b''
    if b'\r\n' in data:  # a Windows editor has saved it, so that its length differs from ours
        data = data.replace(b'\r\n', b'\n')
        write_bytes(path, data)
    # A last line without a line break was cut short by a crash.
    length = data.rfind(b'\n') + 1 if length is None else length
    kept, header = data[:length], _rows(data.partition(b'\n')[0])
    if kept and not (header and needed <= set(header[0])):
        why = f'{path} is not a jaxcifar file (expected columns {", ".join(sorted(needed))})'
        set_aside(path, why, 'its rows begin anew')
    elif len(kept) < length or (kept and not _is_whole(kept)):
        _mend(path, kept, step)
        print(f'warning: {path} has lost rows; the run continues with the remaining ones', file=sys.stderr)
    elif data:
        os.truncate(path, length)


def widen(path: Path, length: int, columns: Iterable[str]) -> int:
    """Add the columns that the first `length` bytes of a table lack, with empty cells; return their length.

    Nothing is changed where rows are lost: `take_up` says so and mends the table.
    """
    data = path.read_bytes().replace(b'\r\n', b'\n')  # an editor of Windows may have saved it
    header, *rows = _rows(data[:length]) or [[]]
    missing = [column for column in columns if column not in header]
    if not (header and missing) or len(data) < length or not _is_whole(data[:length]):
        return length
    write_csv(path, [*header, *missing], [[*row, *[''] * len(missing)] for row in rows])
    return path.stat().st_size


def _rows(data: bytes) -> list[list[str]]:
    """Return the cells of a table; undecodable bytes become a character that no cell of ours contains."""
    # The csv reader would stop at a NUL, so that becomes the replacement character as well.
    text = data.decode(errors='replace').replace('\0', LOST)
    try:
        return list(csv.reader(io.StringIO(text, newline='')))
    except csv.Error:
        return []


def _is_whole(data: bytes) -> bool:
    """Return whether all lines are ended, are text, and have the header's number of cells."""
    rows = _rows(data)
    alike = len({len(row) for row in rows}) == 1
    return data.endswith(b'\n') and alike and not any(LOST in cell for row in rows for cell in row)


def _mend(path: Path, data: bytes, step: int):
    """Write the table again, of its whole rows up to the step."""
    header, *rows = _rows(data[: data.rfind(b'\n') + 1]) or [[]]

    def belongs(row: list[str]) -> bool:
        readable = len(row) == len(header) and not any(LOST in cell for cell in row)
        at = row[header.index('step')] if readable else ''
        # isdigit alone takes superscripts too, which int refuses.
        return at.isascii() and at.isdigit() and int(at) <= step

    if header:
        write_csv(path, header, [row for row in rows if belongs(row)])
    else:
        write_text(path, '')
