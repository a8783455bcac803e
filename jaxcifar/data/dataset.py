"""Hold the images and labels of a data set, in memory or on disk."""

import hashlib
from dataclasses import dataclass

import numpy as np

from jaxcifar.data.arrays import check_arrays, mean_std
from jaxcifar.data.files import ImageFiles, summarise


@dataclass(frozen=True, eq=False)
class Dataset:
    """Hold images uint8 [n,H,W,3], labels int32 [n]; `mean` and `std` per channel on the 0..1 scale.

    `x_val` and `y_val` are a folder's own validation part, None if it has none. `notes` are lines that
    tell the user how files and folders were interpreted. `index_fault` says why the images are not in the
    order that a user's index files count by, and what to do; '' where they are.
    """

    name: str
    x_train: np.ndarray | ImageFiles
    y_train: np.ndarray
    x_test: np.ndarray | ImageFiles
    y_test: np.ndarray
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    x_val: np.ndarray | ImageFiles | None = None
    y_val: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    index_fault: str = ''

    @property
    def num_classes(self) -> int:
        """Return the number of classes, C."""
        return len(self.classes)

    @property
    def image_size(self) -> int:
        """Return the side of the square images, in pixels."""
        return self.x_train.shape[1]

    def normalised(self, indices: np.ndarray) -> np.ndarray:
        """Return these training images normalised by mean and deviation, float32 [N,H,W,3]."""
        mean, std = np.array([self.mean, self.std], np.float32)
        return (np.asarray(self.x_train[indices], np.float32) / 255 - mean) / std

    def fingerprint(self) -> str:
        """Return the sha256 of the training and test parts, in hex; files on disk count by name and size."""
        return _sha256(self.x_train, self.y_train, self.x_test, self.y_test)

    def val_fingerprint(self) -> str:
        """Return the fingerprint of the validation part; '' where there is none."""
        return '' if self.x_val is None else _sha256(self.x_val, self.y_val)

    def complaints(self) -> list[str]:
        """Return the lines on unreadable or converted images that a run prints at its end."""
        parts = [x for x in (self.x_train, self.x_val, self.x_test) if isinstance(x, ImageFiles)]
        return summarise(parts, sum(map(len, parts)))


def _sha256(*arrays) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.manifest if isinstance(array, ImageFiles) else np.ascontiguousarray(array).data)
    return digest.hexdigest()


def from_arrays(name, arrays, classes, mean=None, std=None, notes=(), index_fault='') -> Dataset:
    """Build the data set; () numbers the classes, None measures mean and std. Raise ValueError if bad."""
    check_arrays(arrays, classes)
    if mean is None:
        mean, std = mean_std(arrays['x_train'])
    parts = [part for part in ('train', 'test', 'val') if f'x_{part}' in arrays]
    fields = {f'x_{part}': np.ascontiguousarray(arrays[f'x_{part}']) for part in parts}
    fields |= {f'y_{part}': arrays[f'y_{part}'].astype(np.int32) for part in parts}
    classes = classes or tuple(str(i) for i in range(int(arrays['y_train'].max()) + 1))
    return Dataset(
        name=name, classes=classes, mean=mean, std=std, notes=notes, index_fault=index_fault, **fields
    )
