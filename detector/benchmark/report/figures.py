"""The figures of a benchmark's report, with their legends and in words for who cannot see them.

No name is drawn: legends and captions are text on the page, which escapes it.
"""

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ganscope.datasets.degradations import CLEAN
from ganscope.detector.benchmark.report import summary
from ganscope.detector.benchmark.report.tables import protocol_name, protocols
from ganscope.detector.judging import plots
from ganscope.detector.judging.metrics import ranked_by

STEPS = {
    "jpeg": "JPEG quality",
    "webp": "WebP quality",
    "resize": "size",
    "blur": "blur: standard deviation in pixels",
    "noise": "noise: standard deviation in 8-bit levels",
    "crop": "crop: share of each side",
}
"""What the values of a degradation are; of others the name says it."""


@dataclass(frozen=True)
class Figure:
    """A picture on the page: its data URI, and in words what it shows."""

    image: str
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Key:
    """A line of a legend: the name, how its curve looks, and what is told beside it."""

    name: str
    line: plots.Line
    text: str = ""


@dataclass(frozen=True)
class Figures:
    """Figures that share a legend."""

    title: str
    keys: list[Key]
    figures: list[Figure]


def curves(results: pd.DataFrame, scores: pd.DataFrame) -> list[Figures]:
    """ROC and precision-recall curves of every protocol, and the best detector's by generator."""
    lines = plots.lines_of(_detectors(results))
    groups = []
    for protocol in protocols(results):
        scored = scored_by(scores, protocol)
        if scored:
            groups.append(_curve_group(results, scored, protocol, lines))
    best, protocol = summary.best_detector(results), summary.main_protocol(results)
    rows = scores[(scores["detector"] == best) & (scores["protocol"] == protocol)]
    rows = rows[rows["degradation"] == CLEAN.label]
    fakes, reals = rows[rows["label"] == 1], rows[rows["label"] == 0]
    if fakes["generator"].nunique() < 2 or not len(reals):
        return groups
    by_generator = {
        str(name): (
            np.r_[np.zeros(len(against), int), np.ones(len(part), int)],
            np.r_[against, part[ranked_by(part)]].astype(float),
        )
        for name, part in fakes.groupby("generator", sort=False)
        if len(against := _against(reals, str(name)))
    }
    lines = plots.lines_of(list(by_generator))
    auroc = results[
        (results["detector"] == best)
        & (results["protocol"] == protocol)
        & (results["degradation"] == CLEAN.label)
    ].set_index("generator")["auroc"]
    told = {name: summary.number(auroc.get(name, float("nan"))) for name in by_generator}
    alt = ", ".join(f"{name} {text}" for name, text in told.items())
    figures = [
        Figure(
            _svg(plots.roc_figure(by_generator, lines, logarithmic)),
            f"ROC curves of {best} by generator{end}; AUROC: {alt}",
            caption,
        )
        for logarithmic, end, caption in (
            (False, "", "ROC"),
            (True, ", false alarms on a logarithmic axis", "Few false alarms"),
        )
    ]
    keys = [Key(name, lines[name], told[name]) for name in by_generator]
    return [*groups, Figures(f"{best}, generator by generator", keys, figures)]


def _against(reals: pd.DataFrame, generator: str) -> np.ndarray:
    """The reals' scores by the detector that the fakes of a generator were scored by."""
    if "left_out" in reals:
        reals = reals[reals["left_out"] == generator]
    return reals[ranked_by(reals)].to_numpy(float)


def _curve_group(
    results: pd.DataFrame,
    scored: plots.Scored,
    protocol: str,
    lines: dict[str, plots.Line],
) -> Figures:
    rows = summary.overall(results[results["protocol"] == protocol])
    auroc = rows[rows["degradation"] == CLEAN.label].set_index("detector")["auroc"]
    told = {name: summary.number(auroc.get(name, float("nan"))) for name in scored}
    alt = "; AUROC: " + ", ".join(f"{name} {text}" for name, text in told.items())
    several = any(len(plots.trainings(*found)) > 1 for found in scored.values())
    return Figures(
        protocol_name(protocol) + several * ", mean over the generators left out",
        [Key(name, lines[name], told[name]) for name in scored],
        [
            Figure(_svg(plots.roc_figure(scored, lines)), f"ROC curves{alt}", "ROC"),
            Figure(
                _svg(plots.roc_figure(scored, lines, logarithmic=True)),
                f"The same ROC curves, false alarms on a logarithmic axis{alt}",
                "ROC where false alarms are few",
            ),
            Figure(
                _svg(plots.precision_figure(scored, lines)),
                f"Precision-recall curves{alt}",
                "Precision and recall",
            ),
        ],
    )


