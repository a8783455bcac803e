"""Read the paths of config.init_from and config.resume_from, which may themselves hold + and @."""

import os
from pathlib import Path


def split_sources(text: str) -> list[str]:
    """Split text at each + and return the sources. A + in the name of an existing path is kept."""
    words, sources = text.split('+'), []
    while words:
        joined = ('+'.join(words[:n]) for n in range(len(words), 1, -1))
        source = next((name for name in joined if _is_one(name)), words[0])
        sources.append(source)
        words = words[source.count('+') + 1 :]
    return sources


def _is_one(name: str) -> bool:
    path, checkpoint = split_checkpoint(name)
    return '+' not in checkpoint and os.path.exists(path)


def split_checkpoint(source: str) -> tuple[Path, str]:
    """Return a source's path and its checkpoint, the word behind the last @; '' where it names none."""
    source = os.path.expanduser(source)
    path, at, checkpoint = source.rpartition('@')
    # os.path.exists, unlike Path.exists, also answers for names that are too long for any file.
    return (Path(path), checkpoint) if at and not os.path.exists(source) else (Path(source), '')
