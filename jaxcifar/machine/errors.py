"""What goes wrong in ways a user can mend: one clear line instead of a traceback."""

import difflib
from collections.abc import Iterable

# sysexits.h's EX_TEMPFAIL: "saved and stopped, run the same command again". Slurm scripts requeue on it.
EXIT_PREEMPTED = 75

MOST_NAMES = 40  # in a message that has a better hint


class UserError(Exception):
    """A mistake or fault that the user can mend; its message is the one line that is printed."""


class Preempted(Exception):
    """SIGTERM came, the state is saved: the same command goes on from here."""


def unknown(kind: str, name: str, valid: Iterable[str]) -> UserError:
    """The error for a misspelt name: the nearest valid one, and the whole list if it is short.

    Of a field without its group (`lr`) the nearest are those of all groups.
    """
    valid = sorted(valid)
    near = [v for v in valid if v.rpartition('.')[2] == name]
    near = near or difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    hint = f'; did you mean {" or ".join(map(repr, near))}?' if near else ''
    listed = ', '.join(v or 'nothing' for v in valid)
    names = f' (valid: {listed})' if len(valid) <= MOST_NAMES or not near else ''
    return UserError(f'unknown {kind} {name!r}{hint}{names}')


def lookup(kind: str, registry: dict, name: str):
    """`registry[name]`, or the `UserError` of `unknown`."""
    if name not in registry:
        raise unknown(kind, name, registry)
    return registry[name]


def by_kind(where: str, argument: str, kinds: dict[str, Iterable[str]]) -> dict[str, str]:
    """{kind: word} of the words of an argument, joined by commas, at most one of each kind.

    kinds: the words of each; where: what the argument is for. Raises `UserError` for others.
    """
    given: dict[str, str] = {}
    for word in filter(None, argument.split(',')):
        kind = next((kind for kind, words in kinds.items() if word in words), None)
        if kind is None:
            raise unknown(f'word of {where}', word, [w for words in kinds.values() for w in words])
        if kind in given:
            raise UserError(f'{where} takes one {kind}, not {given[kind]} and {word}')
        given[kind] = word
    return given
