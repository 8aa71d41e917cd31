"""Graphs made smaller, and those of transformers twice as quick: bytes for numbers.

A matrix that many vectors (the tokens of a transformer) are multiplied by is kept as bytes with a
scale a column, and each vector is brought to bytes, too, with a scale of its own: one large token
does not coarsen the others. Before, what a norm scales up is scaled down again, and the matrix up
(after SmoothQuant, Xiao et al. 2022, arXiv:2211.10438, but by the norm's own weights, without
data), which changes nothing but the rounding.
"""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LARGE = 2**16
"""Numbers from which on a matrix is made smaller."""
VECTOR, MATRIX = 127, 90
"""Steps on each side of zero, of vectors and matrices. Processors without instructions for it
(VNNI) add two products in 16 bits, and cut off what is above 32767. With 90 that takes large values
side by side in both; with 63 it never happens, but that is coarser, and worse in all."""
TINY = 1e-8


def to_bytes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Multiplications of tokens by large matrices in bytes; other large weights as bytes with a
    scale a row, and computed with in float32.
    """
    edit = _Edit(model)
    for node in list(model.graph.node):
        if node.op_type == "MatMul" and edit.is_large(node.input[1]) and edit.of_tokens(node):
            _smooth(edit, node)
            _multiply_bytes(edit, node)
    edit.shrink(lambda name, value: _as_bytes(edit, name, value))
    return edit.done()


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Large weights in fp16, and computed with in float32."""
    edit = _Edit(model)

    edit.shrink(lambda name, value: _widened(edit, name, value))
    return edit.done()


def to_smallest(model: onnx.ModelProto) -> onnx.ModelProto:
    """Large weights in the smallest form that gives the same numbers again: bytes with a scale a
    row, as detectors are stored, fp16, or as they are.
    """
    edit = _Edit(model)

    def smallest(name: str, value: np.ndarray) -> list[onnx.NodeProto]:
        packed, steps, axis = _rounded(edit, name, value)
        shape = [-1 if n == axis else 1 for n in range(value.ndim)]
        if np.allclose(packed * steps.reshape(shape), value, rtol=1e-6, atol=0):
            return _dequantised(edit, name, packed, steps, axis)
        if np.array_equal(value.astype(np.float16), value):
            return _widened(edit, name, value)
        return [helper.make_node("Identity", [edit.constant(f"{name}.own", value)], [name])]

    edit.shrink(smallest)
    return edit.done()


class _Edit:
    """A graph being changed."""

    def __init__(self, model: onnx.ModelProto):
        self.model = model
        self.constants = {one.name: one for one in model.graph.initializer}
        self.made = {out: node for node in model.graph.node for out in node.output}
        self.uses: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.uses.setdefault(name, []).append(node)
        self.instead: dict[str, list[onnx.NodeProto]] = {}
        """A node's first output -> the nodes that take its place."""
        self.first: list[onnx.NodeProto] = []

    def value(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self.constants[name])

    def constant(self, name: str, value: Any) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def is_large(self, name: str) -> bool:
        one = self.constants.get(name)
        return (
            one is not None
            and one.data_type == TensorProto.FLOAT
            and len(one.dims) > 1
            and int(np.prod(one.dims)) >= LARGE
        )

    def of_tokens(self, node: onnx.NodeProto) -> bool:
        """Whether a matrix meets the output of a part of the network, not pixels: those are cut up
        and brought to floats just before, and are few numbers for exactness.
        """
        if len(self.constants[node.input[1]].dims) != 2:
            return False
        maker = self.made.get(node.input[0])
        return (maker is not None and maker.op_type not in ("Cast", "Reshape")) or (
            maker is not None and maker.op_type == "Reshape" and not self._from_pixels(maker)
        )

    def _from_pixels(self, node: onnx.NodeProto | None) -> bool:
        while node is not None and node.op_type in ("Cast", "Reshape", "Transpose"):
            node = self.made.get(node.input[0])
        return node is None

    def shrink(self, how: Any) -> None:
        """Make all large weights smaller: how: name, array -> the nodes that give it again."""
        used = {
            name
            for node in self.model.graph.node
            for one in self.instead.get(node.output[0], [node])
            for name in one.input
        }
        for name in list(self.constants):
            if name in used and self.is_large(name):
                self.first += how(name, self.value(name))
                del self.constants[name]

    def done(self) -> onnx.ModelProto:
        graph = self.model.graph
        nodes = [one for node in graph.node for one in self.instead.get(node.output[0], [node])]
        nodes = [*self.first, *nodes]
        used = {name for node in nodes for name in node.input}
        del graph.node[:], graph.initializer[:]
        graph.node.extend(nodes)
        graph.initializer.extend(one for name, one in self.constants.items() if name in used)
        return self.model


