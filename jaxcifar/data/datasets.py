"""The data sets: uint8 images [n,H,W,3] and int32 labels [n].

`digits` needs no download; `cifar10` and `cifar100` are kept as .npz files; `npz:PATH` and
`folder:PATH` are the user's own. They are read into memory. The images of `imagenet:PATH` and
`stream:PATH` stay on disk.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from jaxcifar.data.cifar import CIFAR
from jaxcifar.data.download import fetch_cifar
from jaxcifar.data.files import IMAGENET_MEAN, IMAGENET_STD, ImageFiles, check_alike, image_folders
from jaxcifar.data.npz import read_npz, write_npz
from jaxcifar.data.vision import read_images
from jaxcifar.machine import errors

TEST_SHARE = 0.2  # of a set that comes without a test part


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images uint8 [n,H,W,3], labels int32 [n]; `mean` and `std` per channel on the 0..1 scale."""

    name: str
    x_train: np.ndarray | ImageFiles
    y_train: np.ndarray
    x_test: np.ndarray | ImageFiles
    y_test: np.ndarray
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def image_size(self) -> int:
        """Side of the square images, in pixels."""
        return self.x_train.shape[1]

    def normalised(self, indices: np.ndarray) -> np.ndarray:
        """These training images with the mean and deviation taken out, float32 [N,H,W,3]."""
        mean, std = np.array([self.mean, self.std], np.float32)
        return (np.asarray(self.x_train[indices], np.float32) / 255 - mean) / std

    def fingerprint(self) -> str:
        """sha256 over the four arrays, in hex; of files on disk over their names and sizes."""
        digest = hashlib.sha256()
        for array in (self.x_train, self.y_train, self.x_test, self.y_test):
            if isinstance(array, ImageFiles):
                digest.update(array.manifest)
            else:
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def complaints(self) -> list[str]:
        """What a run says of its images when it ends."""
        files = [images for images in (self.x_train, self.x_test) if isinstance(images, ImageFiles)]
        count = len(set().union(*(f.unreadable for f in files)))
        total = len(self.y_train) + len(self.y_test)
        return [f'{count} of {total:,} images could not be read and were replaced'] if count else []


def is_streamed(name: str) -> bool:
    """Whether the images of the data set called `name` stay on disk."""
    return name.partition(':')[0] in ('imagenet', 'stream')


def load_dataset(name: str, root: str | Path, image_size: int = 32) -> Dataset:
    """The data set called `name`.

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
    return DATASETS[key](name, Path(root).expanduser(), image_size)


def _digits(name: str, root: Path, image_size: int) -> Dataset:
    """scikit-learn's 1,797 scanned 8x8 digits of 0..16, scaled up to RGB."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    size = (image_size, image_size)
    large = [Image.fromarray(image).resize(size, Image.Resampling.BICUBIC) for image in grey]
    images = np.repeat(np.stack([np.asarray(i) for i in large])[..., None], 3, axis=-1)
    return _dataset(name, _split(images, digits.target), tuple('0123456789'))


def _cifar(name: str, root: Path, image_size: int) -> Dataset:
    """`root/<name>.npz`, fetched and written first if it is not there."""
    path = root / f'{name}.npz'
    names, mean, std = CIFAR[name]
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_npz(path, fetch_cifar(name, root))
    except OSError as error:
        raise errors.UserError(
            f'{root}: cannot keep {name} there ({error.strerror}); name another data folder'
        ) from error
    try:
        dataset = _dataset(name, read_npz(path), tuple(names.split()), mean, std)
        if dataset.x_train.shape[1:] != (32, 32, 3):
            raise ValueError(f'x_train has shape {dataset.x_train.shape}, not (n, 32, 32, 3)')
    except ValueError as error:
        raise errors.UserError(f'{path}: {error}; delete it to have it fetched anew') from error
    return dataset


def _npz(name: str, root: Path, image_size: int) -> Dataset:
    """The user's own x_train, y_train and, if there, x_test, y_test and classes."""
    path = Path(name.partition(':')[2]).expanduser()
    try:
        arrays = read_npz(path)
        classes = tuple(arrays.pop('classes', np.array([])).astype(str).ravel().tolist())
        if 'x_test' not in arrays and 'y_test' not in arrays:
            _check_part(arrays, 'train')
            arrays = _split(arrays['x_train'], arrays['y_train'])
        return _dataset(name, arrays, classes)
    except ValueError as error:
        raise errors.UserError(
            f'{path}: {error}; write it with np.savez: uint8 x_train [n,H,H,3], integer y_train '
            '[n] of 0..C-1, and if you like x_test, y_test and the C class names as classes'
        ) from error


