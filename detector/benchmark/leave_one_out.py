"""Leave one generator out: what is a detector worth on fakes of a kind that it has never met?

For each generator of a corpus a detector is trained on all others and measured on that one and on
photographs that were kept for the test: the cross-generator matrix of the papers. Trainings and
cells that are done are kept, so a killed run goes on where it was.
"""

import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from ganscope.config import (
    BenchmarkSettings,
    TrainDetectorSettings,
    as_command,
    changed,
    next_free,
    plain,
    read_json,
    replacing,
    write_json,
)
from ganscope.datasets.alignment import Alignment
from ganscope.datasets.copies import look_at_table
from ganscope.datasets.corpus import open_corpora
from ganscope.detector.benchmark.asking import Scores, list_changes, score_all
from ganscope.detector.benchmark.benchmark import evaluate_all, name_without, write_results
from ganscope.detector.benchmark.contestants import Scorer, open_scorer
from ganscope.detector.benchmark.met import find_met, look_again
from ganscope.detector.benchmark.mistakes import worst_mistakes
from ganscope.detector.benchmark.report.page import FILES, MOST_MISTAKES
from ganscope.detector.model import Detector
from ganscope.detector.training.recipes import train_detector
from ganscope.detector.training.run import (
    ANOTHER,
    fingerprint,
    keep_unreadable,
    leave_out_unreadable,
    split_table,
)
from ganscope.errors import GanscopeError
from ganscope.files import damaged
from ganscope.folders import CONFIG
from ganscope.launched import deaf_to_ctrl_c
from ganscope.locks import LOCK, holding
from ganscope.memory import keep_freed_memory
from ganscope.registry import unknown

if TYPE_CHECKING:
    from rich.progress import Progress

REPORT = FILES[-1]
SETTINGS, CELL, FAULTS = "settings.json", "held-out.parquet", "held-out.json"
CORPORA = "corpora"
"""Folder of corpora that were made for a benchmark, in that of its results."""
IGNORED = ("out", "device", "batch_size", "bootstrap", "cache", "jobs")
"""Settings that may differ when it is continued: they change no score."""


Plans = dict[tuple[str, str], TrainDetectorSettings]
"""Architecture and the generator left out -> how it is trained."""


