"""The finetune recipe: low-rank adapters on a vision transformer, and a classifier on its blocks.

Views are cut once and kept (`pack`), decoded once on the device, and changed there
(`device_augmentation`). All randomness comes from (seed, step), whatever the number of processes,
so a training with a budget of steps ends in the same weights when it was killed and resumed.
Adapters are merged into the weights at the end: the detector is as large as without them.
"""

import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from ganscope.config import TrainDetectorSettings, plain, write_text
from ganscope.datasets.corpus import newest_corpus
from ganscope.detector.model import Detector
from ganscope.detector.networks.architectures import build, is_architecture, is_read_at_blocks
from ganscope.detector.networks.lora import ALSO, add_adapters, merge_adapters
from ganscope.detector.networks.transformer import BlockFeatures
from ganscope.detector.training.device_augmentation import augment, crop, draw, nothing
from ganscope.detector.training.evaluation import finish_run
from ganscope.detector.training.fusion import fuse_detectors
from ganscope.detector.training.loop import WEIGHT_DECAY
from ganscope.detector.training.masks import (
    WEIGHT,
    heads_for_places,
    measure_places,
    places_loss,
)
from ganscope.detector.training.pack import PackViews, read_pack, side_for, write_pack
from ganscope.detector.training.run import (
    LOSSES,
    OpenOther,
    fingerprint,
    look_first,
    open_run,
    open_views,
    refuse_unused,
    split_table,
    tell_of_images,
    warn_of_random,
)
from ganscope.devices import (
    Speed,
    by_main_process,
    multiplies_bf16,
    pick_device,
    processes,
)
from ganscope.errors import GanscopeError
from ganscope.folders import CHECKPOINT, restoring, save_checkpoint
from ganscope.images import open_image

if TYPE_CHECKING:
    from rich.progress import Progress

UNUSED = ("mix", "pairs", "hard_examples", "patience")
"""Settings of other recipes."""
HEADS = ("head.", "curve.", "where")
"""How the names of the classifiers' weights begin."""
HEAD_RATE = 1e-3
"""AdamW's peak for the classifier."""
SMOOTHING, DROPOUT = 0.02, 0.1
"""Of the labels, and of the features that are read from the blocks (not of the map)."""
EMA = 0.998
"""Decay a step of the averaged weights, which are kept; less in the first steps."""
WARM_UP = 0.05
"""Share of the budget in which the learning rates rise."""
PARTS = 5
"""Rows of `losses.csv`; so often the averaged weights are tried on validation views."""
VAL_VIEWS = 256
"""Views that they are tried on, at most, both classes alike."""
CHECKPOINT_SECONDS = 30.0
"""Between checkpoints."""
PACK, MASKS = "views", "masks"
"""Folders of the run's pack, and of that of the views' masks."""


