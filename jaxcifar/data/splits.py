"""Which images each member trains on, which choose the weights, and which are only evaluated."""

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from jaxcifar.data import long_tail
from jaxcifar.data.files import ImageFiles
from jaxcifar.errors import UserError, lookup


class Split(NamedTuple):
    """Indices into the training images, and parts that are evaluated besides.

    `train` is [n] where members share their images, else [K,n]; `validation` is [m], empty unless
    images were held out. `parts` are indices by name, into the test images for those in `of_test` and
    else into the training images; they replace train and test where they have these names.
    `class_counts` [C] are the images of the long tail before its parts, by which classes are grouped.
    """

    train: np.ndarray
    validation: np.ndarray
    parts: Mapping[str, np.ndarray] = MappingProxyType({})
    of_test: tuple[str, ...] = ()
    class_counts: np.ndarray | None = None

    def fingerprint(self) -> str:
        """sha256 over all indices, in hex."""
        digest = hashlib.sha256()
        for indices in (self.train, self.validation, *self.parts.values()):
            digest.update(np.asarray(indices, '<i8').tobytes())
        return digest.hexdigest()


def shared(dataset, config) -> Split:
    """All members see the whole pool, which is what is not held out."""
    return _hold_out(np.arange(len(dataset.y_train)), dataset.y_train, config)


def long_tailed(dataset, config) -> Split:
    """All members see the train part of a long tail."""
    found = long_tail.load_parts(dataset, config)
    counts = long_tail.class_sizes(dataset.y_train, dataset.num_classes, config.long_tail.imbalance)
    if config.split == 'long_tail_standard':
        split = _hold_out(found['train'], dataset.y_train, config)
        # Held out or not, rows of `train` stay in the index file's order.
        kept = found['train'][np.isin(found['train'], split.train)]
        return split._replace(train=kept, parts={'train': kept}, class_counts=counts)
    rest = np.setdiff1d(np.arange(len(dataset.y_test)), found['val_lt'])
    parts = {**found, 'test': rest}
    return Split(found['train'], np.array([], int), parts, ('val_lt', 'test_lt', 'test'), counts)


SPLITS = {'shared': shared, 'long_tail': long_tailed, 'long_tail_standard': long_tailed}
# data.validation -> the name that the images have which choose the best weights
VALIDATIONS = {'holdout': 'validation', 'none': None, 'test': 'test', 'val_lt': 'val_lt'}


def make_split(dataset, config) -> Split:
    """The images of config.split; raises `UserError` where classes are too small for it."""
    return lookup('split', SPLITS, config.split)(dataset, config)


class Images(NamedTuple):
    """Images to evaluate: uint8 [N,H,W,C], or files in their place, with their labels [N].

    indices [N]: their rows in the data set's arrays. class_counts [C]: training images by which a long
    tail's classes are grouped, None for others.
    """

    images: np.ndarray | ImageFiles
    labels: np.ndarray
    indices: np.ndarray
    class_counts: np.ndarray | None = None


def evaluation_images(dataset, split: Split) -> dict[str, Images]:
    """What can be evaluated, by name: train (what any member trains on), validation, test, …"""
    train = {'train': np.unique(split.train), **split.parts}
    test = {name: train.pop(name) for name in split.of_test}
    if len(split.validation):
        train['validation'] = split.validation

    def take(images, labels, indices):
        return Images(images[indices], labels[indices], indices, split.class_counts)

    images = {name: take(dataset.x_train, dataset.y_train, i) for name, i in train.items()}
    if 'test' not in test:
        every = np.arange(len(dataset.y_test))
        images['test'] = Images(dataset.x_test, dataset.y_test, every, split.class_counts)
    return images | {name: take(dataset.x_test, dataset.y_test, i) for name, i in test.items()}


def train_counts(dataset, split: Split) -> np.ndarray:
    """Training images of each class: [K,C], or [1,C] where members share theirs."""
    labels = dataset.y_train[np.atleast_2d(split.train)]
    return np.stack([np.bincount(row, minlength=dataset.num_classes) for row in labels])


def validation_split(config) -> str | None:
    """The name of the images that choose the best weights: every log calls them that."""
    return VALIDATIONS[config.data.validation]


def check_validation(config):
    """Raise `UserError` where config.split has no such validation images."""
    six_parts = config.split == 'long_tail'
    if config.data.validation == 'val_lt' and not six_parts:
        raise UserError(f'data.validation=val_lt is a part of split=long_tail, not of {config.split}')
    if config.data.validation == 'holdout' and six_parts:
        raise UserError('split=long_tail has its own validation images: set data.validation=val_lt')


def _hold_out(pool: np.ndarray, labels: np.ndarray, config) -> Split:
    """Hold the validation images out of the pool, class by class alike."""
    if config.data.validation != 'holdout':
        return Split(pool, np.array([], int))
    from sklearn.model_selection import train_test_split  # takes a second to import

    size = config.data.validation_size
    size, seed = int(size) if size >= 1 else float(size), config.data.split_seed
    try:
        train, held = train_test_split(pool, test_size=size, stratify=labels[pool], random_state=seed)
    except ValueError as error:
        raise UserError(f'cannot hold out data.validation_size={size}: {error}') from error
    return Split(np.sort(train), np.sort(held))
