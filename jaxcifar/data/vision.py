"""torchvision, also where a CUDA wheel of it was installed beside a CPU build of torch."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# torch forgets a schema as soon as the library that declared it is collected.
_declared = []


def import_torchvision():
    """The torchvision package, imported on the first call (about a second).

    A CUDA wheel cannot load its compiled operators beside a CPU torch and then dies on the missing
    schemas of `nms` and `qnms`. Nothing here detects boxes, so declaring the two is enough.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if 'operator torchvision::' not in str(error):
            raise
        # A package that failed to import leaves the submodules that did not fail behind.
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


def read_image(path: str | Path, size: int) -> np.ndarray:
    """An image file's centred square, scaled to uint8 [size,size,3]; raises whatever Pillow does."""
    with Image.open(path) as image:
        return np.asarray(ImageOps.fit(image.convert('RGB'), (size, size), Image.Resampling.BICUBIC))


def read_images(folder: Path, size: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """The image files in `folder`/<class>/*: the centred square of each, scaled to `size` pixels.

    A file that cannot be read is named on stderr and left out.

    Returns:
      images uint8 [n,size,size,3], labels int64 [n] and the class names, in sorted order.

    Raises:
      OSError: no such folder, or a class without image files.
      ValueError: no file is readable.
    """

    def read(path: str) -> np.ndarray | Exception:
        try:
            return read_image(path, size)
        except Exception as error:  # Pillow's decoders raise nearly anything on broken bytes
            return error

    listing = import_torchvision().datasets.ImageFolder(str(folder))
    with ThreadPoolExecutor() as pool:
        images = list(pool.map(read, [path for path, _ in listing.samples]))
    good = []
    for (path, label), image in zip(listing.samples, images):
        if isinstance(image, Exception):
            print(f'unreadable image left out: {path} ({image})', file=sys.stderr)
        else:
            good.append((image, label))
    if not good:
        raise ValueError(f'none of the {len(images)} images in {folder} is readable')
    if len(good) < len(images):
        print(f'{folder}: {len(images) - len(good)} of {len(images)} left out', file=sys.stderr)
    pixels, labels = zip(*good)
    return np.stack(pixels), np.array(labels), tuple(listing.classes)
