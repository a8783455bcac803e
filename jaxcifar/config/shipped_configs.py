"""Find the configs that come with the package, from any folder and by their short names."""

import ast
import re
import sys
from itertools import pairwise
from pathlib import Path

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
    """Return a command line whose --config names a file where it named a shipped config.

    A file of that path in the current folder comes first. What names neither stays as it is.
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
        return config
    return f'{FOLDER / name[1]}.py{colon}{argument}'


def be_importable():
    """Let config files find each other: those of the current folder first, then the shipped ones."""
    sys.path[:0] = [folder for folder in ('', str(ROOT)) if folder not in sys.path]
