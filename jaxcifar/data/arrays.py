"""Check, split and measure images and labels as arrays."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from jaxcifar.machine import memory
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.text import is_plain

TEST_SHARE = 0.2  # of a data set that comes without a test part
COUNTED = 512  # images whose pixels are counted at a time: NumPy widens them to 64 bits first


def check_arrays(arrays: dict[str, np.ndarray], classes: tuple[str, ...]):
    """Raise ValueError unless a data set can be made of x_train, y_train, x_test and y_test.

    `classes` are the names of the labels 0 to C-1, or () where they have none.
    """
    for part in ('train', 'test'):
        check_part(arrays, part)
    train, test = (arrays[f'x_{part}'].shape[1:] for part in ('train', 'test'))
    if train != test:
        raise ValueError(f'x_train and x_test differ in size: {train[0]} and {test[0]} pixels a side')
    # Without names, the largest label tells how many classes there are.
    present = np.unique(arrays['y_train'])
    count = len(classes) or int(present[-1]) + 1
    hint = '; subtract 1 from all labels' if present[0] == 1 else ''
    for part in ('train', 'test'):
        check_labels_known(arrays, part, count, hint)
    if len(present) < count:
        absent = next((i for i, label in enumerate(present) if i != label), len(present))
        name = f'{absent} ({classes[absent]})' if classes else f'{absent}'
        raise ValueError(f'y_train: expected each class of 0 to {count - 1}, got no image of {name}{hint}')
    if count < 2:
        raise ValueError(f'expected at least 2 classes, got {count}')


def check_labels_known(arrays: dict[str, np.ndarray], part: str, count: int, hint: str = ''):
    """Raise ValueError unless the labels of a part are from 0 to `count` - 1."""
    low, high = arrays[f'y_{part}'].min(), arrays[f'y_{part}'].max()
    if low < 0 or high >= count:
        raise ValueError(f'y_{part}: expected labels from 0 to {count - 1}, got {low} to {high}{hint}')


def class_names(classes: np.ndarray) -> tuple[str, ...]:
    """Return the class names in an array, which may be empty. Raise ValueError for anything but text."""
    try:
        names = tuple(classes.astype(str).ravel().tolist())
    except ValueError:  # bytes that are not ASCII
        raise ValueError(f'classes: expected text, got {classes.dtype}; convert: np.array(names)') from None
    check_names(names)
    return names


def check_names(classes: tuple[str, ...]):
    """Raise ValueError unless the class names are distinct and each is one line of text."""
    # Tables, cards and commands print them, and files hold them as UTF-8.
    for name, times in Counter(classes).items():
        if not name or not is_plain(name):
            raise ValueError(f'expected class names that are a line of text, got {name!r}')
        if times > 1:
            raise ValueError(f'expected a name for each class, got {name} {times} times')


def check_part(arrays: dict[str, np.ndarray], part: str):
    """Raise ValueError unless x_<part> is uint8 [n,H,H,3] and y_<part> integers [n], n > 0.

    The message says how to convert what can be converted.
    """
    for key in (f'x_{part}', f'y_{part}'):
        if key not in arrays:
            raise ValueError(f'{key} is missing')
    _check_images(f'x_{part}', arrays[f'x_{part}'])
    _check_labels(f'y_{part}', arrays[f'y_{part}'], len(arrays[f'x_{part}']))


def _check_images(key: str, x: np.ndarray):
    is_shaped = x.ndim == 4 and x.shape[1] == x.shape[2] and x.shape[3] == 3 and x.size > 0
    # The usual case ends here. The rest only builds the error message.
    if is_shaped and x.dtype == np.uint8:
        return
    remedies = ([] if is_shaped else _reshape(key, x)) + _recast(key, x)
    advice = f'; convert: {", then ".join(remedies)}' if remedies else ''
    raise ValueError(f'{key}: expected uint8 of shape (n, H, H, 3), got {x.dtype} of shape {x.shape}{advice}')


def _reshape(key: str, x: np.ndarray) -> list[str]:
    """Say how images of another shape become [n,H,W,3]; [] where that is unknown."""
    if x.ndim == 4 and x.shape[1] in (1, 3, 4) and x.shape[3] not in (1, 3, 4):
        # One image is enough to tell what remains to be done to the shape.
        moved = np.moveaxis(x[:1], 1, 3)
        return [f'{key}.transpose(0, 2, 3, 1)', *_reshape(key, moved)]
    if x.ndim == 3:
        return [f'np.stack([{key}] * 3, -1)']
    if x.ndim == 4 and x.shape[3] == 1:
        return [f'np.repeat({key}, 3, 3)']
    if x.ndim == 4 and x.shape[3] == 4:
        return [f'{key}[..., :3]']
    if x.ndim == 4 and x.shape[3] == 3 and x.shape[1] != x.shape[2]:
        return ['cut or scale them to squares']
    if x.ndim == 2 and x.shape[1] == 3 * round((x.shape[1] / 3) ** 0.5) ** 2:
        side = round((x.shape[1] / 3) ** 0.5)
        return [f'{key}.reshape(-1, 3, {side}, {side}).transpose(0, 2, 3, 1) if channels come first']
    return []


def _recast(key: str, x: np.ndarray) -> list[str]:
    """Say how numbers of another type become uint8; [] where that is unknown."""
    if x.dtype == np.uint8 or x.dtype.kind not in 'biuf' or not x.size:
        return []
    low, high = x.min(), x.max()
    if not np.isfinite([low, high]).all():
        return ['replace the numbers that are not finite']
    if x.dtype.kind == 'b' or (x.dtype.kind == 'f' and low >= 0 and high <= 1):
        return [f'({key} * 255.0).round().astype(np.uint8)']
    if low >= 0 and high <= 255:
        return [f'{key}.round().astype(np.uint8)' if x.dtype.kind == 'f' else f'{key}.astype(np.uint8)']
    if x.dtype == np.uint16:
        return [f'({key} // 257).astype(np.uint8)']
    return [f'scale its {low:g} to {high:g} to 0 to 255']


def _check_labels(key: str, y: np.ndarray, images: int):
    is_integer = np.issubdtype(y.dtype, np.integer)
    if is_integer and y.shape == (images,):
        return
    # The advice must not lose information: 0.5 and NaN do not name a class.
    is_whole = y.dtype.kind in 'biu' or (y.dtype.kind == 'f' and np.isfinite(y).all() and (y == y // 1).all())
    advice = ''
    if y.shape == (images, 1) and is_whole:
        advice = f'; convert: {key}.ravel()' + ('' if is_integer else '.astype(int)')
    elif y.ndim == 2 and len(y) == images and y.shape[1] > 1:
        advice = f'; convert: {key}.argmax(1), if it is one-hot'
    elif y.shape == (images,) and is_whole:
        advice = f'; convert: {key}.astype(int)'
    elif y.shape == (images,) and y.dtype.kind in 'US':
        advice = f'; convert: classes, {key} = np.unique({key}, return_inverse=True)'
    got = f'{y.dtype} of shape {y.shape}{advice}'
    raise ValueError(f'{key}: expected integers of shape ({images},), got {got}')


def check_images_fit(images: int, size: int):
    """Raise `UserError` if this many images of `size` pixels a side exceed the machine's memory."""
    needed, there = 3 * images * size**2, memory.total()
    if needed > there:
        raise UserError(
            f'{images:,} images of data.image_size={size} need {needed / 1e9:,.0f} GB, but there are only '
            f'{there / 1e9:,.0f} GB of memory: set a smaller data.image_size, or use stream:PATH for files'
        )


