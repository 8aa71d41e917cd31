"""Detectors x generators x degradations, on files as they are and aligned: scores first, then every
figure from the table of scores.

Reals are measured against one generator at a time. Each image is opened once for all detectors and
degradations, and what a detector said of it is kept: adding a detector or a generator costs only
what is new. The table of scores is written out, so any figure can be computed again.
"""

import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ganscope.config import BenchmarkSettings, as_command, next_free, plain
from ganscope.datasets.audit import audit_table
from ganscope.datasets.copies import look_at_table, remark_on_labels
from ganscope.datasets.corpus import open_corpora
from ganscope.datasets.declared import find_declared, remark_on_declared
from ganscope.detector.benchmark.asking import WORKERS, Scores, list_changes, score_all
from ganscope.detector.benchmark.comparison import adjust, compare_detectors, false_alarms_by_source
from ganscope.detector.benchmark.contestants import Scorer, open_scorer
from ganscope.detector.benchmark.localisation import localise
from ganscope.detector.benchmark.met import (
    Met,
    find_met,
    remark_on_met,
    splits_of_runs,
    without_record,
)
from ganscope.detector.benchmark.mistakes import worst_mistakes
from ganscope.detector.benchmark.report.figures import scored_by
from ganscope.detector.benchmark.report.page import FILES, Mistake, write_report
from ganscope.detector.benchmark.report.summary import ALL, ENOUGH, main_protocol
from ganscope.detector.judging import plots
from ganscope.detector.judging.metrics import NAMES, evaluate_by_generator
from ganscope.errors import GanscopeError
from ganscope.files import gone
from ganscope.locks import holding

if TYPE_CHECKING:
    from rich.progress import Progress

MADE_OF = (*FILES, "roc.png", "matrix.png")
FEW = 4
"""Images of a class below which any figure is remarked on: of three reals and three fakes, one
guess in twenty has the AUROC 1, of one and one every second."""
UNFINISHED = ".unfinished"
"""A file in a folder whose results are being written."""
VERSIONS = ("ganscope", "torch", "timm", "scikit-learn", "numpy", "opencv-python", "pillow")
"""Packages on which the figures may depend."""
AUDITED = 1000
"""Images of a class that are audited at most: enough for a second decimal."""


def benchmark_detectors(
    settings: BenchmarkSettings, progress: "Progress | None" = None, command: str | None = None
) -> pd.DataFrame:
    """Measure detectors on corpora; returns the results, a row a cell, and writes them.

    Columns: detector, protocol, generator, degradation, n_real, n_fake, every metric with _low and
    _high, remark. The folder (in `attrs["out"]`) gets `report.html` with `report.json` and tables
    (see `write_report`), `scores.parquet`, `roc.png` and `matrix.png`. Accuracies are at each
    detector's own shipped threshold. What could not be had is listed in `attrs["missing"]`, what
    was not asked for in `attrs["notes"]`, unreadable images in `attrs["unreadable"]`. command: what
    was typed, for the report.

    Raises `GanscopeError` for an unknown corpus or degradation, for corpora without images of both
    classes in the split, for an output folder that holds another benchmark or that another
    command is writing to, and if no detector can be had.
    """
    begun = time.monotonic()
    changes = list_changes(settings)
    scorers, missing = _open_all(settings)
    corpus = open_corpora(settings.corpora)
    every = corpus.table
    looked = look_at_table(every, _looking(progress, len(every)))
    met = find_met(scorers, looked, settings)
    table, notes = _images(settings, every, met)
    out = settings.out or next_free(Path("benchmark"), lambda p: p.exists())
    with holding(out):
        _look_into(out)
        scores = score_all(settings, table.reset_index(drop=True), scorers, changes, progress)
        scores.missing[:0] = missing
        known = looked.table.index.isin(table.index)
        notes += remark_on_labels(looked.table[known], looked.prints.take(np.flatnonzero(known)))
        notes += remark_on_declared(
            find_declared(looked.table[known]), "look whether they are what their labels say"
        )
        if unknown := without_record(scorers):
            notes.append(
                f"{', '.join(unknown)}: no record is kept of all the images that it learned from; "
                "whether it has met some of these is only known by the names of its corpora"
            )
        scores.notes[:0] = notes
        if scores.table.empty:
            raise GanscopeError(_nothing(scores))
        results = evaluate_all(scores.table, scorers, settings, met)
        videos = evaluate_videos(scores.table, scorers, settings)
        places = localise(settings, corpus.root, every, table, scorers, progress)
        scores.missing += places.missing
        scores.notes += places.notes
        mistakes = worst_mistakes(scores.table, scorers, scores.alignment)
        about = {"command": command or as_command("benchmark", settings), "begun": begun}
        levels = {"videos": videos, "localisation": places.table}
        write_results(settings, out, scores, results, scorers, mistakes, about, levels)
    return results


