"""The settings of every command: one frozen dataclass each, documented and validated here.

A command line option, a field here and a keyword of the Python function are the same thing under
the same name; `tests/test_cli.py` compares them. Nothing here imports torch.
"""

import json
import os
import re
import secrets
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ganscope.errors import GanscopeError

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
FORMATS = ("png", "jpeg", "webp")
LOSSES = ("minimax", "non-saturating")
RECIPES: dict[str, dict[str, float]] = {
    "full": {"degrade": 0.8, "mix": 0.4, "pairs": 0.8, "hard_examples": 1.0},
    "frozen-linear": {"degrade": 0.8, "mix": 0.4, "pairs": 0.8},
    "aligned": {"degrade": 0.8, "mix": 0.0, "pairs": 1.0, "hard_examples": 0.0},
    "cnndetect": {"degrade": 1.0, "mix": 0.0, "pairs": 0.5, "hard_examples": 0.0},
    "npr": {"degrade": 0.0, "mix": 0.0, "pairs": 0.5, "hard_examples": 0.0},
    "finetune": {"degrade": 1.0},
}
"""Recipe of a training -> what it takes for the settings that the user leaves open."""
HEATMAP_METHODS = ("auto", "tiles", "patches", "gradcam")


def _at_least(settings: object, **lows: float) -> None:
    for name, low in lows.items():
        value = getattr(settings, name)
        if value is not None and not value >= low:
            raise GanscopeError(f"{_flag(name)} must be at least {low:g}, not {value!r}")
    if "seed" in lows and getattr(settings, "seed", 0) >= 2**32:
        raise GanscopeError("--seed must be below 4294967296")


def _one_of(settings: object, **choices: tuple[str, ...]) -> None:
    for name, allowed in choices.items():
        value = getattr(settings, name)
        if value is not None and value not in allowed:
            raise GanscopeError(f"{_flag(name)} must be one of {', '.join(allowed)}, not {value!r}")


def _device(value: str) -> None:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        raise GanscopeError(
            f"--device must be one of {', '.join(DEVICES)} (or cuda:1), not {value!r}"
        )


def _truncation(value: float) -> None:
    if not 0 <= value <= 1:
        raise GanscopeError(f"--truncation must be between 0 and 1, not {value:g}")


def _suffix(out: Path | None, *allowed: str) -> None:
    if out is not None and out.suffix.lower() not in allowed:
        raise GanscopeError(f"--out must end in {' or '.join(allowed)}, not {out.name!r}")


def _paths(settings: object, *names: str) -> None:
    """Let Python users write paths as text."""
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, str):
            object.__setattr__(settings, name, Path(value))
        elif isinstance(value, tuple | list):
            object.__setattr__(settings, name, tuple(Path(v) for v in value))


def _flag(name: str) -> str:
    return "--" + name.rstrip("_").replace("_", "-")


@dataclass(frozen=True, kw_only=True)
class GenerateSettings:
    """Settings of `ganscope generate`."""

    n: int | None = None
    """Number of fakes, and of reals beside them; None: 10,000, or with `from_` all its photos."""
    generator: str = "photos"
    """A shipped generator's name, a run folder of `train-generator`, a hub id owner/name, or what
    `ganscope list generators` shows with a colon (reconstruct:taesd, python:FILE.py:FUNCTION)."""
    real: str = "photographs"
    """Where the reals come from: a source's name, a folder, or hf:owner/name."""
    from_: Path | None = None
    """Whole photographs to make a fake from each, under the same name (instead of crops of
    `real`); for generators that start from photographs."""
    class_: str | None = None
    """What a conditional generator makes; None: all its classes in turn."""
    truncation: float = 1.0
    """Psi, 0 to 1: how far fakes stray from the average; below 1 they are better and more alike."""
    prompts: Path | None = None
    """Text file, a prompt a line, for text-to-image generators."""
    out: Path | None = None
    """Folder of the corpus; None: `corpus`, or `corpus-2` and so on if that is finished already."""
    size: int | None = None
    """Side of every image in pixels; None: the generator's own, 256 if it has none."""
    format: str | None = None
    """Container of reals and fakes alike: png, jpeg or webp; None: png, or with `from_` each
    photo's own."""
    quality: int = 92
    """JPEG and WebP quality, 1 to 100; the same for reals and fakes."""
    seed: int = 0
    """The same seed gives the same bytes."""
    shard: str | None = None
    """i/n: make only part i of n (1/4, 2/4, ...); the parts together are the whole corpus."""
    device: str = "auto"

    def __post_init__(self) -> None:
        _paths(self, "out", "from_", "prompts")
        _at_least(self, n=1, size=8, quality=1, seed=0)
        _one_of(self, format=FORMATS)
        _device(self.device)
        if self.quality > 100:
            raise GanscopeError(f"--quality must be at most 100, not {self.quality}")
        _truncation(self.truncation)
        if self.from_ is not None and self.size is not None:
            raise GanscopeError("--size: with --from photographs stay whole; leave it out")
        if self.from_ is not None and self.real != "photographs":
            raise GanscopeError("--real: with --from the reals are its photographs; leave it out")
        if self.shard is not None:
            part, _, parts = self.shard.partition("/")
            if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
                raise GanscopeError(f"--shard must be i/n with 1 <= i <= n, not {self.shard!r}")


