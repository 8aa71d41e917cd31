"""B-Free: DINOv2's ViT-B/14 with registers, trained on reals and on reconstructions of the same.

Guillaro, Zingarini, Usman, Sud, Cozzolino, Verdoliva: A bias-free training paradigm for more
general AI-generated image detection, CVPR 2025, arXiv:2412.17671.
https://github.com/grip-unina/B-Free, for nonprofit use only.

Weights: `model_epoch_best.pth` in `BFREE_dino2reg4.zip`, behind the link in the repository's
`code/README.md`.

Preprocessing: ImageNet's mean and std, nothing resized; five crops of 504x504 on the grid of the
14x14 patches, the centre and the corners, whose logits are averaged. Images that hold fewer than
36 patches along a side are repeated along it, without the rest that fills no patch. The authors
crop behind the projection of the patches, which amounts to the same and takes more memory.
"""

import numpy as np
import timm
import torch
from torch import Tensor, nn

from ganscope.detector.networks.weights import load_strictly, read_weights
from ganscope.detector.published.detector import PublishedDetector
from ganscope.detector.published.preparing import normalised
from ganscope.folders import hash_files

VIT = "vit_base_patch14_reg4_dinov2.lvd142m"
PATCH, SIDE = 14, 504


class MeanOfViews(nn.Module):
    """Views (N, views, 3, h, w) into N logits, the means of those of each image's views."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.flatten(0, 1)).view(x.shape[:2]).mean(1)


def prepare(pixels: np.ndarray) -> Tensor:
    """(5, 3, 504, 504), or (1, 3, 504, 504) where all five crops are the same."""
    rows, columns = (_repeated(n) for n in pixels.shape[:2])
    image = normalised(pixels[rows][:, columns])
    down, right = ((len(n) - SIDE) // PATCH for n in (rows, columns))  # in patches
    corners = [(0, 0), (0, right), (down, 0), (down, right)] if down or right else []
    starts = [(down // 2, right // 2), *corners]
    return torch.stack(
        [image[:, y : y + SIDE, x : x + SIDE] for y, x in np.multiply(starts, PATCH).tolist()]
    )


def _repeated(n: int) -> np.ndarray:
    """Indices of n pixels; if they hold too few patches, of those in whole patches again and again.

    Fewer pixels than a patch has, which the authors' code does not take, are all repeated.
    """
    whole = n // PATCH * PATCH
    return np.arange(n) if whole >= SIDE else np.arange(SIDE) % (whole or n)


def load(weights: str) -> PublishedDetector:
    """DINOv2's ViT-B/14 on five crops of 504x504 (Guillaro et al., CVPR 2025)."""
    said = f"bfree:{weights}"
    vit = timm.create_model(VIT, num_classes=1, img_size=SIDE)
    load_strictly(vit, read_weights(weights, said), said)
    return PublishedDetector("bfree", MeanOfViews(vit).eval(), prepare, hash_files(weights))
