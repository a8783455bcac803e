"""Read and write whole data sets as .npz files."""

import errno
import os
import re
import tempfile
import zipfile
from pathlib import Path

import numpy as np

LONGEST = 200  # characters of somebody else's message
READ_ONLY = errno.EACCES, errno.EPERM, errno.EROFS  # why nothing can be written to a shared data folder
KEYS = ('x_train', 'y_train', 'x_test', 'y_test', 'classes')


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write the .npz atomically, and uncompressed, because it then loads faster."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix='.write-') as folder:
        part = Path(folder, path.name)
        np.savez(part, **arrays)  # type: ignore[arg-type]
        os.replace(part, path)


def stored_size(path: Path) -> int | None:
    """Return the side of a file's training images, read from a header; None where it does not say."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open('x_train.npy') as file:
            np.lib.format.read_magic(file)
            shape, *_ = np.lib.format.read_array_header_1_0(file)
        return shape[1] if len(shape) == 4 else None
    except Exception:  # zipfile and numpy raise nearly anything; `read_npz` says what is wrong
        return None


class Unusable(ValueError):
    """Report an intact file whose contents are not a data set."""


def read_npz(
    path: Path, parts: tuple[str, ...] = ('train', 'test')
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Read a data set's arrays from an .npz file: ({key of KEYS: array}, the names of the others).

    parts: the parts to read; the first is required.

    Raises ValueError with a one-line message for a file that is missing or damaged, or has other keys.
    """
    try:
        if path.exists() and not path.is_file():
            raise Unusable(
                'expected a file, got a folder' if path.is_dir() else 'expected a file, got a device'
            )
        with path.open('rb') as raw:
            return _arrays(np.load(raw, allow_pickle=False), parts)
    except FileNotFoundError:
        raise ValueError('no such file') from None
    except Unusable:
        raise
    except Exception as error:  # zipfile and numpy raise nearly anything on damaged bytes
        text = getattr(error, 'strerror', None) or str(error) or type(error).__name__
        text = re.sub(' on line .*<ast.*', ' in a header', ' '.join(text.split()))
        # numpy mistakes anything but a zip archive or an array for a pickle, and tells how to run it.
        text = 'no zip archive of arrays' if 'pickled' in text else text
        raise ValueError(f'not a whole .npz file ({text[:LONGEST]})') from error


def _arrays(file, parts: tuple[str, ...]) -> tuple[dict[str, np.ndarray], list[str]]:
    if isinstance(file, np.ndarray):
        raise Unusable('not a whole .npz file but one array: write x_train, y_train and others with np.savez')
    others = sorted(set(file.files) - set(KEYS))
    wanted = f'x_{parts[0]}', f'y_{parts[0]}'
    if missing := [key for key in wanted if key not in file.files]:
        got = (', '.join(file.files) or 'nothing')[:LONGEST]
        verb = 'is' if len(missing) == 1 else 'are'
        raise Unusable(f'{" and ".join(missing)} {verb} missing: expected {" and ".join(wanted)}, got {got}')
    keys = [key for key in KEYS if key[2:] in parts or key == 'classes']
    return {key: _array(file, key) for key in keys if key in file.files}, others


def _array(file, key: str) -> np.ndarray:
    try:
        array = file[key]
    except MemoryError as error:
        raise Unusable(f'{key} does not fit into memory, or is damaged ({error})') from None
    except ValueError as error:
        # Only this message tells pickled objects from a damaged array.
        if 'allow_pickle' not in str(error):
            raise
        raise Unusable(
            f'{key}: expected numbers, got pickled Python objects; convert: np.array({key}.tolist())'
        ) from None
    if not isinstance(array, np.ndarray):  # numpy returns the bytes of a member that is no .npy file
        raise Unusable(f'{key}: expected an array, got other bytes: write it with np.savez')
    return array
