"""Which images each member trains on, which choose the weights, and which are only evaluated."""

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from jaxcifar.data import expert_splits, long_tail
from jaxcifar.data.expert_splits import rows_of
from jaxcifar.data.files import ImageFiles
from jaxcifar.machine.errors import UserError, lookup


class Split(NamedTuple):
    """Indices into the training images, and parts that are evaluated besides.

    `train` is [n] where members share their images, else [K,n], with -1 behind the images of a member
    that has fewer (see `rows_of`); `validation` is [m], empty unless training images were held out.
    `parts` are indices by name, into the test images for those in `of_test` and else into the training
    images; they replace train and test where they have these names.
    `class_counts` [C] are the images of the long tail before its parts, by which classes are grouped.
    `own_validation` is the sha256 of the data set's own validation part where that part is used, else ''.
    """

    train: np.ndarray
    validation: np.ndarray
    parts: Mapping[str, np.ndarray] = MappingProxyType({})
    of_test: tuple[str, ...] = ()
    class_counts: np.ndarray | None = None
    own_validation: str = ''

    def fingerprint(self) -> str:
        """Return the sha256 of all indices, and of an own validation part, in hex."""
        digest = hashlib.sha256(self.own_validation.encode())
        for indices in (self.train, self.validation, *self.parts.values()):
            digest.update(np.asarray(indices, '<i8').tobytes())
        return digest.hexdigest()


def shared(dataset, config) -> Split:
    """All members see everything that is not held out."""
    return _hold_out(np.arange(len(dataset.y_train)), dataset, config)


def overlap(dataset, config) -> Split:
    """Each expert sees a part of the pool: images that all see, and some that are its own."""
    _, pool = expert_splits.holdout_and_pool(len(dataset.y_train), config)
    return _own_images(expert_splits.overlap(pool, config), dataset, config)


def disjoint(dataset, config) -> Split:
    """Each expert sees its own classes of the pool."""
    _, pool = expert_splits.holdout_and_pool(len(dataset.y_train), config)
    rows = expert_splits.disjoint(pool, dataset.y_train, dataset.num_classes, config)
    return _own_images(rows, dataset, config)


def fusion(dataset, config) -> Split:
    """All members see the fusion holdout, but for what is held out of it in turn."""
    held, _ = expert_splits.holdout_and_pool(len(dataset.y_train), config)
    return _hold_out(held, dataset, config)


def from_files(dataset, config) -> Split:
    """The user's own indices: one list for all members, or one for each."""
    paths = config.files.train
    rows = expert_splits.read_rows(paths)
    expert_splits.check_range(rows, len(dataset.y_train), paths)
    if len(rows) > 1:
        return _own_images(rows, dataset, config)
    if config.data.validation == 'holdout':
        return _hold_out(rows[0], dataset, config)
    return Split(rows[0], _validation(dataset, config))


def _own_images(rows: list[np.ndarray], dataset, config) -> Split:
    train = expert_splits.rectangular(rows, config.member_ids)
    return Split(train, _validation(dataset, config))


def long_tailed(dataset, config) -> Split:
    """All members see the train part of a long tail."""
    found = long_tail.load_parts(dataset, config)
    counts = long_tail.class_sizes(dataset.y_train, dataset.num_classes, config.long_tail.imbalance)
    if config.split == 'long_tail_standard':
        split = _hold_out(found['train'], dataset, config)
        # Held out or not, rows of `train` stay in the index file's order.
        kept = found['train'][np.isin(found['train'], split.train)]
        return split._replace(train=kept, parts={'train': kept}, class_counts=counts)
    rest = np.setdiff1d(np.arange(len(dataset.y_test)), found['val_lt'])
    parts = {**found, 'test': rest}
    return Split(found['train'], np.array([], int), parts, ('val_lt', 'test_lt', 'test'), counts)


SPLITS = {
    'shared': shared,
    'overlap': overlap,
    'disjoint': disjoint,
    'fusion': fusion,
    'file': from_files,
    'long_tail': long_tailed,
    'long_tail_standard': long_tailed,
}
# data.validation -> the name that the images have which choose the best weights
VALIDATIONS = {
    'holdout': 'validation',
    'fusion_holdout': 'validation',
    'fusion_validation': 'validation',
    'file': 'validation',
    'val_lt': 'val_lt',
    'test': 'test',
    'none': None,
}
# Not all go together: a split -> its values of data.validation, the usual one first.
GOES_WITH = {
    'overlap': ('fusion_holdout', 'fusion_validation', 'file', 'test', 'none'),
    'disjoint': ('fusion_holdout', 'fusion_validation', 'file', 'test', 'none'),
    'fusion': ('fusion_validation', 'file', 'test', 'none'),
    'long_tail': ('val_lt', 'test', 'none'),
    'long_tail_standard': ('holdout', 'test', 'none'),
}
ANY_SPLIT = tuple(v for v in VALIDATIONS if v != 'val_lt')


