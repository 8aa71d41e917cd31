"""Faces looked at by themselves: a swapped or retouched one is a small part of a photograph, and
what is found there is lost where the whole is pooled.

Each is cut out as a square with what surrounds it, and scored by the same detector, in the same
batches, as if it were a picture.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ganscope.detector.judge import Judge, sigmoid
from ganscope.errors import counted
from ganscope.faces import Face, Finder

MOST = 8
"""Faces of one picture that are looked at, the largest."""
AROUND, AROUND_TILES = 2.0, 1.2
"""Side of the square that is cut out, in longer sides of the face's box; the second is of detectors
that look at tiles. Of 71 faces in 55 real photographs the one that ships called 5 fake in squares
of 1.3, 1 in those of 1.6 and of 2, and fewer *unsure* the larger these were."""
SMALLEST = 32
"""Pixels: faces with a shorter side are found but not judged; a detector may want more of them."""


@dataclass
class FaceViews:
    """A face on its way through the detector."""

    face: Face
    cut: np.ndarray | None = None
    """(T, size, size, 3) uint8: what is looked at; None: it is too small."""
    weights: np.ndarray = field(default_factory=lambda: np.empty(0))
    tile_logits: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    """(T,), as they come."""
    closely: np.ndarray | None = None
    """(size, size, 3) uint8: what the detector's `face_head` looks at, if it has one."""
    swap_logit: float | None = None
    """What that says of it; higher = more likely swapped."""

    @property
    def complete(self) -> bool:
        return self.cut is None or len(self.tile_logits) == len(self.cut)

    def logit(self) -> float:
        return float(self.tile_logits.astype(np.float64) @ self.weights)


@dataclass(frozen=True, kw_only=True)
class FaceCheck:
    """What was said of one face; of one that is too small nothing but where it is."""

    box: tuple[int, int, int, int]
    """Left, top, right, bottom in pixels of the picture."""
    confidence: float | None
    """The finder's, that it is a face, in (0, 1]; None: it gives none (`cascades`)."""
    score: float | None
    """In [0, 1], higher = more likely fake; on the scale of the picture's, and no probability."""
    verdict: str | None
    """fake, real or unsure; None: not judged."""
    swap_score: float | None = None
    """In [0, 1], higher = more likely put into the picture; None: the detector cannot tell."""
    swap_threshold: float | None = None
    """Of `swap_score`, from which on a face counts as swapped."""
    swapped: bool = False
    """Whether it does, so that the verdict is *fake*."""
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "box": list(self.box), "warnings": list(self.warnings)}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "FaceCheck":
        """The opposite of `as_dict`."""
        box, said = tuple(record["box"]), tuple(record["warnings"])
        return cls(**{**record, "box": box, "warnings": said})

    @property
    def place(self) -> str:
        """Where it is, in words."""
        left, top, right, bottom = self.box
        return f"{right - left}x{bottom - top} pixels at {left},{top}"


def find_faces(finder: Finder, pixels: np.ndarray) -> tuple[list[Face], int]:
    """The faces of a picture that are looked at, largest first, and how many there are."""
    found = finder.find(pixels)
    return found[:MOST], len(found)


def least_of(detector: Judge) -> int:
    """Pixels: the shorter side of a face that is judged. Its square is not smaller than a picture
    that the detector judges.
    """
    return max(SMALLEST, math.ceil(detector.smallest / AROUND))


def around(
    face: Face, height: int, width: int, times: float, least: int = 1
) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of the square around a face, moved into the picture and no larger
    than that. times: its side, in longer sides of the box; least: in pixels, if there is room.
    """
    left, top, right, bottom = face.box
    side = min(max(round(times * max(face.width, face.height)), least), height, width)
    up = min(max((top + bottom - side) // 2, 0), height - side)
    over = min(max((left + right - side) // 2, 0), width - side)
    return up, over, up + side, over + side


def judge_faces(detector: Judge, faces: Sequence[FaceViews]) -> tuple[FaceCheck, ...]:
    """What the logits of faces' views mean, in their order."""
    found = []
    for one in faces:
        score: float | None = None
        verdict: str | None = None
        said: tuple[str, ...] = ()
        sure = one.face.confidence
        if one.cut is None:
            said = (f"a side of less than {least_of(detector)} pixels: too small to judge",)
        elif np.isfinite(one.logit()):
            score = float(detector.score(one.logit()))
            verdict = detector.verdict(score)
        swap_score, least, swapped = None, None, False
        head, logit = detector.face_head, one.swap_logit
        if head is not None and logit is not None and np.isfinite(logit):
            swap_score, least = sigmoid(logit), head.threshold
            swapped = swap_score >= least
            verdict = "fake" if swapped else verdict
        found.append(
            FaceCheck(
                box=one.face.box,
                confidence=None if sure is None else round(sure, 4),
                score=score,
                verdict=verdict,
                swap_score=swap_score,
                swap_threshold=least,
                swapped=swapped,
                warnings=said,
            )
        )
    return tuple(found)


@dataclass(frozen=True)
class Told:
    """What a picture's faces make of its verdict."""

    verdict: str
    meaning: str
    """Why it is another than the whole picture's; "" if it is not."""
    remarks: list[str]


def told_by_faces(faces: Sequence[FaceCheck], found: int, verdict: str) -> Told:
    """What faces make of the verdict of a picture as a whole. found: how many there are."""
    remarks = []
    if found > len(faces):
        remarks.append(f"{found} faces: the {len(faces)} largest looked at")
    small = sum(face.verdict is None for face in faces)
    if small:
        remarks.append(f"{counted(small, 'face is', 'faces are')} too small to judge")
    suspect = [face for face in faces if face.verdict == "fake"]
    if not suspect or verdict == "fake":
        return Told(verdict, "", remarks)
    swapped = [face for face in suspect if face.swapped]
    worst = max(swapped or suspect, key=lambda f: (f.swap_score if f.swapped else f.score) or 0.0)
    many = "a face looks" if len(suspect) == 1 else f"{len(suspect)} faces look"
    how = "generated" if not swapped else "swapped"
    if 0 < len(swapped) < len(suspect):
        how = "swapped or generated"
    score = worst.swap_score if worst.swapped else worst.score
    remarks.append(f"{many} {how} (score {score:.3f}, {worst.place}), so unsure")
    return Told("unsure", f"{many} {how}, of which alone no probability is known", remarks)
