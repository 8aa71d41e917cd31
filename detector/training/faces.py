"""The faces recipe: a detector of swapped and retouched faces, from real photographs alone.

Every real face is blended onto itself while the detector learns, with changed colour, sharpness and
place (Shiohara and Yamasaki, CVPR 2022, arXiv:2204.08376): what is left to tell the two apart is
the border and the mismatch that every swap leaves, whoever made it. Faces are found once and kept
beside the run. All randomness of a step comes from (seed, step), so a training with a budget of
steps or epochs ends in the same weights when it was killed and resumed.
"""

import copy
import hashlib
import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pandas as pd
import timm
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

import ganscope
from ganscope.averaged_weights import average_into
from ganscope.config import TrainDetectorSettings, plain, write_json, write_text
from ganscope.datasets.blending import self_blend
from ganscope.datasets.corpus import UnknownLayout, newest_corpus, open_corpora
from ganscope.datasets.declared import find_declared, leave_out_declared
from ganscope.datasets.degradations import random_degradation
from ganscope.datasets.splits import SHARE
from ganscope.detector.judge import sigmoid
from ganscope.detector.judging import plots
from ganscope.detector.judging.calibration import calibrate, choose_thresholds
from ganscope.detector.judging.faces import SMALLEST, around
from ganscope.detector.judging.views import whole_of
from ganscope.detector.model import Detector
from ganscope.detector.networks.architectures import is_read_at_blocks
from ganscope.detector.networks.backbones import TimmNet
from ganscope.detector.training.card import write_face_card
from ganscope.detector.training.evaluation import (
    ENOUGH,
    METRICS,
    SCORES,
    count_false_alarms,
    evaluate,
)
from ganscope.detector.training.finetune import Budget, open_accelerator, precision_of
from ganscope.detector.training.loop import EMA, _parameter_groups, _schedule
from ganscope.detector.training.masks import (
    WEIGHT,
    WithPlaces,
    best_shift,
    heads_for_places,
    measure_places,
    places_loss,
)
from ganscope.detector.training.record import (
    learned_from,
    start_record,
    starts_from_a_detector,
)
from ganscope.detector.training.run import (
    LOSSES,
    UNREADABLE,
    OpenOther,
    keep_unreadable,
    leave_out_unreadable,
    name_unreadable,
    open_run,
    refuse_unused,
)
from ganscope.devices import Speed, by_main_process, pick_device, processes
from ganscope.errors import GanscopeError, GanscopeWarning, ImageError
from ganscope.faces import Face, Finder, open_finder
from ganscope.files import guard_table
from ganscope.folders import CHECKPOINT, restoring, save_checkpoint
from ganscope.images import open_image
from ganscope.inputs import find_images

if TYPE_CHECKING:
    from rich.progress import Progress

UNUSED = (
    *("fuse", "mix", "pairs", "hard_examples", "patience", "soup", "masks"),
    *("rank", "last_blocks", "layer_decay", "hidden", "checkpointing"),
    *("val_generator", "test_generator"),
)
"""Settings of other recipes."""
MARGIN = 1.4
"""Side of the square that is looked at, in longer sides of the face's box."""
JITTER, SHIFT = (1.15, 1.75), 0.08
"""The same while learning, and how far the square moves, in its sides."""
ROOM = 2.0
"""Side of the square that is kept of a photograph, in longer sides of the box."""
FINE = 1.6
"""A face is kept in at most so many times the pixels that are looked at."""
SURE, MOST = 0.7, 8
"""Least confidence of a finder that gives any, and the most faces of a photograph, the largest
first."""
FAINT = 0.05
"""Share of another face's pixels up to which nothing counts as changed."""
FEWEST = 20
"""Faces without which nothing is begun."""
VAL_FACES = 400
"""Validation faces at most, spread over them; each is looked at as it is and blended."""
PARTS = 8
"""Rows of `losses.csv` where the budget is of steps or minutes; else a row an epoch."""
CHECKPOINT_SECONDS = 30.0
"""Between checkpoints."""
KEPT, FOUND = "faces", "found.jsonl"
"""Folder of the faces that are kept beside an unfinished run, and what was found in each photo."""


