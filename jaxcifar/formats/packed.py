"""Pack ternary kernels into bytes, unpack them, and keep them packed in memory until they are used.

Codes are in the order of the kernel [h,w,in,out] or [in,out]:

    2bit   four a byte, -1 as 00, 0 as 01, 1 as 10, the first in the low bits: [1,0,-1,1] is 0x86
    trits  five a byte, Σ (code+1)·3^i: 1.6 bits each

A last byte that is only partly used is filled up with codes of 0.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.struct import PyTreeNode, field
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from jaxcifar.engine.quantize import Ternary, dequantize
from jaxcifar.machine.errors import lookup

CODES = {'2bit': (4, 4), 'trits': (3, 5)}  # base, codes in a byte
TRITS = (np.arange(256)[:, None] // 3 ** np.arange(5) % 3).astype(np.uint8)  # of a byte; 243 and more: none


def pack(codes: np.ndarray, how: str) -> np.ndarray:
    """Pack codes in {-1, 0, 1} of any shape to bytes."""
    base, count = lookup('packing', CODES, how)
    digits = np.asarray(codes).ravel().astype(np.uint8) + np.uint8(1)
    # The digit 1 is the code 0, as what fills up the last byte has to be.
    digits = np.pad(digits, (0, -len(digits) % count), constant_values=1).reshape(-1, count)
    return (digits * base ** np.arange(count)).sum(1).astype(np.uint8)


def unpack(data, how: str, shape: tuple[int, ...], xp=np):
    """Return what `pack` was given, int8; `xp` is numpy, or jax.numpy within a compiled function."""
    if how == '2bit':
        # Two bits a code: shifts by 0, 2, 4 and 6 give the four of a byte, first one lowest.
        digits = data[:, None] >> xp.arange(0, 8, 2, dtype=np.uint8) & np.uint8(3)
    else:
        digits = xp.asarray(TRITS)[data]  # twice as fast as dividing
    return (digits.ravel()[: int(np.prod(shape))].astype(np.int8) - np.int8(1)).reshape(shape)


class Packed(PyTreeNode):
    """Hold a ternary kernel as bytes, which become floats only where the kernel is used."""

    data: Any  # uint8 [bytes]
    positive: Any  # as of `Ternary`
    negative: Any
    shape: tuple[int, ...] = field(pytree_node=False)
    how: str = field(pytree_node=False)
    dtype: np.dtype = field(pytree_node=False, default=np.dtype(np.float32))

    def ternary(self, xp=np) -> Ternary:
        """Return the codes and scales."""
        return Ternary(unpack(self.data, self.how, self.shape, xp), self.positive, self.negative)


def pack_tree(tree, how: str):
    """Return a tree of floats with its ternary kernels (three values, in all or per channel) as `Packed`."""
    return jax.tree.map(lambda leaf: _pack_leaf(np.asarray(leaf), how), tree)


def _pack_leaf(leaf: np.ndarray, how: str):
    # numpy: JAX would compile this for the shape of each kernel.
    for per_channel in (False, True) if leaf.ndim > 1 else ():
        axes = tuple(range(leaf.ndim - per_channel))
        # The largest value of each sign is its scale, if the kernel has three values at all.
        positive, negative = (np.atleast_1d(np.maximum(v, 0).max(axes)) for v in (leaf, -leaf))
        if np.array_equal(_on_host(leaf, positive, negative), leaf):
            codes = np.sign(leaf).astype(np.int8)
            return Packed(pack(codes, how), positive, negative, leaf.shape, how)
    return leaf


def _on_host(codes: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Repeat `quantize.dequantize` in numpy, to the bit."""
    return np.where(codes > 0, positive, np.where(codes < 0, -negative, np.float32(0)))


def map_packed(function: Callable, tree):
    """Return the tree with `function(leaf)` for its `Packed` leaves."""
    change = lambda leaf: function(leaf) if isinstance(leaf, Packed) else leaf  # noqa: E731
    return jax.tree.map(change, tree, is_leaf=lambda leaf: isinstance(leaf, Packed))


def is_packed(tree) -> bool:
    """Return whether a tree has `Packed` leaves."""
    return any(map(_is_packed, jax.tree.leaves(tree, is_leaf=_is_packed)))


def to_dense(tree):
    """Return the tree with floats for `Packed` kernels: on the host exactly what was packed."""
    return map_packed(lambda leaf: _on_host(*leaf.ternary()), tree)


def unpack_where_used(function: Callable) -> Callable:
    """Return `function(variables, images)` for variables with `Packed` kernels, to be compiled.

    Each kernel becomes floats right before its layer and is freed after it, so that at most one kernel is
    in memory as floats, within a call and between calls.
    """

    def run(variables, images: jax.Array):
        leaves = jax.tree.leaves(variables, is_leaf=_is_packed)
        if not any(map(_is_packed, leaves)):
            return function(variables, images)
        # Tracing needs only the kernels' shapes, so no floats exist yet.
        kinds = [(leaf.shape, np.float32 if _is_packed(leaf) else leaf.dtype) for leaf in leaves]
        structure = jax.tree.structure(variables, is_leaf=_is_packed)
        shapes = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*kind) for kind in kinds])
        image = jax.ShapeDtypeStruct(images.shape, images.dtype)
        # The jaxpr tells where each kernel is first used, which the function itself hides.
        jaxpr, output = jax.make_jaxpr(function, return_shape=True)(shapes, image)
        outputs = _evaluate(jaxpr.jaxpr, jaxpr.consts, [*leaves, images])
        return jax.tree.unflatten(jax.tree.structure(output), outputs)

    return run


def _is_packed(leaf) -> bool:
    return isinstance(leaf, Packed)


def _evaluate(jaxpr: Jaxpr, consts, values) -> list:
    """Return the outputs of a jaxpr of which some inputs are `Packed`."""
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *values]))
    for eqn in jaxpr.eqns:
        inputs = [a.val if isinstance(a, Literal) else known[a] for a in eqn.invars]
        inner = eqn.params.get('jaxpr', eqn.params.get('call_jaxpr'))
        # A packed kernel stays packed across a nested jit, or it would become floats at its border.
        if isinstance(inner, ClosedJaxpr):
            outputs = _evaluate(inner.jaxpr, inner.consts, inputs)
        elif eqn.primitive.name == 'convert_element_type' and _is_packed(inputs[0]):
            # A cast is only noted, so that floats of the first type never exist.
            outputs = [inputs[0].replace(dtype=np.dtype(eqn.params['new_dtype']))]
        else:
            # The largest input is the activation, which exists only once the layer before is done.
            after = max((v for v in inputs if not _is_packed(v)), key=np.size, default=0)
            inputs = [_to_floats(v, after) if _is_packed(v) else v for v in inputs]
            bound = eqn.primitive.bind(*inputs, **eqn.params)
            outputs = bound if eqn.primitive.multiple_results else [bound]
        # Values go by variable, whether they are packed or not.
        known.update(zip(eqn.outvars, outputs))
    return [a.val if isinstance(a, Literal) else known[a] for a in jaxpr.outvars]


def _to_floats(kernel: Packed, after) -> jax.Array:
    """Return the kernel's floats, not before `after` is known."""
    # XLA would unpack all kernels at the start, and drops its own barriers before it schedules. It cannot
    # know that this comparison with infinity is always false, so it has to wait for `after`.
    wait = (jnp.ravel(after)[0] > jnp.inf).astype(np.uint8)
    return dequantize(kernel.replace(data=kernel.data + wait).ternary(jnp), kernel.dtype)
