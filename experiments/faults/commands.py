"""Command lines of every command: paths to other things, and flags with other words."""

import importlib
import math
import random
import sys
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from unittest.mock import patch

from experiments.faults.outcomes import Case

# {path} is one of the paths, {word} one of the words; {run} and {image} are as they should be.
OF_PATHS = (
    'evaluate {path}',
    'evaluate --workdir {path}',
    'evaluate --workdir {run} --baseline {path}',
    'predict --workdir {path} {image}',
    'predict --workdir {run} {path}',
    'export --workdir {path} --format release',
    'report {path}',
    'report {run} {path}',
    'calibrate --workdir {path}',
    'reject --workdir {path}',
    'torch_weights {path} --workdir new',
    'torch_weights --workdir {path} --to out.pth',
    'preview --config {path}',
)
OF_WORDS = (
    'evaluate {run} --checkpoint {word}',
    'evaluate {run} --split {word}',
    'evaluate {run} --posthoc-tau {word}',
    'evaluate {run} --dataset {word}',
    'evaluate {run} --{word}',
    'predict --workdir {run} {image} --top {word}',
    'predict --workdir {run} {image} --member {word}',
    'predict --workdir {run} {image} --checkpoint {word}',
    'predict --workdir {run} {image} --dataset {word}',
    'export --workdir {run} --format {word}',
    'export --workdir {run} --format packed --packing {word}',
    'export --workdir {run} --format packed --rest {word}',
    'export --workdir {run} --format release --member {word}',
    'export --workdir {run} --format onnx --bits {word}',
    'export --workdir {run} --format release --checkpoint {word}',
    'reject --workdir {tail} --samples {word}',
    'torch_weights --workdir {run} --to out.pth --member {word}',
    'torch_weights {run} --workdir new --network {word}',
    'preview --config base --{word}',
    'preview --config base:{word}',
    'schedule {word}',
)
WORDS = (
    '',
    'abc',
    '-1',
    '10' * 50,
    'nan',
    'inf',
    '1e999',
    '../x',
    'best@3',
    '*',
    '{}',
    '\udcff',
    '1.5',
    '--',
    '=',
    'a b',
    '10' * 3000,
    "'",
    '$(touch X)',
    '\n',
)

# What is taken without a word: a flag, and why.
TAKEN = {'--posthoc-tau': 'a finite number', '--top': 'more classes than there are', '--{word}': '--'}


def cases(folder: Path, share: float = 1) -> Iterator[Case]:
    """Yield command lines for the runs in a folder that `workdirs.build` made."""
    (folder / 'empty').mkdir(exist_ok=True)
    (folder / 'text').write_text('text')
    known = {'run': folder / 'run', 'tail': folder / 'tail', 'image': folder / 'image.png'}
    paths = (
        '',
        'none',
        folder / 'empty',
        folder / 'text',
        '/dev/null',
        'x' * 5000,
        '~nobody/x',
        folder / 'own.npz',
    )
    lines = [(line, {'path': path}) for line, path in product(OF_PATHS, paths)]
    lines += [(line, {'word': word}) for line, word in product(OF_WORDS, WORDS)]
    for line, words in random.Random(0).sample(lines, math.ceil(share * len(lines))):
        command, *arguments = [word.format(**known, **words) for word in line.split()]
        reason = next((why for flag, why in TAKEN.items() if flag in line), '')
        name = f'{line} with {next(iter(words.values()))!s:.30}'
        yield Case(name, partial(_call, command, arguments), partial(_why, reason, words))


def _why(reason: str, words: dict, _) -> str:
    return "the end of a command's flags" if words.get('word') == '' and reason == '--' else reason


def _call(command: str, arguments: list[str]):
    """Run a command in this process, as `python -m` would."""
    name = f'jaxcifar.{command}' + '.__main__' * (command in ('export', 'report'))
    with patch.object(sys, 'argv', [command, *arguments]):
        importlib.import_module(name).main()