def train_finetuned(
    settings: TrainDetectorSettings, open_other: OpenOther, progress: "Progress | None" = None
) -> Path:
    """Fine-tune a vision transformer; `train_detector` describes the run folder.

    The budget is `settings.steps` or `settings.minutes`, else so many steps as `settings.epochs`
    passes over the training images take. Raises `GanscopeError` as `train_detector` does, and for
    an architecture that is not read at several blocks.
    """
    device = pick_device(settings.device)
    state = processes(device)
    refuse_unused(settings, UNUSED)
    if not settings.corpora:
        settings = replace(settings, corpora=(newest_corpus(),))
    look_first(settings, progress)
    table = split_table(settings)
    # Parts of a soup begin alike, whatever their seeds.
    torch.manual_seed(settings.seed if settings.split_seed is None else settings.split_seed)
    detector = create(settings)
    warn_of_random(settings)
    run, saved = open_run(settings, state)
    checked = fingerprint(table, state.num_processes)
    by_main_process(lambda: tell_of_images(settings, run, table))
    other = open_other(settings, run, progress)
    state = processes(device)
    views = open_views(settings, table, detector.size)
    listed = table[table["split"] != "test"].assign(name=table["file_name"])

    def pixels_of(row: int) -> np.ndarray:
        opened = open_image(views.paths[row])
        rng = np.random.default_rng((settings.seed, row))
        return views.neutral(opened.pixels, opened.format, row, rng)

    def mask_of(row: int) -> np.ndarray:
        mask = views.mask(row, open_image(views.paths[row]).pixels.shape)
        return np.repeat(mask[..., None], 3, 2)

    def cut(name: str = PACK) -> None:
        task = None
        if progress:
            task = progress.add_task(f"cutting {name}", total=len(listed), note="")

        def told(done: int) -> None:
            if progress and task is not None:
                progress.update(task, completed=done)

        write_pack(
            run / name,
            listed,
            mask_of if name == MASKS else pixels_of,
            side=side_for(detector.size),
            seed=settings.seed,
            told=told,
        )

    by_main_process(cut)
    if settings.masks:
        # Views of a picture depend on its name and size alone: those of its mask are cut alike.
        by_main_process(lambda: cut(MASKS))

    accelerator = open_accelerator(settings, device)
    pack = read_pack(run / PACK)
    packed = PackViews(pack, accelerator.device)
    splits = table["split"].to_numpy()[pack.picture]
    sampler = GroupSampler(pack.label, pack.group, pack.picture, np.flatnonzero(splits == "train"))
    val = _some_of_each(np.flatnonzero(splits == "val"), pack.label)
    log = fine_tune(
        detector,
        packed,
        sampler,
        settings,
        run=run,
        checked=f"{checked} {pack.sums}",
        accelerator=accelerator,
        steps=epoch_steps(settings, int((table["split"] == "train").sum()), accelerator),
        val=val,
        saved=saved,
        masks=PackViews(read_pack(run / MASKS), accelerator.device) if settings.masks else None,
        progress=progress,
    )

    def finish() -> None:
        assert isinstance(detector.net, BlockFeatures)
        merge_adapters(detector.net)
        detector.eval().requires_grad_(False)
        write_text(run / LOSSES, pd.DataFrame(log).to_csv(index=False, float_format="%.6g"))
        detector.config["training"] = {
            **plain(settings),
            "learning_rate": _peak(settings, detector),
            "precision": precision_of(settings, accelerator.device),
            "channels_last": False,
            "steps_run": log[-1]["step"],
            "best_epoch": len(log),
        }
        whole = detector
        if other:
            whole = fuse_detectors([detector, other], table, views, settings.batch_size)
        finish_run(run, settings, whole, views, table, log)
        (run / CHECKPOINT).unlink(missing_ok=True)
        shutil.rmtree(run / PACK)
        shutil.rmtree(run / MASKS, ignore_errors=True)

    by_main_process(finish)
    return run


def create(settings: TrainDetectorSettings) -> Detector:
    """The detector that is to be fine-tuned, without adapters yet.

    Raises `GanscopeError` for an architecture that is no transformer read at several blocks, or one
    with fewer blocks than are to be adapted.
    """
    name = settings.detector
    if not is_architecture(name):
        build(name)
    if not is_read_at_blocks(name):
        raise GanscopeError(
            f"--recipe finetune: {name} is no transformer read at several blocks; take "
            "--detector clip or vit:NAME"
        )
    arguments: dict[str, Any] = {"hidden": settings.hidden} if settings.hidden else {}
    if settings.masks:
        arguments |= heads_for_places(name)
    detector = Detector.create(
        name, size=settings.size, pretrained=settings.pretrained, **arguments
    )
    net = detector.net
    assert isinstance(net, BlockFeatures)
    if settings.last_blocks > len(net.backbone.blocks):
        raise GanscopeError(
            f"--last-blocks {settings.last_blocks}: {name} has {len(net.backbone.blocks)} blocks"
        )
    return detector


