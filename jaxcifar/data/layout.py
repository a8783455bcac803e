"""Find which folders of images are for training, validation and test, by their names and contents."""

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxcifar.data.vision import is_image

# The usual names, in upper or lower case; 'train_set', 'TestData' and 'val2017' match too.
PARTS = {
    'train': ('train', 'training', 'trainval'),
    'val': ('val', 'valid', 'validation', 'validate', 'dev'),
    'test': ('test', 'testing', 'eval', 'evaluation'),
}
ENDING = re.compile('(dataset|set|data|images|imgs|split)$')
# Part names that may also be classes: 'train', the vehicle, and 'valid', the opposite of invalid.
CLASS_WORDS = ('train', 'valid')
NAMED = 10  # classes that an error names
IGNORED = ('__macosx', '@eadir', 'lost+found', '__pycache__')


class Layout(NamedTuple):
    """Hold the folder of each part, whose subfolders are the classes; None where there is none.

    `classes` are the class folders of `train`. `line` tells the user how the folders were interpreted.
    """

    train: Path
    classes: tuple[str, ...]
    val: Path | None
    test: Path | None
    line: str


def folders(path: Path) -> list[Path]:
    """List the subfolders, sorted by name, without those that tools make."""
    with os.scandir(path) as entries:  # a class may hold many files: only their kind is asked for
        names = sorted(entry.name for entry in entries if is_folder(entry))
    return [path / name for name in names if not is_hidden(name)]


def is_hidden(folder: str) -> bool:
    """Return whether a tool makes folders of this name: hidden ones, or those of thumbnails and the like."""
    return folder[0] == '.' or folder.lower() in IGNORED


def is_folder(entry: os.DirEntry) -> bool:
    """Return whether an entry is a folder, or a link to one; False of a link to itself."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def walk(place: str, above: tuple[str, ...]) -> Iterator[tuple[str, list[str], dict[str, str]]]:
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
        yield from walk(folder, (*above, real))


def has_images(folder: Path) -> bool:
    """Return whether there is an image in a folder or in a folder below it."""
    places = walk(str(folder), (os.path.realpath(folder.parent),))
    return any(is_image(os.path.join(place, file)) for place, files, _ in places for file in files)


def lookalikes(names: Iterable[str]) -> list[list[str]]:
    """Group names that differ only in case or in how accents are stored; leave out those that do not."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(unicodedata.normalize('NFKC', name).casefold(), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def find_layout(path: Path) -> Layout:
    """Interpret the folders in `path` as parts, or as the classes of a single tree.

    With train/ and test/, val/ is the validation part. Without test/, val/ is the test part. A part
    without class folders is not used.

    Raises OSError if there is no such folder, ValueError where the names fit no layout or more than one.
    """
    here = folders(path)
    parts = {part: [p for p in here if _part(p) == part] for part in PARTS}
    named = [p for group in parts.values() for p in group]
    is_class = len(named) == 1 and named[0].name.lower() in CLASS_WORDS and not folders(named[0])
    if is_class or not parts['train']:
        return _single_tree(path, here, [] if is_class else named)
    train = _only([p for p in map(_inner, parts['train']) if folders(p)], 'training')
    if train is None:
        raise ValueError(f'{_listed(parts["train"])} has no class folders')
    classes = tuple(p.name for p in folders(train))
    if len(classes) == 1:
        raise ValueError(f'expected at least 2 class folders in {train}, got only {classes[0]}/')
    val, test = (
        _only([p for p in map(_inner, parts[part]) if _shares(p, classes)], use)
        for part, use in (('val', 'validation'), ('test', 'test'))
    )
    # Test images come first: validation images can still be held out of the training part.
    if test is None:
        val, test = None, val
    return Layout(train, classes, val, test, _line(path, here, train, val, test))


def find_test(path: Path, classes: tuple[str, ...]) -> tuple[Path, tuple[str, ...]]:
    """Return (folder of test images, the names of its subfolders), which must be among the `classes`.

    The folder is PATH/test, or PATH itself. Raises OSError if there is none, ValueError for other names.
    """
    here = folders(path)
    # A part's folder may have the name of a class: CIFAR-100 has trains.
    is_tree = {p.name for p in here} <= set(classes)
    test = None if is_tree else _only([_inner(p) for p in here if _part(p) == 'test'], 'test')
    names = tuple(p.name for p in folders(test or path))
    if not names:
        raise ValueError(f'{test or path} has no class folders')
    if unknown := [name for name in names if name not in classes]:
        alike = lookalikes([*classes, *unknown])
        remedy = f': rename it {alike[0][0]}' if alike else ''
        raise ValueError(f'expected folders of the classes {shortened(classes)}, got {unknown[0]}{remedy}')
    return test or path, names


