"""Views: what a detector with a backbone looks at, instead of tiles.

A backbone that was trained on photographs at a small size sees content as well as traces, so it is
shown both: parts of the image at native resolution, where the traces of a generator are, and the
whole of it made small, where its composition and light are.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

WIDE = 1.2
"""From this ratio of the sides on, the middle square of an image leaves much out: its two ends are
looked at, too."""
FEW_PIXELS = 4 / 3
"""An image with a side of less than so many views is looked at in its middle only: corners would
show nearly the same."""


@dataclass(frozen=True)
class Views:
    """Square parts of one image and what each weighs."""

    cut: np.ndarray
    """(T, size, size, 3) uint8"""
    weights: np.ndarray
    """(T,) float64, their sum is 1: the image's logit is the weighted sum of the views'."""
    positions: np.ndarray
    """(N, 2) top and left, in pixels of the image, of the N views at native resolution; they come
    first."""


def cut_views(pixels: np.ndarray, size: int, plan: dict[str, Any]) -> Views:
    """The views of an image (H, W, 3) uint8 RGB, each `size` pixels a side.

    plan: `native`: at most so many views at native resolution, 1 (the middle) or 5 (and the
    corners); `whole`: lengths in pixels that the image's short side is shrunk to before its middle
    is cut out; `ends`: whether a wide or tall image is looked at from end to end, too, at `size`
    pixels of its short side. The native views together weigh as much as all others together. An
    image that is smaller than a view is enlarged to it.
    """
    picture = Image.fromarray(pixels)
    if min(picture.size) < size:
        picture = _to_short_side(picture, size)
    width, height = picture.size
    places = [((height - size) // 2, (width - size) // 2)]
    if plan["native"] > 1 and min(width, height) >= FEW_PIXELS * size:
        bottom, right = height - size, width - size
        places += [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    native = [_cut(picture, top, left, size) for top, left in places[: plan["native"]]]
    whole = []
    for side in plan["whole"]:
        small = _to_short_side(picture, side)
        whole.append(_cut(small, (small.height - size) // 2, (small.width - size) // 2, size))
    if plan.get("ends") and max(width, height) >= WIDE * min(width, height):
        strip = _to_short_side(picture, size)
        whole += [
            _cut(strip, 0, 0, size),
            _cut(strip, strip.height - size, strip.width - size, size),
        ]
    share = 0.5 if whole else 1.0
    weights = [share / len(native)] * len(native) + [(1 - share) / max(len(whole), 1)] * len(whole)
    return Views(np.stack(native + whole), np.array(weights), np.array(places[: len(native)]))


def _to_short_side(picture: Image.Image, side: int) -> Image.Image:
    """The picture resized so that its shorter side has `side` pixels (bicubic, no aliasing)."""
    share = side / min(picture.size)
    width, height = (max(side, round(n * share)) for n in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _cut(picture: Image.Image, top: int, left: int, size: int) -> np.ndarray:
    return np.asarray(picture.crop((left, top, left + size, top + size)))
