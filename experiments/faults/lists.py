"""Index files that hold no list, or indices that do not exist."""

import io
import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.faults.images import Harmless
from experiments.faults.outcomes import Case
from jaxcifar.data.expert_splits import read_rows


def cases(folder: Path) -> Iterator[Case]:
    """Yield files of indices into 10 images."""
    contents: dict[str, Any] = {
        'json': [
            '',
            '[]',
            '{}',
            'null',
            '3',
            '"a"',
            '[1, 1]',
            '[-1]',
            '[10]',
            '[1.5]',
            '[true]',
            '[[1], [2, 2]]',
            '[[1], 2]',
            '[[[1]]]',
            '[null]',
            '[1e400]',
            '[NaN]',
            '[' * 10**5,
            '[99999999999999999999999]',
            '\ufeff[1]x',
            '[1,]',
            '\0',
        ],
        'txt': ['', 'a', '1 1', '-1', '10', '1.5', '1,2', '1e3', '9' * 5000, '\0', 'nan', '٣ ٣'],
        'csv': ['1'],
    }
    arrays = [
        np.zeros((2, 2, 2), int),
        np.zeros(0, int),
        np.array([0.5]),
        np.array(1),
        np.array(['a']),
        np.array([-1]),
        np.array([2**63], np.uint64),
        np.array([1, 1]),
        np.array([True]),
        np.array([np.nan]),
    ]
    for ending, texts in contents.items():
        for text in texts:
            yield _list(folder / f'rows.{ending}', text.encode(), f'{text!r:.30}')
    for array in arrays:
        buffer = io.BytesIO()
        np.save(buffer, array)
        yield _list(folder / 'rows.npy', buffer.getvalue(), f'{array.dtype} {array.shape}')
        yield _list(folder / 'rows.npy', buffer.getvalue()[:-1], 'a cut array')
    yield _list(folder / 'rows.npy', pickle.dumps(Harmless(folder / 'ran')), 'a pickle')
    for paths in ('', ',', str(folder), f'{folder}/none.txt', '/dev/null', 'a\0b', 'x' * 5000 + '.txt'):
        yield Case(f'the file {paths!r:.40}', partial(read_rows, paths, 10))


def _list(path: Path, data: bytes, name: str) -> Case:
    return Case(f'{path.name} of {name}', lambda: (path.write_bytes(data), read_rows(str(path), 10)))
