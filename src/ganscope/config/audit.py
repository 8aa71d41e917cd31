"""The settings of `ganscope audit`."""

from dataclasses import dataclass
from pathlib import Path

from ganscope.config.validation import as_paths, at_least
from ganscope.errors import GanscopeError


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """Settings of `ganscope audit`."""

    corpus: Path
    max_auroc: float = 0.6
    """Exit with status 1 if the file format alone tells real from fake better than this."""
    aligned: bool = False
    """Audit the images as they are after alignment: native crops of one size, compressed alike."""
    drop_declared: bool = False
    """Leave out reals that declare themselves generated or edited with AI, and fakes that a camera
    took, both by their files' own word; they are named in any case."""
    seed: int = 0

    def __post_init__(self) -> None:
        as_paths(self, "corpus")
        at_least(self, seed=0)
        if not 0.5 <= self.max_auroc <= 1:
            raise GanscopeError(f"--max-auroc must be between 0.5 and 1, not {self.max_auroc:g}")
