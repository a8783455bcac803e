"""Hold the parts of an ONNX graph: nodes, constants, and ternary kernels as codes with their scales."""

from typing import NamedTuple

import ml_dtypes
import numpy as np
from onnx import helper, numpy_helper

from jaxcifar.engine.quantize import Ternary, dequantize

# Bits of a ternary code: its type, and the first opset in which it can be dequantised.
CODES = {2: (ml_dtypes.int2, 25), 4: (ml_dtypes.int4, 21), 8: (np.int8, 13)}
NCHW = (0, 3, 1, 2)  # JAX's axis for each of the graph's; the inverse is (0, 2, 3, 1)


class Tensor(NamedTuple):
    """Hold a value that depends on the images: its name in the graph, and its shape in JAX."""

    name: str
    shape: tuple[int, ...]


class Graph:
    """Collect the nodes and constants of a graph."""

    def __init__(self, bits: int):
        self.nodes: list = []
        self.constants: list = []
        self.bits = bits
        self._names: dict[tuple, str] = {}

    def add(self, operation: str, *inputs: str, **attributes) -> str:
        """Add a node and return the name of its output."""
        name = f'{operation.lower()}_{len(self.nodes)}'
        self.nodes.append(helper.make_node(operation, list(inputs), [name], name, **attributes))
        return name

    def constant(self, value: np.ndarray) -> str:
        """Return the name of a constant; equal constants are stored once."""
        value = np.ascontiguousarray(value)
        # Bytes alone would confuse constants of different types or shapes.
        key = value.dtype.name, value.shape, value.tobytes()
        if key not in self._names:
            self._names[key] = f'constant_{len(self._names)}'
            self.constants.append(numpy_helper.from_array(value, self._names[key]))
        return self._names[key]

    def integers(self, values) -> str:
        """Return the name of a list of integers, as the axes of a node."""
        return self.constant(np.array([int(v) for v in values], np.int64))

    def operand(self, value) -> str:
        """Return the name of a value as operand of an elementwise node."""
        if isinstance(value, Tensor):
            return value.name
        value = np.asarray(dequantize(value) if isinstance(value, Ternary) else value)
        return self.constant(value.transpose(NCHW) if value.ndim == 4 else value)

    def kernel(self, value, axes: tuple[int, ...]) -> str:
        """Return the name of a kernel's floats, transposed to `axes`; output channels are `value`'s last."""
        if not isinstance(value, Ternary):
            return self.constant(np.asarray(value).transpose(axes))
        codes, positive, negative = (np.asarray(part) for part in value)
        quantised = self.constant(codes.transpose(axes).astype(CODES[self.bits][0]))

        def floats(scale: np.ndarray) -> str:
            if len(scale) == 1:
                return self.add('DequantizeLinear', quantised, self.constant(scale.reshape(())))
            # The output channels are the kernel's last axis, wherever the transposition puts it.
            axis = axes.index(len(axes) - 1)
            return self.add('DequantizeLinear', quantised, self.constant(scale), axis=axis)

        if np.array_equal(positive, negative):
            return floats(positive)
        # Each dequantised copy is right for one sign, and their halves add up to the kernel.
        above = self.add('Relu', floats(positive))
        below = self.add('Min', floats(negative), self.constant(np.array(0, np.float32)))
        return self.add('Add', above, below)
