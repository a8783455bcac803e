"""Ternary networks in one small file, and in little memory.

A file: b'jaxcifar', version and length of the header (uint32, little endian), sha256 of all that follows;
the header, JSON: what the network is and its tensors in order; the tensors, one behind the other. A
ternary tensor is its scales and then its codes, in the order of the kernel [h,w,in,out] or [in,out]:

    2bit   four a byte, -1 as 00, 0 as 01, 1 as 10, the first in the low bits: [1,0,-1,1] is 0x86
    trits  five a byte, Σ (code+1)·3^i: 1.6 bits each

Codes that fill up a last byte are 0.
"""

import hashlib
import json
import math
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.struct import PyTreeNode, field
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from jaxcifar.checkpoint import write_atomically
from jaxcifar.errors import UserError, lookup
from jaxcifar.models.batch_norm import BatchNorm
from jaxcifar.quantize import Ternary, to_floats

MAGIC, VERSION = b'jaxcifar', 1
START = struct.Struct('<8sII32s')
CODES = {'2bit': (4, 4), 'trits': (3, 5)}  # base, codes in a byte
TRITS = (np.arange(256)[:, None] // 3 ** np.arange(5) % 3).astype(np.uint8)  # of a byte; 243 and more: none
REST = {'float32': '<f4', 'float16': '<f2'}


def pack(codes: np.ndarray, how: str) -> np.ndarray:
    """Codes in {-1, 0, 1} of any shape -> bytes."""
    base, count = lookup('packing', CODES, how)
    digits = np.asarray(codes).ravel().astype(np.uint8) + np.uint8(1)
    digits = np.pad(digits, (0, -len(digits) % count), constant_values=1).reshape(-1, count)
    return (digits * base ** np.arange(count)).sum(1).astype(np.uint8)


def unpack(data, how: str, shape: tuple[int, ...], xp=np):
    """The inverse of `pack`, int8; `xp` is numpy, or jax.numpy within a compiled function."""
    if how == '2bit':
        digits = data[:, None] >> xp.arange(0, 8, 2, dtype=np.uint8) & np.uint8(3)
    else:
        digits = xp.asarray(TRITS)[data]  # twice as fast as dividing
    return (digits.ravel()[: int(np.prod(shape))].astype(np.int8) - np.int8(1)).reshape(shape)


class Packed(PyTreeNode):
    """A ternary kernel as bytes: what is kept in memory, and made into floats where it is used."""

    data: Any  # uint8 [bytes]
    positive: Any  # as of `Ternary`
    negative: Any
    shape: tuple[int, ...] = field(pytree_node=False)
    how: str = field(pytree_node=False)
    dtype: np.dtype = field(pytree_node=False, default=np.dtype(np.float32))

    def ternary(self, xp=np) -> Ternary:
        """The codes and scales."""
        return Ternary(unpack(self.data, self.how, self.shape, xp), self.positive, self.negative)


def pack_tree(tree, how: str):
    """A tree of floats whose kernels of at most three values, in all or a channel, are `Packed`."""
    return jax.tree.map(lambda leaf: _pack_leaf(np.asarray(leaf), how), tree)


def _pack_leaf(leaf: np.ndarray, how: str):
    # numpy, where `quantize.from_floats` would be compiled for the shape of each kernel.
    for per_channel in (False, True) if leaf.ndim > 1 else ():
        axes = tuple(range(leaf.ndim - per_channel))
        positive, negative = (np.atleast_1d(np.maximum(v, 0).max(axes)) for v in (leaf, -leaf))
        if np.array_equal(_on_host(leaf, positive, negative), leaf):
            codes = np.sign(leaf).astype(np.int8)
            return Packed(pack(codes, how), positive, negative, leaf.shape, how)
    return leaf


def _on_host(codes: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """`quantize.to_floats`, to the bit."""
    return np.where(codes > 0, positive, np.where(codes < 0, -negative, np.float32(0)))


def map_packed(function: Callable, tree):
    """The tree with `function(leaf)` for its `Packed` leaves."""
    change = lambda leaf: function(leaf) if isinstance(leaf, Packed) else leaf  # noqa: E731
    return jax.tree.map(change, tree, is_leaf=lambda leaf: isinstance(leaf, Packed))


def to_dense(tree):
    """The tree with floats for `Packed` kernels: on the host exactly the weights that were packed."""
    return map_packed(lambda leaf: _on_host(*leaf.ternary()), tree)


def unpack_where_used(function: Callable) -> Callable:
    """`function(variables, images)` for variables with `Packed` kernels, to be compiled.

    Each kernel becomes floats right before its layer and is gone after it, so that neither between calls
    nor within one there is ever more than one in memory.
    """

    def run(variables, images: jax.Array):
        leaves = jax.tree.leaves(variables, is_leaf=_is_packed)
        if not any(map(_is_packed, leaves)):
            return function(variables, images)
        kinds = [(leaf.shape, np.float32 if _is_packed(leaf) else leaf.dtype) for leaf in leaves]
        structure = jax.tree.structure(variables, is_leaf=_is_packed)
        shapes = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*kind) for kind in kinds])
        image = jax.ShapeDtypeStruct(images.shape, images.dtype)
        jaxpr, output = jax.make_jaxpr(function, return_shape=True)(shapes, image)
        found = _evaluate(jaxpr.jaxpr, jaxpr.consts, [*leaves, images])
        return jax.tree.unflatten(jax.tree.structure(output), found)

    return run


