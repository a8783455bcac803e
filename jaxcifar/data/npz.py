"""Whole data sets in .npz files."""

import os
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes the .npz so that nobody ever sees half of it; uncompressed, for it loads faster."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix='.write-') as folder:
        part = Path(folder, path.name)
        np.savez(part, **arrays)  # type: ignore[arg-type]
        os.replace(part, path)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a data set in an .npz file; ValueError says what is wrong with it."""
    try:
        with path.open('rb') as raw, np.load(raw, allow_pickle=False) as file:
            keys = ('x_train', 'y_train', 'x_test', 'y_test', 'classes')
            return {key: file[key] for key in keys if key in file}
    except FileNotFoundError:
        raise ValueError('no such file') from None
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f'not a whole .npz file ({error})') from error
