"""Describe the images of a run before it begins."""

import numpy as np

from jaxcifar.data.expert_splits import rows_of
from jaxcifar.data.splits import Split

FEW = 10  # with fewer training images, little can be learnt about a class
NAMED = 5  # classes with few images that a line names
ALL = 10  # up to this many classes, a line names them all


def describe(dataset, split: Split) -> list[str]:
    """Return lines for the user: how the data were interpreted, and each class's number of training images.

    Where members have their own images, all images that any member trains on are counted.
    """
    lines = [*dataset.notes]
    if dataset.y_val is not None:
        use = 'choose the weights; data.validation_size is not used'
        if not split.own_validation:
            use = 'are not used: data.validation chooses others'
        lines.append(f'the {len(dataset.y_val):,} images of the validation part {use}')
    seen = np.unique(np.concatenate(rows_of(split.train)))
    counts = np.bincount(dataset.y_train[seen], minlength=dataset.num_classes)
    lines.append(f'training images per class: {_per_class(counts, dataset.classes)}')
    if len(few := np.flatnonzero(counts < FEW)):
        names = ', '.join(f'{dataset.classes[i]} {counts[i]}' for i in few[:NAMED])
        more = ', …' if len(few) > NAMED else ''
        lines.append(f'classes with fewer than {FEW} training images: {len(few):,} ({names}{more})')
    return lines


def _per_class(counts: np.ndarray, classes: tuple[str, ...]) -> str:
    """Return in words how many images each class has: all of a few classes, else the range."""
    if counts.min() == counts.max():
        return f'{counts[0]:,} in each of {len(counts):,} classes'
    if len(counts) <= ALL:
        return ', '.join(f'{name} {count:,}' for name, count in zip(classes, counts))
    low, middle, high = counts.min(), np.median(counts), counts.max()
    return f'{low:,} min, {middle:,.0f} median, {high:,} max, {len(counts):,} classes'
