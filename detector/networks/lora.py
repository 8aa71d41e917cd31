"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) on the matrices of a transformer.

While it learns, a matrix W acts as W + B @ A, with A (rank, in) and B (out, rank); W itself stays.
Afterwards the product is added to W, and the network is as it was before, with other weights.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganscope.detector.networks.transformer import BlockFeatures
from ganscope.detector.networks.weights import load_strictly
from ganscope.errors import GanscopeError

ADAPTED = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
"""The matrices of a block that get an adapter, as timm names them."""
ALSO = ("norm_pre.", "norm1.", "norm2.")
"""Parts of the names of what an adapter file holds whole, because it is small: the norms."""


class LowRank(nn.Module):
    """A linear layer and its adapter; begins as the layer alone (B is 0)."""

    def __init__(self, layer: nn.Linear, rank: int):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.A = nn.Parameter(torch.empty(rank, layer.in_features, device=layer.weight.device))
        self.B = nn.Parameter(torch.zeros(layer.out_features, rank, device=layer.weight.device))
        nn.init.normal_(self.A, std=layer.in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + F.linear(F.linear(x, self.A), self.B)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        self.layer.weight += self.B @ self.A
        return self.layer.requires_grad_(True)


def _matrices(backbone: Any) -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
    """Name within the backbone, the module that holds it, its name there, and the matrix."""
    for number, block in enumerate(backbone.blocks):
        for name in ADAPTED:
            place, _, last = name.rpartition(".")
            holder = block.get_submodule(place)
            yield f"blocks.{number}.{name}", holder, last, getattr(holder, last)


def _is_norm(key: str) -> bool:
    return any(f".{name}" in f".{key}" for name in ALSO)


def add_adapters(
    net: BlockFeatures, rank: int, blocks: int | None = None, backbone: str = "backbone"
) -> None:
    """Give the matrices of the last `blocks` blocks (None: all) adapters of this rank; of the
    network's part `backbone`.

    Raises `GanscopeError` for a transformer whose blocks are built otherwise.
    """
    whole = getattr(net, backbone)
    first = 0 if blocks is None else len(whole.blocks) - blocks
    try:
        for name, holder, last, layer in list(_matrices(whole)):
            if int(name.split(".")[1]) >= first:
                if not isinstance(layer, nn.Linear):
                    raise AttributeError(f"{name} is no linear layer")
                setattr(holder, last, LowRank(layer, rank))
    except AttributeError as error:
        raise GanscopeError(
            f"{net.name}: its blocks lack the matrices that adapters go to ({error}); "
            "take another transformer, or another --recipe"
        ) from None


def merge_adapters(net: BlockFeatures, backbone: str = "backbone") -> None:
    """Add every adapter of a part to its matrix, and leave the plain network."""
    for _, holder, last, layer in list(_matrices(getattr(net, backbone))):
        if isinstance(layer, LowRank):
            setattr(holder, last, layer.merged())


@torch.no_grad()
def apply_adapters(net: BlockFeatures, state: dict[str, Tensor], said: str) -> None:
    """Add the adapters of a file to a plain network, and take its norms and its classifier.

    state: `blocks.N.MATRIX.A` and `.B` for each matrix, the norms whole, and the classifier as
    `head` (for the features without the map's) and `patch` (for the map), `curve` where it has one.
    said: how the user named the file. Raises `GanscopeError` if the adapters are those of another
    network.
    """
    matrices = {name: layer for name, _, _, layer in _matrices(net.backbone)}
    named = {key.rpartition(".")[0] for key in state if key.endswith((".A", ".B"))}
    unknown = sorted(named - set(matrices))
    if not named or unknown:
        raise GanscopeError(
            f"{said}: holds no adapters of {net.name} "
            f"({'unknown: ' + unknown[0] if unknown else 'no matrix has any'})"
        )
    heads = [f"{name}.{part}" for name in ("head", "patch") for part in ("weight", "bias")]
    if missing := [name for name in heads if name not in state]:
        raise GanscopeError(f"{said}: holds no {missing[0]}, a part of the classifier")
    own = net.backbone.state_dict()
    wanted: dict[str, Tensor] = {}
    for name in named:
        a, b = state.get(f"{name}.A"), state.get(f"{name}.B")
        weight = own[f"{name}.weight"]
        if (
            a is None
            or b is None
            or (b.shape[0], a.shape[1]) != weight.shape
            or len(a) != b.shape[1]
        ):
            raise GanscopeError(
                f"{said}: the adapter of {name} does not fit a matrix of {tuple(weight.shape)}"
            )
        wanted[f"{name}.weight"] = weight + b.float() @ a.float()
    for key, value in state.items():
        if _is_norm(key):
            if key not in own or own[key].shape != value.shape:
                raise GanscopeError(f"{said}: {key} does not fit {net.name}")
            wanted[key] = value.float()
    load_strictly(net.backbone, {**own, **wanted}, said)
    weight = torch.cat([state["head.weight"], state["patch.weight"]], 1).float()
    if weight.shape != net.head.weight.shape:
        raise GanscopeError(
            f"{said}: its classifier is for {weight.shape[1]} features, not {net.head.in_features}"
        )
    net.head.weight.copy_(weight)
    net.head.bias.copy_((state["head.bias"] + state["patch.bias"]).float())
    curve = {key.removeprefix("curve."): v for key, v in state.items() if key.startswith("curve.")}
    if curve:
        if net.curve is None:
            raise GanscopeError(f"{said}: has a curved classifier, and this network has none")
        load_strictly(net.curve, {key: value.float() for key, value in curve.items()}, said)


def adapters_of(net: BlockFeatures) -> dict[str, Tensor]:
    """What `apply_adapters` reads, of a network that has adapters: all that it learned, small."""
    found: dict[str, Tensor] = {}
    for name, _, _, layer in _matrices(net.backbone):
        if isinstance(layer, LowRank):
            found |= {f"{name}.A": layer.A.detach(), f"{name}.B": layer.B.detach()}
    for key, value in net.backbone.state_dict().items():
        if _is_norm(key):
            found[key] = value
    width = net.width
    found["head.weight"] = net.head.weight.detach()[:, :-width]
    found["patch.weight"] = net.head.weight.detach()[:, -width:]
    found["head.bias"] = net.head.bias.detach()
    found["patch.bias"] = torch.zeros_like(net.head.bias)
    if net.curve is not None:
        found |= {f"curve.{key}": value for key, value in net.curve.state_dict().items()}
    return found
