"""Faces as the authors of face detectors cut them out; the finder is ours (`faces.py`), not theirs.

A picture without a face is looked at as a whole, so that every picture has a score.
"""

from functools import cache

import cv2
import numpy as np

from ganscope.faces import Face, Finder, open_finder

EYES_NOSE_MOUTH = [37, 44, 30, 49, 55]
"""Of the 68 landmarks: those that faces are aligned by."""
PLACES = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)
"""Where they are put in a face of 112x112 pixels (ArcFace's)."""
FILLED = 0.5
"""Share of a square picture's side that a face's box has at least where the picture is an aligned
face already, as the field's data sets are published."""


@cache
def finder() -> Finder:
    return open_finder()


def boxed(pixels: np.ndarray, margin: float) -> list[np.ndarray]:
    """The largest face and those of at least half its area, each with `margin` times its box's
    width and height added on each side, (h, w, 3); without any the whole picture.
    """
    found = finder().find(pixels)
    largest = max((face.width * face.height for face in found), default=0)
    cut = []
    for face in found:
        if 2 * face.width * face.height < largest:
            continue
        left, top, right, bottom = face.box
        over, up = face.width * margin, face.height * margin
        cut.append(
            pixels[
                max(0, int(top - up)) : int(bottom + up) + 1,
                max(0, int(left - over)) : int(right + over) + 1,
            ]
        )
    return cut or [pixels]


def aligned(pixels: np.ndarray, side: int, scale: float = 1.3) -> np.ndarray:
    """The largest face turned upright, eyes, nose and mouth in their places: (side, side, 3) uint8.

    scale: how much more than a face of ArcFace's it shows. A square picture that a face fills is
    one already and only resized, and so is a picture without a face.
    """
    found = finder().find(pixels)
    height, width = pixels.shape[:2]
    if not found or (height == width and found[0].width >= FILLED * width):
        return cv2.resize(pixels, (side, side), interpolation=cv2.INTER_CUBIC)
    margin = side * (scale - 1) / 2
    places = (np.array(PLACES) * side / 112 + margin) * side / (side + 2 * margin)
    return cv2.warpAffine(pixels, similarity(_points(found[0]), places), (side, side))


def similarity(points: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The turn, scale and shift (2, 3) that brings points (N, 2) closest to places (N, 2)."""
    z, w = (np.asarray(p, float) @ [1, 1j] for p in (points, places))
    centred = z - z.mean()
    turn = np.vdot(centred, w - w.mean()) / np.vdot(centred, centred).real
    shift = w.mean() - turn * z.mean()
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def _points(face: Face) -> np.ndarray:
    """Eyes, nose and corners of the mouth (5, 2); of a face without landmarks where they are in
    most: from the hairline to the chin, ArcFace's face is a little wider and higher.
    """
    if face.landmarks is not None:
        return face.landmarks[EYES_NOSE_MOUTH]
    left, top, right, bottom = face.box
    share = (np.array(PLACES) - (20, 8)) / (112 - 40, 112 - 8)
    return np.array([left, top]) + share * [right - left, bottom - top]
