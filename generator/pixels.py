"""Pixels to tensors and back, and large photographs through a network a tile at a time.

Tiles overlap and fade into each other; memory beyond the two images grows with the photograph's
width only.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

LARGE = 2_000_000
"""Photographs of more pixels than this are worth it."""


def to_pixels(images: Tensor) -> np.ndarray:
    """(N, 3, H, W) float RGB in [0, 1] -> (N, H, W, 3) uint8; what lies outside is cut off."""
    scaled = images.detach().float().clamp(0, 1).mul(255).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def from_pixels(pixels: np.ndarray, device: torch.device) -> Tensor:
    """(H, W, 3) uint8 RGB -> (1, 3, H, W) float in [0, 1]."""
    image = torch.tensor(np.ascontiguousarray(pixels), device=device)
    return image.permute(2, 0, 1)[None].float() / 255


def in_tiles(
    pixels: np.ndarray,
    work: Callable[[np.ndarray, int, int], np.ndarray],
    tile: int,
    overlap: int,
) -> np.ndarray:
    """Turn a photograph (H, W, 3) uint8 into another of the same size, tile by tile.

    work: (piece (h, w, 3) uint8, y and x of its corner) -> (h, w, 3) from 0 to 255. Corners are
    multiples of tile - overlap, pieces at most `tile` wide and high and more than `overlap`.
    """
    height, width = pixels.shape[:2]
    made = np.empty_like(pixels)
    # One row of tiles; its lower margin stays to be blended with the next row.
    total = np.zeros((min(tile, height), width, 3), np.float32)
    weights = np.zeros((min(tile, height), width, 1), np.float32)
    tops = _starts(height, tile, overlap)
    for top, below in zip(tops, [*tops[1:], height], strict=True):
        for left in _starts(width, tile, overlap):
            piece = work(pixels[top : top + tile, left : left + tile], top, left)
            h, w = piece.shape[:2]
            weight = _ramp(h, overlap)[:, None, None] * _ramp(w, overlap)[None, :, None]
            total[:h, left : left + w] += weight * piece
            weights[:h, left : left + w] += weight
        done = below - top
        made[top:below] = np.rint(total[:done] / weights[:done])
        for kept in (total, weights):
            kept[:-done] = kept[done:].copy()
            kept[-done:] = 0
    return made


def _starts(side: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along a side; the last one is what is left of it."""
    return list(range(0, max(side - overlap, 1), tile - overlap))


def _ramp(side: int, overlap: int) -> np.ndarray:
    """(side,) float32: how much a tile's pixels count, rising from its edges over `overlap`."""
    from_edge = np.minimum(np.arange(side), np.arange(side)[::-1]) + 1
    return np.minimum(from_edge / overlap, 1).astype(np.float32)