def _folder(name: str, root: Path, image_size: int) -> Dataset:
    """PATH/train/<class>/* with PATH/test or PATH/val, or a single tree that is split."""
    path, train, test = image_folders(name)
    try:
        x_train, y_train, classes = read_images(train, image_size)
        if test is None:
            return _dataset(name, _split(x_train, y_train), classes)
        x_test, y_test, test_classes = read_images(test, image_size)
        check_alike(classes, test_classes)
        arrays = {'x_train': x_train, 'y_train': y_train, 'x_test': x_test, 'y_test': y_test}
        return _dataset(name, arrays, classes)
    except (OSError, ValueError) as error:
        raise _unusable(path, error) from error


def _stream(name: str, root: Path, image_size: int) -> Dataset:
    """The same folders, listed and not read; with ImageNet's statistics."""
    path, train, test = image_folders(name)
    try:
        files, classes = ImageFiles.listed(train, image_size)
        if test is None:
            parts = _split(np.arange(len(files)), files.labels)
            x_train, x_test = files[parts['x_train']], files[parts['x_test']]
        else:
            x_train, (x_test, test_classes) = files, ImageFiles.listed(test, image_size)
            check_alike(classes, test_classes)
    except (OSError, ValueError) as error:
        raise _unusable(path, error) from error
    statistics = IMAGENET_MEAN, IMAGENET_STD
    return Dataset(name, x_train, x_train.labels, x_test, x_test.labels, classes, *statistics)


def _unusable(path: Path, error: Exception) -> errors.UserError:
    return errors.UserError(
        f'{path}: {error}; wanted: image files as {path}/train/<class>/* and '
        f'{path}/test/<class>/* or {path}/val/<class>/*, or {path}/<class>/*'
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


def _split(x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Stratified split into train and test, the same every time; ValueError where it cannot be."""
    from sklearn.model_selection import train_test_split

    parts = train_test_split(x, y, test_size=TEST_SHARE, stratify=y, random_state=0)
    return dict(zip(('x_train', 'x_test', 'y_train', 'y_test'), parts))


def _dataset(name, arrays, classes, mean=None, std=None) -> Dataset:
    """The checked data set; `classes` () numbers them, `mean` None measures. ValueError if bad."""
    for part in ('train', 'test'):
        _check_part(arrays, part)
    if arrays['x_train'].shape[1:] != arrays['x_test'].shape[1:]:
        raise ValueError('the images of x_train and x_test differ in size')
    seen = np.unique(arrays['y_train'])
    count = len(classes) or int(seen[-1]) + 1
    for part in ('train', 'test'):
        low, high = arrays[f'y_{part}'].min(), arrays[f'y_{part}'].max()
        if low < 0 or high >= count:
            raise ValueError(f'y_{part} runs from {low} to {high}, not within 0..{count - 1}')
    if len(seen) < count:
        absent = next((i for i, label in enumerate(seen) if i != label), len(seen))
        raise ValueError(f'class {absent} of 0..{count - 1} does not occur in y_train')
    if count < 2:
        raise ValueError('there is one class only')
    if mean is None:
        mean, std = _mean_std(arrays['x_train'])
    x_train, x_test = (np.ascontiguousarray(arrays[key]) for key in ('x_train', 'x_test'))
    y_train, y_test = (arrays[key].astype(np.int32) for key in ('y_train', 'y_test'))
    classes = classes or tuple(str(i) for i in range(count))
    return Dataset(name, x_train, y_train, x_test, y_test, classes, mean, std)


def _check_part(arrays: dict[str, np.ndarray], part: str) -> None:
    """ValueError unless x_<part> is uint8 [n,H,H,3] and y_<part> integer [n], n > 0."""
    for key in (f'x_{part}', f'y_{part}'):
        if key not in arrays:
            raise ValueError(f'{key} is missing')
    x, y = arrays[f'x_{part}'], arrays[f'y_{part}']
    if x.dtype != np.uint8:
        raise ValueError(f'x_{part} has dtype {x.dtype}, not uint8')
    if x.ndim != 4 or x.shape[1] != x.shape[2] or x.shape[3] != 3 or x.size == 0:
        raise ValueError(f'x_{part} has shape {x.shape}, not (n, H, H, 3)')
    if not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f'y_{part} has dtype {y.dtype}, not an integer one')
    if y.shape != x.shape[:1]:
        raise ValueError(f'y_{part} has shape {y.shape}, not {x.shape[:1]}')


def _mean_std(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and deviation of uint8 [n,H,H,C] on the 0..1 scale, from exact counts."""
    channels = np.moveaxis(images, -1, 0)
    counts = np.stack([np.bincount(channel.ravel(), minlength=256) for channel in channels])
    values, total = np.arange(256) / 255, counts.sum(axis=1)
    mean = (counts * values).sum(axis=1) / total
    variance = (counts * (values - mean[:, None]) ** 2).sum(axis=1) / total
    # One grey level at least: a constant channel would be divided by zero.
    std = np.maximum(np.sqrt(variance), 1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())
