"""Community Forensics: a ViT-S/16 trained on the images of thousands of generators.

Park, Owens: Community Forensics: using thousands of generators to train fake image detectors, CVPR
2025, arXiv:2411.04125. https://github.com/JeongsooP/Community-Forensics, MIT.

Weights: `model.safetensors` of https://huggingface.co/OwensLab/commfor-model-384.

Preprocessing: the shorter side resized to 440, the central 384x384, ImageNet's mean and std.
"""

import numpy as np
import timm
from torch import Tensor, nn

from ganscope.detector.published.detector import PublishedDetector, from_file
from ganscope.detector.published.preparing import cropped, normalised, scaled_to

VIT = "vit_small_patch16_384.augreg_in21k_ft_in1k"
SHORTER, SIDE = 440, 384


class CommFor(nn.Module):
    """timm's ViT under the name that it has in the published weights."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = timm.create_model(VIT, num_classes=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.vit(x).squeeze(1)


def prepare(pixels: np.ndarray) -> Tensor:
    """The longer side is rounded down, as torchvision does."""
    height, width = (SHORTER * n // min(pixels.shape[:2]) for n in pixels.shape[:2])
    return normalised(cropped(scaled_to(pixels, height, width), SIDE))


def load(weights: str) -> PublishedDetector:
    """A ViT-S/16 at 384x384 trained on 4,803 generators (Park & Owens, CVPR 2025)."""
    return from_file("commfor", CommFor(), prepare, weights)
