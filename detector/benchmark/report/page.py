"""The report of a benchmark: one HTML file that opens anywhere, and its numbers beside it.

The page needs no server, script or file from elsewhere: style, figures and thumbnails are in it.
`summary` says what was found, `tables` and `figures` show it; `page.html.jinja` puts them in
order. Names and paths come from strangers, so everything is escaped where it is put in.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
import pandas as pd

from ganscope.config import replacing, write_json, write_text
from ganscope.datasets.degradations import CLEAN
from ganscope.detector.benchmark.report import figures, summary, tables
from ganscope.detector.judging.metrics import ECE_BINS
from ganscope.errors import counted, escaped_in_page
from ganscope.files import csv_text

TEMPLATE = "page.html.jinja"
FILES = (
    *("scores.parquet", "results.csv", "results.tex", "comparisons.csv", "false_alarms.csv"),
    *("videos.csv", "localisation.csv", "report.html", "report.json"),
)
"""What `write_report` writes; the last one marks a benchmark finished."""
THUMBNAIL_SIDE, THUMBNAIL_QUALITY = 288, 80
"""Longest side in pixels and JPEG quality of the thumbnails on the page."""
MOST_MISTAKES, MOST_COMPARISONS = 48, 400
"""So many are shown; the page says how many there are, the JSON holds them all."""

NOTHING: dict[str, Any] = {
    "command": "",
    "versions": {},
    "detectors": {},
    "thresholds": {},
    "corpora": [],
    "images": None,
    "seconds": None,
    "unreadable": {},
    "missing": [],
    "notes": [],
}
"""What a run tells about itself where it tells nothing."""


@dataclass(frozen=True)
class Mistake:
    """An image that a detector got wrong. `overlay` is its heatmap laid over it, if one was made;
    both pictures (H, W, 3) uint8 RGB.
    """

    path: str
    label: int
    generator: str
    detector: str
    score: float
    thumbnail: np.ndarray
    overlay: np.ndarray | None = None


def write_report(
    out: Path,
    results: pd.DataFrame,
    scores: pd.DataFrame,
    about: dict[str, Any],
    comparisons: pd.DataFrame | None = None,
    alarms: pd.DataFrame | None = None,
    audit: dict[str, Any] | None = None,
    mistakes: Sequence[Mistake] = (),
    videos: pd.DataFrame | None = None,
    localisation: pd.DataFrame | None = None,
) -> None:
    """Write `FILES` into `out`, each atomically; tables without rows are not written.

    results: a row for each detector, protocol, generator (also "all") and degradation, with n_real,
    n_fake, each metric with _low and _high (NaN where unknown) and remark. scores: a row for each
    image, protocol, degradation and detector, with label, generator, score, probability and, where
    a detector was trained anew for each generator, left_out, the one that it never met.
    about: command, versions, detectors (name -> hash of its weights), thresholds (name -> score),
    corpora, images (count and hash), seconds, unreadable (path -> reason), missing and
    notes (sentences: what failed, and what was not asked).
    comparisons: detector, other, protocol, generator, degradation, difference, low, high, p_value,
    p_adjusted, method.
    alarms: detector, protocol, degradation, source, photographs, called_fake, share, at_most.
    audit: auroc, interval, clues. videos: as results, of whole videos. localisation: heatmaps
    against masks, see `localisation.COLUMNS`. A part without data is left out of the page.
    """
    about = NOTHING | about
    results = results.assign(remark=results["remark"].fillna(""))
    comparisons, alarms, videos, localisation = (
        table if table is not None and len(table) else None
        for table in (comparisons, alarms, videos, localisation)
    )
    found, warnings = summary.find(results, scores, about, comparisons, alarms, audit)
    found += summary.levels(videos, localisation)
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "scores.parquet") as part:
        _readable(scores).to_parquet(part, index=False)
    for name, table in (
        ("results.csv", results),
        ("comparisons.csv", comparisons),
        ("false_alarms.csv", alarms),
        ("videos.csv", videos),
        ("localisation.csv", localisation),
    ):
        if table is not None:
            _write(out / name, csv_text(table, float_format="%.6g"))
    _write(out / "results.tex", tables.tex_table(results))
    page: dict[str, Any] = {
        "title": _title(results),
        "subtitle": _subtitle(results, scores, about),
        "over": _over(results),
        "findings": found,
        "warnings": warnings,
        "protocols": [tables.protocol_name(name) for name in tables.protocols(results)],
        "scale": [tables.shade(value) for value in np.linspace(0, 1, 11)],
        "matrices": [tables.by_generator(results, p) for p in tables.protocols(results)],
        "gap": tables.gap(scores),
        "measures": [tables.measures(results, p) for p in tables.protocols(results)],
        "curves": figures.curves(results, scores),
        "degraded": _degraded_tables(results),
        "degraded_matrices": _degraded_matrices(results),
        "degraded_curves": figures.degraded_curves(results),
        "calibration": figures.calibration(results, scores),
        "histograms": figures.histograms(results, scores, about["thresholds"]),
        "comparisons": _comparisons(results, comparisons),
        "alarms": _alarms(alarms),
        "videos": _videos(videos),
        "localisation": None if localisation is None else tables.localisation(localisation),
        "mistakes": _mistakes(mistakes),
        "audit": audit,
        "about": about,
        "duration": _duration(about["seconds"]),
        "significant": summary.SIGNIFICANT,
        "left_out": "left_out" in scores,
        "bins": ECE_BINS,
        "most": {"mistakes": MOST_MISTAKES, "comparisons": MOST_COMPARISONS},
    }
    _write(out / "report.html", _render(page))
    # Last: a folder with a report.json is complete.
    write_json(
        out / "report.json",
        _plain(
            {
                "about": about,
                "findings": [asdict(finding) for finding in found],
                "warnings": [asdict(warning) for warning in warnings],
                "results": results,
                "gap": summary.format_gap(scores),
                "comparisons": comparisons,
                "alarms": alarms,
                "videos": videos,
                "localisation": localisation,
                "audit": audit,
                "mistakes": [
                    {k: v for k, v in vars(mistake).items() if k not in ("thumbnail", "overlay")}
                    for mistake in mistakes
                ],
            }
        ),
    )


def _render(page: dict[str, Any]) -> str:
    environment = jinja2.Environment(
        autoescape=True,
        finalize=escaped_in_page,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": summary.number, "percent": summary.percent}
    environment.filters["chance"] = summary.chance
    template = (
        files("ganscope.detector.benchmark.report").joinpath(TEMPLATE).read_text(encoding="utf-8")
    )
    return environment.from_string(template).render(page).lstrip()


def _write(path: Path, text: str) -> None:
    write_text(path, _utf8(text))


def _utf8(text: str) -> str:
    """A file name of bytes that are no UTF-8 has surrogates in it, which cannot be written."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _readable(scores: pd.DataFrame) -> pd.DataFrame:
    names = [column for column in ("path", "file_name", "group") if column in scores]
    return scores.assign(**{name: scores[name].astype(str).map(_utf8) for name in names})


