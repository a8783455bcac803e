"""Assign a data set's images as each split does; `splits` lists what a config can ask for."""

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from jaxcifar.data import expert_splits, long_tail
from jaxcifar.data.arrays import cut
from jaxcifar.machine.errors import UserError


class Split(NamedTuple):
    """Hold indices into the training images, and further parts to evaluate.

    `train` is [n] where members share their images. Otherwise it is [K,n], with the rows of members that
    have fewer images padded by -1 (see `rows_of`). `validation` is [m], empty unless training images were
    held out. `parts` are indices by name: into the test images for the names in `of_test`, otherwise into
    the training images. Parts called train or test replace these. `class_counts` [C] groups the classes of
    a long tail: its images per class before it is cut into parts. `own_validation` is the sha256 of the
    data set's own validation part where that part is used, else ''.
    """

    train: np.ndarray
    validation: np.ndarray
    parts: Mapping[str, np.ndarray] = MappingProxyType({})
    of_test: tuple[str, ...] = ()
    class_counts: np.ndarray | None = None
    own_validation: str = ''

    def fingerprint(self) -> str:
        """Return the sha256, in hex, of all indices and of the data set's own validation part."""
        digest = hashlib.sha256(self.own_validation.encode())
        # Order counts: the same images in another order make another run.
        for indices in (self.train, self.validation, *self.parts.values()):
            # A fixed width and byte order give the same sum on every machine.
            digest.update(np.asarray(indices, '<i8').tobytes())
        return digest.hexdigest()


def shared(dataset, config) -> Split:
    """Give all members everything that is not held out."""
    return _hold_out(np.arange(len(dataset.y_train)), dataset, config)


def overlap(dataset, config) -> Split:
    """Give each expert the pool's shared images and some of its own."""
    _, pool = expert_splits.holdout_and_pool(len(dataset.y_train), config)
    return _own_images(expert_splits.overlap(pool, config), dataset, config)


def disjoint(dataset, config) -> Split:
    """Give each expert its own classes of the pool."""
    _, pool = expert_splits.holdout_and_pool(len(dataset.y_train), config)
    rows = expert_splits.disjoint(pool, dataset.y_train, dataset.num_classes, config)
    return _own_images(rows, dataset, config)


def fusion(dataset, config) -> Split:
    """Give all members the fusion holdout, except the validation images held out of it."""
    held, _ = expert_splits.holdout_and_pool(len(dataset.y_train), config)
    return _hold_out(held, dataset, config)


def from_files(dataset, config) -> Split:
    """Take the user's own indices: one list for all members, or one for each."""
    rows = _read_rows('train', dataset, config)
    if len(rows) > 1:
        return _own_images(rows, dataset, config)
    if config.data.validation == 'holdout':
        return _hold_out(rows[0], dataset, config)
    return Split(rows[0], _validation(dataset, config))


def _own_images(rows: list[np.ndarray], dataset, config) -> Split:
    """Give each member its own rows."""
    train = expert_splits.rectangular(rows, config.member_ids)
    return Split(train, _validation(dataset, config))


def long_tailed(dataset, config) -> Split:
    """Give all members the train part of a long tail."""
    parts = long_tail.load_parts(dataset, config)
    counts = long_tail.class_sizes(dataset.y_train, dataset.num_classes, config.long_tail.imbalance)
    if config.split == 'long_tail_standard':
        split = _hold_out(parts['train'], dataset, config)
        # Held out or not, rows of `train` stay in the index file's order.
        kept = parts['train'][np.isin(parts['train'], split.train)]
        return split._replace(train=kept, parts={'train': kept}, class_counts=counts)
    # The test images that chose weights, val_lt, must not measure them.
    parts['test'] = np.setdiff1d(np.arange(len(dataset.y_test)), parts['val_lt'])
    return Split(parts['train'], np.array([], int), parts, ('val_lt', 'test_lt', 'test'), counts)


SPLITS = {
    'shared': shared,
    'overlap': overlap,
    'disjoint': disjoint,
    'fusion': fusion,
    'file': from_files,
    'long_tail': long_tailed,
    'long_tail_standard': long_tailed,
}


def _validation(dataset, config) -> np.ndarray:
    """Return the sorted images that data.validation holds out of any split; [] for its other values."""
    images = len(dataset.y_train)
    if config.data.validation == 'fusion_holdout':
        return expert_splits.holdout_and_pool(images, config)[0]
    if config.data.validation == 'fusion_validation':
        return expert_splits.fusion_validation(images, config)
    if config.data.validation == 'file':
        rows = _read_rows('validation', dataset, config)
        if len(rows) > 1:
            raise UserError(
                f'{config.files.validation}: expected one list of validation images, got {len(rows)}'
            )
        return np.sort(rows[0])
    return np.array([], int)


def _read_rows(field: str, dataset, config) -> list[np.ndarray]:
    """Read the index files in a field of `files`; `UserError` where their indices would name other images."""
    if dataset.index_fault:
        raise UserError(f'files.{field}: {dataset.index_fault}')
    return expert_splits.read_rows(config.files[field], len(dataset.y_train))


def _hold_out(pool: np.ndarray, dataset, config) -> Split:
    """Take the validation images out of the pool; `holdout` draws them stratified by class.

    A data set's own validation part takes the place of `holdout`: nothing leaves the pool.
    """
    if config.data.validation != 'holdout':
        held = _validation(dataset, config)
        return Split(np.setdiff1d(pool, held) if len(held) else pool, held)
    # Nothing is drawn, so data.validation_size and data.split_seed do not matter.
    if dataset.y_val is not None:
        return Split(pool, np.array([], int), own_validation=dataset.val_fingerprint())
    size, seed = config.data.validation_size, config.data.split_seed
    # sklearn reads an integer as a count and a float as a share.
    size, labels = int(size) if size >= 1 else float(size), dataset.y_train[pool]
    try:
        train, held = cut((pool,), labels, seed, dataset.classes, test_size=size)
    except ValueError as error:
        raise UserError(
            f'cannot hold out data.validation_size={size:g}: {error}; {_remedy(labels)}data.validation=none'
        ) from None
    # Sorted rows make the split independent of the order in which sklearn returns them.
    return Split(np.sort(train), np.sort(held))


def _remedy(labels: np.ndarray) -> str:
    """Return what helps, besides data.validation=none, where images with these labels cannot be held out."""
    counts = np.unique(labels, return_counts=True)[1]
    least, most = len(counts), len(labels) - len(counts)
    if counts.min() < 2:
        return 'add images of it, or set '
    return f'set it to {least} to {most} images, or set ' if least <= most else 'set '
