"""The architectures that `train-detector --detector NAME` knows, and weights to start them from.

To add one: write its network (logits (N,) from normalised images; `gradcam_layers`; if it has a map
of logits, `patch_logits`) and register a builder here that returns it with its defaults.
"""

import difflib
import warnings
from dataclasses import dataclass
from typing import Any

import timm
from torch import Tensor, nn

from ganscope.detector.networks.backbones import TimmNet
from ganscope.detector.networks.convolutional import CNN, NPR, Patch
from ganscope.detector.networks.fused import Fused
from ganscope.detector.networks.transformer import BlockFeatures
from ganscope.detector.networks.weights import load_from_hub, load_strictly, read_weights
from ganscope.errors import GanscopeError, GanscopeWarning
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
            raise GanscopeError(
                f"{error}, timm:NAME for any backbone of timm, and vit:NAME for a transformer of "
                "timm read at several blocks"
            ) from None


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
def lite(*, stem_stride: int = 1, where: bool = False) -> tuple[nn.Module, Defaults]:
    """EfficientNet-Lite0 with an undivided stem: small, general, ImageNet weights fit it."""
    net = TimmNet("tf_efficientnet_lite0", stem_stride=stem_stride, where=where)
    return net, Defaults(128, learning_rate=5e-4)


CLIP = "vit_base_patch16_clip_quickgelu_224"
"""OpenAI's ViT-B/16, as timm calls it; its namesake without quickgelu computes other features."""


@detectors.register("clip")
def clip(**arguments: Any) -> tuple[nn.Module, Defaults]:
    """CLIP's ViT-B/16, read at several blocks, the last two cut off; for fine-tuning."""
    return transformer(CLIP, **arguments)


def transformer(name: str, **arguments: Any) -> tuple[nn.Module, Defaults]:
    """A vision transformer of timm by its name, read at several blocks (`BlockFeatures`)."""
    if not timm.is_model(name):
        raise GanscopeError(_no_such_model(name))
    try:
        net = BlockFeatures(name, **arguments)
    except (AttributeError, AssertionError, RuntimeError, ValueError) as error:
        raise GanscopeError(
            f"vit:{name} cannot be read at several blocks ({error}); take a vision transformer of "
            f"timm, or timm:{name}"
        ) from None
    about = net.backbone.pretrained_cfg
    size = arguments.get("size") or int(about["input_size"][-1])
    return net, Defaults(size, tuple(about["mean"]), tuple(about["std"]), 3e-4)


def timm_model(
    name: str, *, size: int | None = None, where: bool = False
) -> tuple[nn.Module, Defaults]:
    """A backbone of timm by its name; size: only for networks that are built for one image size;
    where: as in `TimmNet`.
    """
    if not timm.is_model(name):
        raise GanscopeError(_no_such_model(name))
    try:
        net = TimmNet(name, where=where)
    except ValueError as error:
        raise GanscopeError(f"timm:{name}: {error}; take timm:resnet18 or lite") from None
    about = net.backbone.pretrained_cfg
    fixed = bool(about.get("fixed_input_size"))
    own_size = int(about["input_size"][-1])
    if fixed and size and size != own_size:
        try:
            net = TimmNet(name, size, where=where)
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            raise GanscopeError(
                f"timm:{name} cannot be built for --size {size} ({error})"
            ) from None
    rate = 1e-4 if fixed else 3e-4
    return net, Defaults(size or own_size, tuple(about["mean"]), tuple(about["std"]), rate)


