"""Folders of images with links, pipes, odd names, and parts that do not go together."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.faults.outcomes import Case
from jaxcifar.data.datasets import load_dataset
from jaxcifar.data.files import ImageFiles
from jaxcifar.data.stream import Reader


def tree(folder: Path, classes=('a', 'b'), count: int = 6):
    """Make image files `folder`/<class>/<i>.png."""
    for k, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new('RGB', (9, 8), (50 * k + 10, i, 7)).save(folder / name / f'{i}.png')


def _links(folder: Path):
    tree(folder)
    (folder / 'a' / 'again').symlink_to(folder)


def _write_below(path: Path):
    path.parent.mkdir()
    path.write_text('x')


def _with(name: str, make: Callable[[Path], Any], *classes: str) -> Callable[[Path], None]:
    """Return what makes a tree and then one thing more in it."""

    def build(folder: Path):
        tree(folder, classes or ('a', 'b'))
        make(folder / name)

    return build


def _parts(**parts) -> Callable[[Path], None]:
    """Return what makes folders of parts; values are their classes, () for images without."""

    def build(folder: Path):
        for name, classes in parts.items():
            tree(folder / name, classes, 5)
            if not classes:
                (folder / name).mkdir(parents=True, exist_ok=True)
                Image.new('RGB', (8, 8)).save(folder / name / '0.png')

    return build


AB = ('a', 'b')
# A description of a folder, and what makes it.
FOLDERS: dict[str, Callable[[Path], Any]] = {
    'nothing': str,
    'a file': Path.touch,
    'an empty folder': Path.mkdir,
    'no classes': _parts(**{'.': ()}),
    'one class': lambda folder: tree(folder, ('a',)),
    'an image a class': lambda folder: tree(folder, AB, 1),
    'an empty class': _with('c', Path.mkdir),
    'a class of text': _with('c/n.txt', _write_below),
    'a link to itself': _with('z', lambda p: p.symlink_to(p)),
    'a link back': _links,
    'a class that is a link back': _with('c', lambda p: p.symlink_to(p.parent)),
    'a dead link': _with('a/x.png', lambda p: p.symlink_to(p.parent / 'nowhere')),
    'a pipe': _with('a/x.png', os.mkfifo),
    'a pipe without ending': _with('a/x', os.mkfifo),
    'no bytes': _with('a/x.png', Path.touch),
    'a text as image': _with('a/x.png', lambda p: p.write_text('x')),
    'a name of two lines': _with('a/x\ny.png', lambda p: p.write_text('x')),
    'a name that is no text': _with('a/\udcff.png', lambda p: p.write_text('x')),
    'a class of two lines': lambda folder: tree(folder, ('a\nb', 'c')),
    'a class that is no text': lambda folder: tree(folder, ('a', '\udcff')),
    'a class that differs in case': lambda folder: tree(folder, ('Cat', 'cat')),
    'a class that differs in accents': lambda folder: tree(folder, ('caf\u00e9', 'cafe\u0301')),
    'other classes to test': _parts(train=AB, test=('a', 'c')),
    'a class less to test': _parts(train=AB, test=('a',)),
    'a class more to test': _parts(train=AB, test=('a', 'b', 'c')),
    'other case to test': _parts(train=('A', 'b'), test=AB),
    'other classes to choose': _parts(train=AB, val=('a', 'c'), test=AB),
    'no part to train': _parts(test=AB, val=AB),
    'two parts to train': _parts(train=AB, Training=AB),
    'two parts to test': _parts(train=AB, test=AB, testing=AB),
    'parts without classes': _parts(train=(), test=()),
    'one class too high': _parts(photos=AB),
    'a strip': _with('a/x.png', lambda p: Image.new('RGB', (1, 60_000)).save(p)),
    'a class unreadable': lambda folder: (
        tree(folder),
        [p.write_bytes(b'') for p in (folder / 'a').iterdir()],
    ),
    'all unreadable': lambda folder: (tree(folder), [p.write_bytes(b'') for p in folder.glob('*/*')]),
}


def cases(folder: Path) -> Iterator[Case]:
    """Yield folders of images, each read to the last image by both kinds of data sets."""
    for (name, make), kind in ((item, kind) for item in FOLDERS.items() for kind in ('folder', 'stream')):
        place = folder / 'images'

        def attempt(make=make, kind=kind, place=place):
            shutil.rmtree(place, ignore_errors=True)
            place.unlink(missing_ok=True)
            make(place)
            dataset = load_dataset(f'{kind}:{place}', '', 8)
            images = dataset.x_train
            if isinstance(images, ImageFiles):
                rows = np.arange(len(images))
                images.noted(Reader(images, [rows]).__getitems__((0, rows)))
            return dataset

        yield Case(f'{kind} of {name}', attempt, _why_folder)


def _why_folder(dataset) -> str:
    """Return why a folder was taken without a word on stderr: its first lines say what it was taken for."""
    whole = len(dataset.y_train) + len(dataset.y_test) <= 13
    return 'an image to draw from that is not read yet, or a thin one' if whole and dataset.notes else ''