def set_aside_test(x: np.ndarray, y: np.ndarray, names: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Split images and labels into train and test, stratified by class and the same every time.

    Raises ValueError where a class is too small for both.
    """
    try:
        images, tests, labels, test_labels = cut((x, y), y, 0, names, test_size=TEST_SHARE)
    except ValueError as error:
        raise ValueError(f'cannot set a test part aside: {error}') from None
    return {'x_train': images, 'x_test': tests, 'y_train': labels, 'y_test': test_labels}


def cut(arrays: tuple, labels: np.ndarray, seed: int, names: Sequence[str] = (), **size: float) -> list:
    """Split arrays of n rows in two, stratified by class: [first, second] of each array in turn.

    size: train_size of the first part or test_size of the second, as in scikit-learn. names: the classes',
    for messages. Raises ValueError where a part cannot have every class.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2:
        label = classes[counts.argmin()]
        name = names[label] if 0 <= label < len(names) else label
        raise ValueError(f'class {name}: expected 2 images or more, got 1')
    # The import takes a second, and most data sets have a test part.
    from sklearn.model_selection import train_test_split

    try:
        return train_test_split(*arrays, stratify=labels, random_state=seed, **size)
    except ValueError:
        # scikit-learn's own text speaks of its arguments, which the user does not know.
        ((part, share),) = size.items()
        rounded = math.floor if part == 'train_size' else math.ceil
        one = rounded(share * len(labels)) if isinstance(share, float) else int(share)
        first, second = (one, len(labels) - one)[:: 1 if part == 'train_size' else -1]
        raise ValueError(
            f'expected each of {len(classes)} classes in both parts, got {first} and {second} images for them'
        ) from None


def mean_std(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure mean and deviation per channel of uint8 [n,H,H,C] on the 0..1 scale, from exact counts."""
    # Counting 256 values is exact, and needs no array of floats as large as the images.
    counts = np.zeros((images.shape[-1], 256), int)
    for start in range(0, len(images), COUNTED):
        channels = np.moveaxis(images[start : start + COUNTED], -1, 0)
        counts += [np.bincount(channel.ravel(), minlength=256) for channel in channels]
    values, total = np.arange(256) / 255, counts.sum(axis=1)
    mean = (counts * values).sum(axis=1) / total
    variance = (counts * (values - mean[:, None]) ** 2).sum(axis=1) / total
    # One grey level at least: a constant channel would be divided by zero.
    std = np.maximum(np.sqrt(variance), 1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())
