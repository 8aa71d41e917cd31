"""From files to logits: open, tile at native resolution, run the network, pool.

Nothing is resized: the traces of a generator live in single pixels. (A detector with a backbone
looks at the whole made small, too: `views`.) Threads decode while the network runs; tiles of many
images share a batch; memory depends on neither the number nor the size of images.
"""

import functools
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeGuard

import cv2
import numpy as np

from ganscope.datasets.degradations import Degradation, estimate_quality
from ganscope.detector.evidence.evidence import evidence_of
from ganscope.detector.evidence.record import Evidence
from ganscope.detector.judge import Judge
from ganscope.detector.judging.faces import (
    AROUND,
    AROUND_TILES,
    FaceViews,
    around,
    find_faces,
    least_of,
)
from ganscope.detector.judging.views import cut_views, view_weights, whole_of
from ganscope.errors import ImageError
from ganscope.faces import Face, Finder, open_finder
from ganscope.images import ImageSource, open_image

MAX_TILES, MAX_PIXELS = 16, 16 * 96**2
"""Tiles looked at in one image, spread evenly over a larger one; of small tiles more, until they
make so many pixels. Sixteen of 64 tiles move the logits of 37 large photographs by a quarter of
what these differ by."""
DECODERS = min(os.cpu_count() or 1, 8)
"""Threads that open images beside a network on the CPU; beside a GPU every core has one."""
AHEAD = 16
"""Images that may be open and waiting; beside a GPU so many a core, but of large images fewer."""
AHEAD_BYTES = 2**30
"""Decoded pixels that may wait beside a GPU."""
VIEWS = 8
"""Views that a backbone sees at a time on a CPU, at most."""
SEEN = 20
"""It is told if less than one tile in so many was looked at."""
REENCODED = (Degradation("jpeg", 85), Degradation("resize-area", 0.75))
"""How an image is changed to see whether its verdict holds."""
FACE_TILES = 9
"""Tiles looked at in a face, by a detector that looks at tiles."""
REENCODED_TILES = 5
"""Tiles looked at in an image for each of them, spread evenly."""


@dataclass
class Scored:
    """What the detector said of one image; `error` says why if it said nothing."""

    path: str
    logit: float | None = None
    """Mean of the tiles' logits, weighted by `weights`; higher = more likely fake."""
    score: float | None = None
    tile_logits: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    """(T,)"""
    weights: np.ndarray = field(default_factory=lambda: np.empty(0))
    """(T,): what each tile or view counts; their sum is 1, and of few views `Judge.few`."""
    positions: np.ndarray = field(default_factory=lambda: np.empty((0, 2), int))
    """(T, 2): top and left of each tile in pixels; -1 for a view that is not at native resolution.
    Views that did not have to be looked at are among them, after the others.
    """
    reencoded: dict[str, float] = field(default_factory=dict)
    """Score after each of `REENCODED` (by its label), if that was asked for and the verdict is not
    unsure already: the image's own, moved as far as that of some of its tiles.
    """
    again: np.ndarray | None = None
    """Tiles to look at for that, or more views, until it is settled whether they are looked at."""
    seen: np.ndarray | None = None
    """All its views, where the detector may have to look at them again, exactly."""
    looks: tuple[int, ...] = ()
    """How many views there are in all after each further look, which is taken unless those before
    settle what the image is.
    """
    factor: float = 1.0
    """On the views' weights, once nothing more is looked at (`Judge.few`)."""
    width: int = 0
    height: int = 0
    contrast: float = 0.0
    """Standard deviation of the liveliest colour channel in the tiles, 0 to 255: near 0 there is
    nothing to see. Measured, as the next two are, if `describe` was asked for.
    """
    colours: float = 0.0
    """How many colours the tiles have in effect, see `count_colours`."""
    flat: float = 0.0
    """Share of the tiles' pixels that equal their neighbour to the right, see `flat_share`."""
    quality: int | None = None
    """JPEG quality of the file, 1 to 100; None: it is no JPEG."""
    evidence: Evidence = field(default_factory=Evidence)
    """What the file says of its own making, if `describe` was asked for."""
    faces: list[FaceViews] | None = None
    """Its faces, largest first, where they were looked for; at most `faces.MOST`."""
    faces_found: int = 0
    """How many there are."""
    warnings: tuple[str, ...] = ()
    error: str | None = None
    expected: int = 0
    """Logits that this image waits for, those of its re-encoded tiles included."""


