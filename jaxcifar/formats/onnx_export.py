"""Translate a function's jaxpr to an ONNX graph, primitive by primitive.

Whatever depends on the weights alone is computed at export, so that a batch norm becomes one product and
one sum. Images are [B,H,W,C] in JAX and [B,C,H,W] in the graph, the layout in which runtimes are fast.
Ternary kernels stay codes of 2, 4 or 8 bits, which DequantizeLinear turns into floats.
"""

from collections.abc import Callable

import jax
import numpy as np
import onnx
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from onnx import TensorProto, helper

from jaxcifar.engine.quantize import Ternary
from jaxcifar.formats.onnx_graph import CODES, NCHW, Graph, Tensor
from jaxcifar.machine.errors import UserError

OPSET = 18
IR_VERSION = 10  # of the file; runtimes refuse newer ones than they know


def _elementwise(operation: str) -> Callable:
    return lambda graph, eqn, *values: graph.add(operation, *map(graph.operand, values))


def _maximum(graph: Graph, eqn, a, b) -> str:
    # A maximum with the number 0 is how a ReLU arrives here.
    if not isinstance(b, Tensor) and np.ndim(b) == 0 and b == 0:
        return graph.add('Relu', graph.operand(a))  # which runtimes fuse into the convolution before it
    return graph.add('Max', graph.operand(a), graph.operand(b))


def _cast(graph: Graph, eqn, x: Tensor) -> str:
    return graph.add('Cast', x.name, to=helper.np_dtype_to_tensor_dtype(np.dtype(eqn.params['new_dtype'])))


def _convolution(graph: Graph, eqn, x: Tensor, kernel) -> str:
    p = eqn.params
    _require(eqn, tuple(p['dimension_numbers']) == ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)))
    _require(eqn, p['batch_group_count'] == 1 and p['lhs_dilation'] == (1, 1))
    (top, bottom), (left, right) = p['padding']
    return graph.add(
        'Conv',
        x.name,
        graph.kernel(kernel, (3, 2, 0, 1)),
        strides=p['window_strides'],
        pads=[top, left, bottom, right],
        dilations=p['rhs_dilation'],
        group=p['feature_group_count'],
    )


def _product(graph: Graph, eqn, x: Tensor, kernel) -> str:
    contracted, batched = eqn.params['dimension_numbers']
    _require(eqn, [list(map(tuple, d)) for d in (contracted, batched)] == [[(1,), (0,)], [(), ()]])
    return graph.add('MatMul', x.name, graph.kernel(kernel, (0, 1)))


def _power(graph: Graph, eqn, x: Tensor) -> str:
    return graph.add('Pow', x.name, graph.constant(np.array(eqn.params['y'], np.float32)))


def _reduce(operation: str) -> Callable:
    def translate(graph: Graph, eqn, x: Tensor) -> str:
        axes = eqn.params['axes']
        # The remaining axes have the same order in both layouts, or are the four that the graph knows.
        _require(eqn, (len(x.shape), axes) in ((4, (1, 2)), (6, (2, 4))))
        return graph.add(operation, x.name, graph.integers([a + 1 for a in axes]), keepdims=0)

    return translate


def _blocks(graph: Graph, eqn, x: Tensor) -> str:
    """Translate [B,H,W,C] -> [B,H/p,p,W/q,q,C]; the graph has it as [B,C,H/p,p,W/q,q]."""
    new = eqn.params['new_sizes']
    # With channels first, only splitting height and width into blocks keeps its meaning.
    _require(eqn, len(x.shape) == 4 and len(new) == 6)
    batch, height, width, channels = x.shape
    _require(eqn, (new[0], new[-1]) == (batch, channels))
    _require(eqn, (new[1] * new[2], new[3] * new[4]) == (height, width))
    return graph.add('Reshape', x.name, graph.integers([0, 0, *new[1:5]]))  # 0: as it is