def _no_such_model(name: str) -> str:
    near = difflib.get_close_matches(name, timm.list_models(), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"timm has no model {name!r}{hint} See timm.list_models()"


def fused(*, parts: list[dict[str, Any]]) -> tuple[nn.Module, Defaults]:
    """Several networks, each given by its `architecture`, `arguments` and `input`, as one."""
    networks = [build(part["architecture"], **part["arguments"])[0] for part in parts]
    inputs = [part["input"] for part in parts]
    size = max(one["size"] for one in inputs)
    return Fused(networks, inputs), Defaults(size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def build(name: str, **arguments: Any) -> tuple[nn.Module, Defaults]:
    """Build an architecture, untrained: a registered name, timm:<name>, vit:<name>, or "fused".

    Raises `GanscopeError` for an unknown name or for arguments that the architecture does not take.
    """
    try:
        if name.startswith("timm:"):
            return timm_model(name.removeprefix("timm:"), **arguments)
        if name.startswith("vit:"):
            return transformer(name.removeprefix("vit:"), **arguments)
        if name == "fused" and arguments:
            return fused(**arguments)
        return detectors[name](**arguments)
    except (TypeError, ValueError) as error:
        raise GanscopeError(f"detector {name}: {error}") from None


def is_architecture(name: str) -> bool:
    """Whether a name is one of an architecture to train, not of a trained detector."""
    return name.startswith(("timm:", "vit:")) or name in detectors


def is_read_at_blocks(name: str) -> bool:
    """Whether an architecture is a transformer read at several blocks (`BlockFeatures`)."""
    return name == "clip" or name.startswith("vit:")


def load_pretrained(net: nn.Module, weights: str) -> None:
    """Start `net` from a weights file (.safetensors, .pth), or from timm's own with "hub".

    A classifier of another shape is left out. Raises `GanscopeError` if the file cannot be read or
    its keys do not fit, naming them, or if there are no weights to be had.
    """
    if weights == "hub":
        _load_from_hub(net)
        return
    said = f"--pretrained {weights}"
    load_weights(net, read_weights(weights, said), said)


def load_weights(net: nn.Module, state: dict[str, Tensor], said: str) -> None:
    """Start `net` from weights; a classifier of another shape is left out.

    said: how the user named them. Raises `GanscopeError` if their keys do not fit, naming them.
    """
    prefix = ""
    heads: tuple[str, ...] = ("head.", "fc1.")
    if isinstance(net, BlockFeatures):
        prefix, heads = "backbone.", ("head.", "curve.", "where", "beside.", "plain.", "local.")
        if not any(key.startswith(prefix) for key in state):
            state = net.of_backbone(state)
        if net.plain is None and any(key.startswith("plain.") for key in state):
            warnings.warn(
                f"{said}: its second reading, by a backbone that no training touched, is left out: "
                "what is trained begins with the first alone",
                GanscopeWarning,
                stacklevel=2,
            )
        state = net.at_own_size(state)
        state = net.twin_of(state) | state
    elif isinstance(net, TimmNet):
        prefix, heads = "backbone.", (*(f"backbone.{name}." for name in net.head_names()), "where.")
        if not any(key.startswith(prefix) for key in state):
            state = {prefix + key: value for key, value in state.items()}
    own = net.state_dict()
    state = {
        key: value
        for key, value in state.items()
        if not (key.startswith(heads) and (key not in own or own[key].shape != value.shape))
    }
    load_strictly(net, state, said, may_lack=heads)


def _load_from_hub(net: nn.Module) -> None:
    heads: tuple[str, ...]
    if isinstance(net, BlockFeatures):
        whole = load_from_hub(
            net.name, "--pretrained hub", "name a weights file", num_classes=0, **net.options
        )
        heads = ("head.", "curve.", "where", "beside.", "plain.", "local.")
        state = net.of_backbone(whole.state_dict())
        load_strictly(net, state | net.twin_of(state), "--pretrained hub", may_lack=heads)
        return
    if not isinstance(net, TimmNet):
        raise GanscopeError(
            "--pretrained hub: timm publishes no weights for this architecture; "
            "use --detector lite or timm:NAME, or name a weights file"
        )
    source = load_from_hub(
        net.name, "--pretrained hub", "name a weights file", num_classes=1, **net.options
    )
    heads = tuple(f"{name}." for name in net.head_names())
    state = {k: v for k, v in source.state_dict().items() if not k.startswith(heads)}
    net.backbone.load_state_dict(state, strict=False)
