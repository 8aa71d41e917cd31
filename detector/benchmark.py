"""Detectors x generators x degradations: scores first, then every figure from the table of scores.

Reals are measured against one generator at a time. Each image is opened once for all detectors and
degradations. The table of scores is written out, so any figure can be computed again, or another
detector's scores be put beside it.
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

import ganscope
from ganscope.config import BenchmarkSettings, next_free, plain, write_json, write_text
from ganscope.datasets.corpus import open_corpora
from ganscope.datasets.degradations import CLEAN, Degradation, parse_degradation
from ganscope.detector import plots
from ganscope.detector.metrics import NAMES, evaluate_by_generator
from ganscope.detector.model import Detector, load_detector
from ganscope.detector.scoring import score_images
from ganscope.devices import pick_device
from ganscope.errors import GanscopeError, ImageError
from ganscope.images import open_image

if TYPE_CHECKING:
    from rich.progress import Progress

CHUNK = 64
"""Images open at a time, and fewer where they are large:"""
CHUNK_PIXELS = 50_000_000
"""once so many pixels are open, they are scored before more are."""
AHEAD = 4
"""Further images that may be open and waiting."""
RESULTS = "results.json"
"""Written last: it marks a benchmark finished."""
MADE_OF = ("scores.csv", "results.csv", RESULTS, "roc.png", "matrix.png")


def benchmark_detectors(
    settings: BenchmarkSettings, progress: "Progress | None" = None
) -> pd.DataFrame:
    """Measure detectors on corpora; returns the results, a row a cell, and writes them.

    Columns: detector, generator, degradation, n_real, n_fake, every metric with _low and _high,
    remark. The folder (in `attrs["out"]`) gets `scores.csv`, `results.csv`, `results.json`,
    `roc.png` and `matrix.png`. Accuracies are at each detector's own shipped threshold. Images that
    cannot be read are left out and counted in `attrs["unreadable"]`.

    Raises `GanscopeError` for an unknown detector, corpus or degradation, for corpora without
    images of both classes in the split, and for an output folder that holds another benchmark.
    """
    degradations = parse_degradations(settings)
    detectors = _load_all(settings.detector)
    table = _images(settings)
    out = _open_folder(settings)
    scores, unreadable = score_all(settings, table, detectors, degradations, progress)
    if scores.empty:
        raise GanscopeError("none of the images could be read")
    results = evaluate_all(scores, detectors, settings)
    weights = {name: detector.weights for name, detector in detectors.items()}
    write_results(settings, out, scores, results, weights, unreadable)
    return results


def parse_degradations(settings: BenchmarkSettings) -> list[Degradation]:
    """The degradations to test under, clean first, each once."""
    found = [CLEAN, *(parse_degradation(d) for d in settings.degrade)]
    return list({d.label: d for d in found}.values())


def _open_folder(settings: BenchmarkSettings) -> Path:
    """Make the folder for the results; refuses one that holds another benchmark."""
    out = settings.out or next_free(Path("benchmark"), lambda p: p.exists())
    if any((out / name).exists() for name in MADE_OF):
        raise GanscopeError(f"{out} holds a benchmark already; name another folder with --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GanscopeError(f"{out}: cannot be made ({error.strerror})") from None
    return out


def write_results(
    settings: BenchmarkSettings,
    out: Path,
    scores: pd.DataFrame,
    results: pd.DataFrame,
    weights: dict[str, str],
    unreadable: dict[str, str],
) -> None:
    """Write scores, results and pictures, and note in the results' attributes where.

    weights: name of each detector -> hash of its weights.
    """
    write_text(out / "scores.csv", _wide(scores).to_csv(index=False, float_format="%.6g"))
    write_text(out / "results.csv", results.to_csv(index=False, float_format="%.6g"))
    clean = scores[scores["degradation"] == CLEAN.label]
    plots.draw_roc(
        out / "roc.png",
        {
            name: (part["label"].to_numpy(), part["score"].to_numpy())
            for name, part in clean.groupby("detector", sort=False)
        },
    )
    plots.draw_matrix(out / "matrix.png", results)
    about = {
        "settings": plain(settings),
        "detectors": weights,
        "versions": {"ganscope": ganscope.__version__, "torch": torch.__version__},
        "unreadable": unreadable,
        # NaN is no JSON
        "results": results.astype(object).where(results.notna(), None).to_dict("records"),
    }
    write_json(out / RESULTS, about)
    results.attrs |= {"out": str(out), "unreadable": unreadable}


def _load_all(names: tuple[str, ...]) -> dict[str, Detector]:
    """Name -> detector, each name once."""
    return {name: load_detector(name) for name in dict.fromkeys(names)}


def _images(settings: BenchmarkSettings) -> pd.DataFrame:
    table = open_corpora(settings.corpora).table
    if settings.split != "all":
        table = table[table["split"] == settings.split]
    for label, word in ((0, "reals"), (1, "fakes")):
        if not (table["label"] == label).any():
            where = "" if settings.split == "all" else f" in the split {settings.split!r}"
            raise GanscopeError(
                f"the corpora hold no {word}{where}; a benchmark needs both classes"
            )
    return table.reset_index(drop=True)


def score_all(
    settings: BenchmarkSettings,
    table: pd.DataFrame,
    detectors: dict[str, Detector],
    degradations: list[Degradation],
    progress: "Progress | None",
) -> tuple[pd.DataFrame, dict[str, str]]:
    """A row an image, degradation and detector; and path -> reason of what could not be read."""
    device = str(pick_device(settings.device))
    rows: list[dict[str, Any]] = []
    unreadable: dict[str, str] = {}
    task = progress.add_task("benchmarking", total=len(table), note="") if progress else None
    for numbers, images in _opened(table["path"].tolist(), unreadable):
        for degradation in degradations:
            degraded = [
                # The same noise and kernel for every detector and in every run.
                degradation(pixels, np.random.default_rng((settings.seed, number)))
                for number, pixels in zip(numbers, images, strict=True)
            ]
            for name, detector in detectors.items():
                found = score_images(detector, degraded, settings.batch_size, device)
                for number, scored in zip(numbers, found, strict=True):
                    if scored.error:
                        unreadable[table.at[number, "path"]] = f"{name}: {scored.error}"
                        continue
                    rows.append(
                        {
                            "image": number,
                            "degradation": degradation.label,
                            "detector": name,
                            "score": scored.score,
                            "probability": float(detector.probability(scored.logit)),
                        }
                    )
        if progress and task is not None:
            progress.update(task, completed=numbers[-1] + 1)
    about = table[["path", "file_name", "label", "generator", "source", "group"]]
    scores = pd.DataFrame(
        rows, columns=["image", "degradation", "detector", "score", "probability"]
    )
    return scores.join(about, on="image"), unreadable


def _opened(
    paths: list[str], unreadable: dict[str, str]
) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Chunks of (row numbers, pixels), opened in threads a few images ahead, in order."""

    def work(path: str) -> np.ndarray | ImageError:
        try:
            return open_image(path).pixels
        except ImageError as error:
            return error

    numbers: list[int] = []
    images: list[np.ndarray] = []
    source = iter(paths)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        ahead: deque[Future] = deque(pool.submit(work, p) for p in islice(source, AHEAD))
        try:
            for number, path in enumerate(paths):
                found = ahead.popleft().result()
                ahead.extend(pool.submit(work, p) for p in islice(source, 1))
                if isinstance(found, ImageError):
                    unreadable[path] = found.reason
                else:
                    numbers.append(number)
                    images.append(found)
                pixels = sum(image.shape[0] * image.shape[1] for image in images)
                if len(images) >= CHUNK or pixels >= CHUNK_PIXELS:
                    yield numbers, images
                    numbers, images = [], []
            if images:
                yield numbers, images
        finally:
            pool.shutdown(cancel_futures=True)


