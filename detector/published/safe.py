"""SAFE: the diagonal details of a wavelet transform into the first half of a ResNet-50.

Li, Cai, Hao, Jiang, Hu, Feng: Improving synthetic image detection towards generalization: an image
transformation perspective, KDD 2025, arXiv:2408.06741. https://github.com/Ouxiang-Li/SAFE,
Apache-2.0.

Weights: `checkpoint/checkpoint-best.pth`, in the repository.

Preprocessing: the central 256x256, smaller images on black; no normalisation.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganscope.detector.networks.convolutional import NPR
from ganscope.detector.published.detector import PublishedDetector, from_file
from ganscope.detector.published.preparing import cropped, scaled


class SAFE(NPR):
    """The network of `NPR` with another residual and two outputs, real and fake."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(512, 2)

    def residual(self, x: Tensor) -> Tensor:
        return diagonal_details(x)

    def patch_logits(self, x: Tensor) -> Tensor:
        real, fake = super().patch_logits(x).unbind(-1)
        return fake - real


def diagonal_details(x: Tensor) -> Tensor:
    """HH of one step of the bior1.3 wavelet transform, enlarged to the size of x (N, C, H, W).

    That wavelet's high-pass filter has six taps, but only the two of Haar's are not zero: the band
    is the diagonal difference of every 2x2 block, and of blocks in a mirrored margin.
    """
    height, width = x.shape[-2:]
    x = x[..., _mirrored(height, x.device), :][..., _mirrored(width, x.device)]
    top, bottom = x[..., ::2, :], x[..., 1::2, :]
    band = (top[..., ::2] - top[..., 1::2] - bottom[..., ::2] + bottom[..., 1::2]) / 2
    return F.interpolate(band, size=(height, width), mode="bilinear", antialias=True)


def _mirrored(n: int, device: torch.device) -> Tensor:
    """Indices 1, 0, 0, 1, ..., n - 1, n - 1, n - 2: two more at each end, three if n is odd."""
    index = torch.arange(-2, n + 2 + n % 2, device=device)
    index = torch.where(index < 0, -1 - index, index)
    return torch.where(index >= n, 2 * n - 1 - index, index)


def prepare(pixels: np.ndarray) -> Tensor:
    return scaled(cropped(pixels, 256))


def load(weights: str) -> PublishedDetector:
    """Diagonal wavelet details of the central 256x256 (Li et al., KDD 2025)."""
    return from_file("safe", SAFE(), prepare, weights)
