"""Which images each member trains on, and which are held out to choose weights by."""

from typing import NamedTuple

import numpy as np

from jaxcifar.data.files import ImageFiles
from jaxcifar.errors import UserError, lookup


class Split(NamedTuple):
    """Indices into the training images.

    `train` is [n] where members share their images, else [K,n]; `validation` is [m], empty unless
    images were held out.
    """

    train: np.ndarray
    validation: np.ndarray


def shared(pool: np.ndarray, labels: np.ndarray, config) -> np.ndarray:
    """All members see the whole pool."""
    return pool


SPLITS = {'shared': shared}
VALIDATIONS = ('holdout', 'none', 'test')


def make_split(labels: np.ndarray, config) -> Split:
    """Hold out the validation images, class by class alike, and share out the rest."""
    pool, validation = np.arange(len(labels)), np.array([], int)
    if config.data.validation == 'holdout':
        pool, validation = _hold_out(labels, config.data.validation_size, config.data.split_seed)
    return Split(lookup('split', SPLITS, config.split)(pool, labels, config), validation)


class Images(NamedTuple):
    """Images to evaluate: uint8 [N,H,W,C], or files in their place, and labels [N]."""

    images: np.ndarray | ImageFiles
    labels: np.ndarray


def evaluation_images(dataset, split: Split) -> dict[str, Images]:
    """What can be evaluated, by name: train (what any member trains on), validation, test."""
    train = np.unique(split.train)
    images = {
        'train': Images(dataset.x_train[train], dataset.y_train[train]),
        'test': Images(dataset.x_test, dataset.y_test),
    }
    if len(split.validation):
        held = split.validation
        images['validation'] = Images(dataset.x_train[held], dataset.y_train[held])
    return images


def validation_split(config) -> str | None:
    """The name of the images that choose the best weights: every log calls them that."""
    return {'holdout': 'validation', 'test': 'test', 'none': None}[config.data.validation]


def _hold_out(labels: np.ndarray, size: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.model_selection import train_test_split  # takes a second to import

    size = int(size) if size >= 1 else float(size)
    try:
        pool, held = train_test_split(
            np.arange(len(labels)), test_size=size, stratify=labels, random_state=seed
        )
    except ValueError as error:
        raise UserError(f'cannot hold out data.validation_size={size}: {error}') from error
    return np.sort(pool), np.sort(held)
