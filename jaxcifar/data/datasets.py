"""Read the data sets: uint8 images [n,H,W,3] and int32 labels [n].

`digits` needs no download; `cifar10` and `cifar100` are kept as .npz files; `npz:PATH` and
`folder:PATH` are the user's own. They are read into memory. The images of `imagenet:PATH` and
`stream:PATH` stay on disk.
"""

import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from jaxcifar.data.arrays import check_images_fit, check_part, class_names, set_aside_test
from jaxcifar.data.cifar import CIFAR
from jaxcifar.data.dataset import Dataset, from_arrays
from jaxcifar.data.download import fetch_cifar
from jaxcifar.data.files import IMAGENET_MEAN, IMAGENET_STD, ImageFiles
from jaxcifar.data.listing import list_parts, read_images
from jaxcifar.data.npz import READ_ONLY, read_npz, stored_size, write_npz
from jaxcifar.machine import errors
from jaxcifar.machine.text import show

NO_TEST = 'expected a data set with its own test part'  # begins an `index_fault`: the rest is shuffled


def without_images(name: str, classes, image_size: int, mean, std) -> Dataset:
    """Return a data set without images and labels, but with all that networks need."""
    images, labels = np.empty((0, image_size, image_size, 3), np.uint8), np.empty(0, int)
    return Dataset(name, images, labels, images, labels, tuple(classes), tuple(mean), tuple(std))


def is_streamed(name: str) -> bool:
    """Tell whether the images of the data set called `name` stay on disk."""
    return name.partition(':')[0] in ('imagenet', 'stream')


def is_resized(name: str, image_size: int) -> bool:
    """Tell whether `image_size` is not that of the images in an .npz, which stay as they are.

    32 is always right: configs have it where nobody has set a size.
    """
    size = stored_size(local_path(name)) if name.startswith('npz:') and image_size != 32 else None
    return size not in (None, image_size)


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
    return from_arrays(name, set_aside_test(images, digits.target), tuple('0123456789'))


def _cifar(name: str, root: Path, image_size: int) -> Dataset:
    """Read `root/<name>.npz`, fetched and written first if it is not there."""
    path = root / f'{name}.npz'
    names, mean, std = CIFAR[name]
    try:
        root.mkdir(parents=True, exist_ok=True)
        arrays = None if path.exists() else _fetched_cifar(name, path)
    except OSError as error:
        raise errors.UserError(
            f'{root}: cannot store {name} there ({error.strerror}): set JAXCIFAR_DATA to another folder'
        ) from error
    try:
        dataset = from_arrays(name, arrays or read_npz(path)[0], tuple(names.split()), mean, std)
        if dataset.x_train.shape[1:] != (32, 32, 3):
            raise ValueError(f'x_train: expected shape (n, 32, 32, 3), got {dataset.x_train.shape}')
    except ValueError as error:
        raise errors.UserError(f'{path}: {error}; delete it to download it again') from error
    return dataset


def _fetched_cifar(name: str, path: Path) -> dict[str, np.ndarray]:
    """Fetch CIFAR's arrays and write them to `path`, unless its folder is read-only."""
    arrays = fetch_cifar(name, path.parent)
    try:
        write_npz(path, arrays)
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        # Shared data may be read-only, and hold the official archive.
        print(f'warning: {path}: {error.strerror}; {name} is read anew by each run', file=sys.stderr)
    return arrays


def _npz(name: str, root: Path, image_size: int) -> Dataset:
    """Read the user's own x_train, y_train and, if there, x_test, y_test and classes."""
    path = local_path(name)
    try:
        arrays, others = read_npz(path)
        notes = (f'{path}: not used: {", ".join(others)}',) if others else ()
        classes, fault = class_names(arrays.pop('classes', np.array([]))), ''
        if 'x_test' not in arrays and 'y_test' not in arrays:
            check_part(arrays, 'train')
            arrays = set_aside_test(arrays['x_train'], arrays['y_train'], classes)
            notes = (f'{path}: a fifth of each class is set aside as the test part', *notes)
            fault = f'{NO_TEST}, got {path} without one: add x_test and y_test'
        return from_arrays(name, arrays, classes, notes=notes, index_fault=fault)
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
        arrays, notes, fault = dict[str, np.ndarray](), [layout.line], ''
        for part, listing in listings.items():
            images, labels, summary = read_images(listing, image_size)
            arrays |= {f'x_{part}': images, f'y_{part}': labels}
            # Every command reports files left out on stderr at once. Other notes appear when a run starts.
            is_whole = listing.is_whole(len(images))
            notes += [summary] if is_whole else []
            if not is_whole:
                print(summary, file=sys.stderr)
            if part == 'train' and (lost := len(listing.paths) - len(images)):
                fault = (
                    f'expected training images that can all be read, got {lost:,} in {listing.folder} that '
                    'cannot, so that later indices shift: mend these files, or remove them and count again'
                )
        if 'test' not in listings:
            arrays = set_aside_test(arrays['x_train'], arrays['y_train'], layout.classes)
            fault = _without_test(path)
        return from_arrays(name, arrays, layout.classes, notes=tuple(notes), index_fault=fault)
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
        '' if 'test' in listings else _without_test(path),
    )  # fmt: skip


def local_path(name: str) -> Path:
    """Return the path in the name of a data set, kind:PATH."""
    return Path(os.path.expanduser(name.partition(':')[2]))  # Path's own raises for an unknown ~user


def _without_test(path: Path) -> str:
    """Return the `index_fault` of folders from whose training images a test part is drawn."""
    return f'{NO_TEST}, got {path} without one: put the images into the folders train/ and test/'


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
