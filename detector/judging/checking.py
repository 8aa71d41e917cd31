"""Judging photos: what `ganscope check` does, as functions. Scoring, then calibration and
verdict.
"""

import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ganscope.config import CheckSettings, plain
from ganscope.datasets.degradations import WORST_QUALITY
from ganscope.detector.evidence.record import EDITED, GENERATED, NOTHING, Evidence
from ganscope.detector.evidence.trust import find_anchors
from ganscope.detector.exported.loading import load_judge
from ganscope.detector.judge import Judge
from ganscope.detector.judging.faces import FaceCheck, judge_faces, told_by_faces
from ganscope.detector.judging.heatmaps import heatmap, write_overlay
from ganscope.detector.judging.scoring import Scored, score_images
from ganscope.detector.judging.table import Table
from ganscope.detector.judging.videos import FrameCheck, draw_timeline, shrink, summarise
from ganscope.errors import GanscopeWarning, ImageError, counted
from ganscope.faces import Finder, best_finder, open_finder
from ganscope.files import free_name
from ganscope.images import ImageSource, open_image
from ganscope.inputs import (
    Passed,
    Video,
    count_inputs,
    find_inputs,
    name_of,
    refuse_missing,
    stamp_of,
)
from ganscope.limits import Limits
from ganscope.locks import PATIENCE, holding, holding_file
from ganscope.videos import Film, Frame, open_film, read_frames

FIELDS = (
    "path",
    "score",
    "verdict",
    "probability",
    "meaning",
    "thresholds",
    "detector",
    "width",
    "height",
    "pixels_verdict",
    "decided_by",
    "faces",
    "declared",
    "declared_by",
    "declared_model",
    "declared_seed",
    "declared_prompt",
    "declared_trust",
    "declared_reason",
    "heatmap",
    "warnings",
    "error",
)
FEW_COLOURS = 5.0
"""With fewer colours in effect (`count_colours`) an image is hardly a photograph. Below are, shrunk
to 0.8 and saved as JPEG 85, 97 % of 60 pages of text and 73 % of 200 line drawings (edges of
photographs), and 0.3 % of 590 photographs; grey ones of little contrast may be, too."""
MOSTLY_FLAT = 0.75
"""With a larger share of pixels like their neighbours (`flat_share`) it is no photograph either,
but a drawing or a screenshot. Above are 44 % of 81 drawn wallpapers (49 % as JPEG 85), and 0.4 % of
260 photographs (0.8 % as JPEG 40)."""

LEFT_OUT = "left-out sources"
"""The `split` of false alarms that were counted in trainings without the pictures' sources."""
MANY = 50
"""Files from which on a detector may begin slowly."""
NARROW = 6
"""With sides in a larger ratio an image is a strip, whose views show but little of it."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """The judgement of one image; a file that cannot be read has an `error` and no score."""

    path: str
    score: float | None
    """In [0, 1], higher = more likely fake; not a probability."""
    verdict: str | None
    """fake, real or unsure: what the pixels look like, but fake where the file says so itself."""
    probability: float | None
    """Calibrated probability of being fake, if fakes were as common as reals; None where nothing
    can be said."""
    meaning: str | None
    """The probability in words, or why nothing can be said."""
    thresholds: dict[str, float]
    """On the score: fake from here on, real below there."""
    detector: str
    width: int | None
    height: int | None
    """None where the file cannot be opened."""
    warnings: tuple[str, ...]
    error: str | None
    pixels_verdict: str | None = None
    """What the pixels alone look like, those of the faces among them."""
    decided_by: str | None = None
    """What made the verdict: the picture as a whole, a face, or the file's own words."""
    faces: tuple[FaceCheck, ...] | None = None
    """The faces that were looked at by themselves, largest first; None: none were looked for."""
    declared: str | None = NOTHING
    """What the file says of its own making: generated, edited with AI, captured by a camera, or
    nothing said; None where it cannot be opened."""
    declared_by: str | None = None
    """Company, program or camera."""
    declared_model: str | None = None
    declared_seed: str | None = None
    declared_prompt: str | None = None
    declared_trust: str | None = None
    """How far that can be trusted: signed by whom, or text that anybody can write."""
    declared_reason: str | None = NOTHING
    """Where the file says it, in a line."""
    evidence: Evidence = field(default_factory=Evidence)
    """All of that in full; neither JSON nor CSV has it, `ganscope inspect` does."""
    heatmap: str | None = None
    """Its overlay, where one was written."""
    small: np.ndarray | None = field(default=None, repr=False, compare=False)
    """The picture (H, W, 3) uint8, small, for a report or a project; of a video its most suspect
    frame."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the fields of `FIELDS`, in that order."""
        faces = None if self.faces is None else [face.as_dict() for face in self.faces]
        lists = {"faces": faces, "warnings": list(self.warnings)}
        return {name: getattr(self, name) for name in FIELDS} | lists

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "Check":
        """The opposite of `as_dict`; a `VideoCheck` for the record of one."""
        made: dict[str, Any] = {**record, "warnings": tuple(record["warnings"])}
        if record["faces"] is not None:
            made["faces"] = tuple(map(FaceCheck.from_dict, record["faces"]))
        if "frames" not in record:
            return Check(**made)
        frames = [FrameCheck.from_dict(frame) for frame in record["frames"]]
        interval = record["interval"] and tuple(record["interval"])
        return VideoCheck(**{**made, "frames": tuple(frames), "interval": interval})


