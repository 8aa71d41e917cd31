"""FreqNet: high frequencies of the image and of its features, and convolutions in the spectrum.

Tan, Zhao, Wei, Gu, Liu, Wei: Frequency-aware deepfake detection: improving generalizability through
frequency space learning, AAAI 2024, arXiv:2403.07240.
https://github.com/chuangchuangtan/FreqNet-DeepfakeDetection; licence: see its repository.

Weights: `4-classes-freqnet.pth`, in the repository.

Preprocessing: resized to 256x256 (the authors' way with images of several sizes), ImageNet's mean
and std.
"""

from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganscope.detector.published.detector import PublishedDetector, from_file
from ganscope.detector.published.preparing import normalised, resized

PIXELS, CHANNELS = (-2, -1), (1,)
"""Dimensions along which frequencies are taken."""


class FreqNet(nn.Module):
    """Four 1x1 convolutions of high frequencies, each with one in the spectrum behind it, among the
    first two stages of a ResNet-50. Parts bear the names of the published weights.
    """

    def __init__(self) -> None:
        super().__init__()
        for i, (before, after) in enumerate([(3, 64), (64, 64), (256, 256), (256, 256)], 1):
            self.register_parameter(f"weight{i}", nn.Parameter(torch.randn(after, before, 1, 1)))
            self.register_parameter(f"bias{i}", nn.Parameter(torch.zeros(after)))
            self.add_module(f"realconv{i}", nn.Conv2d(after, after, 1, bias=False))
            self.add_module(f"imagconv{i}", nn.Conv2d(after, after, 1, bias=False))
        resnet: Any = timm.create_model("resnet50")
        self.maxpool = resnet.maxpool
        self.layer1, self.layer2 = resnet.layer1, resnet.layer2
        self.fc1 = nn.Linear(512, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self._convolved(high_frequencies(x, PIXELS), 1)
        x = self._in_spectrum(high_frequencies(x, CHANNELS), 1)
        x = self._convolved(high_frequencies(x, PIXELS), 2, stride=2)
        x = self._in_spectrum(high_frequencies(x, CHANNELS), 2)
        x = self.layer1(self.maxpool(x))
        x = self._in_spectrum(self._convolved(high_frequencies(x, PIXELS), 3), 3)
        x = self._in_spectrum(self._convolved(high_frequencies(x, PIXELS), 4, stride=2), 4)
        return self.fc1(self.layer2(x).mean((2, 3))).squeeze(1)

    def _convolved(self, x: Tensor, i: int, stride: int = 1) -> Tensor:
        weight, bias = self.get_parameter(f"weight{i}"), self.get_parameter(f"bias{i}")
        return F.relu(F.conv2d(x, weight, bias, stride))

    def _in_spectrum(self, x: Tensor, i: int) -> Tensor:
        """Real and imaginary parts of the spectrum each through a 1x1 convolution, and back."""
        real, imag = self.get_submodule(f"realconv{i}"), self.get_submodule(f"imagconv{i}")
        spectrum = torch.fft.fft2(x, norm="ortho")
        spectrum = torch.complex(real(spectrum.real), imag(spectrum.imag))
        return F.relu(torch.fft.ifft2(spectrum, norm="ortho").real)


def high_frequencies(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """x without what varies slowly along all of `dims`, and without what is then negative.

    Slowly: less often than once in four positions, the lower half of the frequencies.
    """
    spectrum = torch.fft.fftn(x, dim=dims, norm="ortho")
    low = torch.ones(1, dtype=torch.bool, device=x.device)
    for dim in dims:
        n = x.shape[dim]
        turns = torch.fft.fftfreq(n, 1 / n, device=x.device).round()
        shape = [1] * x.dim()
        shape[dim] = n
        low = low & ((turns >= -(n // 4)) & (turns < n // 4)).view(shape)
    return F.relu(torch.fft.ifftn(spectrum.masked_fill(low, 0), dim=dims, norm="ortho").real)


def prepare(pixels: np.ndarray) -> Tensor:
    return normalised(resized(pixels, 256))


def load(weights: str) -> PublishedDetector:
    """High frequencies of the image at 256x256 and of its features (Tan et al., AAAI 2024)."""
    return from_file("freqnet", FreqNet(), prepare, weights)