def precision_of(settings: TrainDetectorSettings, device: torch.device) -> str:
    """As told; "auto": bf16 on CUDA, and for transformers, which mostly multiply matrices, on a CPU
    that has instructions for it (AMX: 2.6 times as quick), else fp32.
    """
    if settings.precision != "auto":
        return settings.precision
    made_for_it = is_read_at_blocks(settings.detector) and multiplies_bf16(device)
    return "bf16" if made_for_it or device.type == "cuda" else "fp32"


def open_accelerator(settings: TrainDetectorSettings, device: torch.device) -> Accelerator:
    processes(device)  # an earlier training here may have had another precision
    precision = precision_of(settings, device)
    return Accelerator(
        cpu=device.type == "cpu", mixed_precision={"fp32": "no"}.get(precision, precision)
    )


def epoch_steps(settings: TrainDetectorSettings, pictures: int, accelerator: Accelerator) -> int:
    """Steps of `settings.epochs` passes over so many pictures."""
    batch = settings.batch_size * accelerator.num_processes
    return max(round(settings.epochs * pictures / batch), 1)


class GroupSampler:
    """Draws views: both classes alike, within a class each group (label, source, generator) by the
    square root of its pictures, a group's pictures alike, and a picture's views alike.
    """

    def __init__(self, label: np.ndarray, group: np.ndarray, picture: np.ndarray, rows: np.ndarray):
        """label, group, picture (N,): of all views; rows (n,): those that may be drawn.

        Raises `GanscopeError` if these are of one class.
        """
        odds = np.zeros(len(label))
        pairs = np.unique(np.stack([group[rows], picture[rows]]), axis=1)
        sizes = np.bincount(pairs[0])  # pictures of each group
        looks = np.bincount(picture[rows])  # views of each picture
        odds[rows] = 1 / (np.sqrt(sizes[group[rows]]) * looks[picture[rows]])
        for value in (0, 1):
            of = label == value
            if not odds[of].any():
                raise GanscopeError("pictures of both classes are needed to learn from")
            odds[of] *= 0.5 / odds[of].sum()
        self.odds = odds
        """(N,) of each view to be drawn; their sum is 1."""
        self._places = [np.flatnonzero((label == value) & (odds > 0)) for value in (0, 1)]
        self._edges = [np.cumsum(odds[places]) for places in self._places]

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """n rows, fake and real in turn."""
        found = np.empty(n, np.int64)
        for value, where in ((1, slice(0, None, 2)), (0, slice(1, None, 2))):
            edges = self._edges[value]
            at = np.searchsorted(edges, rng.random(len(found[where])) * edges[-1], side="right")
            found[where] = self._places[value][at.clip(max=len(edges) - 1)]
        return found


class _Learner(nn.Module):
    """A detector as it learns: images (N, 3, H, W) in [0, 1] and what is kept of its features
    (N, D) -> logits (N,), and those of places (N, h, w) if it has a layer for them.
    """

    def __init__(self, detector: Detector):
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, kept: Tensor) -> tuple[Tensor, Tensor | None]:
        net: Any = self.detector.net
        x = self.detector.normalised(images)
        if net.where is None:
            return net.classify(net.features(x) * kept), None
        features, local = net.read_places(x)
        return net.classify(features * kept), local


@dataclass
class Budget:
    """Either so many steps or so many seconds, those of earlier tries included."""

    steps: int
    seconds: float | None
    step: int = 0
    before: float = 0.0
    """Seconds of earlier tries."""

    def __post_init__(self) -> None:
        self._started = time.perf_counter()

    @property
    def spent(self) -> float:
        return self.before + time.perf_counter() - self._started

    def share(self, accelerator: Accelerator) -> float:
        """How much of it is used up, 0 to 1; the same in all processes."""
        if self.seconds is None:
            return self.step / self.steps
        share = self.spent / self.seconds
        if accelerator.num_processes > 1:
            share = float(broadcast(torch.tensor(share, device=accelerator.device)))
        return min(share, 1.0)


