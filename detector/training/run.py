"""What every recipe begins with: the split table, its views, and a run folder to write to."""

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from accelerate import PartialState

from ganscope.config import (
    RECIPES,
    TrainDetectorSettings,
    changed,
    next_free,
    plain,
    read_json,
    write_json,
    write_text,
)
from ganscope.datasets.copies import (
    look_at_table,
    name_some,
    remark_on_copies,
)
from ganscope.datasets.corpus import open_corpora
from ganscope.datasets.declared import (
    DROPPED,
    KEPT,
    find_declared,
    leave_out_declared,
    remark_on_declared,
)
from ganscope.datasets.splits import split_corpus
from ganscope.detector.model import Detector, load_detector
from ganscope.detector.networks.architectures import is_architecture
from ganscope.detector.training.evaluation import ENOUGH
from ganscope.detector.training.masks import find_masks, leave_out_misfits, refuse_without_masks
from ganscope.detector.training.record import count_known, start_record
from ganscope.detector.training.views import Views, find_twins, jpeg_qualities
from ganscope.devices import asked_of_main, by_main_process
from ganscope.errors import GanscopeError, GanscopeWarning
from ganscope.files import csv_text, damaged, plain_cell
from ganscope.folders import CONFIG, load_checkpoint
from ganscope.locks import is_empty

if TYPE_CHECKING:
    from rich.progress import Progress

OpenOther = Callable[[TrainDetectorSettings, Path, "Progress | None"], Detector | None]
"""What gives a recipe the detector that its own is fused with; None if there is none."""
SETTINGS, LOSSES, UNREADABLE = "settings.json", "losses.csv", "unreadable.csv"
WITHIN = 3
"""A training lies at most so deep in the folder of what it is a part of: leave-one-out's
runs/ARCHITECTURE/GENERATOR."""
MANY = 1000
"""Images from which on a bar shows that they are looked at."""
ANOTHER = "delete its folder, or name another one with --out"
"""What to do where it is not known what a folder was begun with."""
IGNORED = ("out", "device", "workers")
"""Settings that may differ when a run is continued: they do not change what is learned."""
MOST_READERS = 32
"""Processes that read images beside a GPU, at most."""
FINE_TUNING = ("rank", "last_blocks", "layer_decay", "hidden", "checkpointing", "steps", "minutes")
"""Settings of the finetune recipe alone."""


def warn_of_random(settings: TrainDetectorSettings) -> None:
    """Say that a recipe which needs a backbone that has learned something has none."""
    if not settings.pretrained:
        warnings.warn(
            "the backbone is random, of which little can be learned; name its weights with "
            "--pretrained: hub, or a file",
            GanscopeWarning,
            stacklevel=2,
        )


def refuse_unused(settings: TrainDetectorSettings, names: Sequence[str]) -> None:
    """Raise `GanscopeError` if one of the settings that the recipe does not use was set."""
    usual = RECIPES[settings.recipe]
    for field in fields(settings):
        default = usual.get(field.name, field.default)
        if field.name in names and getattr(settings, field.name) != default:
            flag = field.name.replace("_", "-")
            raise GanscopeError(
                f"--{flag}: --recipe {settings.recipe} has no use for it; leave it out"
            )


def look_first(settings: TrainDetectorSettings, progress: "Progress | None" = None) -> None:
    """Let the main process open all images; the others then find what it kept of them, however
    long that takes.
    """
    by_main_process(lambda: split_table(settings, progress))