def _open_all(settings: BenchmarkSettings) -> tuple[dict[str, Scorer], list[str]]:
    """Name -> detector, each name once; and why some could not be had, if others could."""
    found: dict[str, Scorer] = {}
    missing = []
    for name in dict.fromkeys(settings.detector):
        try:
            found[name] = open_scorer(name, settings.batch_size, settings.device)
        except GanscopeError as error:
            missing.append(str(error))
    if not found:
        raise GanscopeError("; ".join(missing))
    return found, [f"{said}; its figures are missing" for said in missing]


def _nothing(scores: Scores) -> str:
    """Why there is no score at all, in a line."""
    faults = [f"{path}: {reason}" for path, reason in scores.unreadable.items()]
    faults += scores.missing
    more = f"; and {len(faults) - 2} more such lines" if len(faults) > 2 else ""
    return f"no image has a score: {'; '.join(faults[:2])}{more}"


def _look_into(out: Path) -> None:
    """Refuse a folder that holds another benchmark; one that was killed while it wrote may be
    written again.
    """
    if out.exists() and not out.is_dir():
        raise GanscopeError(f"{out} is a file; name another folder with --out")
    if any((out / name).exists() for name in MADE_OF) and not (out / UNFINISHED).exists():
        raise GanscopeError(f"{out} holds a benchmark already; name another folder with --out")


def _looking(progress: "Progress | None", total: int) -> Callable[[int], None] | None:
    if progress is None:
        return None
    task = progress.add_task("looking at all images", total=total, note="")
    return lambda done: progress.update(task, completed=done)


def _images(
    settings: BenchmarkSettings, every: pd.DataFrame, met: dict[str, Met]
) -> tuple[pd.DataFrame, list[str]]:
    """The images of the split that is asked for, and what to note about it."""
    table, notes, why = every, [], ""
    if settings.split != "all" and not (every["split"] != "").any():
        kept = [name for name, one in met.items() if one.learned or one.chosen]
        if kept:
            splits = pd.Series(splits_of_runs(met, every), every.index)
            table = every[splits == settings.split]
            notes.append(
                f"--split {settings.split}: the corpora have no splits of their own; taken are "
                f"those of the training of {', '.join(kept)}"
            )
            why = f", as {', '.join(kept)} learned from the others or set thresholds by them"
        else:
            table = every[:0]
            why = (
                ": the corpora have no splits of their own, and no detector here says that it "
                "learned from a part of them; leave --split out"
            )
    elif settings.split != "all":
        table = every[every["split"] == settings.split]
    for label, word in ((0, "reals"), (1, "fakes")):
        if not (table["label"] == label).any():
            where = "" if settings.split == "all" else f" in the split {settings.split!r}{why}"
            raise GanscopeError(
                f"a benchmark needs both classes, and the corpora hold no {word}{where}"
            )
    if ALL in set(table["generator"]):
        raise GanscopeError(f"a generator is called {ALL!r}, as all of them are; rename it")
    return table, notes


