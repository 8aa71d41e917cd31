"""Leave one generator out: what is a detector worth on fakes of a kind that it has never met?

For each generator of a corpus a detector is trained on all others and measured on that one and on
photographs that were kept for the test: the cross-generator matrix of the papers. Trainings and
cells that are done are kept, so a killed run goes on where it was.
"""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from ganscope.config import (
    BenchmarkSettings,
    TrainDetectorSettings,
    changed,
    next_free,
    plain,
    read_json,
    write_json,
    write_text,
)
from ganscope.datasets.corpus import open_corpora
from ganscope.detector.architectures import build
from ganscope.detector.benchmark import (
    RESULTS,
    evaluate_all,
    parse_degradations,
    score_all,
    write_results,
)
from ganscope.detector.model import load_detector
from ganscope.detector.training import split_table, train_detector
from ganscope.errors import GanscopeError
from ganscope.folders import CONFIG
from ganscope.registry import unknown

if TYPE_CHECKING:
    from rich.progress import Progress

SETTINGS, CELL = "settings.json", "held-out.csv"
IGNORED = ("out", "device", "batch_size", "bootstrap")
"""Settings that may differ when it is continued: they change no score."""


def leave_one_out(settings: BenchmarkSettings, progress: "Progress | None" = None) -> pd.DataFrame:
    """Train and measure every architecture of `settings.train`; results as `benchmark_detectors`'.

    In the results `detector` is the architecture and `generator` the one that it never met. The
    folder also gets `runs/ARCHITECTURE/GENERATOR`, the detectors. Raises `GanscopeError` as
    `train_detector` and `benchmark_detectors` do, for a corpus with fewer than two generators or
    without one of `settings.leave_out`, and for a folder that was begun with other settings.
    """
    degradations = parse_degradations(settings)
    table = open_corpora(settings.corpora).table
    generators = sorted(set(table["generator"][table["label"] == 1]))
    if len(generators) < 2:
        raise GanscopeError(
            "--train leaves each generator out in turn; name corpora with two or more"
        )
    for name in settings.leave_out:
        if name not in generators:
            raise GanscopeError(unknown("generator in these corpora", name, generators))
    out = settings.out or next_free(Path("leave-one-out"), lambda p: _taken(p, settings))
    plans = {
        (architecture, generator): TrainDetectorSettings(
            corpora=settings.corpora,
            detector=architecture,
            out=out / "runs" / _safe(architecture) / _safe(generator),
            test_generator=(generator,),
            epochs=settings.epochs or 10,
            pretrained=settings.pretrained,
            size=settings.size,
            fuse=settings.fuse,
            soup=settings.soup or 1,
            seed=settings.seed,
            device=settings.device,
        )
        for architecture, generator in product(
            dict.fromkeys(settings.train), dict.fromkeys(settings.leave_out or generators)
        )
    }
    for plan in plans.values():  # what cannot be trained is said before hours have gone by
        split_table(plan)
    for architecture in (*settings.train, *([settings.fuse] if settings.fuse else [])):
        build(architecture)
    _open(out, settings)

    cells = []
    unreadable: dict[str, str] = {}
    weights: dict[str, str] = {}
    for (architecture, generator), plan in plans.items():
        run = plan.out or out
        if not (run / CONFIG).exists():
            train_detector(plan, progress)
        detector = load_detector(str(run))
        if not (run / CELL).exists():
            test = split_table(plan)
            # Others' fakes are in the test, too, where they share a group with this generator's.
            asked = (test["label"] == 0) | (test["generator"] == generator)
            test = test[(test["split"] == "test") & asked].reset_index(drop=True)
            alone = {architecture: detector}
            found, faults = score_all(settings, test, alone, degradations, progress)
            unreadable |= faults
            write_text(run / CELL, found.to_csv(index=False))
        found = pd.read_csv(run / CELL, dtype={"source": str, "group": str}, keep_default_na=False)
        if found.empty:
            raise GanscopeError(f"none of the test images of {generator} could be read")
        name = f"{architecture} without {generator}"
        weights[name] = detector.weights
        results = evaluate_all(found, {architecture: detector}, settings)
        cells.append((found.assign(detector=name), results))
    scores = pd.concat([found for found, _ in cells], ignore_index=True)
    scores["image"] = pd.factorize(scores["path"])[0]  # one number in all cells
    results = pd.concat([found for _, found in cells], ignore_index=True)
    write_results(replace(settings, out=out), out, scores, results, weights, unreadable)
    return results


def _taken(out: Path, settings: BenchmarkSettings) -> bool:
    """Whether a folder holds anything but these trainings, not yet finished."""
    if not (out / SETTINGS).exists():
        return out.exists()
    return (out / RESULTS).exists() or bool(_changed(out, settings))


def _open(out: Path, settings: BenchmarkSettings) -> None:
    if (out / RESULTS).exists() or (out.exists() and not (out / SETTINGS).exists()):
        raise GanscopeError(f"{out} is there already; name another folder with --out")
    flags = _changed(out, settings) if (out / SETTINGS).exists() else []
    if flags:
        raise GanscopeError(
            f"{out} holds unfinished trainings with other settings ({', '.join(flags)}); repeat "
            "its settings to continue them, or name another folder with --out"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / SETTINGS, plain(settings))
    except OSError as error:
        raise GanscopeError(f"{out}: cannot be written ({error.strerror})") from None


def _changed(out: Path, settings: BenchmarkSettings) -> list[str]:
    return changed(settings, read_json(out / SETTINGS), ignore=IGNORED)


def _safe(name: str) -> str:
    return name.replace(":", "-").replace("/", "-")
