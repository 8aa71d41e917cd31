"""The process that opens and judges pictures for the server.

It is given several at a time, of whichever requests are waiting, and answers each as soon as it is
judged. The server ends it if a picture takes too long, and starts another if it dies: what files
from strangers do to a decoder happens here.
"""

import functools
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ganscope.errors import GanscopeError, ImageError, reason_of
from ganscope.faces import Finder, open_finder
from ganscope.images import NamedImage, open_image, read_facts
from ganscope.inputs import HEAD, Video, kind_of
from ganscope.memory import keep_freed_memory
from ganscope.web.thumbnails import SHOWN_QUALITY, SHOWN_SIDE, as_uri, shrunk, thumbnail


@dataclass(frozen=True, kw_only=True)
class Job:
    """A picture, and what is wanted of it."""

    number: int
    name: str
    """What its sender calls it; it is never used as a path."""
    content: bytes
    heatmap: bool = False
    tiles: bool = False
    thumbnail: bool = False
    picture: bool = False
    evidence: bool = False
    """All that the file says, beside the record's own words of it."""
    judge: bool = True
    """False: only what the file says."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a worker needs to know at its start."""

    detector: str
    device: str
    max_pixels: int
    reencode: bool
    faces: bool = True
    pixels_only: bool = False
    trust_anchors: Path | None = None


def work(connection: Connection, plan: Plan) -> None:
    """Answer batches of jobs until the other end is closed: (number, answer) for each, then None.

    An answer is the fields of a `Check` and, as asked for, `thumbnail`, `picture` (data URIs),
    `tiles`, and `heatmap` as a data URI. The first word is a dictionary that tells of the detector,
    or an error's text.
    """
    for one in (signal.SIGINT, signal.SIGTERM):  # the server says when it is over
        signal.signal(one, signal.SIG_IGN)
    keep_freed_memory()
    from ganscope.detector.exported.loading import load_judge

    try:
        detector = load_judge(plan.detector, device=plan.device, lasting=True)
        detector.name = Path(detector.name).name  # where it lies is nobody's business
        connection.send(about(detector, plan.detector))
    except GanscopeError as error:
        connection.send(str(error))
        return
    try:
        while True:
            jobs: list[Job] = connection.recv()
            for answer in all_answers(detector, jobs, plan):
                connection.send(answer)
            connection.send(None)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the server is gone


def about(detector: Any, called: str) -> dict[str, Any]:
    """What people may know of a detector; called: what the user named."""
    from ganscope.named import CARD, find_folder, shipped

    config, folder = detector.config, None
    if not Path(called).is_file():  # an exported one is alone
        folder = find_folder(called, "detectors")
    card = folder / CARD if folder else None
    return {
        "name": detector.name,
        "architecture": config["architecture"],
        "size": detector.size,
        "smallest": detector.smallest,
        "thresholds": thresholds(detector),
        "unread": failure(detector, "", ""),
        "shipped": sorted(shipped("detectors")),
        "false_alarms": config.get("false_alarms"),
        "validation": validation(config, folder),
        "card": card.read_text(encoding="utf-8") if card and card.is_file() else "",
    }


def thresholds(detector: Any) -> dict[str, float]:
    return {name: detector.thresholds[name] for name in ("fake", "real")}


def validation(config: dict[str, Any], folder: Path | None) -> dict[str, list[int]] | None:
    """How many validation images of each class have a score in each of 20 equal bins; None: not
    known. A run keeps its scores; a detector's configuration may keep the counts.
    """
    kept = config.get("validation")
    if isinstance(kept, dict) and {"real", "fake"} <= set(kept):
        return {name: [int(n) for n in kept[name]] for name in ("real", "fake")}
    table = folder / "scores.csv" if folder else None
    if table is None or not table.is_file():
        return None
    import pandas as pd

    try:
        rows = pd.read_csv(table, usecols=["split", "label", "score"])
    except ValueError:
        return None
    rows = rows[(rows["split"] == "val") & rows["score"].notna()]
    return {
        name: np.histogram(rows["score"][rows["label"] == label], 20, (0, 1))[0].tolist()
        for name, label in (("real", 0), ("fake", 1))
    }


def all_answers(detector: Any, jobs: list[Job], plan: Plan) -> Iterator[tuple[int, dict[str, Any]]]:
    """`answers`, whatever happens: jobs are tried one by one if something goes wrong with several,
    and that which fails alone is answered with an `error`.
    """
    open_ = {job.number: job for job in jobs}
    try:
        for number, answer in answers(detector, jobs, plan):
            del open_[number]
            yield number, answer
    except Exception as error:  # any of torch's, OpenCV's, Pillow's
        if len(jobs) == 1:
            reason = f"cannot be judged ({reason_of(error)})"
            yield jobs[0].number, failure(detector, jobs[0].name, reason)
            return
        for job in open_.values():
            yield from all_answers(detector, [job], plan)


