"""What the judged frames of a video say together: a mean over its time with an interval, the
seconds by verdict, and a picture of the timeline.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ganscope.detector.judge import Judge
from ganscope.detector.judging.faces import FaceCheck
from ganscope.errors import GanscopeError, escaped
from ganscope.files import replacing

ENOUGH_SCENES = 5
"""From so many on the interval is drawn over scenes: frames of one scene say much the same."""
DRAWS = 1000
COLOURS = {"fake": "#c0392b", "real": "#2e8b57", "unsure": "#c9a227", "": "#999999"}
THUMBNAIL = 160
"""Pixels that a frame is wide in the timeline."""


@dataclass(frozen=True, kw_only=True)
class FrameCheck:
    """What was said of one frame, which stands for `since` to `until`, in seconds."""

    time: float
    since: float
    until: float
    scene: int
    score: float | None
    verdict: str | None
    probability: float | None
    warnings: tuple[str, ...]
    faces: tuple[FaceCheck, ...] | None = None

    @property
    def seconds(self) -> float:
        return self.until - self.since

    def as_dict(self) -> dict[str, Any]:
        faces = None if self.faces is None else [face.as_dict() for face in self.faces]
        return {**vars(self), "warnings": list(self.warnings), "faces": faces}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "FrameCheck":
        """The opposite of `as_dict`."""
        faces = record["faces"]
        if faces is not None:
            faces = tuple(map(FaceCheck.from_dict, faces))
        return cls(**{**record, "warnings": tuple(record["warnings"]), "faces": faces})


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A video's frames as one: those of which something can be said, weighted by their time."""

    score: float | None
    interval: tuple[float, float] | None
    """95 % bootstrap interval of the score; None for a single frame."""
    verdict: str
    seconds: dict[str, float]
    """Verdict -> seconds that the frames with it stand for."""
    meaning: str


def summarise(frames: Sequence[FrameCheck], detector: Judge) -> Summary:
    """A video is fake or real only if the whole interval is."""
    seconds = dict.fromkeys(("fake", "real", "unsure"), 0.0)
    for frame in frames:
        seconds[frame.verdict or "unsure"] += frame.seconds
    told = [f for f in frames if f.probability is not None and f.score is not None]
    if not told:
        nothing = "no frame could be judged"
        if detector.faces_alone:
            nothing = "this detector looks at faces alone, and no frame shows a large one"
        return Summary(
            score=None,
            interval=None,
            verdict="unsure",
            seconds=seconds,
            meaning="nothing can be said: " + (_first_reason(frames) or nothing),
        )
    scores = np.array([f.score for f in told])
    weights = np.array([f.seconds for f in told])
    score = float(np.average(scores, weights=weights))
    interval = _interval(scores, weights, np.array([f.scene for f in told]))
    verdicts = {detector.verdict(s) for s in (score, *(interval or ()))}
    if len(told) == 1:  # what is said of a picture holds for the only one
        verdicts = {told[0].verdict or "unsure"}
    verdict = verdicts.pop() if len(verdicts) == 1 else "unsure"
    share = ", ".join(f"{what} {s:.1f} s" for what, s in seconds.items() if s)
    bounds = f" (95 % interval {interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
    return Summary(
        score=score,
        interval=interval,
        verdict=verdict,
        seconds=seconds,
        meaning=f"{len(told)} frames judged as pictures: {share}; their mean over time{bounds} is "
        "no probability, and the detector was measured on pictures, not on videos",
    )


def _first_reason(frames: Sequence[FrameCheck]) -> str:
    return next((w for f in frames for w in f.warnings), "")


def _interval(
    scores: np.ndarray, weights: np.ndarray, scenes: np.ndarray
) -> tuple[float, float] | None:
    """Bootstrap over scenes, or over frames if there are few of them. Arguments (N,)."""
    if len(scores) < 2:
        return None
    names, owner = np.unique(scenes, return_inverse=True)
    if len(names) < ENOUGH_SCENES:
        owner = np.arange(len(scores))
    count = int(owner.max()) + 1
    total = np.bincount(owner, weights * scores, count)
    weight = np.bincount(owner, weights, count)
    drawn = np.random.default_rng(0).integers(0, count, (DRAWS, count))
    means = total[drawn].sum(1) / weight[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def shrink(pixels: np.ndarray) -> np.ndarray:
    """A frame as the timeline shows it."""
    height = max(1, round(pixels.shape[0] * THUMBNAIL / pixels.shape[1]))
    return cv2.resize(pixels, (THUMBNAIL, height), interpolation=cv2.INTER_AREA)


def draw_timeline(
    path: Path,
    check: Any,
    shown: Sequence[np.ndarray],
) -> None:
    """Write a PNG, atomically: the frames of a `VideoCheck` (`shown`, small) above their scores
    over time. Raises `GanscopeError` if it cannot be written.
    """
    from matplotlib.figure import Figure

    frames, thresholds = check.frames, check.thresholds
    title = escaped(f"{Path(check.path).name[-80:]}: {check.verdict}")

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    top, axes = figure.subplots(2, 1, height_ratios=(1, 2.6))
    step = max(1, -(-len(frames) // 10))
    some = list(range(0, len(frames), step))
    for place, number in enumerate(some):
        inset = top.inset_axes((place / len(some), 0, 0.96 / len(some), 1))
        inset.imshow(shown[number])
        inset.set(xticks=[], yticks=[], title=f"{frames[number].time:.1f} s")
        inset.title.set_fontsize(8)
        for spine in inset.spines.values():
            spine.set(color=COLOURS[frames[number].verdict or ""], linewidth=2.5)
    top.axis("off")
    axes.axhspan(thresholds["fake"], 1, color=COLOURS["fake"], alpha=0.07, lw=0)
    axes.axhspan(0, thresholds["real"], color=COLOURS["real"], alpha=0.07, lw=0)
    if check.interval:
        axes.axhspan(*check.interval, color="#444444", alpha=0.12, lw=0, label="95 % interval")
    if check.score is not None:
        axes.axhline(check.score, color="#444444", lw=1, ls="--", label="mean over time")
    before = None
    for frame in frames:
        if frame.score is None:
            continue
        colour = COLOURS[frame.verdict or ""]
        axes.plot([frame.since, frame.until], [frame.score] * 2, color=colour, lw=3)
        axes.plot([frame.time], [frame.score], "o", color=colour, ms=5)
        if before is not None and frame.scene != before:
            axes.axvline(frame.since, color="#bbbbbb", lw=0.8, ls=":")
        before = frame.scene
    for verdict in ("fake", "unsure", "real"):
        axes.plot([], [], "o-", color=COLOURS[verdict], label=verdict)
    axes.set(xlim=(0, max(check.duration, 1e-3)), ylim=(0, 1), xlabel="seconds", ylabel="score")
    axes.legend(frameon=False, ncols=5, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left", fontsize=9, parse_math=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            figure.savefig(part, dpi=110, format="png")
    except OSError as error:
        raise GanscopeError(f"{path}: the timeline cannot be written ({error.strerror})") from None
