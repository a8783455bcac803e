"""Files that are written whole or not at all, and read with one line for what is wrong with them."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from jaxcifar.machine.errors import UserError

# What a parser raises on content that was never written by us.
FAULTS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@contextlib.contextmanager
def reading(path: Path, remedy: str = 'put back the file that was written') -> Iterator[None]:
    """Turn whatever content of another kind raises into a `UserError` of one line that names the file."""
    try:
        yield
    except FAULTS as error:
        why = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
        raise UserError(f'{path} is not a jaxcifar file ({why}): {remedy}') from None


def sha256(path: Path) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


_writes = True


def leave_to_the_first_host():
    """Make this process write nothing from here on: another host writes the same files."""
    global _writes
    _writes = False


def write_atomically(path: Path, write: Callable[[BinaryIO], object]):
    """Call `write(file)` on a temporary binary file that then becomes `path`, whole or not at all.

    One process at a time: the next one to write `path` takes over what a killed one left. Of several
    hosts, which all call this, the first writes.
    """
    if not _writes:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.tmp')
    try:
        with open(temporary, 'wb') as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes):
    """Write `data`, whole or not at all."""
    write_atomically(path, lambda file: file.write(data))


def write_text(path: Path, text: str):
    """Write `text` in UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, data):
    """Write `data` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(data, indent=2) + '\n')


def write_arrays(path: Path, arrays: dict[str, np.ndarray] | np.ndarray):
    """Write one array as .npy, or several with their names as .npz, whole or not at all."""
    if isinstance(arrays, dict):
        write_atomically(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
    else:
        write_atomically(path, lambda file: np.save(file, arrays))


def read_json(path: Path, default=None):
    """Return the file's content, or `default` where there is no such file.

    Raises `UserError` where the file is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return default
    except (RecursionError, ValueError) as error:
        raise UserError(f'{path} is damaged: {error}') from None
