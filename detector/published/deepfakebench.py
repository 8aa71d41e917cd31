"""Xception and F3Net as DeepfakeBench trained them on FaceForensics++ (c23).

Yan, Zhang, Yuan, Lyu, Wu: DeepfakeBench, NeurIPS 2023 (data sets and benchmarks),
arXiv:2307.01426. https://github.com/SCLBD/DeepfakeBench, CC BY-NC 4.0. Xception: Chollet, CVPR
2017, used for faces by Roessler et al., ICCV 2019. F3Net: Qian et al., ECCV 2020, of which the
benchmark has the branch of frequencies (FAD) alone.

Weights: `xception_best.pth` and `f3net_best.pth` of the repository's release v1.0.1.

Preprocessing: the largest face, aligned by five landmarks with a margin of 1.3, 256x256; mean and
std 0.5. The authors find it by dlib, here it is `faces.py`. Pictures that are such faces already,
as the benchmark's own frames, are taken as they are.
"""

import numpy as np
import timm
import torch
from torch import Tensor, nn

from ganscope.detector.networks.weights import load_strictly, read_weights
from ganscope.detector.published.cutting import aligned, finder
from ganscope.detector.published.detector import PublishedDetector
from ganscope.detector.published.preparing import normalised
from ganscope.folders import hash_files

SIDE = 256
HALF = (0.5, 0.5, 0.5)


class FakeLessReal(nn.Module):
    """Two outputs, real and fake, into one logit. Parts bear the names of the weights."""

    def __init__(self, channels: int = 3):
        super().__init__()
        self.backbone = timm.create_model("legacy_xception", num_classes=2, in_chans=channels)

    def forward(self, x: Tensor) -> Tensor:
        real, fake = self.backbone(x).unbind(1)
        return fake - real


class F3Net(FakeLessReal):
    """Xception on four bands of an image's frequencies, three channels each.

    Bands are of the discrete cosine transform, by the sum of both coordinates; what each lets
    through was learned on top.
    """

    def __init__(self, side: int = SIDE):
        super().__init__(4 * 3)
        self.FAD_head = _Bands(side)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.FAD_head(x))


class _Bands(nn.Module):
    def __init__(self, side: int):
        super().__init__()
        matrix = cosines(side)
        self._DCT_all = nn.Parameter(matrix, requires_grad=False)
        self._DCT_all_T = nn.Parameter(matrix.T.contiguous(), requires_grad=False)
        low, middle = side // 2.82, side // 2
        edges = ((0, low), (low, middle), (middle, 2 * side), (0, 2 * side))
        self.filters = nn.ModuleList(_Band(side, *edge) for edge in edges)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = self._DCT_all @ x @ self._DCT_all_T
        passed = [band(spectrum) for band in self.filters]
        return torch.cat([self._DCT_all_T @ part @ self._DCT_all for part in passed], 1)


class _Band(nn.Module):
    def __init__(self, side: int, least: float, most: float):
        super().__init__()
        place = torch.arange(side)[:, None] + torch.arange(side)
        within = (place >= least) & (place <= most)
        self.base = nn.Parameter(within.float(), requires_grad=False)
        self.learnable = nn.Parameter(torch.zeros(side, side))

    def forward(self, spectrum: Tensor) -> Tensor:
        return spectrum * (self.base + 2 * self.learnable.sigmoid() - 1)


def cosines(side: int) -> Tensor:
    """The orthonormal discrete cosine transform (DCT-II), (side, side) float32."""
    rows, columns = np.mgrid[:side, :side]
    matrix = np.sqrt(2 / side) * np.cos((columns + 0.5) * np.pi * rows / side)
    matrix[0] /= np.sqrt(2)
    return torch.from_numpy(matrix).float()


def in_timms_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """DeepfakeBench's tensors under timm's names, without the layer that these two never use."""
    found = {}
    for key, value in state.items():
        if key.startswith("backbone.adjust_channel."):
            continue
        name = key.replace("backbone.last_linear.1.", "backbone.fc.")  # behind a dropout
        found[name.replace("backbone.last_linear.", "backbone.fc.")] = value
    return found


def prepare(pixels: np.ndarray) -> Tensor:
    return normalised(aligned(pixels, SIDE), HALF, HALF)


def load_xception(weights: str) -> PublishedDetector:
    """Xception on aligned faces, trained on FaceForensics++ (DeepfakeBench, NeurIPS 2023)."""
    return _load("xception-faces", FakeLessReal(), weights)


def load_f3net(weights: str) -> PublishedDetector:
    """Frequency bands of aligned faces into Xception (Qian et al. 2020; DeepfakeBench)."""
    return _load("f3net", F3Net(), weights)


def _load(name: str, net: nn.Module, weights: str) -> PublishedDetector:
    said = f"{name}:{weights}"
    load_strictly(net, in_timms_names(read_weights(weights, said)), said)
    return PublishedDetector(name, net.eval(), prepare, hash_files(weights), finder=finder().name)
