"""Keep images on disk: where they are, and which of them cannot be read.

Worker processes import this module: it must not import JAX.
"""

import os
import sys
from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from jaxcifar.machine.errors import UserError
from jaxcifar.machine.text import one_line

# Per channel on the 0..1 scale, as everybody takes them, also for other photographs.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageFiles:
    """Represent an array uint8 [n,size,size,3] by image files; indexing returns files, not pixels.

    `stream.Reader` decodes them. Labels int32 [n] are known without reading.
    """

    def __init__(self, folder: str, names: np.ndarray, labels: np.ndarray, size: int):
        # Names as bytes in one array: a million cost 40 MB, and reach a worker in no time.
        self.folder, self.names, self.labels = folder, names, labels
        self.shape = (len(names), size, size, 3)
        # What this process has found so far, by path. Parts made by indexing share both.
        self.unreadable: set[str] = set()
        self.converted: dict[str, str] = {}

    @classmethod
    def of(cls, folder: os.PathLike, paths: Sequence[str], labels: np.ndarray, size: int) -> 'ImageFiles':
        """Build them from paths within a folder and their labels [n]."""
        return cls(str(folder), np.array([os.fsencode(path) for path in paths]), labels, size)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, indices: np.ndarray) -> 'ImageFiles':
        part = ImageFiles(self.folder, self.names[indices], self.labels[indices], self.shape[1])
        part.unreadable, part.converted = self.unreadable, self.converted
        return part

    def path(self, index: int) -> str:
        """Return where the image is."""
        return os.path.join(self.folder, os.fsdecode(self.names[index]))

    @cached_property
    def manifest(self) -> bytes:
        """Return a line for each file: its name within the folder and its size in bytes."""
        sizes = (_size(self.path(i)) for i in range(len(self)))
        return b''.join(b'%s %d\n' % line for line in zip(self.names, sizes))

    def noted(self, batch: dict) -> dict:
        """Remove a `Reader`'s notes on its files from a batch, and report each unreadable file once.

        Raises `UserError` where nothing could stand in for an unreadable file.
        """
        if 'error' in batch:
            raise UserError(batch['error'])
        for index, change in batch.pop('converted').items():
            self.converted[self.path(index)] = change
        for index, why in batch.pop('faults').items():
            path = self.path(index)
            if path not in self.unreadable:
                self.unreadable.add(path)
                line = f'unreadable image replaced by the next of its class: {path} ({why})'
                print(one_line(line), file=sys.stderr)
        return batch


def _size(path: str) -> int:
    """Return a file's size in bytes; -1 for a dead link, which counts as an unreadable image."""
    try:
        return os.path.getsize(path)
    except OSError:
        return -1


def summarise(parts: Sequence[ImageFiles], total: int) -> list[str]:
    """Summarise how many of `total` files were replaced or converted so far; [] if none were."""
    unreadable: set[str] = set().union(*(files.unreadable for files in parts))
    converted = {path: change for files in parts for path, change in files.converted.items()}
    lines = []
    if unreadable:
        lines.append(f'{len(unreadable)} of {total:,} images could not be read and were replaced')
    if converted:
        kinds = ', '.join(f'{kind} {n:,}' for kind, n in Counter(converted.values()).most_common())
        lines.append(f'{len(converted):,} of {total:,} images were converted to 8-bit RGB ({kinds})')
    return lines
