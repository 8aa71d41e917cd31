"""A trained detector: images in, logits out; saved in and loaded from a folder.

The configuration carries all that turns a file into a verdict - input size and normalisation,
calibration, thresholds - so that preprocessing cannot drift from the weights.
"""

import time
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from ganscope.detector.judge import BATCH, Judge, check_config
from ganscope.detector.networks.architectures import build, load_pretrained, load_weights
from ganscope.detector.networks.face_head import FaceHead
from ganscope.detector.networks.transformer import BlockFeatures
from ganscope.devices import batch_for, multiplies_bf16, pick_device, to_device
from ganscope.errors import GanscopeError, reason_of
from ganscope.folders import FolderModel, shipped
from ganscope.named import faulty
from ganscope.prints import LEARNED, Prints

RULE = "native tiles, small images padded by reflection"
VIEWS_RULE = "views at native resolution and of the whole, small images enlarged"
WHOLE, SETTLED = 8 / 7, -2.0
"""What a detector with a backbone looks at (`judging.views.cut_views`): the whole, with a short
side of so many views, of which the middle is cut; and the logit of a first look below which the
other views are not looked at. From which on it is fake at first sight, only figures can say."""
BF16_MARGIN = 0.45
"""Logits: those of a view in bf16 and exact ones hardly ever differ by more. In 48 pictures, views
differed by 0.08, means of two by 0.07 and of four by 0.05 (standard deviations), at most by 0.46
and 0.32."""
SIZES = (16, 32, 48, 64, 96, 128, 160, 192, 224, 240, 256, 288, 299, 320, 384, 448, 512)
NAMED, LOOKING = 3, 30.0
"""Sides in pixels that are tried where a network does not take the one it was asked for, the
nearest first; so many are named, if they are found in so many seconds."""


