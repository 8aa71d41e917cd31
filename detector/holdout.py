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

from ganscope.config import BenchmarkSettings, TrainDetectorSettings, next_free, write_text
from ganscope.datasets.corpus import open_corpora
from ganscope.detector.benchmark import (
    evaluate_all,
    open_folder,
    parse_degradations,
    score_all,
    write_results,
)
from ganscope.detector.model import Detector, load_detector
from ganscope.detector.training import split_table, train_detector
from ganscope.errors import GanscopeError
from ganscope.folders import CONFIG

if TYPE_CHECKING:
    from rich.progress import Progress


def leave_one_out(settings: BenchmarkSettings, progress: "Progress | None" = None) -> pd.DataFrame:
    """Train and measure every architecture of `settings.train`; results as `benchmark_detectors`'.

    In the results `detector` is the architecture and `generator` the one that it never met. The
    folder also gets `runs/ARCHITECTURE/GENERATOR`, the detectors. Raises `GanscopeError` as
    `train_detector` and `benchmark_detectors` do, and for a corpus with fewer than two generators.
    """
    degradations = parse_degradations(settings)
    table = open_corpora(settings.corpora).table
    generators = sorted(set(table["generator"][table["label"] == 1]))
    if len(generators) < 2:
        raise GanscopeError(
            "--train leaves each generator out in turn; name corpora with two or more"
        )
    plan = replace(settings, out=settings.out or next_free(Path("leave-one-out"), _finished))
    out = open_folder(plan)
    scores, results = [], []
    unreadable: dict[str, str] = {}
    detectors: dict[str, Detector] = {}
    for architecture, generator in product(settings.train, generators):
        run = out / "runs" / _safe(architecture) / _safe(generator)
        wish = TrainDetectorSettings(
            corpora=settings.corpora,
            detector=architecture,
            out=run,
            test_generator=(generator,),
            epochs=settings.epochs,
            pretrained=settings.pretrained,
            size=settings.size,
            seed=settings.seed,
            device=settings.device,
        )
        if not (run / CONFIG).exists():
            train_detector(wish, progress)
        detector = load_detector(str(run))
        cell = run / "held-out.csv"
        if not cell.exists():
            test = split_table(wish)
            # Others' fakes are in the test, too, where they share a group with this generator's.
            asked = (test["label"] == 0) | (test["generator"] == generator)
            test = test[(test["split"] == "test") & asked].reset_index(drop=True)
            alone = {architecture: detector}
            found, faults = score_all(settings, test, alone, degradations, progress)
            unreadable |= faults
            write_text(cell, found.to_csv(index=False))
        found = pd.read_csv(cell, dtype={"source": str, "group": str}, keep_default_na=False)
        results.append(evaluate_all(found, {architecture: detector}, settings))
        name = f"{architecture} without {generator}"
        scores.append(found.assign(detector=name))
        detectors[name] = detector
    whole = pd.concat(results, ignore_index=True)
    write_results(plan, out, pd.concat(scores), whole, detectors, unreadable)
    return whole


def _finished(out: Path) -> bool:
    return (out / "results.json").exists()


def _safe(name: str) -> str:
    return name.replace(":", "-").replace("/", "-")
