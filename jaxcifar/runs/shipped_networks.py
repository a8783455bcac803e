"""Find the trained networks that come with the package, by their names."""

from pathlib import Path

from jaxcifar.machine.errors import UserError

FOLDER = Path(__file__).parents[1] / 'shipped'  # of folders that `jaxcifar.export` wrote


def names() -> str:
    """Return the names of all of them, as 'a or b'."""
    return ' or '.join(sorted(card.parent.name for card in FOLDER.glob('*/card.json')))


def folder_of(path: Path) -> Path:
    """Return the folder of the shipped network that `path` names, or the path itself if it names none."""
    # The user's own files take precedence, and a path with folders is never a name.
    is_name = len(path.parts) == 1 and not path.exists() and (FOLDER / path / 'card.json').exists()
    return FOLDER / path if is_name else path


def find(path: Path, expected: str, field: str = '') -> Path:
    """Return `folder_of` a path; `UserError` where nothing lies there.

    expected: what else a path may lead to. field: what the message begins with.
    """
    found = folder_of(path)
    if not found.exists():
        raise UserError(f'{field}expected {expected} or the name {names()}, got {path}: no such path')
    return found
