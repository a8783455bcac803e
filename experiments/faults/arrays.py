"""Data sets in .npz files whose arrays, headers or archives are of another kind."""

import io
import json
import pickle
import random
import struct
import warnings
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.faults.images import Harmless, damaged
from experiments.faults.outcomes import Case
from jaxcifar.data.datasets import load_dataset

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
LABELS = np.arange(12) % 3
GOOD = {'x_train': IMAGES, 'y_train': LABELS, 'x_test': IMAGES[:6], 'y_test': LABELS[:6]}
# Arrays that take the place of good ones.
BAD: dict[str, list] = {
    'classes': [
        ['a', 'a', 'b'],
        ['a', 'b'],
        ['a', 'b', 'c', 'd'],
        [b'a', b'\xff', b'c'],
        ['a', '', 'c'],
        ['a', 'b\n', 'c'],
        'abc',
        np.array(['a', None, 3], object),
        [],
        [[['a']]],
        [np.nan] * 3,
        np.zeros(3, 'V4'),
    ],
    'y_train': [
        [0, 1, np.nan] * 4,
        np.array([0, 1, 2**63] * 4, np.uint64),
        [0, 1, 10**9] * 4,
        [0, 1, -(2**63)] * 4,
        (LABELS % 2).astype(bool),
        LABELS.astype(complex),
        np.zeros(12, 'M8[s]'),
        ['0', '1', '2'] * 4,
        1,
        [],
        np.zeros(12, int),
        LABELS - 1,
        LABELS + 1,
        LABELS * 2,
        LABELS[:11],
        LABELS[:, None],
        np.eye(3)[LABELS],
        LABELS / 2,
        [np.inf] * 12,
        np.zeros((12, 0)),
        np.array([[1, 2], [3]], object),
        np.zeros(12, 'V4'),
        [0.5] * 12,
    ],
    'x_train': [
        IMAGES[:0],
        np.zeros((12, 0, 0, 3), np.uint8),
        np.zeros((12, 8, 8, 3), 'M8[s]'),
        np.zeros((12, 8, 8, 3), 'U3'),
        np.full((12, 8, 8, 3), np.nan),
        np.full((12, 8, 8, 3), np.inf),
        IMAGES.astype(complex),
        IMAGES - 300.0,
        IMAGES[None],
        IMAGES[..., :2],
        IMAGES[..., 0],
        IMAGES[:, 0],
        IMAGES[:, :4],
        IMAGES[:, :4, :4],
        IMAGES.ravel(),
        IMAGES.reshape(12, -1),
        IMAGES.astype(np.int8),
        IMAGES.astype(np.float16),
        IMAGES > 9,
        IMAGES[:11],
        3,
        np.array([None, 1], object),
        IMAGES.astype('>u2') * 257,
        IMAGES.transpose(0, 3, 1, 2),
        [],
    ],
    'x_test': [IMAGES[:0], IMAGES[:6, :4, :4], IMAGES[:6].astype(float), IMAGES[0], IMAGES[:5]],
    'y_test': [LABELS[:6] + 5, LABELS[:6] - 1, LABELS[:5], LABELS[:6] / 2, []],
}
SHAPES = (
    '(1000000000000, 8, 8, 3)',
    '(10**12, 8, 8, 3)',
    '(-1, 8, 8, 3)',
    '(99999999999999999999999, 8, 8, 3)',
    '(12.5, 8)',
    "'abc'",
    'None',
    '(True, 8, 8, 3)',
    '(' * 500,
    '(0, 8, 8, 3)',
    '(12, 8, 8, 3)',
    '{}',
    '__import__("os")',
)
TYPES = ('|u1', '|O', '|V8', '<U1000000', '<f8', 'x', '', '|b1', '<M8[s]')


def cases(folder: Path, share: float = 1) -> Iterator[Case]:
    """Yield bad .npz files, `100 * share` of them damaged copies of a good one."""
    path, draw = folder / 'own.npz', random.Random(0)

    def case(name: str, data: bytes) -> Case:
        return Case(name, lambda: (path.write_bytes(data), load_dataset(f'npz:{path}', ''))[1], _why)

    for key, values in BAD.items():
        for i, value in enumerate(values):
            yield case(f'{key} {i}', saved(**GOOD | {key: value}))
    for left_out in ('x_train', 'y_train', 'x_test', 'y_test'):
        yield case(f'without {left_out}', saved(**{k: v for k, v in GOOD.items() if k != left_out}))
    for each in (1, 2):
        alone = {'x_train': IMAGES[: 3 * each], 'y_train': LABELS[: 3 * each]}
        yield case(f'{each} a class and no test part', saved(**alone))
    for shape in SHAPES:
        yield case(
            f'header {shape:.20}', archive(**{'x_train.npy': array(shape, '|u1'), 'y_train.npy': b'x'})
        )
    for kind in TYPES:
        yield case(
            f'header of {kind}', archive(**{'x_train.npy': array('(12, 8, 8, 3)', kind), 'y_train.npy': b''})
        )
    for i, data in enumerate(damaged(saved(**GOOD), draw, round(100 * share))):
        yield case(f'damaged {i}', data)
    ran = pickle.dumps(Harmless(folder / 'ran'))
    yield from (
        case(name, data)
        for name, data in {
            'no files': archive(),
            'texts': archive(x_train=b'a', y_train=b'a'),
            'a pickle': ran,
            'nothing': b'',
            'text': b'hello',
            'a pickle within': archive(
                **{'x_train.npy': array('(1,)', '|O', ran), 'y_train.npy': array('(1,)', '|O', ran)}
            ),
            'encrypted': encrypted(archive(**{'x_train.npy': b'a', 'y_train.npy': b'b'})),
            'json': json.dumps({}).encode(),
        }.items()
    )
    for name in ('', str(folder), '/dev/zero', f'{folder}/none.npz', 'a\0b', 'x' * 5000, '~nobody/x.npz'):
        yield Case(f'the file {name!r:.40}', partial(load_dataset, f'npz:{name}', ''), _why)


def _why(dataset) -> str:
    """Return why a file was taken: its arrays are whole, and what differs is a pixel or a label."""
    counts = np.bincount(dataset.y_train, minlength=dataset.num_classes)
    is_whole = (
        dataset.x_train.dtype == np.uint8
        and counts.min() > 0
        and len(set(dataset.classes)) == dataset.num_classes
    )
    return 'a whole data set' if is_whole else ''


def saved(**arrays: Any) -> bytes:
    """Return what np.savez writes."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def array(shape: str, kind: str, data: bytes = b'') -> bytes:
    """Return an .npy file whose header says this, and that has these numbers."""
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(head)) + head + data


def archive(**members: bytes) -> bytes:
    """Return a zip archive of files."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, 'w') as file:
        for name, data in members.items():
            file.writestr(name, data)
    return buffer.getvalue()


def encrypted(data: bytes) -> bytes:
    """Return an archive whose first file says that it is encrypted."""
    copy = bytearray(data)
    copy[data.find(b'PK\x01\x02') + 8] |= 1
    copy[data.find(b'PK\x03\x04') + 6] |= 1
    return bytes(copy)
