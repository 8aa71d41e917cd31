"""SBI: an EfficientNet-B4 that learned from faces blended onto themselves.

Shiohara, Yamasaki: Detecting deepfakes with self-blended images, CVPR 2022, arXiv:2204.08376.
https://github.com/mapooon/SelfBlendedImages, for research purposes only.

Weights: `FFraw.tar` or `FFc23.tar`, behind the links in the repository's README; PyTorch's files,
whatever their ending says, with the names of the package efficientnet_pytorch.

Preprocessing: faces with an eighth of the box's width and height added on each side, resized to
380x380, values in [0, 1], no mean or std. Of several faces, those of half the largest one's area at
least, the most suspicious counts. The authors find them by RetinaFace, here it is `faces.py`.
"""

import cv2
import numpy as np
import timm
import torch
from torch import Tensor, nn

from ganscope.detector.networks.weights import load_strictly, read_weights
from ganscope.detector.published.cutting import boxed, finder
from ganscope.detector.published.detector import PublishedDetector
from ganscope.detector.published.preparing import scaled
from ganscope.folders import hash_files

SIDE, MARGIN = 380, 1 / 8
STAGES = (2, 4, 4, 6, 6, 8, 2)
"""Blocks of a B4's stages, which efficientnet_pytorch numbers through."""
FIRST = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
"""Parts of a block of the first stage: efficientnet_pytorch's name, timm's."""
OTHERS = FIRST | {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
"""Those of all others."""
ENDS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}


class MostSuspicious(nn.Module):
    """Faces (N, faces, 3, h, w) into N logits: fake less real, the highest of each image's."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        real, fake = self.net(x.flatten(0, 1)).unbind(1)
        return (fake - real).view(x.shape[:2]).amax(1)


def in_timms_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """efficientnet_pytorch's tensors under timm's names; what is neither keeps its name."""
    places = [(s, b) for s, blocks in enumerate(STAGES) for b in range(blocks)]
    found = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "_blocks" and parts[1].isdigit() and int(parts[1]) < len(places):
            stage, block = places[int(parts[1])]
            names = OTHERS if stage else FIRST
            parts[:3] = [f"blocks.{stage}.{block}", names.get(parts[2], parts[2])]
        else:
            parts[0] = ENDS.get(parts[0], parts[0])
        found[".".join(parts)] = value
    return found


def prepare(pixels: np.ndarray) -> Tensor:
    """(faces, 3, 380, 380)."""
    return torch.stack([scaled(cv2.resize(f, (SIDE, SIDE))) for f in boxed(pixels, MARGIN)])


def load(weights: str) -> PublishedDetector:
    """EfficientNet-B4 on faces, from self-blended images (Shiohara and Yamasaki, CVPR 2022)."""
    said = f"sbi:{weights}"
    net = timm.create_model("tf_efficientnet_b4", num_classes=2)
    load_strictly(net, in_timms_names(read_weights(weights, said)), said)
    return PublishedDetector(
        "sbi", MostSuspicious(net).eval(), prepare, hash_files(weights), finder=finder().name
    )
