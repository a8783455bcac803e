"""Decide which images each member trains on, which choose the weights, and which are only evaluated.

A *split* assigns a data set's images; a *part* is one of the pieces: train, validation, test, ….
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxcifar.data import expert_splits
from jaxcifar.data.assign import SPLITS, Split
from jaxcifar.data.expert_splits import rows_of
from jaxcifar.data.files import ImageFiles
from jaxcifar.machine.errors import UserError, lookup

# data.validation: the part by which the best weights are chosen.
VALIDATIONS = {
    'holdout': 'validation',
    'fusion_holdout': 'validation',
    'fusion_validation': 'validation',
    'file': 'validation',
    'val_lt': 'val_lt',
    'test': 'test',
    'none': None,
}
# A split: the values of data.validation that go with it, the usual one first.
GOES_WITH = {
    'overlap': ('fusion_holdout', 'fusion_validation', 'file', 'test', 'none'),
    'disjoint': ('fusion_holdout', 'fusion_validation', 'file', 'test', 'none'),
    'fusion': ('fusion_validation', 'file', 'test', 'none'),
    'long_tail': ('val_lt', 'test', 'none'),
    'long_tail_standard': ('holdout', 'test', 'none'),
}
ANY_SPLIT = tuple(v for v in VALIDATIONS if v != 'val_lt')


def make_split(dataset, config) -> Split:
    """Assign the images as config.split says; raise `UserError` where these images do not allow it."""
    split = lookup('split', SPLITS, config.split)(dataset, config)
    if both := np.intersect1d(split.train, split.validation).size:
        # Only the user's own files can name an image twice.
        file = 'files.train' if config.split == 'file' else 'files.validation'
        others = 'fusion_holdout or none' if config.split in ('overlap', 'disjoint') else 'none'
        raise UserError(
            f'{both} images of split={config.split} are among those of '
            f'data.validation={config.data.validation}, which must not be trained on: leave them out of '
            f'{file}, or set data.validation={others}'
        )
    return split


def population(config) -> int | None:
    """Return how many members the images are divided among; None where all members see the same images.

    A run may train only some of these members: its `member_ids`.
    """
    if config.split == 'file' and config.files.train:
        rows = expert_splits.count_rows(config.files.train)
        return rows if rows > 1 else None
    return config.experts.count if config.split in ('overlap', 'disjoint') else None


@dataclass(frozen=True, eq=False)
class Images:
    """Hold images to evaluate, with their labels [N].

    `indices` [N] are their rows in `source`, images of the data set. class_counts [C]: training images per
    class, by which a long tail's classes are grouped; None for other data.
    """

    source: np.ndarray | ImageFiles
    labels: np.ndarray
    indices: np.ndarray
    class_counts: np.ndarray | None = None

    @cached_property
    def images(self) -> np.ndarray | ImageFiles:
        """Return the images, uint8 [N,H,W,C], or files in their place; always the same object."""
        # A run has no use for a copy of its training images, so none is made until somebody asks for it.
        is_whole = np.array_equal(self.indices, np.arange(len(self.source)))
        return self.source if is_whole else self.source[self.indices]


def evaluation_images(dataset, split: Split) -> dict[str, Images]:
    """Return the parts to evaluate, by name: train (what any member trains on), validation, test, …"""
    # Members may share images; each is evaluated once.
    train = {'train': np.unique(np.concatenate(rows_of(split.train))), **split.parts}
    # Parts of the test images index the test arrays, not the training arrays.
    test = {name: train.pop(name) for name in split.of_test}
    if len(split.validation):
        train['validation'] = split.validation

    def take(images, labels, rows=None):
        rows = np.arange(len(labels)) if rows is None else rows
        return Images(images, labels[rows], rows, split.class_counts)

    # A data set for evaluation alone has no training images.
    given = {name: rows for name, rows in train.items() if len(rows)}
    images = {name: take(dataset.x_train, dataset.y_train, rows) for name, rows in given.items()}
    if split.own_validation:
        images['validation'] = take(dataset.x_val, dataset.y_val)
    # A long tail has a test part of its own, without the images that chose its weights.
    if 'test' not in test:
        images['test'] = take(dataset.x_test, dataset.y_test)
    return images | {name: take(dataset.x_test, dataset.y_test, rows) for name, rows in test.items()}


def train_counts(dataset, split: Split) -> np.ndarray:
    """Count the training images of each class: [K,C], or [1,C] where members share theirs."""
    # The -1 that fills short rows is left out, or it would count as the last image.
    labels = [dataset.y_train[row] for row in rows_of(split.train)]
    return np.stack([np.bincount(row, minlength=dataset.num_classes) for row in labels])


def validation_part(config) -> str | None:
    """Return the name of the part that chooses the best weights, as every log calls it; None for none."""
    return VALIDATIONS[config.data.validation]


def check(config):
    """Raise `UserError` where a split lacks the validation images, the files or the members asked for."""
    chosen = config.data.validation
    allowed = GOES_WITH.get(config.split, ANY_SPLIT)
    if chosen not in allowed:
        others = ', '.join(allowed[1:])
        raise UserError(
            f'split={config.split} cannot have data.validation={chosen}: set data.validation={allowed[0]} '
            f'(or one of {others})'
        )
    # A file that nothing reads is as much a mistake as one that is missing.
    for field, wanted in (('train', config.split), ('validation', chosen)):
        given = bool(config.files[field])
        if given != (wanted == 'file'):
            user = 'split' if field == 'train' else 'data.validation'
            missing = f'{user}=file needs files.{field}'
            unread = f'files.{field} is read only with {user}=file, got {user}={wanted}: leave it out'
            raise UserError(unread if given else missing)
    # A member's id picks its row, so an id beyond the rows has no images.
    among = population(config)
    if among is not None and max(config.member_ids) >= among:
        where = 'files.train' if config.split == 'file' else 'experts.count'
        raise UserError(
            f'split={config.split}: expected member_ids from 0 to {among - 1} ({where}), '
            f'got {config.member_ids}'
        )
    if among is not None and chosen == 'holdout':
        raise UserError('members with images of their own hold none out: set data.validation=none or file')