class Detector(FolderModel, Judge):
    """images (N, 3, H, W) float RGB in [0, 1] -> logits (N,), higher = more likely fake.

    config: `architecture` ("cnn", "timm:resnet18"), `arguments` (for its builder), `input` (size,
    mean, std, rule, smallest; `views`, where it looks at views instead of tiles), `calibration`
    (scale, shift), `thresholds` (fake, real, fpr_1, fpr_5; on the score), `training`, `versions`;
    trained ones also `false_alarms` (of photographs that it did not learn from: how many there
    were, how many it called fake, and at most which share it does).
    """

    kind = "detectors"
    runtime = "torch"

    def __init__(self, config: dict[str, Any], net: nn.Module | None = None):
        super().__init__(config)
        self.net = net or build(config["architecture"], **config["arguments"])[0]
        self._learned: Prints | None = None
        self._batch: int | None = None
        self._face_head: FaceHead | None = None
        self._quick: tuple[BlockFeatures, ...] = ()
        """The network in bf16, where there is one; no part of what is saved."""
        shape = (1, 3, 1, 1)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer(
            "mean", torch.tensor(config["input"]["mean"]).view(shape), persistent=False
        )
        self.register_buffer(
            "std", torch.tensor(config["input"]["std"]).view(shape), persistent=False
        )

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The network without weights: they need not be drawn only to be replaced, and take no
        memory, however large a configuration says that they are.
        """
        check_config(config)
        training = config.get("training")
        config["training"] = training if isinstance(training, dict) else {}
        corpora = config["training"].get("corpora", [])
        if not (isinstance(corpora, list) and all(isinstance(name, str) for name in corpora)):
            config["training"]["corpora"] = []  # a record only: no verdict depends on it
        with init_empty_weights(include_buffers=False):
            return cls(config)

    @classmethod
    def create(
        cls,
        architecture: str,
        *,
        size: int | None = None,
        pretrained: str | None = None,
        **arguments: Any,
    ) -> Self:
        """A new detector, untrained or started from `pretrained`; its thresholds are 0.5.

        pretrained: see `load_pretrained`, or a shipped detector or run folder of this architecture.
        size: side of the input tiles, None: the architecture's own. arguments: for its builder.
        Raises `GanscopeError` for what `build` and `load_pretrained` refuse, and for a size that
        the network does not take.
        """
        if size and (architecture.startswith(("timm:", "vit:")) or architecture == "clip"):
            arguments["size"] = size
        net, defaults = build(architecture, **arguments)
        if architecture != "fused":
            _refuse_misfit(net, architecture, size or defaults.size, arguments)
        if pretrained and (Path(pretrained).is_dir() or pretrained in shipped(cls.kind)):
            other = cls.load(pretrained)
            found = other.config["architecture"]
            if found != architecture:
                raise GanscopeError(
                    f"--pretrained {pretrained}: a {found} detector, not a {architecture}"
                )
            load_weights(net, other.net.state_dict(), f"--pretrained {pretrained}")
        elif pretrained:
            load_pretrained(net, pretrained)
        looking: dict[str, Any] = {"rule": RULE}
        if isinstance(net, BlockFeatures):
            whole = round(WHOLE * (size or defaults.size))
            looking = {"rule": VIEWS_RULE, "views": {"whole": whole, "settled": SETTLED}}
        return cls(
            {
                "architecture": architecture,
                "arguments": arguments,
                "input": {
                    "size": size or defaults.size,
                    "mean": list(defaults.mean),
                    "std": list(defaults.std),
                    **looking,
                },
                "calibration": {"scale": 1.0, "shift": 0.0},
                "thresholds": {"fake": 0.5, "real": 0.5, "fpr_1": 0.5, "fpr_5": 0.5},
                "training": {"learning_rate": defaults.learning_rate},
                "versions": {},
            },
            net,
        )

    @property
    def learned(self) -> Prints | None:
        """The prints of the images that it learned from and was calibrated by; None: not known."""
        if self._learned is None and self.folder:
            self._learned = Prints.load(self.folder / LEARNED)
        return self._learned

    @learned.setter
    def learned(self, prints: Prints) -> None:
        self._learned = prints

    @classmethod
    def load(cls, name: str | Path) -> Self:
        """As `FolderModel.load`, with what tells swapped faces, where the folder has that.

        Raises `GanscopeError` for a network that takes no images of its configuration's size, too.
        """
        found = super().load(name)
        if misfit := _misfit(found.net, found.size):
            raise faulty(name, f"input: size is {found.size}, of which it takes none: {misfit}")
        if found.folder and isinstance(found.net, BlockFeatures):
            found._face_head = FaceHead.load(found.folder)
        return found

    def save(self, folder: str | Path) -> None:
        """As `FolderModel.save`, and what it learned from, where that is known, and what tells
        swapped faces, where it has that.
        """
        if self.learned is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.learned.save(Path(folder) / LEARNED)
        super().save(folder)
        if self.face_head is not None:
            self.face_head.save(Path(folder))

    def normalised(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        return self.net(self.normalised(images))

    def prepare(self, device: str = "auto") -> None:
        self.to(pick_device(device)).eval()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def quicken(self) -> None:
        """Judge in bf16 on a CPU that is made for it, some three times as quickly as in float32.
        What that leaves in doubt (`margin`), and maps, stay exact. Nothing changes elsewhere.
        """
        if isinstance(self.net, BlockFeatures) and multiplies_bf16(self.mean.device):
            self._quick, self.margin = (self.net.eval().in_bf16(),), BF16_MARGIN

    @property
    def on_cpu(self) -> bool:
        return self.mean.device.type == "cpu"  # not every network has parameters

    def batch(self) -> int:
        """On a GPU by what is free there and what a picture takes: measured once a loaded network,
        with a forward pass.
        """
        device = self.mean.device
        if device.type != "cuda":
            return BATCH
        if self._batch is None:
            torch.cuda.synchronize(device)
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            self.logits(np.zeros((BATCH, self.size, self.size, 3), np.uint8))
            took = torch.cuda.max_memory_allocated(device) - before
            self._batch = batch_for(torch.cuda.mem_get_info(device)[0], took / BATCH)
        return self._batch

    @torch.inference_mode()
    def logits(self, pixels: np.ndarray) -> np.ndarray:
        if not (self._quick and self.on_cpu):
            return self.exact_logits(pixels)
        return self._quick[0](self.normalised(self._images(pixels))).numpy()

    @torch.inference_mode()
    def exact_logits(self, pixels: np.ndarray) -> np.ndarray:
        images = self._images(pixels).contiguous(memory_format=torch.channels_last)
        return self(images).float().cpu().numpy()

    @property
    def face_head(self) -> FaceHead | None:
        return self._face_head

    @torch.inference_mode()
    def face_logits(self, pixels: np.ndarray) -> np.ndarray:
        net, head = self.net, self.face_head
        assert isinstance(net, BlockFeatures)
        assert head is not None
        return net.face_logits(self.normalised(self._images(pixels)), head).cpu().numpy()

    @torch.inference_mode()
    def local_logits(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images = self._images(pixels)
        if self.has_places:
            found, whole = self.net.where_logits(self.normalised(images))  # type: ignore[operator]
        else:
            found = self.patch_logits(images)
            if found is None:
                raise GanscopeError(
                    f"{self.config['architecture']} has no patch logits; use tiles or gradcam"
                )
            whole = found.mean((1, 2))
        return found.float().cpu().numpy(), whole.float().cpu().numpy()

    @torch.inference_mode()
    def places(self, pixels: np.ndarray) -> np.ndarray:
        net = self._quick[0] if self._quick and self.on_cpu else self.net
        if not (isinstance(net, BlockFeatures) and net.places_apart):
            return super().places(pixels)
        return net.own_places(self.normalised(self._images(pixels))).cpu().numpy()

    def _images(self, pixels: np.ndarray) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, 3, H, W) in [0, 1], on its device. Pixels travel as bytes."""
        images = to_device(torch.from_numpy(pixels), self.mean.device)
        return images.permute(0, 3, 1, 2).float().div_(255)

    @property
    def has_map(self) -> bool:
        of_parts = getattr(self.net, "has_map", hasattr(self.net, "patch_logits"))
        return bool(self.has_places or of_parts)

    @property
    def has_places(self) -> bool:
        return getattr(self.net, "where", None) is not None

    @property
    def has_gradients(self) -> bool:
        return hasattr(self.net, "gradcam_layers")

    def patch_logits(self, images: Tensor) -> Tensor | None:
        """The map of logits (N, h, w) whose mean is the logit; None if the network has none."""
        if not self.has_map:
            return None
        return self.net.patch_logits(self.normalised(images))  # type: ignore[operator]

    def gradcam_layers(self) -> list[nn.Module]:
        """The layers whose activations Grad-CAM looks at; `GanscopeError` if there are none."""
        if not hasattr(self.net, "gradcam_layers"):
            raise GanscopeError(f"{self.config['architecture']} has no Grad-CAM; use tiles")
        return self.net.gradcam_layers()  # type: ignore[operator]


