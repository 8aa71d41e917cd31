"""What images are compared by when fakes are measured: a network's features, or shrunk pixels.

A distance between features is worth as much as the features, so an `Extractor` carries the name
that is printed with every figure made from it.
"""

import difflib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import timm
import torch
from torch import Tensor

from ganscope.errors import GanscopeError, reason_of
from ganscope.folders import hash_files

SHRUNK = 8
"""Side in pixels of the images that `pixels` compares."""
BACKBONE = "resnet50.a1_in1k"
"""Of timm, where Inception is not to be had."""
CPU_BATCH, GPU_BATCH = 16, 128


@dataclass(frozen=True)
class Extractor:
    """Call it with images, each (H, W, 3) uint8 RGB, for their features (N, D) float64."""

    name: str
    """What is printed with every figure."""
    batch: int
    compute: Callable[[np.ndarray], np.ndarray]
    """Images of one shape (B, H, W, 3) uint8 -> features (B, D)."""

    def __call__(self, images: Iterable[np.ndarray]) -> np.ndarray:
        parts = [self.compute(batch) for batch in _batches(images, self.batch)]
        return np.concatenate(parts).astype(np.float64) if parts else np.empty((0, 0))


def _batches(images: Iterable[np.ndarray], most: int) -> Iterator[np.ndarray]:
    """Images in their order, stacked as long as they are of one shape."""
    waiting: list[np.ndarray] = []
    for image in images:
        if waiting and (len(waiting) == most or image.shape != waiting[0].shape):
            yield np.stack(waiting)
            waiting = []
        waiting.append(image)
    if waiting:
        yield np.stack(waiting)


def extract_features(
    images: Iterable[np.ndarray],
    features: str = "auto",
    weights: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Features (N, D) float64 of images, each (H, W, 3) uint8 RGB; see `open_extractor`."""
    return open_extractor(features, weights, device)(images)


def open_extractor(
    features: str = "auto",
    weights: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> Extractor:
    """The extractor that `--features` means.

    "inception" is the network of the FID (torch-fidelity's, 2048 features), "timm:NAME" any
    backbone of timm, "pixels" the image shrunk to 8x8; "auto" is the first of these that can be
    had. Raises `GanscopeError` if there is none, or if a
    network or its weights cannot be had.
    """
    device = torch.device(device)
    if weights is not None and features != "inception" and not features.startswith("timm:"):
        raise GanscopeError("--weights goes with --features inception or --features timm:NAME")
    if weights is not None and not os.path.isfile(weights):
        raise GanscopeError(f"--weights {weights}: no such file")
    if features == "auto":
        return _first_to_be_had(device)
    if features == "pixels":
        return Extractor(
            f"pixels {SHRUNK}x{SHRUNK}", 1, lambda images: shrink(images).reshape(1, -1)
        )
    if features == "inception":
        return _inception(weights, device)
    if features.startswith("timm:"):
        return _timm(features.removeprefix("timm:"), weights, device)
    raise GanscopeError(
        f"--features must be auto, inception, timm:NAME or pixels, not {features!r}"
    )


def shrink(images: Iterable[np.ndarray]) -> np.ndarray:
    """Images (H, W, 3) uint8 averaged down to 8x8 colours: (N, 8, 8, 3) in [0, 1]."""
    side = (SHRUNK, SHRUNK)
    return np.stack([cv2.resize(i, side, interpolation=cv2.INTER_AREA) for i in images]) / 255


def _first_to_be_had(device: torch.device) -> Extractor:
    """Inception if torch-fidelity is installed, else a backbone of timm; each downloads its weights
    once. Where there is no network, shrunk pixels.
    """
    for name in ("inception", f"timm:{BACKBONE}"):
        with suppress(GanscopeError):
            return open_extractor(name, device=device)
    return open_extractor("pixels")


def _inception_file() -> Path:
    """Where torch keeps torch-fidelity's Inception once it is downloaded."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rsplit("/", 1)[1]


def _inception(weights: str | Path | None, device: torch.device) -> Extractor:
    try:
        from torch_fidelity import feature_extractor_inceptionv3 as inception
    except ImportError:
        raise GanscopeError(
            "--features inception needs torch-fidelity: pip install 'ganscope[fidelity]', or use "
            "--features timm:NAME or pixels"
        ) from None
    file = Path(weights) if weights is not None else _inception_file()
    # torch-fidelity unpickles whatever the file holds; it gets only what is known to be weights.
    if weights is None and not file.is_file():
        url = inception.URL_INCEPTION_V3
        with _weights_errors("inception"):
            torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)
    with _weights_errors("inception"):
        torch.load(file, map_location="cpu", weights_only=True)
        net = inception.FeatureExtractorInceptionV3("inception", ["2048"], str(file))
    net = net.to(device)

    def compute(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            (found,) = net(torch.from_numpy(images).permute(0, 3, 1, 2).to(device))
        return found.cpu().numpy()

    return Extractor("inception" + _told(weights), _batch(device), compute)


def _timm(name: str, weights: str | Path | None, device: torch.device) -> Extractor:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise GanscopeError(f"timm has no model {name!r}{hint} See timm.list_models()")
    with _weights_errors(f"timm:{name}"):
        net: Any = timm.create_model(name, pretrained=weights is None, num_classes=0)
        if weights is not None:
            _load(net, weights)
    net = net.to(device).eval()
    about = net.pretrained_cfg
    side = about["input_size"][1:]
    mean, std = (torch.tensor(about[key]).view(1, 3, 1, 1).to(device) for key in ("mean", "std"))

    def compute(images: np.ndarray) -> np.ndarray:
        resized = torch.from_numpy(np.stack([_resize(i, side) for i in images])).to(device)
        with torch.inference_mode():
            found: Tensor = net((resized.permute(0, 3, 1, 2) / 255 - mean) / std)
        return found.flatten(1).cpu().numpy()

    return Extractor(f"timm:{name}" + _told(weights), _batch(device), compute)


@contextmanager
def _weights_errors(features: str) -> Iterator[None]:
    """Turn whatever downloading and reading weights raises into a line that says what to do."""
    try:
        yield
    except Exception as error:  # urllib's, the hub's, safetensors', pickle's own
        reason = reason_of(error)
        raise GanscopeError(
            f"--features {features}: its weights are not to be had ({reason}); name a fitting "
            "weights file with --weights, or use --features pixels"
        ) from None


def _load(net: Any, weights: str | Path) -> None:
    """Load a backbone's weights; only a classifier's may be left over."""
    state = timm.models.load_state_dict(str(weights), weights_only=True)
    head = net.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{name}." for name in ((head,) if isinstance(head, str) else head))
    state = {key: value for key, value in state.items() if not key.startswith(heads)}
    net.load_state_dict(state)


def _resize(pixels: np.ndarray, side: tuple[int, int]) -> np.ndarray:
    height, width = side
    shrinks = pixels.shape[0] * pixels.shape[1] > height * width
    kernel = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(pixels, (width, height), interpolation=kernel)


def _batch(device: torch.device) -> int:
    return CPU_BATCH if device.type == "cpu" else GPU_BATCH


def _told(weights: str | Path | None) -> str:
    """A named weights file as a figure's label tells it."""
    if weights is None:
        return ""
    digest = hash_files(weights)
    return f" ({Path(weights).name}, {digest})"