def _is_packed(leaf) -> bool:
    return isinstance(leaf, Packed)


def _evaluate(jaxpr: Jaxpr, consts, values) -> list:
    """The outputs of a jaxpr of which some inputs are `Packed`."""
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *values]))
    for eqn in jaxpr.eqns:
        inputs = [a.val if isinstance(a, Literal) else known[a] for a in eqn.invars]
        inner = eqn.params.get('jaxpr', eqn.params.get('call_jaxpr'))
        if isinstance(inner, ClosedJaxpr):
            outputs = _evaluate(inner.jaxpr, inner.consts, inputs)
        elif eqn.primitive.name == 'convert_element_type' and _is_packed(inputs[0]):
            outputs = [inputs[0].replace(dtype=np.dtype(eqn.params['new_dtype']))]
        else:
            after = max((v for v in inputs if not _is_packed(v)), key=np.size, default=0)
            inputs = [_to_floats(v, after) if _is_packed(v) else v for v in inputs]
            found = eqn.primitive.bind(*inputs, **eqn.params)
            outputs = found if eqn.primitive.multiple_results else [found]
        known.update(zip(eqn.outvars, outputs))
    return [a.val if isinstance(a, Literal) else known[a] for a in jaxpr.outvars]


def _to_floats(kernel: Packed, after) -> jax.Array:
    """The kernel, not before `after` is known."""
    # XLA would make floats of all kernels at the start, and has dropped its own barriers by the time it
    # orders what it does. It cannot know that nothing is more than infinite.
    wait = (jnp.ravel(after)[0] > jnp.inf).astype(np.uint8)
    return to_floats(kernel.replace(data=kernel.data + wait).ternary(jnp), kernel.dtype)


def fold_norms(variables: dict) -> dict:
    """Batch norms as y = a·x + b: a and b are their new scale and bias, and statistics are left out."""
    params, stats = flatten_dict(variables['params']), flatten_dict(variables['batch_stats'])
    for path in [p[:-1] for p in stats if p[-1] == 'var']:
        mean, var = (np.asarray(stats.pop((*path, name)), np.float64) for name in ('mean', 'var'))
        a = params[*path, 'scale'] / np.sqrt(var + BatchNorm.epsilon)
        b = params[*path, 'bias'] - mean * a
        params[*path, 'scale'], params[*path, 'bias'] = a.astype(np.float32), b.astype(np.float32)
    return {'params': unflatten_dict(params), 'batch_stats': unflatten_dict(stats)}