@dataclass(frozen=True, kw_only=True)
class TrainGeneratorSettings:
    """Settings of `ganscope train-generator`."""

    real: str
    """The photographs to learn from: a source's name, a folder, or hf:owner/name."""
    generator: str = "dcgan"
    """An architecture: see `ganscope list generators`."""
    input: str | None = None
    """What an image-to-image generator starts from: edges, grey, small, blur (made from the
    photographs), or a folder: paired by name for pix2pix, unpaired for cyclegan."""
    out: Path | None = None
    """Run folder; None: runs/<generator>, numbered on if that is finished already."""
    size: int = 64
    """Side of the images in pixels; which ones there are depends on the architecture."""
    steps: int = 20_000
    """Generator updates."""
    batch_size: int = 64
    width: int = 64
    """Channels of the generator's last hidden layer; deeper layers have up to 8 times as many."""
    discriminator_width: int | None = None
    """Channels of the discriminator's first layer; None: the same as `width`."""
    learning_rate: float | None = None
    """For all networks; None: the architecture's own."""
    loss: str | None = None
    """minimax or non-saturating, for generators with the original GAN's loss; None: the latter."""
    label_smoothing: float = 0.0
    """The discriminator is told 1 - this for reals (one-sided), so that it never grows too sure."""
    instance_noise: float = 0.0
    """Noise on all that the discriminator sees, in [-1, 1] units, fading to 0 until the end."""
    gradient_penalty: float | None = None
    """Weight of `wgan-gp`'s penalty (the paper's lambda); None: 10."""
    unroll: int | None = None
    """Steps of the discriminator that `unrolled` looks ahead; None: 5."""
    mirror: bool = True
    """Mirror half of the images; not for digits and letters."""
    ema: float = 0.999
    """Decay of the averaged generator that is saved, a step; 0: no averaging."""
    zoom: float = 4.0
    """Crops come from 1 to `zoom` times the size and are shrunk to it; 1: native crops only."""
    sample_every: int = 500
    """Steps between sample grids; checkpoints are written as often."""
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    """auto (measured once at the start), fp32, bf16 or fp16."""

    def __post_init__(self) -> None:
        _paths(self, "out")
        _at_least(
            self, steps=1, batch_size=1, width=4, discriminator_width=4, zoom=1, sample_every=1
        )
        _at_least(self, seed=0, learning_rate=1e-9, ema=0, unroll=1, instance_noise=0)
        _at_least(self, label_smoothing=0, size=4, gradient_penalty=0)
        _one_of(self, precision=PRECISIONS, loss=LOSSES)
        _device(self.device)
        if self.label_smoothing >= 0.5:
            raise GanscopeError(
                f"--label-smoothing must be below 0.5, not {self.label_smoothing:g}"
            )
        if self.ema >= 1:
            raise GanscopeError(f"--ema must be below 1, not {self.ema:g}")


@dataclass(frozen=True, kw_only=True)
class DiversitySettings:
    """Settings of `ganscope diversity`."""

    what: str
    """A corpus; a generator as `generate` takes it; or an architecture, which plays on toys."""
    features: str = "auto"
    """What images are compared by: inception, timm:<name>, pixels, or auto (the first of these
    that can be had)."""
    weights: Path | None = None
    """Weights file for `inception` or timm:<name>, where they cannot be downloaded."""
    n: int = 2000
    """Reals, and fakes of each generator, that are looked at; at most."""
    real: str = "photographs"
    """What a generator's fakes are put beside: a source's name, a folder, or hf:owner/name."""
    seeds: int = 5
    """Trainings of an architecture on each toy."""
    steps: int = 10_000
    """Generator updates of each of them."""
    loss: str | None = None
    """minimax or non-saturating, for architectures with the original GAN's loss."""
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        _paths(self, "weights")
        object.__setattr__(self, "what", str(self.what))
        _at_least(self, n=10, seed=0, seeds=1, steps=1)
        _one_of(self, loss=LOSSES)
        _device(self.device)


