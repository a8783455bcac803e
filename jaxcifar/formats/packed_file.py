"""Write ternary networks into one small file, and read them.

A file consists of b'jaxcifar', version and length of the header (uint32, little endian) and the sha256 of
all that follows; the header, JSON that describes the network and lists its tensors; the tensors in this
order. A ternary tensor is stored as its scales, then its codes as `jaxcifar.formats.packed` packs them.
"""

import hashlib
import json
import math
import struct
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcifar.formats.packed import CODES, Packed, pack_tree
from jaxcifar.machine.errors import UserError, lookup
from jaxcifar.machine.files import write_bytes
from jaxcifar.models.batch_norm import BatchNorm

MAGIC, VERSION = b'jaxcifar', 1
START = struct.Struct('<8sII32s')
REST = {'float32': '<f4', 'float16': '<f2'}


def fold_norms(variables: dict) -> dict:
    """Turn batch norms into y = a·x + b: a and b are their new scale and bias; statistics are left out."""
    params, stats = flatten_dict(variables['params']), flatten_dict(variables['batch_stats'])
    # Only norms have a variance, so it tells where they are.
    for path in [p[:-1] for p in stats if p[-1] == 'var']:
        mean, var = (np.asarray(stats.pop((*path, name)), np.float64) for name in ('mean', 'var'))
        # Products in float64 leave one rounding, that of the result.
        a = params[*path, 'scale'] / np.sqrt(var + BatchNorm.epsilon)
        b = params[*path, 'bias'] - mean * a
        params[*path, 'scale'], params[*path, 'bias'] = a.astype(np.float32), b.astype(np.float32)
    return {'params': unflatten_dict(params), 'batch_stats': unflatten_dict(stats)}


def unfold_norms(variables: dict) -> dict:
    """Return variables whose folded norms are batch norms again, with mean 0 and variance + ε = 1."""
    stats = flatten_dict(variables['batch_stats'])
    for path, scale in flatten_dict(variables['params']).items():
        if path[-1] == 'scale':
            stats[*path[:-1], 'mean'] = np.zeros_like(scale)
            # The norm adds ε back, so that it takes the square root of 1.
            stats[*path[:-1], 'var'] = np.full_like(scale, 1 - BatchNorm.epsilon)
    return {'params': variables['params'], 'batch_stats': unflatten_dict(stats)}


def write(path: Path, about: dict, variables: dict, how: str = 'trits', rest: str = 'float32', fold=False):
    """Write one network's variables as the forward pass sees them.

    Args:
      about: JSON; what a reader needs to know about the network.
      how: '2bit' or 'trits'.
      rest: type of all other tensors and of the scales; float32 is exact.
      fold: keep two numbers of a norm's channel instead of four; exact but for rounding.

    Raises:
      UserError: no kernel is ternary, or a number does not fit float16.
    """
    dtype = np.dtype(lookup('rest', REST, rest))
    tree = pack_tree(fold_norms(variables) if fold else variables, how)
    tensors, parts = [], []

    def put(name: str, array) -> int:
        # The message below says more than numpy's warning.
        with np.errstate(over='ignore'):
            small = np.asarray(array).astype(dtype)
        if not np.isfinite(small).all():
            raise UserError(f'{name} has numbers that do not fit {rest}')
        parts.append(small.tobytes())
        return small.size

    for name, leaf in flatten_dict(tree, sep='/').items():
        if isinstance(leaf, Packed):
            # TWN has one scale for both signs, and a second would only repeat it.
            alike = np.array_equal(leaf.positive, leaf.negative)
            scales = [put(name, s) for s in ((leaf.positive,) if alike else (leaf.positive, leaf.negative))]
            parts.append(leaf.data.tobytes())
            tensors.append([name, leaf.shape, how, scales])
        else:
            put(name, leaf)
            tensors.append([name, leaf.shape, rest])
    if not any(kind == how for _, _, kind, *_ in tensors):
        raise UserError(
            f'no kernel of {about.get("name", "this network")} is ternary: use --format safetensors or '
            'release, or --member of one that is'
        )
    # Tensors have no offsets: their order, shapes and kinds say where each one lies.
    header = {'about': about, 'rest': rest, 'folded': fold, 'tensors': tensors}
    text = json.dumps(header, separators=(',', ':')).encode()
    body = b''.join([text, *parts])
    start = START.pack(MAGIC, VERSION, len(text), hashlib.sha256(body).digest())
    write_bytes(path, start + body)


def read(path: Path) -> tuple[dict, dict]:
    """Return (about, variables with `Packed` kernels) of a file; `UserError` says what is wrong with it."""
    data = path.read_bytes()
    if data[: len(MAGIC)] != MAGIC:
        raise UserError(f'expected a packed network of jaxcifar, got {path}')
    if len(data) < START.size:
        raise UserError(f'{path} is damaged: it ends after {len(data)} bytes; export it again')
    _, version, length, digest = START.unpack_from(data)
    # A newer version may compute its sum in another way, so the version is checked first.
    if version != VERSION:
        raise UserError(
            f'expected a packed file of version {VERSION}, got {path} of version {version}: export it again, '
            'or update jaxcifar'
        )
    # The sum is checked before anything is parsed, so that damage has one message.
    if hashlib.sha256(body := data[START.size :]).digest() != digest:
        raise UserError(
            f'{path} is damaged: its {len(data)} bytes are not those that were written; export it again'
        )
    try:
        return _parse(body, length)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f'{path} is damaged: what it says of its tensors cannot be ({error})') from None


def _parse(body: bytes, length: int) -> tuple[dict, dict]:
    header = json.loads(body[:length])
    take = partial(_take, memoryview(body), at := [length])
    dtype = np.dtype(REST[header['rest']])
    leaves: dict[str, Any] = {}
    for name, shape, kind, *scales in header['tensors']:
        if kind in CODES:
            # Where both signs share a scale, the list has one entry, its first and its last.
            signs = [take(dtype, n).astype(np.float32) for n in scales[0]]
            if {len(sign) for sign in signs} - {1, shape[-1]}:
                raise ValueError(f'{name} has scales for other channels than its {shape[-1]}')
            # The ceiling counts a last byte that is only partly filled.
            codes = take(np.dtype(np.uint8), -(-math.prod(shape) // CODES[kind][1]))
            leaves[name] = Packed(codes, signs[0], signs[-1], tuple(shape), kind)
        else:
            leaves[name] = take(dtype, math.prod(shape)).astype(np.float32).reshape(shape)
    if at != [len(body)]:
        raise ValueError(f'{len(body) - at[0]} bytes are left over')
    variables = {'params': {}, 'batch_stats': {}, **unflatten_dict(leaves, sep='/')}
    return header['about'], unfold_norms(variables) if header['folded'] else variables


def _take(body: memoryview, at: list[int], dtype: np.dtype, count: int) -> np.ndarray:
    """Return the next `count` numbers; `at` is the offset at which they begin, and is advanced."""
    # numpy reads a count of -1 as all that is left.
    if count < 0:
        raise ValueError(f'{count} numbers')
    numbers = np.frombuffer(body, dtype, count, at[0])
    at[0] += numbers.nbytes
    return numbers