def _smooth(edit: _Edit, node: onnx.NodeProto) -> None:
    """Scale the channels of a norm, and the rows of the matrix behind it the other way."""
    norm = edit.made.get(node.input[0])
    if norm is None or norm.op_type != "LayerNormalization" or len(norm.input) < 3:
        return
    if len(edit.uses[norm.output[0]]) != 1 or any(n not in edit.constants for n in norm.input[1:]):
        return
    scale, shift = (edit.value(name) for name in norm.input[1:])
    matrix = edit.value(node.input[1])
    size = np.maximum(4 * np.abs(scale) + np.abs(shift), 1e-3)
    ratio = np.sqrt(size / np.maximum(np.abs(matrix).max(1), 1e-4))
    ratio = (ratio / np.exp(np.log(ratio).mean())).astype(np.float32)
    names = [
        edit.constant(f"{node.output[0]}.{what}", value / ratio)
        for what, value in (("scale", scale), ("shift", shift))
    ]
    changed = onnx.NodeProto()
    changed.CopyFrom(norm)
    changed.input[1], changed.input[2] = names
    edit.instead[norm.output[0]] = [changed]
    edit.constants[node.input[1]].CopyFrom(
        numpy_helper.from_array(matrix * ratio[:, None], node.input[1])
    )


def _multiply_bytes(edit: _Edit, node: onnx.NodeProto) -> None:
    x, name = node.input
    out = node.output[0]
    matrix = edit.value(name)
    steps = np.maximum(np.abs(matrix).max(0) / MATRIX, 1e-12).astype(np.float32)
    packed = np.clip(np.round(matrix / steps), -MATRIX, MATRIX).astype(np.int8)
    weights, scales = edit.constant(f"{out}.bytes", packed), edit.constant(f"{out}.steps", steps)
    one = edit.constant("one", np.float32(1))
    middle = edit.constant("middle", np.uint8(VECTOR))
    last = edit.constant("last", np.array([-1]))
    share = edit.constant("share", np.float32(1 / VECTOR))
    tiny = edit.constant("tiny", np.float32(TINY))
    edit.instead[out] = [
        helper.make_node(kind, inputs, [to], **about)
        for kind, inputs, to, about in (
            ("Abs", [x], f"{out}.abs", {}),
            ("ReduceMax", [f"{out}.abs", last], f"{out}.max", {"keepdims": 1}),
            ("Mul", [f"{out}.max", share], f"{out}.share", {}),
            ("Max", [f"{out}.share", tiny], f"{out}.step", {}),
            ("Div", [x, f"{out}.step"], f"{out}.scaled", {}),
            ("QuantizeLinear", [f"{out}.scaled", one, middle], f"{out}.vectors", {}),
            ("MatMulInteger", [f"{out}.vectors", weights, middle], f"{out}.sums", {}),
            ("Cast", [f"{out}.sums"], f"{out}.floats", {"to": TensorProto.FLOAT}),
            ("Mul", [f"{out}.floats", f"{out}.step"], f"{out}.rows", {}),
            ("Mul", [f"{out}.rows", scales], out, {}),
        )
    ]


def _as_bytes(edit: _Edit, name: str, value: np.ndarray) -> list[onnx.NodeProto]:
    return _dequantised(edit, name, *_rounded(edit, name, value))


def _rounded(edit: _Edit, name: str, value: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Weights in steps, the step for each output of what they are the weights of, and its axis."""
    user = edit.uses[name][0]
    axis = 0
    if user.op_type == "MatMul":
        axis = value.ndim - 1
    elif user.op_type == "Gemm":
        axis = 0 if any(a.name == "transB" and a.i for a in user.attribute) else 1
    others = tuple(n for n in range(value.ndim) if n != axis)
    steps = np.maximum(np.abs(value).max(others) / 127, 1e-12).astype(np.float32)
    shape = [-1 if n == axis else 1 for n in range(value.ndim)]
    packed = np.clip(np.round(value / steps.reshape(shape)), -127, 127).astype(np.int8)
    return packed, steps, axis


def _dequantised(
    edit: _Edit, name: str, packed: np.ndarray, steps: np.ndarray, axis: int
) -> list[onnx.NodeProto]:
    inputs = [edit.constant(f"{name}.bytes", packed), edit.constant(f"{name}.steps", steps)]
    return [helper.make_node("DequantizeLinear", inputs, [name], axis=axis)]


def _widened(edit: _Edit, name: str, value: np.ndarray) -> list[onnx.NodeProto]:
    small = edit.constant(f"{name}.half", value.astype(np.float16))
    return [helper.make_node("Cast", [small], [name], to=TensorProto.FLOAT)]
