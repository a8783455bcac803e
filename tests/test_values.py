"""Bad values for every field: each ends in one line, or is a value that can be."""

import sys

import pytest

from configs import base
from experiments.faults import values
from experiments.faults.outcomes import Case, Tally
from jaxcifar.config.fields import FIELDS, PER_MEMBER
from jaxcifar.machine.errors import UserError
from jaxcifar.runs.resolve import finalize


def test_a_config_file_sets_any_value(monkeypatch):
    monkeypatch.delenv('JAXCIFAR_DATA', raising=False)
    for field in FIELDS:
        tally = Tally(field).add(values.by_file(0.7, fields=(field,)))
        assert tally.faults == [] and tally.tried > 20
        assert any(f'{field} must be ' in line for line in tally.lines), field


def test_the_command_line_gives_any_word():
    tally = Tally('words').add(values.by_command_line(0.15))
    assert tally.faults == []
    assert 100 < tally.silent.total() < len(tally.lines) and tally.tried > 1000


def test_what_becomes_of_an_input_is_counted_as_it_is():
    def fail(error):
        raise error

    tally = Tally('door')
    refused = tally.attempt(Case('refused', lambda: fail(UserError('expected\na number'))))
    assert refused == 'expected\\na number' and tally.lines == [refused]
    assert tally.attempt(Case('a fault', lambda: fail(KeyError('x')))) == ''
    tally.attempt(Case('taken', lambda: 3, lambda number: 'a number' * (number == 3)))
    tally.attempt(Case('silent', lambda: 4, lambda number: 'a number' * (number == 3)))
    tally.attempt(Case('said', lambda: print('left out', file=sys.stderr)))
    counts = {'tried': 5, 'one_line': 1, 'said': 1, 'silent': 1, 'unexplained': 1, 'tracebacks': 1}
    assert tally.row() == counts and tally.silent == {'a number': 1}
    assert 'a fault' in tally.tracebacks[0] and 'silent' in tally.unexplained[0]


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
