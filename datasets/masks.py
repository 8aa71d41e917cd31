"""Masks: which pixels of an image were made or changed, as PNG files beside a corpus' images.

A manifest's column `mask` names a file below the corpus' root, "" where there is none: nothing of a
real photograph was changed, everything of an image that was generated as a whole.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ganscope.errors import GanscopeError, ImageError
from ganscope.images import open_image

FOLDER = "masks"
"""Where masks lie below a corpus' root: beside the folders of images, never among them."""
HALF = 128
"""Of 255: pixels from this value on count as changed."""


def encode_mask(mask: np.ndarray) -> bytes:
    """(H, W) bool, or float in [0, 1] of which all above 0 counts as changed -> a PNG file of one
    channel, 0 or 255.
    """
    done, data = cv2.imencode(".png", np.where(mask > 0, np.uint8(255), np.uint8(0)))
    if not done:
        raise GanscopeError("this build of opencv cannot write png, which masks are kept in")
    return data.tobytes()


def read_mask(path: str | Path, shape: Sequence[int]) -> np.ndarray:
    """The mask of an image whose shape begins with height and width: (H, W) bool, True = changed.

    Masks of others may have colours; what is brighter than half in any channel counts. Raises
    `ImageError` for what cannot be read as an image, or has another size than its image: a mask is
    never stretched.
    """
    pixels = open_image(path).pixels
    height, width = shape[:2]
    if pixels.shape[:2] != (height, width):
        raise ImageError(
            path,
            f"a mask of {pixels.shape[1]}x{pixels.shape[0]} pixels for an image of "
            f"{width}x{height}; a mask has its image's size",
        )
    return np.any(pixels >= HALF, axis=-1)
