"""A model soup: trainings that differ by their seeds only, and the mean of their weights.

Networks that were fine-tuned from the same weights lie in one basin, and the middle of it does
better than they do on images unlike those of the training (Wortsman et al. 2022, arXiv:2203.05482).
It costs no more to run than one of them.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch.optim.swa_utils import update_bn

from ganscope.config import TrainDetectorSettings, plain, read_json, write_json, write_text
from ganscope.datasets.corpus import newest_corpus
from ganscope.detector.model import Detector, load_detector
from ganscope.detector.training.evaluation import finish_run
from ganscope.detector.training.finetune import train_finetuned
from ganscope.detector.training.fusion import fuse_detectors
from ganscope.detector.training.loop import train_once
from ganscope.detector.training.run import (
    LOSSES,
    OpenOther,
    fingerprint,
    look_first,
    open_run,
    open_views,
    reading_processes,
    split_table,
    tell_of_images,
)
from ganscope.detector.training.views import Loader, Sampler, to_keys
from ganscope.devices import asked_of_main, by_main_process, pick_device, processes
from ganscope.errors import GanscopeError
from ganscope.files import damaged
from ganscope.folders import CONFIG, WEIGHTS

if TYPE_CHECKING:
    from rich.progress import Progress

VIEWS = 2000
"""Training views from which batch norm's statistics are taken anew: those of a mean are not the
mean of the parts'."""


def train_soup(
    settings: TrainDetectorSettings, open_other: OpenOther, progress: "Progress | None" = None
) -> Path:
    """Train `settings.soup` detectors and average them; `train_detector` describes the run folder.

    The parts are whole runs in `seed-N` of the run folder: those that are finished are not trained
    again. All split the corpus alike. Without `settings.pretrained` they begin with the weights of
    one training more, the run `start`. Several processes learn each part together. Raises
    `GanscopeError` as `train_detector` does.
    """
    device = pick_device(settings.device)
    state = processes(device)
    several = state.num_processes
    if not settings.corpora:
        settings = replace(settings, corpora=(newest_corpus(),))
    look_first(settings, progress)
    table = split_table(settings)
    run, _ = open_run(settings, state)
    begun, now = run / "images.json", {"images": fingerprint(table, 1)}
    remedy = "delete it and run the same command again"

    def begin() -> None:
        if begun.exists() and read_json(begun, remedy) != now:
            raise GanscopeError(
                f"{run} was begun with other images; restore them to continue it, or name another "
                "folder with --out"
            )
        write_json(begun, now)
        tell_of_images(settings, run, table)

    by_main_process(begin)
    split_seed = settings.seed if settings.split_seed is None else settings.split_seed
    other = open_other(settings, run, progress)
    alone = replace(settings, split_seed=split_seed, soup=1, fuse=None)
    learn = train_finetuned if settings.recipe == "finetune" else train_once
    seeds = range(settings.seed, settings.seed + settings.soup)
    if not settings.pretrained:
        start = run / "start"
        if not asked_of_main((start / CONFIG).exists):
            learn(replace(alone, seed=seeds.stop, out=start), open_other, progress)
        alone = replace(alone, pretrained=str(start / WEIGHTS))
    for seed in seeds:
        part = run / f"seed-{seed}"
        if not asked_of_main((part / CONFIG).exists):
            learn(replace(alone, seed=seed, out=part), open_other, progress)
    by_main_process(lambda: _finish(settings, run, table, seeds, several, other))
    return run


def _finish(
    settings: TrainDetectorSettings,
    run: Path,
    table: pd.DataFrame,
    seeds: range,
    several: int,
    other: Detector | None,
) -> None:
    """Average the finished parts and evaluate the soup."""
    device = pick_device(settings.device)
    parts, logs = [], []
    for seed in seeds:
        part = run / f"seed-{seed}"
        parts.append(load_detector(str(part)))
        with damaged(part / LOSSES, f"delete {part}, and the same command trains it again"):
            logs.append(pd.read_csv(part / LOSSES, dtype=float).assign(seed=seed))
    soup = average_weights(parts).to(device)
    train = table[table["split"] == "train"]
    views = open_views(settings, table, soup.size)
    rows = Sampler(train, 0.0, views.twins[: len(train)], settings.pairs or 0.0).draw(
        min(VIEWS, 4 * len(train)), np.random.default_rng(settings.seed)
    )
    keys = to_keys(rows, 0, True, views.twins)
    n = settings.batch_size * several  # as they learned: a batch has its own statistics
    order = [keys[start : start + n] for start in range(0, max(len(keys) - n, 0) + 1, n)]
    with Loader(views, reading_processes(settings, device, 1)) as loader:
        images = (pixels.to(device).float().div_(255) for pixels in loader.batches(order))
        update_bn(images, soup)
    soup.eval().requires_grad_(False)

    log = pd.concat(logs, ignore_index=True)
    log["epoch"] = np.arange(1, len(log) + 1)
    learned: dict[str, Any] = parts[0].config["training"]
    soup.config["training"] = {
        **plain(settings),
        **{name: learned[name] for name in ("learning_rate", "precision", "channels_last")},
        "epochs_run": len(log),
    }
    if other:
        soup = fuse_detectors([soup, other], table, views, settings.batch_size)
    write_text(run / LOSSES, log.to_csv(index=False, float_format="%.6g"))
    finish_run(run, settings, soup, views, table, log.to_dict("records"))


def average_weights(parts: list[Detector]) -> Detector:
    """A new detector with the mean of the weights of detectors of one architecture."""
    states = [part.state_dict() for part in parts]
    soup = Detector({**parts[0].config})
    soup.load_state_dict(
        {
            name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
            if value.is_floating_point()
            else value
            for name, value in states[0].items()
        }
    )
    return soup
