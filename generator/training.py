"""Training a generator: one visible loop for all architectures.

All randomness comes from (seed, step, process), so a run that was killed and resumed ends in the
same weights as one that was not.
"""

import copy
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState

import ganscope
from ganscope.config import (
    TrainGeneratorSettings,
    changed,
    next_free,
    plain,
    read_json,
    write_json,
    write_text,
)
from ganscope.datasets.sources import Source, open_source, random_crop
from ganscope.devices import Speed, fastest, pick_device, processes, remembered
from ganscope.errors import GanscopeError
from ganscope.folders import CHECKPOINT, CONFIG, SPEED, load_checkpoint, save_checkpoint
from ganscope.generator.architecture import GENERATOR, Architecture, Batch, Play
from ganscope.generator.architectures import architectures
from ganscope.generator.model import Generator
from ganscope.generator.networks import average_into

SETTINGS, LOSSES, SAMPLES = "settings.json", "losses.csv", "samples"
IGNORED = ("out", "device", "steps", "sample_every")
"""Settings that may differ when a run is continued: it can be made longer or shorter."""
GRID = 8
"""Sample grids are GRID x GRID fakes."""


def train_generator(
    settings: TrainGeneratorSettings, report: Callable[[dict[str, Any]], None] | None = None
) -> Path:
    """Train a generator; returns its run folder.

    The folder holds the averaged generator (`config.json`, `model.safetensors`, `README.md`),
    `losses.csv`, `losses.png` and a sample grid an interval. An unfinished run with the same
    settings is continued. `report` is called after every step with step, steps and the losses.

    Raises `GanscopeError` for an unknown architecture or source, settings that do not go together,
    and for a folder that holds a finished run or one with other settings.
    """
    architecture = architectures[settings.generator]
    _check(settings, architecture)
    device = pick_device(settings.device)
    source = open_source(settings.real)
    classes = _classes(settings, architecture, source)
    state = processes(device)
    run = _open_run(settings, state)
    torch.manual_seed(settings.seed)
    average = Generator(
        {
            "architecture": settings.generator,
            "arguments": architecture.arguments(settings, classes),
        }
    )
    networks = {
        GENERATOR: copy.deepcopy(average.net),
        **architecture.opponents(settings, classes),
    }
    saved = load_checkpoint(run)
    speed = remembered(run / SPEED, lambda: _measure(settings, architecture, classes, state.device))
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision={"fp32": "no"}.get(speed.precision, speed.precision),
        # Two forward passes come before a backward; batch norm's statistics stay each process' own.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    rate = settings.learning_rate or architecture.learning_rate
    for network in networks.values():
        network.to(memory_format=speed.layout)
    optimizers = {n: architecture.optimizer(net, rate) for n, net in networks.items()}
    play = Play(
        {n: accelerator.prepare(net) for n, net in networks.items()},
        {n: accelerator.prepare(optimizer) for n, optimizer in optimizers.items()},
        accelerator.backward,
        settings,
        accelerator.device,
        architecture.latent_dim,
    )
    average.to(accelerator.device).eval()
    parts: dict[str, Any] = {
        "average": average,
        **networks,
        **{f"{name} optimizer": optimizer for name, optimizer in play.optimizers.items()},
    }
    if accelerator.scaler is not None:
        parts["scaler"] = accelerator.scaler
    if saved:
        play.step = saved["step"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    log = _read_log(run, play.step)
    watch = accelerator.is_main_process
    if watch and not saved:
        _save_samples(average, run, 0)

    batches = _batches(source, classes, settings, play.step * architecture.draws, state)
    while play.step < settings.steps:
        torch.manual_seed(hash((settings.seed, play.step, accelerator.process_index)))
        started = time.perf_counter()
        drawn = [_moved(next(batches), play.device, speed) for _ in range(architecture.draws)]
        scalars = architecture.step(play, drawn)
        decay = min(settings.ema, 1 - 10 / (10 + play.step))
        average_into(average.net, networks[GENERATOR], decay)

        play.step += 1
        values = torch.stack([scalar.float() for scalar in scalars.values()]).tolist()
        row = {
            "step": play.step,
            **dict(zip(scalars, values, strict=True)),
            "images_per_second": settings.batch_size
            * architecture.draws
            / (time.perf_counter() - started),
        }
        if not np.isfinite(values).all():
            worst = ", ".join(f"{k} {row[k]:g}" for k in scalars if not np.isfinite(row[k]))
            raise GanscopeError(
                f"the training left the finite numbers at step {play.step} ({worst}); "
                f"lower --learning-rate (now {rate:g})"
            )
        log.append(row)
        if report and watch:
            report({**row, "steps": settings.steps, "run": run})
        if watch and (play.step % settings.sample_every == 0 or play.step == settings.steps):
            _save_samples(average, run, play.step)
            _write_log(run, log)
            states = {name: part.state_dict() for name, part in parts.items()}
            save_checkpoint(run, {"step": play.step, **states})

    accelerator.wait_for_everyone()
    if watch:
        _finish(settings, run, average, source, log)
    accelerator.wait_for_everyone()
    return run


def _check(settings: TrainGeneratorSettings, architecture: Architecture) -> None:
    """Refuse settings that do not go together."""
    if settings.size not in architecture.sizes:
        known = ", ".join(map(str, architecture.sizes))
        raise GanscopeError(
            f"--size {settings.size}: {settings.generator} makes images of {known} pixels a side"
        )
    if settings.loss and settings.loss not in getattr(architecture, "losses", ()):
        raise GanscopeError(f"--loss: {settings.generator} has a loss of its own; leave it out")


def _classes(
    settings: TrainGeneratorSettings, architecture: Architecture, source: Source
) -> list[str]:
    """Names of the source's classes in order, for an architecture that is told them."""
    if not architecture.conditional:
        return []
    classes = sorted(set(source.classes or ()))
    if len(classes) < 2:
        raise GanscopeError(
            f"--real {settings.real}: {settings.generator} needs labelled photographs; name a "
            "folder with one subfolder a class, or a data set with labels, such as digits"
        )
    return classes


def _open_run(settings: TrainGeneratorSettings, state: PartialState) -> Path:
    """Make or re-enter the run folder; refuse a finished one and one begun with other settings."""
    run = settings.out or next_free(
        Path("runs") / settings.generator, lambda p: (p / CONFIG).exists()
    )
    if (run / CONFIG).exists():
        raise GanscopeError(f"{run} holds a finished network; name another folder with --out")
    if (run / SETTINGS).exists():
        flags = changed(settings, read_json(run / SETTINGS), ignore=IGNORED)
        if flags:
            raise GanscopeError(
                f"{run} holds an unfinished run with other settings ({', '.join(flags)}); "
                "repeat its settings to continue it, or name another folder with --out"
            )
    elif run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise GanscopeError(f"{run} exists and is not a run of train-generator; name another --out")
    state.wait_for_everyone()  # all have looked before one writes
    if state.is_main_process:
        try:
            (run / SAMPLES).mkdir(parents=True, exist_ok=True)
            write_json(run / SETTINGS, plain(settings))
        except OSError as error:
            raise GanscopeError(f"{run}: cannot be written ({error.strerror})") from None
    return run


def _batches(
    source: Source,
    classes: list[str],
    settings: TrainGeneratorSettings,
    first: int,
    state: PartialState,
) -> Iterator[Batch]:
    """Batches number `first`, `first` + 1, ... of random crops, prepared ahead."""
    number_of = {name: i for i, name in enumerate(classes)}

    def make(number: int) -> Batch:
        rng = np.random.default_rng((settings.seed, number, state.process_index))
        crops = [
            random_crop(source, settings.size, rng, settings.zoom)
            for _ in range(settings.batch_size)
        ]
        mirrored = [
            crop.pixels[:, :: rng.choice([1, -1])] if settings.mirror else crop.pixels
            for crop in crops
        ]
        images = torch.from_numpy(np.stack(mirrored)).permute(0, 3, 1, 2).float() / 127.5 - 1
        if not number_of or source.classes is None:
            return Batch(images)
        return Batch(
            images, torch.tensor([number_of[source.classes[crop.number]] for crop in crops])
        )

    with ThreadPoolExecutor(1) as pool:
        ahead = deque(pool.submit(make, first + i) for i in range(3))
        for number in itertools.count(first + 3):
            yield ahead.popleft().result()
            ahead.append(pool.submit(make, number))


def _moved(batch: Batch, device: torch.device, speed: Speed) -> Batch:
    return Batch(
        batch.images.to(device, memory_format=speed.layout),
        None if batch.labels is None else batch.labels.to(device),
        None if batch.inputs is None else batch.inputs.to(device, memory_format=speed.layout),
    )


def _measure(
    settings: TrainGeneratorSettings,
    architecture: Architecture,
    classes: list[str],
    device: torch.device,
) -> Speed:
    """Find the quickest precision and layout for a step of this training."""
    networks = {
        GENERATOR: architecture.generator(**architecture.arguments(settings, classes)),
        **architecture.opponents(settings, classes),
    }
    optimizers = {n: architecture.optimizer(net.to(device), 1e-6) for n, net in networks.items()}
    play = Play(
        networks, optimizers, lambda x: x.backward(), settings, device, architecture.latent_dim
    )
    shape = (min(settings.batch_size, 32), 3, settings.size, settings.size)
    random = Batch(
        torch.rand(shape) * 2 - 1,
        torch.randint(len(classes), shape[:1]) if classes else None,
        torch.rand(shape) * 2 - 1,
    )

    def step(speed: Speed) -> None:
        for network in networks.values():
            network.to(memory_format=speed.layout)
        with speed.autocast(device):
            architecture.step(play, [_moved(random, device, speed)] * architecture.draws)

    return fastest(step, device, settings.precision)


def _read_log(run: Path, step: int) -> list[dict[str, Any]]:
    path = run / LOSSES
    if not step or not path.exists():
        return []
    table = pd.read_csv(path)
    return table[table["step"] <= step].to_dict("records")  # type: ignore[return-value]


def _write_log(run: Path, log: list[dict[str, Any]]) -> None:
    write_text(run / LOSSES, pd.DataFrame(log).to_csv(index=False, float_format="%.6g"))


def sample_grid(
    generator: Generator, seed: int = 0, rows: int = GRID, columns: int = GRID
) -> np.ndarray:
    """Fakes number 0, 1, ... of `seed` in one picture, (rows * size, columns * size, 3) uint8.

    A conditional generator makes one class a row.
    """
    classes = len(generator.classes)
    numbers = range(rows * columns)
    labels = [i // columns % classes for i in numbers] if classes else None
    made = generator.make(seed, numbers, labels=labels)
    size = generator.size
    return (
        made.reshape(rows, columns, size, size, 3)
        .swapaxes(1, 2)
        .reshape(rows * size, columns * size, 3)
    )


def _save_samples(generator: Generator, run: Path, step: int) -> None:
    part = run / SAMPLES / ".part.png"
    cv2.imwrite(str(part), sample_grid(generator)[..., ::-1])
    os.replace(part, run / SAMPLES / f"{step:06d}.png")


def _finish(
    settings: TrainGeneratorSettings,
    run: Path,
    average: Generator,
    source: Source,
    log: list[dict[str, Any]],
) -> None:
    """Draw the losses, write the card and, last of all, the network that marks the run finished."""
    _draw_losses(run, log)
    average.config |= {
        "training": {**plain(settings), "steps": len(log), "photographs": len(source)},
        "versions": {"ganscope": ganscope.__version__, "torch": torch.__version__},
    }
    average.card = _card(settings, source, len(log))
    average.to("cpu").save(run)
    for name in (CHECKPOINT, SPEED):
        (run / name).unlink(missing_ok=True)


_LEGEND = {
    "d_loss": "discriminator",
    "g_loss": "generator",
    "d_real": "real",
    "d_fake": "fake",
}


def _draw_losses(run: Path, log: list[dict[str, Any]]) -> None:
    from matplotlib.figure import Figure

    table = pd.DataFrame(log)
    smooth = table.rolling(max(len(table) // 100, 1), min_periods=1).mean()
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in table.columns.drop(["step", "images_per_second"]):
        axes = left if name.endswith("_loss") else right
        axes.plot(table["step"], smooth[name], label=_LEGEND.get(name, name.removesuffix("_loss")))
    left.set(title="loss (running mean)", xlabel="step")
    right.set(title="discriminator's mean logit", xlabel="step")
    if not right.lines:
        right.remove()
    for axes in figure.axes:
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    part = run / ".losses.part.png"
    figure.savefig(part, dpi=120)
    os.replace(part, run / "losses.png")


def _card(settings: TrainGeneratorSettings, source: Source, steps: int) -> str:
    batch = settings.batch_size
    return f"""---
library_name: ganscope
tags: [ganscope, {settings.generator}]
---
# A {settings.generator} of {settings.size}x{settings.size} pixels

Trained by ganscope {ganscope.__version__} on {len(source):,} photographs for {steps:,}
steps of {batch} images ({steps * batch:,} in all), width {settings.width}, crops of 1 to
{settings.zoom:g} times the size shrunk to it, mirrored at random; the weights are an exponential
average (decay {settings.ema:g}).

    ganscope generate --generator FOLDER --n 1000

Its images are meant as labelled fakes for training and testing detectors. They show what the
photographs showed; nobody in them exists.
"""