def degraded_curves(results: pd.DataFrame) -> list[Figures]:
    """A figure for each kind of degradation that was measured at several values."""
    kinds: dict[str, list[str]] = {}
    for name in dict.fromkeys(results["degradation"]):
        if name != CLEAN.label:
            kinds.setdefault(name.partition(":")[0], []).append(name)
    detectors = _detectors(results)
    lines = plots.lines_of(detectors)
    groups = []
    for protocol in protocols(results):
        rows = summary.overall(results[results["protocol"] == protocol])
        cells = rows.set_index(["detector", "degradation"])[["auroc", "auroc_low", "auroc_high"]]
        figures = []
        for kind, names in kinds.items():
            if len(names) < 2:
                continue
            steps = [CLEAN.label, *sorted(names, key=_severity)]
            curves = {
                name: cells.reindex([(name, step) for step in steps]).to_numpy(float)
                for name in detectors
            }
            worst = ", ".join(
                f"{name} {summary.number(found[0, 0])} to {summary.number(found[-1, 0])}"
                for name, found in curves.items()
            )
            last = summary.in_words(steps[-1])
            values = [step.partition(":")[2] or step for step in steps]
            figures.append(
                Figure(
                    _svg(plots.degradation_figure(values, curves, lines, "AUROC")),
                    f"AUROC from clean to {last}, with 95 % intervals: {worst}",
                    STEPS.get(kind, kind),
                )
            )
        if figures:
            keys = [Key(name, lines[name]) for name in detectors]
            groups.append(Figures(protocol_name(protocol), keys, figures))
    return groups


def _severity(degradation: str) -> float:
    """Grows with the harm: downwards in quality, away from 1 in size, upwards in all else."""
    kind, _, text = degradation.partition(":")
    try:
        value = float(text)
    except ValueError:
        return 0.0
    if kind in ("jpeg", "webp", "screenshot", "social"):
        return -value
    return abs(math.log(value)) if kind.startswith(("resize", "crop")) and value > 0 else value


def calibration(results: pd.DataFrame, scores: pd.DataFrame) -> Figures | None:
    """Reliability diagrams, one a protocol."""
    lines = plots.lines_of(_detectors(results))
    figures: list[Figure] = []
    errors: dict[str, list[str]] = {}
    for protocol in protocols(results):
        scored = scored_by(scores, protocol, "probability")
        if not scored:
            continue
        rows = summary.overall(results[results["protocol"] == protocol])
        ece = rows[rows["degradation"] == CLEAN.label].set_index("detector")["ece"]
        told = {name: summary.number(ece.get(name, float("nan"))) for name in scored}
        alt = ", ".join(f"{name} {text}" for name, text in told.items())
        figures.append(
            Figure(
                _svg(plots.reliability_figure(scored, lines)),
                f"Share of fakes over stated probability; expected calibration error: {alt}",
                protocol_name(protocol),
            )
        )
        for name, text in told.items():
            errors.setdefault(name, []).append(f"{text} {protocol}")
    keys = [Key(name, lines[name], f"ECE {', '.join(found)}") for name, found in errors.items()]
    return Figures("Reliability", keys, figures) if figures else None


def histograms(
    results: pd.DataFrame, scores: pd.DataFrame, thresholds: Mapping[str, float]
) -> list[Figure]:
    protocol = summary.main_protocol(results)
    rows = scores[(scores["protocol"] == protocol) & (scores["degradation"] == CLEAN.label)]
    figures = []
    for name, part in rows.groupby("detector", sort=False):
        reals, fakes = (part.loc[part["label"] == y, "score"].to_numpy(float) for y in (0, 1))
        middles = [
            f"{word} {summary.number(float(np.median(found)))}"
            for word, found in (("reals", reals), ("fakes", fakes))
            if len(found)
        ]
        threshold = thresholds.get(str(name))
        image = _svg(plots.histogram_figure(reals, fakes, threshold))
        alt = f"Histogram of the scores of {name}; medians: {', '.join(middles)}"
        figures.append(Figure(image, alt, str(name)))
    return figures


def _detectors(results: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(results["detector"]))


def scored_by(
    scores: pd.DataFrame, protocol: str, value: str = ""
) -> dict[str, tuple[np.ndarray, ...]]:
    """Detector -> labels and values of the clean images, and which generator its training lacked
    where that is told; not where one class is missing. value: the column; "": what ranks images.
    """
    rows = scores[(scores["protocol"] == protocol) & (scores["degradation"] == CLEAN.label)]
    value = value or ranked_by(rows)
    whose = ["left_out"] if "left_out" in rows else []
    found = {
        str(name): (
            part["label"].to_numpy(int),
            part[value].to_numpy(float),
            *(part[column].to_numpy() for column in whose),
        )
        for name, part in rows.groupby("detector", sort=False)
    }
    return {name: values for name, values in found.items() if plots.trainings(*values)}


def _svg(text: str) -> str:
    return data_uri("image/svg+xml", text.encode())


def data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
