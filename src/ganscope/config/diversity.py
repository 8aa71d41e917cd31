"""The settings of `ganscope diversity`."""

from dataclasses import dataclass
from pathlib import Path

from ganscope.config.validation import LOSSES, as_paths, at_least, one_of, valid_device


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
        as_paths(self, "weights")
        object.__setattr__(self, "what", str(self.what))
        at_least(self, n=10, seed=0, seeds=1, steps=1)
        one_of(self, loss=LOSSES)
        valid_device(self.device)
