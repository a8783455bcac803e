"""Bad values for every field of a config, as a config file sets them and as the command line gives them."""

import contextlib
import math
import random
import string
from collections.abc import Iterator
from functools import partial

from experiments.faults.outcomes import Case
from jaxcifar.config.command_line import parse
from jaxcifar.config.fields import FIELDS, get_config
from jaxcifar.config.values import get
from jaxcifar.runs.resolve import finalize

BAD: list = [
    *(10**20, -(10**400), 10**5000, -1, 2**31, 1e300, math.nan, math.inf, -math.inf, 1j, 0.5, True, None),
    *('', 'abc', '\0', 'a\nb', '\udcff', '(', '+', '::', b'x'),
    *([], [[1, 2], [3]], (1, (2,)), (1, 2, 3), {}, {'a': 1}, {1, 2}, object),
    *(
        'a' * 10_000,
        '\u2028',
        ' ',
        '%s',
        [math.nan],
        [None],
        [True, 1],
        (0,) * 1000,
        range(3),
        frozenset(),
        ...,
    ),
]
WORDS = [
    *('1' + '0' * 20, '-1', '1' * 5000, '1e999', 'nan', '-inf', '1j', 'abc', '', 'None', '[[1],2]', '1,2,3'),
    *('(1,(2,3))', '(' * 300, '-' * 3000 + '1', '{}', '{1:2}', "b'x'", '1,', ',', '"', '\\', '=', '--', '+'),
    *(
        'é',
        ' ',
        '%s{0}',
        'a+b',
        '../x',
        '__import__("os")',
        '0x10',
        '1_000',
        '٣',
        '1e3',
        '\uff11',
        'true',
        'FALSE',
    ),
    *(
        '[]',
        '()',
        '[1',
        'lambda: 1',
        '1 if 1 else 2',
        '9' * 400 + '.',
        '1+',
        '+1',
        'a' * 5000,
        '\t',
        '*',
        '**',
    ),
]


def can_be(field: str, value) -> str:
    """Return why a value that was taken is right, '' where the field may not have it."""
    if value is None:
        return 'filled in later' if FIELDS[field].default is None else ''
    values = value if isinstance(value, tuple | list) else [value]
    for v in values:
        if FIELDS[field].type in (int, float):
            if not isinstance(v, int | float) or not abs(v) <= 3.5e38:
                return ''
        elif type(v) is not FIELDS[field].type:
            return ''
    return "in the field's range"


def with_value(field: str, value):
    """Return a config with the field set as by a config file, bypassing ml_collections' type check."""
    config = get_config()
    group, _, leaf = field.rpartition('.')
    with config.ignore_type(), contextlib.suppress(OverflowError):  # ml_collections' own
        (config[group] if group else config)[leaf] = value
    return config


def _set(field: str, value):
    return finalize(with_value(field, value))


def _give(line: list[str]):
    return finalize(parse(line)[0])


def _why(field: str, config) -> str:
    return can_be(field, get(config, field))


def by_file(share: float = 1, fields=tuple(FIELDS)) -> Iterator[Case]:
    """Yield every field with every bad value, or a share of them."""
    draw = random.Random(0)
    for field in fields:
        for value in draw.sample(BAD, math.ceil(share * len(BAD))):
            yield Case(
                f'{field} = {value!r:.40}' if not isinstance(value, int) else f'{field} = a number',
                partial(_set, field, value),
                partial(_why, field),
            )


def by_command_line(share: float = 1, fields=tuple(FIELDS)) -> Iterator[Case]:
    """Yield every field with every word, and with noise, or a share of them."""
    draw = random.Random(0)
    noise = [''.join(draw.choices(string.printable[:95], k=draw.randint(1, 12))) for _ in range(20)]
    for field in fields:
        for word in draw.sample(WORDS + noise, math.ceil(share * (len(WORDS) + len(noise)))):
            line = ['main', '--config', 'base', '--workdir', 'x', f'--config.{field}={word}']
            yield Case(
                f'{line[-1]!r:.60}',
                partial(_give, line),
                partial(_why, field),
            )