@dataclass(frozen=True, kw_only=True)
class VideoCheck(Check):
    """The judgement of a video: `score` is the mean of its frames' over time, and no probability
    belongs to it.
    """

    duration: float
    """In seconds."""
    scenes: int
    interval: tuple[float, float] | None
    """95 % bootstrap interval of the score; None for a single frame."""
    seconds: dict[str, float]
    """Verdict -> seconds that the frames with it stand for."""
    frames: tuple[FrameCheck, ...]
    timeline: str | None = None
    """Its picture, where one was drawn."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON: as an image's, and the video's own."""
        return super().as_dict() | {
            "duration": self.duration,
            "scenes": self.scenes,
            "interval": self.interval and list(self.interval),
            "seconds": self.seconds,
            "timeline": self.timeline,
            "frames": [frame.as_dict() for frame in self.frames],
        }


def check_image(
    source: ImageSource,
    detector: str | Path | Judge = "default",
    device: str = "auto",
    reencode: bool = True,
    pixels_only: bool = False,
    trust_anchors: Path | None = None,
    faces: bool = True,
) -> Check:
    """Judge one image, anything that `open_image` takes; reencode, pixels_only, trust_anchors,
    faces: as in `CheckSettings`. Raises `ImageError` if it cannot be read.
    """
    loaded = detector if isinstance(detector, Judge) else load_judge(str(detector), device=device)
    (scored,) = score_images(
        loaded,
        [source],
        device=device,
        reencode=reencode,
        describe=True,
        trust_anchors=trust_anchors,
        finder=open_finder() if faces else None,
    )
    if scored.error is not None and not scored.width:  # it was not even opened
        raise ImageError(scored.path, scored.error)
    return _judge(loaded, scored, pixels_only)