def _slice(graph: Graph, eqn, x: Tensor) -> str:
    p = eqn.params
    steps = p['strides'] or (1,) * len(x.shape)
    cuts = zip(p['start_indices'], p['limit_indices'], steps, x.shape)
    # Axes taken whole are left out, above all the batch, whose size is unknown.
    axes = [a for a, (start, end, step, size) in enumerate(cuts) if (start, end, step) != (0, size, 1)]
    _require(eqn, len(x.shape) == 4 and 0 not in axes)
    columns = ([values[a] for a in axes] for values in (p['start_indices'], p['limit_indices']))
    places = [NCHW.index(a) for a in axes], [steps[a] for a in axes]
    return graph.add('Slice', x.name, *map(graph.integers, (*columns, *places)))


def _pad(graph: Graph, eqn, x: Tensor, value) -> str:
    pads = eqn.params['padding_config']
    _require(eqn, len(x.shape) == 4 and not any(inner for _, _, inner in pads))
    # ONNX lists the pads at all beginnings, then those at all ends.
    low, high = ([pads[a][side] for a in NCHW] for side in (0, 1))
    return graph.add('Pad', x.name, graph.integers(low + high), graph.constant(np.asarray(value)))


def _join(graph: Graph, eqn, *values) -> str:
    axis = eqn.params['dimension']
    rank = len(values[0].shape)
    return graph.add('Concat', *map(graph.operand, values), axis=NCHW.index(axis) if rank == 4 else axis)


def _pool(operation: str, **attributes) -> Callable:
    def translate(graph: Graph, eqn, x: Tensor) -> str:
        p = eqn.params
        window, strides, pads = p['window_dimensions'], p['window_strides'], p['padding']
        _require(
            eqn, (window[0], window[3]) == (1, 1) and {*p['base_dilation'], *p['window_dilation']} == {1}
        )
        # ONNX lists the pads at all beginnings, then those at all ends.
        ends = [pads[1][0], pads[2][0], pads[1][1], pads[2][1]]
        shape = {'kernel_shape': window[1:3], 'strides': strides[1:3], 'pads': ends}
        y = graph.add(operation, x.name, **shape, **attributes)
        if operation == 'MaxPool':
            return y
        return graph.add('Mul', y, graph.constant(np.array(np.prod(window), np.float32)))  # a sum, not a mean

    return translate


PRIMITIVES: dict[str, Callable] = {
    **{name: _elementwise(name.title()) for name in ('add', 'sub', 'mul', 'div', 'min')},
    **{name: _elementwise(name.title()) for name in ('tanh', 'exp', 'log', 'neg', 'abs', 'sqrt', 'erf')},
    'logistic': _elementwise('Sigmoid'),
    'max': _maximum,
    'convert_element_type': _cast,
    'conv_general_dilated': _convolution,
    'dot_general': _product,
    'reduce_sum': _reduce('ReduceSum'),
    'reduce_max': _reduce('ReduceMax'),
    'integer_pow': _power,
    'reshape': _blocks,
    'slice': _slice,
    'pad': _pad,
    'concatenate': _join,
    'reduce_window_max': _pool('MaxPool'),
    'reduce_window_sum': _pool('AveragePool', count_include_pad=1),
}


def _broadcast(x, shape, broadcast_dimensions, **_) -> np.ndarray:
    sizes = dict(zip(broadcast_dimensions, np.shape(x)))
    return np.broadcast_to(np.reshape(x, [sizes.get(axis, 1) for axis in range(len(shape))]), shape)


# What a norm does with its weights, in numpy: JAX would compile each for every number of channels.
FOLDS: dict[str, Callable] = {
    'add': lambda a, b, **_: np.add(a, b),
    'sub': lambda a, b, **_: np.subtract(a, b),
    'mul': lambda a, b, **_: np.multiply(a, b),
    'rsqrt': lambda x, **_: np.float32(1) / np.sqrt(x),
    'broadcast_in_dim': _broadcast,
}


def _require(eqn, condition: bool):
    if not condition:
        raise UserError(f'ONNX: {eqn.primitive.name} in this form has no translation: {eqn.params}')


