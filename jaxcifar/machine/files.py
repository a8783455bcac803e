"""Write files whole or not at all, and report in one line what is wrong with a file that is read."""

import atexit
import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxcifar.machine.errors import UserError

# Exceptions that parsers raise on content that this package did not write.
FAULTS = (ArithmeticError, AttributeError, EOFError, LookupError, RecursionError, StopIteration, TypeError,
          ValueError, zipfile.BadZipFile, zlib.error)  # fmt: skip


@contextlib.contextmanager
def reading(path: Path, remedy: str = 'restore the original file') -> Iterator[None]:
    """Turn any exception about a file's content into a one-line `UserError` that names the file."""
    try:
        yield
    except FAULTS as error:
        # What a parser quotes may be a whole file: one short line is enough.
        why = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
        raise UserError(f'{path} is not a jaxcifar file ({why})', remedy) from None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


_writes = True


def leave_to_the_first_host():
    """Make this process write nothing from here on: another host writes the same files."""
    global _writes
    _writes = False


_new_folders: list[Path] = []


def make_new_folder(path: Path):
    """Make a folder and its parents; raise `FileExistsError` if it exists.

    What is still empty when the process ends is removed again.
    """
    path = path.absolute()
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True)
    _new_folders.extend(made)


@atexit.register
def remove_empty_folders():
    """Remove the empty ones among the folders of `make_new_folder`."""
    for folder in _new_folders:  # the innermost comes first
        with contextlib.suppress(OSError):
            folder.rmdir()


def write_atomically(path: Path, write: Callable[[BinaryIO], object]):
    """Call `write(file)` on a temporary binary file that then becomes `path`, whole or not at all.

    Only one process at a time may write `path`; it overwrites what a killed one left. Several hosts all
    call this, and only the first writes.
    """
    if not _writes:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder: only within one file system is a rename atomic.
    temporary = path.with_name(f'.{path.name}.tmp')
    try:
        with open(temporary, 'wb') as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        # Only after the bytes are on the disk, or a power cut could leave an empty file by that name.
        os.replace(temporary, path)
    finally:
        # After a success the temporary file no longer exists; after a failure it is half written.
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes):
    """Write `data`, whole or not at all."""
    write_atomically(path, lambda file: file.write(data))


def write_where_asked(path: Path, data: bytes) -> Path:
    """Write `data` where the user wants it, and return the path; `UserError` where that cannot be."""
    try:
        write_bytes(path, data)
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror}') from error
    return path


def write_text(path: Path, text: str):
    """Write `text` in UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Iterable]):
    """Write a table, a line of columns and then the rows, whole or not at all."""
    write_bytes(path, csv_bytes(columns, rows))


def csv_bytes(columns: Iterable[str], rows: Iterable[Iterable]) -> bytes:
    """Return a table as the bytes of a CSV file: a line of columns and then the rows."""
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows([columns, *rows])
    return text.getvalue().encode()


def write_json(path: Path, data):
    """Write `data` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(data, indent=2) + '\n')


def write_arrays(path: Path, arrays: dict[str, np.ndarray] | np.ndarray):
    """Write one array as .npy, or several with their names as .npz, whole or not at all."""
    if isinstance(arrays, dict):
        write_atomically(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
    else:
        write_atomically(path, lambda file: np.save(file, arrays))


def read_json(path: Path, default=None, **needed: type):
    """Return the object in a JSON file, or `default` where there is no such file.

    needed: keys that it must have, and the types of their values. Raises `UserError` for any other content:
    bytes that are not text, text that is not JSON, or JSON of another kind.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return default
    with reading(path):
        content = json.loads(data, object_pairs_hook=_unique)
        if not isinstance(content, dict):
            raise TypeError(f'expected an object, got {type(content).__name__}')
        for key, kind in needed.items():
            if not isinstance(content.get(key), kind):
                raise TypeError(f'expected {kind.__name__} as {key}, got {content.get(key)!r:.40}')
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict:
    """Return a JSON object as a dict; `ValueError` if a key occurs twice, which leaves its value unclear."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f'{next(k for k in keys if keys.count(k) > 1)} comes twice')
    return content


def read_json_or_set_aside(path: Path, **needed: type) -> dict | None:
    """Return what `read_json` returns; where it raises, set the file aside and return None.

    Use this for files that can be written again.
    """
    try:
        return read_json(path, **needed)
    except UserError as error:
        set_aside(path, error.fault)
        return None


def set_aside(path: Path, why: str, then: str = 'it is made again'):
    """Move a file into the folder `damaged` beside it and say so on stderr; only the first host does."""
    if _writes:
        print(f'warning: {why}: moved to {to_damaged(path)}, and {then}', file=sys.stderr)


def to_damaged(path: Path) -> Path:
    """Move a file or folder into the folder `damaged` beside it, and return that one."""
    folder = path.parent / 'damaged'
    folder.mkdir(exist_ok=True)
    # A folder does not replace one that is not empty.
    if path.is_dir():
        shutil.rmtree(folder / path.name, ignore_errors=True)
    # The bytes are kept: somebody may still read numbers out of them.
    os.replace(path, folder / path.name)
    return folder
