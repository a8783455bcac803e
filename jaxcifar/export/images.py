"""Read images from files or arrays in the form that networks expect: uint8 [N,size,size,3]."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from jaxcifar.data.datasets import is_streamed
from jaxcifar.data.vision import centre_square, open_rgb, reason, to_bytes, to_rgb
from jaxcifar.machine.errors import UserError

CHANNELS = (1, 3, 4)  # grey, RGB, and RGB with transparency
SHAPES = '[H,W], [H,W,3], [H,W,1] or [H,W,4], or many of them as [N,H,W,3]'


def read_pictures(images, dataset: str, size: int) -> tuple[list[str], np.ndarray]:
    """Return (names, pixels uint8 [N,size,size,3]) of one image or of many.

    images: a file, a PIL image, an array [H,W], [H,W,C] or [N,H,W,C] with C 1, 3 or 4, or several of these in
    a list. Arrays are uint8, uint16, or floats from 0 to 1. dataset: what the networks were trained on.
    Images are cropped and scaled as in its evaluation, or to the centred square; arrays that have the size
    already stay as they are. Raises `UserError` for anything that is not an image.
    """
    fit = _fit(dataset, size)
    several = _listed(images)
    if not len(several):
        raise UserError('expected an image or more, got none')
    if isinstance(several, np.ndarray) and several.dtype == np.uint8 and several.shape[1:] == (size, size, 3):
        return [f'image {i}' for i in range(len(several))], several  # nothing is to be done
    names = [str(x) if isinstance(x, (str, Path)) else f'image {i}' for i, x in enumerate(several)]
    return names, np.stack([_read(image, name, fit, size) for image, name in zip(several, names)])


def _listed(images) -> list | np.ndarray:
    """Return a list of single images, or an array [N,…]."""
    if isinstance(images, (str, Path, Image.Image)):
        return [images]
    # Arrays of other libraries are arrays too; anything else is a series of images.
    if not hasattr(images, '__array__'):
        if not isinstance(images, Iterable):
            raise UserError(f'expected images as files, PIL images or arrays, got {type(images).__name__}')
        return list(images)
    array = np.asarray(images)
    if array.dtype.kind in 'OU':  # names of files, as in a column of pandas
        return array.ravel().tolist()
    return array if array.ndim == 4 else [array]


def _fit(dataset: str, size: int) -> Callable:
    """Return (RGB image) -> uint8 [size,size,3], as the data set cuts and scales its files."""
    if not is_streamed(dataset):
        return partial(centre_square, size=size)

    # Only image files need the stream's transforms, whose packages take long to import.
    from jaxcifar.data import stream

    transform = stream.eval_transform(size)
    return lambda image: np.asarray(transform(image))


def _read(image, name: str, fit: Callable, size: int) -> np.ndarray:
    """Return one image as uint8 [size,size,3]; `UserError` where it is none."""
    if isinstance(image, (str, Path)):
        try:
            return fit(open_rgb(Path(image).expanduser())[0])
        except Exception as error:  # Pillow's decoders raise nearly anything
            raise UserError(f'{image} is not a readable image: {reason(error)}') from None
    try:
        if not isinstance(image, Image.Image):
            pixels = _eight_bits(np.asarray(image))
            rgb = to_rgb(Image.fromarray(pixels.squeeze(2) if pixels.shape[2:] == (1,) else pixels))[0]
            return np.asarray(rgb) if rgb.size == (size, size) else fit(rgb)
        return fit(to_rgb(image)[0])
    except ValueError as error:
        raise UserError(f'{name}: {error}') from None


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    """Return the array of one image as uint8; ValueError where it is none."""
    shaped = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in CHANNELS)
    if not shaped or not pixels.size:
        # An array with channels first would be read as an image of three rows, so it is refused.
        first = pixels.ndim == 3 and pixels.shape[0] in CHANNELS
        remedies = ['move the channels to the end'] if first else []
        remedies += ['give many grey images as [N,H,W,1]'] if pixels.ndim == 3 and pixels.size else []
        remedy = f'; {", or ".join(remedies)}' if remedies else ''
        raise ValueError(f'expected {SHAPES}, got {pixels.dtype} {list(pixels.shape)}{remedy}')
    pixels = pixels.astype(pixels.dtype.newbyteorder('='), copy=False)  # another machine may have written it
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype != np.uint16 and not np.issubdtype(pixels.dtype, np.floating):
        raise ValueError(f'expected uint8, uint16, or floats from 0 to 1, got {pixels.dtype}')
    return to_bytes(pixels, 'divide it by its white, or give uint8')
