"""Read test images for networks that are already trained; a training part is neither needed nor read."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxcifar.data.arrays import check_labels_known, check_part, class_names
from jaxcifar.data.cifar import CIFAR
from jaxcifar.data.datasets import Dataset, is_streamed, load_dataset, local_path
from jaxcifar.data.files import ImageFiles
from jaxcifar.data.layout import find_test
from jaxcifar.data.listing import list_images, read_images
from jaxcifar.data.npz import read_npz
from jaxcifar.machine.errors import UserError

WHOLE = 'digits', *CIFAR  # data sets whose test part is taken


def load_test_images(name: str, root: str | Path, alike: Dataset) -> Dataset:
    """Read the test images called `name` for networks that were trained on a data set like `alike`.

    npz:FILE holds x_test and y_test; folder:DIR holds test/<class>/* or <class>/*, whose names are those of
    the classes. Images are scaled and normalised as those of `alike`. Raises `UserError` where the classes
    or sizes differ from those of `alike`.
    """
    kind = name.partition(':')[0]
    if name in WHOLE:
        dataset = replace(load_dataset(name, root, alike.image_size), mean=alike.mean, std=alike.std)
    elif kind in ('npz', 'folder'):
        images, labels, classes = _npz(name) if kind == 'npz' else _folder(name, alike)
        none = np.empty((0, *images.shape[1:]), np.uint8), np.empty(0, np.int32)
        classes = classes or tuple(str(i) for i in range(len(alike.classes)))
        dataset = Dataset(name, *none, images, labels.astype(np.int32), classes, alike.mean, alike.std)
    else:
        raise UserError(
            f'expected npz:FILE, folder:DIR or one of {", ".join(WHOLE)} as test images, got {name}'
        )
    check_alike(dataset, alike)
    hint = '; subtract 1 from all labels' if dataset.y_test.min() == 1 else ''
    try:
        check_labels_known({'y_test': dataset.y_test}, 'test', alike.num_classes, hint)
    except ValueError as error:
        raise UserError(f'{name}: {error}') from None
    return dataset


def check_alike(here: Dataset, there: Dataset):
    """Raise `UserError` unless networks that were trained on `there` can be tested on `here`."""
    sizes = [f'{d.num_classes} classes of {d.image_size} pixels' for d in (there, here)]
    if sizes[0] != sizes[1]:
        raise UserError(f'expected {sizes[0]}, got {sizes[1]} of {here.name}: name other images')
    # A label is a position in the list of classes. Without names, nothing shows whether two lists agree.
    # Folders named by numbers are an exception: they are sorted as text, as in 0, 1, 10, 11, 2.
    named, reordered = _is_named(here) and _is_named(there), {*here.classes} == {*there.classes}
    if here.classes != there.classes and (named or reordered):
        label = next(i for i, (a, b) in enumerate(zip(there.classes, here.classes)) if a != b)
        raise UserError(
            f'{here.name}: expected {there.classes[label]} as class {label}, got {here.classes[label]}',
            f'name images of the same classes, in the same order ({", ".join(there.classes[:20])})',
        )


def _is_named(dataset: Dataset) -> bool:
    """Return whether the classes have names: a file of arrays may hold none, and is given numbers."""
    numbers = tuple(str(i) for i in range(dataset.num_classes))
    return dataset.classes != numbers or not dataset.name.startswith('npz:')


def _npz(name: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return (images, labels, names of the classes, () for none) of a file's test part."""
    path = local_path(name)
    try:
        arrays, _ = read_npz(path, ('test',))
        check_part(arrays, 'test')
        return arrays['x_test'], arrays['y_test'], class_names(arrays.get('classes', np.array([])))
    except ValueError as error:
        raise UserError(
            f'{path}: {error} (create the file with np.savez: uint8 x_test [n,H,H,3], integer y_test [n] '
            'from 0 to C-1, and optionally the C class names as classes)'
        ) from error


def _folder(name: str, alike: Dataset) -> tuple[np.ndarray | ImageFiles, np.ndarray, tuple[str, ...]]:
    """Return (images, labels, names of all classes) of folders of some of the classes."""
    path = local_path(name)
    images: np.ndarray | ImageFiles
    try:
        folder, classes = find_test(path, alike.classes)
        listing = list_images(folder, alike.classes, classes)
        if is_streamed(alike.name):
            # The network's own test images were cropped as in a stream, which differs from `read_images`.
            images = ImageFiles.of(folder, listing.paths, listing.labels, alike.image_size)
            labels, summary = listing.labels, listing.summary({}, {})
        else:
            images, labels, summary = read_images(listing, alike.image_size)
    except (OSError, ValueError) as error:
        why = getattr(error, 'strerror', None) or error
        raise UserError(f'{path}: {why}; expected image files as test/<class>/* or <class>/*') from error
    if not listing.is_whole(len(images)):
        print(summary, file=sys.stderr)
    return images, labels, alike.classes