def _single_tree(path: Path, here: list[Path], named: list[Path]) -> Layout:
    """Interpret the folders as classes, except parts without labels."""
    # A folder of images to be predicted often lies beside the classes. It is not one of them.
    classes = [p for p in here if p not in named]
    hint = _taken(named) if named else ''
    if named and (not classes or any(folders(p) for p in named)):
        raise ValueError(f'it has {_listed(named)} but no train/{hint}')
    if not classes:
        raise ValueError('it has no class folders')
    if len(classes) == 1:
        inside = f'; try {classes[0]}' if len(folders(classes[0])) > 1 else ''
        raise ValueError(f'expected at least 2 class folders, got only {_listed(classes)}{inside}{hint}')
    line = f'{path}: {len(classes)} class folders; a fifth of each class is set aside as the test part'
    line += f'; not used: {_listed(named)} (no class folders){hint}' if named else ''
    return Layout(path, tuple(p.name for p in classes), None, None, line)


def _taken(named: list[Path]) -> str:
    """Say that folders are taken for parts, as the end of a line: a class may be called test or dev."""
    if len(named) > 1:
        return f'; {_listed(named)} are taken for parts: rename those that are classes'
    return f'; {_listed(named)} is taken for a part: rename it if it is a class'


def _line(path: Path, here: list[Path], train: Path, val: Path | None, test: Path | None) -> str:
    """Say which folder became which part, and which none."""
    taken = [(train, 'training'), (val, 'validation'), (test, 'test')]
    uses = [f'{p.relative_to(path)}/ is the {use} part' for p, use in taken if p]
    uses += [] if test else ['a fifth of each class is set aside as the test part']
    used = [p.relative_to(path).parts[0] for p, _ in taken if p]
    unused = [p for p in here if p.name not in used]
    reason = ' (no class folders like those of the training part)' if any(map(_part, unused)) else ''
    return f'{path}: {", ".join(uses)}' + (f'; not used: {_listed(unused)}{reason}' if unused else '')


def _part(folder: Path) -> str | None:
    """Return the part that a folder is named after: a key of PARTS, or None.

    'seg_train' and the like count only where they have subfolders: 'steam_train' is a class.
    """
    words = re.findall('[a-z]+', folder.name.lower())
    names = [ENDING.sub('', ''.join(words)), *words]
    for name, part in ((name, part) for name in names for part, known in PARTS.items() if name in known):
        if name == names[0] or folders(folder):
            return part
    return None


def _inner(folder: Path) -> Path:
    """Descend into nested folders such as train/train/, which archives often contain."""
    inside = folders(folder)
    is_nested = len(inside) == 1 and _part(inside[0]) == _part(folder)
    return _inner(inside[0]) if is_nested else folder


def _shares(folder: Path, classes: tuple[str, ...]) -> bool:
    """Tell whether a part has any of the training classes; else its images have no labels.

    Raises ValueError where its folders look like classes, but have other names.
    """
    inside = folders(folder)
    names, known = [p.name for p in inside], set(classes)
    if known & set(names):
        return True
    # Two training classes may look alike themselves.
    alike = map(set, lookalikes([*classes, *names]))
    is_misspelt = any(known & group and group - known for group in alike)
    # A single folder is common for images without labels, as test/unknown/.
    if is_misspelt or sum(map(has_images, inside)) > 1:
        wanted, got = shortened(classes), shortened(names)
        raise ValueError(
            f'{folder}: expected folders of the classes {wanted}, as in the training part, got {got}: '
            f'rename them, or move {folder.name}/ away if its images have no labels'
        )
    return False


def shortened(names: Sequence[str]) -> str:
    """Return the first of some names as errors list them."""
    return ', '.join(names[:NAMED]) + (', …' if len(names) > NAMED else '')


def _only(candidates: list[Path], use: str) -> Path | None:
    """Return the one folder of a part, None for none; ValueError for several."""
    if len(candidates) > 1:
        raise ValueError(f'{_listed(candidates)} are all named as {use} images; keep one of these names')
    return candidates[0] if candidates else None


def _listed(paths: list[Path]) -> str:
    return ', '.join(f'{p.name}/' for p in paths)
