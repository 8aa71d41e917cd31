"""The settings of `ganscope benchmark`."""

from dataclasses import dataclass
from pathlib import Path

from ganscope.config.train_detector import RECIPES
from ganscope.config.validation import (
    as_lists,
    as_paths,
    at_least,
    enough_seeds,
    one_of,
    valid_device,
)
from ganscope.errors import GanscopeError


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """Settings of `ganscope benchmark`."""

    corpora: tuple[Path, ...] = ()
    detector: tuple[str, ...] = ("default",)
    """Detectors to compare: names, run folders, hub ids, python:FILE.py:FUNCTION, scores:FILE,
    onnx:FILE, and published ones, NAME or NAME:WEIGHTS."""
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
    faces: bool = False
    """Measure the largest face of each image by itself, too, as a protocol `face`."""
    localise: str = "auto"
    """Method of the heatmaps that are compared with masks, where the corpora have any: auto,
    patches, tiles, gradcam, or none."""
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
    batch_size: int | None = None
    """Tiles scored at a time; None: 32, on a GPU what its free memory takes."""
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        as_lists(self)
        as_paths(self, "out", "corpora")
        at_least(self, batch_size=1, bootstrap=0, seed=0, epochs=1, size=16, soup=1)
        at_least(self, n=10, jobs=1, align_size=16)
        one_of(self, split=("all", "train", "val", "test"), protocol=("both", "raw", "aligned"))
        one_of(self, localise=("auto", "patches", "tiles", "gradcam", "none"))
        one_of(self, recipe=tuple(RECIPES))
        enough_seeds(self.seed, self.soup)
        valid_device(self.device)
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
