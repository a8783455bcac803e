"""Find the trained networks that come with the package, by their names."""

from pathlib import Path

FOLDER = Path(__file__).parents[1] / 'shipped'  # of folders that `jaxcifar.export` wrote


def names() -> list[str]:
    """Return the names of all of them."""
    return sorted(card.parent.name for card in FOLDER.glob('*/card.json'))


def find(path: Path) -> Path:
    """Return the folder of the network called so; the path itself where something lies there."""
    # What the user has made comes first, and a path with folders is never a name.
    is_name = not path.exists() and str(path) in names()
    return FOLDER / path if is_name else path