def evaluate_all(
    scores: pd.DataFrame,
    scorers: dict[str, Scorer],
    settings: BenchmarkSettings,
    met: dict[str, Met],
) -> pd.DataFrame:
    """The results: a row for each detector, protocol, generator and degradation."""

    def evaluate(cell: tuple[tuple[str, str, str], pd.DataFrame]) -> pd.DataFrame:
        (name, protocol, degradation), part = cell
        threshold = scorers[name].threshold
        found = evaluate_by_generator(part, threshold, settings.bootstrap, settings.seed)
        found.insert(0, "detector", name)
        found.insert(1, "protocol", protocol)
        found.insert(3, "degradation", degradation)
        return found

    keys = ["detector", "protocol", "degradation"]
    with ThreadPoolExecutor(WORKERS) as pool:  # the bootstrap's arithmetic runs beside itself
        parts = list(pool.map(evaluate, scores.groupby(keys, sort=False)))
    results = pd.concat(parts, ignore_index=True)
    images = scores.drop_duplicates("path")
    seen = {
        (name, generator): remark_on_met(
            met.get(name),
            images[images["generator"].isin(["real", generator]) | (generator == ALL)],
        )
        for name, generator in set(zip(results["detector"], results["generator"], strict=True))
    }
    counts = results["n_real"] + results["n_fake"]
    most = counts.groupby([results[k] for k in ("protocol", "generator", "degradation")])
    few = {
        i: f"it scored {counts[i]:,} of {all_of_them:,} images"
        for i, all_of_them in most.transform("max").items()
        if counts[i] < ENOUGH * all_of_them
    }
    results["remark"] = [
        "; ".join(said for said in (few.get(i, ""), _remark(row, seen)) if said)
        for i, row in results.iterrows()
    ]
    return results[
        [
            *("detector", "protocol", "generator", "degradation"),
            *("n_real", "n_fake"),
            *_columns(),
            "remark",
        ]
    ]


def evaluate_videos(
    scores: pd.DataFrame, scorers: dict[str, Scorer], settings: BenchmarkSettings
) -> pd.DataFrame:
    """As `evaluate_all`, a video instead of an image: its value is the mean over its frames.

    Empty where no row belongs to a video; rows that do not are left out.
    """
    keys = ["detector", "protocol", "degradation"]
    columns = ["detector", "protocol", "generator", "degradation", "n_real", "n_fake", *_columns()]
    if "video" not in scores or not (scores["video"] != "").any():
        return pd.DataFrame(columns=columns)
    rows = scores[scores["video"] != ""]
    parts = []
    for (name, protocol, degradation), part in rows.groupby(keys, sort=False):
        by = part.groupby("video", sort=False)
        pooled = by[["label", "generator", "group"]].first()
        pooled["value"] = by["value"].mean()
        pooled["score"] = scorers[name].score(pooled["value"].to_numpy())
        pooled["probability"] = scorers[name].probability(pooled["value"].to_numpy())
        found = evaluate_by_generator(
            pooled, scorers[name].threshold, settings.bootstrap, settings.seed
        )
        parts.append(found.assign(detector=name, protocol=protocol, degradation=degradation))
    return pd.concat(parts, ignore_index=True)[columns]


def _columns() -> list[str]:
    return [column for name in NAMES for column in (name, f"{name}_low", f"{name}_high")]


def _remark(row: pd.Series, seen: dict[tuple[str, str], str]) -> str:
    if not (row["n_real"] and row["n_fake"]):
        return "one class only"
    said = []
    if min(row["n_real"], row["n_fake"]) < FEW:
        said.append(
            f"of no more than {row['n_real']:,} real and {row['n_fake']:,} fake images: this may "
            "well be chance"
        )
    fewest, auroc, sure = min(row["n_real"], row["n_fake"]), row["auroc"], row["auroc_high"]
    if not np.isfinite(sure) and fewest > 4:  # no interval: more than an AUROC can err by
        sure = auroc + 1.96 * (auroc * (1 - auroc) / fewest) ** 0.5
    if sure < 0.5:
        said.append("probably inverted: fakes score lower than reals")
    if seen.get((row["detector"], row["generator"])):
        said.append(seen[row["detector"], row["generator"]])
    return "; ".join(said)


