"""Who sees which of the training images: experts, and what fuses them later; or the user's own files.

The *fusion holdout* is drawn first, and no expert ever sees it. The rest is the *pool*: `overlap` gives
each expert images that all share and some that are its own, `disjoint` gives each its own classes. All
of it is a function of labels and of `config.experts`, so that an expert's images depend on its id alone.
"""

import json
from pathlib import Path

import numpy as np

from jaxcifar.machine.errors import UserError


def holdout_and_pool(images: int, config) -> tuple[np.ndarray, np.ndarray]:
    """(the fusion holdout, the pool), sorted indices of so many images."""
    order = np.random.default_rng(config.experts.seed).permutation(images)
    held = _part('experts.holdout', config.experts.holdout, images)
    return np.sort(order[:held]), np.sort(order[held:])


def fusion_validation(images: int, config) -> np.ndarray:
    """The part of the fusion holdout that fusion does not train on but chooses weights by, sorted."""
    held, _ = holdout_and_pool(images, config)
    order = np.random.default_rng(config.experts.seed).permutation(held)
    return np.sort(order[-_part('experts.validation', config.experts.validation, len(held)) :])


def overlap(pool: np.ndarray, config) -> list[np.ndarray]:
    """Each expert's images: those that all share, then its own."""
    e = config.experts
    if e.shared + e.count * e.unique > 1 + 1e-9:
        raise UserError(
            f'experts.shared={e.shared} and {e.count} times experts.unique={e.unique} are more than the pool'
        )
    order = np.random.default_rng(e.seed).permutation(pool)
    shared, unique = round(e.shared * len(pool)), round(e.unique * len(pool))
    own = [order[shared + k * unique : shared + (k + 1) * unique] for k in range(e.count)]
    return [np.concatenate([order[:shared], images]) for images in own]


def disjoint(pool: np.ndarray, labels: np.ndarray, classes: int, config) -> list[np.ndarray]:
    """Each expert's images: those of the pool in its classes, the C classes being cut into K runs."""
    count = config.experts.count
    if count > classes:
        raise UserError(f'split=disjoint has {classes} classes for experts.count={count}')
    owner = np.arange(classes) * count // classes
    return [pool[owner[labels[pool]] == k] for k in range(count)]


def rectangular(rows: list[np.ndarray], members: tuple[int, ...]) -> np.ndarray:
    """[K,n] of these members' rows, n the length of the longest row of all; -1 where a row is shorter.

    So an epoch is as long for a member alone as for the same among others.
    """
    if not all(len(rows[k]) for k in members):
        raise UserError(f'of the members {members}, one gets no images: {[len(r) for r in rows]}')
    found = np.full((len(members), max(len(row) for row in rows)), -1)
    for filled, k in zip(found, members):
        filled[: len(rows[k])] = rows[k]
    return found


def rows_of(train: np.ndarray) -> list[np.ndarray]:
    """Each member's images, or those that all share, from [K,n] or [n]."""
    return [row[row >= 0] for row in np.atleast_2d(train)]


def _part(field: str, size: float, images: int) -> int:
    """A share of the images, or a number of them, neither none nor all."""
    part = int(size) if size >= 1 else round(size * images)
    if not 0 < part < images:
        raise UserError(f'{field}={size:g} of {images} images is none or all of them')
    return part


def read_rows(paths: str) -> list[np.ndarray]:
    """Index files -> one row of indices for all members, or a row for each.

    One file of a list, one of K lists, or K files of a list each, joined by commas: .npy, .json (a list
    or a list of lists), or .txt (a list). Raises `UserError` naming the file that is not that.
    """
    found = [_read(Path(path.strip()).expanduser()) for path in paths.split(',')]
    if len(found) == 1:
        return found[0]
    for path, rows in zip(paths.split(','), found):
        if len(rows) > 1:
            raise UserError(f'{path} has {len(rows)} lists; of {len(found)} files each is for one member')
    return [row for (row,) in found]


def _read(path: Path) -> list[np.ndarray]:
    try:
        if path.suffix not in READERS:
            raise ValueError(f'not a file of indices by its name (valid: {", ".join(READERS)})')
        content = READERS[path.suffix](path)
        if not isinstance(content, list):
            raise ValueError('it is not a list of indices')
        nested = bool(content) and all(isinstance(row, list) for row in content)
        rows = [np.array(row) for row in (content if nested else [content])]
        for row in rows:
            if row.ndim != 1 or not len(row) or row.dtype.kind not in 'iu':
                raise ValueError('it is not a list of whole numbers, nor a list of such lists')
            values, times = np.unique(row, return_counts=True)
            if times.max() > 1:
                raise ValueError(f'the index {values[times.argmax()]} comes {times.max()} times')
        return rows
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f'{path}: {getattr(error, "strerror", None) or error}') from None


READERS = {
    '.npy': lambda path: np.load(path, allow_pickle=False).tolist(),
    '.json': lambda path: json.loads(path.read_text()),
    '.txt': lambda path: [int(word) for word in path.read_text().split()],
}


def check_range(rows: list[np.ndarray], images: int, paths: str):
    """Raise `UserError` where an index is not one of a training image."""
    low, high = min(row.min() for row in rows), max(row.max() for row in rows)
    if low < 0 or high >= images:
        wrong = low if low < 0 else high
        raise UserError(f'{paths}: the index {wrong} is not of one of {images} training images')
