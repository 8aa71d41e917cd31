"""Training a generator: one visible loop for all architectures.

All randomness comes from (seed, step, process), so a run that was killed and resumed ends in the
same weights as one that was not.
"""

import copy
import itertools
import operator
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState

import ganscope
from ganscope.averaged_weights import average_into
from ganscope.config import (
    TrainGeneratorSettings,
    changed,
    next_free,
    plain,
    read_json,
    replacing,
    write_json,
    write_text,
)
from ganscope.datasets.sources import Crop, Source, open_source, random_crop
from ganscope.devices import (
    Speed,
    by_main_process,
    fastest,
    held_by_main,
    pick_device,
    processes,
    remembered,
)
from ganscope.errors import GanscopeError, GanscopeWarning
from ganscope.files import damaged, write_picture
from ganscope.folders import (
    CHECKPOINT,
    CONFIG,
    SPEED,
    load_checkpoint,
    restoring,
    save_checkpoint,
)
from ganscope.generator.diversity import diversity_warning
from ganscope.generator.kinds.architecture import GENERATOR, Architecture, Batch, Critic, Play
from ganscope.generator.kinds.architectures import architectures
from ganscope.generator.kinds.translation import inputs, pair_folders, paired_crop
from ganscope.generator.model import Generator
from ganscope.generator.pixels import to_pixels
from ganscope.images import open_image
from ganscope.locks import is_empty
from ganscope.registry import unknown

SETTINGS, LOSSES, SAMPLES = "settings.json", "losses.csv", "samples"
IGNORED = ("out", "device", "steps", "sample_every")
"""Settings that may differ when a run is continued: it can be made longer or shorter."""
GRID = 8
"""Sample grids are GRID x GRID fakes."""
MOST_ROWS = 32
"""Classes that a sample grid shows, a row each."""
WARM_UP = 1000
"""Steps before a generator's fakes are expected to differ from each other."""


def train_generator(
    settings: TrainGeneratorSettings,
    report: Callable[[dict[str, Any]], None] | None = None,
    *,
    source: Source | None = None,
    critic: Critic | None = None,
    critic_weight: float = 1.0,
    after: Path | None = None,
    keep_checkpoint: bool = False,
) -> Path:
    """Train a generator; returns its run folder.

    The folder holds the averaged generator (`config.json`, `model.safetensors`, `README.md`),
    `losses.csv`, `losses.png` and a sample grid an interval. An unfinished run with the same
    settings is continued. `report` is called after every step with step, steps and the losses.

    source: the photographs, in the place of those that `settings.real` names. critic: images
    (N, 3, size, size) in [0, 1] -> logits (N,), higher = more likely fake, such as a detector. The
    generator learns to fool it, too: softplus of its logits, `critic_weight` times, joins the
    generator's loss. It stays as it is, in evaluation mode. A run is continued with the same ones.
    after: a finished run of the same networks, left with `keep_checkpoint`, whose networks and
    optimizers are trained further.

    No other command may write into the folder meanwhile.

    Raises `GanscopeError` for an unknown architecture or source, settings that do not go together,
    and for a folder that holds a finished run or one with other settings.
    """
    check_settings(settings)
    run = settings.out or next_free(
        Path("runs") / settings.generator, lambda p: (p / CONFIG).exists()
    )
    processes(pick_device(settings.device))
    with held_by_main(run):
        return _train(
            replace(settings, out=run),
            run,
            report,
            source,
            critic,
            critic_weight,
            after,
            keep_checkpoint,
        )


