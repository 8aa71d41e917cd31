"""The settings of `ganscope spectra`."""

from dataclasses import dataclass
from pathlib import Path

from ganscope.config.validation import as_lists, as_paths, at_least, valid_suffix


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
        as_lists(self)
        as_paths(self, "corpora", "out")
        at_least(self, n=1, seed=0)
        valid_suffix(self.out, ".png")
