"""The image files of a folder of classes: listed, read into memory, and counted for the user."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxcifar.data.layout import folders
from jaxcifar.data.vision import centre_square, has_ending, is_image, open_rgb, reason

NAMED = 3  # files that a summary names


class Listing(NamedTuple):
    """Image files: paths within `folder`, class by class, and their labels int32 [n].

    others: {path of a file that is left out: why}.
    """

    folder: Path
    paths: list[str]
    labels: np.ndarray
    classes: tuple[str, ...]
    others: dict[str, str]

    def summary(self, converted: dict[str, str], unreadable: dict[str, str]) -> str:
        """Say in one line how many files are used, converted and left out, and why.

        converted, unreadable: {path within the folder: how, or why}.
        """
        used, total = len(self.paths) - len(unreadable), len(self.paths) + len(self.others)
        line = f'{self.folder}: {used:,} images of {total:,} files used'
        if converted:
            kinds = Counter(converted.values()).most_common()
            line += f'; {len(converted):,} converted ({", ".join(f"{kind} {n:,}" for kind, n in kinds)})'
        left_out = unreadable | self.others
        if left_out:
            named = [f'{path}: {why}' for path, why in list(left_out.items())[:NAMED]]
            more = ['…'] if len(left_out) > NAMED else []
            line += f'; {len(left_out):,} left out ({", ".join(named + more)})'
        return line


def list_images(folder: Path, classes: tuple[str, ...]) -> Listing:
    """List the image files below `folder`/<class>, in the order of torchvision's ImageFolder.

    Hidden files are passed over. Raises OSError for a folder that cannot be read, ValueError for a class
    without images.
    """
    paths, labels, others = list[str](), list[int](), dict[str, str]()
    for label, name in enumerate(classes):
        before = len(paths)
        # The order is part of the data set: splits and fingerprints go by it.
        for place, _, files in sorted(os.walk(folder / name, onerror=_raise, followlinks=True)):
            within = os.path.relpath(place, folder)
            for path in (os.path.join(within, file) for file in sorted(files) if file[0] != '.'):
                if is_image(os.path.join(folder, path)):
                    paths.append(path)
                else:
                    others[path] = 'not an image'
        if len(paths) == before:
            raise ValueError(f'{folder / name} holds no images')
        labels += [label] * (len(paths) - before)
    with os.scandir(folder) as entries:
        stray = sorted(e.name for e in entries if not e.is_dir() and has_ending(e.name))
    others |= dict.fromkeys(stray, 'in no class folder')
    return Listing(folder, paths, np.array(labels, np.int32), classes, others)


def _raise(error: OSError):
    """Raise what os.walk would pass over: a folder that may not be read is not an empty one."""
    raise error


def read_images(listing: Listing, size: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Read the centred square of each file, scaled to `size` pixels; unreadable files are left out.

    Returns images uint8 [n,size,size,3], labels int32 [n], and the line that sums up what was read.
    Raises ValueError where no file can be read.
    """

    def read(path: str) -> tuple[np.ndarray, str] | Exception:
        try:
            image, change = open_rgb(listing.folder / path)
            return centre_square(image, size), change
        except Exception as error:  # Pillow's decoders raise nearly anything on broken bytes
            return error

    # Pillow releases Python's lock while it decodes, so threads help.
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(read, listing.paths))
    pixels, labels = [], []
    converted, unreadable = dict[str, str](), dict[str, str]()
    for path, label, result in zip(listing.paths, listing.labels, results):
        if isinstance(result, Exception):
            unreadable[path] = reason(result)
            continue
        pixels.append(result[0])
        labels.append(label)
        if result[1]:
            converted[path] = result[1]
    summary = listing.summary(converted, unreadable)
    if not pixels:
        raise ValueError(f'none of the {len(results)} images can be read: {summary}')
    return np.stack(pixels), np.array(labels), summary


def check_alike(classes: tuple[str, ...], folder: Path, part: str):
    """Raise ValueError where a part's folder has other classes than the training part."""
    if differ := sorted(set(classes) ^ {p.name for p in folders(folder)}):
        raise ValueError(f'the classes of the train and {part} parts differ in {", ".join(differ[:5])}')
