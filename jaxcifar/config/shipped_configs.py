"""Find the configs that come with the package, from any folder and by their short names."""

import ast
import contextlib
import os
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

# Beside the package both in a checkout and where pip installs it.
ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / 'configs'
NOT_RECIPES = ('__init__', '__main__', 'base')


def names() -> list[str]:
    """Return the short names of the shipped recipes, quickstart and the others."""
    return sorted(path.stem for path in FOLDER.glob('*.py') if path.stem not in NOT_RECIPES)


def summary(name: str) -> str:
    """Return the first line of a recipe's docstring."""
    # Parsed and not imported: the help must not wait for what a recipe imports.
    doc = ast.get_docstring(ast.parse((FOLDER / f'{name}.py').read_text())) or ''
    return doc.partition('\n')[0]


def given(argv: list[str]) -> list[str]:
    """Return the values of --config on a command line, of which the last one counts."""
    pairs = pairwise([*argv, ''])
    return [
        value if word == '--config' else word.removeprefix('--config=')
        for word, value in pairs
        if word == '--config' or word.startswith('--config=')
    ]


def is_shipped(config: str) -> bool:
    """Return whether --config=CONFIG names a file that comes with the package."""
    file = Path(_complete(config).partition(':')[0])
    return file.suffix == '.py' and file.resolve().parent == FOLDER.resolve()


def complete(argv: list[str]) -> list[str]:
    """Return a command line in which --config names the file of a shipped config instead of its name.

    A file at that path in the current folder takes precedence. A value that names neither stays as it is.
    """
    words, follows = [], False
    for word in argv:
        if follows:
            word = _complete(word)
        elif word.startswith('--config='):
            word = f'--config={_complete(word.removeprefix("--config="))}'
        follows = word == '--config'
        words.append(word)
    return words


def _complete(config: str) -> str:
    file, colon, argument = config.partition(':')
    name = re.fullmatch(r'(?:configs/)?(\w+)(?:\.py)?', file)
    if Path(file).is_file() or name is None or not (FOLDER / f'{name[1]}.py').is_file():
        return os.path.expanduser(config)  # a shell leaves the ~ of --config=~/mine.py to us
    return f'{FOLDER / name[1]}.py{colon}{argument}'


@contextlib.contextmanager
def importable(argv: list[str]) -> Iterator[None]:
    """Let the config file of a command line import others: its project's first, then the shipped ones.

    Shipped files import each other even if the user's project has a package called configs, too. Afterwards
    that name means what it meant before.
    """
    shipped, before = any(map(is_shipped, given(argv))), _configs()
    folders = [str(ROOT)] if shipped else ['', str(ROOT)]
    if shipped and not all(_is_ours(module) for module in before.values()):
        for name in before:
            del sys.modules[name]
    sys.path[:0] = folders
    try:
        yield
    finally:
        for folder in folders:
            sys.path.remove(folder)
        for name in _configs():
            del sys.modules[name]
        sys.modules.update(before)


def _configs() -> dict[str, ModuleType]:
    """Return the loaded modules of a package called configs."""
    return {name: module for name, module in sys.modules.items() if name.split('.')[0] == FOLDER.name}


def _is_ours(module: ModuleType) -> bool:
    return Path(getattr(module, '__file__', None) or '').parent == FOLDER