def _plain(value: Any) -> Any:
    """A value as JSON can hold it: tables as records, and null for NaN and infinity."""
    if isinstance(value, pd.DataFrame):
        return [_plain(row) for row in value.to_dict("records")]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _title(results: pd.DataFrame) -> str:
    detectors, generators = results["detector"].nunique(), len(_generators(results))
    return f"{counted(detectors, 'detector')} against {counted(generators, 'generator')}"


def _over(results: pd.DataFrame) -> str:
    """Which fakes a figure is about that names no generator."""
    names = _generators(results)
    return f"on the fakes of {names[0]}" if len(names) == 1 else "over all generators"


def _generators(results: pd.DataFrame) -> list[str]:
    return [name for name in dict.fromkeys(results["generator"]) if name != summary.ALL]


def _subtitle(results: pd.DataFrame, scores: pd.DataFrame, about: dict[str, Any]) -> list[str]:
    """What was measured, in parts of one sentence."""
    labels = scores.drop_duplicates("image")["label"]
    parts = []
    if len(labels):
        reals, fakes = (int((labels == label).sum()) for label in (0, 1))
        parts.append(f"{counted(reals, 'real')} and {counted(fakes, 'fake')}")
    if degraded := len(_degradations(results)):
        parts.append(f"clean and under {counted(degraded, 'degradation')}")
    if about["corpora"]:
        parts.append(f"of {', '.join(map(str, about['corpora']))}")
    return parts


