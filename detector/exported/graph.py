"""A transformer read at several depths (`networks.transformer.BlockFeatures`) as an ONNX graph,
made from its weights alone, without torch.

Pixels go in as bytes (N, size, size, 3); out come `logits` (N,) and the map `places` (N, h, w).
"""

import io
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ganscope.detector.networks.face_head import PARTS, FaceHead, unbiased, zones
from ganscope.detector.networks.reads import usual_reads
from ganscope.errors import GanscopeError
from ganscope.named import SCALE, scale_of, with_steps

FLOAT = TensorProto.FLOAT
OPSET, IR = 20, 10
MICROSOFT = "com.microsoft"
"""Where onnxruntime keeps the attention of a whole block as one operation."""
CLIP_B16: dict[str, Any] = {"patch": 16, "heads": 12, "blocks": 12, "epsilon": 1e-5, "gelu": 1.702}
"""What the weights of OpenAI's ViT-B/16 do not tell: attention heads, and how its GELU is made."""
PIXELS, LOGITS, PLACES = "pixels", "logits", "places"
LAST = (1 << 31) - 1


class Graph:
    """Nodes and constants, in the order in which they are added; names are made up."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.count = 0

    def constant(self, value: Any, name: str = "") -> str:
        array = np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        name = name or self._free("c")
        if any(one.name == name for one in self.constants):
            return name  # another part of the network uses it, too
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(
        self, operation: str, *inputs: Any, outputs: int = 1, named: str = "", **about: Any
    ) -> Any:
        """The name of an operation's output, or a list of them; inputs: names, or constants."""
        names = [one if isinstance(one, str) else self.constant(one) for one in inputs]
        found = [named] if named else [self._free("t") for _ in range(outputs)]
        self.nodes.append(helper.make_node(operation, names, found, **about))
        return found[0] if outputs == 1 else found

    def _free(self, letter: str) -> str:
        self.count += 1
        return f"{letter}{self.count}"

    def model(self, inputs: list[Any], outputs: list[Any]) -> onnx.ModelProto:
        whole = helper.make_graph(self.nodes, "ganscope", inputs, outputs, self.constants)
        sets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(whole, opset_imports=sets, ir_version=IR, producer_name="ganscope")


