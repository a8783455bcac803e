"""Declare and check what the value of a field may be."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from jaxcifar.machine.errors import UserError, unknown
from jaxcifar.machine.text import show

Group = SimpleNamespace  # of declarations, in the order in which config.json has the fields
INTEGER = 2**31 - 1  # the largest integer that a device computes with
SEED = 2**32 - 1  # numpy's and scikit-learn's seeds have 32 bits
FLOAT = 3.4028234e38  # the largest float32
TYPES = {bool: 'True or False', int: 'a whole number', float: 'a number', str: 'printable text'}
# How many values a field takes, and how an error describes them.
SHAPES = {
    '': '{one}',
    'member': '{one}, or one for each member',
    'pair': 'two whole numbers, as in 0,10',
    'list': 'whole numbers joined by commas, as in 1,2',
}


@dataclass(frozen=True)
class Field:
    """Declare the default of a field, and the type, range or choices of its values.

    A default of None stands for a value that is filled in after the command line. `shape` is a key of SHAPES.
    """

    default: Any
    type: type
    low: float = 0
    high: float = INTEGER
    choices: tuple[str, ...] = ()
    shape: str = ''

    def initial(self):
        """Return what a new config holds: the default, or a typed reference if its type is not enough."""
        # ml_collections requires every later value to have the type of the first one.
        if self.default is not None and self.shape != 'member':
            return self.default
        # A number or a list of numbers has no single type, so `check` has to test it.
        reference = placeholder(object if self.shape else self.type)
        reference.set(self.default)
        return reference

    def expected(self) -> str:
        """Return the words for what is accepted: 'a whole number'."""
        return SHAPES[self.shape].format(one=TYPES[self.type])

    def described(self) -> str:
        """Return in full what is accepted: 'a number, from 0 to 1'; '' for text, which a comment explains."""
        if self.type is str:
            return ' | '.join(self.choices)
        if self.type is bool:
            return self.expected()
        end = '' if self.high in (INTEGER, FLOAT) else f' to {self.high:,}'
        return f'{self.expected()}, from {self.low:,}{end}'

    def check(self, name: str, value):
        """Raise `UserError` unless the field called `name` may have this value."""
        # A list is judged value by value, and a single value like a list of one.
        several = self.shape and isinstance(value, (tuple, list))
        values = [*value] if several else [value]
        if not all(self._is_one(v) for v in values) or (self.shape == 'pair' and len(values) != 2):
            got = show(values[0] if several and len(values) == 1 else value)
            raise UserError(f'{name} must be {self.expected()}, got {got}')
        # Types are right by now, so that bounds and choices can be compared.
        for v in values:
            if self.choices and v not in self.choices:
                raise unknown(name, v, self.choices)
            if self.type in (int, float) and not self.low <= v <= self.high:
                bound = f'at least {self.low}' if v < self.low else f'at most {self.high}'
                raise UserError(f'{name} must be {bound}, got {show(v)}')

    def _is_one(self, value) -> bool:
        if self.type is str:
            return isinstance(value, str) and value.isprintable()
        # Python's bool is an int: True must not pass for the number 1.
        if isinstance(value, bool) or self.type is bool:
            return isinstance(value, bool) and self.type is bool
        # Only NaN is not equal to itself.
        return isinstance(value, (int, self.type)) and value == value


def whole(default: int | None, low: int = 0, high: int = INTEGER) -> Any:
    """Declare a whole number from `low` to `high`."""
    return Field(default, int, low, high)


def real(default: float | None, low: float = 0, high: float = FLOAT) -> Any:
    """Declare a finite number from `low` to `high`."""
    return Field(default, float, low, high)


def each(default: float, low: float = 0, high: float = FLOAT) -> Any:
    """Declare a number, or one for each member; whole numbers where the default is one."""
    return Field(default, type(default), low, high, shape='member')


def one_of(default: str, *others: str) -> Any:
    """Declare a word that must be one of these."""
    return Field(default, str, choices=(default, *others))


def text(default: str | None) -> Any:
    """Declare printable text; without a default it is filled in."""
    return Field(default, str)


def wholes(default: tuple[int, ...] | None, shape: str = 'list', low: int = 0) -> Any:
    """Declare whole numbers from `low`: any number of them, or a pair."""
    return Field(default, int, low, shape=shape)


def declared(group: Group, prefix: str = '') -> dict[str, Field]:
    """Return the fields of a group and its subgroups; a plain default declares its type, numbers from 0."""
    plain: dict[type, Callable] = {int: whole, float: real, str: text, bool: lambda v: Field(v, bool)}
    fields: dict[str, Field] = {}
    for name, value in vars(group).items():
        if isinstance(value, Group):
            fields |= declared(value, f'{name}.')
        else:
            # A plain default needs no declaration of its own: its type says enough.
            fields[prefix + name] = value if isinstance(value, Field) else plain[type(value)](value)
    return fields


def get(config, field: str):
    """Return the value at a dotted path."""
    for key in field.split('.'):
        config = config[key]
    return config


def flatten(config: dict | ConfigDict, prefix: str = '') -> dict[str, Any]:
    """Return the leaves of a tree: {'optimizer.lr': .1, …}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, (dict, ConfigDict))
        flat |= flatten(value, f'{prefix}{key}.') if nested else {f'{prefix}{key}': value}
    return flat
