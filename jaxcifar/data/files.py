"""Images that stay on disk: which there are, and which of them cannot be read."""

import os
import sys
from functools import cached_property
from pathlib import Path

import numpy as np

from jaxcifar.data.vision import import_torchvision
from jaxcifar.machine.errors import UserError

# Per channel on the 0..1 scale, as everybody takes them, also for other photographs.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageFiles:
    """Image files in place of an array uint8 [n,size,size,3]; an index gives files, not pixels.

    `stream.Reader` decodes them. Labels int32 [n] are known without reading.
    """

    def __init__(self, folder: str, names: np.ndarray, labels: np.ndarray, size: int):
        # Names as bytes in one array: a million cost 40 MB, and reach a worker in no time.
        self.folder, self.names, self.labels = folder, names, labels
        self.shape = (len(names), size, size, 3)
        self.unreadable: set[str] = set()  # the paths of those found so far; parts share it

    @classmethod
    def listed(cls, folder: Path, size: int) -> tuple['ImageFiles', tuple[str, ...]]:
        """The image files `folder`/<class>/* and the class names, sorted.

        Raises OSError for no such folder, or a class without image files.
        """
        listing = import_torchvision().datasets.ImageFolder(str(folder))
        names = [os.fsencode(os.path.relpath(path, folder)) for path, _ in listing.samples]
        labels = np.array(listing.targets, np.int32)
        return cls(str(folder), np.array(names), labels, size), tuple(listing.classes)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, indices: np.ndarray) -> 'ImageFiles':
        part = ImageFiles(self.folder, self.names[indices], self.labels[indices], self.shape[1])
        part.unreadable = self.unreadable
        return part

    def path(self, index: int) -> str:
        """Where the image is."""
        return os.path.join(self.folder, os.fsdecode(self.names[index]))

    @cached_property
    def manifest(self) -> bytes:
        """A line for each file: its name within the folder and its size in bytes."""
        sizes = (os.path.getsize(self.path(i)) for i in range(len(self)))
        return b''.join(b'%s %d\n' % line for line in zip(self.names, sizes))

    def noted(self, batch: dict) -> dict:
        """A `Reader`'s 'image' and 'label'; what it could not read is named on stderr, each file once."""
        if 'error' in batch:
            raise UserError(batch['error'])
        for index, reason in batch.pop('faults').items():
            path = self.path(index)
            if path not in self.unreadable:
                self.unreadable.add(path)
                line = f'unreadable image replaced by the next of its class: {path} ({reason})'
                print(line, file=sys.stderr)
        return batch


def image_folders(name: str) -> tuple[Path, Path, Path | None]:
    """Of a dataset KIND:PATH its folder, that of the training images, and that of the test images or None."""
    path = Path(name.partition(':')[2]).expanduser()
    if not (path / 'train').is_dir():
        return path, path, None
    return path, path / 'train', next((p for p in (path / 'test', path / 'val') if p.is_dir()), None)


def check_alike(train: tuple[str, ...], test: tuple[str, ...]):
    """ValueError where the class names differ."""
    if differ := sorted(set(train) ^ set(test)):
        raise ValueError(f'the classes of the training and test images differ in {", ".join(differ[:5])}')
