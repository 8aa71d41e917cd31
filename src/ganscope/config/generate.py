"""The settings of `ganscope generate`."""

from dataclasses import dataclass
from pathlib import Path

from ganscope.config.validation import (
    as_paths,
    at_least,
    is_number,
    one_of,
    valid_device,
    valid_truncation,
)
from ganscope.errors import GanscopeError

FORMATS = ("png", "jpeg", "webp")


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
        as_paths(self, "out", "from_", "prompts")
        at_least(self, n=1, size=8, quality=1, seed=0)
        one_of(self, format=FORMATS)
        valid_device(self.device)
        if self.quality > 100:
            raise GanscopeError(f"--quality must be at most 100, not {self.quality}")
        valid_truncation(self.truncation)
        if self.from_ is not None and self.size is not None:
            raise GanscopeError("--size: with --from photographs stay whole; leave it out")
        if self.from_ is not None and self.real != "photographs":
            raise GanscopeError("--real: with --from the reals are its photographs; leave it out")
        if self.shard is not None:
            part, _, parts = self.shard.partition("/")
            known = is_number(part) and is_number(parts)
            if not (known and 1 <= int(part) <= int(parts)):
                raise GanscopeError(f"--shard must be i/n with 1 <= i <= n, not {self.shard!r}")
