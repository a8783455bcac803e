"""What a run says of its images before it begins."""

import numpy as np

from jaxcifar.data.expert_splits import rows_of
from jaxcifar.data.splits import Split

FEW = 10  # images of a class from which little can be learnt
NAMED = 5  # classes that a line names


def describe(dataset, split: Split) -> list[str]:
    """Return lines for the user: what was taken for what, and how many images a class has to train on.

    With several members' own images, those of all members together are counted.
    """
    lines = [*dataset.notes]
    if dataset.y_val is not None:
        use = 'choose the weights; data.validation_size is not used'
        if not split.own_validation:
            use = 'are not used: data.validation chooses others'
        lines.append(f'the {len(dataset.y_val):,} images of the validation part {use}')
    seen = np.unique(np.concatenate(rows_of(split.train)))
    counts = np.bincount(dataset.y_train[seen], minlength=dataset.num_classes)
    lines.append(
        f'training images per class: {counts.min():,} min, {np.median(counts):,.0f} median, '
        f'{counts.max():,} max, {dataset.num_classes:,} classes'
    )
    if len(few := np.flatnonzero(counts < FEW)):
        names = ', '.join(f'{dataset.classes[i]} {counts[i]}' for i in few[:NAMED])
        more = ', …' if len(few) > NAMED else ''
        lines.append(f'classes with fewer than {FEW} training images: {len(few):,} ({names}{more})')
    return lines