@functools.lru_cache(maxsize=1024)  # folders hold many pictures of one size
def tile_positions(height: int, width: int, size: int, most: int | None = None) -> np.ndarray:
    """(T, 2) top and left of tiles of `size` that cover an image evenly, overlapping as they must;
    not to be written to.

    If that takes more than `most` (None: as `MAX_TILES` and `MAX_PIXELS` say), so many at most are
    spread evenly and leave gaps.
    """
    most = most or max(MAX_TILES, MAX_PIXELS // size**2)
    rows, columns = max(1, -(-height // size)), max(1, -(-width // size))
    if rows * columns > most:
        shrink = (most / (rows * columns)) ** 0.5
        rows, columns = max(1, int(rows * shrink)), max(1, int(columns * shrink))
        if rows == 1:
            columns = min(columns, most)
        if columns == 1:
            rows = min(rows, most)
    tops = np.linspace(0, max(height - size, 0), rows).round().astype(int)
    lefts = np.linspace(0, max(width - size, 0), columns).round().astype(int)
    found = np.stack(np.meshgrid(tops, lefts, indexing="ij"), -1).reshape(-1, 2)
    found.flags.writeable = False
    return found


def tiles(pixels: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(T, size, size, 3) uint8 tiles of an image at native resolution, and their positions (T, 2).

    An image smaller than a tile is continued by reflection to the right and below.
    """
    height, width = pixels.shape[:2]
    positions = tile_positions(height, width, size)
    pixels = _filled(pixels, size)
    return np.stack([pixels[y : y + size, x : x + size] for y, x in positions.tolist()]), positions


def reencoded_tiles(pixels: np.ndarray, size: int, positions: np.ndarray) -> np.ndarray:
    """Tiles (len(REENCODED) * T, size, size, 3) uint8: those at positions (T, 2) after each of
    `REENCODED`.

    Only the surroundings of the tiles are encoded anew: a large image costs no more than a small
    one. They begin on the grid of a JPEG's blocks, as those of a file that is saved again do.
    """
    found = []
    for change in REENCODED:
        shrink = change.value if change.name.startswith("resize") else 1.0
        side = math.ceil(size / shrink)
        whole = _filled(pixels, side)
        for place in positions:
            if shrink == 1:  # a block more on each side: the decoder smooths colours across blocks
                begin = np.maximum(place // _GRID - 1, 0) * _GRID
                end = (-(-(place + size) // _GRID) + 1) * _GRID
                cut = (place - begin).tolist()
            else:
                room = np.array(whole.shape[:2]) - side
                begin = np.clip(place - (side - size) // 2, 0, room)
                end, cut = begin + side, [0, 0]
            (top, left), (bottom, right) = begin.tolist(), end.tolist()
            region = change(whole[top:bottom, left:right], _UNUSED)[cut[0] :, cut[1] :]
            found.append(region[:size, :size])
    return np.stack(found)


def _filled(pixels: np.ndarray, size: int) -> np.ndarray:
    """An image continued by reflection to the right and below until no side is below `size`."""
    short = [max(size - n, 0) for n in pixels.shape[:2]]
    if not any(short):
        return pixels
    return cv2.copyMakeBorder(pixels, 0, short[0], 0, short[1], cv2.BORDER_REFLECT)


_GRID = 16
"""Pixels: JPEG's blocks of 8, twice as large in its colours."""
_UNUSED = np.random.default_rng(0)
"""For `REENCODED`, none of which draws."""


def count_colours(pixels: np.ndarray) -> float:
    """How many colours there are in effect: exp of the entropy of their histogram.

    Of every second row and column of (..., H, W, 3) uint8, in steps of 16 levels a channel.
    """
    seen = np.ascontiguousarray(pixels[..., ::2, ::2, :]).reshape(1, -1, 3)
    histogram = cv2.calcHist([seen], [0, 1, 2], None, [16] * 3, [0, 256] * 3)
    counts = histogram[histogram > 0].astype(np.float64)
    share = counts / counts.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def flat_share(pixels: np.ndarray) -> float:
    """Share of the pixels of (..., H, W, 3) uint8 that are of just the colour of the next to the
    right: drawn areas are, what a camera sees has its noise.
    """
    every_other = pixels[..., ::2, :, :]
    same = every_other[..., 1:, :] == every_other[..., :-1, :]
    return float((same[..., 0] & same[..., 1] & same[..., 2]).mean())


def score_images(
    detector: Judge,
    images: Iterable[ImageSource],
    batch_size: int | None = None,
    device: str = "auto",
    reencode: bool = False,
    describe: bool = False,
    trust_anchors: Path | None = None,
    finder: Finder | None = None,
    threads: bool = True,
) -> Iterator[Scored]:
    """Score images, each as anything that `open_image` takes, in order and as a stream.

    batch_size: tiles given to the network at a time, None: `Judge.batch`; the scores do not depend
    on it. reencode:
    score each image that gets a verdict after each of `REENCODED`, too, if the detector looks at
    tiles (one that looks at views has the whole picture beside them, and learned to see through
    encodings). describe: measure what tells whether an image is a photograph at all, and read what
    its file says of its making; trust_anchors: as in `read_evidence`. finder: look at each face
    that it finds beside the whole picture. A detector of faces alone looks at these only, by the
    best finder that is installed where None is given; its score is the highest of them, None
    without any. threads: open images in threads of their own, which on a CPU costs more than it
    brings to a process that is to keep to one core. What cannot be read gives a `Scored` with its
    `error`; what no image can come as raises as in `open_image`.
    """
    detector.prepare(device)
    batch_size = batch_size or detector.batch()
    if detector.faces_alone and finder is None:
        finder = open_finder()
    if detector.views and detector.on_cpu:  # no quicker in larger batches, but later to be told
        batch_size = min(batch_size, VIEWS)
    waiting: deque[Scored] = deque()  # in order; those at the front may be complete
    stock: deque[tuple[Scored | FaceViews, np.ndarray]] = (
        deque()
    )  # tiles not yet given to the network
    stocked = 0

    def run(count: int) -> None:
        """Give the network the first `count` tiles in stock."""
        nonlocal stocked
        owners, batch = [], []
        while count:
            owner, rest = stock.popleft()
            part, left = rest[:count], rest[count:]
            owners.append((owner, len(part)))
            batch.append(part)
            count -= len(part)
            stocked -= len(part)
            if len(left):
                stock.appendleft((owner, left))
        logits = detector.logits(np.concatenate(batch))
        for owner, number in owners:
            owner.tile_logits = np.concatenate([owner.tile_logits, logits[:number]])
            logits = logits[number:]

    def look_again() -> None:
        """Stock up the re-encoded tiles of what got a verdict from its own, and the other views of
        what the first did not settle.
        """
        nonlocal stocked
        for scored in waiting:
            if scored.again is not None and _complete(scored):
                own = float(scored.tile_logits.astype(np.float64) @ scored.weights)
                if detector.views:
                    again = _next_look(detector, scored, own)
                else:
                    wanted = detector.verdict(float(detector.score(own))) != "unsure"
                    again, scored.again = (scored.again if wanted else None), None
                if again is not None:
                    stock.append((scored, again))
                    stocked += len(again)
                    scored.expected += len(again)

    found = _opened(images, detector, reencode, describe, trust_anchors, finder, threads)
    for scored, cut in found:
        waiting.append(scored)
        if cut is not None:
            stock.append((scored, cut))
            stocked += len(cut)
        for face in scored.faces or ():
            if face.cut is not None:
                stock.append((face, face.cut))
                stocked += len(face.cut)
        while stocked >= batch_size:
            run(batch_size)
            look_again()
        while waiting and _done(waiting[0]):
            yield _pooled(detector, waiting.popleft())
    while stocked:
        run(min(stocked, batch_size))
        look_again()
    while waiting:
        yield _pooled(detector, waiting.popleft())


def _next_look(detector: Judge, scored: Scored, logit: float) -> np.ndarray | None:
    """The views that are looked at next, of an image that came to this logit so far; None: it is
    settled. Brings `weights`, `looks` and `again` to where it stands then.
    """
    assert scored.again is not None
    count = len(scored.tile_logits)
    if detector.may_be_settled(logit, count):
        logit = _exactly(detector, scored)
    found = None
    if detector.wants_more(logit, count):
        (more, *rest) = scored.looks
        found, left = scored.again[: more - count], scored.again[more - count :]
        scored.looks, scored.weights = tuple(rest), view_weights(scored.positions[:more])
        scored.again = left if rest else None
    else:
        scored.again = None
    if scored.again is None:
        scored.weights = scored.weights * scored.factor
    return found


def _complete(scored: Scored) -> bool:
    return scored.error is not None or len(scored.tile_logits) == scored.expected


def _done(scored: Scored) -> bool:
    """Whether nothing of an image waits for the network any more."""
    faces = scored.faces or ()
    return _complete(scored) and scored.again is None and all(face.complete for face in faces)


def _pooled(detector: Judge, scored: Scored) -> Scored:
    if scored.error is None and detector.faces_alone:
        logits = [face.logit() for face in scored.faces or () if face.cut is not None]
        if not np.isfinite(logits).all():
            scored.error = "the detector gave no finite number for this image"
        elif logits:
            scored.logit = max(logits)
            scored.score = float(detector.score(scored.logit))
    elif scored.error is None:
        if scored.seen is not None:
            mean = float(scored.tile_logits.astype(np.float64) @ scored.weights)
            if detector.in_doubt(mean, len(scored.tile_logits)):
                _exactly(detector, scored)
            scored.seen = None
        found = scored.tile_logits.astype(np.float64)
        own = len(scored.weights)
        scored.tile_logits, again = np.split(scored.tile_logits, [own])
        scored.logit = float(found[:own] @ scored.weights)
        scored.score = float(detector.score(scored.logit))
        if len(again):
            parts = np.split(found[own:], len(REENCODED))
            same = found[_some_tiles(own)]
            scored.reencoded = {
                change.label: float(detector.score(scored.logit + part.mean() - same.mean()))
                for change, part in zip(REENCODED, parts, strict=True)
            }
        for face in scored.faces or ():
            if face.cut is not None and detector.in_doubt(face.logit(), len(face.cut)):
                face.tile_logits = detector.exact_logits(face.cut)
        closely = [face for face in scored.faces or () if face.closely is not None]
        if closely:
            squares = [face.closely for face in closely if face.closely is not None]
            swapped = detector.face_logits(np.stack(squares))
            for face, logit in zip(closely, swapped, strict=True):
                face.swap_logit, face.closely = float(logit), None
        if not np.isfinite(found).all():
            scored.logit = scored.score = None
            scored.error = "the detector gave no finite number for this image"
    return scored


def _exactly(detector: Judge, scored: Scored) -> float:
    """Look at the views of an image again, exactly; their logit."""
    assert scored.seen is not None
    scored.tile_logits = detector.exact_logits(scored.seen[: len(scored.tile_logits)])
    return float(scored.tile_logits.astype(np.float64) @ scored.weights)


def _some_tiles(count: int) -> np.ndarray:
    """Numbers of the tiles that are encoded anew, of so many."""
    return np.unique(np.linspace(0, count - 1, REENCODED_TILES).round().astype(int))


def _opened(
    images: Iterable[ImageSource],
    detector: Judge,
    reencode: bool,
    describe: bool,
    trust_anchors: Path | None = None,
    finder: Finder | None = None,
    threads: bool = True,
) -> Iterator[tuple[Scored, np.ndarray | None]]:
    """Open and tile images in threads, a bounded number ahead, in order.

    Beside a network on the CPU, pixels are tiled without threads, and all else if so asked.
    """

    def work(image: ImageSource) -> tuple[Scored, np.ndarray | None]:
        if _is_rgb(image):
            return cut(Scored("<pixels>"), image)  # it needs no copy
        try:
            opened = open_image(image)
        except ImageError as error:
            return Scored(error.path, error=error.reason), None
        quality = estimate_quality(opened.quantization) if opened.quantization else None
        known = Scored(opened.path, quality=quality, warnings=opened.warnings)
        if describe:
            known.evidence = evidence_of(opened, trust_anchors)
        return cut(known, opened.pixels)

    def cut(scored: Scored, pixels: np.ndarray) -> tuple[Scored, np.ndarray | None]:
        if finder:
            _find_faces(scored, pixels, detector, finder)
        if detector.faces_alone:
            scored.height, scored.width = pixels.shape[:2]
            looked = [face.cut for face in scored.faces or () if face.cut is not None]
            if describe and looked:
                _describe(scored, np.concatenate(looked))
            return scored, None
        if detector.views:
            return _viewed(scored, pixels, detector, describe)
        return _tiled(scored, pixels, detector.size, reencode, describe)

    opened = isinstance(images, list) and all(isinstance(i, np.ndarray) for i in images)
    if detector.on_cpu and (opened or not threads):  # which would slow the network
        yield from map(work, images)
        return
    source = iter(images)
    cores = os.cpu_count() or 1
    decoders, most = (DECODERS, AHEAD) if detector.on_cpu else (cores, AHEAD * cores)
    with ThreadPoolExecutor(decoders) as pool:
        ahead: deque[Future] = deque(pool.submit(work, i) for i in islice(source, AHEAD))
        try:
            while ahead:
                found = ahead.popleft().result()
                yield found
                room = _room(found[0], found[1], most)
                ahead.extend(
                    pool.submit(work, i) for i in islice(source, max(room - len(ahead), 0))
                )
        finally:
            pool.shutdown(cancel_futures=True)


def _room(scored: Scored, cut: np.ndarray | None, most: int) -> int:
    """How many images may wait, by what the last one's tiles weigh, those for later included."""
    if cut is None or most == AHEAD:
        return most
    held = cut.nbytes + (0 if scored.again is None else scored.again.nbytes)
    return min(most, max(AHEAD_BYTES // max(held, 1), AHEAD))


def _is_rgb(image: ImageSource) -> TypeGuard[np.ndarray]:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or not image.size:
        return False
    return image.ndim == 3 and image.shape[2] == 3


def _tiled(
    scored: Scored, pixels: np.ndarray, size: int, reencode: bool, describe: bool
) -> tuple[Scored, np.ndarray]:
    cut, positions = tiles(pixels, size)
    height, width = pixels.shape[:2]
    said = list(scored.warnings)
    whole = max(1, -(-height // size)) * max(1, -(-width // size))
    if len(cut) < whole / SEEN:
        said.append(f"large: {len(cut)} of {whole:,} tiles looked at, spread evenly")
    scored.warnings = tuple(said)
    if describe:
        _describe(scored, cut)
    scored.positions, scored.width, scored.height = positions, width, height
    scored.weights = np.full(len(cut), 1 / len(cut))
    if reencode:
        chosen = positions[_some_tiles(len(positions))]
        scored.again = reencoded_tiles(pixels, size, chosen)
    scored.expected = len(cut)
    return scored, cut


def _viewed(
    scored: Scored, pixels: np.ndarray, detector: Judge, describe: bool
) -> tuple[Scored, np.ndarray]:
    assert detector.views
    views = cut_views(pixels, detector.size, detector.views)
    if detector.margin:
        scored.seen = views.cut
    if describe:
        _describe(scored, views.cut)
    scored.height, scored.width = pixels.shape[:2]
    scored.positions = views.positions
    counts = sorted({*([1] if detector.glances else []), views.first, len(views.cut)})
    begin, scored.looks = counts[0], tuple(counts[1:])  # views in all after each look
    scored.weights, scored.expected = views.weights(begin), begin
    scored.factor = detector.few if len(views.cut) == views.first else 1.0
    if scored.looks:
        scored.again = views.cut[begin:]
    else:
        scored.weights = scored.weights * scored.factor
    return scored, views.cut[:begin]


def _find_faces(scored: Scored, pixels: np.ndarray, detector: Judge, finder: Finder) -> None:
    """Find the faces of an image, and cut out what the detector looks at in each."""
    scored.faces = []
    if min(pixels.shape[:2]) < detector.smallest:
        return
    found, scored.faces_found = find_faces(finder, pixels)
    for face in found:
        views = FaceViews(face)
        if min(face.width, face.height) >= least_of(detector):
            views.cut = _of_face(face, pixels, detector)
            views.weights = np.full(len(views.cut), detector.few / len(views.cut))
            if detector.face_head is not None:
                views.closely = _square(face, pixels, detector.face_head.margin, detector.size)
        scored.faces.append(views)


def _of_face(face: Face, pixels: np.ndarray, detector: Judge) -> np.ndarray:
    """What a detector looks at in a face: (T, size, size, 3) uint8, the square around it made as
    small as a view, or tiles of it at native resolution.
    """
    size = detector.size
    if detector.views or detector.faces_alone:
        times = detector.around_faces if detector.faces_alone else AROUND
        return _square(face, pixels, times, size)[None]
    height, width = pixels.shape[:2]
    top, left, bottom, right = around(face, height, width, AROUND_TILES, size)
    square = _filled(pixels[top:bottom, left:right], size)
    places = tile_positions(*square.shape[:2], size, FACE_TILES)
    return np.stack([square[y : y + size, x : x + size] for y, x in places])


def _square(face: Face, pixels: np.ndarray, times: float, size: int) -> np.ndarray:
    """The square around a face, (size, size, 3) uint8; times: as in `around`."""
    height, width = pixels.shape[:2]
    top, left, bottom, right = around(face, height, width, times)
    return whole_of(pixels[top:bottom, left:right], size)


def _describe(scored: Scored, cut: np.ndarray) -> None:
    scored.contrast = float(cv2.meanStdDev(cut.reshape(-1, cut.shape[2], 3))[1].max())
    scored.colours, scored.flat = count_colours(cut), flat_share(cut)
