"""Training a generator against its discriminator: one visible loop.

All randomness comes from (seed, step, process), so a run that was killed and resumed ends in the
same weights as one that was not.
"""

import copy
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

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
from ganscope.generator.architectures import Architecture, architectures
from ganscope.generator.model import Generator, latent
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

    Raises `GanscopeError` for an unknown architecture or source, and for a folder that holds a
    finished run or one with other settings.
    """
    architecture = architectures[settings.generator]
    device = pick_device(settings.device)
    source = open_source(settings.real)
    state = processes(device)
    run = _open_run(settings, state)
    torch.manual_seed(settings.seed)
    arguments = {
        "size": settings.size,
        "latent_dim": architecture.latent_dim,
        "width": settings.width,
    }
    config = {"architecture": settings.generator, "arguments": arguments}
    average = Generator(config)
    generator = copy.deepcopy(average.net)
    discriminator = architecture.discriminator(
        size=settings.size, width=settings.discriminator_width or settings.width
    )
    saved = load_checkpoint(run)
    speed = remembered(run / SPEED, lambda: _measure(settings, architecture, state.device))
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision={"fp32": "no"}.get(speed.precision, speed.precision),
        # Two forward passes come before a backward; batch norm's statistics stay each process' own.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    rate, betas = settings.learning_rate, architecture.betas
    generator.to(memory_format=speed.layout)
    discriminator.to(memory_format=speed.layout)
    g, d, g_adam, d_adam = accelerator.prepare(
        generator,
        discriminator,
        torch.optim.Adam(generator.parameters(), rate, betas),
        torch.optim.Adam(discriminator.parameters(), rate, betas),
    )
    average.to(accelerator.device).eval()
    parts: dict[str, Any] = {
        "g": generator,
        "d": discriminator,
        "average": average,
        "g_adam": g_adam,
        "d_adam": d_adam,
    }
    if accelerator.scaler is not None:
        parts["scaler"] = accelerator.scaler
    step = 0
    if saved:
        step = saved["step"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    log = _read_log(run, step)
    watch = accelerator.is_main_process
    if watch and not saved:
        _save_samples(average, run, 0)

    draws = architecture.discriminator_steps
    batches = _batches(source, settings, draws, step, accelerator.process_index)
    while step < settings.steps:
        torch.manual_seed(hash((settings.seed, step, accelerator.process_index)))
        started = time.perf_counter()
        for _ in range(draws):
            real = next(batches).to(accelerator.device, memory_format=speed.layout)
            z = torch.randn(len(real), architecture.latent_dim, device=accelerator.device)
            with torch.set_grad_enabled(draws == 1):
                fake = g(z)
            on_real, on_fake = d(real).float(), d(fake.detach()).float()
            d_loss = architecture.discriminator_loss(on_real, on_fake)
            if architecture.penalty:
                penalty = architecture.penalty(d, real, fake.detach().float())
                d_loss = d_loss + architecture.penalty_weight * penalty
            d_adam.zero_grad()
            accelerator.backward(d_loss)
            d_adam.step()
        if draws > 1:
            fake = g(torch.randn(len(real), architecture.latent_dim, device=accelerator.device))
        with _frozen(discriminator):
            g_loss = architecture.generator_loss(_bare(d)(fake).float())
            g_adam.zero_grad()
            accelerator.backward(g_loss)
            g_adam.step()
        average_into(average.net, generator, min(settings.ema, 1 - 10 / (10 + step)))

        step += 1
        row = {
            "step": step,
            "d_loss": d_loss.item(),
            "g_loss": g_loss.item(),
            "d_real": on_real.mean().item(),
            "d_fake": on_fake.mean().item(),
            "images_per_second": len(real) * draws / (time.perf_counter() - started),
        }
        if not np.isfinite(row["d_loss"] + row["g_loss"]):
            raise GanscopeError(
                f"the losses became {row['d_loss']} and {row['g_loss']} at step {step}; "
                f"lower --learning-rate (now {rate:g})"
            )
        log.append(row)
        if report and watch:
            report({**row, "steps": settings.steps, "run": run})
        if watch and (step % settings.sample_every == 0 or step == settings.steps):
            _save_samples(average, run, step)
            _write_log(run, log)
            states = {name: part.state_dict() for name, part in parts.items()}
            save_checkpoint(run, {"step": step, **states})

    accelerator.wait_for_everyone()
    if watch:
        _finish(settings, run, average, source, log)
    accelerator.wait_for_everyone()
    return run


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
    source: Source, settings: TrainGeneratorSettings, draws: int, step: int, process: int
) -> Iterator[Tensor]:
    """Batches (N, 3, size, size) in [-1, 1] of random, randomly mirrored crops, prepared ahead."""

    def make(number: int) -> Tensor:
        rng = np.random.default_rng((settings.seed, number, process))
        crops = np.stack(
            [
                random_crop(source, settings.size, rng, settings.zoom).pixels[
                    :, :: rng.choice([1, -1])
                ]
                for _ in range(settings.batch_size)
            ]
        )
        return torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1

    with ThreadPoolExecutor(1) as pool:
        number = step * draws
        ahead = [pool.submit(make, number + i) for i in range(3)]
        while True:
            yield ahead.pop(0).result()
            ahead.append(pool.submit(make, number + 3))
            number += 1


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """A network's weights take no gradient in here: the generator's step needs none of them."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


