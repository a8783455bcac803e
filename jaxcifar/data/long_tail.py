"""Draw long-tailed subsets of a data set, and keep them in files.

Class i of C keeps n_i = int(n_max · IF^(-i/(C-1))) training images (Cui et al. 2019), class ids being
ranks. `long_tail` splits them into train, tuneV, val_small and calib, and draws val_lt and test_lt from
the test images with the same tail; `test` is all test images except val_lt. `long_tail_standard`, the
field's protocol, trains on all of them and tests on the whole balanced test set.
"""

import copy
import glob
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from jaxcifar.data.arrays import cut
from jaxcifar.data.npz import READ_ONLY
from jaxcifar.machine.errors import UserError

PROTOCOLS = {
    'long_tail': {'train': ('train', 'tuneV', 'val_small', 'calib'), 'test': ('val_lt', 'test_lt')},
    'long_tail_standard': {'train': ('train',), 'test': ()},
}
SPLITS = 'splits'  # folder of index files in the data folder
MANIFEST = 'manifest.json'
TEST_SHARE = 0.8  # of the long-tailed test images; the rest is val_lt


def class_sizes(labels: np.ndarray, classes: int, imbalance: float) -> np.ndarray:
    """Return n_i [C], from the largest class down to 1/imbalance of it; no more than a class has."""
    largest, ranks = len(labels) // classes, np.arange(classes) / (classes - 1)
    wanted = np.array([int(largest * (1 / imbalance) ** rank) for rank in ranks])
    # A class may have fewer images than its rank asks for.
    return np.minimum(wanted, np.bincount(labels, minlength=classes))


def parts(y_train: np.ndarray, y_test: np.ndarray, classes: int, config) -> dict[str, np.ndarray]:
    """Draw each part of config.split: indices into the training images or into the test images.

    Raises `UserError` where a class has too few images for its parts.
    """
    seed, imbalance = config.long_tail.seed, config.long_tail.imbalance
    sizes = class_sizes(y_train, classes, imbalance)
    if sizes.min() < 1:
        raise UserError(
            f'long_tail.imbalance={imbalance:g} leaves the last class without images: set a smaller one'
        )
    # Each draw starts a new generator, so the test images do not depend on the training images.
    train = _draw(y_train, sizes, seed)
    if config.split == 'long_tail_standard':
        return {'train': train}
    test = _draw(y_test, np.minimum(sizes, np.bincount(y_test, minlength=classes)), seed)
    try:
        train_parts = _cut_train(train, y_train, seed)
        val_lt, test_lt = _cut(test, y_test, 1 - TEST_SHARE, seed)
    except ValueError as error:
        raise UserError(
            f'split=long_tail with long_tail.imbalance={imbalance:g} has too few images of some class '
            f'for its parts ({error}): set a smaller imbalance, or split=long_tail_standard'
        ) from error
    return {**train_parts, 'val_lt': val_lt, 'test_lt': test_lt}


def _draw(labels: np.ndarray, sizes: np.ndarray, seed: int) -> np.ndarray:
    """Draw `sizes[c]` images of each class c in turn, without replacement, from one generator."""
    rng = np.random.RandomState(seed)  # the published subsets were drawn with it
    of_class = [np.flatnonzero(labels == c) for c in range(len(sizes))]
    return np.concatenate([rng.choice(i, n, replace=False) for i, n in zip(of_class, sizes)])


def _cut(indices: np.ndarray, labels: np.ndarray, share: float, seed: int):
    """Cut indices into (a share of them, the others), class by class alike."""
    return cut((indices,), labels[indices], seed, train_size=share)