def leave_one_out(
    settings: BenchmarkSettings, progress: "Progress | None" = None, command: str | None = None
) -> pd.DataFrame:
    """Train and measure every architecture of `settings.train`; results as `benchmark_detectors`'.

    In the results `detector` is the architecture and `generator` the one that it never met; in the
    scores that one is `left_out`. The folder also gets `runs/ARCHITECTURE/GENERATOR`, the
    detectors. command: what was typed, for the report.

    Raises `GanscopeError` as `train_detector` and `benchmark_detectors` do, for a corpus with fewer
    than two generators or without one of `settings.leave_out`, and for a folder that was begun with
    other settings or other images.
    """
    begun = time.monotonic()
    list_changes(settings)
    every = open_corpora(settings.corpora).table
    table = look_at_table(every).table
    generators = sorted(set(table["generator"][table["label"] == 1]))
    if len(generators) < 2:
        raise GanscopeError(
            "--train leaves each generator out in turn; name corpora with two or more"
        )
    for name in settings.leave_out:
        if name not in generators:
            raise GanscopeError(unknown("generator in these corpora", name, generators))
    out = settings.out or next_free(Path("leave-one-out"), lambda p: _taken(p, settings, every))
    plans = {
        (architecture, generator): TrainDetectorSettings(
            corpora=settings.corpora,
            detector=architecture,
            out=out / "runs" / _safe(architecture) / _safe(generator),
            test_generator=(generator,),
            epochs=settings.epochs or 10,
            pretrained=settings.pretrained,
            recipe=settings.recipe or "full",
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
    for (_, generator), plan in plans.items():
        try:  # what cannot be trained is said before hours have gone by
            split_table(plan)
        except GanscopeError as error:
            raise GanscopeError(f"leaving {generator} out: {error}") from None
    for architecture in (*settings.train, *([settings.fuse] if settings.fuse else [])):
        Detector.create(architecture, size=settings.size)
    with holding(out):
        _open(out, settings, every)
        unreadable = leave_out_unreadable(every, out)[1]
        bad = dict(zip(unreadable["path"], unreadable["reason"], strict=True))
        return _measure_all(out, plans, settings, progress, command, begun, bad)


def _measure_all(
    out: Path,
    plans: Plans,
    settings: BenchmarkSettings,
    progress: "Progress | None",
    command: str | None,
    begun: float,
    unreadable: dict[str, str],
) -> pd.DataFrame:
    """Train and score what is not done yet; returns the results and writes them.

    unreadable: path -> reason of images that are left out.
    """
    if settings.jobs == 1:
        failed = _one_by_one(plans, settings, progress)
    else:
        failed = _beside_each_other(plans, settings, progress)

    cells, mistakes = [], []
    together = Scores(pd.DataFrame())
    together.unreadable |= unreadable
    scorers: dict[str, Scorer] = {}
    for (architecture, generator), plan in plans.items():
        run, name = plan.out or out, name_without(architecture, generator)
        if (architecture, generator) in failed:
            together.missing.append(f"{name}: {failed[architecture, generator]}")
            continue
        found, about = _read_cell(run)
        together.unreadable |= about["unreadable"]
        if found.empty:
            together.missing.append(f"{name}: none of the test images could be read")
            continue
        together.missing += [f"{name}: {said}" for said in about["missing"]]
        together.notes += [f"{name}: {said}" for said in about["notes"]]
        scorer = open_scorer(str(run), settings.batch_size, settings.device)
        scorers[name] = scorer
        alone = {architecture: scorer}
        met = find_met(alone, look_again(found), settings)
        measured = evaluate_all(found, alone, settings, met)
        measured["generator"] = generator  # also where a protocol has none of its fakes
        cells.append((found.assign(left_out=generator), measured))
        mistakes += worst_mistakes(found, alone, about["alignment"], MOST_MISTAKES // len(plans))
        scorer.network = None  # it has done its work, and there may be too many to keep
    if not cells:
        raise GanscopeError(together.missing[0])
    together.table = pd.concat([found for found, _ in cells], ignore_index=True)
    together.table["image"] = pd.factorize(together.table["path"])[0]  # one number in all cells
    results = pd.concat([found for _, found in cells], ignore_index=True)
    told = {"command": command or as_command("benchmark", settings), "begun": begun}
    settings = replace(settings, out=out)
    write_results(settings, out, together, results, scorers, mistakes, told)
    return results


def _read_cell(run: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The scores of what a training never met, and what is missing among them."""
    remedy = f"delete {run / CELL}, and the same command scores these images again"
    with damaged(run / CELL, remedy):
        found = pd.read_parquet(run / CELL)
        lacking = {"path", "hash", "label", "generator", "protocol", "score"} - set(found)
        if len(found) and lacking:
            raise ValueError(f"no column {sorted(lacking)[0]!r}")
    with damaged(run / FAULTS, remedy):
        about = read_json(run / FAULTS, remedy)
        if {type(about[name]) for name in ("missing", "notes")} != {list}:
            raise TypeError("no lists of what is missing")
        about["unreadable"] = dict(about["unreadable"])
        about["alignment"] = about["alignment"] and Alignment(**about["alignment"])
    return found, about


def _train_and_score(
    plan: TrainDetectorSettings, settings: BenchmarkSettings, progress: "Progress | None" = None
) -> None:
    """Train one detector and score the images that were kept for its test, where that is not done
    yet.
    """
    assert plan.out
    if not (plan.out / CONFIG).exists():
        train_detector(plan, progress)
    if (plan.out / CELL).exists():
        return
    test = split_table(plan)
    # Others' fakes are in the test, too, where they share a group with this generator's.
    asked = (test["label"] == 0) | test["generator"].isin(plan.test_generator)
    test = test[(test["split"] == "test") & asked].reset_index(drop=True)
    scorer = open_scorer(str(plan.out), settings.batch_size, plan.device)
    alone = {plan.detector: scorer}
    found = score_all(settings, test, alone, list_changes(settings), progress)
    about = {
        "unreadable": found.unreadable,
        "missing": found.missing,
        "notes": found.notes,
        "alignment": found.alignment and asdict(found.alignment),
    }
    write_json(plan.out / FAULTS, about)
    with replacing(plan.out / CELL) as part:
        found.table.to_parquet(part, index=False)


def _one_by_one(
    plans: Plans, settings: BenchmarkSettings, progress: "Progress | None"
) -> dict[tuple[str, str], str]:
    """Train and score; returns why some could not be had."""
    failed = {}
    for key, plan in plans.items():
        try:
            _train_and_score(plan, settings, progress)
        except GanscopeError as error:
            failed[key] = str(error)
    return failed


def _beside_each_other(
    plans: Plans, settings: BenchmarkSettings, progress: "Progress | None"
) -> dict[tuple[str, str], str]:
    """The same in processes of their own, which share the cores and take turns on GPUs. What ends
    this one ends them, after they have put away what is half.
    """
    failed = {}
    context = multiprocessing.get_context("spawn")
    places = context.Queue()
    for number in range(settings.jobs):
        places.put(number)
    task = progress.add_task("trainings", total=len(plans), note="") if progress else None
    with ProcessPoolExecutor(settings.jobs, context, _settle, (places, settings.jobs)) as pool:
        others = multiprocessing.active_children()
        try:
            with deaf_to_ctrl_c():  # they begin when they are given something to do
                waiting = {
                    pool.submit(_in_its_place, plan, settings): key for key, plan in plans.items()
                }
            for future in as_completed(waiting):
                try:
                    future.result()
                except GanscopeError as error:
                    failed[waiting[future]] = str(error)
                if progress and task is not None:
                    progress.update(task, advance=1)
        except BaseException:
            for process in multiprocessing.active_children():
                if process not in others:
                    process.terminate()
            pool.shutdown(cancel_futures=True)
            raise
    return failed


_place = 0
"""Number of this process among those that train beside each other."""


def _settle(places: Any, jobs: int) -> None:
    global _place
    _place = places.get()
    keep_freed_memory()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the first one's to answer
    signal.signal(signal.SIGTERM, _end)


def _end(number: int, _: Any) -> None:
    signal.signal(number, signal.SIG_IGN)  # another one would disturb what is put away
    sys.exit(128 + number)


def _in_its_place(plan: TrainDetectorSettings, settings: BenchmarkSettings) -> None:
    if plan.device in ("auto", "cuda") and torch.cuda.device_count() > 1:
        plan = replace(plan, device=f"cuda:{_place % torch.cuda.device_count()}")
        settings = replace(settings, device=plan.device)
    try:
        _train_and_score(plan, settings)
    except SystemExit as end:  # all that was half is put away; the next one must not begin
        os._exit(int(end.code or 0))


def only_corpora(out: Path) -> bool:
    """Whether a folder holds nothing but, perhaps, the corpora that were made for its results."""
    return out.is_dir() and all(
        path.name == CORPORA or path.name.startswith(LOCK) for path in out.iterdir()
    )


def _taken(out: Path, settings: BenchmarkSettings, every: pd.DataFrame) -> bool:
    """Whether a folder holds anything but corpora and these trainings, not yet finished."""
    if not (out / SETTINGS).exists():
        return out.exists() and not only_corpora(out)
    other = bool(_changed(out, settings)) or _other_images(out, every)
    return (out / REPORT).exists() or other


def _open(out: Path, settings: BenchmarkSettings, every: pd.DataFrame) -> None:
    foreign = out.exists() and not (out / SETTINGS).exists() and not only_corpora(out)
    if (out / REPORT).exists() or foreign:
        raise GanscopeError(f"{out} is there already; name another folder with --out")
    flags = _changed(out, settings) if (out / SETTINGS).exists() else []
    if flags:
        raise GanscopeError(
            f"{out} holds unfinished trainings with other settings ({', '.join(flags)}); repeat "
            "its settings to continue them, or name another folder with --out"
        )
    if (out / SETTINGS).exists() and _other_images(out, every):
        raise GanscopeError(
            f"{out} was begun with other images in the corpora; restore them to continue it, or "
            "name another folder with --out"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        readable, bad = leave_out_unreadable(every, out)
        write_json(out / SETTINGS, plain(settings) | {"images": fingerprint(readable, 1)})
        keep_unreadable(out, bad)
    except OSError as error:
        raise GanscopeError(f"{out}: cannot be written ({error.strerror})") from None


def _changed(out: Path, settings: BenchmarkSettings) -> list[str]:
    return changed(settings, read_json(out / SETTINGS, ANOTHER), ignore=IGNORED)


def _other_images(out: Path, every: pd.DataFrame) -> bool:
    """Whether the corpora held other images when it was begun: they would be split otherwise, and
    what trainings learned from could be in the test. Folders of earlier versions do not tell.
    """
    images = fingerprint(leave_out_unreadable(every, out)[0], 1)
    return read_json(out / SETTINGS, ANOTHER).get("images", images) != images


def _safe(name: str) -> str:
    return name.replace(":", "-").replace("/", "-")
