"""Graphs made smaller, and those of transformers twice as quick: bytes for numbers.

A matrix that many vectors (the tokens of a transformer) are multiplied by is kept as bytes with a
scale a column, and each vector is brought to bytes, too, with a scale of its own: one large token
does not coarsen the others. Where it is known how large each channel grows, the large ones are
scaled down before, and their rows of the matrix up (SmoothQuant, Xiao et al. 2022,
arXiv:2211.10438), which changes nothing but the rounding.
"""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ganscope.detector.exported.graph import MICROSOFT

LARGE = 2**16
"""Numbers from which on a matrix is made smaller."""
VECTOR, MATRIX = 254, 90
"""Steps from the least to the largest number of a vector, and on each side of zero of a matrix'
column. Processors without instructions for it
(VNNI) add two products in 16 bits, and cut off what is above 32767. With 90 that takes large values
side by side in both; with 63 it never happens, but that is coarser, and worse in all."""
TINY = 1e-8
WEIGHING = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operations whose second input is weights; other large constants are places, say, and are kept."""


def to_bytes(
    model: onnx.ModelProto, amplitudes: dict[str, np.ndarray] | None = None
) -> onnx.ModelProto:
    """Multiplications of tokens by large matrices in bytes; other large weights as bytes with a
    scale a row, and computed with in float32. For onnxruntime alone.

    amplitudes: name of a matrix (K, N) -> how large the channels (K,) grow that it meets.
    """
    edit = _Edit(model)
    for node in list(model.graph.node):
        if node.op_type == "MatMul" and edit.is_large(node.input[1]) and edit.of_tokens(node):
            known = (amplitudes or {}).get(node.input[1])
            x = node.input[0] if known is None else _smooth(edit, node, known)
            _multiply_bytes(edit, node, x)
    if not any(one.domain == MICROSOFT for one in model.opset_import):
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return to_weight_bytes(edit.done())


def to_weight_bytes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Large weights as bytes with a scale a row, and computed with in float32."""
    edit = _Edit(model)
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
        self.before: dict[str, list[onnx.NodeProto]] = {}
        """What comes before those."""
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
        """Whether a matrix (K, N) meets what a part of the network made, not pixels."""
        return len(self.constants[node.input[1]].dims) == 2 and not self.of_pixels(node)

    def of_pixels(self, node: onnx.NodeProto) -> bool:
        """Whether nothing but their order and type is changed between the pixels and a node."""
        maker = self.made.get(node.input[0])
        while maker is not None and maker.op_type in ("Cast", "Reshape", "Transpose"):
            maker = self.made.get(maker.input[0])
        return maker is None

    def shrink(self, how: Any) -> None:
        """Make all large weights smaller: how: name, array -> the nodes that give it again."""
        used = {
            name
            for node in self.model.graph.node
            for one in self.instead.get(node.output[0], [node])
            for name in one.input
        }
        for name in list(self.constants):
            user = self.uses.get(name, [onnx.NodeProto()])[0]
            weighs = user.op_type in WEIGHING and user.input[1] == name
            if name in used and weighs and self.is_large(name) and not self.of_pixels(user):
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


def _smooth(edit: _Edit, node: onnx.NodeProto, amplitudes: np.ndarray) -> str:
    """Scale the channels that a matrix meets, and its rows the other way; the channels' name."""
    x, name = node.input
    matrix = edit.value(name)
    largest = np.maximum(amplitudes.astype(np.float32), 1e-3)
    ratio = np.sqrt(largest / np.maximum(np.abs(matrix).max(1), 1e-4))
    ratio = (ratio / np.exp(np.log(ratio).mean())).astype(np.float32)
    edit.constants[name].CopyFrom(numpy_helper.from_array(matrix * ratio[:, None], name))
    norm = edit.made.get(x)
    if norm is not None and norm.op_type == "LayerNormalization" and len(edit.uses[x]) == 1:
        changed = onnx.NodeProto()
        changed.CopyFrom(norm)
        for place in (1, 2):
            value = edit.value(norm.input[place]) / ratio
            changed.input[place] = edit.constant(f"{node.output[0]}.norm{place}", value)
        edit.instead[x] = [changed]
        return x
    out = f"{node.output[0]}.smooth"
    scale = edit.constant(f"{node.output[0]}.ratio", 1 / ratio)
    edit.before[node.output[0]] = [helper.make_node("Mul", [x, scale], [out])]
    return out


def _multiply_bytes(edit: _Edit, node: onnx.NodeProto, x: str) -> None:
    """x = low + step * vectors, matrix = steps * bytes, and so x @ matrix = step * steps * (vectors
    @ bytes) + low * (sums of the matrix' columns).
    """
    out = node.output[0]
    matrix = edit.value(node.input[1])
    steps = np.maximum(np.abs(matrix).max(0) / MATRIX, 1e-12).astype(np.float32)
    packed = np.clip(np.round(matrix / steps), -MATRIX, MATRIX).astype(np.int8)
    weights, scales = edit.constant(f"{out}.bytes", packed), edit.constant(f"{out}.steps", steps)
    columns = edit.constant(f"{out}.columns", packed.sum(0, dtype=np.float32) * steps)
    one = edit.constant("ganscope.one", np.float32(1))
    zero = edit.constant("ganscope.zero", np.uint8(0))
    last = edit.constant("ganscope.last", np.array([-1]))
    share = edit.constant("ganscope.share", np.float32(1 / VECTOR))
    tiny = edit.constant("ganscope.tiny", np.float32(TINY))
    edit.instead[out] = [
        *edit.before.get(out, []),
        *(
            helper.make_node(kind, inputs, [to], **about)
            for kind, inputs, to, about in (
                ("ReduceMax", [x, last], f"{out}.high", {"keepdims": 1}),
                ("ReduceMin", [x, last], f"{out}.low", {"keepdims": 1}),
                ("Sub", [f"{out}.high", f"{out}.low"], f"{out}.range", {}),
                ("Mul", [f"{out}.range", share], f"{out}.share", {}),
                ("Max", [f"{out}.share", tiny], f"{out}.step", {}),
                ("Sub", [x, f"{out}.low"], f"{out}.above", {}),
                ("Div", [f"{out}.above", f"{out}.step"], f"{out}.scaled", {}),
                ("QuantizeLinear", [f"{out}.scaled", one, zero], f"{out}.vectors", {}),
                (
                    "MatMulIntegerToFloat",
                    [f"{out}.vectors", weights, one, scales, zero],
                    f"{out}.sums",
                    {"domain": MICROSOFT},
                ),
                ("Mul", [f"{out}.sums", f"{out}.step"], f"{out}.rows", {}),
                ("Mul", [f"{out}.low", columns], f"{out}.shift", {}),
                ("Add", [f"{out}.rows", f"{out}.shift"], out, {}),
            )
        ),
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
    # Not DequantizeLinear: onnxruntime would round the vectors that meet it, too, and be slower.
    shape = [-1 if n == axis else 1 for n in range(packed.ndim)]
    small = edit.constant(f"{name}.bytes", packed)
    scale = edit.constant(f"{name}.steps", steps.reshape(shape))
    wide = f"{name}.wide"
    return [
        helper.make_node("Cast", [small], [wide], to=TensorProto.FLOAT),
        helper.make_node("Mul", [wide, scale], [name]),
    ]


def _widened(edit: _Edit, name: str, value: np.ndarray) -> list[onnx.NodeProto]:
    small = edit.constant(f"{name}.half", value.astype(np.float16))
    return [helper.make_node("Cast", [small], [name], to=TensorProto.FLOAT)]
