"""One size, one container, one history: images of both classes as alike as files can be made.

Without it a benchmark measures in part how well a detector knows file formats; the difference
between a score with it and without is what the files gave away.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ganscope.datasets.degradations import jpeg
from ganscope.errors import GanscopeError

QUALITY = 90
"""JPEG quality in which every aligned image ends."""
SIDES = (256, 224, 192, 160, 128, 96, 64, 48, 32)
"""Sides of the crops, in pixels, the best first."""
ENOUGH = 0.9
"""Share of each class that must be as large as the crops."""


@dataclass(frozen=True)
class Alignment:
    """Cuts the middle out of every image, gives lossless ones the JPEG quality of a lossy one
    first, and ends with one quality for all.
    """

    side: int
    """Of the crops in pixels."""
    qualities: tuple[int, ...]
    """Of the JPEG files, sorted; empty: there are none."""

    def history(self, image: str, quality: int) -> int:
        """The JPEG quality that an image is brought through first; 0: none.

        image: hash of its bytes in hexadecimal digits, which draws; quality: the file's own, 0 for
        other containers than JPEG.
        """
        if quality or not self.qualities:
            return 0
        return self.qualities[int(image[:8], 16) % len(self.qualities)]

    def __call__(self, pixels: np.ndarray, history: int) -> np.ndarray:
        """(H, W, 3) uint8, no side below `side` -> (side, side, 3) uint8."""
        rng = np.random.default_rng(0)  # JPEG draws nothing
        if history:
            pixels = jpeg(pixels, history, rng)
        top, left = ((n - self.side) // 2 for n in pixels.shape[:2])
        return jpeg(pixels[top : top + self.side, left : left + self.side], QUALITY, rng)


def choose_alignment(
    labels: Sequence[int],
    shorter_sides: Sequence[int],
    qualities: Sequence[int],
    side: int | None = None,
) -> Alignment:
    """The alignment for images with these labels, shorter sides and JPEG qualities (0: no JPEG).

    side: of the crops; None: the largest of `SIDES` that nine tenths of either class reach. Raises
    `GanscopeError` if even the smallest is too large.
    """
    y, short = np.asarray(labels), np.asarray(shorter_sides)
    fits = (s for s in SIDES if all((short[y == c] >= s).mean() >= ENOUGH for c in set(y.tolist())))
    found = side or next(fits, None)
    if found is None:
        raise GanscopeError(
            f"most images are smaller than {SIDES[-1]} pixels: nothing can be aligned; use "
            "--protocol raw"
        )
    return Alignment(found, tuple(sorted(q for q in qualities if q)))