def _degradations(results: pd.DataFrame) -> list[str]:
    return [name for name in dict.fromkeys(results["degradation"]) if name != CLEAN.label]


def _degraded_tables(results: pd.DataFrame) -> list[tables.Table]:
    if not _degradations(results):
        return []
    return [tables.by_degradation(results, name) for name in tables.protocols(results)]


def _degraded_matrices(results: pd.DataFrame) -> list[tables.Table]:
    if results["generator"].nunique() < 2:
        return []
    return [
        tables.by_generator(results, protocol, degradation, small=False)
        for degradation in _degradations(results)
        for protocol in tables.protocols(results)
    ]


def _comparisons(results: pd.DataFrame, comparisons: pd.DataFrame | None) -> dict[str, Any] | None:
    """Comparisons over all generators, clean, by the main protocol; the others; the methods."""
    if comparisons is None:
        return None
    first = (
        (comparisons["protocol"] == summary.main_protocol(results))
        & (comparisons["degradation"] == CLEAN.label)
        & (comparisons["generator"] == summary.ALL)
    )
    if not first.any():
        first = comparisons["degradation"] == CLEAN.label
    rows = comparisons.assign(degradation=comparisons["degradation"].map(summary.in_words))
    return {
        "first": rows[first].to_dict("records"),
        "others": rows[~first].head(MOST_COMPARISONS).to_dict("records"),
        "n_others": int((~first).sum()),
        "methods": list(dict.fromkeys(comparisons["method"])),
    }


def _alarms(alarms: pd.DataFrame | None) -> dict[str, list[tables.Table]] | None:
    """False alarms by source, clean and degraded."""
    if alarms is None:
        return None
    found: dict[str, list[tables.Table]] = {"clean": [], "degraded": []}
    for degradation in dict.fromkeys(alarms["degradation"]):
        part = alarms[alarms["degradation"] == degradation]
        where = "clean" if degradation == CLEAN.label else "degraded"
        found[where] += [
            tables.false_alarms(alarms, protocol, degradation)
            for protocol in tables.protocols(part)
        ]
    return found


def _videos(videos: pd.DataFrame | None) -> list[tables.Table]:
    """Whole videos, clean, protocol by protocol."""
    if videos is None:
        return []
    rows = videos.assign(remark="")
    return [tables.by_generator(rows, name) for name in tables.protocols(rows)]


def _mistakes(mistakes: Sequence[Mistake]) -> dict[str, Any] | None:
    """The mistakes of the page, false alarms first, the surest first."""
    if not mistakes:
        return None
    ordered = sorted(mistakes, key=lambda m: m.score if m.label else -m.score)
    half = MOST_MISTAKES // 2
    wrong = {label: [m for m in ordered if m.label == label] for label in (0, 1)}
    # What one class does not need, the other may have.
    room = {y: max(half, MOST_MISTAKES - len(wrong[1 - y])) for y in (0, 1)}
    return {
        "count": len(mistakes),
        "groups": [
            {
                "title": title,
                "count": len(wrong[label]),
                "shown": [
                    {
                        "mistake": mistake,
                        "name": "/".join(Path(mistake.path).parts[-2:]),
                        "thumbnail": _jpeg(mistake.thumbnail),
                        "overlay": None if mistake.overlay is None else _jpeg(mistake.overlay),
                    }
                    for mistake in wrong[label][: room[label]]
                ],
            }
            for label, title in ((0, "Photographs taken for fakes"), (1, "Fakes taken for real"))
            if wrong[label]
        ],
    }


def shrunk(pixels: np.ndarray) -> np.ndarray:
    """Pixels (H, W, 3) as large as the page shows them."""
    shrink = min(1.0, THUMBNAIL_SIDE / max(pixels.shape[:2]))
    size = tuple(max(1, round(side * shrink)) for side in pixels.shape[1::-1])
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def _jpeg(pixels: np.ndarray) -> str:
    """Pixels (H, W, 3) as a small JPEG, a data URI."""
    options = [cv2.IMWRITE_JPEG_QUALITY, THUMBNAIL_QUALITY]
    _, data = cv2.imencode(".jpg", shrunk(pixels)[..., ::-1], options)
    return figures.data_uri("image/jpeg", data.tobytes())


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (left, "s"))
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "less than a second"
