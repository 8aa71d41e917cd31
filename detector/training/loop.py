"""Training a detector on a corpus: one visible loop.

All randomness comes from (seed, epoch, process), so a run that was killed and resumed ends in the
same weights as one that was not. Accelerate brings device, mixed precision and several processes.
"""

import copy
import hashlib
import math
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast, gather_object
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from ganscope.averaging import average_into
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
from ganscope.datasets.corpus import newest_corpus, open_corpora
from ganscope.datasets.splits import has_splits, split_corpus
from ganscope.detector.model import Detector, load_detector
from ganscope.detector.networks.architectures import is_architecture
from ganscope.detector.training.evaluation import ENOUGH, finish_run
from ganscope.detector.training.fusion import fuse_detectors
from ganscope.detector.training.views import (
    Key,
    Loader,
    Sampler,
    Views,
    find_twins,
    jpeg_qualities,
    to_keys,
)
from ganscope.devices import Speed, fastest, pick_device, processes, remembered
from ganscope.errors import GanscopeError, GanscopeWarning
from ganscope.folders import CHECKPOINT, CONFIG, SPEED, load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from rich.progress import Progress

SETTINGS, LOSSES = "settings.json", "losses.csv"
IGNORED = ("out", "device", "workers")
"""Settings that may differ when a run is continued: they do not change what is learned."""
EMA = 0.999
"""Decay a step of the averaged weights, which are validated and saved; less in the first steps."""
WEIGHT_DECAY = 0.05
FINE_TUNING = ("rank", "last_blocks", "layer_decay", "hidden", "checkpointing", "steps", "minutes")
"""Settings of the finetune recipe alone."""
VAL_VIEWS, MOST_VIEWS = 1000, 8
"""Validation images are looked at several times, up to eight, until their class makes so many
views: single crops of few fakes would tell more of chance than of an epoch."""