def _cut_train(images: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Split off parts of 80, 8, 6 and 3 %. In any other order, a class has one image left for two parts."""
    # Each share is relative to what the earlier splits have left.
    images, _ = _cut(images, labels, 0.97, seed)
    tune, images = _cut(images, labels, 0.08 / 0.97, seed)
    images, calib = _cut(images, labels, 0.86 / 0.89, seed)
    train, small = _cut(images, labels, 0.80 / 0.86, seed)
    return {'train': train, 'tuneV': tune, 'val_small': small, 'calib': calib}


def folder_name(config) -> str:
    """Return what the files of this long tail are called, as 'cifar100_lt_if100'."""
    kind, _, path = config.dataset.partition(':')
    name = f'{Path(path).stem if path else kind}_lt_if{config.long_tail.imbalance:g}'
    return f'{name}_standard' if config.split == 'long_tail_standard' else name


def _folder(config) -> Path:
    """Return where the index files of this long tail are kept, unless other images took the name."""
    return Path(config.data.root).expanduser() / SPLITS / f'{folder_name(config)}_seed{config.long_tail.seed}'


def _folder_of(config, sha256: str) -> Path:
    """Return where the index files of this long tail of these images are kept, or are to be kept."""
    folder = _folder(config)
    # Two files in different folders may have one name, and digits have one at any size.
    own = folder.with_name(f'{folder.name}_{sha256[:8]}')
    return own if (own / MANIFEST).exists() or _kept_sha256(folder) not in (None, sha256) else folder


def _kept_sha256(folder: Path) -> str | None:
    """Return the sum of the images that a manifest is about; None where it does not say, or is missing."""
    try:
        return json.loads((folder / MANIFEST).read_text())['data_sha256']
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None  # `_read` says what is wrong with a damaged one


def load_parts(dataset, config) -> dict[str, np.ndarray]:
    """Read the parts from their index files in the data folder, written first if they are not there.

    DATA/splits/NAME_seedS/PART.json is a list of indices in row order; manifest.json beside them has
    the seed, the class counts, and the sha256 of the images and of every file. Where the folder is of other
    images, NAME_seedS_SHA256 is ours. Raises `UserError` where files do not match the manifest, or the
    manifest belongs to other settings.
    """
    sha256 = dataset.fingerprint()
    folder = _folder_of(config, sha256)
    made_from = {
        'protocol': config.split,
        'dataset': config.dataset.partition(':')[0],
        'data_sha256': sha256,
        'imbalance': float(config.long_tail.imbalance),
        'seed': config.long_tail.seed,
    }
    # The manifest is written last, so without it the other files may not be whole.
    if not (folder / MANIFEST).exists():
        drawn = parts(dataset.y_train, dataset.y_test, dataset.num_classes, config)
        try:
            _write(folder, dataset, made_from, drawn)
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise
            # Shared data may be read-only. The same seed draws the same parts.
            print(f'warning: {folder}: {error.strerror}; the parts are drawn, and not kept', file=sys.stderr)
            return drawn
    return _read(folder, made_from)


@contextmanager
def keeping_nothing(config) -> Iterator:
    """Yield the config with a temporary data folder, for code that only inspects a loaded data set.

    Existing index files are read. Missing ones are drawn, and deleted at the end.
    """
    apart, there = copy.deepcopy(config), _folder(config)
    with tempfile.TemporaryDirectory() as root:
        apart.data.root = root
        # The name of a folder may go on with the sum of its images.
        alike = there.parent.glob(f'{glob.escape(there.name)}*') if config.split in PROTOCOLS else ()
        for folder in filter(Path.is_dir, alike):
            # Another process may be writing there, in a folder of its own.
            copied = _folder(apart).with_name(folder.name)
            shutil.copytree(folder, copied, ignore=shutil.ignore_patterns('tmp*'))
        yield apart


def _write(folder: Path, dataset, made_from: dict, drawn: dict[str, np.ndarray]):
    """Write the index files, then the manifest that vouches for them."""
    # What the parts were made from is kept with them, so that other images are noticed.
    manifest: dict = {**made_from, 'parts': {}}
    files: dict[str, bytes] = {}
    for name, indices in drawn.items():
        source = source_of(made_from['protocol'], name)
        labels = getattr(dataset, f'y_{source}')
        # The sum is taken of the bytes as written, so any tool can check it.
        text = (json.dumps(indices.tolist()) + '\n').encode()
        files[f'{name}.json'] = text
        manifest['parts'][name] = {
            'images_of': source,
            'size': len(indices),
            'class_counts': np.bincount(labels[indices], minlength=dataset.num_classes).tolist(),
            'sha256': hashlib.sha256(text).hexdigest(),
        }
    files[MANIFEST] = (json.dumps(manifest, indent=1) + '\n').encode()
    folder.mkdir(parents=True, exist_ok=True)
    # Several runs may start at once. Each writes in its own temporary folder, and all write the same files.
    with tempfile.TemporaryDirectory(dir=folder) as own:
        for name, text in files.items():
            (Path(own) / name).write_bytes(text)
            os.replace(Path(own) / name, folder / name)


def _read(folder: Path, made_from: dict) -> dict[str, np.ndarray]:
    """Read the index files and check them against the manifest; raise `UserError` where they differ."""
    remedy = 'put back what was there, or delete the folder to have it made anew'
    # The loop updates this name, so that an error can say which file caused it.
    name = 'manifest'
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for key, value in made_from.items():
            if manifest[key] != value:
                raise ValueError(f'expected {key}={value}, got {manifest[key]}')
        rows = {}
        for name in [n for names in PROTOCOLS[made_from['protocol']].values() for n in names]:
            text = (folder / f'{name}.json').read_bytes()
            if hashlib.sha256(text).hexdigest() != manifest['parts'][name]['sha256']:
                raise ValueError(f'{name}.json does not match its sha256')
            rows[name] = np.array(json.loads(text))
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        reason = f'{name}.json is missing' if isinstance(error, FileNotFoundError) else error
        reason = f'{error} is missing in it' if isinstance(error, KeyError) else reason
        raise UserError(f'{folder / MANIFEST}: {reason}; {remedy}') from None
    return rows


def source_of(protocol: str, part: str) -> str:
    """Return whether a part is made of 'train' or of 'test' images."""
    return 'test' if part in PROTOCOLS[protocol]['test'] else 'train'