def fine_tune(
    detector: Detector,
    views: PackViews,
    sampler: GroupSampler,
    settings: TrainDetectorSettings,
    *,
    run: Path,
    checked: str,
    accelerator: Accelerator,
    steps: int,
    val: np.ndarray | None = None,
    masks: PackViews | None = None,
    saved: dict[str, Any] | None = None,
    progress: "Progress | None" = None,
) -> list[dict[str, Any]]:
    """Give a detector adapters and train them; they stay beside their matrices.

    run: where checkpoints go. checked: what a resumed run must find unchanged. steps: the budget
    where settings name none. val: rows of views on which the averaged weights are tried; None:
    none are. Returns rows epoch (part of the budget), step, loss, val_loss, val_auroc,
    learning_rate, views_per_second. Raises `GanscopeError` if the loss becomes infinite or the
    checkpoint is of another training.
    """
    device, main = accelerator.device, accelerator.is_main_process
    if saved:
        with restoring(run):
            fits = saved["checked"] == checked
    if saved and not fits:
        raise GanscopeError(
            f"{run} was begun with other images or another number of processes; restore them to "
            "continue it, or name another folder with --out"
        )
    net: Any = detector.net
    torch.manual_seed(settings.seed)
    prepare_adapters(net, settings)
    detector.to(device).train()
    peak = _peak(settings, detector)
    groups = parameter_groups(net, peak, settings.layer_decay)
    trained = [p for group in groups for p in group["params"]]
    learner, optimizer = accelerator.prepare(_Learner(detector), torch.optim.AdamW(groups, peak))
    peaks = [group["lr"] for group in groups]
    average = [p.detach().clone() for p in trained]
    budget = Budget(
        settings.steps or steps, None if settings.minutes is None else 60 * settings.minutes
    )
    log: list[dict[str, Any]] = []
    total = torch.zeros((), device=device)
    begun = 0
    if saved:
        with restoring(run):
            optimizer.load_state_dict(saved["optimizer"])
            if accelerator.scaler is not None:
                accelerator.scaler.load_state_dict(saved["scaler"])
            with torch.no_grad():
                for mine, theirs in zip(trained, saved["trained"], strict=True):
                    mine.copy_(theirs)
            average = [value.to(device) for value in saved["average"]]
            log, begun = saved["log"], saved["begun"]
            total = saved["total"].to(device)
            budget.step, budget.before = saved["step"], saved["seconds"]

    def keep() -> None:
        if main:
            state: dict[str, Any] = {
                "checked": checked,
                "optimizer": optimizer.state_dict(),
                "trained": [p.detach() for p in trained],
                "average": average,
                "step": budget.step,
                "seconds": budget.spent,
                "log": log,
                "begun": begun,
                "total": total,
            }
            if accelerator.scaler is not None:
                state["scaler"] = accelerator.scaler.state_dict()
            save_checkpoint(run, state)

    n, rank = settings.batch_size, accelerator.process_index
    everyone, mine = n * accelerator.num_processes, slice(rank * n, (rank + 1) * n)
    labels = torch.from_numpy(views.pack.label.astype(np.float32))
    task = (
        None
        if progress is None
        else progress.add_task(f"fine-tuning {settings.detector}", total=1.0, note="")
    )
    now, kept_at, seen_at = budget.share(accelerator), time.perf_counter(), time.perf_counter()
    seen_from, last = budget.step, int(now * PARTS + 1e-9)
    while now < 1 or not log:
        # Drawn for all processes, each of which takes its part: together they do what one would.
        rng = np.random.default_rng((settings.seed, budget.step))
        rows = sampler.draw(everyone, rng)
        draws = draw(everyone, rng, settings.degrade or 0.0).part(mine)
        kept = _kept(everyone, net, settings.seed + 7919 * budget.step, device)[mine]
        images = augment(views.fetch(rows[mine]), draws, detector.size)
        if views.kept is None:
            following = np.random.default_rng((settings.seed, budget.step + 1))
            views.prefetch(sampler.draw(everyone, following)[mine])
        targets = labels[rows[mine]].to(device) * (1 - SMOOTHING) + SMOOTHING / 2

        risen = _rate(now if settings.minutes else (budget.step + 0.5) / budget.steps)
        for group, highest in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = highest * risen
        logits, places = learner(images, kept)
        loss = F.binary_cross_entropy_with_logits(logits, targets)
        whole = loss
        if masks is not None:
            fake = crop(masks.fetch(rows[mine]), draws, detector.size)[:, 0] / 255
            whole = loss + WEIGHT * places_loss(places, fake, own=True).mean()
        accelerator.backward(whole)
        accelerator.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            decay = min(EMA, (1 + budget.step) / (10 + budget.step))
            torch._foreach_lerp_(average, trained, 1 - decay)
            total += loss.detach()
        budget.step += 1

        now = budget.share(accelerator)
        if int(now * PARTS + 1e-9) > last or (now >= 1 and not log):
            last = int(now * PARTS + 1e-9)
            mean = float(accelerator.reduce(total, "mean")) / max(budget.step - begun, 1)
            if not math.isfinite(mean):
                raise GanscopeError(
                    f"the loss became infinite before step {budget.step}; lower --learning-rate "
                    f"(now {peak:g}) or take --precision fp32"
                )
            seconds = time.perf_counter() - seen_at
            row = {
                "epoch": last,
                "step": budget.step,
                "loss": mean,
                "val_loss": math.nan,
                "val_auroc": math.nan,
                "learning_rate": peak * risen,
                "views_per_second": (budget.step - seen_from) * everyone / seconds,
            }
            if val is not None and main:
                with swapped(trained, average):
                    row |= _try(detector, views, val, settings, masks)
            log.append(row)
            total, begun = torch.zeros_like(total), budget.step
            seen_at, seen_from = time.perf_counter(), budget.step
        if time.perf_counter() - kept_at > CHECKPOINT_SECONDS:
            keep()
            kept_at = time.perf_counter()
        if progress and task is not None:
            note = f"loss {log[-1]['loss']:.3f}" if log else ""
            progress.update(task, completed=now, note=note)
    keep()
    with torch.no_grad():
        for parameter, value in zip(trained, average, strict=True):
            parameter.copy_(value)
    return log