def _train(
    settings: TrainGeneratorSettings,
    run: Path,
    report: Callable[[dict[str, Any]], None] | None,
    source: Source | None,
    critic: Critic | None,
    critic_weight: float,
    after: Path | None,
    keep_checkpoint: bool,
) -> Path:
    architecture = architectures[settings.generator]
    if critic is not None and not architecture.heeds_critic:
        raise GanscopeError(
            f"--generator {settings.generator}: does not learn from a critic; take one that plays "
            "against a discriminator, such as dcgan"
        )
    device = pick_device(settings.device)
    state = processes(device)
    food = _Food(settings, architecture, source or open_source(settings.real), state.process_index)
    classes = food.classes
    first = food.batch(0)  # photographs too small: say so before writing
    before = load_checkpoint(after) if after else None
    if after and not before:
        raise GanscopeError(f"{after}: holds no {CHECKPOINT} to go on from; train it again")
    _open_run(run, settings, state)
    torch.manual_seed(settings.seed)
    average = Generator(
        {
            "architecture": settings.generator,
            "arguments": architecture.arguments(settings, classes),
            **({"input": food.prepare} if food.prepare else {}),
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
    if isinstance(critic, torch.nn.Module):
        critic = copy.deepcopy(critic).to(accelerator.device).eval().requires_grad_(False)
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
        accelerator.scaler,
        critic,
        critic_weight,
    )
    average.to(accelerator.device).eval()
    parts: dict[str, Any] = {
        "average": average,
        **networks,
        **{f"{name} optimizer": optimizer for name, optimizer in play.optimizers.items()},
    }
    if accelerator.scaler is not None:
        parts["scaler"] = accelerator.scaler
    known = saved or before
    if known:
        with restoring(run if saved or not after else after):
            for name, part in parts.items():
                part.load_state_dict(known[name])
            if saved:
                play.step = operator.index(saved["step"])
    log = _read_log(run, play.step)
    watch = accelerator.is_main_process
    first = _moved(first, play.device, speed)
    if watch and not saved:
        _save_samples(average, first, run, 0)

    batches = food.ahead(play.step * architecture.draws)
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
            raise _diverged(play.step, worst, rate)
        log.append(row)
        if report and watch:
            report({**row, "steps": settings.steps, "run": run})
        if play.step % settings.sample_every == 0 or play.step == settings.steps:
            for name, part in parts.items():  # its losses were finite before its last update
                _refuse_infinite(name, part, play.step, rate)
        if watch and (play.step % settings.sample_every == 0 or play.step == settings.steps):
            _save_samples(average, first, run, play.step)
            _watch_diversity(average, first, play.step)
            _write_log(run, log)
            states = {name: part.state_dict() for name, part in parts.items()}
            save_checkpoint(run, {"step": play.step, **states})

    def finish() -> None:
        further = ({"after": str(after)} if after else {}) | (
            {"critic_weight": critic_weight} if critic else {}
        )
        for used in food.sources:
            used.tell_unusable()
        _finish(settings, run, average, food.source, log, further)
        for name in (SPEED,) if keep_checkpoint else (SPEED, CHECKPOINT):
            (run / name).unlink(missing_ok=True)

    by_main_process(finish)
    return run


def _diverged(step: int, what: str, rate: float) -> GanscopeError:
    return GanscopeError(
        f"the training left the finite numbers at step {step} ({what}); lower --learning-rate (now "
        f"{rate:g}) and name another --out"
    )


def _refuse_infinite(name: str, part: Any, step: int, rate: float) -> None:
    """Raise `GanscopeError` for a network with a number that cannot be saved: NaN, infinity, or one
    beyond fp16, in which weights are kept.
    """
    if not isinstance(part, torch.nn.Module):
        return
    for key, value in part.state_dict().items():
        kept = value.half() if name == "average" else value
        if value.is_floating_point() and not torch.isfinite(kept).all():
            raise _diverged(step, f"{name}: {key}", rate)


def check_settings(settings: TrainGeneratorSettings) -> None:
    """Raise `GanscopeError` for an unknown architecture or settings that do not go together."""
    architecture = architectures[settings.generator]
    if settings.size not in architecture.sizes:
        known = ", ".join(map(str, architecture.sizes))
        raise GanscopeError(
            f"--size {settings.size}: {settings.generator} makes images of {known} pixels a side"
        )
    architecture.check(settings)
    if settings.batch_size < 2 and not architecture.from_photos:
        raise GanscopeError(
            f"--batch-size must be at least 2 for {settings.generator}, not {settings.batch_size}"
        )


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


def _open_run(run: Path, settings: TrainGeneratorSettings, state: PartialState) -> None:
    """Make or re-enter the run folder; refuse a finished one and one begun with other settings."""
    if (run / CONFIG).exists():
        raise GanscopeError(f"{run} holds a finished network; name another folder with --out")
    if (run / SETTINGS).exists():
        before = read_json(run / SETTINGS, "delete its folder, or name another one with --out")
        flags = changed(settings, before, ignore=IGNORED)
        if flags:
            raise GanscopeError(
                f"{run} holds an unfinished run with other settings ({', '.join(flags)}); "
                "repeat its settings to continue it, or name another folder with --out"
            )
    elif run.exists() and (not run.is_dir() or not is_empty(run)):
        raise GanscopeError(f"{run} exists and is not a run of train-generator; name another --out")
    state.wait_for_everyone()  # all have looked before one writes
    if state.is_main_process:
        try:
            run.mkdir(parents=True, exist_ok=True)
            write_json(run / SETTINGS, plain(settings))  # first: by it the folder is known again
            (run / SAMPLES).mkdir(exist_ok=True)
        except OSError as error:
            raise GanscopeError(f"{run}: cannot be written ({error.strerror})") from None


class _Food:
    """Batches by number: random crops, their classes, and what a translation starts from."""

    def __init__(
        self,
        settings: TrainGeneratorSettings,
        architecture: Architecture,
        source: Source,
        process: int = 0,
    ):
        self.settings, self.paired, self.process = settings, architecture.paired, process
        self.source = source
        self.classes = _classes(settings, architecture, self.source)
        self.prepare: str | None = None
        """Name of the way in which photographs are turned into inputs, if they are."""
        self.others: Source | None = None
        """Unpaired photographs to start from."""
        self.pairs: tuple[Source, Source] | None = None
        """What to start from and what to come to, by the same numbers."""
        if not architecture.from_photos:
            if settings.input is not None:
                raise GanscopeError(
                    f"--input: {settings.generator} starts from noise; leave it out"
                )
            return
        wanted = settings.input or ("edges" if self.paired else None)
        if wanted is None:
            raise GanscopeError(
                f"--input: what does {settings.generator} start from? Name a folder of images, or "
                + ", ".join(sorted(inputs))
            )
        if wanted in inputs:
            self.prepare = wanted
        elif not Path(wanted).is_dir():
            raise GanscopeError(unknown("input", wanted, sorted(inputs)) + "; or a folder")
        elif not self.paired:
            self.others = open_source(wanted)
        elif not Path(settings.real).is_dir():
            raise GanscopeError(
                f"--real {settings.real}: with --input FOLDER, name the folder of its partners"
            )
        else:
            found = pair_folders(Path(wanted), Path(settings.real))
            self.pairs = (_files([a for a, _ in found]), _files([b for _, b in found]))

    @property
    def sources(self) -> list[Source]:
        """All that photographs are drawn from."""
        if self.pairs:
            return [self.pairs[1]]
        return [self.source, *([self.others] if self.others else [])]

    def batch(self, number: int) -> Batch:
        """Batch `number` of this process; the same whenever it is asked for."""
        rng = np.random.default_rng((self.settings.seed, number, self.process))
        if self.pairs:
            both = [self._pair(*self.pairs, rng) for _ in range(self.settings.batch_size)]
            return Batch(
                _images([target for _, target in both]), inputs=_images([made for made, _ in both])
            )
        crops = [self._crop(self.source, rng) for _ in range(self.settings.batch_size)]
        images = [crop.pixels for crop in crops]
        labels = None
        if self.classes and self.source.classes:
            known = self.source.classes
            labels = torch.tensor([self.classes.index(known[crop.number]) for crop in crops])
        started = None
        if self.others is not None:
            started = [self._crop(self.others, rng).pixels for _ in images]
        elif self.prepare:
            shown = images if self.paired else [self._crop(self.source, rng).pixels for _ in images]
            started = [inputs[self.prepare](pixels) for pixels in shown]
        return Batch(_images(images), labels, None if started is None else _images(started))

    def _crop(self, source: Source, rng: np.random.Generator) -> Crop:
        crop = random_crop(source, self.settings.size, rng, self.settings.zoom)
        pixels = crop.pixels[:, :: self._turn(rng)]
        return replace(crop, pixels=np.ascontiguousarray(pixels))

    def _pair(
        self, start: Source, target: Source, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        while len(target.unusable) < len(target):
            number = int(rng.integers(len(target)))
            if number in target.unusable:
                continue
            try:
                both = paired_crop(
                    start.photo(number),
                    target.photo(number),
                    self.settings.size,
                    rng,
                    self.settings.zoom,
                )
            except GanscopeError as error:
                target.unusable[number] = str(error)
                continue
            turn = self._turn(rng)
            return both[0][:, ::turn], both[1][:, ::turn]
        number, why = next(iter(target.unusable.items()))
        raise GanscopeError(
            f"no pair can be used, for example {target.paths[number]}: {why}; use a smaller --size "
            "or other photographs"
        )

    def _turn(self, rng: np.random.Generator) -> int:
        return int(rng.choice([1, -1])) if self.settings.mirror else 1

    def ahead(self, first: int) -> Iterator[Batch]:
        """Batches number `first`, `first` + 1, ..., prepared while others are learned from."""
        with ThreadPoolExecutor(1) as pool:
            waiting = deque(pool.submit(self.batch, first + i) for i in range(3))
            for number in itertools.count(first + 3):
                yield waiting.popleft().result()
                waiting.append(pool.submit(self.batch, number))


def _files(paths: list[Path]) -> Source:
    names = [str(path) for path in paths]
    return Source(str(paths[0].parent), names, lambda i: open_image(paths[i]).pixels, paths=names)


def _images(pixels: list[np.ndarray]) -> torch.Tensor:
    """(H, W, 3) uint8 each -> (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


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
    with damaged(path, "delete it; the losses so far will not be drawn"):
        table = pd.read_csv(path, dtype=float)
        table = table[table["step"] <= step].astype({"step": int})
        if table["step"].tolist() != list(range(step - len(table) + 1, step + 1)):
            raise ValueError("steps are missing")
        return table.to_dict("records")


def _write_log(run: Path, log: list[dict[str, Any]]) -> None:
    write_text(run / LOSSES, pd.DataFrame(log).to_csv(index=False, float_format="%.6g"))


def sample_grid(
    generator: Generator, seed: int = 0, rows: int = GRID, columns: int = GRID
) -> np.ndarray:
    """Fakes number 0, 1, ... of `seed` in one picture, (rows * size, columns * size, 3) uint8.

    For generators that start from noise; a conditional one makes one class a row.
    """
    classes = len(generator.classes)
    numbers = range(rows * columns)
    labels = [i // columns % classes for i in numbers] if classes else None
    return tile_images(np.asarray(generator.make(seed, numbers, labels=labels)), columns)


def tile_images(images: np.ndarray, columns: int) -> np.ndarray:
    """(N, H, W, 3) -> (N / columns * H, columns * W, 3), row by row."""
    n, height, width, _ = images.shape
    rows = images.reshape(n // columns, columns, height, width, 3).swapaxes(1, 2)
    return rows.reshape(n // columns * height, columns * width, 3)


@torch.inference_mode()
def _save_samples(generator: Generator, batch: Batch, run: Path, step: int) -> None:
    """Draw fakes, and beside them what a batch's photographs turn into if that is what it does."""
    if not generator.from_photos:
        rows = min(len(generator.classes), MOST_ROWS) or GRID
        write_picture(run / SAMPLES / f"{step:06d}.png", sample_grid(generator, rows=rows))
    shown = generator.architecture.shown(generator.net, batch)
    if shown:
        # Two groups of columns, so that the picture is no tower.
        count = len(batch.images) // 2 * 2
        images = torch.stack([part[:count] for part in shown], dim=1).flatten(0, 1)[
            : 16 * len(shown)
        ]
        name = f"{step:06d}.png" if generator.from_photos else f"{step:06d}-reconstructions.png"
        write_picture(
            run / SAMPLES / name, tile_images(to_pixels((images + 1) / 2), 2 * len(shown))
        )


def _watch_diversity(generator: Generator, batch: Batch, step: int) -> None:
    """Warn of a generator that makes little but the same image, once it has had time to learn."""
    if generator.from_photos or step < WARM_UP:
        return
    fakes = np.asarray(generator.make(0, range(GRID * GRID)))
    warning = diversity_warning(fakes, to_pixels((batch.images + 1) / 2))
    if warning:
        warnings.warn(f"step {step}: {warning}", GanscopeWarning, stacklevel=2)


def _finish(
    settings: TrainGeneratorSettings,
    run: Path,
    average: Generator,
    source: Source,
    log: list[dict[str, Any]],
    further: dict[str, Any],
) -> None:
    """Draw the losses, write the card and, last of all, the network that marks the run finished."""
    _draw_losses(run, log)
    average.config |= {
        "training": {
            **plain(settings),
            "steps": log[-1]["step"] if log else settings.steps,
            "photographs": len(source),
            **further,
        },
        "versions": {"ganscope": ganscope.__version__, "torch": torch.__version__},
    }
    average.card = _card(settings, source, average.config["training"]["steps"], further)
    average.to("cpu").save(run)


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
    for name in table.columns:
        if not name.endswith("_loss") and name not in _LEGEND:
            continue  # a penalty has a scale of its own
        axes = left if name.endswith("_loss") else right
        axes.plot(table["step"], smooth[name], label=_LEGEND.get(name, name.removesuffix("_loss")))
    left.set(title="loss (running mean)", xlabel="step")
    usual = smooth.filter(like="_loss").median()
    if usual.min() > 0 and usual.max() > 10 * usual.min():
        left.set_yscale("log")  # a sum of ten losses dwarfs a single one
    right.set(title="discriminator's mean logit", xlabel="step")
    if not right.lines:
        right.remove()
    for axes in figure.axes:
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    with replacing(run / "losses.png") as part:
        figure.savefig(part, dpi=120)


def _card(
    settings: TrainGeneratorSettings, source: Source, steps: int, about: dict[str, Any]
) -> str:
    batch = settings.batch_size
    further = ""
    if "after" in about:
        further += f" It went on from {Path(about['after']).name}."
    if "critic_weight" in about:
        further += f" A frozen detector was to be fooled, too (weight {about['critic_weight']:g})."
    if settings.input or architectures[settings.generator].from_photos:
        further += f" It starts from {settings.input or 'edges'}; name photographs with `--from`."
    return f"""---
library_name: ganscope
tags: [ganscope, {settings.generator}]
---
# A {settings.generator} of {settings.size}x{settings.size} pixels

Trained by ganscope {ganscope.__version__} on {len(source):,} photographs for {steps:,}
steps of {batch} images, width {settings.width}, crops of 1 to {settings.zoom:g} times the size
shrunk to it, {"mirrored at random" if settings.mirror else "not mirrored"}; the weights are an
exponential average (decay {settings.ema:g}).{further}

    ganscope generate --generator FOLDER --n 1000

Its images are meant as labelled fakes for training and testing detectors. They show what the
photographs showed; nobody in them exists.
"""
