"""List the image files of a folder of classes, read them into memory, and count them for the user."""

import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxcifar.data.arrays import check_images_fit, check_names
from jaxcifar.data.layout import (
    PARTS,
    Layout,
    find_layout,
    folders,
    has_images,
    is_folder,
    lookalikes,
    shortened,
    walk,
)
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


def list_images(folder: Path, classes: tuple[str, ...], among: Sequence[str] | None = None) -> Listing:
    """List the image files below `folder`/<class>, in the order of torchvision's ImageFolder.

    among: the classes that have a folder, all by default. Labels count by `classes` in either case. Hidden
    files and folders are passed over. Raises OSError for a folder that cannot be read, ValueError for one
    without images.
    """
    paths, labels, others = list[str](), list[int](), dict[str, str]()
    for name in classes if among is None else among:
        before, label = len(paths), classes.index(name)
        # The order is part of the data set: splits and fingerprints depend on it.
        for place, files, odd in sorted(walk(str(folder / name), (os.path.realpath(folder),))):
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


def _list_part(folder: Path, classes: tuple[str, ...], part: str) -> Listing:
    """List the images of a part that need not have every class; ValueError where it has others."""
    inside = folders(folder)
    names = {p.name for p in inside}
    if names - set(classes):
        differ = sorted(names ^ set(classes))
        # Cat/ and cat/, or an é of one and of two code points, look like one class to a person.
        same = '; rename those that differ only in case or accents' if lookalikes(differ) else ''
        raise ValueError(f'the classes of the train and {part} parts differ in {", ".join(differ[:5])}{same}')
    there = [p.name for p in inside if has_images(p)]
    if not there:
        raise ValueError(f'{folder} holds no images')
    if lacking := [name for name in classes if name not in there]:
        count = f'{len(lacking):,} of {len(classes):,} classes'
        line = f'warning: {folder}: {count} have no images in the {part} part: {shortened(lacking)}'
        print(one_line(line), file=sys.stderr)
    return list_images(folder, classes, there)


def list_parts(path: Path) -> tuple[Layout, dict[str, Listing]]:
    """List the images of each part that a folder has; labels count by the training part's classes.

    Raises OSError, or ValueError where a folder cannot be read as a data set.
    """
    layout = find_layout(path)
    check_names(layout.classes)
    for alike in lookalikes(layout.classes):
        names = ', '.join(f'{name}/' for name in alike)
        line = f'warning: {path}: {names} differ only in case or accents, and are {len(alike)} classes'
        print(one_line(line), file=sys.stderr)
    listings = {'train': list_images(layout.train, layout.classes)}
    for part, folder in (('val', layout.val), ('test', layout.test)):
        if folder is not None:
            listings[part] = _list_part(folder, layout.classes, part)
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