@dataclass(frozen=True)
class KeptFace:
    """A face cut out of a photograph, with what surrounds it."""

    path: Path
    row: int
    """Of the table of photographs."""
    face: Face
    """Where it is in the part that was cut out."""


def train_faces(
    settings: TrainDetectorSettings, open_other: OpenOther, progress: "Progress | None" = None
) -> Path:
    """Train a detector of blended faces on real photographs; `train_detector` describes the run.

    Corpora may be folders of photographs; fakes in them are not looked at. The budget is
    `settings.steps` or `settings.minutes`, else `settings.epochs` passes over the faces. Raises
    `GanscopeError` as `train_detector` does, and where there are too few faces.
    """
    del open_other
    device = pick_device(settings.device)
    state = processes(device)
    refuse_unused(settings, UNUSED)
    if state.num_processes > 1:
        raise GanscopeError("--recipe faces runs in one process; start it without torchrun")
    if is_read_at_blocks(settings.detector):
        raise GanscopeError(
            f"--recipe faces: {settings.detector} looks at a whole picture in several views; take "
            "--detector lite, cnn or timm:NAME"
        )
    if not settings.corpora:
        settings = replace(settings, corpora=(newest_corpus(),))
    table = open_photographs(settings, progress)
    torch.manual_seed(settings.seed)
    detector = create(settings)
    run, saved = open_run(settings, state)
    bad = pd.DataFrame(table.attrs["unreadable"])
    keep_unreadable(run, bad)
    if len(bad):
        warnings.warn(
            f"{len(bad):,} of {len(bad) + len(table):,} photographs cannot be read and are left "
            f"out: {name_unreadable(bad)}; all of them are in {run / UNREADABLE}",
            GanscopeWarning,
            stacklevel=2,
        )
    kept = keep_faces(run / KEPT, table, detector.size, open_finder, progress)
    table = split_faces(table, kept, settings)
    split = table["split"].to_numpy()
    learn = [one for one in kept if split[one.row] == "train"]
    val = [one for one in kept if split[one.row] == "val"]
    val = [
        val[i] for i in np.linspace(0, len(val) - 1, min(len(val), VAL_FACES)).round().astype(int)
    ]
    accelerator = open_accelerator(settings, device)
    log = _learn(detector, learn, val, table, settings, run, accelerator, saved, progress)
    by_main_process(lambda: _finish(run, settings, detector, learn, val, table, log))
    return run


def create(settings: TrainDetectorSettings) -> Detector:
    """The network, untrained or started from `settings.pretrained`; one of timm gets a head for
    places. Its configuration says that it looks at faces.
    """
    detector = Detector.create(
        settings.detector,
        size=settings.size,
        pretrained=settings.pretrained,
        **heads_for_places(settings.detector),
    )
    looking = {"rule": "squares around faces", "looks_at": "faces", "margin": MARGIN}
    detector.config["input"] |= looking
    return detector


def open_photographs(
    settings: TrainDetectorSettings, progress: "Progress | None" = None
) -> pd.DataFrame:
    """The real photographs of corpora and of plain folders, those that can be read."""
    parts = []
    for corpus in settings.corpora:
        try:
            parts.append(open_corpora((corpus,)).table)
        except UnknownLayout:  # of a corpus that is at fault, fakes would be taken for photographs
            if not corpus.is_dir() or not (paths := list(find_images(corpus))):
                raise
            names = [os.path.relpath(path, corpus) for path in paths]
            source = [name.split(os.sep)[0] if os.sep in name else corpus.name for name in names]
            parts.append(
                pd.DataFrame({"path": paths, "file_name": names, "source": source}).assign(
                    label=0, generator="real", group="", split=""
                )
            )
        parts[-1]["file_name"] = [
            name if len(settings.corpora) == 1 else f"{corpus}/{name}"
            for name in parts[-1]["file_name"]
        ]
    every = pd.concat(parts, ignore_index=True)
    if "identity" in every:
        every["identity"] = every["identity"].fillna("")
    reals = every[(every["label"] == 0) & (every["split"] != "test")].reset_index(drop=True)
    if settings.drop_declared:
        reals = leave_out_declared(reals, find_declared(reals)).reset_index(drop=True)
    if len(reals) == 0:
        named = ", ".join(map(str, settings.corpora))
        raise GanscopeError(f"{named}: --recipe faces learns from real photographs: there are none")
    run = settings.out or Path(".")
    whole, bad = leave_out_unreadable(reals, run, progress)
    whole = whole.reset_index(drop=True)
    whole.attrs = {"dropped": 0, "unreadable": bad.to_dict("records")}
    return whole


