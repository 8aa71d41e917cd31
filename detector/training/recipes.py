"""Training a detector on a corpus: the recipe that its settings name.

What a detector is fused with is trained by a recipe, too, perhaps another: so recipes are handed
`open_other` from here, and none imports this module.
"""

import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ganscope.config import RECIPES, TrainDetectorSettings, plain
from ganscope.datasets.copies import look_at_table
from ganscope.datasets.corpus import open_corpora
from ganscope.datasets.splits import has_splits
from ganscope.detector.model import Detector, load_detector
from ganscope.detector.networks.architectures import is_architecture, is_read_at_blocks
from ganscope.detector.training.faces import train_faces
from ganscope.detector.training.finetune import train_finetuned
from ganscope.detector.training.frozen import train_frozen
from ganscope.detector.training.loop import train_once
from ganscope.detector.training.record import count_known
from ganscope.detector.training.run import FINE_TUNING, choose_run, refuse_unused, split_table
from ganscope.detector.training.soup import train_soup
from ganscope.detector.training.streamed import refuse_for_streams, train_streamed
from ganscope.devices import (
    asked_of_main,
    ending_together,
    held_by_main,
    pick_device,
    processes,
)
from ganscope.errors import GanscopeError, GanscopeWarning
from ganscope.folders import CONFIG

if TYPE_CHECKING:
    from rich.progress import Progress


def train_detector(settings: TrainDetectorSettings, progress: "Progress | None" = None) -> Path:
    """Train a detector; returns its run folder.

    The folder holds the detector (`config.json`, `model.safetensors`, `README.md`), `metrics.json`,
    `scores.csv` (validation and test images), `losses.csv`, `loss.png`, `roc.png`, `learned.npz`
    (by which the images that it learned from are known again) and `settings.json`; where images
    cannot be read, `unreadable.csv` lists them. An unfinished run with the same settings is
    continued after its last whole epoch. Under `accelerate launch` or `torchrun` only the main
    process writes and evaluates, and the others wait for it; where one fails, all end. No other
    command may write into the folder meanwhile. `progress` shows one task.

    Raises `GanscopeError` for a corpus without both classes or with too few images to validate on,
    an unknown architecture or generator, pretrained weights that do not fit, and a folder that
    holds a finished run or one with other settings.
    """
    train = train_once
    if settings.recipe == "frozen-linear":
        train = train_frozen
    elif settings.soup > 1:
        train = train_soup
    elif settings.recipe == "finetune":
        train = train_finetuned
    if settings.masks and (
        settings.soup > 1 or settings.fuse or settings.data or train is train_frozen
    ):
        raise GanscopeError(
            "--masks: not with --soup, --fuse, --data or --recipe frozen-linear; leave one of them "
            "out"
        )
    if settings.data:
        refuse_for_streams(settings)
        train = train_streamed
    elif settings.recipe == "faces":
        train = train_faces
    elif settings.recipe not in ("finetune", "frozen-linear"):
        refuse_unused(settings, FINE_TUNING)
    processes(pick_device(settings.device))
    with ending_together():
        run = asked_of_main(lambda: choose_run(settings))
        with held_by_main(run):
            return train(replace(settings, out=run), open_other, progress)


def open_other(
    settings: TrainDetectorSettings, run: Path, progress: "Progress | None" = None
) -> Detector | None:
    """The detector to be fused with, None without `settings.fuse`.

    An architecture is trained first, on the same images and as a soup of as many trainings, in the
    run folder's `fused`.
    """
    if not settings.fuse:
        return None
    if is_read_at_blocks(settings.detector) or is_read_at_blocks(settings.fuse):
        raise GanscopeError(_not_joined(settings.fuse))
    if not is_architecture(settings.fuse):
        other = load_detector(settings.fuse)
        if other.views:
            raise GanscopeError(_not_joined(settings.fuse))
        known = _learned(other, settings)
        if known:
            warnings.warn(
                f"--fuse {settings.fuse} learned from {known} that the fusion is now fitted to, "
                "and will seem better than it is",
                GanscopeWarning,
                stacklevel=2,
            )
        return other
    part = run / "fused"
    if not asked_of_main((part / CONFIG).exists):
        alone: dict[str, Any] = {}
        if settings.recipe in ("frozen-linear", "finetune"):
            usual = {f.name: f.default for f in fields(settings) if f.name in FINE_TUNING}
            alone = {**usual, "recipe": "full"}
            if settings.recipe == "finetune":
                alone |= dict.fromkeys(RECIPES["full"])
        train_detector(
            replace(
                settings,
                **alone,
                detector=settings.fuse,
                fuse=None,
                pretrained=None,
                learning_rate=None,
                split_seed=settings.seed if settings.split_seed is None else settings.split_seed,
                out=part,
            ),
            progress,
        )
    return load_detector(str(part))


def _learned(other: Detector, settings: TrainDetectorSettings) -> str:
    """From which images a detector learned that are now of the validation split; "" for none.

    One that keeps no record of its images is told by the names of its corpora.
    """
    if other.learned is not None:
        known = count_known(look_at_table(split_table(settings)), other.learned)
        if known or other.learned.complete:
            return known
    if _may_have_learned(other.config["training"], settings):
        return (
            "these corpora in another split (so the names of its corpora say; it keeps no record "
            "of its images), perhaps from images"
        )
    return ""


def _not_joined(name: str) -> str:
    return (
        f"--fuse {name}: one of the two looks at views of a whole picture, the other at tiles, so "
        "their networks cannot be joined; leave --fuse out, and compare them with benchmark"
    )


def _may_have_learned(training: dict[str, Any], settings: TrainDetectorSettings) -> bool:
    """Whether a detector, by its record, learned from what is now the validation split."""
    now = plain(settings)
    theirs, ours = (
        {str(Path(corpus).resolve()) for corpus in record.get("corpora", ())}
        for record in (training, now)
    )
    if not theirs & ours:
        return False
    names = ("val_generator", "test_generator", "val_source")
    held_out, held_out_now = ([record.get(name) for name in names] for record in (training, now))
    if theirs != ours or held_out != held_out_now:
        return True
    seeds = {
        record.get("seed") if record.get("split_seed") is None else record["split_seed"]
        for record in (training, now)
    }
    as_made = has_splits(open_corpora(settings.corpora).table) and not any(held_out)
    return len(seeds) > 1 and not as_made
