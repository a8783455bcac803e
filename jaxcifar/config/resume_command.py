"""Write the command that continues a run, as a user would type it."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from jaxcifar.machine.command import is_short


def resume_command(workdir: Path, changes: Mapping[str, object] | None = None) -> str:
    """Return this process's training command with `workdir` and with changed values of fields.

    changes: {field: value}. A program that called `jaxcifar.train` gets that call instead.
    """
    name, *words = sys.argv
    changes = changes or {}
    if Path(name).parts[-2:] != ('jaxcifar', 'main.py'):
        plain = ''.join(f', {field}={value!r}' for field, value in changes.items() if '.' not in field)
        dotted = {field: value for field, value in changes.items() if '.' in field}
        return f'jaxcifar.train(…, workdir={str(workdir)!r}{plain}{f", **{dotted}" if dotted else ""})'
    # A relative workdir is right where the command was typed, as all its other paths are.
    old = ('--workdir', *(f'--config.{field}' for field in changes))
    kept = _without(words, old)
    kept += [f'--workdir={workdir}', *(f'--config.{field}={value}' for field, value in changes.items())]
    if not is_short():
        return shlex.join(['python', '-m', 'jaxcifar.main', *kept])
    # What __main__ has spelt out becomes short again: CONFIG --FIELD=VALUE.
    begins = {'--config=': '', '--config.': '--'}
    for long, brief in begins.items():
        kept = [brief + word.removeprefix(long) if word.startswith(long) else word for word in kept]
    return shlex.join(['jaxcifar', 'train', *kept])


def _without(words: list[str], flags: tuple[str, ...]) -> list[str]:
    """Return the words of a command line without these flags and their values."""
    kept, drops = [], False
    for word in words:
        flag, equals, _ = word.partition('=')
        if flag in flags:
            # The value is the next word where none is joined to the flag.
            drops = not equals
        elif drops:
            drops = False
        else:
            kept.append(word)
    return kept
