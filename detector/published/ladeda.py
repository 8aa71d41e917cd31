"""LaDeDa: a logit for every 9x9 patch, averaged; and Tiny-LaDeDa, which learned from it.

Cavia, Horwitz, Reiss, Hoshen: Real-time deepfake detection in the real-world, arXiv:2406.09398.
https://github.com/barcavia/RealTime-DeepfakeDetection-in-the-RealWorld, a research licence that
excludes commercial use.

Weights: `ladeda` takes `ForenSynth_LaDeDa.pth` and `ladeda-wildrf` `WildRF_LaDeDa.pth`, both behind
the link in the repository's README; `tiny-ladeda` takes either file of `weights/Tiny_LaDeDa`, in
the repository, and downloads that of WildRF where none is named. The first were trained with
residuals scaled by 2/3, the second without (the repository's issue 3): each gives the paper's
figures only in its own way.

Preprocessing: resized to 256x256, ImageNet's mean and std.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganscope.detector.networks.convolutional import neighbouring_pixel_residual
from ganscope.detector.published.detector import PublishedDetector, from_file
from ganscope.detector.published.preparing import normalised, resized


class LaDeDa(nn.Module):
    """A ResNet-50 of almost only 1x1 convolutions, nothing padded, on neighbouring-pixel residuals.

    Position (i, j) of its map sees pixels 8i to 8i + 8 and 8j to 8j + 8. Parts bear the names of
    the published weights. scale: of the residuals.
    """

    def __init__(self, scale: float = 2 / 3):
        super().__init__()
        self.scale = scale
        self.conv1 = nn.Conv2d(3, 64, 1, bias=False)
        self.conv2 = nn.Conv2d(64, 64, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, blocks=3, kernel=3, stride=2)
        self.layer2 = _stage(256, 128, blocks=4, kernel=3, stride=2)
        self.layer3 = _stage(512, 256, blocks=6, kernel=1, stride=2)
        self.layer4 = _stage(1024, 512, blocks=3, kernel=1, stride=1)
        self.fc = nn.Linear(2048, 1)

    def patch_logits(self, x: Tensor) -> Tensor:
        x = neighbouring_pixel_residual(x) * self.scale
        x = F.relu(self.bn1(self.conv2(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.permute(0, 2, 3, 1)).squeeze(-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.patch_logits(x).mean((1, 2))


class _Bottleneck(nn.Module):
    def __init__(self, before: int, inner: int, kernel: int, stride: int):
        super().__init__()
        after = 4 * inner
        self.conv1 = nn.Conv2d(before, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, kernel, stride, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, after, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.downsample: nn.Module = nn.Identity()
        if before != after:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        # An unpadded 3x3 convolution leaves less than the shortcut has.
        return F.relu(y + self.downsample(x)[..., : y.shape[-2], : y.shape[-1]])


def _stage(before: int, inner: int, blocks: int, kernel: int, stride: int) -> nn.Sequential:
    rest = [_Bottleneck(4 * inner, inner, 1, 1) for _ in range(blocks - 1)]
    return nn.Sequential(_Bottleneck(before, inner, kernel, stride), *rest)


class TinyLaDeDa(nn.Module):
    """Four convolutions of eight channels on diagonal gradients."""

    gradient: Tensor

    def __init__(self) -> None:
        super().__init__()
        kernel = torch.tensor([[-2.0, -1, 0], [-1, 0, 1], [0, 1, 2]])
        self.register_buffer("gradient", kernel.expand(3, 1, 3, 3), persistent=False)
        self.conv1 = nn.Conv2d(3, 8, 1, bias=False)
        self.conv2 = nn.Conv2d(8, 8, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(_TinyBlock())
        self.fc = nn.Linear(8, 1)

    def patch_logits(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.gradient, padding=1, groups=3)
        x = self.layer1(F.relu(self.bn1(self.conv2(self.conv1(x)))))
        return self.fc(x.permute(0, 2, 3, 1)).squeeze(-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.patch_logits(x).mean((1, 2))


class _TinyBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, 2, bias=False)
        self.bn2 = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def prepare(pixels: np.ndarray) -> Tensor:
    return normalised(resized(pixels, 256))


def load(weights: str) -> PublishedDetector:
    """A logit for every 9x9 patch, trained on ForenSynths (Cavia et al., 2024)."""
    return from_file("ladeda", LaDeDa(), prepare, weights)


def load_wildrf(weights: str) -> PublishedDetector:
    """A logit for every 9x9 patch, trained on WildRF (Cavia et al., 2024)."""
    return from_file("ladeda-wildrf", LaDeDa(scale=1), prepare, weights)


def load_tiny(weights: str) -> PublishedDetector:
    """Four small convolutions that learned from LaDeDa (Cavia et al., 2024)."""
    return from_file("tiny-ladeda", TinyLaDeDa(), prepare, weights)
