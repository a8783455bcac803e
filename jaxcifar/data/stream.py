"""Decode image files in DataLoader workers or in a thread; imports no JAX, for the same reason as `gather`.

The random transform of a training image is a function of (seed, epoch, index) and nothing else.
"""

import threading
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from jaxcifar.data.files import ImageFiles
from jaxcifar.data.vision import import_torchvision, open_rgb, reason
from jaxcifar.machine.errors import UserError

import_torchvision()
from torchvision.transforms import v2  # noqa: E402


def train_transform(size: int):
    """Build torchvision's usual transform: a random crop, scaled to [size,size,3], mirrored half the time."""
    return v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()])


def eval_transform(size: int):
    """Build the centre crop: 224 pixels of a shorter side scaled to 256, and in proportion at other sizes."""
    side = round(size * 256 / 224)
    return v2.Compose([partial(check_scaled, side=side), v2.Resize(side), v2.CenterCrop(size)])


def check_scaled(image: Image.Image, side: int) -> Image.Image:
    """Return the image; ValueError where it is too large once its shorter side is scaled to `side` pixels."""
    short, long = sorted(image.size)
    # Pillow's own limit applies to the stored image, but scaling a thin strip can take gigabytes.
    if long * side * side > MAX_IMAGE_PIXELS * short:
        raise ValueError(f'{image.width}x{image.height} pixels are too thin to be scaled')
    return image


MAX_IMAGE_PIXELS = 2**26  # of an image after scaling, 200 MB

# torchvision draws from torch's one global generator, and a run reads in several threads.
GENERATOR = threading.Lock()


def read(path: str, transform) -> np.ndarray:
    """Read an image file and transform it: uint8 [H,W,3]; raises as `vision.to_rgb`."""
    return np.asarray(transform(open_rgb(path)[0]))


class Reader:
    """Serve whole batches, decoded from files, as a PyTorch dataset.

    A file that cannot be read is replaced by the next of its class within its pool, the indices that may
    be seen. The label stays right, no held-out image enters, and all processes agree.
    """

    def __init__(
        self,
        files: ImageFiles,
        pools: Sequence[np.ndarray],
        seeds: Sequence[tuple[int, ...]] | None = None,
    ):
        """Take one pool and one seed for batches [B], K of each for [K,B]; no seeds: read for evaluation."""
        self.files, self.pools, self.seeds = files, pools, seeds
        size = files.shape[1]
        self.transform = eval_transform(size) if seeds is None else train_transform(size)

    def __getitems__(self, request: tuple[int, np.ndarray]) -> dict[str, Any]:
        """Read (epoch, indices): 'image', 'label', 'index', and what `ImageFiles.noted` takes out."""
        epoch, indices = request
        rows = [row.tolist() for row in np.atleast_2d(indices)]
        # A worker cannot print or keep these for the run, so they travel with the batch.
        faults, converted = dict[int, str](), dict[int, str]()
        try:
            images = [
                self._read(index, pool, (*seed, epoch, index), faults, converted)
                for seed, pool, row in zip(self.seeds or [()], self.pools, rows, strict=True)
                for index in row
            ]
        except UserError as error:  # raised again by `noted`: torch would add a worker's traceback
            return {'error': str(error)}
        return {
            'image': np.stack(images).reshape(*indices.shape, *self.files.shape[1:]),
            'label': self.files.labels[indices],
            'index': indices.astype(np.int32),
            'faults': faults,
            'converted': converted,
        }

    def _read(
        self,
        index: int,
        pool: np.ndarray,
        seed: tuple[int, ...],
        faults: dict[int, str],
        converted: dict[int, str],
    ) -> np.ndarray:
        """Read one image, or the first readable of its class; note what happened, by index."""
        for candidate in self._candidates(index, pool):
            try:
                image, change = open_rgb(self.files.path(candidate))
                pixels = self._transform(image, seed)
            except Exception as error:  # Pillow's decoders raise nearly anything on broken bytes
                faults[candidate] = reason(error)
            else:
                if change:
                    converted[candidate] = change
                return pixels
        raise UserError(f'no image of the class of {self.files.path(index)} can be read: {faults[index]}')

    def _transform(self, image: Image.Image, seed: tuple[int, ...]) -> np.ndarray:
        if self.seeds is None:
            return np.asarray(self.transform(image))
        # SeedSequence mixes the tuple, so that neighbours do not get related seeds.
        state = int(np.random.SeedSequence(seed).generate_state(1)[0])
        # Other code may use torch's generator, so its state is restored.
        with GENERATOR, torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which reaches for the GPU's generators too.
            torch.default_generator.manual_seed(state)
            return np.asarray(self.transform(image))

    def _candidates(self, index: int, pool: np.ndarray) -> Iterator[int]:
        """Yield the index itself, then the others of its class in order, wrapping around at the end."""
        yield index
        # The order by index is the same in every process.
        alike = np.sort(pool[self.files.labels[pool] == self.files.labels[index]])
        yield from np.concatenate([alike[alike > index], alike[alike < index]]).tolist()
