"""Names of runs and resources of jobs, which reach a shell, a scheduler and a file system."""

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

from experiments import resources, sweep
from experiments.faults.outcomes import Case
from experiments.sweep import Run

NAMES = (
    'a$(touch X)',
    'a`touch X`',
    'a;touch X',
    'a b',
    "a'b",
    'a"b',
    '*',
    '',
    '.',
    '..',
    'a/b',
    '../x',
    '/abs',
    '-rf',
    'a\nb',
    'slurm',
    'results.csv',
    'one.log',
    'a' * 200,
)
MORE = (
    'a|b',
    'a&b',
    'a>b',
    'a<b',
    '~',
    '~root',
    'a\\b',
    'a\0b',
    'a\tb',
    '\udcff',
    'é',
    '\u202eabc',
    '%j',
    '#a',
    '!a',
    '{a,b}',
    '[a]',
    'a?',
    '$HOME',
    '${IFS}',
    '--flag',
    '.hidden',
    '_a',
    '=a',
    ' ',
    'a ',
    ' a',
    '\r',
    'con\x1b[31m',
    'report',
    'table.md',
    'a:b',
    'a@b',
    '(a)',
    '\uff41',
    'a\u2028b',
    'x.log',
    None,
    3,
    b'x',
)
SIGNS = set('$`;|&<>"')
AMOUNTS = (
    -3,
    0,
    10**9,
    '-1',
    '1.5',
    'abc',
    '',
    '1 ',
    '٣',
    'nan',
    '1e3',
    '0x10',
    '$(touch X)',
    '1\n2',
    '1;2',
    '9' * 5000,
    None,
    1j,
    [1],
    'volta:2',
    '2-12',
    '16G',
    '16 G',
    '0G',
    '1:',
    ':1',
    '0:00',
    '-0:10',
)


def names() -> Iterator[Case]:
    """Yield names of runs."""
    for name in NAMES + MORE:
        yield Case(f'a run called {name!r:.30}', partial(_check, name))


def amounts(share: float = 1) -> Iterator[Case]:
    """Yield values of each resource."""
    # The setup is a line for the user's own shell.
    fields = [name for name in resources.Resources._fields if name != 'setup']
    for name, value in list(product(fields, AMOUNTS))[:: round(1 / share)]:
        yield Case(f'--{name} {value!r:.30}', partial(_take, name, value), _why)


def _check(name: Any):
    sweep.check([Run(name, 'row', 'configs/base.py', {})], 'sweep.py')


def _take(name: str, value: Any) -> str:
    return str(getattr(resources.checked({name: value}), name))


def _why(taken: str) -> str:
    """Return why a value was taken: no shell reads anything else in it."""
    return 'as sbatch takes it' if taken.isascii() and taken.isprintable() and not set(taken) & SIGNS else ''
