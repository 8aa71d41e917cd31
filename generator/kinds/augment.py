"""DiffAugment: what the discriminator sees is altered at random, reals and fakes alike, so that it
cannot learn a small training set by heart (Zhao et al. 2020, arXiv:2006.10738). How much of it is
altered follows from how sure the discriminator is of reals (ADA, Karras et al. 2020b,
arXiv:2006.06676): one that has much to learn yet is not held up.

Everything is differentiable: the generator learns through it.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from ganscope.devices import mean_of_all

SURE = 0.6
"""Mean sign of the discriminator's logits of reals above which it begins to know them by heart."""
IMAGES = 100_000
"""Images that it must be sure of for all to be altered."""


def augment(images: Tensor, share: Tensor | float = 1.0) -> Tensor:
    """Alter this share of images (N, 3, H, W) in [-1, 1]: each in its own colours, its own place,
    with its own square cut out.
    """
    altered = cut_out(translate(recolour(images)))
    chosen = torch.rand(len(images), 1, 1, 1, device=images.device) < share
    return torch.where(chosen, altered, images)


def adapt(share: Tensor, on_real: Tensor) -> None:
    """Move the share () of altered images on, by the logits (N,) of reals in a step."""
    sure = mean_of_all(on_real.detach().sign().mean()) - SURE
    share.add_(sure.sign() * len(on_real) / IMAGES).clamp_(0, 1)


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
