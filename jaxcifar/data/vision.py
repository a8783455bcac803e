"""Convert image files to 8-bit RGB, the same way for folders, streams and predictions; import torchvision.

Worker processes import this module: it must not import JAX.
"""

import logging
import os
import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# torch forgets a schema as soon as the library that declared it is collected.
_declared = []

# Endings that identify images without reading the file: torchvision's nine, and other common ones.
ENDINGS = {
    *('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff', '.webp'),
    *('.jfif', '.jpe', '.gif', '.apng', '.pbm', '.pnm', '.jp2', '.j2k', '.avif', '.tga', '.ico', '.dib'),
}
# Pillow recognises these but draws none of them by itself.
NO_PICTURES = ('BUFR', 'EPS', 'FITS', 'GRIB', 'HDF5', 'IPTC', 'MPEG', 'WMF')
ANIMATED = ('AVIF', 'GIF', 'PNG', 'TIFF', 'WEBP')
MODES = {'1': '1-bit', 'L': 'grey', 'P': 'palette'}
READING = 2  # version of the decoding, kept with each run; raised whenever any file gets other pixels
WHITE = (255, 255, 255, 255)  # what shows through transparent pixels, as on a page
ORIENTATION = 0x0112  # EXIF's tag; 1 is upright


# Pillow warns about large photographs and odd tags even in files that it can read. Files that it cannot read
# are reported in our own messages.
warnings.filterwarnings('ignore', module='PIL')
logging.getLogger('PIL').setLevel(logging.CRITICAL)


def import_torchvision():
    """Return the torchvision package, imported on the first call (about a second).

    A CUDA wheel cannot load its compiled operators beside a CPU torch and then dies on the missing
    schemas of `nms` and `qnms`. Nothing here detects boxes, so declaring the two is enough.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if 'operator torchvision::' not in str(error):
            raise
        # A failed import leaves behind the submodules that had already been loaded.
        for module in [name for name in sys.modules if name.startswith('torchvision.')]:
            del sys.modules[module]
        _declare_operators()
        import torchvision
    return torchvision


def _declare_operators() -> None:
    import torch

    library = torch.library.Library('torchvision', 'DEF')
    for operator in ('nms', 'qnms'):
        library.define(f'{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    _declared.append(library)


def to_rgb(image: Image.Image) -> tuple[Image.Image, str]:
    """Convert an open image to 8-bit RGB and say how; '' where it was 8-bit RGB already.

    16-bit numbers are divided by 257 and floats from 0 to 1 multiplied by 255. Transparent pixels are
    blended with white. Only the first of several frames is used. An EXIF orientation is not applied, as
    in torchvision.

    Raises ValueError for pixels without a known scale, and whatever Pillow raises on broken bytes.
    """
    changes = []
    if image.format in ANIMATED and getattr(image, 'is_animated', False):
        changes.append('first frame')
    if image.mode == 'F' or image.mode.startswith('I'):
        rgb, change = _scaled(image)
    elif image.has_transparency_data:
        rgb, change = _on_white(image)
    else:
        rgb = image.convert('RGB')
        change = '' if image.mode == 'RGB' else MODES.get(image.mode, image.mode)
    changes += [change] if change else []
    if _is_turned(image):
        changes.append('EXIF orientation not applied')
    return rgb, ' + '.join(changes)


def _scaled(image: Image.Image) -> tuple[Image.Image, str]:
    """Scale one channel of 16-bit numbers, or of floats, to 8 bits."""
    pixels = np.asarray(image)
    # Pillow opens 16-bit files of two formats as 32-bit numbers. For other formats, white is unknown.
    known = image.mode != 'I' or (
        image.format in ('PNG', 'PPM') and pixels.min() >= 0 and pixels.max() <= 65535
    )
    if not known:
        raise ValueError('expected pixels of 8 or 16 bits, got 32-bit or signed ones; save it in 8 bits')
    grey = to_bytes(pixels, 'save it in 8 bits')
    return Image.fromarray(grey).convert('RGB'), 'float' if image.mode == 'F' else '16-bit'


def to_bytes(pixels: np.ndarray, remedy: str) -> np.ndarray:
    """Return 16-bit numbers, or floats from 0 to 1, as uint8; ValueError with the remedy for other floats."""
    if np.issubdtype(pixels.dtype, np.floating):
        low, high = pixels.min(), pixels.max()
        if not (low >= 0 and high <= 1):  # NaN is refused with them
            raise ValueError(f'expected float pixels from 0 to 1, got {low:g} to {high:g}; {remedy}')
        return np.rint(pixels * 255).astype(np.uint8)
    # Adding half of 257 rounds to the nearest, and needs more than 16 bits.
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _on_white(image: Image.Image) -> tuple[Image.Image, str]:
    """Lay an image that may be transparent on white."""
    image = (image.convert('LA') if image.mode == 'La' else image).convert('RGBA')
    # Many opaque files carry an alpha channel, which is no reason to report a change.
    if image.getchannel('A').getextrema()[0] == 255:
        return image.convert('RGB'), ''
    paper = Image.new('RGBA', image.size, WHITE)
    return Image.alpha_composite(paper, image).convert('RGB'), 'transparent, on white'


def _is_turned(image: Image.Image) -> bool:
    """Tell whether EXIF says that the stored pixels are turned or mirrored."""
    if 'exif' not in image.info or image.format == 'TIFF':  # Pillow turns TIFF files itself
        return False
    try:
        return image.getexif().get(ORIENTATION, 1) != 1
    except Exception:  # broken EXIF says nothing, and the pixels may be whole
        return False


def open_rgb(path: str | Path) -> tuple[Image.Image, str]:
    """Read an image file; return and raise as `to_rgb`."""
    with Image.open(path) as image:
        return to_rgb(image)


def centre_square(image: Image.Image, size: int) -> np.ndarray:
    """Cut out the centred square and scale it: uint8 [size,size,3]."""
    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))


def read_image(path: str | Path, size: int) -> np.ndarray:
    """Read the centred square of an image file: uint8 [size,size,3]; raises as `to_rgb`."""
    return centre_square(open_rgb(path)[0], size)


def has_ending(path: str) -> bool:
    """Tell whether a file's name ends as those of images do."""
    return os.path.splitext(path)[1].lower() in ENDINGS


def is_image(path: str) -> bool:
    """Tell by the ending, or else by the first bytes, whether Pillow reads the file."""
    if has_ending(path):
        return True
    try:
        with Image.open(path) as image:
            return image.format not in NO_PICTURES
    except Exception:  # Pillow's readers raise nearly anything on what they do not know
        return False


def reason(error: Exception) -> str:
    """Say in a few words why an image cannot be read, without its path."""
    if isinstance(error, UnidentifiedImageError):
        return 'cannot identify image'
    text = getattr(error, 'strerror', None) or str(error)
    return ' '.join(text.split()) or type(error).__name__