def train_detector(settings: TrainDetectorSettings, progress: "Progress | None" = None) -> Path:
    """Train a detector; returns its run folder.

    The folder holds the detector (`config.json`, `model.safetensors`, `README.md`), `metrics.json`,
    `scores.csv` (validation and test images), `losses.csv`, `loss.png`, `roc.png` and
    `settings.json`. An unfinished run with the same settings is continued after its last whole
    epoch. Under `accelerate launch` or `torchrun` only the main process writes, and only it stays
    for the final evaluation. `progress` shows one task.

    Raises `GanscopeError` for a corpus without both classes or with too few images to validate on,
    an unknown architecture or generator, pretrained weights that do not fit, and a folder that
    holds a finished run or one with other settings.
    """
    if settings.recipe == "frozen-linear":
        from ganscope.detector.training.frozen import train_frozen

        return train_frozen(settings, progress)
    if settings.soup > 1:
        from ganscope.detector.training.soup import train_soup

        return train_soup(settings, progress)
    if settings.recipe == "finetune":
        from ganscope.detector.training.finetune import train_finetuned

        return train_finetuned(settings, progress)
    refuse_unused(settings, FINE_TUNING)
    device = pick_device(settings.device)
    if not settings.corpora:
        settings = replace(settings, corpora=(newest_corpus(),))
    state = processes(device)
    table = split_table(settings)
    train = table[table["split"] == "train"]
    val = np.flatnonzero(table["split"] == "val")
    torch.manual_seed(settings.seed)
    average = Detector.create(settings.detector, size=settings.size, pretrained=settings.pretrained)
    run, saved = open_run(settings, state)
    checked = fingerprint(table, state.num_processes)
    if saved and saved["checked"] != checked:
        raise GanscopeError(
            f"{run} was begun with other images or another number of processes; restore them to "
            "continue it, or name another folder with --out"
        )
    other = open_other(settings, run, progress)
    state = processes(device)  # it may have been trained just now, in another precision
    speed = remembered(run / SPEED, lambda: _choose_speed(settings, average, state.device))
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision={"fp32": "no"}.get(speed.precision, speed.precision),
    )
    main, device = accelerator.is_main_process, accelerator.device
    average = average.to(device).to(memory_format=speed.layout).eval().requires_grad_(False)
    detector = copy.deepcopy(average).train().requires_grad_(True)
    peak = settings.learning_rate or average.config["training"]["learning_rate"]
    net, optimizer = accelerator.prepare(
        detector, torch.optim.AdamW(_parameter_groups(detector), peak)
    )

    views = open_views(settings, table, average.size)
    sampler = Sampler(
        train, settings.hard_examples or 0.0, views.twins[: len(train)], settings.pairs or 0.0
    )
    batch = settings.batch_size * accelerator.num_processes
    steps = max(round(len(train) / batch), 1)
    labels = torch.from_numpy(table["label"].to_numpy(np.float32))
    parts = {"detector": detector, "average": average, "optimizer": optimizer}
    if accelerator.scaler is not None:
        parts["scaler"] = accelerator.scaler
    log: list[dict[str, Any]] = []
    best = copy.deepcopy(average.state_dict())
    if saved:
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        log, best = saved["log"], saved["best"]
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
        while len(log) < settings.epochs and not _stale(log, settings.patience):
            epoch, started = len(log), time.perf_counter()
            torch.manual_seed(settings.seed + 1_000_003 * epoch + 7919 * accelerator.process_index)
            rows = sampler.draw(steps * batch, np.random.default_rng((settings.seed, epoch)))
            order = _batches(rows, epoch, True, settings.batch_size, accelerator, views.twins)
            seen = []
            for step, (keys, pixels) in enumerate(zip(order, loader.batches(order), strict=True)):
                done = epoch * steps + step
                rate = peak * _schedule(done, settings.epochs * steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                images = _to_images(pixels, device, speed)
                targets = labels[[key.row for key in keys]].to(device)

                losses = F.binary_cross_entropy_with_logits(net(images), targets, reduction="none")
                accelerator.backward(losses.mean())
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
            auroc, val_loss = _validate(average, val, labels, loader, settings, accelerator, speed)
            log.append(
                {
                    "epoch": epoch + 1,
                    "loss": float(drawn["value"].mean()),
                    "val_loss": val_loss,
                    "val_auroc": auroc,
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

    if main:
        average.load_state_dict(best)
        average.config["training"] = {
            **plain(settings),
            "learning_rate": peak,
            "precision": speed.precision,
            "channels_last": speed.channels_last,
            "epochs_run": len(log),
            "best_epoch": _best_epoch(log),
        }
        if other:
            average = fuse_detectors([average, other], table, views, settings.batch_size)
        finish_run(run, settings, average, views, table, log)
        for name in (CHECKPOINT, SPEED):
            (run / name).unlink(missing_ok=True)
    return run


def refuse_unused(settings: TrainDetectorSettings, names: Sequence[str]) -> None:
    """Raise `GanscopeError` if one of the settings that the recipe does not use was set."""
    usual = RECIPES[settings.recipe]
    for field in fields(settings):
        default = usual.get(field.name, field.default)
        if field.name in names and getattr(settings, field.name) != default:
            flag = field.name.replace("_", "-")
            raise GanscopeError(f"--{flag}: {settings.recipe} has no use for it; leave it out")


def split_table(settings: TrainDetectorSettings) -> pd.DataFrame:
    """The corpora's table with splits, training rows first; refuses what cannot be learned from."""
    corpus = open_corpora(settings.corpora)
    named = ", ".join(map(str, settings.corpora))
    for label, word in ((0, "real"), (1, "fake")):
        if not (corpus.table["label"] == label).any():
            raise GanscopeError(
                f"{named}: holds no {word} images; name a corpus that has them, too"
            )
    table = split_corpus(
        corpus.table,
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
    table.attrs["dropped"] = dropped
    return table


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
    )


def open_run(
    settings: TrainDetectorSettings, state: PartialState
) -> tuple[Path, dict[str, Any] | None]:
    """Make or re-enter the run folder; returns it and its checkpoint, if there is one.

    Refuses a finished run, one begun with other settings, a folder of anything else, and a
    `settings.fuse` that cannot be had.
    """
    if settings.fuse and not is_architecture(settings.fuse):
        load_detector(settings.fuse)
    elif settings.fuse and state.num_processes > 1:
        raise GanscopeError(
            f"--fuse {settings.fuse}: train it first where there are several processes, and name "
            "its run folder"
        )
    name = settings.detector.replace(":", "-").replace("/", "-")
    run = settings.out or next_free(Path("runs") / name, lambda p: (p / CONFIG).exists())
    if (run / CONFIG).exists():
        raise GanscopeError(f"{run} holds a finished detector; name another folder with --out")
    if (run / SETTINGS).exists():
        flags = changed(settings, read_json(run / SETTINGS), ignore=IGNORED)
        if flags:
            raise GanscopeError(
                f"{run} holds an unfinished run with other settings ({', '.join(flags)}); "
                "repeat its settings to continue it, or name another folder with --out"
            )
    elif run.exists() and (not run.is_dir() or any(run.iterdir())):
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


def open_other(
    settings: TrainDetectorSettings, run: Path, progress: "Progress | None" = None
) -> Detector | None:
    """The detector to be fused with, None without `settings.fuse`.

    An architecture is trained first, on the same images and as a soup of as many trainings, in the
    run folder's `fused`.
    """
    if not settings.fuse:
        return None
    if not is_architecture(settings.fuse):
        other = load_detector(settings.fuse)
        if _may_have_learned(other.config["training"], settings):
            warnings.warn(
                f"--fuse {settings.fuse} learned from these corpora in another split, perhaps from "
                "images that the fusion is now fitted to, and will seem better than it is",
                GanscopeWarning,
                stacklevel=2,
            )
        return other
    part = run / "fused"
    if not (part / CONFIG).exists():
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


def fingerprint(table: pd.DataFrame, processes: int) -> str:
    """Of what a resumed run must find unchanged besides its settings."""
    text = table[["file_name", "label", "generator", "split", "group"]].to_csv(index=False)
    return f"{processes} {hashlib.sha256(text.encode()).hexdigest()}"


def _choose_speed(
    settings: TrainDetectorSettings, detector: Detector, device: torch.device
) -> Speed:
    """The precision and layout to train in: as told, or the quickest step for "auto"."""
    net = copy.deepcopy(detector).to(device).train()
    n = settings.batch_size
    if device.type == "cpu":  # a few images tell, and take no minute where bf16 is slow
        n = min(n, max(2**16 // detector.size**2, 2))
    images = torch.rand(n, 3, detector.size, detector.size, device=device)

    def step(speed: Speed) -> None:
        net.to(memory_format=speed.layout)
        with speed.autocast(device):
            logits = net(images.to(memory_format=speed.layout))
        logits.square().mean().backward()

    return fastest(step, device, settings.precision)


def reading_processes(settings: TrainDetectorSettings, device: torch.device, processes: int) -> int:
    """Reading processes: on a CPU no core is spare, the network uses them all."""
    if settings.workers is not None:
        return settings.workers
    return 0 if device.type == "cpu" else max(min((os.cpu_count() or 1) // processes - 1, 8), 0)


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


def _to_images(pixels: Tensor, device: torch.device, speed: Speed) -> Tensor:
    """(N, 3, H, W) uint8 -> float in [0, 1] on the device, in the network's memory layout."""
    return pixels.to(device).float().div_(255).contiguous(memory_format=speed.layout)


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
) -> tuple[float, float]:
    """AUROC and loss (both classes weigh alike) on clean crops, the same ones every epoch."""
    for buffer in average.buffers():
        broadcast(buffer)  # batch norm's statistics are each process' own
    views = []
    for label in (0, 1):
        rows = val[labels[val].numpy() == label]
        views.append(np.tile(rows, min(max(VAL_VIEWS // len(rows), 1), MOST_VIEWS)))
    order = _batches(np.concatenate(views), 0, False, settings.batch_size, accelerator)
    logits = [torch.empty(0, device=accelerator.device)]
    for pixels in loader.batches(order):
        with speed.autocast(accelerator.device):
            logits.append(average(_to_images(pixels, accelerator.device, speed)))
    logit = _gather(order, torch.cat(logits)).groupby("row")["value"].mean()
    target = labels[logit.index.to_numpy(copy=True)].numpy()
    loss = np.logaddexp(0, np.where(target == 1, -logit, logit))
    weight = np.where(target == 1, 1 / target.mean(), 1 / (1 - target.mean())) / 2
    return float(roc_auc_score(target, logit)), float((loss * weight).mean())


def _best_epoch(log: list[dict[str, Any]]) -> int:
    """Number (from 1) of the epoch with the best validation AUROC; of equals, the least loss."""
    return max(log, key=lambda row: (row["val_auroc"], -row["val_loss"]))["epoch"]


def _stale(log: list[dict[str, Any]], patience: int) -> bool:
    """Whether `patience` epochs have gone by without a better validation AUROC."""
    if not log or not patience:
        return False
    return len(log) - 1 - int(np.argmax([row["val_auroc"] for row in log])) >= patience


def _note(log: list[dict[str, Any]]) -> str:
    if not log:
        return ""
    return f"loss {log[-1]['loss']:.3f}  val AUROC {log[-1]['val_auroc']:.3f}"