def _wide(scores: pd.DataFrame) -> pd.DataFrame:
    """A row an image and degradation, a column a detector."""
    keys = ["path", "label", "generator", "source", "group", "degradation"]
    order = list(dict.fromkeys(scores["detector"]))
    wide = scores.pivot_table(
        index=[*keys, "image"], columns="detector", values="score", sort=False
    )
    return wide[order].reset_index().drop(columns="image").rename_axis(columns=None)


def evaluate_all(
    scores: pd.DataFrame, detectors: dict[str, Detector], settings: BenchmarkSettings
) -> pd.DataFrame:
    """The results: a row for each detector, generator and degradation."""
    parts = []
    for (name, degradation), part in scores.groupby(["detector", "degradation"], sort=False):
        threshold = detectors[str(name)].thresholds["fake"]
        cell = evaluate_by_generator(part, threshold, settings.bootstrap, settings.seed)
        cell.insert(0, "detector", name)
        cell.insert(2, "degradation", degradation)
        parts.append(cell)
    results = pd.concat(parts, ignore_index=True)
    seen = {name for name, detector in detectors.items() if _trained_here(detector, settings)}
    results["remark"] = [_remark(row, seen) for _, row in results.iterrows()]
    return results[
        ["detector", "generator", "degradation", "n_real", "n_fake", *_columns(), "remark"]
    ]


def _columns() -> list[str]:
    return [column for name in NAMES for column in (name, f"{name}_low", f"{name}_high")]


def _trained_here(detector: Detector, settings: BenchmarkSettings) -> bool:
    """Whether training images of a detector may be among those that it is measured on."""
    if settings.split in ("val", "test") or settings.train:
        return False
    trained_on = {Path(c).resolve() for c in detector.config["training"].get("corpora", ())}
    return bool(trained_on & {Path(c).resolve() for c in settings.corpora})


def _remark(row: pd.Series, seen: set[str]) -> str:
    if not (row["n_real"] and row["n_fake"]):
        return "one class only"
    if row["detector"] in seen and row["degradation"] == CLEAN.label:
        return "trained on this corpus, so this flatters; --split test measures what it never saw"
    sure = row["auroc_high"] if np.isfinite(row["auroc_high"]) else row["auroc"]
    return "probably inverted: fakes score lower than reals" if sure < 0.5 else ""