def failure(detector: Any, name: str, reason: str) -> dict[str, Any]:
    """The record of a picture that got no score."""
    from ganscope.detector.judging.checking import unreadable

    return unreadable(detector, ImageError(name, reason)).as_dict()


def answers(detector: Any, jobs: list[Job], plan: Plan) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, answer) of each job, as they are done."""
    from ganscope.detector.judging.checking import check_each

    todo: list[tuple[Job, NamedImage]] = []
    for job in jobs:
        image = NamedImage(job.name, job.content)
        try:
            if kind_of(job.content[:HEAD]) == "video":
                yield job.number, of_video(detector, job, plan)
                continue
            facts = read_facts(image)
            if facts.stored_width * facts.stored_height > plan.max_pixels:
                raise ImageError(
                    job.name,
                    f"{facts.stored_width}x{facts.stored_height} pixels, more than the limit of "
                    f"{plan.max_pixels:,}; shrink it first",
                )
            if job.judge:
                todo.append((job, image))
            else:
                yield job.number, unjudged(detector, job, plan)
        except ImageError as error:
            yield job.number, failure(detector, job.name, error.reason)
    checks = check_each(
        detector,
        [image for _, image in todo],
        device=plan.device,
        reencode=plan.reencode,
        pixels_only=plan.pixels_only,
        trust_anchors=plan.trust_anchors,
        finder=finder_of(plan),
    )
    for (job, image), (check, scored) in zip(todo, checks, strict=True):
        answer = check.as_dict()
        if check.error is None and (job.heatmap or job.thumbnail or job.picture):
            pixels = open_image(image).pixels
            chance = check.probability
            answer |= drawings(detector, job, pixels, chance is not None, check.faces or (), chance)
        if job.tiles and check.error is None:
            answer["tiles"] = tile_scores(detector, scored)
        if job.evidence:
            answer["evidence"] = check.evidence.as_dict()
        yield job.number, answer


@functools.cache
def finder_of(plan: Plan) -> Finder | None:
    """What finds the faces, opened once."""
    return open_finder() if plan.faces else None


def unjudged(detector: Any, job: Job, plan: Plan) -> dict[str, Any]:
    """The record of `ganscope inspect --json`; or only a heatmap, if that is wanted."""
    if job.heatmap:
        image = NamedImage(job.name, job.content)
        return {"path": job.name, "error": None} | drawings(
            detector, job, open_image(image).pixels, True
        )
    from ganscope.detector.evidence.evidence import read_evidence
    from ganscope.detector.evidence.inspection import Inspection

    found = read_evidence(job.content, job.name, plan.trust_anchors)
    return Inspection(path=job.name, evidence=found).as_dict()


def of_video(detector: Any, job: Job, plan: Plan) -> dict[str, Any]:
    """The record of a video, shown by its most suspect frame. Raises `ImageError`."""
    from ganscope.detector.judging.checking import check_video

    if not job.judge:
        raise ImageError(job.name, "a video; only pictures are inspected")
    check, pixels = check_video(
        detector,
        Video(job.name, job.content),
        device=plan.device,
        reencode=plan.reencode,
        pixels_only=plan.pixels_only,
        max_pixels=plan.max_pixels,
        finder=finder_of(plan),
    )
    answer = check.as_dict()
    if check.error is None and (job.thumbnail or job.picture):
        answer |= drawings(detector, job, pixels, False)
    if job.tiles and check.error is None:
        answer["tiles"] = []
    if job.evidence:
        answer["evidence"] = check.evidence.as_dict()
    return answer


def drawings(
    detector: Any,
    job: Job,
    pixels: np.ndarray,
    judged: bool,
    faces: Sequence[Any] = (),
    probability: float | None = None,
) -> dict[str, str]:
    """The pictures that a job asks for, as data URIs; boxes around faces are on the heatmap.
    probability: as in `heatmap`.
    """
    found = {}
    shown = shrunk(pixels, SHOWN_SIDE)
    if job.picture:
        found["picture"] = as_uri(shown, SHOWN_QUALITY)
    if job.thumbnail:
        found["thumbnail"] = thumbnail(shown)
    if job.heatmap and judged:
        from ganscope.detector.judging.heatmaps import draw_faces, heatmap, lay_over

        heat = cv2.resize(heatmap(detector, pixels, "auto", probability), shown.shape[1::-1])
        drawn = lay_over(shown, heat)
        draw_faces(drawn, faces, shown.shape[1] / pixels.shape[1])
        found["heatmap"] = as_uri(drawn, SHOWN_QUALITY)
    return found


def tile_scores(detector: Any, scored: Any) -> list[dict[str, float]]:
    """Where the detector looked at native resolution, in pixels, and the score of each place."""
    places = scored.positions[: len(scored.tile_logits)]
    return [
        {
            "left": int(left),
            "top": int(top),
            "size": detector.size,
            "score": round(float(detector.score(logit)), 4),
        }
        for (top, left), logit in zip(places, scored.tile_logits, strict=True)
        if top >= 0
    ]