def make_split(dataset, config) -> Split:
    """The images of config.split; raises `UserError` where it cannot be made of these."""
    split = lookup('split', SPLITS, config.split)(dataset, config)
    if both := np.intersect1d(split.train, split.validation).size:
        raise UserError(
            f'{both} images of split={config.split} are among those of '
            f'data.validation={config.data.validation}, which must not be trained on'
        )
    return split


def population(config) -> int | None:
    """How many members the images are parted for, None where all see the same.

    A run may train some of them: `member_ids` says which.
    """
    if config.split == 'file' and config.files.train:
        rows = len(expert_splits.read_rows(config.files.train))
        return rows if rows > 1 else None
    return config.experts.count if config.split in ('overlap', 'disjoint') else None


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
    train = {'train': np.unique(np.concatenate(rows_of(split.train))), **split.parts}
    test = {name: train.pop(name) for name in split.of_test}
    if len(split.validation):
        train['validation'] = split.validation

    def take(images, labels, rows=None):
        if rows is None:
            return Images(images, labels, np.arange(len(labels)), split.class_counts)
        return Images(images[rows], labels[rows], rows, split.class_counts)

    images = {name: take(dataset.x_train, dataset.y_train, rows) for name, rows in train.items()}
    if split.own_validation:
        images['validation'] = take(dataset.x_val, dataset.y_val)
    if 'test' not in test:
        images['test'] = take(dataset.x_test, dataset.y_test)
    return images | {name: take(dataset.x_test, dataset.y_test, rows) for name, rows in test.items()}


def train_counts(dataset, split: Split) -> np.ndarray:
    """Training images of each class: [K,C], or [1,C] where members share theirs."""
    labels = [dataset.y_train[row] for row in rows_of(split.train)]
    return np.stack([np.bincount(row, minlength=dataset.num_classes) for row in labels])


def validation_split(config) -> str | None:
    """The name of the images that choose the best weights: every log calls them that."""
    return VALIDATIONS[config.data.validation]


def check(config):
    """Raise `UserError` where a split lacks the validation images, the files or the members asked for."""
    chosen = config.data.validation
    allowed = GOES_WITH.get(config.split, ANY_SPLIT)
    if chosen not in allowed:
        others = f' ({", ".join(allowed[1:])} are possible, too)'
        raise UserError(
            f'split={config.split} has no data.validation={chosen}: set data.validation={allowed[0]}{others}'
        )
    for field, wanted in (('train', config.split), ('validation', chosen)):
        given = bool(config.files[field])
        if given != (wanted == 'file'):
            user = 'split' if field == 'train' else 'data.validation'
            missing = f'{user}=file needs files.{field}'
            raise UserError(f'files.{field} is for {user}=file, not {wanted}' if given else missing)
    among = population(config)
    if among is not None and max(config.member_ids) >= among:
        where = 'files.train' if config.split == 'file' else 'experts.count'
        raise UserError(
            f'member_ids={config.member_ids}: split={config.split} is for the members 0 to {among - 1} '
            f'({where})'
        )
    if among is not None and chosen == 'holdout':
        raise UserError('members with images of their own hold none out: set data.validation=none or file')


def _validation(dataset, config) -> np.ndarray:
    """What data.validation holds out whatever the split, sorted; [] of others."""
    images = len(dataset.y_train)
    if config.data.validation == 'fusion_holdout':
        return expert_splits.holdout_and_pool(images, config)[0]
    if config.data.validation == 'fusion_validation':
        return expert_splits.fusion_validation(images, config)
    if config.data.validation == 'file':
        paths = config.files.validation
        rows = expert_splits.read_rows(paths)
        expert_splits.check_range(rows, images, paths)
        if len(rows) > 1:
            raise UserError(f'{paths} has {len(rows)} lists; validation images are one, for all members')
        return np.sort(rows[0])
    return np.array([], int)


def _hold_out(pool: np.ndarray, dataset, config) -> Split:
    """Take the validation images out of the pool; with `holdout`, class by class alike.

    A data set's own validation part takes the place of `holdout`: nothing leaves the pool.
    """
    if config.data.validation != 'holdout':
        held = _validation(dataset, config)
        return Split(np.setdiff1d(pool, held) if len(held) else pool, held)
    if dataset.y_val is not None:
        return Split(pool, np.array([], int), own_validation=dataset.val_fingerprint())
    from sklearn.model_selection import train_test_split  # takes a second to import

    size = config.data.validation_size
    size, seed = int(size) if size >= 1 else float(size), config.data.split_seed
    labels = dataset.y_train[pool]
    try:
        train, held = train_test_split(pool, test_size=size, stratify=labels, random_state=seed)
    except ValueError as error:
        raise UserError(f'cannot hold out data.validation_size={size}: {error}') from error
    return Split(np.sort(train), np.sort(held))