def check_images(settings: CheckSettings) -> Iterator[Check]:
    """Judge images as a stream, in order: what is named, folders' images in sorted order.

    Heatmaps are written as the stream goes on, none where nothing can be said, each under a name
    that no file has yet; the CSV takes its name when it is complete, and what was judged before a
    stop is not judged again (`table`). Raises `GanscopeError` if a path does not exist, a folder
    holds no images, the trust anchors hold no certificates, or the detector cannot be had.
    """
    find_anchors(settings.trust_anchors)
    refuse_missing(settings.paths)
    gradients = settings.heatmap is not None and settings.heatmap_method == "gradcam"
    many = (count_inputs(settings.paths) or 0) >= MANY
    detector = load_judge(settings.detector, settings.runtime, settings.device, gradients, many)
    passed = Passed()
    with ExitStack() as stack:
        table = Table(settings.csv, FIELDS, _plan(settings, detector))
        if table.path:
            stack.enter_context(holding_file(table.path))
        stack.enter_context(table)
        for place in _in_order(settings, detector, table, passed):
            check = place.check
            assert check is not None
            if place.known:
                table.drawing(check.path)
            elif settings.heatmap and check.probability is not None and place.source is not None:
                pixels = open_image(place.source).pixels
                heat = heatmap(detector, pixels, settings.heatmap_method, check.probability)
                with _name_for(settings.heatmap, check.path, table) as drawn:
                    write_overlay(drawn, pixels, heat, _caption(check), check.faces or ())
                check = replace(check, heatmap=str(drawn))
            elif place.film and isinstance(check, VideoCheck):
                check = _with_timeline(check, place.film, settings, table)
            table.add(check.as_dict(), place.stamp, place.known)
            if settings.report or settings.project:
                check = replace(check, small=_small(place, check))
            yield check
    if str(passed):
        warnings.warn(str(passed), GanscopeWarning, stacklevel=2)


@dataclass(kw_only=True)
class _Place:
    """One input's place in the stream; it waits for its score, or has its `check` already."""

    stamp: str
    source: ImageSource | None = None
    check: Check | None = None
    known: bool = False
    """Whether a check that was stopped had judged it."""
    film: "_Film | None" = None
    """Of a video: its frames come one after the other, then the place of the whole."""
    frame: Frame | None = None

    @property
    def waits(self) -> bool:
        """Whether it is given a score."""
        return self.check is None and (self.source is not None or self.frame is not None)


@dataclass
class _Film:
    """A video that is being judged."""

    film: Film
    frames: list[FrameCheck] = field(default_factory=list)
    shown: list[np.ndarray] = field(default_factory=list)
    """The frames, small."""


def _small(place: _Place, check: Check) -> np.ndarray | None:
    """An input as it is shown beside its verdict; None where nothing was opened."""
    if place.film and place.film.frames:
        return place.film.shown[_most_suspect(place.film.frames)]
    if check.error or place.source is None:
        return None
    try:
        return shrink(open_image(place.source).pixels)
    except ImageError:  # its file is gone by now
        return None


def _most_suspect(frames: Sequence[FrameCheck]) -> int:
    return max(range(len(frames)), key=lambda n: -1.0 if (s := frames[n].score) is None else s)


def _in_order(
    settings: CheckSettings, detector: Judge, table: Table, passed: Passed
) -> Iterator[_Place]:
    """Judge what is not judged yet; places in order, each with its check."""
    line: deque[_Place] = deque()

    def sources() -> Iterator[ImageSource]:
        limits = Limits(allow_private=settings.allow_private)
        for one in find_inputs(settings.paths, limits, passed):
            place = _Place(stamp=stamp_of(one) if table.path else "")
            line.append(place)
            known = table.earlier(name_of(one), place.stamp)
            drawn = known and (known["heatmap"] or known.get("timeline"))
            if known and (not drawn or Path(drawn).exists()):
                place.check, place.known = Check.from_dict(known), True
            elif isinstance(one, Video):
                line.pop()
                yield from frames_of(one, place)
            elif isinstance(one, ImageError):
                place.check = unreadable(detector, one)
            else:
                place.source = one
                yield one

    def frames_of(video: Video, place: _Place) -> Iterator[np.ndarray]:
        try:
            place.film = _Film(open_film(video, settings.frames))
            for frame in read_frames(place.film.film):
                small = replace(frame, pixels=shrink(frame.pixels))
                line.append(_Place(stamp="", film=place.film, frame=small))
                yield frame.pixels
        except ImageError as error:
            place.check = unreadable(detector, error)
        line.append(place)

    def settled() -> Iterator[_Place]:
        """What is at the front and needs no score."""
        while line and not line[0].waits:
            place = line.popleft()
            if place.check is None and place.film:
                place.check = _judge_film(detector, place.film)
            yield place

    scores = score_images(
        detector,
        sources(),
        settings.batch_size,
        settings.device,
        reencode=settings.reencode,
        describe=True,
        trust_anchors=settings.trust_anchors,
        finder=open_finder() if settings.faces else None,
    )
    for scored in scores:
        yield from settled()
        place = line.popleft()
        check = _judge(detector, scored, settings.pixels_only)
        if place.film and place.frame:
            place.film.frames.append(_of_frame(place.frame, check))
            place.film.shown.append(place.frame.pixels)
        else:
            place.check = check
            yield place
    yield from settled()


