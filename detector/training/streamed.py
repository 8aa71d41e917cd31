"""Training on streams: pictures are learned from as they come, and never all listed or kept.

The pictures that are held out are gathered first, some of each shard, into the run folder; the rest
is read again and again, each process its own part, until the budget of steps is spent. Within a
pass pictures are mixed in a stock of at most `STOCK` a class, and both classes come alike. All that
is random comes from (seed, pass, process), so a training that is resumed goes the same way.
"""

import copy
import shutil
import time
import warnings
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object

from ganscope.averaged_weights import average_into
from ganscope.config import TrainDetectorSettings, plain, write_text
from ganscope.datasets.copies import name_some
from ganscope.datasets.corpus import open_corpus
from ganscope.datasets.streams import FOLDER, Record, Stream, is_held_out
from ganscope.detector.model import Detector
from ganscope.detector.training.evaluation import ENOUGH, finish_run
from ganscope.detector.training.loop import (
    EMA,
    _best_epoch,
    _choose_speed,
    _note,
    _parameter_groups,
    _schedule,
    _validate,
    to_images,
)
from ganscope.detector.training.record import STREAMED
from ganscope.detector.training.run import FINE_TUNING, LOSSES, OpenOther, open_run, refuse_unused
from ganscope.detector.training.views import Key, Loader, Views, jpeg_qualities
from ganscope.devices import by_main_process, pick_device, processes, remembered
from ganscope.errors import GanscopeError, GanscopeWarning, ImageError
from ganscope.files import guard_table
from ganscope.folders import CHECKPOINT, SPEED, restoring, save_checkpoint
from ganscope.images import NamedImage, open_image

if TYPE_CHECKING:
    from rich.progress import Progress

UNUSED = ("fuse", "val_generator", "test_generator", "val_source", "drop_declared", "soup")
"""Settings that need a corpus that can be listed."""
ALSO_UNUSED = ("epochs", "patience", "mix", "pairs", "hard_examples")
RECIPES = ("full", "cnndetect", "npr")
HELD_OUT = "held-out"
"""Folder of the run with the pictures to validate on, a corpus of its own."""
EACH = 500
"""Pictures of each class to validate on."""
STOCK, STOCK_BYTES = 500, 2**28
"""Pictures of a class that are mixed, and what they may weigh where they are in memory."""
PARTS = 10
"""So often it is validated, and has a row in losses.csv."""
CHECKPOINT_SECONDS, ASKED_EVERY = 30.0, 20
"""Between checkpoints; and steps after which several processes ask whether it is time."""
AHEAD = 3
"""Batches that are being read and cut while the network learns."""


class At(NamedTuple):
    """How far the drawing of a process has come."""

    pass_: int
    drawn: int
    """In this pass."""


def refuse_for_streams(settings: TrainDetectorSettings) -> None:
    """Raise `GanscopeError` for what cannot be done with a stream."""
    if settings.recipe not in RECIPES:
        raise GanscopeError(
            f"--data: --recipe {settings.recipe} needs a corpus on a disk; take --recipe full, or "
            "name a corpus"
        )
    if settings.steps is None:
        raise GanscopeError("--data: nobody knows how long a stream is; say --steps")
    refuse_unused(settings, [name for name in FINE_TUNING if name != "steps"])
    usual = TrainDetectorSettings(recipe=settings.recipe)
    for name in (*UNUSED, *ALSO_UNUSED):
        if getattr(settings, name) != getattr(usual, name):
            raise GanscopeError(
                f"--{name.replace('_', '-')}: --data has no use for it; leave it out"
            )