def split_table(
    settings: TrainDetectorSettings, progress: "Progress | None" = None
) -> pd.DataFrame:
    """The corpora's table with splits, training rows first; refuses what cannot be learned from.

    Images that cannot be read are left out before the splits are drawn, so that nothing changes
    when they are removed; `attrs["unreadable"]` has a row for each.
    """
    every = open_corpora(settings.corpora).table
    named = ", ".join(map(str, settings.corpora))
    for label, word in ((0, "real"), (1, "fake")):
        if not (every["label"] == label).any():
            raise GanscopeError(
                f"{named}: holds no {word} images; name a corpus that has them, too"
            )
    if settings.masks:
        refuse_without_masks(every, named)
    if settings.drop_declared:
        every = leave_out_declared(every, find_declared(every))
        for label, word in ((0, "real"), (1, "fake")):
            if not (every["label"] == label).any():
                raise GanscopeError(
                    f"{named}: --drop-declared leaves no {word} images; look at them with "
                    "ganscope inspect"
                )
    whole, bad = leave_out_unreadable(every, choose_run(settings), progress)
    for label, word in ((0, "real"), (1, "fake")):
        if not (whole["label"] == label).any():
            raise GanscopeError(f"none of the {word} images can be read: {name_unreadable(bad)}")
    if settings.masks:
        whole, misfits = leave_out_misfits(whole, named)
        bad = pd.concat([bad, misfits])
    table = split_corpus(
        whole,
        val_generator=settings.val_generator,
        test_generator=settings.test_generator,
        val_source=settings.val_source,
        seed=settings.seed if settings.split_seed is None else settings.split_seed,
    )
    for split, fewest in (("train", 1), ("val", ENOUGH)):
        labels = table["label"][table["split"] == split]
        reals, fakes = int((labels == 0).sum()), int((labels == 1).sum())
        if min(reals, fakes) < fewest:
            raise GanscopeError(
                f"{named}: too few images: {reals} real and {fakes} fake ones are left for the "
                f"{split} split, at least {fewest} of each are needed; add images or choose other "
                "--val-generator, --test-generator and --val-source"
            )
    dropped = table.attrs.get("dropped", 0)
    order = table["split"].map({"train": 0, "val": 1, "test": 2})
    table = table[order.notna()].assign(_order=order).sort_values("_order", kind="stable")
    table = table.drop(columns="_order").reset_index(drop=True)
    table.attrs |= {"dropped": dropped, "unreadable": bad.to_dict("records")}
    return table


