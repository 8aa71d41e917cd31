"""Where the evidence lies: heatmaps (H, W) float32 in [0, 1] at image resolution, high = fake.

`patches` and `tiles` show the network's own local logits on the scale of the image's calibration,
so that they can be compared between images, but are no probabilities of places; `gradcam` shows,
for any network, which places moved the logit (relative to the most important one). To add a method,
register it.
"""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from ganscope.detector.judge import Judge, sigmoid
from ganscope.detector.judging.faces import FaceCheck, around, find_faces, least_of
from ganscope.detector.judging.scoring import tile_positions, tiles
from ganscope.detector.judging.views import cut_views, whole_of
from ganscope.errors import GanscopeError
from ganscope.faces import open_finder
from ganscope.files import write_picture
from ganscope.registry import Registry

MAX_TILES, MAX_VIEWS = 400, 40
"""Tiles that a heatmap looks at in one image, and views of a backbone, which are dear; beyond, gaps
are filled in from around."""
BATCH = 16
SMOOTH = 9
"""The map of a backbone is averaged by a Gaussian whose sigma is a view's side by this."""
PICTURE = (-2.0, 4.0)
"""The logit of a whole picture is held between these before it moves those of its places."""

Method = Callable[[Judge, np.ndarray, float | None], np.ndarray]
heatmap_methods: Registry[Method] = Registry("heatmap method")


def heatmap(
    detector: Judge, pixels: np.ndarray, method: str = "auto", probability: float | None = None
) -> np.ndarray:
    """The evidence in an image: (H, W) float32 in [0, 1], high = evidence for fake.

    pixels: (H, W, 3) uint8 RGB. method: patches, tiles or gradcam; auto: patches where the network
    has a map of logits of its own, else gradcam where it has layers for that, else tiles.
    probability: the calibrated one of the whole image, where it is known: that spares time. Raises
    `GanscopeError` for a method that does not fit.
    """
    if detector.faces_alone:
        return _of_faces(detector, pixels)
    if method == "auto":
        method = "gradcam" if detector.has_gradients else "tiles"
        method = "patches" if detector.has_map else method
    return heatmap_methods[method](detector, pixels, probability)


def _of_faces(detector: Judge, pixels: np.ndarray) -> np.ndarray:
    """What a detector of faces alone says of the places in each: 0 outside their squares."""
    height, width = pixels.shape[:2]
    found = np.zeros((height, width), np.float32)
    for face in find_faces(open_finder(), pixels)[0]:
        if min(face.width, face.height) < least_of(detector):
            continue
        top, left, bottom, right = around(face, height, width, detector.around_faces)
        square = whole_of(np.ascontiguousarray(pixels[top:bottom, left:right]), detector.size)
        view = square[None].copy()
        if detector.has_places or detector.has_map:
            local, whole = detector.local_logits(view)
        else:
            whole = detector.logits(view)
            local = whole[:, None, None]
        if detector.has_places:  # as in `patches`: a face that looks real has no such places
            local = local + _odds(float(detector.probability(whole[0])))
        size = (right - left, bottom - top)
        place = cv2.resize(sigmoid(local[0]).astype(np.float32), size)
        square = found[top:bottom, left:right]
        np.maximum(square, place, out=square)
    return found


@heatmap_methods.register("patches")
def patches(detector: Judge, pixels: np.ndarray, probability: float | None) -> np.ndarray:
    """The network's own map of logits, averaged around each place over about a tile.

    Tiles are what the calibration is made for: a single patch scatters more, and on its scale
    would look sure where nothing is. A network with a layer `where` of its own says how likely each
    place is fake, compared with others; the odds of the picture as a whole are multiplied in.
    """
    found = cv2.GaussianBlur(
        _stitched(detector, pixels, detector.places),
        (0, 0),
        detector.size / (SMOOTH if detector.views else 4),
        borderType=cv2.BORDER_REFLECT,
    )
    if not detector.has_places:
        return detector.probability(found).astype(np.float32)
    if probability is None:
        probability = float(detector.probability(_logit_of(detector, pixels)))
    return sigmoid(found + _odds(probability)).astype(np.float32)


def _odds(probability: float) -> float:
    """What is added to the log odds of places, that they be those in this picture; they stay to be
    seen in any.
    """
    chance = np.clip(probability, 1e-9, 1 - 1e-9)
    return float(np.clip(np.log(chance / (1 - chance)), *PICTURE))


def _logit_of(detector: Judge, pixels: np.ndarray) -> float:
    """Of the whole picture, by all its views or tiles."""
    if detector.views:
        views = cut_views(pixels, detector.size, detector.views)
        return float(detector.logits(views.cut) @ views.weights(len(views.cut)))
    return float(detector.logits(tiles(pixels, detector.size)[0]).mean())


@heatmap_methods.register("tiles")
def tile_logits(detector: Judge, pixels: np.ndarray, _: float | None) -> np.ndarray:
    """One logit a tile, on tiles that overlap by half."""

    def local(cut: np.ndarray) -> np.ndarray:
        return detector.logits(cut)[:, None, None]

    return detector.probability(_stitched(detector, pixels, local)).astype(np.float32)


@heatmap_methods.register("gradcam")
def gradcam(detector: Judge, pixels: np.ndarray, _: float | None) -> np.ndarray:
    """Grad-CAM, relative to the most important place; see `gradcam.py`."""
    if not detector.has_gradients:
        raise GanscopeError(
            f"{detector.name}: no Grad-CAM, which needs a convolutional network and torch; "
            "use tiles"
        )
    from ganscope.detector.judging.gradcam import relevance_of  # needs torch

    with relevance_of(detector) as relevance:
        found = np.maximum(_stitched(detector, pixels, relevance), 0)
    top = float(found.max())
    return found / top if top > 0 else found


def _stitched(
    detector: Judge, pixels: np.ndarray, local: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Local maps of overlapping tiles laid where the tiles were taken and blended: (H, W) float32.

    local: (N, size, size, 3) uint8 -> maps (N, h, w).
    """
    size = detector.size
    height, width = pixels.shape[:2]
    short = (max(size - height, 0), max(size - width, 0))
    if any(short):
        pixels = np.pad(pixels, ((0, short[0]), (0, short[1]), (0, 0)), mode="symmetric")
    # Positions of half-size tiles that cover the image: whole ones there overlap by half.
    positions = tile_positions(
        pixels.shape[0] - size + size // 2,
        pixels.shape[1] - size + size // 2,
        size // 2,
        MAX_VIEWS if detector.views else MAX_TILES,
    )
    window = np.hanning(size + 2)[1:-1].astype(np.float32)  # a tile counts most in its middle
    window = np.outer(window, window)
    total: np.ndarray = np.zeros(pixels.shape[:2], np.float32)
    weight = np.zeros_like(total)
    for start in range(0, len(positions), BATCH):
        part = positions[start : start + BATCH]
        cut = np.stack([pixels[y : y + size, x : x + size] for y, x in part])
        for values, (y, x) in zip(local(cut), part, strict=True):
            whole = cv2.resize(values, (size, size), interpolation=cv2.INTER_LINEAR)
            total[y : y + size, x : x + size] += whole * window
            weight[y : y + size, x : x + size] += window
    if not weight.all():  # a huge image: its gaps are filled in from the tiles around them
        coarse = [
            cv2.GaussianBlur(
                cv2.resize(part, None, fx=2 / size, fy=2 / size, interpolation=cv2.INTER_AREA),
                (0, 0),
                4,
            )
            for part in (total, weight)
        ]
        total, weight = (cv2.resize(part, total.shape[::-1]) for part in coarse)
    return (total / np.maximum(weight, 1e-6))[:height, :width]


def overlay(
    pixels: np.ndarray,
    heat: np.ndarray,
    strength: float = 0.45,
    caption: str = "",
    faces: Sequence[FaceCheck] = (),
) -> np.ndarray:
    """An image with its heatmap laid over it and a colour bar beside it, (H', W', 3) uint8 RGB; a
    box with its score around each face, a caption in lines below.

    Large images are shrunk to 1600 pixels a side, small ones enlarged to 256.
    """
    shrink = min(1.0, 1600 / max(pixels.shape[:2]))
    grow = max(1.0, 256 / max(pixels.shape[:2]))
    width, height = (max(1, round(side * shrink * grow)) for side in pixels.shape[1::-1])
    small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    blended = lay_over(small, cv2.resize(heat, (width, height)), strength)
    draw_faces(blended, faces, width / pixels.shape[1])
    drawn = np.hstack([blended, _colour_bar(height)])
    return np.vstack([drawn, *_lines(caption, drawn.shape[1])]) if caption else drawn


FRAMES = {"fake": (235, 64, 52), "unsure": (245, 200, 66), "real": (80, 200, 120)}
"""Colours of the boxes around faces, by verdict."""


def draw_faces(shown: np.ndarray, faces: Sequence[FaceCheck], scale: float) -> None:
    """Draw the boxes of faces and their scores on an image (H, W, 3) uint8 RGB, in place. scale:
    its pixels in one of the picture that they were found in.
    """
    for face in reversed(faces):  # the largest on top
        _draw_face(shown, face, scale)


def _draw_face(shown: np.ndarray, face: FaceCheck, scale: float) -> None:
    left, top, right, bottom = (round(side * scale) for side in face.box)
    colour = FRAMES.get(face.verdict or "", (200, 200, 200))
    cv2.rectangle(shown, (left, top), (right - 1, bottom - 1), (30, 30, 30), 4)
    cv2.rectangle(shown, (left, top), (right - 1, bottom - 1), colour, 2)
    score = face.swap_score if face.swapped else face.score
    if score is None:
        return
    font = cv2.FONT_HERSHEY_SIMPLEX
    text = f"swapped {score:.2f}" if face.swapped else f"{score:.2f}"
    (wide, high), _ = cv2.getTextSize(text, font, 0.5, 1)
    x = max(min(left, shown.shape[1] - wide - 6), 0)
    y = max(top, high + 6)
    cv2.rectangle(shown, (x, y - high - 6), (x + wide + 6, y), colour, -1)
    cv2.putText(shown, text, (x + 3, y - 4), font, 0.5, (20, 20, 20), 1, cv2.LINE_AA)


def _lines(text: str, width: int) -> Iterator[np.ndarray]:
    """A text in lines (20, width, 3) uint8 RGB; signs that the font lacks become question marks."""
    plain = " ".join(text.encode("ascii", "replace").decode().split())
    for line in textwrap.wrap(plain, max(width // 8, 12), max_lines=6):
        row = np.full((20, width, 3), 255, np.uint8)
        cv2.putText(
            row, line, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (40, 40, 40), 1, cv2.LINE_AA
        )
        yield row


def lay_over(pixels: np.ndarray, heat: np.ndarray, strength: float = 0.45) -> np.ndarray:
    """The colours of a heatmap (H, W) over an image (H, W, 3) in grey: (H, W, 3) uint8 RGB.

    Blue: no evidence for fake; red: strong evidence.
    """
    values = (np.clip(heat, 0, 1) * 255).astype(np.uint8)
    colours = cv2.applyColorMap(values, cv2.COLORMAP_TURBO)[..., ::-1]
    grey = np.repeat(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None], 3, -1)
    return cv2.addWeighted(grey, 1 - strength, np.ascontiguousarray(colours), strength, 0)


def _colour_bar(height: int, width: int = 76) -> np.ndarray:
    ramp = np.linspace(255, 0, max(height - 40, 8)).astype(np.uint8)[:, None].repeat(16, 1)
    colours = cv2.applyColorMap(ramp, cv2.COLORMAP_TURBO)[..., ::-1]
    bar = np.full((height, width, 3), 255, np.uint8)
    top = max((height - len(colours)) // 2, 0)
    bar[top : top + len(colours), 8:24] = colours[: height - top]
    end = min(top + len(colours), height - 4)
    for text, y in (("1 fake", top + 8), ("0.5", (top + 8 + end) // 2), ("0 real", end)):
        cv2.putText(
            bar, text, (28, y), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (40, 40, 40), 1, cv2.LINE_AA
        )
    return bar


def write_overlay(
    path: str | Path,
    pixels: np.ndarray,
    heat: np.ndarray,
    caption: str = "",
    faces: Sequence[FaceCheck] = (),
) -> None:
    """Write `overlay` as PNG, atomically; raises `GanscopeError` if it cannot be written."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_picture(path, overlay(pixels, heat, caption=caption, faces=faces))
    except OSError as error:
        raise GanscopeError(f"{path}: the heatmap cannot be written ({error.strerror})") from None
