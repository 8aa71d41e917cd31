"""DiffAugment: what the discriminator sees is altered at random, reals and fakes alike, so that it
cannot learn a small training set by heart (Zhao et al. 2020, arXiv:2006.10738).

Everything is differentiable: the generator learns through it.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad


def augment(images: Tensor) -> Tensor:
    """Alter images (N, 3, H, W) in [-1, 1]: each in its own colours, its own place, with its own
    square cut out.
    """
    return cut_out(translate(recolour(images)))


def recolour(images: Tensor) -> Tensor:
    """Brightness +-0.5, saturation times 0 to 2, contrast times 0.5 to 1.5."""
    brightness, saturation, contrast = torch.rand(
        3, len(images), 1, 1, 1, device=images.device, dtype=images.dtype
    )
    images = images + (brightness - 0.5)
    images = torch.lerp(images.mean(1, keepdim=True), images, saturation * 2)
    return torch.lerp(images.mean((1, 2, 3), keepdim=True), images, contrast + 0.5)


def translate(images: Tensor) -> Tensor:
    """Shift by up to an eighth of the side; grey moves in."""
    height, width = images.shape[2:]
    farthest = height // 8
    wide = pad(images, (farthest,) * 4)
    # Slices, not indices: those are slow to differentiate.
    shifts = torch.randint(2 * farthest + 1, (len(images), 2)).tolist()
    moved = zip(wide, shifts, strict=True)
    return torch.stack([image[:, y : y + height, x : x + width] for image, (y, x) in moved])


def cut_out(images: Tensor) -> Tensor:
    """Make a square of half the side grey."""
    inside = []
    for side in images.shape[2:]:
        middle = torch.randint(side + 1, (len(images), 1), device=images.device)
        inside.append((torch.arange(side, device=images.device) + 0.5 - middle).abs() < side / 4)
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return images.masked_fill(hole, 0.0)