def transformer_graph(
    config: dict[str, Any],
    weights: dict[str, np.ndarray],
    portable: bool = False,
    face: FaceHead | None = None,
    outputs: Collection[str] = (LOGITS, PLACES),
) -> onnx.ModelProto:
    """The graph of a `clip` detector, in float32, from its `config.json` and its weights by name.

    weights: as in the weights file, but whole (`plain_weights`), or with the way from `plain` to
    the fine-tuned matrices apart: then they share those of `plain`. portable: nothing but ONNX'
    own operations, for other programs than onnxruntime. face: the graph of this instead, whose
    `logits` say whether a face was swapped; of the untouched backbone, without a map. outputs:
    what comes out, both or one of them. Raises `ValueError` for weights that are not of such a
    network, and for arguments that this does not know.
    """
    arguments = dict(config["arguments"])
    size = config["input"]["size"]
    reads, map_block, where = (
        arguments.pop(name, None) for name in ("reads", "map_block", "where")
    )
    where = [] if where is None else [where] if isinstance(where, int) else list(where)
    where_plain, where_own = (list(arguments.pop(f"where_{one}", ())) for one in ("plain", "own"))
    curved, beside = arguments.pop("hidden", 0), arguments.pop("beside", 0)
    arguments.pop("size", None)
    if arguments:
        raise ValueError(f"arguments {sorted(arguments)}")
    if where_plain and not (where and beside):
        raise ValueError("where_plain without beside and where")
    usual, usual_map = usual_reads(CLIP_B16["blocks"], prefix=True)
    if reads is None:
        reads, map_block = usual, usual_map if map_block is None else map_block
    reads = [(int(block), str(what)) for block, what in reads]
    last_read = max(block for block, _ in reads)
    map_block = last_read if map_block is None else map_block
    depth = max(last_read, map_block, *where, *where_plain) + 1
    if face is not None:
        depth = face.block + 1
    patch, heads, epsilon = (CLIP_B16[name] for name in ("patch", "heads", "epsilon"))
    grid = size // patch
    graph = Graph()
    add = graph.add

    def of(key: str) -> np.ndarray:
        if f"net.{key}" not in weights:
            raise ValueError(f"no {key}")
        return weights[f"net.{key}"]

    def norm(x: str, key: str) -> str:
        scale, shift = of(f"{key}.weight"), of(f"{key}.bias")
        return add("LayerNormalization", x, scale, shift, axis=-1, epsilon=epsilon)

    def linear(x: str, key: str) -> str:
        down, up = (weights.get(f"net.{key}.weight.{part}") for part in "AB")
        apart = down is not None and up is not None
        whole = f"plain.{key.partition('.')[2]}" if apart else key
        found = add("MatMul", x, graph.constant(of(f"{whole}.weight").T, whole))
        if down is not None and up is not None:
            found = add("Add", found, add("MatMul", add("MatMul", x, down.T), up.T))
        return add("Add", found, of(f"{key}.bias"))

    def attention(x: str, key: str) -> str:
        q, k, v = add("Split", linear(x, f"{key}.qkv"), outputs=3, axis=-1, num_outputs=3)
        if not portable:
            return add("MultiHeadAttention", q, k, v, domain=MICROSOFT, num_heads=heads)
        shape = graph.constant(np.array([0, 0, heads, width // heads]))
        q, k, v = (
            add("Transpose", add("Reshape", one, shape), perm=perm)
            for one, perm in ((q, [0, 2, 1, 3]), (k, [0, 2, 3, 1]), (v, [0, 2, 1, 3]))
        )
        logits = add("MatMul", add("Mul", q, np.float32((width // heads) ** -0.5)), k)
        found = add("MatMul", add("Softmax", logits, axis=-1), v)
        found = add("Transpose", found, perm=[0, 2, 1, 3])
        return add("Reshape", found, np.array([0, 0, width]))

    def gelu(x: str) -> str:
        if not portable:
            return add("QuickGelu", x, domain=MICROSOFT, alpha=CLIP_B16["gelu"])
        return add("Mul", x, add("Sigmoid", add("Mul", x, np.float32(CLIP_B16["gelu"]))))

    kernel = of("backbone.patch_embed.proj.weight")
    width = len(kernel)
    one, zero = np.ones(width, np.float32), np.zeros(width, np.float32)
    tokens = np.array([1])

    def cut(x: str, first: int, last: int) -> str:
        return add("Slice", x, np.array([first]), np.array([last]), tokens)

    def mean_of(x: str) -> str:
        return add("ReduceMean", x, tokens, keepdims=1)

    def embedded(encoder: str) -> str:
        # The patches' convolution does not overlap, so it is a matrix; it takes in the
        # normalisation.
        kernel = of(f"{encoder}.patch_embed.proj.weight")
        mean, std = (np.array(config["input"][name], np.float64) for name in ("mean", "std"))
        shift = -(kernel.astype(np.float64) * (mean / std)[:, None, None]).sum((1, 2, 3))
        kernel = kernel / (255 * std)[:, None, None]
        matrix = kernel.transpose(2, 3, 1, 0).reshape(-1, width).astype(np.float32)
        x = add("Cast", PIXELS, to=FLOAT)
        x = add("Reshape", x, np.array([-1, grid, patch, grid, patch, 3]))
        x = add("Transpose", x, perm=[0, 1, 3, 2, 4, 5])
        x = add("Reshape", x, np.array([-1, grid * grid, 3 * patch * patch]))
        x = add("MatMul", x, matrix)
        places = of(f"{encoder}.pos_embed").astype(np.float64)
        if places.shape != (1, grid * grid + 1, width):
            raise ValueError(f"positions of shape {places.shape} for images of {size} pixels")
        places = np.concatenate([places[:, :1], places[:, 1:] + shift], 1)
        count = add("Slice", add("Shape", PIXELS), np.array([0]), np.array([1]))
        begin = add("Concat", count, np.array([1, 1]), axis=0)
        x = add("Concat", add("Expand", of(f"{encoder}.cls_token"), begin), x, axis=1)
        return norm(add("Add", x, places), f"{encoder}.norm_pre")

    def blocks_of(encoder: str, looked_at: list[int], depth: int = depth) -> list[str]:
        """The tokens after each block; looked_at: blocks whose single patches somebody looks at."""
        x, after = embedded(encoder), []
        for number in range(depth):
            block = f"{encoder}.blocks.{number}"
            found = attention(norm(x, f"{block}.norm1"), f"{block}.attn")
            x = add("Add", x, linear(found, f"{block}.attn.proj"))
            found = gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
            if number == depth - 1 and number not in looked_at:
                # The mean of sums is the sum of means.
                x, found = (
                    add("Concat", cut(y, 0, 1), mean_of(cut(y, 1, LAST)), axis=1)
                    for y in (x, found)
                )
            x = add("Add", x, linear(found, f"{block}.mlp.fc2"))
            after.append(x)
        return after

    def plain(x: str) -> str:
        return add("LayerNormalization", x, one, zero, axis=-1, epsilon=1e-5)

    def features_of(after: list[str], of_map: str) -> str:
        parts = [
            plain(cut(after[block], 0, 1) if what == "cls" else mean_of(cut(after[block], 1, LAST)))
            for block, what in reads
        ]
        return add("Squeeze", add("Concat", *parts, mean_of(of_map), axis=2), tokens)

    def bend(features: str, key: str) -> str:
        bent = add("Gemm", features, of(f"{key}.0.weight").T, of(f"{key}.0.bias"))
        return add("Gemm", add("Gelu", bent), of(f"{key}.2.weight").T, of(f"{key}.2.bias"))

    pixels = helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, ["N", size, size, 3])
    told = helper.make_tensor_value_info(LOGITS, FLOAT, ["N"])
    if face is not None:
        if face.weight.shape != (PARTS * width,):
            raise ValueError(f"a classifier of faces of shape {face.weight.shape}")
        x = blocks_of("plain" if beside else "backbone", [face.block])[-1]
        patches, within = plain(cut(x, 1, LAST)), zones(grid, face.margin)
        mean = add("MatMul", within, patches)
        square = add("MatMul", within, add("Mul", patches, patches))
        spread = add("Mul", add("Sub", square, add("Mul", mean, mean)), unbiased(within))
        spread = add("Sqrt", add("Relu", spread))
        parts = add("Concat", plain(cut(x, 0, 1)), mean, spread, axis=1)
        parts = add("Reshape", parts, np.array([-1, PARTS * width]))
        found = add("Gemm", parts, face.weight[:, None], np.array([face.bias], np.float32))
        add("Squeeze", found, tokens, named=LOGITS)
        return graph.model([pixels], [told])

    def of_patches(block: int, after: list[str]) -> str:
        return plain(cut(after[block], 1, LAST))

    def map_of(looked: list[str]) -> None:
        shares = np.split(of("where.weight").T, len(looked))
        found = [add("MatMul", *pair) for pair in zip(looked, shares, strict=True)]
        local = add("Squeeze", add("Sum", *found), np.array([2]))
        local = add("Add", local, of("where_bias"))
        add("Reshape", local, np.array([-1, grid, grid]), named=PLACES)

    mapped = helper.make_tensor_value_info(PLACES, FLOAT, ["N", grid, grid])
    own: list[str] = []
    if where_own and PLACES in outputs:
        third = blocks_of("local", where_own, max(where_own) + 1)
        own = [of_patches(block, third) for block in sorted(set(where_own))]
        if not (where or where_plain or LOGITS in outputs):
            map_of(own)
            return graph.model([pixels], [mapped])
    after = blocks_of("backbone", [map_block, *where])
    of_map = of_patches(map_block, after)
    features = features_of(after, of_map)
    head = of("head.weight")
    if head.shape != (1, width * (len(reads) + 1)):
        raise ValueError(f"a classifier of shape {head.shape} for {len(reads) + 1} parts")
    logits = add("Gemm", features, head.T, of("head.bias"))
    if curved:
        logits = add("Add", logits, bend(features, "curve"))
    if beside:
        second = blocks_of("plain", [map_block, *where_plain])
        of_second = of_patches(map_block, second)
        logits = add("Add", logits, bend(features_of(second, of_second), "beside"))
    logits = add("Squeeze", logits, tokens, named=LOGITS)
    if PLACES not in outputs:
        return graph.model([pixels], [told])
    if where or where_own:
        looked = [of_patches(block, after) for block in where]
        looked += [of_patches(block, second) for block in where_plain]
        map_of([*looked, *own])
    else:
        local = add("Squeeze", add("MatMul", of_map, head[:, -width:].T), np.array([2]))
        local = add("Sub", local, mean_of(local))
        local = add("Add", local, add("Unsqueeze", logits, tokens))
        add("Reshape", local, np.array([-1, grid, grid]), named=PLACES)
    return graph.model([pixels], [told, mapped] if LOGITS in outputs else [mapped])


def amplitudes() -> dict[str, np.ndarray]:
    """Name of a matrix in the graph -> how large the channels grow that it meets (K,), in forty
    views of photographs and fakes, in the `default` detector; those of one that learned from the
    same CLIP, and of that itself (`plain`), are much the same.
    """
    whole = np.load(io.BytesIO(Path(__file__).with_name("amplitudes.npz").read_bytes()))
    return {
        f"{encoder}.blocks.{number}.{name}": row
        for encoder in ("backbone", "plain", "local")
        for name in whole.files
        for number, row in enumerate(whole[name])
    }


def plain_weights(
    state: dict[str, np.ndarray], config: dict[str, Any], said: str, whole: bool = True
) -> dict[str, np.ndarray]:
    """Weights of a file as they are computed with: float32, bytes times their scales.

    config: of the detector. whole: matrices that are kept as the way from others are made whole,
    else only what is not there at all is taken from these. said: where they are from. Raises
    `GanscopeError` if a matrix of bytes has no scales, or none that fit, and for numbers that are
    not finite.
    """
    found = {}
    packed = {key for key, value in state.items() if value.dtype == np.int8}
    for key, value in state.items():
        if key in packed:
            scale = scale_of(state, key, said)
            rows = scale.astype(np.float32).reshape(-1, *[1] * (value.ndim - 1))
            found[key] = value.astype(np.float32) * rows
        elif key.removesuffix(SCALE) not in packed:
            found[key] = value.astype(np.float32)
        if key in found and not np.isfinite(found[key]).all():
            raise GanscopeError(f"{said} holds NaN or infinity in {key!r}")
    complete = with_steps(found, config, said)
    if whole:
        return complete
    apart = {key: value for key, value in found.items() if key.endswith((".A", ".B"))}
    return {**complete, **apart}
