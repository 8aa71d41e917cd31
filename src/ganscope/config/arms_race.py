"""The settings of `ganscope arms-race`."""

from dataclasses import dataclass
from pathlib import Path

from ganscope.config.validation import PRECISIONS, as_paths, at_least, one_of, valid_device


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
        as_paths(self, "out")
        at_least(self, rounds=2, size=16, width=4, n=50, first_steps=1, steps=1, epochs=1)
        at_least(self, critic_weight=0, seed=0)
        one_of(self, precision=PRECISIONS)
        valid_device(self.device)