def unfold_norms(variables: dict) -> dict:
    """The statistics with which folded norms are norms again: mean 0, variance + ε 1."""
    stats = flatten_dict(variables['batch_stats'])
    for path, scale in flatten_dict(variables['params']).items():
        if path[-1] == 'scale':
            stats[*path[:-1], 'mean'] = np.zeros_like(scale)
            stats[*path[:-1], 'var'] = np.full_like(scale, 1 - BatchNorm.epsilon)
    return {'params': variables['params'], 'batch_stats': unflatten_dict(stats)}


def write(path: Path, about: dict, variables: dict, how: str = 'trits', rest: str = 'float32', fold=False):
    """Write one network's variables as the forward pass sees them.

    Args:
      about: JSON; what the reader is to know of the network.
      how: '2bit' or 'trits'.
      rest: of all other tensors and of the scales: float32 is exact.
      fold: keep two numbers of a norm's channel instead of four; exact but for rounding.

    Raises:
      UserError: no kernel is ternary, or a number does not fit float16.
    """
    dtype = np.dtype(lookup('rest', REST, rest))
    tree = pack_tree(fold_norms(variables) if fold else variables, how)
    tensors, parts = [], []

    def put(name: str, array) -> int:
        with np.errstate(over='ignore'):
            small = np.asarray(array).astype(dtype)
        if not np.isfinite(small).all():
            raise UserError(f'{name} has numbers that do not fit {rest}')
        parts.append(small.tobytes())
        return small.size

    for name, leaf in flatten_dict(tree, sep='/').items():
        if isinstance(leaf, Packed):
            alike = np.array_equal(leaf.positive, leaf.negative)
            scales = [put(name, s) for s in ((leaf.positive,) if alike else (leaf.positive, leaf.negative))]
            parts.append(leaf.data.tobytes())
            tensors.append([name, leaf.shape, how, scales])
        else:
            put(name, leaf)
            tensors.append([name, leaf.shape, rest])
    if not any(kind == how for _, _, kind, *_ in tensors):
        raise UserError(
            'no kernel is ternary: this run has another view; use --format safetensors or release'
        )
    header = {'about': about, 'rest': rest, 'folded': fold, 'tensors': tensors}
    text = json.dumps(header, separators=(',', ':')).encode()
    body = b''.join([text, *parts])
    start = START.pack(MAGIC, VERSION, len(text), hashlib.sha256(body).digest())
    write_atomically(path, lambda file: file.write(start + body))


def read(path: Path) -> tuple[dict, dict]:
    """(about, variables with `Packed` kernels) of a file; a `UserError` says what is wrong with it."""
    data = path.read_bytes()
    if data[: len(MAGIC)] != MAGIC:
        raise UserError(f'{path} is not a packed network of jaxcifar')
    if len(data) < START.size:
        raise UserError(f'{path} is damaged: it ends after {len(data)} bytes')
    _, version, length, digest = START.unpack_from(data)
    if version != VERSION:
        raise UserError(f'{path} is of version {version}; this jaxcifar reads version {VERSION}')
    if hashlib.sha256(body := data[START.size :]).digest() != digest:
        raise UserError(f'{path} is damaged: its {len(data)} bytes are not those that were written')
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
            signs = [take(dtype, n).astype(np.float32) for n in scales[0]]
            codes = take(np.dtype(np.uint8), -(-math.prod(shape) // CODES[kind][1]))
            leaves[name] = Packed(codes, signs[0], signs[-1], tuple(shape), kind)
        else:
            leaves[name] = take(dtype, math.prod(shape)).astype(np.float32).reshape(shape)
    if at != [len(body)]:
        raise ValueError(f'{len(body) - at[0]} bytes are left over')
    variables = {'params': {}, 'batch_stats': {}, **unflatten_dict(leaves, sep='/')}
    return header['about'], unfold_norms(variables) if header['folded'] else variables


def _take(body: memoryview, at: list[int], dtype: np.dtype, count: int) -> np.ndarray:
    """The next `count` numbers; `at` is where they begin, and moves on."""
    if count < 0:
        raise ValueError(f'{count} numbers')
    found = np.frombuffer(body, dtype, count, at[0])
    at[0] += found.nbytes
    return found