def _plan(settings: CheckSettings, detector: Judge) -> dict[str, Any]:
    """What a check of the same files must have in common with another to have its result."""
    free = ("paths", "csv", "json", "fail_on", "batch_size", "device", "allow_private")
    return {
        **{name: value for name, value in plain(settings).items() if name not in free},
        "detector": [detector.name, getattr(detector, "weights", ""), detector.config],
        "finder": best_finder() if settings.faces or detector.faces_alone else None,
        "swaps": detector.face_head.digest if settings.faces and detector.face_head else None,
        "folder": os.getcwd(),
        "fields": FIELDS,
    }


def unreadable(detector: Judge, error: ImageError) -> Check:
    """The row of what cannot be read."""
    return _judge(detector, Scored(error.path, error=error.reason))


def _of_frame(frame: Frame, check: Check) -> FrameCheck:
    return FrameCheck(
        time=frame.time,
        since=frame.since,
        until=frame.until,
        scene=frame.scene,
        score=check.score,
        verdict=check.verdict,
        probability=check.probability,
        faces=check.faces,
        warnings=check.warnings,
    )


def _judge_film(detector: Judge, judged: _Film) -> Check:
    film, summary = judged.film, summarise(judged.frames, detector)
    if not judged.frames:
        said = ImageError(film.video.name, "no frame of this video can be decoded")
        return unreadable(detector, said)
    return VideoCheck(
        path=film.video.name,
        score=summary.score,
        verdict=summary.verdict,
        probability=None,
        meaning=summary.meaning,
        thresholds={name: detector.thresholds[name] for name in ("fake", "real")},
        detector=detector.name,
        width=film.width,
        height=film.height,
        warnings=(
            f"video of {film.duration:.1f} s, {counted(len(judged.frames), 'frame')} of "
            f"{counted(film.scenes, 'scene')} looked at",
            *film.warnings,
        ),
        error=None,
        pixels_verdict=summary.verdict,
        duration=film.duration,
        scenes=film.scenes,
        interval=summary.interval,
        seconds=summary.seconds,
        frames=tuple(judged.frames),
    )


def _with_timeline(
    check: VideoCheck, judged: _Film, settings: CheckSettings, table: Table
) -> VideoCheck:
    folder = settings.timeline or settings.heatmap
    if folder is None:
        return check
    with _name_for(folder, check.path, table) as drawn:
        draw_timeline(drawn, check, judged.shown)
    return replace(check, timeline=str(drawn))


@contextmanager
def _name_for(folder: Path, image: str, table: Table) -> Iterator[Path]:
    """A PNG's name after an image's, that no file in the folder has, or the one that a check which
    was stopped had given it.
    """
    with holding(folder, "-names", PATIENCE):  # another check may draw, too
        before = table.drawing(image)
        found = Path(before) if before else free_name(folder, image, ".png")
        if not before:
            table.draw(image, str(found))
        yield found


def check_each(
    detector: Judge,
    images: Iterable[ImageSource],
    batch_size: int | None = None,
    device: str = "auto",
    reencode: bool = True,
    pixels_only: bool = False,
    trust_anchors: Path | None = None,
    finder: Finder | None = None,
    threads: bool = True,
) -> Iterator[tuple[Check, Scored]]:
    """Judge images with a loaded detector, in order and as a stream; beside each judgement what it
    was made from. finder, threads: as in `score_images`.
    """
    for scored in score_images(
        detector,
        images,
        batch_size,
        device,
        reencode=reencode,
        describe=True,
        trust_anchors=trust_anchors,
        finder=finder,
        threads=threads,
    ):
        yield _judge(detector, scored, pixels_only), scored


def check_video(
    detector: Judge,
    video: Video,
    frames: int = 16,
    device: str = "auto",
    reencode: bool = True,
    pixels_only: bool = False,
    max_pixels: int | None = None,
    finder: Finder | None = None,
) -> tuple[Check, np.ndarray]:
    """Judge a video with a loaded detector; beside it its most suspect frame (H, W, 3) uint8.

    max_pixels: of a frame, at most. Raises `ImageError` if it cannot be read.
    """
    judged = _Film(open_film(video, frames))
    film = judged.film
    if max_pixels and film.width * film.height > max_pixels:
        raise ImageError(
            video.name,
            f"{film.width}x{film.height} pixels, more than the limit of {max_pixels:,}; shrink it "
            "first",
        )
    waiting: deque[Frame] = deque()
    shown = np.zeros((1, 1, 3), np.uint8)

    def cut() -> Iterator[np.ndarray]:
        for frame in read_frames(film):
            waiting.append(frame)
            yield frame.pixels

    scores = score_images(
        detector, cut(), device=device, reencode=reencode, describe=True, finder=finder
    )
    for scored in scores:
        frame = waiting.popleft()
        judged.frames.append(_of_frame(frame, _judge(detector, scored, pixels_only)))
        if _most_suspect(judged.frames) == len(judged.frames) - 1:
            shown = frame.pixels
    return _judge_film(detector, judged), shown


def explain_probability(probability: float) -> str:
    """A calibrated probability in words, for people who have never met one."""
    share = round(100 * probability)
    number = "nearly all" if share == 100 else "hardly any" if share == 0 else f"about {share}"
    return f"of 100 images with this score {number} are generated, if fakes are as common as photos"


def _judge(detector: Judge, scored: Scored, pixels_only: bool = False) -> Check:
    verdict, probability, meaning, said = None, None, None, list(scored.warnings)
    if scored.error is None and scored.score is not None:
        verdict = detector.verdict(scored.score)
        probability = float(detector.probability(scored.logit))
        if scored.quality is not None and scored.quality < WORST_QUALITY:
            said.append(f"strongly compressed (JPEG quality {scored.quality}): much is lost")
        assert scored.logit is not None
        if detector.stays_in_doubt(scored.logit, max(len(scored.tile_logits), 1)):
            said.append(
                "near a threshold: the detector that this int8 file was made of may say otherwise"
            )
        unlike = _unlike_photographs(scored, detector)
        changed = _changed_by_reencoding(detector, scored)
        tiled = not detector.faces_alone
        if tiled and not unlike and min(scored.width, scored.height) < detector.size:
            what = "view" if detector.views else "tile"
            said.append(
                f"smaller than the detector's {detector.size}-pixel {what}: little evidence"
            )
        if unlike or (verdict != "unsure" and changed):
            said.append(f"{unlike or changed}, so unsure")
            verdict = "unsure"
        if unlike:
            probability, meaning = None, f"nothing can be said: {unlike}"
        else:
            meaning = _meaning(detector, probability, verdict)
    elif scored.error is None and detector.faces_alone:
        verdict = "unsure"
        what = "it found none" if not scored.faces else "those it found are too small"
        meaning = f"nothing can be said: this detector looks at faces alone, and {what}"
    decided = None if verdict is None else "picture"
    if detector.faces_alone and scored.score is not None:
        decided = "face"
    faces = None if scored.faces is None else judge_faces(detector, scored.faces)
    if faces and verdict is not None:
        told = told_by_faces(faces, scored.faces_found, verdict)
        said += told.remarks
        if told.verdict != verdict:
            verdict, decided = told.verdict, "face"
            meaning = f"{told.meaning}; the picture as a whole: {meaning}"
    seen, opened = verdict, scored.error is None or bool(scored.width)
    if verdict is not None and not pixels_only:
        if scored.evidence.declared == GENERATED:
            verdict, decided = "fake", "file"
            said = [remark.removesuffix(", so unsure") for remark in said]
            if seen != "fake":
                said.append(f"fake because the file says so; its pixels alone: {seen}")
            beside = meaning if seen == "fake" else f"its pixels alone: {seen}; {meaning}"
            meaning = f"the file says so: {scored.evidence.reason}; {beside}"
        elif scored.evidence.declared == EDITED and verdict == "real":
            verdict, decided = "unsure", "file"
            said.append("the file says that it was edited with AI, so unsure")
    return Check(
        path=scored.path,
        score=scored.score,
        verdict=verdict,
        probability=probability,
        meaning=meaning,
        thresholds={name: detector.thresholds[name] for name in ("fake", "real")},
        detector=detector.name,
        width=scored.width or None,
        height=scored.height or None,
        warnings=tuple(said),
        error=scored.error,
        pixels_verdict=seen,
        decided_by=decided,
        faces=faces,
        declared=scored.evidence.declared if opened else None,
        declared_by=scored.evidence.by,
        declared_model=scored.evidence.model,
        declared_seed=scored.evidence.seed,
        declared_prompt=scored.evidence.prompt,
        declared_trust=scored.evidence.trust,
        declared_reason=scored.evidence.reason if opened else None,
        evidence=scored.evidence,
    )


def _caption(check: Check) -> str:
    """What is written below a heatmap: what the file says of itself; "" for nothing."""
    if check.declared in (None, NOTHING):
        return ""
    words = f"The file says: {check.declared}"
    model = check.declared_model if check.declared_model != check.declared_by else None
    words += "".join(f", {part}" for part in (check.declared_by, model) if part)
    return f"{words} ({check.declared_trust})"


def _meaning(detector: Judge, probability: float, verdict: str) -> str:
    said = explain_probability(probability)
    if verdict == "unsure":
        return f"no verdict, so this is no more than a hint: {said}"
    known = detector.config.get("false_alarms")
    if verdict == "fake" and known and known.get("photographs"):
        count = f"{known['called_fake']:,} of {known['photographs']:,} photographs"
        if known.get("split") == "test":
            said += f"; it called {count} of a test fake (at most {known['at_most']:.1%} of such)"
        elif known.get("split") == LEFT_OUT:
            said += (
                f"; trainings like it called {known['called_fake']:,} of {known['photographs']:,} "
                "real pictures fake whose sources they had not seen "
                f"(at most {known['at_most']:.1%} of such)"
            )
        else:  # no measurement: they set the threshold
            said += f"; it calls fake {count} by which its threshold was set"
    return said


def _unlike_photographs(scored: Scored, detector: Judge) -> str:
    """Why the detector should not judge this image; "" if it looks like what it learned from."""
    if min(scored.width, scored.height) < detector.smallest:
        return f"too small to judge by: a side of less than {detector.smallest} pixels"
    if scored.contrast < 1.0:
        return "almost constant: no texture to judge by"
    if scored.colours < FEW_COLOURS:
        return "few colours, as in text and drawings, which the detector was not measured on"
    if detector.views:  # it learned from drawings, too, but never from strips
        narrow = max(scored.width, scored.height) > NARROW * min(scored.width, scored.height)
        return f"one side is more than {NARROW} times the other" if narrow else ""
    if scored.flat > MOSTLY_FLAT:
        return "flat areas, as in drawings and screenshots, which the detector was not measured on"
    return ""


_REENCODED = {
    "jpeg:85": "saving it as JPEG 85",
    "resize-area:0.75": "shrinking it to three quarters",
}
"""What is said for the labels of `REENCODED`."""


def _changed_by_reencoding(detector: Judge, scored: Scored) -> str:
    """What encodings change the verdict; "" for none."""
    if scored.score is None:
        return ""
    verdict = detector.verdict(scored.score)
    lost = [name for name, score in scored.reencoded.items() if detector.verdict(score) != verdict]
    words = [_REENCODED.get(name, name) for name in lost]
    return f"judged otherwise after {' and after '.join(words)}" if lost else ""
