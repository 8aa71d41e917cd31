"""Training a detector on a corpus: one visible loop.

All randomness comes from (seed, epoch, process), so a run that was killed and resumed ends in the
same weights as one that was not. Accelerate brings device, mixed precision and several processes.
"""

import copy
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from ganscope.averaged_weights import average_into
from ganscope.config import TrainDetectorSettings, plain, write_text
from ganscope.datasets.corpus import newest_corpus
from ganscope.detector.model import Detector
from ganscope.detector.training.evaluation import finish_run
from ganscope.detector.training.fusion import fuse_detectors
from ganscope.detector.training.masks import (
    WEIGHT,
    WithPlaces,
    heads_for_places,
    measure_places,
    places_loss,
)
from ganscope.detector.training.run import (
    LOSSES,
    OpenOther,
    fingerprint,
    goes_on,
    look_first,
    open_run,
    open_views,
    reading_processes,
    split_table,
    tell_of_images,
)
from ganscope.detector.training.views import Key, Loader, Sampler, to_keys
from ganscope.devices import (
    Speed,
    by_main_process,
    fastest,
    pick_device,
    processes,
    remembered,
    to_device,
)
from ganscope.errors import GanscopeError
from ganscope.folders import CHECKPOINT, SPEED, restoring, save_checkpoint

if TYPE_CHECKING:
    from rich.progress import Progress

EMA = 0.999
"""Decay a step of the averaged weights, which are validated and saved; less in the first steps."""
WEIGHT_DECAY = 0.05
VAL_VIEWS, MOST_VIEWS = 1000, 8
"""Validation images are looked at several times, up to eight, until their class makes so many
views: single crops of few fakes would tell more of chance than of an epoch."""


