"""Read the data sets: uint8 images [n,H,W,3] and int32 labels [n].

`digits` needs no download; `cifar10` and `cifar100` are kept as .npz files; `npz:PATH` and
`folder:PATH` are the user's own. They are read into memory. The images of `imagenet:PATH` and
`stream:PATH` stay on disk.
"""

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from jaxcifar.data.arrays import (
    check_arrays,
    check_images_fit,
    check_part,
    class_names,
    mean_std,
    set_aside_test,
)
from jaxcifar.data.cifar import CIFAR
from jaxcifar.data.download import fetch_cifar
from jaxcifar.data.files import IMAGENET_MEAN, IMAGENET_STD, ImageFiles, summarise
from jaxcifar.data.listing import list_parts, read_images
from jaxcifar.data.npz import read_npz, write_npz
from jaxcifar.machine import errors
from jaxcifar.machine.text import show


@dataclass(frozen=True, eq=False)
class Dataset:
    """Hold images uint8 [n,H,W,3], labels int32 [n]; `mean` and `std` per channel on the 0..1 scale.

    `x_val` and `y_val` are a folder's own validation part, None if it has none. `notes` are lines that
    tell the user how files and folders were interpreted.
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


def without_images(name: str, classes, image_size: int, mean, std) -> Dataset:
    """Return a data set without images and labels, but with all that networks need."""
    images, labels = np.empty((0, image_size, image_size, 3), np.uint8), np.empty(0, int)
    return Dataset(name, images, labels, images, labels, tuple(classes), tuple(mean), tuple(std))


def is_streamed(name: str) -> bool:
    """Tell whether the images of the data set called `name` stay on disk."""
    return name.partition(':')[0] in ('imagenet', 'stream')


def load_dataset(name: str, root: str | Path, image_size: int = 32) -> Dataset:
    """Read the data set called `name`.

    Args:
      name: a key of DATASETS.
      root: folder of the CIFAR files; fetched ones are kept there.
      image_size: side in pixels to which digits and image files are scaled; CIFAR and .npz images
        stay as they are.

    Raises:
      UserError: unknown name, unusable file, or a data set that could not be fetched.
    """
    kind, _, path = name.partition(':')
    key = f'{kind}:PATH' if path else name
    if key not in DATASETS:
        raise errors.unknown('dataset', name, DATASETS)
    return DATASETS[key](name, Path(os.path.expanduser(root)), image_size)


def _digits(name: str, root: Path, image_size: int) -> Dataset:
    """Read scikit-learn's 1,797 scanned 8x8 digits of 0..16, scaled up to RGB."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    size = (image_size, image_size)
    check_images_fit(len(grey), image_size)
    large = [Image.fromarray(image).resize(size, Image.Resampling.BICUBIC) for image in grey]
    images = np.repeat(np.stack([np.asarray(i) for i in large])[..., None], 3, axis=-1)
    return _dataset(name, set_aside_test(images, digits.target), tuple('0123456789'))


def _cifar(name: str, root: Path, image_size: int) -> Dataset:
    """Read `root/<name>.npz`, fetched and written first if it is not there."""
    path = root / f'{name}.npz'
    names, mean, std = CIFAR[name]
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_npz(path, fetch_cifar(name, root))
    except OSError as error:
        raise errors.UserError(
            f'{root}: cannot store {name} there ({error.strerror}): set JAXCIFAR_DATA to another folder'
        ) from error
    try:
        dataset = _dataset(name, read_npz(path)[0], tuple(names.split()), mean, std)
        if dataset.x_train.shape[1:] != (32, 32, 3):
            raise ValueError(f'x_train: expected shape (n, 32, 32, 3), got {dataset.x_train.shape}')
    except ValueError as error:
        raise errors.UserError(f'{path}: {error}; delete it to download it again') from error
    return dataset


