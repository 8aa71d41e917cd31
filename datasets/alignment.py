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
GRID = 16
"""Pixels: a JPEG's blocks of 8, twice as large in its colours."""
SIDES = (256, 224, 192, 160, 128, 96, 64, 48, 32)
"""Sides of the crops, in pixels, the best first."""
ENOUGH = 0.9
"""Share of each class that must be as large as the crops, and of the images of each generator that
must be of the common quality or better."""
LOSSLESS = 101
"""Stands for the quality of what is no JPEG."""


@dataclass(frozen=True)
class Alignment:
    """Saves every image as JPEG of one quality, cuts its middle out, and saves that alike, too.

    The first quality is so low that hardly an image was saved with a lower one before: whatever the
    files were, they have lost as much.
    """

    side: int
    """Of the crops in pixels."""
    quality: int | None
    """The first, that of the whole images; None: none of them was a JPEG."""

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8, no side below `side` -> (side, side, 3) uint8."""
        rng = np.random.default_rng(0)  # JPEG draws nothing
        if self.quality is not None:
            pixels = jpeg(pixels, self.quality, rng)
        # On the first JPEG's grid: the place of its blocks would tell how large the image was.
        top, left = ((n - self.side) // 2 // GRID * GRID for n in pixels.shape[:2])
        return jpeg(pixels[top : top + self.side, left : left + self.side], QUALITY, rng)


def choose_alignment(
    generators: Sequence[str],
    labels: Sequence[int],
    shorter_sides: Sequence[int],
    qualities: Sequence[int],
    side: int | None = None,
) -> Alignment:
    """The alignment for images of these generators and labels, with these shorter sides and JPEG
    qualities (0: no JPEG).

    side: of the crops; None: the largest of `SIDES` that nine tenths of either class reach. The
    quality is the best that nine tenths of the photographs, and of each generator's images, have.
    Raises `GanscopeError` if even the smallest side is too large.
    """
    y, short = np.asarray(labels), np.asarray(shorter_sides)
    fits = (s for s in SIDES if all((short[y == c] >= s).mean() >= ENOUGH for c in set(y.tolist())))
    found = side or next(fits, None)
    if found is None:
        raise GanscopeError(
            f"most images are smaller than {SIDES[-1]} pixels: nothing can be aligned; use "
            "--protocol raw"
        )
    names = np.where(y == 1, np.asarray(generators, str), "")  # photographs are one kind
    quality = np.where(np.asarray(qualities) > 0, qualities, LOSSLESS)
    lowest = min(
        int(np.quantile(quality[names == name], 1 - ENOUGH, method="higher"))
        for name in set(names.tolist())
    )
    return Alignment(found, lowest if lowest < LOSSLESS else None)