def train_once(
    settings: TrainDetectorSettings, open_other: OpenOther, progress: "Progress | None" = None
) -> Path:
    """The full recipe: train all weights; `train_detector` describes the run folder.

    An unfinished run with the same settings is continued after its last whole epoch. Under
    `accelerate launch` or `torchrun` only the main process writes and evaluates, and the others
    wait for it. Raises `GanscopeError` as `train_detector` does.
    """
    device = pick_device(settings.device)
    if not settings.corpora:
        settings = replace(settings, corpora=(newest_corpus(),))
    state = processes(device)
    look_first(settings, progress)
    table = split_table(settings)
    train = table[table["split"] == "train"]
    val = np.flatnonzero(table["split"] == "val")
    torch.manual_seed(settings.seed)
    average = Detector.create(
        settings.detector,
        size=settings.size,
        pretrained=settings.pretrained,
        **(heads_for_places(settings.detector) if settings.masks else {}),
    )
    run, saved = open_run(settings, state)
    checked = fingerprint(table, state.num_processes)
    if saved:
        with restoring(run):
            fits = goes_on(checked, saved["checked"], _is_over(saved["log"], settings))
    if saved and not fits:
        raise GanscopeError(
            f"{run} was begun with other images or another number of processes; restore them to "
            "continue it, or name another folder with --out"
        )
    by_main_process(lambda: tell_of_images(settings, run, table))
    other = open_other(settings, run, progress)
    state = processes(device)  # it may have been trained just now, in another precision
    speed = remembered(
        run / SPEED, lambda: _choose_speed(settings, average, state.device, len(train))
    )
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision={"fp32": "no"}.get(speed.precision, speed.precision),
    )
    main, device = accelerator.is_main_process, accelerator.device
    average = average.to(device).to(memory_format=speed.layout).eval().requires_grad_(False)
    detector = copy.deepcopy(average).train().requires_grad_(True)
    peak = settings.learning_rate or average.config["training"]["learning_rate"]
    learner = WithPlaces(detector) if settings.masks else detector
    own = isinstance(learner, WithPlaces) and learner.own
    net, optimizer = accelerator.prepare(
        learner, torch.optim.AdamW(_parameter_groups(detector), peak)
    )

    views = open_views(settings, table, average.size)
    sampler = Sampler(
        train, settings.hard_examples or 0.0, views.twins[: len(train)], settings.pairs or 0.0
    )
    # More images than there are would be the same ones again, in memory all at once.
    size = max(min(settings.batch_size, len(train) // accelerator.num_processes), 2)
    batch = size * accelerator.num_processes
    steps = max(round(len(train) / batch), 1)
    labels = torch.from_numpy(table["label"].to_numpy(np.float32))
    parts = {"detector": detector, "average": average, "optimizer": optimizer}
    if accelerator.scaler is not None:
        parts["scaler"] = accelerator.scaler
    log: list[dict[str, Any]] = []
    best = copy.deepcopy(average.state_dict())
    if saved:
        with restoring(run):
            for name, part in parts.items():
                part.load_state_dict(saved[name])
            average.load_state_dict(saved["best"])
            average.load_state_dict(saved["average"])
            log, best = saved["log"], saved["best"]
            _best_epoch(log)
            if saved["losses"].shape != sampler.losses.shape:
                raise ValueError(f"losses of {len(saved['losses'])} images")
            sampler.losses = saved["losses"].numpy()
    task = (
        None
        if progress is None
        else progress.add_task(
            f"training {settings.detector}",
            total=settings.epochs * steps,
            completed=len(log) * steps,
            note="",
        )
    )

    with Loader(views, reading_processes(settings, device, accelerator.num_processes)) as loader:
        while not _is_over(log, settings):
            epoch, started = len(log), time.perf_counter()
            torch.manual_seed(settings.seed + 1_000_003 * epoch + 7919 * accelerator.process_index)
            rows = sampler.draw(steps * batch, np.random.default_rng((settings.seed, epoch)))
            order = _batches(rows, epoch, True, size, accelerator, views.twins)
            seen = []
            for step, (keys, pixels) in enumerate(zip(order, loader.batches(order), strict=True)):
                done = epoch * steps + step
                rate = peak * _schedule(done, settings.epochs * steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                images = to_images(pixels, device, speed)
                targets = labels[[key.row for key in keys]].to(device)

                logits, places = net(images) if settings.masks else (net(images), None)
                losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
                loss = losses.mean()
                if places is not None:
                    loss = (
                        loss + WEIGHT * places_loss(places, _to_masks(pixels, device), own).mean()
                    )
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()

                average_into(average, detector, min(EMA, (1 + done) / (10 + done)))
                seen.append(losses.detach())
                if progress and task is not None:
                    progress.update(task, advance=1, note=_note(log))

            seconds = time.perf_counter() - started
            drawn = _gather(order, torch.cat(seen))
            if not np.isfinite(drawn["value"]).all():
                raise GanscopeError(
                    f"the loss became infinite in epoch {epoch + 1}; lower --learning-rate "
                    f"(now {peak:g}) or take --precision fp32"
                )
            sampler.learn(drawn["row"].to_numpy(), drawn["value"].to_numpy())
            auroc, val_loss, places_found = _validate(
                average, val, labels, loader, settings, accelerator, speed
            )
            log.append(
                {
                    "epoch": epoch + 1,
                    "loss": float(drawn["value"].mean()),
                    "val_loss": val_loss,
                    "val_auroc": auroc,
                    **places_found,
                    "learning_rate": rate,
                    "images_per_second": len(rows) / seconds,
                }
            )
            if _best_epoch(log) == len(log):
                best = copy.deepcopy(average.state_dict())
            if main:
                states = {name: part.state_dict() for name, part in parts.items()}
                states |= {"best": best, "log": log, "losses": torch.from_numpy(sampler.losses)}
                save_checkpoint(run, {**states, "checked": checked})
                write_text(run / LOSSES, pd.DataFrame(log).to_csv(index=False, float_format="%.6g"))

    def finish() -> None:
        average.load_state_dict(best)
        average.config["training"] = {
            **plain(settings),
            "learning_rate": peak,
            "precision": speed.precision,
            "channels_last": speed.channels_last,
            "epochs_run": len(log),
            "best_epoch": _best_epoch(log),
        }
        whole = average
        if other:
            whole = fuse_detectors([average, other], table, views, settings.batch_size)
        finish_run(run, settings, whole, views, table, log)
        for name in (CHECKPOINT, SPEED):
            (run / name).unlink(missing_ok=True)

    by_main_process(finish)
    return run


def _choose_speed(
    settings: TrainDetectorSettings, detector: Detector, device: torch.device, images: int
) -> Speed:
    """The precision and layout to train in: as told, or the quickest step for "auto"."""
    net = copy.deepcopy(detector).to(device).train()
    n = max(min(settings.batch_size, images), 2)
    if device.type == "cpu":  # a few images tell, and take no minute where bf16 is slow
        n = min(n, max(2**16 // detector.size**2, 2))
    some = torch.rand(n, 3, detector.size, detector.size, device=device)

    def step(speed: Speed) -> None:
        net.to(memory_format=speed.layout)
        with speed.autocast(device):
            logits = net(some.to(memory_format=speed.layout))
        logits.square().mean().backward()

    return fastest(step, device, settings.precision)


def _parameter_groups(net: nn.Module) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels, none for biases and norms."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _schedule(step: int, steps: int) -> float:
    """Learning rate as a share of its peak: linear warm-up (a tenth, at most 200 steps), cosine."""
    warmup = max(min(steps // 10, 200), 1)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def _batches(
    rows: np.ndarray,
    epoch: int,
    learn: bool,
    size: int,
    accelerator: Accelerator,
    twins: np.ndarray | None = None,
) -> list[list[Key]]:
    """This process' batches of the rows that all processes go through together."""
    keys = to_keys(rows, epoch, learn, twins)
    batches = [keys[start : start + size] for start in range(0, len(keys), size)]
    return batches[accelerator.process_index :: accelerator.num_processes]


def to_images(pixels: Tensor, device: torch.device, speed: Speed) -> Tensor:
    """(N, 3, H, W) uint8 -> float in [0, 1] on the device, in the network's memory layout."""
    pixels = to_device(pixels[:, :3], device)
    return pixels.float().div_(255).contiguous(memory_format=speed.layout)


def _to_masks(pixels: Tensor, device: torch.device) -> Tensor:
    """(N, 4, H, W) uint8 -> the masks (N, H, W) in [0, 1] on the device."""
    return pixels[:, 3].to(device).float().div_(255)


def _gather(order: list[list[Key]], values: Tensor) -> pd.DataFrame:
    """Columns row, value: one value a key, from all processes, in the order of drawing."""
    keys = [key for batch in order for key in batch]
    part = pd.DataFrame(keys, columns=Key._fields).assign(value=values.double().cpu().numpy())
    return pd.concat(gather_object([part])).sort_values("draw", ignore_index=True)


@torch.inference_mode()
def _validate(
    average: Detector,
    val: np.ndarray,
    labels: Tensor,
    loader: Loader,
    settings: TrainDetectorSettings,
    accelerator: Accelerator,
    speed: Speed,
) -> tuple[float, float, dict[str, float]]:
    """AUROC and loss (both classes weigh alike) on clean crops, the same ones every epoch; with
    masks also how well places are found.
    """
    for buffer in average.buffers():
        broadcast(buffer)  # batch norm's statistics are each process' own
    views = []
    for label in (0, 1):
        rows = val[labels[val].numpy() == label]
        views.append(np.tile(rows, min(max(VAL_VIEWS // len(rows), 1), MOST_VIEWS)))
    order = _batches(np.concatenate(views), 0, False, settings.batch_size, accelerator)
    logits = [torch.empty(0, device=accelerator.device)]
    maps: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    judge = WithPlaces(average) if settings.masks else average
    for pixels in loader.batches(order):
        with speed.autocast(accelerator.device):
            found = judge(to_images(pixels, accelerator.device, speed))
        if settings.masks:
            found, places = found
            maps += list(places.float().cpu().numpy())
            masks += list(_to_masks(pixels, torch.device("cpu")).numpy())
        logits.append(found)
    logit = _gather(order, torch.cat(logits)).groupby("row")["value"].mean()
    target = labels[logit.index.to_numpy(copy=True)].numpy()
    loss = np.logaddexp(0, np.where(target == 1, -logit, logit))
    weight = np.where(target == 1, 1 / target.mean(), 1 / (1 - target.mean())) / 2
    told = {}
    if settings.masks:
        where = measure_places(gather_object(maps), gather_object(masks))
        told = {"val_pixel_auroc": where["pixel_auroc"], "val_iou": where["iou"]}
    return float(roc_auc_score(target, logit)), float((loss * weight).mean()), told


def _best_epoch(log: list[dict[str, Any]]) -> int:
    """Number (from 1) of the epoch with the best validation AUROC; of equals, the least loss."""
    return max(log, key=lambda row: (row["val_auroc"], -row["val_loss"]))["epoch"]


def _is_over(log: list[dict[str, Any]], settings: TrainDetectorSettings) -> bool:
    return len(log) >= settings.epochs or _stale(log, settings.patience)


def _stale(log: list[dict[str, Any]], patience: int) -> bool:
    """Whether `patience` epochs have gone by without a better validation AUROC."""
    if not log or not patience:
        return False
    return len(log) - 1 - int(np.argmax([row["val_auroc"] for row in log])) >= patience


def _note(log: list[dict[str, Any]]) -> str:
    if not log:
        return ""
    return f"loss {log[-1]['loss']:.3f}  val AUROC {log[-1]['val_auroc']:.3f}"
