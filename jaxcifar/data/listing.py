"""List the image files of a folder of classes, read them into memory, and count them for the user."""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxcifar.data.arrays import check_images_fit, check_names
from jaxcifar.data.layout import PARTS, Layout, find_layout, folders, is_folder, is_hidden, lookalikes
from jaxcifar.data.vision import centre_square, has_ending, is_image, open_rgb, reason
from jaxcifar.machine.text import one_line

NAMED = 3  # files that a summary names


class Listing(NamedTuple):
    """Hold image files: paths within `folder`, class by class, and their labels int32 [n].

    others: {path of a file that is left out: why}.
    """

    folder: Path
    paths: list[str]
    labels: np.ndarray
    classes: tuple[str, ...]
    others: dict[str, str]

    def is_whole(self, images: int) -> bool:
        """Return whether nothing was left out of the folder, where so many images were read."""
        return images == len(self.paths) and not self.others

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
        return one_line(line)


def list_images(folder: Path, classes: tuple[str, ...]) -> Listing:
    """List the image files below `folder`/<class>, in the order of torchvision's ImageFolder.

    Hidden files and folders are passed over. Raises OSError for a folder that cannot be read, ValueError for
    a class without images.
    """
    paths, labels, others = list[str](), list[int](), dict[str, str]()
    for label, name in enumerate(classes):
        before = len(paths)
        # The order is part of the data set: splits and fingerprints depend on it.
        for place, files, odd in sorted(_walk(str(folder / name), (os.path.realpath(folder),))):
            within = os.path.relpath(place, folder)
            others |= {os.path.normpath(os.path.join(within, entry)): why for entry, why in odd.items()}
            for path in (os.path.join(within, file) for file in sorted(files)):
                if is_image(os.path.join(folder, path)):
                    paths.append(path)
                else:
                    others[path] = 'not an image'
        if len(paths) == before:
            why = f' ({others[name]})' if name in others else ''
            raise ValueError(f'{folder / name} holds no images{why}')
        labels += [label] * (len(paths) - before)
    with os.scandir(folder) as entries:
        stray = sorted(e.name for e in entries if not is_folder(e) and has_ending(e.name))
    others |= dict.fromkeys(stray, 'in no class folder')
    return Listing(folder, paths, np.array(labels, np.int32), classes, others)


def _walk(place: str, above: tuple[str, ...]) -> Iterator[tuple[str, list[str], dict[str, str]]]:
    """Yield (folder, its files, {other entry: why it is left out}) for a folder and all folders below it.

    Hidden files and folders are skipped. Links are followed, except those back to a folder in `above`.
    Raises OSError for a folder that cannot be read, so that it does not pass for an empty one.
    """
    real = os.path.realpath(place)
    if real in above:
        yield place, [], {'.': 'a link to a folder that it lies in'}
        return
    files, below, odd = list[str](), list[str](), dict[str, str]()
    with os.scandir(place) as entries:
        for entry in entries:
            if is_folder(entry):
                # A folder of thumbnails holds copies of images, which must not be trained or tested on.
                below += [] if is_hidden(entry.name) else [entry.path]
            elif entry.name[0] == '.':
                continue
            # Opening a pipe would wait for somebody to write into it. A dead link is an unreadable image.
            elif (entry.is_symlink() and not os.path.exists(entry.path)) or entry.is_file():
                files.append(entry.name)
            else:
                odd[entry.name] = 'not a file'
    yield place, files, odd
    for folder in below:
        yield from _walk(folder, (*above, real))


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

    check_images_fit(len(listing.paths), size)
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
    if lost := sorted(set(listing.labels.tolist()) - set(labels)):
        raise ValueError(f'no image of class {listing.classes[lost[0]]} can be read: {summary}')
    return np.stack(pixels), np.array(labels), summary


def _check_alike(classes: tuple[str, ...], folder: Path, part: str):
    """Raise ValueError where a part's folder has other classes than the training part."""
    if differ := sorted(set(classes) ^ {p.name for p in folders(folder)}):
        # Cat/ and cat/, or an é of one and of two code points, look like one class to a person.
        same = '; rename those that differ only in case or accents' if lookalikes(differ) else ''
        raise ValueError(f'the classes of the train and {part} parts differ in {", ".join(differ[:5])}{same}')


def list_parts(path: Path) -> tuple[Layout, dict[str, Listing]]:
    """List the images of each part that a folder has; the parts' classes are the same.

    Raises OSError, or ValueError where a folder cannot be read as a data set.
    """
    layout = find_layout(path)
    check_names(layout.classes)
    for alike in lookalikes(layout.classes):
        names = ', '.join(f'{name}/' for name in alike)
        line = f'warning: {path}: {names} differ only in case or accents, and are {len(alike)} classes'
        print(one_line(line), file=sys.stderr)
    of_parts = {'train': layout.train, 'val': layout.val, 'test': layout.test}
    listings = {}
    for part, folder in of_parts.items():
        if folder is not None:
            if part != 'train':
                _check_alike(layout.classes, folder, part)
            listings[part] = list_images(folder, layout.classes)
    if layout.train == path and (doubt := _doubt(listings['train'])):
        print(one_line(f'warning: {path}: {doubt}'), file=sys.stderr)
    return layout, listings


def _doubt(listing: Listing) -> str:
    """Say why the folders of a single tree may be parts rather than classes; '' if nothing suggests it."""
    below: dict[str, set[str]] = {name: set() for name in listing.classes}
    for path in listing.paths:
        name, *inner = path.split(os.sep)[:-1]
        below[name].add(inner[0] if inner else '')  # '' for images directly in the folder
    first, *others = below.values()
    named = ', '.join(f'{name}/' for name in listing.classes[:NAMED])
    if '' not in first and len(first) > 1 and all(inside == first for inside in others):
        alike = ', '.join(f'{name}/' for name in sorted(first)[:NAMED])
        return f'{named} are taken for classes, but all hold {alike}: name parts train/ and test/'
    for name, inside in below.items():
        if {folder.lower() for folder in inside} & set(PARTS['train']):
            return f'{named} are taken for classes, but {name}/ holds a folder to train on: try {name}'
    return ''
