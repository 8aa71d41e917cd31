"""Judging photos: what `ganscope check` does, as functions. Scoring, then calibration and
verdict.
"""

import csv
import itertools
import json
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ganscope.config import CheckSettings
from ganscope.datasets.degradations import WORST_QUALITY
from ganscope.detector.evidence.record import EDITED, GENERATED, NOTHING, Evidence
from ganscope.detector.evidence.trust import find_anchors
from ganscope.detector.judging.heatmaps import heatmap, write_overlay
from ganscope.detector.judging.scoring import Scored, score_images
from ganscope.detector.model import Detector, load_detector
from ganscope.devices import pick_device
from ganscope.errors import GanscopeError, GanscopeWarning, ImageError
from ganscope.files import take_place
from ganscope.images import IMAGE_SUFFIXES, ImageSource, find_images, open_image
from ganscope.locks import PATIENCE, holding, holding_file

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
    width: int
    height: int
    warnings: tuple[str, ...]
    error: str | None
    pixels_verdict: str | None = None
    """What the pixels alone look like."""
    declared: str = NOTHING
    """What the file says of its own making: generated, edited with AI, captured by a camera, or
    nothing said."""
    declared_by: str | None = None
    """Company, program or camera."""
    declared_model: str | None = None
    declared_seed: str | None = None
    declared_prompt: str | None = None
    declared_trust: str | None = None
    """How far that can be trusted: signed by whom, or text that anybody can write."""
    declared_reason: str = NOTHING
    """Where the file says it, in a line."""
    evidence: Evidence = field(default_factory=Evidence)
    """All of that in full; neither JSON nor CSV has it, `ganscope inspect` does."""
    heatmap: str | None = None
    """Its overlay, where one was written."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the fields of `FIELDS`, in that order."""
        return {name: getattr(self, name) for name in FIELDS} | {"warnings": list(self.warnings)}


def check_image(
    source: ImageSource,
    detector: str | Path | Detector = "default",
    device: str = "auto",
    reencode: bool = True,
    pixels_only: bool = False,
    trust_anchors: Path | None = None,
) -> Check:
    """Judge one image, anything that `open_image` takes; reencode, pixels_only, trust_anchors: as
    in `CheckSettings`. Raises `ImageError` if it cannot be read.
    """
    loaded = detector if isinstance(detector, Detector) else load_detector(str(detector))
    (scored,) = score_images(
        loaded,
        [source],
        device=device,
        reencode=reencode,
        describe=True,
        trust_anchors=trust_anchors,
    )
    if scored.error is not None and not scored.width:  # it was not even opened
        raise ImageError(scored.path, scored.error)
    return _judge(loaded, scored, pixels_only)


def check_images(settings: CheckSettings) -> Iterator[Check]:
    """Judge images as a stream, in order: files as named, folders' images in sorted order.

    Heatmaps are written as the stream goes on, none where nothing can be said, each under a name
    that no file has yet; the CSV takes its name when it is complete. Raises `GanscopeError` if a
    path does not exist, a folder holds no images, the trust anchors hold no certificates, or the
    detector cannot be had.
    """
    find_anchors(settings.trust_anchors)
    for path in settings.paths:
        if next(find_images(path), None) is None:
            raise GanscopeError(f"{path}: no images in this folder")
    detector = load_detector(settings.detector)
    paths = (image for path in settings.paths for image in find_images(path))
    with ExitStack() as stack:
        table = _Table(settings.csv)
        if table.path:
            stack.enter_context(holding_file(table.path))
        stack.enter_context(table)
        for scored in score_images(
            detector,
            paths,
            settings.batch_size,
            settings.device,
            reencode=settings.reencode,
            describe=True,
            trust_anchors=settings.trust_anchors,
        ):
            check = _judge(detector, scored, settings.pixels_only)
            if settings.heatmap and check.probability is not None:
                pixels = open_image(check.path).pixels
                detector.to(pick_device(settings.device))
                heat = heatmap(detector, pixels, settings.heatmap_method)
                with holding(settings.heatmap, "-names", PATIENCE):  # another check may draw, too
                    drawn = _free_name(settings.heatmap, check.path)
                    write_overlay(drawn, pixels, heat, _caption(check))
                check = replace(check, heatmap=str(drawn))
            table.add(check)
            yield check


def check_each(
    detector: Detector,
    images: Iterable[ImageSource],
    batch_size: int = 32,
    device: str = "auto",
    reencode: bool = True,
    pixels_only: bool = False,
    trust_anchors: Path | None = None,
) -> Iterator[tuple[Check, Scored]]:
    """Judge images with a loaded detector, in order and as a stream; beside each judgement what it
    was made from.
    """
    for scored in score_images(
        detector,
        images,
        batch_size,
        device,
        reencode=reencode,
        describe=True,
        trust_anchors=trust_anchors,
    ):
        yield _judge(detector, scored, pixels_only), scored


def explain_probability(probability: float) -> str:
    """A calibrated probability in words, for people who have never met one."""
    share = round(100 * probability)
    number = "nearly all" if share == 100 else "hardly any" if share == 0 else f"about {share}"
    return f"of 100 images with this score {number} are generated, if fakes are as common as photos"


