"""The detectors' own networks: normalised images (N, 3, H, W) in, logits (N,) out.

Those of our own are fully convolutional and linear after their last feature map, so the logit of an
image is the mean of a map of logits, and the map shows where the evidence lies.
"""

from itertools import pairwise
from typing import Any

import timm
import torch.nn.functional as F
from torch import Tensor, nn

DEEPEST = 12
"""Halvings that leave something of an image."""


class CNN(nn.Module):
    """A DCGAN discriminator of `depth` strided 4x4 convolutions, then a logit a position."""

    def __init__(self, width: int = 32, depth: int = 4):
        super().__init__()
        if not 1 <= depth <= DEEPEST:
            raise ValueError(f"depth is {depth}, not from 1 to {DEEPEST}")
        widths = [width * 2**i for i in range(depth)]
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for before, after in pairwise(widths):
            layers += [
                nn.Conv2d(before, after, 4, 2, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(0.2),
            ]
        self.features = nn.Sequential(*layers)
        self.head = nn.Conv2d(widths[-1], 1, 1)

    def patch_logits(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)).squeeze(1).float()

    def forward(self, x: Tensor) -> Tensor:
        return self.patch_logits(x).mean((1, 2))

    def gradcam_layers(self) -> list[nn.Module]:
        return [self.features]


def neighbouring_pixel_residual(x: Tensor) -> Tensor:
    """What is lost when every 2x2 block is replaced by its first pixel (Tan et al., CVPR 2024).

    x (N, C, H, W); odd sides lose their last row or column.
    """
    x = x[..., : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2]
    return x - F.interpolate(x[..., ::2, ::2], scale_factor=2, mode="nearest")


class NPR(nn.Module):
    """Neighbouring-pixel residual into the first two stages of a ResNet-50.

    Parts bear the names of the published weights, so that those load too. After
    https://github.com/chuangchuangtan/NPR-DeepfakeDetection, whose 2/3 scales the residual.
    """

    def __init__(self) -> None:
        super().__init__()
        resnet: Any = timm.create_model("resnet50")
        self.conv1 = nn.Conv2d(3, 64, 3, 2, 1, bias=False)
        self.layer1: nn.Module
        self.layer2: nn.Module
        self.bn1, self.maxpool = resnet.bn1, resnet.maxpool
        self.layer1, self.layer2 = resnet.layer1, resnet.layer2
        self.fc1 = nn.Linear(512, 1)

    def residual(self, x: Tensor) -> Tensor:
        """What of the images the network sees."""
        return neighbouring_pixel_residual(x) * (2 / 3)

    def patch_logits(self, x: Tensor) -> Tensor:
        x = self.conv1(self.residual(x))
        x = self.layer2(self.layer1(self.maxpool(F.relu(self.bn1(x)))))
        return self.fc1(x.permute(0, 2, 3, 1)).squeeze(-1).float()

    def forward(self, x: Tensor) -> Tensor:
        return self.patch_logits(x).mean((1, 2))

    def gradcam_layers(self) -> list[nn.Module]:
        return [self.layer2]


class Patch(nn.Module):
    """A logit for every 9x9 patch (every fourth pixel), averaged: texture, never content.

    After BagNet (Brendel & Bethge, ICLR 2019) and LaDeDa (Cavia et al., 2024). Nothing is padded:
    position (i, j) of the map sees pixels 4i to 4i + 8 and 4j to 4j + 8 and nothing else.
    """

    def __init__(self, width: int = 32):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            _Block(width, 2 * width, kernel=3),
            _Block(2 * width, 2 * width, kernel=1),
            _Block(2 * width, 4 * width, kernel=3),
            _Block(4 * width, 4 * width, kernel=1),
            _Block(4 * width, 4 * width, kernel=1),
        )
        self.head = nn.Conv2d(4 * width, 1, 1)

    def patch_logits(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)).squeeze(1).float()

    def forward(self, x: Tensor) -> Tensor:
        return self.patch_logits(x).mean((1, 2))

    def gradcam_layers(self) -> list[nn.Module]:
        return [self.features]


class _Block(nn.Module):
    """A residual block; kernel 3 halves the resolution, kernel 1 keeps it. No padding."""

    def __init__(self, before: int, after: int, kernel: int):
        super().__init__()
        stride = 2 if kernel == 3 else 1
        self.margin = kernel // 2
        self.body = nn.Sequential(
            nn.Conv2d(before, after, kernel, stride, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut: nn.Module = nn.Identity()
        if before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        m = self.margin
        inner = x[..., m : x.shape[-2] - m, m : x.shape[-1] - m] if m else x
        return F.relu(self.body(x) + self.shortcut(inner))
