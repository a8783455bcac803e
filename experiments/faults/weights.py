"""Files of weights that others saved: wrapped, renamed, damaged, or of another kind."""

import argparse
import io
import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from safetensors.torch import save

from experiments.faults.images import Harmless, damaged
from experiments.faults.outcomes import Case
from jaxcifar.formats import foreign
from jaxcifar.formats.state_dict import to_torch
from jaxcifar.models import build

SEED = (0, 0)
OTHER: dict[str, Callable[[dict], Any]] = {
    'a list': lambda s: [s],
    'nothing': lambda s: {},
    'None': lambda s: None,
    'a number': lambda s: 3,
    'a tensor': lambda s: s['fc.weight'],
    'numbers as names': lambda s: dict(enumerate(s.values())),
    'no tensors': lambda s: {'epoch': 3},
    'integers': lambda s: {k: t.to(torch.int8) for k, t in s.items()},
    'a complex bias': lambda s: {**s, 'fc.bias': s['fc.bias'].cfloat()},
    'a sparse kernel': lambda s: {**s, 'fc.weight': s['fc.weight'].to_sparse()},
    'a tensor on no device': lambda s: {**s, 'fc.bias': s['fc.bias'].to('meta')},
    'infinity': lambda s: {**s, 'fc.bias': s['fc.bias'] / 0},
    'NaN': lambda s: {**s, 'fc.bias': s['fc.bias'] * torch.nan},
    'without a bias': lambda s: {k: t for k, t in s.items() if k != 'fc.bias'},
    'a tensor more': lambda s: {**s, 'more.weight': s['fc.bias']},
    'two of a name': lambda s: {**s, 'module.fc.bias': s['fc.bias']},
    'another shape': lambda s: {**s, 'conv1.weight': s['conv1.weight'][:3]},
    'no elements': lambda s: {k: t.reshape(-1)[:0] for k, t in s.items()},
    'no axes': lambda s: {k: t.float().sum() for k, t in s.items()},
    'a wrapper of nothing': lambda s: {'state_dict': {}},
    'a wrapper too many': lambda s: _wrapped(s, 5),
    'an empty name': lambda s: {'': s['fc.bias']},
    'arguments': lambda s: {'state_dict': s, 'args': argparse.Namespace(a=1)},
    'a name of two lines': lambda s: {**s, 'a\nb': s['fc.bias']},
    'a numpy array': lambda s: {**s, 'fc.bias': np.zeros(4)},
}
SAME: dict[str, Callable[[dict], Any]] = {
    'plain': lambda s: s,
    'DataParallel': lambda s: {f'module.{k}': t for k, t in s.items()},
    'compiled': lambda s: {f'_orig_mod.module.{k}': t for k, t in s.items()},
    'wrapped': lambda s: _wrapped(s, 2),
    'half': lambda s: {k: t.half() if t.is_floating_point() else t for k, t in s.items()},
    'beside an optimiser': lambda s: {
        'net': s,
        'optimizer': {'state': {}, 'param_groups': [{'lr': 0.1}]},
        'epoch': 3,
    },
}
HEADERS = (
    b'{}',
    b'{"a":1}',
    b'[]',
    b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}',
    b'{' * 1000,
    b'\xff' * 9,
    b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
    b'{"__metadata__":3}',
    b'{"a":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,4]}}',
)


def _wrapped(state: Any, depth: int) -> Any:
    return state if not depth else {'model': _wrapped(state, depth - 1)}


def cases(folder: Path, share: float = 1) -> Iterator[Case]:
    """Yield files of weights, read for the network 'tiny' of 4 classes."""
    shapes, draw = build('tiny', 4).shapes(), random.Random(0)
    state = to_torch(build('tiny', 4).init(SEED))
    whole = jax.tree.leaves(build('tiny', 4).init(SEED))

    def case(name: str, ending: str, data: bytes, reason: str = '') -> Case:
        path = folder / f'weights{ending}'

        def attempt():
            path.write_bytes(data)
            return jax.tree.leaves(foreign.read(path).fit(shapes, 'tiny'))

        def why(taken):
            alike = all(np.allclose(a, b, atol=1e-2) for a, b in zip(taken, whole))
            return 'the same weights' if alike else reason

        return Case(f'{name}{ending}', attempt, why)

    for name, change in (SAME | OTHER).items():
        for old in False, True:
            yield case(name, '.th' if old else '.pth', _saved(change(state), old))
    other = 'a bit of another number, and the format has no sum'
    for name, data in {
        '.pth': _saved(state),
        '.th': _saved(state, True),
        '.safetensors': save(state),
    }.items():
        for i, copy in enumerate(damaged(data, draw, round(80 * share))):
            yield case(f'damaged {i}', name, copy, other)
    for i, head in enumerate(HEADERS):
        for length in (len(head), 10**15, 0):
            yield case(f'header {i}', '.safetensors', length.to_bytes(8, 'little') + head + bytes(4))
    for name, data in {
        'nothing': b'',
        'text': b'hello',
        'json': json.dumps({}).encode(),
        'bits': b'\xff' * 99,
    }.items():
        for ending in foreign.ENDINGS:
            yield case(name, ending, data)
    ran = _saved({'model': Harmless(folder / 'ran'), 'state_dict': state})
    yield case('what would run', '.pth', ran)
    for path in (folder, folder / 'none.pth', Path('/dev/null'), Path('a\0b.pth'), Path('x' * 5000)):
        yield Case(f'the file {str(path)!r:.30}', partial(foreign.read, path))


def _saved(content: Any, old: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()