def keep_faces(
    folder: Path,
    table: pd.DataFrame,
    size: int,
    finder: Callable[[], Finder],
    progress: "Progress | None" = None,
) -> list[KeptFace]:
    """Find the faces of all photographs, and keep each with what surrounds it, as PNG.

    A search that was killed goes on where it stopped. size: side of what the detector looks at.
    """
    names = "\n".join(table["path"])
    search = finder()
    about = hashlib.sha256(
        f"{size} {ROOM} {SURE} {search.name}\n{names}".encode("utf-8", "surrogateescape")
    ).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    lines = (
        (folder / FOUND).read_text("utf-8").split("\n")[:-1] if (folder / FOUND).exists() else []
    )
    if lines and json.loads(lines[0]) != about:
        lines = []
    if not lines:
        (folder / FOUND).write_text(json.dumps(about) + "\n", "utf-8")
    else:  # a line that was torn is written anew
        write_text(folder / FOUND, "\n".join(lines) + "\n")
    done = [json.loads(line) for line in lines[1:]]
    task = None
    if progress:
        task = progress.add_task("finding faces", total=len(table), completed=len(done), note="")
    with (folder / FOUND).open("a", encoding="utf-8") as listed:
        for row in range(len(done), len(table)):
            found = []
            try:
                pixels = open_image(table["path"][row]).pixels
            except ImageError as error:
                warnings.warn(f"{error}; it is left out", GanscopeWarning, stacklevel=2)
                pixels = np.zeros((1, 1, 3), np.uint8)
            for number, face in enumerate(search.find(pixels)[:MOST]):
                unsure = face.confidence is not None and face.confidence < SURE
                if unsure or min(face.width, face.height) < SMALLEST:
                    continue
                part, inside = _cut_out(pixels, face, round(size * FINE * ROOM / MARGIN))
                name = f"{row:07d}-{number}.png"
                # OpenCV's own writing says nothing of a full disk.
                _, data = cv2.imencode(".png", part[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
                (folder / name).write_bytes(data.tobytes())
                points = None if inside.landmarks is None else inside.landmarks.tolist()
                found.append([name, inside.box, inside.confidence, points])
            listed.write(json.dumps(found) + "\n")
            listed.flush()
            done.append(found)
            if progress and task is not None:
                progress.update(task, completed=row + 1)
    return [
        KeptFace(
            folder / name,
            row,
            Face(tuple(box), sure, None if points is None else np.array(points, np.float32)),
        )
        for row, found in enumerate(done)
        for name, box, sure, points in found
    ]


def _cut_out(pixels: np.ndarray, face: Face, most: int) -> tuple[np.ndarray, Face]:
    """A square around a face, of at most so many pixels a side, and where the face is in it."""
    height, width = pixels.shape[:2]
    top, left, bottom, right = around(face, height, width, ROOM)
    part = np.ascontiguousarray(pixels[top:bottom, left:right])
    scale = min(most / (bottom - top), 1.0)
    if scale < 1:
        part = cv2.resize(part, (most, most), interpolation=cv2.INTER_AREA)
    corner = np.array([left, top], np.float32)
    box = [
        round((edge - start) * scale) for edge, start in zip(face.box, (left, top) * 2, strict=True)
    ]
    side = part.shape[0]
    box = [min(max(edge, 0), side) for edge in box]
    points = None if face.landmarks is None else ((face.landmarks - corner) * scale)
    return part, Face((box[0], box[1], box[2], box[3]), face.confidence, points)


def split_faces(
    table: pd.DataFrame, kept: list[KeptFace], settings: TrainDetectorSettings
) -> pd.DataFrame:
    """The table with splits for which photographs are learned from: as it says itself, or whole
    sources (those of `settings.val_source`, or a share of them), or else photographs, those of one
    person or group together.

    Raises `GanscopeError` where too few faces are left.
    """
    named = ", ".join(map(str, settings.corpora))
    if len(kept) < FEWEST:
        raise GanscopeError(
            f"{named}: {len(kept)} faces of {SMALLEST} pixels or more found in {len(table):,} "
            f"photographs, at least {FEWEST} are needed; add photographs of people"
        )
    faces = pd.Series([one.row for one in kept]).value_counts()
    table = table.assign(faces=faces.reindex(table.index).fillna(0).astype(int))
    source, have = table["source"], table["faces"] > 0
    person = table["group"].where(table["group"] != "", table["file_name"])
    if "identity" in table:
        person = table["identity"].where(table["identity"] != "", person)
    if settings.val_source:
        for name in settings.val_source:
            if name not in set(source):
                raise GanscopeError(f"--val-source {name}: no photographs of this source")
        val = source.isin(settings.val_source)
    elif {"train", "val"} <= set(table["split"][have]):
        val = table["split"] == "val"
    else:
        seed = settings.seed if settings.split_seed is None else settings.split_seed
        by = source if source[have].nunique() >= 5 else person
        counts = table["faces"].groupby(by).sum()
        counts = counts[counts > 0]
        val = pd.Series(False, table.index)
        order = np.random.default_rng(seed).permutation(sorted(counts.index))
        for name in order[: max(len(order) // 3, 1)]:
            # A source with a good part of all faces is one to learn from.
            if counts[name] <= SHARE * len(kept) and len(counts) > 1:
                val |= by == name
            if table["faces"][val].sum() >= SHARE * len(kept):
                break
    table["split"] = np.where(val, "val", "train")
    both = set(person[val & have]) & set(person[~val & have])
    table.attrs["dropped"] = int((person.isin(both) & val & have).sum())
    table.loc[person.isin(both), "split"] = "train"
    for name in ("train", "val"):
        if table["faces"][table["split"] == name].sum() < ENOUGH:
            raise GanscopeError(
                f"{named}: fewer than {ENOUGH} faces are left for the {name} split; add "
                "photographs of other people, or choose another --val-source"
            )
    return table


def make_pair(
    kept: KeptFace, size: int, degrade: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A real face and itself blended, (2, size, size, 3) uint8, cut and changed alike; and where
    the second was changed, (size, size) float32 in [0, 1].
    """
    real = _read(kept.path)
    fake, mask = self_blend(real, kept.face, rng)
    times = rng.uniform(*JITTER)
    moved = rng.uniform(-SHIFT, SHIFT, 2) * times * max(kept.face.width, kept.face.height)
    left, top, right, bottom = kept.face.box
    dx, dy = (int(step) for step in moved)
    face = Face((left + dx, top + dy, right + dx, bottom + dy), 1.0)
    height, width = real.shape[:2]
    y, x, below, beside = around(face, height, width, times)
    parts = [one[y:below, x:beside] for one in (real, fake)]
    changed = np.random.default_rng(int(rng.integers(2**63)))
    seed = int(rng.integers(2**63))
    when = rng.random()
    if changed.random() >= degrade:
        when = 1.0
    if when < 0.4:  # the photograph was compressed, then the face cut out
        parts = [random_degradation(one, np.random.default_rng(seed), 1.0) for one in parts]
    kernel = (cv2.INTER_AREA, cv2.INTER_LINEAR, None, None)[int(changed.integers(4))]
    parts = [_resized(one, size, kernel) for one in parts]
    if 0.3 < when < 0.9:  # a small picture was compressed, perhaps made smaller before
        factor = 1.0 if changed.random() < 0.6 else float(changed.uniform(0.5, 1.3))
        parts = [random_degradation(one, np.random.default_rng(seed + 1), factor) for one in parts]
        parts = [one if len(one) == size else _resized(one, size, None) for one in parts]
    pair = _coloured(np.stack(parts), changed)
    mask = _changed(mask[y:below, x:beside], size)
    if changed.random() < 0.5:
        pair, mask = pair[:, :, ::-1], mask[:, ::-1]
    return np.ascontiguousarray(pair), np.ascontiguousarray(mask, np.float32)


def _changed(mask: np.ndarray, size: int) -> np.ndarray:
    """Where a blending changed anything to speak of, however weakly: (size, size) in [0, 1]."""
    changed = (mask > FAINT).astype(np.float32)
    return cv2.resize(changed, (size, size), interpolation=cv2.INTER_AREA)


def _resized(pixels: np.ndarray, size: int, kernel: int | None) -> np.ndarray:
    """A square part made (size, size, 3); kernel: of OpenCV, None: as faces are judged."""
    if kernel is None:
        return whole_of(np.ascontiguousarray(pixels), size)
    return cv2.resize(pixels, (size, size), interpolation=kernel)


def _coloured(pair: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, gamma and saturation of (2, H, W, 3) uint8, changed alike."""
    if rng.random() < 0.5:
        return pair
    gain, lift, gamma = rng.uniform(0.8, 1.2), rng.uniform(-25, 25), rng.uniform(0.8, 1.25)
    curve = np.clip((np.arange(256) / 255) ** gamma * 255 * gain + lift, 0, 255)
    pair = curve.astype(np.uint8)[pair]
    grey = pair.mean(-1, keepdims=True)
    share = rng.uniform(0.6, 1.3)
    return np.clip(grey + (pair - grey) * share, 0, 255).astype(np.uint8)


def _read(path: Path) -> np.ndarray:
    found = cv2.imread(str(path))
    if found is None:
        raise GanscopeError(f"{path} is missing or damaged; delete its folder and begin anew")
    return np.ascontiguousarray(found[..., ::-1])


def val_views(val: list[KeptFace], size: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each face as it is judged, and itself blended: (2, size, size, 3) uint8, and the mask."""
    for number, kept in enumerate(val):
        real = _read(kept.path)
        fake, mask = self_blend(real, kept.face, np.random.default_rng((seed, 2**31, number)))
        height, width = real.shape[:2]
        y, x, below, beside = around(kept.face, height, width, MARGIN)
        pair = np.stack(
            [whole_of(np.ascontiguousarray(p[y:below, x:beside]), size) for p in (real, fake)]
        )
        yield pair, _changed(mask[y:below, x:beside], size)


@torch.inference_mode()
def look(
    detector: Detector, views: Iterator[np.ndarray], batch_size: int, speed: Speed
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logits (N,) and maps of logits (h, w) of views (size, size, 3) uint8."""
    net, device = WithPlaces(detector), detector.mean.device
    logits: list[np.ndarray] = []
    maps: list[np.ndarray] = []
    waiting: list[np.ndarray] = []

    def judge() -> None:
        with speed.autocast(device):
            logit, local = net(_to_images(np.stack(waiting), device))
        logits.append(logit.float().cpu().numpy())
        maps.extend(local.float().cpu().numpy())
        waiting.clear()

    for view in views:
        waiting.append(view)
        if len(waiting) == batch_size:
            judge()
    if waiting:
        judge()
    return np.concatenate(logits), maps


def _to_images(pixels: np.ndarray, device: torch.device) -> Tensor:
    images = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)
    return images.float().div_(255).contiguous(memory_format=torch.channels_last)


def _learn(
    detector: Detector,
    learn: list[KeptFace],
    val: list[KeptFace],
    table: pd.DataFrame,
    settings: TrainDetectorSettings,
    run: Path,
    accelerator: Any,
    saved: dict[str, Any] | None,
    progress: "Progress | None",
) -> list[dict[str, Any]]:
    """Train; leaves the best averaged weights in the detector. Returns the rows of `losses.csv`."""
    device = accelerator.device
    files, split = table["file_name"].tolist(), table["split"].tolist()
    listed = [f"{one.path.name} {files[one.row]} {split[one.row]}" for one in (*learn, *val)]
    checked = hashlib.sha256("\n".join(listed).encode("utf-8", "surrogateescape")).hexdigest()
    average = detector.to(device).to(memory_format=torch.channels_last).eval()
    average.requires_grad_(False)
    living = copy.deepcopy(average).train().requires_grad_(True)
    with_places = WithPlaces(living)
    own = with_places.own
    peak = settings.learning_rate or average.config["training"]["learning_rate"]
    net, optimizer = accelerator.prepare(
        with_places, torch.optim.AdamW(_parameter_groups(living), peak)
    )
    pairs = max(min(settings.batch_size // 2, len(learn)), 1)
    an_epoch = max(round(len(learn) / pairs), 1)
    by_epoch = settings.steps is None and settings.minutes is None
    budget = Budget(
        settings.steps or an_epoch * settings.epochs,
        None if settings.minutes is None else 60 * settings.minutes,
    )
    parts = settings.epochs if by_epoch else PARTS
    log: list[dict[str, Any]] = []
    best = copy.deepcopy(average.state_dict())
    totals = torch.zeros(2, device=device)
    begun = 0
    if saved:
        with restoring(run):
            fits = saved["checked"] == checked
        if not fits:
            raise GanscopeError(
                f"{run} was begun with other photographs; restore them to continue it, or name "
                "another folder with --out"
            )
        with restoring(run):
            living.load_state_dict(saved["living"])
            average.load_state_dict(saved["average"])
            optimizer.load_state_dict(saved["optimizer"])
            if accelerator.scaler is not None:
                accelerator.scaler.load_state_dict(saved["scaler"])
            log, best, begun = saved["log"], saved["best"], saved["begun"]
            totals = saved["totals"].to(device)
            budget.step, budget.before = saved["step"], saved["seconds"]

    def keep() -> None:
        state = {
            "checked": checked,
            "living": living.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "best": best,
            "log": log,
            "begun": begun,
            "totals": totals,
            "step": budget.step,
            "seconds": budget.spent,
        }
        if accelerator.scaler is not None:
            state["scaler"] = accelerator.scaler.state_dict()
        save_checkpoint(run, state)

    source = table["source"].to_numpy(str)[[one.row for one in learn]]
    _, of, sizes = np.unique(source, return_inverse=True, return_counts=True)
    odds = 1 / np.sqrt(sizes[of])  # large sources more often, but not by their size
    odds = np.cumsum(odds / odds.sum())

    def cut(step: int) -> list[tuple[np.ndarray, np.ndarray]]:
        rng = np.random.default_rng((settings.seed, step))
        places = (rng.random() + np.arange(pairs)) / pairs * odds[-1]
        drawn = np.searchsorted(odds, places, side="right").clip(max=len(learn) - 1)
        seeds = rng.integers(2**63, size=pairs)
        return list(
            threads.map(
                lambda place, seed: make_pair(
                    learn[place], average.size, settings.degrade or 0.0, np.random.default_rng(seed)
                ),
                drawn.tolist(),
                seeds.tolist(),
            )
        )

    task = None
    if progress:
        task = progress.add_task(f"training {settings.detector} on faces", total=1.0, note="")
    many = 1 if device.type == "cpu" else os.cpu_count() or 1
    cv2.setNumThreads(1)
    speed = Speed(precision_of(settings, device))
    now = budget.share(accelerator)
    last, kept_at, seen_at, seen_from = (
        int(now * parts + 1e-9),
        time.perf_counter(),
        time.perf_counter(),
        budget.step,
    )
    with (
        ThreadPoolExecutor(settings.workers or many) as threads,
        ThreadPoolExecutor(1) as ahead,
    ):
        following = ahead.submit(cut, budget.step)
        while now < 1 or not log:
            torch.manual_seed(settings.seed + 1_000_003 * budget.step)
            made = following.result()
            following = ahead.submit(cut, budget.step + 1)
            images = _to_images(np.concatenate([pair for pair, _ in made]), device)
            masks = torch.from_numpy(np.stack([mask for _, mask in made])).to(device)
            masks = torch.stack([torch.zeros_like(masks), masks], 1).flatten(0, 1)
            targets = torch.tensor([0.0, 1.0], device=device).repeat(len(made))
            rate = peak * _schedule_of(now, budget, settings)
            for group in optimizer.param_groups:
                group["lr"] = rate
            logits, local = net(images)
            image = F.binary_cross_entropy_with_logits(logits, targets)
            places = places_loss(local, masks, own).mean()
            accelerator.backward(image + WEIGHT * places)
            accelerator.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            average_into(average, living, min(EMA, (1 + budget.step) / (10 + budget.step)))
            totals += torch.stack([image, places]).detach()
            budget.step += 1
            now = budget.share(accelerator)
            if int(now * parts + 1e-9) > last or (now >= 1 and not log):
                last = int(now * parts + 1e-9)
                mean = (totals / max(budget.step - begun, 1)).tolist()
                if not all(map(math.isfinite, mean)):
                    raise GanscopeError(
                        f"the loss became infinite before step {budget.step}; lower "
                        f"--learning-rate (now {peak:g}) or take --precision fp32"
                    )
                seconds = time.perf_counter() - seen_at
                row = {"epoch": last, "step": budget.step, "loss": mean[0], "places_loss": mean[1]}
                row |= _try(average, val, settings, speed)
                row |= {"learning_rate": rate}
                row["images_per_second"] = (budget.step - seen_from) * 2 * pairs / seconds
                log.append(row)
                if _best(log) == len(log):
                    best = copy.deepcopy(average.state_dict())
                totals, begun = torch.zeros_like(totals), budget.step
                write_text(run / LOSSES, pd.DataFrame(log).to_csv(index=False, float_format="%.6g"))
                keep()
                kept_at = seen_at = time.perf_counter()
                seen_from = budget.step
            elif time.perf_counter() - kept_at > CHECKPOINT_SECONDS:
                keep()
                kept_at = time.perf_counter()
            if progress and task is not None:
                note = f"val AUROC {log[-1]['val_auroc']:.3f}" if log else ""
                progress.update(task, completed=now, note=note)
    average.load_state_dict(best)
    average.config["training"] = {
        **plain(settings),
        "learning_rate": peak,
        "precision": precision_of(settings, device),
        "steps_run": budget.step,
        "epochs_run": budget.step / an_epoch,
        "best_epoch": _best(log),
    }
    return log


def _schedule_of(now: float, budget: Budget, settings: TrainDetectorSettings) -> float:
    """Learning rate as a share of its peak."""
    if settings.minutes is None:
        return _schedule(budget.step, budget.steps)
    return _schedule(int(now * 10_000), 10_000)


def _best(log: list[dict[str, Any]]) -> int:
    """Number (from 1) of the row with the best validation AUROC; of equals, the least loss."""
    return 1 + max(range(len(log)), key=lambda i: (log[i]["val_auroc"], -log[i]["val_loss"]))


def _try(
    average: Detector, val: list[KeptFace], settings: TrainDetectorSettings, speed: Speed
) -> dict[str, float]:
    """AUROC and loss on validation faces, and how well places are found."""
    masks: list[np.ndarray] = []

    def views() -> Iterator[np.ndarray]:
        for pair, mask in val_views(val, average.size, settings.seed):
            masks.append(mask)
            yield from pair

    logit, maps = look(average, views(), settings.batch_size, speed)
    if not np.isfinite(logit).all():
        return {"val_loss": math.inf, "val_auroc": 0.0}
    target = np.tile([0, 1], len(val))
    loss = np.logaddexp(0, np.where(target == 1, -logit, logit)).mean()
    where = measure_places(maps[1::2], masks)
    return {
        "val_loss": float(loss),
        "val_auroc": float(roc_auc_score(target, logit)),
        "val_pixel_auroc": where["pixel_auroc"],
        "val_iou": where["iou"],
    }


def _finish(
    run: Path,
    settings: TrainDetectorSettings,
    detector: Detector,
    learn: list[KeptFace],
    val: list[KeptFace],
    table: pd.DataFrame,
    log: list[dict[str, Any]],
) -> None:
    """Calibrate and set thresholds on the validation faces, and write the run folder's files."""
    detector.load_state_dict(  # as they will be loaded
        {
            k: v.half().float() if v.is_floating_point() else v
            for k, v in detector.state_dict().items()
        }
    )
    masks: list[np.ndarray] = []

    def views() -> Iterator[np.ndarray]:
        for pair, mask in val_views(val, detector.size, settings.seed):
            masks.append(mask)
            yield from pair

    logit, maps = look(detector, views(), settings.batch_size, Speed("fp32"))
    net: Any = detector.net
    if isinstance(net, TimmNet) and net.where is not None:
        shift = best_shift(maps[1::2], masks)
        where: Any = net.where
        with torch.no_grad():
            where["head"].bias += shift
        maps = [one + shift for one in maps]
    rows = np.repeat([one.row for one in val], 2)
    made = np.tile([0, 1], len(val))
    scores = table.iloc[rows].reset_index(drop=True)
    scores["face"] = np.repeat([one.path.name for one in val], 2)
    scores["label"], scores["logit"], scores["score"] = made, logit, sigmoid(logit)
    scores["generator"] = np.where(made == 1, "selfblend", "real")
    photographs = scores["group"].where(scores["group"] != "", scores["file_name"])
    detector.config["calibration"] = calibrate(logit, made)
    detector.config["thresholds"] = choose_thresholds(
        scores["score"].to_numpy(), made, scores["source"].to_numpy(str), photographs.to_numpy()
    )
    detector.config["input"]["smallest"] = SMALLEST
    scores["probability"] = detector.probability(logit)
    scores["verdict"] = [detector.verdict(score) for score in scores["score"]]
    detector.config["false_alarms"] = count_false_alarms(scores[made == 0])
    images = {"train": {"real": len(learn)}, "val": {"real": len(val), "selfblend": len(val)}}
    where = measure_places(maps[1::2], masks)
    metrics: dict[str, Any] = {
        "epochs": len(log),
        "best_epoch": detector.config["training"]["best_epoch"],
        "calibration": detector.config["calibration"],
        "thresholds": detector.thresholds,
        "false_alarms": detector.config["false_alarms"],
        "val_fakes_found": float((scores["verdict"][made == 1] == "fake").mean()),
        "val_photographs": int(photographs.nunique()),
        "photographs": {n: int((table["split"][table["faces"] > 0] == n).sum()) for n in images},
        "images": images,
        "dropped": table.attrs["dropped"],
        "unreadable": len(table.attrs["unreadable"]),
        "places": {k: None if v != v else v for k, v in where.items()},
        "val": evaluate(scores, detector.thresholds["fake"]),
    }
    detector.config["training"]["images"] = images
    detector.config["versions"] = {
        "ganscope": ganscope.__version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
    }
    detector.learned = learned_from(table[table["faces"] > 0]).and_of(
        [start_record(settings)] if starts_from_a_detector(settings) else []
    )
    detector.card = write_face_card(run, settings, detector, metrics)
    write_text(run / SCORES, guard_table(scores).to_csv(index=False))
    write_json(run / METRICS, metrics)
    plots.draw_losses(run / "loss.png", pd.DataFrame(log))
    plots.draw_roc(run / "roc.png", {"val": (made, scores["score"].to_numpy())})
    detector.cpu().save(run)
    (run / CHECKPOINT).unlink(missing_ok=True)
    shutil.rmtree(run / KEPT, ignore_errors=True)
