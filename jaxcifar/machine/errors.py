"""Raise errors that a user can fix: one clear line instead of a traceback."""

import difflib
import re
from collections.abc import Iterable

from jaxcifar.machine.text import one_line, show

# sysexits.h's EX_TEMPFAIL: "saved and stopped, run the same command again". Slurm scripts requeue on it.
EXIT_PREEMPTED = 75

MOST_NAMES = 40  # names that a message lists at most
HINTED = 12  # … if it also has a suggestion
ALIKE = 0.65  # least similarity at which a name may have been meant
# What other programs call our networks; names are compared without the separators in them.
OTHERS_CALL_IT = {
    'densenet': 'densenet121',
    'resnet': 'resnet18',
    'resnext': 'preact_resnext29_8x64d',
    'wideresnet': 'wideresnet28_10',
    'improvedwideresnet': 'wideresnet28_10',
    'improvedwideresnet2810': 'wideresnet28_10',
    'wrn2810': 'wideresnet28_10',
    'wrn282': 'wideresnet28_2',
    'wrn402': 'wideresnet40_2',
    'mobilenet': 'mobilenetv2',
}


class UserError(Exception):
    """Report a mistake or fault that the user can fix; its message is the one line that is printed.

    remedy: what to do, which follows the message after a colon; `fault` is the message without it.
    """

    def __init__(self, message: str, remedy: str = ''):
        # Names of files and of classes, and what other programs say, may hold line breaks.
        self.fault = one_line(message)
        super().__init__(one_line(f'{message}: {remedy}' if remedy else message))


class Interrupted(KeyboardInterrupt):
    """Report that Ctrl-C ended a training; its message says what is saved and how to go on."""


class Preempted(Exception):
    """Report that SIGTERM arrived and the state is saved: the same command resumes from there."""


def unknown(kind: str, name: str, valid: Iterable[str]) -> UserError:
    """Return the error for a misspelt name: what it may have meant, and the whole list if it is short."""
    valid = sorted(valid)
    near = suggestions(name, valid)
    hint = f'; did you mean {" or ".join(map(repr, near))}?' if near else ''
    listed = ', '.join(v or 'nothing' for v in valid)
    short = len(valid) <= (HINTED if near else MOST_NAMES)
    names = f' (valid: {listed})' if short else '' if near else '; --help lists them'
    return UserError(f'unknown {kind} {show(name)!r}{hint}{names}')


def suggestions(name: str, valid: list[str]) -> list[str]:
    """Return the names that a misspelt one may mean, the likeliest first.

    These are the network that others call by that name, the same name in each group (`lr` of several groups),
    names that start with it (`resnet`), or else the most similar name, ignoring case and separators.
    """
    plain = {v: re.sub(r'[-_. ]', '', v).lower() for v in valid}
    wanted = re.sub(r'[-_. ]', '', name).lower()
    # --config.optimizer is a group, and called by the name in it.
    meant = [v for v in valid if v == f'{name}.name']
    meant += [v for v in valid if v == OTHERS_CALL_IT.get(wanted) or (v and plain[v] == wanted)]
    meant += [v for v in ending_in(name, valid) if v not in meant]
    longer = [v for v in valid if len(wanted) > 2 and plain[v].startswith(wanted) and v not in meant]
    if meant or longer:
        return meant + longer
    # A field may be called without its group.
    parts = {v: {plain[v], v.rpartition('.')[2].replace('_', '').lower()} for v in valid if v}
    scores = {v: max(difflib.SequenceMatcher(None, wanted, p).ratio() for p in parts[v]) for v in parts}
    # Among equally similar names, prefer the one with more letters in the same positions.
    best = max(scores, key=lambda v: (scores[v], sum(map(str.__eq__, wanted, plain[v]))), default='')
    # The same name in several groups is equally near.
    near = [v for v in ending_in(best.rpartition('.')[2], scores) if scores[v] == scores[best]]
    return near if best and scores[best] >= ALIKE else []


def ending_in(name: str, valid: Iterable[str]) -> list[str]:
    """Return the dotted names that are `name` or end in it: of lr, optimizer.lr and fusion.lr."""
    return [v for v in valid if name in (v, v.rpartition('.')[2])]


def lookup(kind: str, registry: dict, name: str):
    """Return `registry[name]`, or raise the `UserError` of `unknown`."""
    if name not in registry:
        raise unknown(kind, name, registry)
    return registry[name]


def parse_argument(where: str, argument: str, kinds: dict[str, Iterable[str]]) -> dict[str, str]:
    """Return {kind: word} for an argument's comma-separated words, in any order, at most one of each kind.

    kinds: the words of each kind. One that ends in ':' stands for all words that start with it, as in
    imagenet:PATH. Names joined by + belong to a kind if each of them does. where: what the argument is for.
    Raises `UserError` for any other word.
    """
    given: dict[str, str] = {}
    for word in filter(None, argument.split(',')):
        kind = next((kind for kind, words in kinds.items() if _is_of(word, words)), None)
        if kind is None:
            names = [w for words in kinds.values() for w in words]
            start = word.removesuffix(':')
            if f'{start}:' in names:
                raise UserError(f'{start} needs a path: {start}:PATH, as in {where}:{start}:/data/{start}')
            # Of names joined by +, the one that is wrong gets the hint.
            unheard = [w for w in word.split('+') if not _is_of(w, names)]
            raise unknown(f'word of {where}', (unheard or [word])[0], names)
        if kind in given:
            raise UserError(f'{where} takes one {kind}, got {given[kind]!r} and {word!r}: leave one out')
        given[kind] = word
    return given


def _is_of(word: str, words: Iterable[str]) -> bool:
    """Return whether a word, or each of the names joined by + in it, is one of these."""
    start, colon, path = word.partition(':')
    if colon:
        return bool(path) and start + colon in words
    return all(name in words for name in word.split('+'))