def leave_out_unreadable(
    table: pd.DataFrame, run: Path, progress: "Progress | None" = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The images of a table that can be read; and the others, with a column `reason`.

    Those that an unfinished run left out stay out, though they may have been mended since.
    """
    if progress and len(table) >= MANY:
        task = progress.add_task("looking at all images", total=len(table), note="")
        looked = look_at_table(table, lambda done: progress.update(task, completed=done))
        progress.remove_task(task)
    else:
        looked = look_at_table(table)
    readable, bad = looked.table, looked.unreadable
    for folder in (run, *run.parents[:WITHIN]):  # a part of something larger is in its folder
        if (folder / UNREADABLE).is_file() and (folder / SETTINGS).is_file():
            with damaged(folder / UNREADABLE, f"delete {folder}, and begin anew"):
                named = pd.read_csv(folder / UNREADABLE, dtype=str, keep_default_na=False)
                before = set(named["file_name"].map(plain_cell))
            again = readable["file_name"].isin(before)
            mended = readable[again].assign(reason="could not be read when the run began")
            readable, bad = readable[~again], pd.concat([bad, mended])
    return readable, bad


def keep_unreadable(run: Path, bad: pd.DataFrame) -> None:
    """Write into a folder which images are left out, if any are, for when it is gone on with."""
    if len(bad):
        columns = ["file_name", "label", "generator", "source", "group", "split", "reason"]
        write_text(run / UNREADABLE, csv_text(bad[columns]))


def name_unreadable(bad: pd.DataFrame) -> str:
    """Some images that cannot be read, and why."""
    return name_some([f"{row.file_name} ({row.reason})" for row in bad.itertuples()], 10)


def tell_of_images(settings: TrainDetectorSettings, run: Path, table: pd.DataFrame) -> None:
    """Warn of images that are left out, all at once, of copies in two splits, and of weights to
    start from that know the validation; and write which are left out into the run folder.
    """
    bad = pd.DataFrame(table.attrs["unreadable"])
    keep_unreadable(run, bad)
    if (run.parent / SETTINGS).is_file():
        return  # a part of a run, which has told
    if len(bad):
        _warn(
            f"{len(bad):,} of {len(bad) + len(table):,} images cannot be read and are left out: "
            f"{name_unreadable(bad)}; all of them are in {run / UNREADABLE}, and can be removed "
            "without harm to this run"
        )
    looked = look_at_table(table)
    for remark in remark_on_copies(looked.table, looked.prints):
        _warn(remark)
    every = open_corpora(settings.corpora).table if settings.drop_declared else looked.table
    end = DROPPED if settings.drop_declared else KEPT
    for remark in remark_on_declared(find_declared(every), end):
        _warn(remark)
    before = start_record(settings)
    known = before and count_known(looked, before)
    if known:
        _warn(
            f"--pretrained {settings.pretrained} learned from {known}: the validation, which "
            "chooses the epoch and sets the thresholds, will seem better than it is"
        )


def _warn(text: str) -> None:
    warnings.warn(text, GanscopeWarning, stacklevel=3)


def open_views(settings: TrainDetectorSettings, table: pd.DataFrame, size: int) -> Views:
    """The images of a split table as a training sees them, in crops of `size` pixels."""
    return Views(
        table,
        size=size,
        degrade=settings.degrade or 0.0,
        qualities=jpeg_qualities(table[table["split"] == "train"]),
        seed=settings.seed,
        mix=settings.mix or 0.0,
        twins=find_twins(table),
        recipe=settings.recipe,
        masks=find_masks(table) if settings.masks else None,
    )


def choose_run(settings: TrainDetectorSettings) -> Path:
    """The run folder: as told, or the first of that name without a finished detector."""
    name = settings.detector.replace(":", "-").replace("/", "-")
    return settings.out or next_free(Path("runs") / name, lambda p: (p / CONFIG).exists())


def open_run(
    settings: TrainDetectorSettings, state: PartialState
) -> tuple[Path, dict[str, Any] | None]:
    """Make or re-enter the run folder; returns it and its checkpoint, if there is one.

    Refuses a finished run, one begun with other settings, a folder of anything else, and a
    `settings.fuse` that cannot be had.
    """
    if settings.fuse and not is_architecture(settings.fuse):
        load_detector(settings.fuse)
    run = choose_run(settings)
    if asked_of_main((run / CONFIG).exists):
        raise GanscopeError(f"{run} holds a finished detector; name another folder with --out")
    if (run / SETTINGS).exists():
        before = read_json(run / SETTINGS, ANOTHER)
        flags = changed(settings, before, ignore=IGNORED)
        if flags:
            raise GanscopeError(
                f"{run} holds an unfinished run with other settings ({', '.join(flags)}); "
                "repeat its settings to continue it, or name another folder with --out"
            )
    elif run.exists() and (not run.is_dir() or not is_empty(run)):
        raise GanscopeError(f"{run} exists and is not a run of train-detector; name another --out")
    saved = load_checkpoint(run)
    state.wait_for_everyone()  # all have looked before one writes
    if state.is_main_process:
        try:
            run.mkdir(parents=True, exist_ok=True)
            write_json(run / SETTINGS, plain(settings))
        except OSError as error:
            raise GanscopeError(f"{run}: cannot be written ({error.strerror})") from None
    return run, saved


def goes_on(checked: str, begun_with: str, over: bool) -> bool:
    """Whether a run may go on with what it finds now (`fingerprint`): the same images, and so many
    processes, unless its training is over.
    """
    return checked.split()[over:] == begun_with.split()[over:]


def fingerprint(table: pd.DataFrame, processes: int) -> str:
    """Of what a resumed run must find unchanged besides its settings."""
    columns = ["file_name", "label", "generator", "split", "group"]
    text = table[[*columns, *(["mask"] if "mask" in table else [])]].to_csv(index=False)
    return f"{processes} {hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()}"


def reading_processes(settings: TrainDetectorSettings, device: torch.device, processes: int) -> int:
    """Reading processes: on a CPU no core is spare, the network uses them all."""
    if settings.workers is not None:
        return settings.workers
    return (
        0
        if device.type == "cpu"
        else max(min((os.cpu_count() or 1) // processes - 1, MOST_READERS), 0)
    )
