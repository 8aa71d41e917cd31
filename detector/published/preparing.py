"""The steps that the authors' preprocessing is made of: pixels (H, W, 3) uint8 RGB in."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import center_crop

from ganscope.detector.networks.architectures import IMAGENET_MEAN, IMAGENET_STD


def scaled(pixels: np.ndarray) -> Tensor:
    """(3, H, W) float32 in [0, 1]."""
    return _channels_first(pixels).float() / 255


def normalised(
    pixels: np.ndarray,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Tensor:
    """(3, H, W) float32, its channels shifted and scaled; as ImageNet's unless told otherwise."""
    shape = (3, 1, 1)
    return (scaled(pixels) - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


def resized(pixels: np.ndarray, side: int) -> np.ndarray:
    """(side, side, 3) uint8, whatever the proportions; Pillow's bilinear filter."""
    return scaled_to(pixels, side, side)


def scaled_to(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8; Pillow's bilinear filter."""
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image)


def cropped(pixels: np.ndarray, side: int) -> np.ndarray:
    """(side, side, 3) uint8 from the centre; black around what is smaller."""
    return center_crop(_channels_first(pixels), [side, side]).permute(1, 2, 0).numpy()


def _channels_first(pixels: np.ndarray) -> Tensor:
    return torch.tensor(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