def prepare_adapters(net: BlockFeatures, settings: TrainDetectorSettings) -> None:
    """Freeze all of a network but the adapters that it gets, their blocks' norms and its heads."""
    net.requires_grad_(False)
    add_adapters(net, settings.rank, settings.last_blocks or None)
    first = len(net.backbone.blocks) - settings.last_blocks if settings.last_blocks else -1
    for name, parameter in net.named_parameters():
        place = _depth(name)
        own = name.startswith(HEADS) or name.endswith((".A", ".B"))
        norm = any(f".{part}" in f".{name}" for part in ALSO) and place >= first
        parameter.requires_grad_(own or norm)
    if settings.checkpointing:
        net.backbone.set_grad_checkpointing(True)


def parameter_groups(net: BlockFeatures, peak: float, decay: float) -> list[dict[str, Any]]:
    """What learns, by learning rate: classifiers at `HEAD_RATE`, the rest at `peak` times `decay`
    for every block behind it; weight decay for matrices only.
    """
    depth = len(net.backbone.blocks)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            head = name.startswith(HEADS)
            rate = HEAD_RATE if head else peak * decay ** (depth - 1 - _depth(name))
            key = (rate, WEIGHT_DECAY if parameter.ndim > 1 else 0.0)
            groups.setdefault(key, []).append(parameter)
    return [{"params": p, "lr": rate, "weight_decay": w} for (rate, w), p in groups.items()]


def _depth(name: str) -> int:
    """The block that a parameter is of; -1 for what lies before the first."""
    words = name.split(".")
    return int(words[words.index("blocks") + 1]) if "blocks" in words else -1