def _refuse_misfit(net: nn.Module, architecture: str, size: int, arguments: dict[str, Any]) -> None:
    """Raise `GanscopeError` for a network that takes no images of `size` pixels, naming sizes that
    it does take.
    """
    reason = _misfit(net, size)
    if reason is None:
        return
    known, begun = [], time.monotonic()
    for other in sorted(set(SIZES) - {size}, key=lambda other: abs(other - size)):
        try:
            if "size" in arguments:
                net, _ = build(architecture, **{**arguments, "size": other})
            if _misfit(net, other) is None:
                known.append(other)
        except GanscopeError:
            continue
        if len(known) == NAMED or time.monotonic() - begun > LOOKING:
            break
    sizes = ", ".join(map(str, sorted(known)))
    advice = f"{sizes} work" if len(known) > 1 else f"{sizes} works" if known else "no other works"
    raise GanscopeError(
        f"--size {size}: {architecture} takes no images of {size} pixels ({reason}); {advice}"
    )


def _misfit(net: nn.Module, size: int) -> str | None:
    """Why a network gives no logit for an image of `size` pixels a side; None if it does."""
    if isinstance(net, BlockFeatures):
        patches = net.backbone.patch_embed
        if patches.img_size == (size, size) and not any(size % one for one in patches.patch_size):
            return None  # it says so itself, and a pass through it takes a while
    training = net.training
    try:
        with torch.no_grad():
            shape = tuple(net.eval()(torch.zeros(1, 3, size, size)).shape)
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError, KeyError) as error:
        return " ".join(reason_of(error).split())[:120]
    finally:
        net.train(training)
    return None if shape == (1,) else f"it gives numbers of shape {shape}, not one"


def load_detector(name: str = "default") -> Detector:
    """Load a detector by shipped name, run folder or hub id; see `Detector.load`."""
    return Detector.load(name)