@dataclass(frozen=True, kw_only=True)
class TrainDetectorSettings:
    """Settings of `ganscope train-detector`."""

    corpora: tuple[Path, ...] = ()
    """Corpus folders; empty: the newest one here."""
    detector: str = "cnn"
    """An architecture: see `ganscope list detectors`, or timm:<name>."""
    recipe: str = "full"
    """full: ours, all weights learn; frozen-linear: a classifier on a backbone's features;
    finetune: low-rank adapters on a transformer (clip, vit:<name>), and a classifier; aligned:
    photographs and the fakes made of them only, alike in all else; cnndetect: blur and JPEG by
    chance; npr: images as they are. See `RECIPES`."""
    fuse: str | None = None
    """Another detector whose logits are joined to this one's, in the proportion that validation
    asks for: a shipped name, run folder or hub id (it should not have learned from those images),
    or an architecture, which is then trained first."""
    out: Path | None = None
    """Run folder; None: runs/<detector>, numbered on if that is finished already."""
    epochs: int = 10
    """Passes over the training images (an epoch draws as many images as the training split has)."""
    batch_size: int = 32
    size: int | None = None
    """Side of the native-resolution crops in pixels; None: the architecture's own."""
    learning_rate: float | None = None
    """AdamW's peak; None: the architecture's own. With finetune that of adapters and norms; the
    classifier's is 1e-3."""
    rank: int = 16
    """Of the adapters that finetune learns: a matrix moves by B @ A, with A (rank, in)."""
    last_blocks: int = 0
    """finetune adapts only so many blocks at the end of those that are read; 0: all."""
    layer_decay: float = 1.0
    """finetune multiplies the learning rate by this for each block towards the input; 1: the same
    everywhere."""
    hidden: int = 0
    """Width of a curved classifier (two layers) beside the linear one; 0: none."""
    checkpointing: bool = False
    """finetune computes activations twice instead of keeping them: less memory, a third slower."""
    steps: int | None = None
    """Budget of finetune in updates; None: `minutes`, or else `epochs`."""
    minutes: float | None = None
    """Budget of finetune in minutes of training; None: `steps`, or else `epochs`."""
    pretrained: str | None = None
    """Start from a weights file (.safetensors, .pth), or from a detector of the same architecture
    (a shipped name or a run folder); "hub": the weights that timm publishes."""
    val_generator: tuple[str, ...] = ()
    """Generators used for validation only; empty: one is chosen when there are two or more."""
    test_generator: tuple[str, ...] = ()
    """Generators kept out of training and validation: the detector never meets them."""
    val_source: tuple[str, ...] = ()
    """Sources whose photographs are used for validation only: thresholds then hold for photographs
    of a kind that the detector has not learned from."""
    degrade: float | None = None
    """Probability that an image is degraded (both classes alike) before it is learned from. None,
    here and in the next three: the recipe's."""
    mix: float | None = None
    """Probability that a fake is mixed with the photograph that it was made from, where there is
    one, before it is learned from."""
    pairs: float | None = None
    """Share of the fakes that are drawn from those made of the corpora's own photographs, where
    there are others, too. Pairs differ by the generator's traces alone; other fakes also by what
    they show, by size and by sharpness, and a detector that sees many of them learns that."""
    hard_examples: float | None = None
    """How strongly images that the detector gets wrong are drawn more often; 0: all alike."""
    patience: int = 5
    """Epochs without a better validation AUROC before training stops; 0: never stop early."""
    soup: int = 1
    """So many trainings from one start, with seeds counted on from `seed`; their weights are
    averaged. The start is `pretrained`, or else one training more."""
    seed: int = 0
    split_seed: int | None = None
    """Seed of the splits alone; None: `seed`."""
    device: str = "auto"
    precision: str = "auto"
    """auto (measured once at the start), fp32, bf16 or fp16."""
    workers: int | None = None
    """Processes that read images; None: as many as there are spare cores, at most 8."""

    def __post_init__(self) -> None:
        _paths(self, "out", "corpora")
        _at_least(
            self, epochs=1, batch_size=2, size=16, learning_rate=1e-9, degrade=0, hard_examples=0
        )
        _at_least(self, patience=0, seed=0, split_seed=0, workers=0, soup=1)
        _at_least(self, rank=1, last_blocks=0, layer_decay=0, hidden=0, steps=1, minutes=0.001)
        _one_of(self, precision=PRECISIONS, recipe=tuple(RECIPES))
        if self.layer_decay > 1:
            raise GanscopeError(f"--layer-decay must be at most 1, not {self.layer_decay:g}")
        if self.steps is not None and self.minutes is not None:
            raise GanscopeError("--steps, --minutes: name one budget")
        _device(self.device)
        for name, value in RECIPES[self.recipe].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name in ("degrade", "mix", "pairs"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                raise GanscopeError(f"--{name} must be from 0 to 1, not {share:g}")


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """Settings of `ganscope check`."""

    paths: tuple[str, ...]
    """Image files and folders."""
    detector: str = "default"
    """A shipped detector's name, a run folder of `train-detector`, or a hub id owner/name."""
    heatmap: Path | None = None
    """Folder for heatmap overlays, one PNG an image."""
    heatmap_method: str = "auto"
    """auto (the detector's own), tiles, patches or gradcam."""
    csv: Path | None = None
    """Write the verdicts as CSV."""
    json: bool = False
    """Print one JSON object a line instead of a table."""
    reencode: bool = True
    """Look again after JPEG 85 and after shrinking to 0.75: a verdict that changes is *unsure*."""
    fail_on: str | None = None
    """Exit with status 1 if any image has this verdict."""
    batch_size: int = 32
    """Tiles scored at a time. Scores do not depend on it."""
    device: str = "auto"

    def __post_init__(self) -> None:
        _paths(self, "heatmap", "csv")
        _at_least(self, batch_size=1)
        _one_of(self, fail_on=("fake", "unsure"), heatmap_method=HEATMAP_METHODS)
        _device(self.device)
        if not self.paths:
            raise GanscopeError("name at least one image or folder to check")


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """Settings of `ganscope benchmark`."""

    corpora: tuple[Path, ...] = ()
    detector: tuple[str, ...] = ("default",)
    """Detectors to compare: names, run folders, hub ids, python:FILE.py:FUNCTION, scores:FILE,
    onnx:FILE, and published ones, NAME:WEIGHTS."""
    generator: tuple[str, ...] = ()
    """Generators whose corpora are made first, as `generate` takes them."""
    n: int | None = None
    """Fakes of each of those generators, and as many reals; None: 500."""
    real: str | None = None
    """The source of those reals; None: photographs."""
    train: tuple[str, ...] = ()
    """Architectures to train instead: for each generator on all others, to be measured on it."""
    leave_out: tuple[str, ...] = ()
    """The generators to leave out in turn, where not each one of the corpora."""
    epochs: int | None = None
    """Of each of those trainings; None: 10."""
    pretrained: str | None = None
    """What each of those trainings starts from, as for `train-detector`."""
    recipe: str | None = None
    """Of each of those trainings, as for `train-detector`; None: full."""
    size: int | None = None
    """Side of the crops in those trainings; None: the architecture's own."""
    fuse: str | None = None
    """An architecture that is trained beside each of those and joined to it."""
    soup: int | None = None
    """Trainings to average in the place of each of those, as for `train-detector`; None: 1."""
    jobs: int = 1
    """Of those trainings so many run beside each other, each in a process of its own; with several
    GPUs they take turns on them."""
    protocol: str = "both"
    """raw: files as they are; aligned: both classes cut to one size and compressed alike; both."""
    align_size: int | None = None
    """Side of the aligned images in pixels; None: the largest of a few that most images have."""
    degrade: tuple[str, ...] = ()
    """Degradations NAME:VALUE to test under, besides the clean images; "standard": a list."""
    out: Path | None = None
    """Folder for scores, tables and pictures; None: `benchmark` (`leave-one-out` with `train`),
    numbered on if it exists."""
    split: str = "all"
    """Which images: all, train, val or test (as the corpus says)."""
    bootstrap: int = 1000
    """Resamples behind each 95 % interval; 0: no intervals."""
    cache: bool = True
    """Keep what detectors said of images, and ask them for new ones only."""
    batch_size: int = 32
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        _paths(self, "out", "corpora")
        _at_least(self, batch_size=1, bootstrap=0, seed=0, epochs=1, size=16, soup=1)
        _at_least(self, n=10, jobs=1, align_size=16)
        _one_of(self, split=("all", "train", "val", "test"), protocol=("both", "raw", "aligned"))
        _one_of(self, recipe=tuple(RECIPES))
        _device(self.device)
        if not self.corpora and not self.generator:
            raise GanscopeError("name at least one corpus to benchmark on, or a --generator")
        if not self.detector:
            raise GanscopeError("name at least one --detector")
        if not self.generator and (self.n, self.real) != (None, None):
            raise GanscopeError("--n and --real go with --generator; leave them out")
        if self.align_size and self.protocol == "raw":
            raise GanscopeError("--align-size goes with the aligned protocol; leave it out")
        if not self.train:
            for name in ("epochs", "pretrained", "recipe", "size", "fuse", "soup", "leave_out"):
                if getattr(self, name) not in (None, ()):
                    flag = name.replace("_", "-")
                    raise GanscopeError(f"--{flag} goes with --train; leave it out")
            if self.jobs > 1:
                raise GanscopeError("--jobs goes with --train; leave it out")
        elif self.detector != ("default",):
            raise GanscopeError("--train and --detector do not go together; run two benchmarks")
        elif self.split != "all":
            raise GanscopeError("--split does not go with --train, which splits by itself")


@dataclass(frozen=True, kw_only=True)
class ArmsRaceSettings:
    """Settings of `ganscope arms-race`."""

    real: str
    """The photographs to learn from and to be told from: a source's name, a folder, or
    hf:owner/name."""
    rounds: int = 5
    generator: str = "dcgan"
    """An architecture that plays against a discriminator: see `ganscope list generators`."""
    detector: str = "cnn"
    """An architecture: see `ganscope list detectors`, or timm:<name>."""
    size: int = 64
    """Side of the images in pixels, and of the detectors' tiles."""
    width: int = 32
    """Channels of the generator's last hidden layer and of its discriminator's first."""
    n: int = 1000
    """Fakes and reals of each round to learn from, so many each; half as many for the test."""
    first_steps: int = 2000
    """Generator updates of the first round, which begins with nothing and has no critic."""
    steps: int = 300
    """Generator updates of each further round, against the last round's detector."""
    epochs: int = 6
    """Passes of each detector over the images of all rounds so far."""
    critic_weight: float = 1.0
    """How much fooling the detector weighs beside fooling the generator's own discriminator."""
    precision: str = "auto"
    """Of all trainings; "auto" tries what is quickest, which may be another the next time."""
    out: Path | None = None
    """Folder for everything; None: runs/arms-race, numbered on if that is finished already."""
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        _paths(self, "out")
        _at_least(self, rounds=2, size=16, width=4, n=50, first_steps=1, steps=1, epochs=1)
        _at_least(self, critic_weight=0, seed=0)
        _one_of(self, precision=PRECISIONS)
        _device(self.device)


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """Settings of `ganscope audit`."""

    corpus: Path
    max_auroc: float = 0.6
    """Exit with status 1 if the file format alone tells real from fake better than this."""
    aligned: bool = False
    """Audit the images as they are after alignment: native crops of one size, compressed alike."""
    seed: int = 0

    def __post_init__(self) -> None:
        _paths(self, "corpus")
        _at_least(self, seed=0)
        if not 0.5 <= self.max_auroc <= 1:
            raise GanscopeError(f"--max-auroc must be between 0.5 and 1, not {self.max_auroc:g}")


@dataclass(frozen=True, kw_only=True)
class SpectraSettings:
    """Settings of `ganscope spectra`."""

    corpora: tuple[Path, ...]
    out: Path | None = None
    """A .png; None: spectra.png, numbered on if that exists."""
    n: int = 1000
    """Images of each generator, at most."""
    seed: int = 0

    def __post_init__(self) -> None:
        _paths(self, "corpora", "out")
        _at_least(self, n=1, seed=0)
        _suffix(self.out, ".png")


@dataclass(frozen=True, kw_only=True)
class LatentSettings:
    """What the settings of all `ganscope latent` commands have in common."""

    generator: str
    """One that was trained to start from noise: a shipped name, a run folder, a hub id."""
    class_: str | None = None
    """What a conditional generator makes; it must be told."""
    truncation: float = 1.0
    """Psi, 0 to 1: how far fakes stray from the average."""
    out: Path | None = None
    """What is written; None: named after the command, numbered on if that exists."""
    seed: int = 0
    """Of fakes that are named by their number alone."""
    device: str = "auto"

    def __post_init__(self) -> None:
        _paths(self, "out")
        _at_least(self, seed=0)
        _truncation(self.truncation)
        _device(self.device)


@dataclass(frozen=True, kw_only=True)
class LatentWalkSettings(LatentSettings):
    """Settings of `ganscope latent walk`."""

    fakes: tuple[str, ...]
    """Where the walk leads along: numbers of fakes (12), or SEED:NUMBER (3:12)."""
    steps: int = 8
    """From one fake to the next."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, steps=1)
        _suffix(self.out, ".png", ".gif")
        if len(self.fakes) < 2:
            raise GanscopeError("name at least two fakes to walk between, for example 3 17")


@dataclass(frozen=True, kw_only=True)
class LatentArithmeticSettings(LatentSettings):
    """Settings of `ganscope latent arithmetic`."""

    expression: str
    """Groups of fakes, each averaged, with + and - between: "1,5,9 - 2,3 + 7,8"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _suffix(self.out, ".png")


@dataclass(frozen=True, kw_only=True)
class LatentDirectionSettings(LatentSettings):
    """Settings of `ganscope latent direction`."""

    with_: Path
    """Folder of fakes that show something."""
    without: Path
    """Folder of fakes that do not."""
    corpus: Path
    """The corpus that the fakes are from: its manifest says which z made each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _paths(self, "with_", "without", "corpus")
        _suffix(self.out, ".json")


@dataclass(frozen=True, kw_only=True)
class LatentApplySettings(LatentSettings):
    """Settings of `ganscope latent apply`."""

    direction: Path
    """What `ganscope latent direction` wrote."""
    fakes: tuple[str, ...]
    """Numbers of fakes (12), or SEED:NUMBER (3:12): a row each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _paths(self, "direction")
        _suffix(self.out, ".png")
        if not self.fakes:
            raise GanscopeError("name at least one fake to change, for example 3")


def plain(settings: Any) -> dict[str, Any]:
    """A settings dataclass as a dictionary that JSON can hold."""
    return json.loads(json.dumps(asdict(settings), default=str))


def changed(settings: Any, other: dict[str, Any], ignore: tuple[str, ...] = ()) -> list[str]:
    """Flags whose value in `settings` differs from a `plain` dictionary written earlier."""
    now = plain(settings)
    names = [f.name for f in fields(settings) if f.name not in ignore]
    return [_flag(name) for name in names if now[name] != other.get(name)]


def as_command(name: str, settings: Any) -> str:
    """The command line that these settings mirror, without what is left open."""
    places, flags = [], []
    for field in fields(settings):
        value, flag = getattr(settings, field.name), _flag(field.name)
        if value == field.default:
            continue
        if field.name in ("corpora", "corpus", "paths"):
            places += [str(v) for v in value] if isinstance(value, tuple) else [str(value)]
        elif isinstance(value, bool):
            flags.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            for one in value if isinstance(value, tuple) else (value,):
                flags += [flag, str(one)]
    return shlex.join(["ganscope", name, *places, *flags])


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically: a killed run leaves the old file or the new one, never half."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A name to write to in the same folder, with the same suffix; at the end of the block that
    file takes the place of `path`, unless an error ended it.
    """
    path = Path(path)
    # Several machines may write into a folder; in containers they share their process number, too.
    part = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: str | Path, data: Any) -> None:
    """Write JSON atomically, indented for people."""
    write_text(path, json.dumps(data, indent=2, default=str) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object; raises `GanscopeError` if it is missing or not one."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GanscopeError(f"{path}: no such file") from None
    except (ValueError, OSError) as error:
        raise GanscopeError(f"{path}: not a readable JSON file ({error})") from None
    if not isinstance(data, dict):
        raise GanscopeError(f"{path}: expected a JSON object")
    return data


def next_free(folder: Path, is_finished: Any) -> Path:
    """`folder`, or `folder-2`, `folder-3`, ...: the first that is not finished already."""
    candidate, number = folder, 1
    while is_finished(candidate):
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate
