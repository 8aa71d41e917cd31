"""Faces and regions blended into photographs: functions of pixels, faces and random numbers.

`self_blend` puts a face onto itself, changed a little (Shiohara and Yamasaki 2022): all that gives
it away is that two versions of one picture meet. `swap_face` puts another's face there by the
graphics method of FaceForensics++ (landmarks, triangles, colours, Poisson). Both leave every pixel
outside of their mask as it was. Generators write corpora with them, training calls them on the fly.
"""

import cv2
import numpy as np
from scipy.spatial import Delaunay

from ganscope.faces import Face

FAINT = 0.05
"""Where a copy would count for less than this, nothing is changed: masks have an end."""
DYED = 10.0
"""Of 255: Poisson blending may change a swapped face's colours by so much on the average."""
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)
"""How much a self-blended copy may count in the middle of its mask: most often wholly."""


def self_blend(
    pixels: np.ndarray, face: Face, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A face blended onto itself: (H, W, 3) uint8 RGB, and how much the changed copy counts at each
    pixel, (H, W) float32 in [0, 1].

    The copy differs in colour, sharpness or resolution, place and size; the mask is the hull of
    some of the landmarks (of the box, where there are none), bent, eroded or widened, and blurred.
    """
    outline = _outline(face, rng)
    left, top, right, bottom = _around(outline, pixels.shape, 0.35)
    target = pixels[top:bottom, left:right]
    mask = _hull_mask(outline - (left, top), target.shape[:2])
    mask = _roughened(mask, rng) * float(rng.choice(STRENGTHS))
    copy = _moved(_retouched(target, rng), face, rng)
    return _laid_over(pixels, mask, copy, (left, top))


def swap_face(
    target: np.ndarray,
    target_face: Face,
    source: np.ndarray,
    source_face: Face,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """The face of `source` in the place of that of `target`: (H, W, 3) uint8 RGB of the target, and
    how much of it is new at each pixel, (H, W) float32 in [0, 1].

    Both pictures are uint8 RGB of any size. Raises `ValueError` for a face without landmarks.
    """
    there, here = target_face.landmarks, source_face.landmarks
    if there is None or here is None:
        raise ValueError("a face can be swapped only by its landmarks")
    brow = rng.uniform(0.02, 0.16)
    wanted, given = _with_brow(there, brow), _with_brow(here, brow)
    outline = cv2.convexHull(wanted.astype(np.float32))[:, 0]
    left, top, right, bottom = _around(outline, target.shape, 0.25)
    piece = target[top:bottom, left:right]
    size = float(np.ptp(outline, 0).max())
    # Within the hull: its very edge shows cheeks' contours and hair of both.
    mask = _hull_mask(outline - (left, top), piece.shape[:2])
    mask = _feathered(mask, rng.uniform(0.015, 0.04) * size, rng.uniform(0.01, 0.035) * size)
    warped = _warped(source, given, wanted - (left, top), piece.shape[:2])
    inside = mask > 0.5
    if inside.sum() < 16:  # almost all of it lies outside of the picture
        return target.copy(), np.zeros(target.shape[:2], np.float32)
    toned = toned_like(warped, piece, inside, rng.uniform(0.7, 1.0))
    grey = (piece == piece[..., :1]).all()
    blended = _tempered(poisson(piece, toned, mask > FAINT), toned, inside)
    if grey:
        blended = cv2.cvtColor(cv2.cvtColor(blended, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return _laid_over(target, mask, blended, (left, top))


def poisson(target: np.ndarray, copy: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """`copy`'s gradients continued from `target`'s colours at the edge of `inside` (H, W) bool;
    `copy` itself where the equation has no answer. All of one size.
    """
    # OpenCV wants room around the region and places it by the middle of its box.
    room = 8
    framed = cv2.copyMakeBorder(target, *(room,) * 4, cv2.BORDER_REPLICATE)
    source = cv2.copyMakeBorder(copy, *(room,) * 4, cv2.BORDER_REPLICATE)
    mask = np.pad(inside.astype(np.uint8) * 255, room)
    x, y, width, height = cv2.boundingRect(mask)
    if min(width, height) < 3:
        return copy
    try:
        made = cv2.seamlessClone(
            source, framed, mask, (x + width // 2, y + height // 2), cv2.NORMAL_CLONE
        )
    except cv2.error:
        return copy
    return made[room:-room, room:-room]


def _tempered(blended: np.ndarray, toned: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Poisson's answer, or what lies between it and the copy where hair at the edge of one face
    would dye all of the other.
    """
    change = blended.astype(np.float32) - toned
    most = float(np.abs(change[inside]).mean())
    mixed = toned + change * min(1.0, DYED / max(most, 1e-6))
    return np.rint(np.clip(mixed, 0, 255)).astype(np.uint8)


def _laid_over(
    pixels: np.ndarray, mask: np.ndarray, copy: np.ndarray, corner: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """A piece over the picture by its mask, and the mask of the whole picture."""
    left, top = corner
    height, width = mask.shape
    mask = np.where(mask < FAINT, 0, mask).astype(np.float32)
    made, whole = pixels.copy(), np.zeros(pixels.shape[:2], np.float32)
    below = made[top : top + height, left : left + width]
    mixed = below + mask[..., None] * (copy.astype(np.float32) - below)
    below[:] = np.rint(np.clip(mixed, 0, 255))
    whole[top : top + height, left : left + width] = mask
    return made, whole


def _around(
    outline: np.ndarray, shape: tuple[int, ...], margin: float
) -> tuple[int, int, int, int]:
    """The box around points, wider by a part of its size, within a picture."""
    low, high = outline.min(0), outline.max(0)
    more = margin * (high - low) + 4
    left, top = np.floor(np.clip(low - more, 0, (shape[1] - 1, shape[0] - 1))).astype(int)
    right, bottom = np.ceil(np.clip(high + more, 1, (shape[1], shape[0]))).astype(int)
    return int(left), int(top), int(max(right, left + 1)), int(max(bottom, top + 1))


def _hull_mask(outline: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(H, W) float32: 1 within the hull of points, which may lie outside."""
    mask = np.zeros(shape, np.uint8)
    hull = cv2.convexHull(np.rint(outline).astype(np.int32))
    cv2.fillConvexPoly(mask, hull, 1)
    return mask.astype(np.float32)


# --- landmarks ---

_BROWS, _JAW, _NOSE = slice(17, 27), slice(0, 17), 27
_MIDDLE = [*range(17, 68)]
"""Without the jaw: from the brows to the mouth."""
_MOUTH_TO_NOSE = [*range(1, 16), *range(27, 36), *range(48, 68)]
"""The lower half."""


def _with_brow(landmarks: np.ndarray, height: float = 0.2) -> np.ndarray:
    """(78, 2): the landmarks, and points on the forehead above each of the brows', by a part of
    the face below them.
    """
    points = landmarks.astype(np.float64)
    up = points[_NOSE] - points[8]  # from the chin to between the eyes
    return np.concatenate([points, points[_BROWS] + height * up])


def _outline(face: Face, rng: np.random.Generator) -> np.ndarray:
    """Points whose hull a self-blended copy fills: of the face or of a part of it."""
    if face.landmarks is None:
        left, top, right, bottom = face.box
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        middle = np.array([left + right, top + bottom]) / 2
        half = np.array([right - left, bottom - top]) / 2
        return middle + half * np.stack([np.cos(angles), np.sin(angles)], 1) * 0.95
    points = _with_brow(face.landmarks)
    part = rng.choice(4, p=(0.45, 0.25, 0.2, 0.1))
    if part == 0:
        return points
    if part == 1:
        return points[:68]
    return points[_MIDDLE if part == 2 else _MOUTH_TO_NOSE]


def _warped(
    source: np.ndarray, given: np.ndarray, wanted: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """`source` bent, triangle by triangle, so that its points `given` lie on `wanted`: a picture of
    that shape.
    """
    scale = np.sqrt(_area(wanted) / max(_area(given), 1e-6))
    if scale < 0.7:  # shrunk first: what is skipped would alias
        height, width = source.shape[:2]
        size = (max(round(width * scale), 8), max(round(height * scale), 8))
        source = cv2.resize(source, size, interpolation=cv2.INTER_AREA)
        by = np.array(size) / (width, height)
        given = (given + 0.5) * by - 0.5
    height, width = shape[:2]
    # A ring of points far outside, laid by what fits all of the face best: the hull has no rim
    # beyond which there is nothing, whose edge would run through the blending.
    known = np.concatenate([wanted, np.ones((len(wanted), 1))], 1)
    fit = np.linalg.lstsq(known, given, rcond=None)[0]
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    reach = 4 * np.hypot(width, height)
    ring = wanted.mean(0) + reach * np.stack([np.cos(angles), np.sin(angles)], 1)
    wanted = np.concatenate([wanted, ring])
    given = np.concatenate([given, np.concatenate([ring, np.ones((16, 1))], 1) @ fit])
    triangles = Delaunay(wanted).simplices
    number = np.zeros((height, width), np.int32)
    for i, corners in enumerate(wanted[triangles]):
        cv2.fillConvexPoly(number, np.rint(corners).astype(np.int32), i)
    square = np.concatenate([wanted[triangles], np.ones((len(triangles), 3, 1))], 2)
    affine = np.linalg.pinv(square) @ given[triangles]  # (triangles, 3, 2)
    y, x = np.mgrid[:height, :width]
    place = np.stack([x, y, np.ones_like(x)], -1).astype(np.float64)
    found = np.einsum("yxi,yxij->yxj", place, affine[number])
    maps = np.moveaxis(found, -1, 0).astype(np.float32)
    return cv2.remap(source, maps[0], maps[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def _area(points: np.ndarray) -> float:
    return float(cv2.contourArea(cv2.convexHull(points.astype(np.float32))))


def toned_like(
    copy: np.ndarray, target: np.ndarray, inside: np.ndarray, strength: float = 1.0
) -> np.ndarray:
    """`copy` with the mean and spread of `target`'s colours, both over `inside` (H, W) bool; all of
    one size. strength: how far, 0 to 1.
    """
    ours, theirs = (cv2.cvtColor(p, cv2.COLOR_RGB2LAB).astype(np.float32) for p in (copy, target))
    mean, spread = ours[inside].mean(0), ours[inside].std(0)
    aim, aimed = theirs[inside].mean(0), theirs[inside].std(0)
    gain = np.clip(aimed / np.maximum(spread, 1), 0.5, 1.6)
    if not aimed[1:].any():
        gain[1:] = 0  # a grey picture stays grey
    moved = (ours - mean) * gain + aim
    mixed = ours + strength * (moved - ours)
    return cv2.cvtColor(np.rint(np.clip(mixed, 0, 255)).astype(np.uint8), cv2.COLOR_LAB2RGB)


# --- masks ---


def _feathered(mask: np.ndarray, erode: float, blur: float) -> np.ndarray:
    """A mask of 0 and 1 made smaller by so many pixels, and soft inwards and outwards by others."""
    if erode >= 0.5:
        side = 2 * round(erode) + 1
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
        mask = cv2.erode(mask, kernel, borderType=cv2.BORDER_REPLICATE)
    return cv2.GaussianBlur(mask, (0, 0), max(blur, 0.3), borderType=cv2.BORDER_REPLICATE)


def _roughened(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A mask of 0 and 1, bent at random, eroded or widened, and soft."""
    size = float(np.sqrt(mask.sum())) or 1.0
    mask = _bent(mask, rng, amount=rng.uniform(0.02, 0.09) * size, smooth=size / 6)
    change = rng.uniform(-0.05, 0.08) * size
    if change < 0:
        side = 2 * round(-change) + 1
        mask = cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
        change = 0.0
    return _feathered(mask, change, float(rng.choice((0.004, 0.015, 0.03, 0.06))) * size)


def _bent(mask: np.ndarray, rng: np.random.Generator, amount: float, smooth: float) -> np.ndarray:
    """A mask whose pixels are moved by a smooth random field, by up to `amount` pixels."""
    height, width = mask.shape
    cells = [int(np.clip(round(s / max(smooth, 1)), 2, 24)) for s in (height, width)]
    field = rng.uniform(-1, 1, (*cells, 2)).astype(np.float32)
    field = cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC) * np.float32(amount)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return cv2.remap(
        mask,
        x + field[..., 0],
        y + field[..., 1],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )


# --- the copy of a self-blended face ---


def _retouched(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A copy changed in colour, and in sharpness or resolution."""
    copy: np.ndarray = pixels.astype(np.float32)
    if (pixels == pixels[..., :1]).all():  # a grey picture stays grey
        copy = copy + rng.uniform(-14, 14)
    else:
        copy = copy + rng.uniform(0.2, 1) * rng.uniform(-14, 14, 3)
        grey = copy.mean(-1, keepdims=True)
        copy = grey + (copy - grey) * rng.uniform(0.75, 1.25)
    middle = float(copy.mean())
    copy = middle + (copy - middle) * rng.uniform(0.85, 1.15) + rng.uniform(-10, 10)
    copy = np.clip(copy, 0, 255)
    height, width = pixels.shape[:2]
    way = rng.choice(4)
    if way == 0:  # blurred
        copy = cv2.GaussianBlur(copy, (0, 0), rng.uniform(0.5, 1.6))
    elif way == 1:  # sharpened
        soft = cv2.GaussianBlur(copy, (0, 0), rng.uniform(0.8, 2.0))
        copy = copy + rng.uniform(0.3, 1.0) * (copy - soft)
    elif way == 2:  # of lower resolution
        by = rng.uniform(0.3, 0.8)
        small = cv2.resize(
            copy,
            (max(round(width * by), 2), max(round(height * by), 2)),
            None,
            0,
            0,
            cv2.INTER_AREA,
        )
        copy = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    else:  # saved once more
        quality = int(rng.integers(40, 91))
        bgr = cv2.cvtColor(np.rint(copy).astype(np.uint8), cv2.COLOR_RGB2BGR)
        _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
        saved = cv2.imdecode(data, cv2.IMREAD_COLOR)
        assert saved is not None
        copy = cv2.cvtColor(saved, cv2.COLOR_BGR2RGB)
    return np.rint(np.clip(copy, 0, 255)).astype(np.uint8)


def _moved(pixels: np.ndarray, face: Face, rng: np.random.Generator) -> np.ndarray:
    """A copy shifted, turned and scaled a little about its middle."""
    height, width = pixels.shape[:2]
    reach = max(face.width, face.height)
    turn = cv2.getRotationMatrix2D(
        (width / 2, height / 2), rng.uniform(-2.5, 2.5), rng.uniform(0.95, 1.05)
    )
    turn[:, 2] += np.array([rng.uniform(-0.03, 0.03), rng.uniform(-0.02, 0.02)]) * reach
    return cv2.warpAffine(
        pixels, turn, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
    )