def train_streamed(
    settings: TrainDetectorSettings, open_other: OpenOther, progress: "Progress | None" = None
) -> Path:
    """Train on streams for `settings.steps` updates; `train_detector` describes the run folder.

    Raises `GanscopeError` as `train_detector` does, and for streams that cannot be read or whose
    labels are not understood.
    """
    device = pick_device(settings.device)
    state = processes(device)
    stream = Stream(
        settings.data, settings.label_column, settings.group_column, settings.allow_private
    )
    torch.manual_seed(settings.seed)
    average = Detector.create(settings.detector, size=settings.size, pretrained=settings.pretrained)
    run, saved = open_run(settings, state)
    if saved and saved.get("processes") != state.num_processes:
        raise GanscopeError(
            f"{run} was begun with another number of processes; start as many to continue it, or "
            "name another folder with --out"
        )
    salt = settings.split_seed or 0
    by_main_process(lambda: keep_held_out(stream, run / HELD_OUT, salt, settings.seed, progress))
    table = open_corpus(run / HELD_OUT).table.assign(split="val")
    table.attrs["dropped"] = 0
    speed = remembered(
        run / SPEED, lambda: _choose_speed(settings, average, state.device, settings.batch_size)
    )
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
    views = Views(
        table,
        size=average.size,
        degrade=settings.degrade or 0.0,
        qualities=jpeg_qualities(table),
        seed=settings.seed,
        recipe=settings.recipe,
    )
    # Two rows more stand for the stream's pictures of either class.
    views.labels += [0, 1]
    views.twins = np.append(views.twins, [-1, -1])
    labels = torch.from_numpy(table["label"].to_numpy(np.float32))
    parts = {"detector": detector, "average": average, "optimizer": optimizer}
    if accelerator.scaler is not None:
        parts["scaler"] = accelerator.scaler
    log: list[dict[str, Any]] = []
    best = copy.deepcopy(average.state_dict())
    at, step, sums = At(0, 0), 0, [0.0, 0.0]
    counts = {"real": 0, "fake": 0}
    if saved:
        with restoring(run):
            for name, part in parts.items():
                part.load_state_dict(saved[name])
            average.load_state_dict(saved["best"])
            average.load_state_dict(saved["average"])
            log, best, step = saved["log"], saved["best"], int(saved["step"])
            at, sums = At(*saved["at"][accelerator.process_index]), list(saved["sums"])
            counts = dict(saved["counts"])
    place = (accelerator.process_index, accelerator.num_processes)
    steps = settings.steps or 1
    task = None
    if progress is not None:
        said = f"training {settings.detector}"
        task = progress.add_task(said, total=steps, completed=step, note="")

    def keep() -> None:
        places = gather_object([tuple(at)])
        if main:
            states = {name: part.state_dict() for name, part in parts.items()}
            states |= {"best": best, "log": log, "step": step, "at": places, "sums": sums}
            states |= {"processes": place[1], "counts": counts}
            save_checkpoint(run, states)

    lost: list[str] = []
    kept_at = seen_at = time.perf_counter()
    seen_from, every = step, max(steps // PARTS, 1)
    drawn = draw_records(stream, at, place, settings.seed, salt)
    with Batches(drawn, views, settings.batch_size, place, lost) as batches:
        while step < steps:
            pixels, targets, at = next(batches)
            torch.manual_seed(settings.seed + 1_000_003 * step + 7919 * place[0])
            rate = peak * _schedule(step, steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            images, targets = to_images(pixels, device, speed), targets.to(device)
            loss = F.binary_cross_entropy_with_logits(net(images), targets)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            average_into(average, detector, min(EMA, (1 + step) / (10 + step)))
            step += 1
            sums = [sums[0] + float(loss.detach()), sums[1] + 1]
            fakes = int(targets.sum())
            counts["fake"] += fakes
            counts["real"] += len(targets) - fakes
            if progress and task is not None:
                progress.update(task, advance=1, note=_note(log))
            if step % every == 0 or step == steps:
                mean = float(accelerator.reduce(torch.tensor(sums[0] / sums[1]), "mean"))
                if not np.isfinite(mean):
                    raise GanscopeError(
                        f"the loss became infinite before step {step}; lower --learning-rate "
                        f"(now {peak:g}) or take --precision fp32"
                    )
                seconds = time.perf_counter() - seen_at
                with Loader(views, 0) as loader:
                    val = np.arange(len(table))
                    auroc, val_loss, _ = _validate(
                        average, val, labels, loader, settings, accelerator, speed
                    )
                log.append(
                    {
                        "epoch": len(log) + 1,
                        "step": step,
                        "loss": mean,
                        "val_loss": val_loss,
                        "val_auroc": auroc,
                        "learning_rate": rate,
                        "images_per_second": (step - seen_from)
                        * settings.batch_size
                        * place[1]
                        / max(seconds, 1e-9),
                    }
                )
                if _best_epoch(log) == len(log):
                    best = copy.deepcopy(average.state_dict())
                sums = [0.0, 0.0]
                keep()
                kept_at = seen_at = time.perf_counter()
                seen_from = step
                if main:
                    text = pd.DataFrame(log).to_csv(index=False, float_format="%.6g")
                    write_text(run / LOSSES, text)
            elif _is_time(step, kept_at, accelerator):
                keep()
                kept_at = time.perf_counter()
    every_count = gather_object([counts])

    def finish() -> None:
        if lost:
            warnings.warn(
                f"{len(lost):,} pictures of the stream cannot be read and were passed over: "
                f"{name_some(lost)}",
                GanscopeWarning,
                stacklevel=2,
            )
        average.load_state_dict(best)
        average.config["training"] = {
            **plain(settings),
            "learning_rate": peak,
            "precision": speed.precision,
            "channels_last": speed.channels_last,
            "steps_run": step,
            "epochs_run": len(log),
            "best_epoch": _best_epoch(log),
        }
        learned = {name: sum(one[name] for one in every_count) for name in counts}
        table.attrs[STREAMED] = learned
        finish_run(run, settings, average, views, table, log)
        for name in (CHECKPOINT, SPEED):
            (run / name).unlink(missing_ok=True)
        shutil.rmtree(run / HELD_OUT)

    by_main_process(finish)
    return run


def keep_held_out(
    stream: Stream, folder: Path, salt: int, seed: int, progress: "Progress | None" = None
) -> None:
    """Write some of the held-out pictures of each shard into a corpus, unless that is done.

    Raises `GanscopeError` if there are fewer than `ENOUGH` of a class.
    """
    if (folder / "metadata.csv").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    task = None
    if progress is not None:
        task = progress.add_task("gathering the validation", total=2 * EACH, note="")
    order = np.random.default_rng(seed).permutation(len(stream.parts))
    most = -(-EACH // len(order))
    rows: list[tuple[str, int, str, str]] = []
    found, seen = [0, 0], 0
    for number in order:
        here = [0, 0]
        for record in stream.part(stream.parts[number]):
            seen += 1
            label = record.label
            if here[label] >= most or not is_held_out(record.group, salt):
                continue
            try:
                content = record.read()
                open_image(NamedImage(record.key, content))
            except ImageError:
                continue  # the training tells of those that it meets
            name = f"{('real', 'fake')[label]}/{len(rows):06d}{record.suffix}"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
            rows.append((name, label, record.group, record.key))
            here[label] += 1
            if progress and task is not None:
                progress.update(task, advance=1)
            if min(here) >= most:
                break
        found = [found[0] + here[0], found[1] + here[1]]
    if progress and task is not None:
        progress.remove_task(task)
    if min(found) < ENOUGH:
        raise GanscopeError(
            f"--data: of {seen:,} pictures {found[0]} real and {found[1]} fake ones are held out "
            f"to validate on, at least {ENOUGH} of each are needed; add pictures of both classes "
            f"(--label-column says which is which, {FOLDER} for the folder)"
        )
    manifest = pd.DataFrame(rows, columns=["file_name", "label", "group", "key"])
    write_text(folder / "metadata.csv", guard_table(manifest).to_csv(index=False))


def draw_records(
    stream: Stream, at: At, place: tuple[int, int], seed: int, salt: int
) -> Generator[tuple[Record, At]]:
    """Pictures to learn from, fake and real in turn, for ever, and how far that has come.

    at: where to go on: what was drawn in that pass before is passed over, unread where it can be.
    Where one class runs out, the pass is over; of a class that is much larger, what finds no room
    in the stock waits for another pass.
    """
    pass_, skip = at
    while True:
        records = iter(stream.records(np.random.default_rng((seed, pass_)), place))
        rng = np.random.default_rng((seed, pass_, place[0]))
        stock: tuple[list[Record], list[Record]] = ([], [])
        weights, more, drawn, passed = [0, 0], True, 0, [0, 0]
        while True:
            label = 1 - drawn % 2
            while more and (
                not stock[label] or (min(map(len, stock)) < STOCK // 2 and _room(stock, weights))
            ):
                record = next(records, None)
                if record is None:
                    more = False
                    break
                if is_held_out(record.group, salt):
                    continue
                own = record.label
                if len(stock[own]) >= STOCK or weights[own] >= STOCK_BYTES:
                    passed[own] += 1
                    continue
                stock[own].append(record)
                weights[own] += record.weight
            if not stock[label]:
                break
            i = int(rng.integers(len(stock[label])))
            stock[label][i], stock[label][-1] = stock[label][-1], stock[label][i]
            record = stock[label].pop()
            weights[label] -= record.weight
            drawn += 1
            if drawn > skip:
                yield record, At(pass_, drawn)
        if not drawn or (drawn < 2 and not skip):
            raise GanscopeError(
                f"--data: process {place[0] + 1} of {place[1]} meets no pictures of both classes; "
                "mix the classes within the shards, or start fewer processes"
            )
        if max(passed) > drawn and pass_ == 0 and not skip:
            warnings.warn(
                f"{max(passed):,} pictures of the stream were passed over where {drawn:,} were "
                "learned from: its classes come one after the other, or one is much larger; "
                "mix them within the shards",
                GanscopeWarning,
                stacklevel=2,
            )
        pass_, skip = pass_ + 1, 0


def _room(stock: tuple[list[Record], list[Record]], weights: list[int]) -> bool:
    return all(
        len(one) < STOCK and weight < STOCK_BYTES
        for one, weight in zip(stock, weights, strict=True)
    )


class Batches:
    """Batches of views, read and cut in threads while the network learns.

    Gives pixels (n, 3, size, size) uint8, labels (n,) float32 and how far the drawing has come;
    lost: where names of pictures go that cannot be read, and are left out of their batch.
    """

    def __init__(
        self,
        drawn: Generator[tuple[Record, At]],
        views: Views,
        size: int,
        place: tuple[int, int],
        lost: list[str],
    ):
        self.drawn, self.views, self.size, self.place, self.lost = drawn, views, size, place, lost
        self._coming: deque[tuple[list[Record], list[Future[np.ndarray | None]], At]] = deque()

    def __enter__(self) -> "Batches":
        self._opencv_threads = cv2.getNumThreads()
        cv2.setNumThreads(1)  # pictures run beside each other, each in one thread
        self._threads = ThreadPoolExecutor(max(torch.get_num_threads(), 1))
        return self

    def __exit__(self, *_: object) -> None:
        cv2.setNumThreads(self._opencv_threads)
        self._threads.shutdown(cancel_futures=True)
        self.drawn.close()

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor, At]:
        while len(self._coming) < AHEAD:
            some = [next(self.drawn) for _ in range(self.size)]
            cut = [self._threads.submit(self._cut, *one) for one in some]
            self._coming.append(([record for record, _ in some], cut, some[-1][1]))
        records, cut, at = self._coming.popleft()
        pixels, labels = [], []
        for record, future in zip(records, cut, strict=True):
            view = future.result()
            if view is None:
                self.lost.append(record.key)
            else:
                pixels.append(view)
                labels.append(float(record.label))
        if not pixels:
            raise GanscopeError(
                f"--data: none of {len(records)} pictures in a row can be read: "
                f"{name_some([record.key for record in records])}"
            )
        whole = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        return whole, torch.tensor(labels), at

    def _cut(self, record: Record, at: At) -> np.ndarray | None:
        try:
            opened = open_image(NamedImage(record.key, record.read()))
        except ImageError:
            return None
        draw = at.drawn * self.place[1] + self.place[0]
        row = len(self.views.paths) + record.label
        return self.views.cut(opened, Key(at.pass_, draw, row, True))


def _is_time(step: int, kept_at: float, accelerator: Accelerator) -> bool:
    """Whether a checkpoint is due; the main process decides for all."""
    due = time.perf_counter() - kept_at > CHECKPOINT_SECONDS
    if accelerator.num_processes == 1:
        return due
    if step % ASKED_EVERY:
        return False
    said = torch.tensor(float(due), device=accelerator.device)
    return bool(broadcast(said))
