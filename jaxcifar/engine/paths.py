"""Assign numbers to parameters by path: 'fc/=2 bias=64' gives 2 to 'fc/' paths, else 64 to 'bias' paths.

A path is 'stage/block/kernel'. A rule is a regular expression, =, and a number. Spaces separate rules; the
first that matches a path wins.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import optax

from jaxcifar.machine.errors import UserError

RULE = re.compile(r'(.*)=([-+.\de]+)')


class Rule(NamedTuple):
    """Hold a regular expression and the number it assigns to the paths it matches."""

    pattern: str
    number: float


def parse_rules(field: str, text: str, bare: float | None = None) -> list[Rule]:
    """Parse the rules in a field's text; a rule without a number gets `bare`.

    Raises:
      UserError: a rule has no number and `bare` is None, a number below 0, or an invalid expression.
    """
    return [_parse(field, word, bare) for word in text.split()]


def _parse(field: str, word: str, bare: float | None) -> Rule:
    match = RULE.fullmatch(word)
    if match is None and bare is None:
        raise UserError(f"{field}: expected rules like 'bias=64', got {word!r}")
    pattern, number = match.groups() if match else (word, str(bare))
    try:
        # A bad expression fails here, where its field can be named, not while tracing.
        re.compile(pattern)
        rule = Rule(pattern, float(number))
    except (re.error, ValueError) as error:
        raise UserError(f'{field}: cannot read {word!r}: {error}') from None
    if not 0 <= rule.number < float('inf'):
        raise UserError(f'{field}: expected a factor of at least 0, got {word!r}')
    return rule


def number_of(rules: list[Rule], path: str, default: float) -> float:
    """Return the number of the first rule that is found in a path."""
    return next((rule.number for rule in rules if re.search(rule.pattern, path)), default)


def scale_by_path(rules: list[Rule]) -> optax.GradientTransformation:
    """Multiply updates by the numbers of their paths; updates that match no rule stay as they are."""
    return optax.stateless(lambda updates, _: map_paths(lambda p, u: u * number_of(rules, p, 1.0), updates))


def check_found(field: str, rules: list[Rule], paths: list[str]):
    """Raise `UserError` where a rule matches no path, as it must be misspelt."""
    for rule in rules:
        if not any(re.search(rule.pattern, path) for path in paths):
            raise UserError(
                f'{field}: expected a part of the name of some parameter ({", ".join(paths[:3])}, …), '
                f'got {rule.pattern!r}'
            )


def map_paths(of: Callable, tree, *rest):
    """Return the tree of of(path, leaf, …)."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: of(path_name(path), *leaves), tree, *rest)


def path_names(tree) -> list[str]:
    """Return the paths of a tree's leaves."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def path_name(path) -> str:
    """Write a JAX key path as 'stage/block/kernel'."""
    # Keys of dicts hold their name in `key`; other keys print as they are.
    return '/'.join(str(getattr(k, 'key', k)) for k in path)
