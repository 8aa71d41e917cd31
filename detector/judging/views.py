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

STRIP = 8
"""With sides in a larger ratio an image is cut down to it before anything else."""


@dataclass(frozen=True)
class Views:
    """Square parts of one image, in the order in which they are looked at."""

    cut: np.ndarray
    """(T, size, size, 3) uint8"""
    positions: np.ndarray
    """(T, 2) top and left, in pixels of the image, of views at native resolution; -1 for others."""
    first: int
    """So many views are the first look: the whole made small, and the middle as it is. The first of
    them alone is a glance. The rest is for images of which these do not tell enough."""

    def weights(self, count: int) -> np.ndarray:
        """(count,) what each of the first `count` views weighs, see `view_weights`."""
        return view_weights(self.positions[:count])


def view_weights(positions: np.ndarray) -> np.ndarray:
    """What views at these positions (T, 2) weigh: (T,), their sum is 1. Those at native resolution
    together weigh as much as all others together.
    """
    native = positions[:, 0] >= 0
    kinds = int(native.any()) + int(not native.all())
    return np.where(native, 1 / max(native.sum(), 1), 1 / max((~native).sum(), 1)) / kinds


def cut_views(pixels: np.ndarray, size: int, plan: dict[str, Any]) -> Views:
    """The views of an image (H, W, 3) uint8 RGB, each `size` pixels a side.

    plan: `whole`: the length in pixels that the image's short side is shrunk to before its middle
    is cut out. First come that and the middle at native resolution; then two corners at native
    resolution, of images that are large enough, and of wide and tall ones both ends at `size`
    pixels of the short side. An image that is smaller than a view is enlarged to it. Of a strip
    (`STRIP`) the middle is taken for the whole.
    """
    picture = _without_ends(Image.fromarray(pixels))
    if min(picture.size) < size:
        picture = _to_short_side(picture, size)
    width, height = picture.size
    small = _to_short_side(picture, plan["whole"])
    found = [
        (_middle(small, size), _NOWHERE),
        (_middle(picture, size), ((height - size) // 2, (width - size) // 2)),
    ]
    if min(width, height) >= FEW_PIXELS * size:
        corners = ((0, 0), (height - size, width - size))
        found += [(_cut(picture, top, left, size), (top, left)) for top, left in corners]
    if max(width, height) >= WIDE * min(width, height):
        strip = _to_short_side(picture, size)
        ends = ((0, 0), (strip.height - size, strip.width - size))
        found += [(_cut(strip, top, left, size), _NOWHERE) for top, left in ends]
    cut, positions = zip(*found, strict=True)
    return Views(np.stack(cut), np.array(positions), 2)


def whole_of(pixels: np.ndarray, size: int) -> np.ndarray:
    """A square part of an image, made as large or small as a view: (size, size, 3) uint8."""
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))


_NOWHERE = (-1, -1)


def _without_ends(picture: Image.Image) -> Image.Image:
    """The middle of a strip, so that enlarging it takes no memory to speak of."""
    most = STRIP * min(picture.size)
    if max(picture.size) <= most:
        return picture
    left, top = (max(n - most, 0) // 2 for n in picture.size)
    return picture.crop((left, top, picture.width - left, picture.height - top))


def _middle(picture: Image.Image, size: int) -> np.ndarray:
    return _cut(picture, (picture.height - size) // 2, (picture.width - size) // 2, size)


def _to_short_side(picture: Image.Image, side: int) -> Image.Image:
    """The picture resized so that its shorter side has `side` pixels (bicubic, no aliasing)."""
    share = side / min(picture.size)
    width, height = (max(side, round(n * share)) for n in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _cut(picture: Image.Image, top: int, left: int, size: int) -> np.ndarray:
    return np.asarray(picture.crop((left, top, left + size, top + size)))
