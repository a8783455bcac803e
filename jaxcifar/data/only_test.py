"""Read test images that come without any to train on, for networks that are trained already."""

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxcifar.data.arrays import check_labels_known, check_part, class_names
from jaxcifar.data.datasets import Dataset, load_dataset, local_path
from jaxcifar.data.layout import find_test
from jaxcifar.data.listing import list_images, read_images
from jaxcifar.data.npz import read_npz
from jaxcifar.machine.errors import UserError


def load_test_images(name: str, root: str | Path, image_size: int, alike: Dataset) -> Dataset:
    """Read the data set called `name`, as `load_dataset` does, but without a training part where it has none.

    npz:PATH may hold x_test and y_test alone, and folder:PATH the folders test/<class>/* or <class>/*.
    Classes, normalisation and the size of image files are then those of `alike`.
    """
    kind, _, path = name.partition(':')
    read = ALONE.get(kind)
    try:
        found = read(local_path(name), alike) if read else None
    except (OSError, ValueError) as error:
        wanted = f'expected test images of {len(alike.classes)} classes'
        raise UserError(f'{path}: {error}', wanted) from error
    if found is None:
        return load_dataset(name, root, image_size)
    images, labels = found
    none = np.empty((0, *images.shape[1:]), np.uint8), np.empty(0, np.int32)
    return Dataset(name, *none, images, labels.astype(np.int32), alike.classes, alike.mean, alike.std)


def _npz(path: Path, alike: Dataset) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the test part of a file without a training part, None of any other file."""
    try:
        with zipfile.ZipFile(path) as file:
            keys = {Path(name).stem for name in file.namelist()}
    except (OSError, zipfile.BadZipFile):
        return None  # the reader of whole data sets says what is wrong with it
    if 'x_test' not in keys or keys & {'x_train', 'y_train'}:
        return None
    arrays, _ = read_npz(path, 'test')
    check_part(arrays, 'test')
    check_labels_known(arrays, 'test', len(alike.classes))
    names = class_names(arrays.get('classes', np.array([])))
    numbers = tuple(map(str, range(len(alike.classes))))  # of a training without names
    if names and names != alike.classes != numbers:
        raise ValueError(f'classes: expected {", ".join(alike.classes)}, got {", ".join(names)}')
    return arrays['x_test'], arrays['y_test']


def _folder(path: Path, alike: Dataset) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the images of a folder without a training part, None of any other folder."""
    found = find_test(path, alike.classes)
    if found is None:
        return None
    folder, classes = found
    images, labels, summary = read_images(list_images(folder, classes), alike.image_size)
    print(summary, file=sys.stderr)
    # Folders may be of some classes only, and are numbered among themselves.
    return images, np.array([alike.classes.index(name) for name in classes])[labels]


ALONE: dict[str, Callable[[Path, Dataset], tuple[np.ndarray, np.ndarray] | None]] = {
    'npz': _npz,
    'folder': _folder,
}
