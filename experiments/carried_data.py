"""Carry a CIFAR set to another machine as two halves: python -m experiments.carried_data cifar10 DEST

Writes DEST/cifar10-0.npz and DEST/cifar10-1.npz from the set in JAXCIFAR_DATA, some 50 MB each: every other
sheet of 400 images as lossless WebP. `experiments.on_gpu --carried DEST` puts them together again, also where
each comes in a call of its own.
"""

import hashlib
import io
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from jaxcifar.data.npz import read_npz
from jaxcifar.machine.command import run_words
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.files import reading, write_arrays

SHEET, WIDE = 400, 20  # images of a sheet, and in its rows


def to_sheet(images: np.ndarray) -> np.ndarray:
    """Return uint8 [n,H,W,3] as the bytes of one lossless picture, rows of WIDE images."""
    n, height, width, channels = images.shape
    # The last row is filled up with black, which costs a picture nothing.
    rows = -(-n // WIDE)
    whole = np.zeros((rows * WIDE, *images.shape[1:]), np.uint8)
    whole[:n] = images
    grid = whole.reshape(rows, WIDE, height, width, channels).transpose(0, 2, 1, 3, 4)
    file = io.BytesIO()
    picture = Image.fromarray(grid.reshape(rows * height, WIDE * width, channels))
    picture.save(file, 'WEBP', lossless=True, exact=True, quality=80)
    return np.frombuffer(file.getvalue(), np.uint8)


def from_sheet(data: np.ndarray, n: int, side: int) -> np.ndarray:
    """Return the n images [n,side,side,3] of a sheet."""
    grid = np.asarray(Image.open(io.BytesIO(data.tobytes())).convert('RGB'))
    rows = grid.reshape(-1, side, WIDE, side, 3).transpose(0, 2, 1, 3, 4)
    return rows.reshape(-1, side, side, 3)[:n]


def _digest(arrays: dict[str, np.ndarray]) -> str:
    return hashlib.sha256(arrays['x_train'].tobytes() + arrays['x_test'].tobytes()).hexdigest()


def split(path: Path, folder: Path) -> list[Path]:
    """Write the halves of a data set's .npz into a folder, and return them."""
    arrays, _ = read_npz(path)
    small = {name: array for name, array in arrays.items() if name not in ('x_train', 'x_test')}
    small |= {'digest': np.array(_digest(arrays)), 'side': np.array(arrays['x_train'].shape[1])}
    halves, count = [dict(small), dict(small)], 0
    # Sheets go to the halves in turn, so both come to about the same size.
    for part in ('x_train', 'x_test'):
        for start in range(0, len(arrays[part]), SHEET):
            halves[count % 2][f'{part} {start}'] = to_sheet(arrays[part][start : start + SHEET])
            count += 1
    paths = [folder / f'{path.stem}-{i}.npz' for i in range(2)]
    for half, arrays in zip(paths, halves):
        write_arrays(half, arrays)
    return paths


def join(halves: list[Path], path: Path):
    """Write a data set's .npz from its halves; `UserError` where they are not of one set."""
    arrays: dict[str, np.ndarray] = {}
    for half in halves:
        with np.load(half) as file:
            arrays |= {name: file[name] for name in file.files}
    side = int(arrays.pop('side'))
    images: dict[str, np.ndarray] = {}
    for part, labels in (('x_train', 'y_train'), ('x_test', 'y_test')):
        count = len(arrays[labels])
        sheets = [
            from_sheet(arrays[f'{part} {start}'], min(SHEET, count - start), side)
            for start in range(0, count, SHEET)
            if f'{part} {start}' in arrays
        ]
        images[part] = np.concatenate(sheets or [np.zeros((0, side, side, 3), np.uint8)])
    # A half of another set, or one half twice, gives other images: never use them.
    if _digest(images) != str(arrays['digest']):
        raise UserError(f'expected two halves of one set, got others: {", ".join(map(str, halves))}')
    others = {name: array for name, array in arrays.items() if ' ' not in name and name != 'digest'}
    write_arrays(path, images | others)


def collect(carried: Path, data: Path) -> list[str]:
    """Keep what has been carried in the data folder; return the names of all sets that are whole there."""
    data.mkdir(parents=True, exist_ok=True)
    # What arrives is kept at once, since the next call replaces it.
    for path in carried.glob('*-[01].npz'):
        shutil.copyfile(path, data / path.name)
    for first in data.glob('*-0.npz'):
        name = first.name.removesuffix('-0.npz')
        second, whole = data / f'{name}-1.npz', data / f'{name}.npz'
        # The set is joined as soon as its second half is there, in whatever order they came.
        if second.exists() and not whole.exists():
            try:
                with reading(first, 'carry both halves again'):
                    join([first, second], whole)
            except UserError as error:  # other steps do not need this set
                print(f'{name}: {error}', flush=True)
                first.unlink()
                second.unlink()
    return sorted(path.stem for path in data.glob('*.npz') if not path.stem.endswith(('-0', '-1')))


def main(name: str, folder: str):
    """Write the halves and print their names and sizes."""
    path = Path(os.environ.get('JAXCIFAR_DATA') or 'data') / f'{name}.npz'
    if not path.exists():
        raise UserError(f'expected {path}: a training of {name} downloads it, or set JAXCIFAR_DATA')
    for half in split(path, Path(folder)):
        print(f'{half}  {half.stat().st_size / 2**20:.1f} MB')


if __name__ == '__main__':
    run_words(main)