def _translate(graph: Graph, jaxpr: Jaxpr, consts, values) -> list:
    """Return the outputs of a jaxpr, `Tensor`s or constants, from those of its inputs."""
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *values]))
    for eqn in jaxpr.eqns:
        inputs = [a.val if isinstance(a, Literal) else known[a] for a in eqn.invars]
        known.update(zip(eqn.outvars, _equation(graph, eqn, inputs)))
    return [a.val if isinstance(a, Literal) else known[a] for a in jaxpr.outvars]


def _equation(graph: Graph, eqn, inputs: list) -> list:
    name, inner = eqn.primitive.name, eqn.params.get('jaxpr', eqn.params.get('call_jaxpr'))
    if name == 'platform_index':  # selects by platform: take the form that runs on all of them
        return [eqn.params['platforms'].index(None)]
    # A branch that is known at export leaves no condition in the graph.
    if name == 'cond' and not isinstance(inputs[0], Tensor):
        inner, inputs = eqn.params['branches'][int(inputs[0])], inputs[1:]
    if isinstance(inner, ClosedJaxpr):
        return _translate(graph, inner.jaxpr, inner.consts, inputs)
    # What does not depend on the images is a constant, so it is computed now.
    if not any(isinstance(value, (Tensor, Ternary)) for value in inputs):
        if name in FOLDS:
            return [FOLDS[name](*inputs, **eqn.params)]
        # Other operations are rare, so it does not matter that JAX compiles them.
        outputs = eqn.primitive.bind(*inputs, **eqn.params)
        return list(outputs) if eqn.primitive.multiple_results else [outputs]
    if name not in PRIMITIVES:
        raise UserError(f'ONNX: no translation of {name} yet; it would be a line in {__name__}.PRIMITIVES')
    # Every primitive with a translation has one output.
    (output,) = eqn.outvars
    return [Tensor(PRIMITIVES[name](graph, eqn, *inputs), output.aval.shape)]


def to_onnx(
    function: Callable, variables, image_size: int, bits: int = 2, about: dict[str, str] | None = None
):
    """Return the ONNX model of `function(variables, uint8 images [B,H,W,3]) -> logits [B,C]`, for any B.

    variables: a tree of arrays and `Ternary` kernels. bits: of a ternary code: 2, 4 or 8, which the runtime
    must support. about: kept as the model's metadata.

    Raises:
      UserError: the function has an operation that is not in `PRIMITIVES`.
    """
    is_ternary = lambda leaf: isinstance(leaf, Ternary)  # noqa: E731
    # The function is traced with floats, whatever form the kernels are kept in.
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((leaf.codes if is_ternary(leaf) else leaf).shape, np.float32),
        variables,
        is_leaf=is_ternary,
    )
    # The batch of 1 is only traced; the graph calls it B and takes any number.
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), np.uint8)
    jaxpr = jax.make_jaxpr(function)(shapes, images)
    graph = Graph(bits)
    leaves = jax.tree.leaves(variables, is_leaf=is_ternary)
    # All nodes after this transpose have their channels first.
    first = Tensor(graph.add('Transpose', 'images', perm=NCHW), images.shape)
    (logits,) = _translate(graph, jaxpr.jaxpr, jaxpr.consts, [*leaves, first])
    # Nodes are named by a running number, so the output gets its fixed name here.
    graph.nodes.append(helper.make_node('Identity', [logits.name], ['logits']))
    given = helper.make_tensor_value_info('images', TensorProto.UINT8, ['B', *images.shape[1:]])
    wanted = helper.make_tensor_value_info('logits', TensorProto.FLOAT, ['B', logits.shape[1]])
    # Codes of 2 and 4 bits need a newer opset, which plain weights must not demand.
    opset = max(OPSET, CODES[bits][1]) if any(map(is_ternary, leaves)) else OPSET
    model = helper.make_model(
        helper.make_graph(graph.nodes, 'jaxcifar', [given], [wanted], graph.constants),
        opset_imports=[helper.make_opsetid('', opset)],
        ir_version=IR_VERSION,
        producer_name='jaxcifar',
    )
    helper.set_model_props(model, about or {})
    onnx.checker.check_model(model, full_check=True)
    return model