def write_results(
    settings: BenchmarkSettings,
    out: Path,
    scores: Scores,
    results: pd.DataFrame,
    scorers: dict[str, Scorer],
    mistakes: Sequence[Mistake],
    about: dict[str, Any],
    levels: dict[str, pd.DataFrame] | None = None,
) -> None:
    """Write scores, pictures and report, and note in the results' attributes where they are.

    scorers: by the detector's name, where the scores have a column `left_out` by `name_without`.
    about: command, and begun, the `time.monotonic` of the start. levels: tables `videos` and
    `localisation`, where there are such.
    """
    table = scores.table
    (out / UNFINISHED).touch()
    thresholds = {name: scorer.threshold for name, scorer in scorers.items()}
    comparisons, alarms = _compare(table, thresholds, settings)
    plots.draw_roc(out / "roc.png", scored_by(table, main_protocol(results)))
    plots.draw_matrix(out / "matrix.png", results)
    images = table.drop_duplicates("path")
    write_report(
        out,
        results,
        table,
        {
            "command": about["command"],
            "settings": plain(settings),
            "versions": {"python": platform.python_version()} | {n: version(n) for n in VERSIONS},
            "detectors": {name: scorer.weights for name, scorer in scorers.items()},
            "thresholds": thresholds,
            "corpora": [str(corpus) for corpus in settings.corpora],
            "images": {"count": len(images), "hash": _digest(images["hash"])},
            "seconds": time.monotonic() - about["begun"],
            "unreadable": scores.unreadable,
            "missing": scores.missing,
            "notes": scores.notes,
        },
        comparisons,
        alarms,
        _audit(images, settings.seed),
        mistakes,
        **(levels or {}),
    )
    try:
        (out / UNFINISHED).unlink()
    except FileNotFoundError:  # somebody removed the folder: what is there is but a part
        with suppress(OSError):
            (out / UNFINISHED).touch()
        raise gone(out) from None
    results.attrs |= {"out": str(out), "unreadable": scores.unreadable}
    results.attrs |= {"missing": scores.missing, "notes": scores.notes}


def name_without(detector: str, generator: str) -> str:
    """What a detector is called that was trained without a generator's fakes; "": as it is."""
    return f"{detector} without {generator}" if generator else detector


def _compare(
    table: pd.DataFrame, thresholds: dict[str, float], settings: BenchmarkSettings
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Comparisons and false alarms, protocol by protocol, and among trainings without the same
    generator; p is adjusted over all of these, too.
    """
    compared, alarms = [], []
    without = table["left_out"] if "left_out" in table else pd.Series("", table.index)
    for (protocol, generator), rows in table.groupby(["protocol", without], sort=False):
        found = compare_detectors(rows, settings.bootstrap, settings.seed)
        compared.append(found.assign(protocol=protocol))
        named = rows.assign(detector=[name_without(d, generator) for d in rows["detector"]])
        alarms.append(false_alarms_by_source(named, thresholds).assign(protocol=protocol))
    comparisons, called = (pd.concat(parts, ignore_index=True) for parts in (compared, alarms))
    if "left_out" in table and len(comparisons):
        looked_at = comparisons.groupby(["protocol", "degradation"])["p_value"]
        comparisons["p_adjusted"] = looked_at.transform(adjust)
    return comparisons, called


def _audit(images: pd.DataFrame, seed: int) -> dict[str, Any] | None:
    """What the files themselves give away; None where they are too few to say."""
    some = [
        part.sample(min(len(part), AUDITED), random_state=seed).sort_index()
        for _, part in images.groupby("label")
    ]
    try:
        found = audit_table(pd.concat(some, ignore_index=True), seed=seed)
    except GanscopeError:
        return None
    return found.as_dict()


def _digest(hashes: pd.Series) -> str:
    """One hash for a set of images."""
    return blake2b("".join(sorted(hashes)).encode(), digest_size=16).hexdigest()