def _bare(network: nn.Module) -> nn.Module:
    """The network inside DDP's wrapper, whose hooks would wait for gradients that never come."""
    return network.module if isinstance(network, DistributedDataParallel) else network


def _measure(
    settings: TrainGeneratorSettings, architecture: Architecture, device: torch.device
) -> Speed:
    """Find the quickest precision and layout for a step of this training."""
    g = architecture.generator(settings.size, architecture.latent_dim, settings.width).to(device)
    d = architecture.discriminator(
        size=settings.size, width=settings.discriminator_width or settings.width
    ).to(device)
    real = torch.rand(min(settings.batch_size, 32), 3, settings.size, settings.size, device=device)

    def step(speed: Speed) -> None:
        g.to(memory_format=speed.layout)
        d.to(memory_format=speed.layout)
        with speed.autocast(device):
            fake = g(torch.randn(len(real), architecture.latent_dim, device=device))
            on_real, on_fake = d(real.to(memory_format=speed.layout)), d(fake)
            loss = architecture.discriminator_loss(on_real.float(), on_fake.float())
            if architecture.penalty:
                loss = loss + architecture.penalty(d, real, fake.detach().float())
        loss.backward()

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
    """Fakes number 0, 1, ... of `seed` in one picture, (rows * size, columns * size, 3) uint8."""
    z = np.stack([latent(seed, i, generator.latent_dim) for i in range(rows * columns)])
    made, size = generator.pixels(z), generator.size
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


def _draw_losses(run: Path, log: list[dict[str, Any]]) -> None:
    from matplotlib.figure import Figure

    table = pd.DataFrame(log)
    smooth = table.rolling(max(len(table) // 100, 1), min_periods=1).mean()
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(table["step"], smooth["d_loss"], label="discriminator")
    left.plot(table["step"], smooth["g_loss"], label="generator")
    left.set(title="loss (running mean)", xlabel="step")
    right.plot(table["step"], smooth["d_real"], label="real")
    right.plot(table["step"], smooth["d_fake"], label="fake")
    right.set(title="discriminator's mean logit", xlabel="step")
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    part = run / ".losses.part.png"
    figure.savefig(part, dpi=120)
    os.replace(part, run / "losses.png")


def _card(settings: TrainGeneratorSettings, source: Source, steps: int) -> str:
    batch = settings.batch_size
    return f"""---
library_name: ganscope
tags: [ganscope, gan, {settings.generator}]
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