def _npz(name: str, root: Path, image_size: int) -> Dataset:
    """Read the user's own x_train, y_train and, if there, x_test, y_test and classes."""
    path = local_path(name)
    try:
        arrays, others = read_npz(path)
        notes = (f'{path}: not used: {", ".join(others)}',) if others else ()
        classes = class_names(arrays.pop('classes', np.array([])))
        if 'x_test' not in arrays and 'y_test' not in arrays:
            check_part(arrays, 'train')
            arrays = set_aside_test(arrays['x_train'], arrays['y_train'], classes)
            notes = (f'{path}: a fifth of each class is set aside as the test part', *notes)
        return _dataset(name, arrays, classes, notes=notes)
    except ValueError as error:
        raise errors.UserError(
            f'{path}: {error} (create the file with np.savez: uint8 x_train [n,H,H,3], integer y_train [n] '
            'from 0 to C-1, and optionally x_test, y_test and the C class names as classes)'
        ) from error


def _folder(name: str, root: Path, image_size: int) -> Dataset:
    """Read PATH/train/<class>/* with PATH/test and PATH/val, or split the single tree PATH/<class>/*."""
    path = local_path(name)
    try:
        layout, listings = list_parts(path)
        arrays, notes = dict[str, np.ndarray](), [layout.line]
        for part, listing in listings.items():
            images, labels, summary = read_images(listing, image_size)
            arrays |= {f'x_{part}': images, f'y_{part}': labels}
            # Every command reports files left out on stderr at once. Other notes appear when a run starts.
            is_whole = listing.is_whole(len(images))
            notes += [summary] if is_whole else []
            if not is_whole:
                print(summary, file=sys.stderr)
        if 'test' not in listings:
            arrays = set_aside_test(arrays['x_train'], arrays['y_train'], layout.classes)
        return _dataset(name, arrays, layout.classes, notes=tuple(notes))
    except (OSError, ValueError) as error:
        raise _unusable(path, error) from error


def _stream(name: str, root: Path, image_size: int) -> Dataset:
    """List the image files of such folders without reading them, and use ImageNet's statistics."""
    path = local_path(name)
    try:
        layout, listings = list_parts(path)
        files = {p: ImageFiles.of(x.folder, x.paths, x.labels, image_size) for p, x in listings.items()}
        for listing in listings.values():
            if listing.others:
                print(listing.summary({}, {}), file=sys.stderr)
        # Indices split the files as they would split an array of pixels.
        train = files['train']
        if 'test' not in files:
            parted = set_aside_test(np.arange(len(train)), train.labels, layout.classes)
            files |= {'train': train[parted['x_train']], 'test': train[parted['x_test']]}
    except (OSError, ValueError) as error:
        raise _unusable(path, error) from error
    train, test, val = files['train'], files['test'], files.get('val')
    return Dataset(
        name, train, train.labels, test, test.labels, layout.classes, IMAGENET_MEAN, IMAGENET_STD,
        val, None if val is None else val.labels, (layout.line,),
    )  # fmt: skip


def local_path(name: str) -> Path:
    """Return the path in the name of a data set, kind:PATH."""
    return Path(os.path.expanduser(name.partition(':')[2]))  # Path's own raises for an unknown ~user


def _unusable(path: Path, error: Exception) -> errors.UserError:
    place = getattr(error, 'filename', None) or path
    return errors.UserError(
        f'{show(str(place), 300)}: {getattr(error, "strerror", None) or error}; expected image files as '
        'train/<class>/*, optionally with test/<class>/* and val/<class>/*, or as <class>/*'
    )


DATASETS = {
    'digits': _digits,
    'cifar10': _cifar,
    'cifar100': _cifar,
    'npz:PATH': _npz,
    'folder:PATH': _folder,
    'imagenet:PATH': _stream,
    'stream:PATH': _stream,
}


def _dataset(name, arrays, classes, mean=None, std=None, notes=()) -> Dataset:
    """Build the data set; () numbers the classes, None measures mean and std. Raise ValueError if bad."""
    check_arrays(arrays, classes)
    if mean is None:
        mean, std = mean_std(arrays['x_train'])
    parts = [part for part in ('train', 'test', 'val') if f'x_{part}' in arrays]
    fields = {f'x_{part}': np.ascontiguousarray(arrays[f'x_{part}']) for part in parts}
    fields |= {f'y_{part}': arrays[f'y_{part}'].astype(np.int32) for part in parts}
    classes = classes or tuple(str(i) for i in range(int(arrays['y_train'].max()) + 1))
    return Dataset(name=name, classes=classes, mean=mean, std=std, notes=notes, **fields)