def _judge(detector: Detector, scored: Scored, pixels_only: bool = False) -> Check:
    verdict, probability, meaning, said = None, None, None, list(scored.warnings)
    if scored.error is None and scored.score is not None:
        verdict = detector.verdict(scored.score)
        probability = float(detector.probability(scored.logit))
        if scored.quality is not None and scored.quality < WORST_QUALITY:
            said.append(f"strongly compressed (JPEG quality {scored.quality}): much is lost")
        unlike = _unlike_photographs(scored, detector)
        changed = _changed_by_reencoding(detector, scored)
        if not unlike and min(scored.width, scored.height) < detector.size:
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
    seen = verdict
    if verdict is not None and not pixels_only:
        if scored.evidence.declared == GENERATED:
            verdict = "fake"
            said = [remark.removesuffix(", so unsure") for remark in said]
            beside = meaning if seen == "fake" else f"its pixels alone: {seen}; {meaning}"
            meaning = f"the file says so: {scored.evidence.reason}; {beside}"
        elif scored.evidence.declared == EDITED and verdict == "real":
            verdict = "unsure"
            said.append("the file says that it was edited with AI, so unsure")
    return Check(
        path=scored.path,
        score=scored.score,
        verdict=verdict,
        probability=probability,
        meaning=meaning,
        thresholds={name: detector.thresholds[name] for name in ("fake", "real")},
        detector=detector.name,
        width=scored.width,
        height=scored.height,
        warnings=tuple(said),
        error=scored.error,
        pixels_verdict=seen,
        declared=scored.evidence.declared,
        declared_by=scored.evidence.by,
        declared_model=scored.evidence.model,
        declared_seed=scored.evidence.seed,
        declared_prompt=scored.evidence.prompt,
        declared_trust=scored.evidence.trust,
        declared_reason=scored.evidence.reason,
        evidence=scored.evidence,
    )


def _caption(check: Check) -> str:
    """What is written below a heatmap: what the file says of itself; "" for nothing."""
    if check.declared == NOTHING:
        return ""
    words = f"The file says: {check.declared}"
    model = check.declared_model if check.declared_model != check.declared_by else None
    words += "".join(f", {part}" for part in (check.declared_by, model) if part)
    return f"{words} ({check.declared_trust})"


def _meaning(detector: Detector, probability: float, verdict: str) -> str:
    said = explain_probability(probability)
    if verdict == "unsure":
        return f"no verdict, so this is no more than a hint: {said}"
    known = detector.config.get("false_alarms")
    if verdict == "fake" and known and known["photographs"]:
        count = f"{known['called_fake']:,} of {known['photographs']:,} photographs"
        if known["split"] == "test":
            said += f"; it called {count} of a test fake (at most {known['at_most']:.1%} of such)"
        elif known["split"] == LEFT_OUT:
            said += (
                f"; trainings like it called {known['called_fake']:,} of {known['photographs']:,} "
                "real pictures fake whose sources they had not seen "
                f"(at most {known['at_most']:.1%} of such)"
            )
        else:  # no measurement: they set the threshold
            said += f"; it calls fake {count} by which its threshold was set"
    return said


def _unlike_photographs(scored: Scored, detector: Detector) -> str:
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


def _changed_by_reencoding(detector: Detector, scored: Scored) -> str:
    """What encodings change the verdict; "" for none."""
    if scored.score is None:
        return ""
    verdict = detector.verdict(scored.score)
    lost = [name for name, score in scored.reencoded.items() if detector.verdict(score) != verdict]
    words = [_REENCODED.get(name, name) for name in lost]
    return f"judged otherwise after {' and after '.join(words)}" if lost else ""


def _free_name(folder: Path, image: str) -> Path:
    """A PNG's name after an image's, that no file in the folder has."""
    stem = Path(image).stem
    numbers = itertools.count(2)
    found = folder / f"{stem}.png"
    while found.exists():
        found = folder / f"{stem}-{next(numbers)}.png"
    return found


class _Table:
    """A CSV that grows under a temporary name and takes its own when all rows are in it; where it
    is stopped, NAME.part.csv has those so far.

    Only a file is ever replaced: never a folder, and never a device such as /dev/stdout.
    """

    def __init__(self, path: Path | None):
        if path and path.suffix.lower() in IMAGE_SUFFIXES:
            raise GanscopeError(f"--csv {path}: this is the name of an image; name a .csv file")
        if path and path.exists() and not path.is_file():
            raise GanscopeError(f"--csv {path}: is there already and no file; name another")
        self.path = path.resolve() if path else None  # what a link leads to, not the link
        self.part = self.path.with_name(f".{self.path.name}.part") if self.path else None
        self.count = 0

    def __enter__(self) -> "_Table":
        if self.part:
            try:
                self.part.parent.mkdir(parents=True, exist_ok=True)
                # A file's name need not be UTF-8: its bytes are kept as they are.
                self.file = open(
                    self.part, "w", newline="", encoding="utf-8", errors="surrogateescape"
                )
            except OSError as error:
                raise self._unwritable(error) from None
            self.rows = csv.DictWriter(self.file, FIELDS)
            self.rows.writeheader()
        return self

    def add(self, check: Check) -> None:
        if self.part:
            row = check.as_dict()
            row |= {
                "thresholds": json.dumps(row["thresholds"]),
                "warnings": "; ".join(check.warnings),
            }
            try:
                self.rows.writerow(row)
                self.count += 1
            except OSError as error:
                raise self._unwritable(error) from None

    def __exit__(self, kind: object, *_: object) -> None:
        if not self.part or not self.path:
            return
        try:
            self.file.close()  # writes what is still in memory
            if kind is None:
                take_place(self.part, self.path)
            elif kind in (KeyboardInterrupt, GeneratorExit) and self.count:
                kept = self.path.with_name(f"{self.path.stem}.part{self.path.suffix}")
                take_place(self.part, kept)
                warnings.warn(
                    f"the rows of the {self.count:,} images that were judged are in {kept}",
                    GanscopeWarning,
                    stacklevel=2,
                )
        except OSError as error:
            if kind is None:  # else the first error is the one to tell
                raise self._unwritable(error) from None
        finally:
            self.part.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> GanscopeError:
        return GanscopeError(f"--csv {self.path}: cannot be written ({error.strerror})")
