"""The architectures that `train-detector --detector NAME` knows, and weights to start them from.

To add one: write its network (logits (N,) from normalised images; `gradcam_layers`; if it has a map
of logits, `patch_logits`) and register a builder here that returns it with its defaults.
"""

import difflib
import os
from dataclasses import dataclass
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ganscope.detector.networks import CNN, NPR, Fused, Patch, TimmNet
from ganscope.errors import GanscopeError, reason_of
from ganscope.registry import Registry

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Defaults:
    """What an architecture wants when the user does not say otherwise."""

    size: int
    """Side of its input crops and tiles in pixels."""
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF
    learning_rate: float = 1e-3
    """AdamW's peak."""


class _Builders(Registry[Any]):
    """Builders (**arguments) -> (network, defaults); an unknown name is told of timm, too."""

    def __missing__(self, name: str) -> Any:
        try:
            return super().__missing__(name)
        except GanscopeError as error:
            raise GanscopeError(f"{error}, and timm:NAME for any backbone of timm") from None


detectors = _Builders("detector architecture")


@detectors.register("cnn")
def cnn(*, width: int = 32, depth: int = 4) -> tuple[nn.Module, Defaults]:
    """DCGAN-like discriminator: strided convolutions, a map of logits, their mean."""
    return CNN(width, depth), Defaults(64)


@detectors.register("npr")
def npr() -> tuple[nn.Module, Defaults]:
    """Neighbouring-pixel residual into the first two stages of a ResNet-50."""
    return NPR(), Defaults(128, IMAGENET_MEAN, IMAGENET_STD, 5e-4)


@detectors.register("patch")
def patch(*, width: int = 32) -> tuple[nn.Module, Defaults]:
    """A logit for every 9x9 patch, averaged."""
    return Patch(width), Defaults(128)


@detectors.register("lite")
def lite(*, stem_stride: int = 1) -> tuple[nn.Module, Defaults]:
    """EfficientNet-Lite0 with an undivided stem: small, general, ImageNet weights fit it."""
    net = TimmNet("tf_efficientnet_lite0", stem_stride=stem_stride)
    return net, Defaults(128, learning_rate=5e-4)


def timm_model(name: str, *, size: int | None = None) -> tuple[nn.Module, Defaults]:
    """A backbone of timm by its name; size: only for networks that are built for one image size."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise GanscopeError(f"timm has no model {name!r}{hint} See timm.list_models()")
    net = TimmNet(name)
    about = net.backbone.pretrained_cfg
    fixed = bool(about.get("fixed_input_size"))
    own_size = int(about["input_size"][-1])
    if fixed and size and size != own_size:
        try:
            net = TimmNet(name, size)
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            raise GanscopeError(
                f"timm:{name} cannot be built for --size {size} ({error})"
            ) from None
    rate = 1e-4 if fixed else 3e-4
    return net, Defaults(size or own_size, tuple(about["mean"]), tuple(about["std"]), rate)


def fused(*, parts: list[dict[str, Any]]) -> tuple[nn.Module, Defaults]:
    """Several networks, each given by its `architecture`, `arguments` and `input`, as one."""
    networks = [build(part["architecture"], **part["arguments"])[0] for part in parts]
    inputs = [part["input"] for part in parts]
    size = max(one["size"] for one in inputs)
    return Fused(networks, inputs), Defaults(size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def build(name: str, **arguments: Any) -> tuple[nn.Module, Defaults]:
    """Build an architecture, untrained: a registered name, timm:<name>, or "fused".

    Raises `GanscopeError` for an unknown name or for arguments that the architecture does not take.
    """
    try:
        if name.startswith("timm:"):
            return timm_model(name.removeprefix("timm:"), **arguments)
        if name == "fused" and arguments:
            return fused(**arguments)
        return detectors[name](**arguments)
    except TypeError as error:
        raise GanscopeError(f"detector {name}: {error}") from None


def is_architecture(name: str) -> bool:
    """Whether a name is one of an architecture to train, not of a trained detector."""
    return name.startswith("timm:") or name in detectors


def load_pretrained(net: nn.Module, weights: str) -> None:
    """Start `net` from a weights file (.safetensors, .pth), or from timm's own with "hub".

    A classifier of another shape is left out. Raises `GanscopeError` if the file cannot be read or
    its keys do not fit, naming them, or if there are no weights to be had.
    """
    if weights == "hub":
        _load_from_hub(net)
        return
    state = _without_wrapping(_read_state(weights))
    prefix = ""
    heads: tuple[str, ...] = ("head.", "fc1.")
    if isinstance(net, TimmNet):
        prefix, heads = "backbone.", tuple(f"backbone.{name}." for name in net.head_names())
        if not any(key.startswith(prefix) for key in state):
            state = {prefix + key: value for key, value in state.items()}
    own = net.state_dict()
    state = {
        key: value
        for key, value in state.items()
        if not (key.startswith(heads) and (key not in own or own[key].shape != value.shape))
    }
    missing = [
        key
        for key in own
        if key not in state and not key.startswith(heads) and "num_batches" not in key
    ]
    faults = {
        "missing": missing,
        "not in the network": [key for key in state if key not in own],
        "of another shape": [k for k in state if k in own and own[k].shape != state[k].shape],
    }
    if any(faults.values()):
        said = "; ".join(f"{what}: {_some(keys)}" for what, keys in faults.items() if keys)
        raise GanscopeError(
            f"--pretrained {weights}: its keys do not fit the architecture ({said})"
        )
    net.load_state_dict(state, strict=False)


def _load_from_hub(net: nn.Module) -> None:
    if not isinstance(net, TimmNet):
        raise GanscopeError(
            "--pretrained hub: timm publishes no weights for this architecture; "
            "use --detector lite or timm:NAME, or name a weights file"
        )
    try:
        source = timm.create_model(net.name, pretrained=True, num_classes=1, **net.options)
    except (OSError, RuntimeError, ValueError) as error:
        reason = reason_of(error)
        raise GanscopeError(
            f"--pretrained hub: the weights of {net.name} are not to be had ({reason}); "
            "offline, name a weights file"
        ) from None
    heads = tuple(f"{name}." for name in net.head_names())
    state = {k: v for k, v in source.state_dict().items() if not k.startswith(heads)}
    net.backbone.load_state_dict(state, strict=False)


def _read_state(path: str) -> dict[str, Any]:
    if not os.path.isfile(path):
        raise GanscopeError(f"--pretrained {path}: no such file")
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
        raise GanscopeError(f"--pretrained {path}: cannot be read ({error})") from None
    except Exception as error:  # pickle.UnpicklingError and its kin share no other base
        raise GanscopeError(f"--pretrained {path}: not a file of plain weights ({error})") from None
    return state


def _without_wrapping(state: Any) -> dict[str, Tensor]:
    """The tensors inside {"state_dict": ...} or {"model": ...}, names without module. and net."""
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict):
        raise GanscopeError("--pretrained: the file holds no dictionary of weights")
    return {
        key.removeprefix("module.").removeprefix("net."): value.float()
        if value.is_floating_point()
        else value
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def _some(keys: list[str], most: int = 5) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