def score_views(
    detector: Detector,
    views: PackViews,
    rows: np.ndarray,
    batch_size: int,
    speed: Speed,
) -> np.ndarray:
    """Logits (n,) float32 of the centre of clean views."""
    found = []
    with torch.inference_mode():
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            images = augment(views.fetch(part), nothing(len(part)), detector.size)
            with speed.autocast(views.device):
                found.append(detector(images).float().cpu())
    return torch.cat(found).numpy()


def _try(
    detector: Detector,
    views: PackViews,
    rows: np.ndarray,
    settings: TrainDetectorSettings,
    masks: PackViews | None = None,
) -> dict[str, float]:
    """AUROC and loss, both classes weighing alike, on clean views; with masks also how well places
    are found.
    """
    detector.eval()
    speed = Speed(precision_of(settings, views.device))
    logit = score_views(detector, views, rows, max(settings.batch_size, 32), speed).astype(float)
    told = {} if masks is None else _try_places(detector, views, masks, rows, speed)
    detector.train()
    target = views.pack.label[rows]
    loss = np.logaddexp(0, np.where(target == 1, -logit, logit))
    if not np.isfinite(logit).all():
        return {}
    means = [float(loss[target == value].mean()) for value in (0, 1)]
    return {"val_loss": sum(means) / 2, "val_auroc": float(roc_auc_score(target, logit)), **told}


def _try_places(
    detector: Detector, views: PackViews, masks: PackViews, rows: np.ndarray, speed: Speed
) -> dict[str, float]:
    """Pixel AUROC and IoU on clean views that are fake in part."""
    maps: list[np.ndarray] = []
    truths: list[np.ndarray] = []
    net: Any = detector.net
    with torch.inference_mode():
        for start in range(0, len(rows), 32):
            part = rows[start : start + 32]
            images = augment(views.fetch(part), nothing(len(part)), detector.size)
            with speed.autocast(views.device):
                local = net.where_logits(detector.normalised(images))[0]
            maps += list(local.float().cpu().numpy())
            fake = crop(masks.fetch(part), nothing(len(part)), detector.size)[:, 0]
            truths += list((fake / 255).cpu().numpy())
    where = measure_places(maps, truths)
    return {"val_pixel_auroc": where["pixel_auroc"], "val_iou": where["iou"]}


def _some_of_each(rows: np.ndarray, label: np.ndarray) -> np.ndarray:
    """At most `VAL_VIEWS` of the rows, spread over them, both classes alike."""
    found = []
    for value in (0, 1):
        of = rows[label[rows] == value]
        n = min(len(of), VAL_VIEWS // 2)
        found.append(of[np.linspace(0, len(of) - 1, n).round().astype(int)])
    return np.concatenate(found)


@contextmanager
def swapped(trained: list[nn.Parameter], average: list[Tensor]) -> Iterator[None]:
    """The averaged weights in place of those that learn."""
    now = [p.data for p in trained]
    for parameter, value in zip(trained, average, strict=True):
        parameter.data = value
    try:
        yield
    finally:
        for parameter, value in zip(trained, now, strict=True):
            parameter.data = value


def _kept(n: int, net: BlockFeatures, seed: int, device: torch.device) -> Tensor:
    """Factors (n, D) of the features: 0 for those that are dropped, and 1 for the map's."""
    generator = torch.Generator(device).manual_seed(seed)
    width = net.head.in_features
    kept = torch.rand((n, width), generator=generator, device=device) >= DROPOUT
    factors = kept / (1 - DROPOUT)
    factors[:, -net.width :] = 1
    return factors


def _rate(share: float) -> float:
    """Learning rate as a share of its peak: a linear rise, then a cosine down to 0."""
    if share < WARM_UP:
        return max(share / WARM_UP, 0.01)
    return 0.5 * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP)))


def _peak(settings: TrainDetectorSettings, detector: Detector) -> float:
    return settings.learning_rate or detector.config["training"]["learning_rate"]
