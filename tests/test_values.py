"""Bad values for every field: each ends in one line, or is a value that can be."""

import contextlib
import math
import random
import string

import pytest

from configs import base
from jaxcifar.config.command_line import parse
from jaxcifar.config.fields import FIELDS, PER_MEMBER
from jaxcifar.config.values import get
from jaxcifar.machine.errors import UserError
from jaxcifar.runs.resolve import finalize

BAD: list = [
    *(10**20, -(10**400), 10**5000, -1, 2**31, 1e300, math.nan, math.inf, -math.inf, 1j, 0.5, True, None),
    *('', 'abc', '\0', 'a\nb', '\udcff', '(', '+', '::', b'x'),
    *([], [[1, 2], [3]], (1, (2,)), (1, 2, 3), {}, {'a': 1}, {1, 2}, object),
]
WORDS = [
    *('1' + '0' * 20, '-1', '1' * 5000, '1e999', 'nan', '-inf', '1j', 'abc', '', 'None', '[[1],2]', '1,2,3'),
    *('(1,(2,3))', '(' * 300, '-' * 3000 + '1', '{}', '{1:2}', "b'x'", '1,', ',', '"', '\\', '=', '--', '+'),
    *('é', ' ', '%s{0}', 'a+b', '../x', '__import__("os")'),
]


def assert_can_be(field: str, value):
    """The value is finite, and of the type of the field's default."""
    if value is None:
        assert FIELDS[field].default is None
        return
    values = value if isinstance(value, tuple | list) else [value]
    for v in values:
        if FIELDS[field].type in (int, float):
            assert isinstance(v, int | float) and abs(v) <= 3.5e38
        else:
            assert type(v) is FIELDS[field].type


def attempt(field: str, make) -> str:
    """What became of a config: 'accepted', or one line."""
    try:
        config = finalize(make())
    except UserError as error:
        assert str(error).isprintable() and str(error)
        return str(error)
    assert_can_be(field, get(config, field))
    return 'accepted'


@pytest.fixture(autouse=True)
def no_environment(monkeypatch, tmp_path):
    """Relative paths are of an empty folder."""
    monkeypatch.delenv('JAXCIFAR_DATA', raising=False)


def with_value(field: str, value):
    """A config whose file sets the field, past the type that ml_collections holds it to."""
    config = base.get_config()
    group, _, leaf = field.rpartition('.')
    with config.ignore_type(), contextlib.suppress(OverflowError):  # ml_collections' own
        (config[group] if group else config)[leaf] = value
    return config


def test_a_config_file_sets_any_value():
    for field in FIELDS:
        answers = [attempt(field, lambda field=field, value=value: with_value(field, value)) for value in BAD]
        assert any(f'{field} must be ' in answer for answer in answers), field


def test_the_command_line_gives_any_word():
    draw = random.Random(0)
    noise = [''.join(draw.choices(string.printable[:95], k=draw.randint(1, 12))) for _ in range(20)]
    answers = {}
    for field in FIELDS:
        for word in draw.sample(WORDS + noise, 12):
            line = ['main', '--config', 'configs/base.py', '--workdir', 'x', f'--config.{field}={word}']
            answers[field, word] = attempt(field, lambda line=line: parse(line)[0])
    assert 100 < [*answers.values()].count('accepted') < len(answers) / 2


@pytest.mark.parametrize(('value', 'words'), [
    (3, 'model must be a group of fields, as model.dropout, got 3'),
    (None, 'model must be a group of fields'),
])  # fmt: skip
def test_a_group_is_not_a_value(value, words):
    config = base.get_config()
    with config.ignore_type():
        config.model = value
    with pytest.raises(UserError, match=words):
        finalize(config)


def test_a_config_that_lacks_a_field_is_refused():
    config = base.get_config()
    del config.optimizer.lr
    with pytest.raises(UserError, match=r'no field optimizer\.lr; begin with configs\.base\.get_config'):
        finalize(config)


def test_every_default_can_be():
    for name, field in FIELDS.items():
        if field.default is not None:
            field.check(name, field.default)
            field.check(name, [field.default] * 3 if name in PER_MEMBER else field.default)
