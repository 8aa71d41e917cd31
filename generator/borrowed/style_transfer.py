"""Photographs painted like a painting: neural style transfer (Gatys et al. 2016,
arXiv:1508.06576).

No generator is trained: the pixels of each photograph are optimised, minutes an image on a CPU.
"""

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torchvision.models import VGG19_Weights, vgg

from ganscope.errors import GanscopeError, reason_of
from ganscope.generator.borrowed.options import (
    Reader,
    as_label,
    hash_networks,
    number,
    read_state,
    split_options,
    whole,
)
from ganscope.generator.model import AnyGenerator
from ganscope.generator.pixels import from_pixels, to_pixels
from ganscope.images import open_image

SMALLEST = 32
"""Photographs of fewer pixels a side are enlarged to it, and their fakes shrunk again."""
LARGE = 1_000_000
"""Photographs of more pixels than this are shrunk to it, and their fakes enlarged again."""
RATE = 0.02
"""Of Adam, on pixels from 0 to 1."""


class VGGFeatures(nn.Module):
    """VGG19's ReLU 1_1, 2_1, 3_1, 4_1 and 5_1, which the paper takes the style from, and 4_2, the
    content; with average for max pooling, as there.
    """

    style = (1, 6, 11, 20, 29)
    content = 22

    def __init__(self, state: dict[str, Tensor]):
        super().__init__()
        layers = vgg.make_layers(vgg.cfgs["E"])[: max(self.style) + 1]
        pooling = [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        for i in pooling:
            layers[i] = nn.AvgPool2d(2)
        found = {k.removeprefix("features."): v for k, v in state.items()}
        layers.load_state_dict({k: v for k, v in found.items() if k in layers.state_dict()})
        self.layers = layers
        self.mean, self.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        seen = []
        for layer in self.layers:
            images = layer(images)
            seen.append(images)
        return [seen[i] for i in self.style], seen[self.content]


class TimmFeatures(nn.Module):
    """Any timm backbone: the style from all its stages, the content from the middle one."""

    def __init__(self, name: str, state: dict[str, Tensor] | None = None):
        super().__init__()
        network: Any = timm.create_model(name, pretrained=state is None, features_only=True)
        if state is not None:
            # As features, blocks.0 is called blocks_0, or model.blocks.0.
            flat = {key.replace(".", "_"): value for key, value in state.items()}
            own = network.state_dict()
            for key in own:
                called = key.removeprefix("model.").replace(".", "_")
                # Older files do not count batches, and nothing here does.
                if called in flat or not called.endswith("num_batches_tracked"):
                    own[key] = flat[called]
            network.load_state_dict(own)
        self.network = network
        self.mean, self.std = network.pretrained_cfg["mean"], network.pretrained_cfg["std"]

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        stages = self.network(images)
        return stages, stages[len(stages) // 2]


class StyleTransfer(AnyGenerator):
    """Photographs in the style of one painting, each optimised from the photograph itself.

    painting: (H, W, 3) uint8 RGB. features: images (1, 3, H, W), normalised by its `mean` and
    `std`, to the layers of the style and the layer of the content. strength: weight of the style's
    loss against the content's; each is relative to what it aims at, so that it means about the same
    for every network.
    """

    from_photos = True
    size = None

    def __init__(
        self,
        name: str,
        label: str,
        painting: np.ndarray,
        features: Any,
        steps: int = 200,
        strength: float = 1.0,
    ):
        self.name, self.label, self.painting = name, label, painting
        self.features = features.eval().requires_grad_(False)
        self.features.register_buffer("painting", torch.from_numpy(painting.copy()))
        self.weights = hash_networks(self.features)
        self.steps, self.strength = steps, strength
        self.device = torch.device("cpu")

    def to(self, device: torch.device) -> Self:
        self.features.to(device)
        self.device = device
        return self

    def make(
        self, seed: int, indexes: Sequence[int], photos: Sequence[np.ndarray] | None = None
    ) -> list[np.ndarray]:
        return [self._paint(photo) for photo in photos or ()]

    def _paint(self, photo: np.ndarray) -> np.ndarray:
        height, width = photo.shape[:2]
        scale = min(1.0, (LARGE / (height * width)) ** 0.5)
        scale = max(scale, SMALLEST / min(height, width))
        small = _scaled(photo, scale)
        painting = _scaled(self.painting, min(small.shape[:2]) / min(self.painting.shape[:2]))
        with torch.backends.cudnn.flags(deterministic=True):
            made = self._optimise(from_pixels(small, self.device), painting)
        return (
            made if scale == 1 else cv2.resize(made, (width, height), None, 0, 0, cv2.INTER_CUBIC)
        )

    def _optimise(self, image: Tensor, painting: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            content = self._look(image)[1]
            style = [_gram(f) for f in self._look(from_pixels(painting, self.device))[0]]
        image.requires_grad_(True)
        adam = torch.optim.Adam([image], RATE)
        for _ in range(self.steps):
            layers, seen = self._look(image)
            styles = [_relative(_gram(f), g) for f, g in zip(layers, style, strict=True)]
            loss = _relative(seen, content) + self.strength * torch.stack(styles).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            with torch.no_grad():
                image.clamp_(0, 1)
        return to_pixels(image)[0]

    def _look(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        mean, std = (
            images.new_tensor(v)[:, None, None] for v in (self.features.mean, self.features.std)
        )
        return self.features((images - mean) / std)


def _gram(features: Tensor) -> Tensor:
    """(1, C, H, W) -> (C, C): how the channels vary together, wherever in the image."""
    flat = features[0].flatten(1)
    return flat @ flat.T / flat.shape[1]


def _relative(found: Tensor, wanted: Tensor) -> Tensor:
    return mse_loss(found, wanted) / wanted.square().mean().clamp(min=1e-12)


def _scaled(pixels: np.ndarray, by: float) -> np.ndarray:
    if by == 1:
        return pixels
    kernel = cv2.INTER_AREA if by < 1 else cv2.INTER_CUBIC
    size = [max(round(side * by), SMALLEST) for side in (pixels.shape[1], pixels.shape[0])]
    return cv2.resize(pixels, size, interpolation=kernel)


def style_generator(spec: str) -> StyleTransfer:
    """`PAINTING.jpg[?features=vgg19&weights=FILE&steps=200&strength=1]`: see `StyleTransfer`.

    features is vgg19 or timm:NAME; their ImageNet weights are downloaded, or read from the file.
    Raises `GanscopeError` if painting or weights cannot be had.
    """
    name = f"style:{spec}"
    readers: dict[str, Reader] = {
        "features": str,
        "weights": Path,
        "steps": whole(1),
        "strength": number(0),
    }
    file, options = split_options(name, spec, readers)
    painting = open_image(file).pixels
    label = as_label(
        "style", Path(file).stem, **{k: v for k, v in options.items() if k != "weights"}
    )
    features = _open_features(name, options.pop("features", "vgg19"), options.pop("weights", None))
    return StyleTransfer(name, label, painting, features, **options)


def _open_features(name: str, kind: str, weights: Path | None) -> VGGFeatures | TimmFeatures:
    prefix, _, backbone = kind.partition(":")
    if kind != "vgg19" and not (prefix == "timm" and timm.is_model(backbone)):
        raise GanscopeError(
            f"--generator {name}: features must be vgg19 or timm:NAME, NAME as timm.list_models() "
            f"knows it, not {kind!r}"
        )
    state = None if weights is None else read_state(name, weights)
    try:
        if kind != "vgg19":
            return TimmFeatures(backbone, state)
        if state is None:
            with redirect_stdout(sys.stderr):  # torch tells of its downloads
                published = VGG19_Weights.IMAGENET1K_V1
                state = dict(published.get_state_dict(progress=False, check_hash=True))
        return VGGFeatures(state)
    except Exception as error:  # urllib's, the hub's, torch's, timm's
        advice = "offline, download the weights elsewhere and add weights=FILE"
        if weights is not None:
            advice = f"{weights} does not fit {kind}"
        raise GanscopeError(
            f"--generator {name}: the features could not be loaded ({reason_of(error)}); {advice}"
        ) from None
