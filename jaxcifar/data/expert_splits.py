"""Assign training images to experts and to the fusion that follows, or read an assignment from files.

The *fusion holdout* is drawn first, and no expert ever sees it. The rest is the *pool*: `overlap` gives
each expert the shared images and some of its own, `disjoint` gives each its own classes. Everything is
a function of the labels and `config.experts`, so an expert's images depend on its id alone.
"""

import json
import os
from pathlib import Path

import numpy as np

from jaxcifar.machine.errors import UserError


def holdout_and_pool(images: int, config) -> tuple[np.ndarray, np.ndarray]:
    """Draw (fusion holdout, pool): sorted indices into this many images."""
    # Every expert's run must hold out the same, so nothing but seed and size decides.
    order = np.random.default_rng(config.experts.seed).permutation(images)
    held = _size('experts.holdout', config.experts.holdout, images)
    return np.sort(order[:held]), np.sort(order[held:])


def fusion_validation(images: int, config) -> np.ndarray:
    """Draw the part of the fusion holdout on which fusion chooses its weights; sorted indices."""
    held, _ = holdout_and_pool(images, config)
    order = np.random.default_rng(config.experts.seed).permutation(held)
    return np.sort(order[-_size('experts.validation', config.experts.validation, len(held)) :])


def overlap(pool: np.ndarray, config) -> list[np.ndarray]:
    """Draw each expert's images: the shared ones, then its own.

    Raises `UserError` where the shares exceed the pool.
    """
    e = config.experts
    # Shares that add up to 1 may exceed it slightly by rounding.
    if (total := e.shared + e.count * e.unique) > 1 + 1e-9:
        raise UserError(
            f'expected experts.shared + experts.count * experts.unique of at most 1, got {e.shared:g} + '
            f'{e.count} * {e.unique:g} = {total:g}: lower one of them'
        )
    order = np.random.default_rng(e.seed).permutation(pool)
    shared, unique = round(e.shared * len(pool)), round(e.unique * len(pool))
    # The slices do not overlap, so no two experts own the same image.
    own = [order[shared + k * unique : shared + (k + 1) * unique] for k in range(e.count)]
    return [np.concatenate([order[:shared], images]) for images in own]


def disjoint(pool: np.ndarray, labels: np.ndarray, classes: int, config) -> list[np.ndarray]:
    """Pick each expert's images: those of the pool in its classes, the C classes being cut into K runs."""
    count = config.experts.count
    if count > classes:
        raise UserError(f'split=disjoint: experts.count must be at most the {classes} classes, got {count}')
    # Runs of nearly equal length where C is no multiple of K.
    owner = np.arange(classes) * count // classes
    return [pool[owner[labels[pool]] == k] for k in range(count)]


def rectangular(rows: list[np.ndarray], members: tuple[int, ...]) -> np.ndarray:
    """Stack these members' rows to [K,n], padded with -1; n is the length of the longest of all rows.

    A member's epoch then has the same length whether it trains alone or with others.
    """
    if not all(len(rows[k]) for k in members):
        sizes = [len(row) for row in rows]
        raise UserError(f'expected images for each of the members {members}, got {sizes} of them')
    # The longest of all rows counts, even if this run leaves out the member that it belongs to.
    table = np.full((len(members), max(len(row) for row in rows)), -1)
    for filled, k in zip(table, members):
        filled[: len(rows[k])] = rows[k]
    return table


def rows_of(train: np.ndarray) -> list[np.ndarray]:
    """Return each member's images, or those that all share, from [K,n] or [n]."""
    return [row[row >= 0] for row in np.atleast_2d(train)]


def _size(field: str, size: float, images: int) -> int:
    """Convert a share or a number of the images to a number; raise `UserError` for none or all of them."""
    count = int(size) if size >= 1 else round(size * images)
    if not 0 < count < images:
        raise UserError(f'expected {field} to be some of the {images} images, got {size:g}: none or all')
    return count


def read_rows(paths: str, images: int) -> list[np.ndarray]:
    """Read index files: one row of indices below `images` for all members, or one row per member.

    `paths` is a file with one list or K lists, or K files with one list each, joined by commas. Files are
    .npy, .json (a list or a list of lists) or .txt (a list). Raises `UserError` naming any other file.
    """
    rows = _read_files(paths)
    low, high = min(row.min() for row in rows), max(row.max() for row in rows)
    if low < 0 or high >= images:
        wrong = low if low < 0 else high
        raise UserError(f'{paths}: expected indices of training images, 0 to {images - 1}, got {wrong}')
    return rows


def count_rows(paths: str) -> int:
    """Return how many rows index files hold; raises as `read_rows`."""
    return len(_read_files(paths))


def _read_files(paths: str) -> list[np.ndarray]:
    names = paths.split(',')
    files = [_read(Path(os.path.expanduser(name.strip()))) for name in names]
    # Only a single file may hold several lists; of several files each is one member's.
    if len(files) == 1:
        return files[0]
    for name, rows in zip(names, files):
        if len(rows) > 1:
            raise UserError(f'{name}: expected one list, as each of {len(files)} files has, got {len(rows)}')
    return [row for (row,) in files]


def _read(path: Path) -> list[np.ndarray]:
    """Read one file's lists of indices."""
    try:
        if path.suffix not in READERS:
            raise ValueError(f'expected a name that ends in {", ".join(READERS)}')
        content = READERS[path.suffix](path)
        if not isinstance(content, list):
            raise ValueError(f'expected a list of indices, got a {type(content).__name__}')
        # An empty list is no list of lists; the check below names it.
        nested = bool(content) and all(isinstance(row, list) for row in content)
        rows = [np.array(row) for row in (content if nested else [content])]
        for row in rows:
            if row.ndim != 1 or not len(row) or row.dtype.kind not in 'iu':
                raise ValueError('expected a list of whole numbers, or a list of such lists')
            # A repeated index would count an image twice in every epoch.
            values, times = np.unique(row, return_counts=True)
            if times.max() > 1:
                index, most = values[times.argmax()], times.max()
                raise ValueError(f'expected each index once, got {index} {most} times')
        return rows
    except Exception as error:  # numpy and json raise nearly anything on damaged bytes
        reason = getattr(error, 'strerror', None) or str(error) or type(error).__name__
        raise UserError(f'{path}: {" ".join(reason.split())}') from None


READERS = {
    '.npy': lambda path: np.load(path, allow_pickle=False).tolist(),
    '.json': lambda path: json.loads(path.read_text()),
    '.txt': lambda path: [int(word) for word in path.read_text().split()],
}
