"""The settings of the `ganscope latent` commands."""

from dataclasses import dataclass
from pathlib import Path

from ganscope.config.validation import (
    as_lists,
    as_paths,
    at_least,
    valid_device,
    valid_suffix,
    valid_truncation,
)
from ganscope.errors import GanscopeError


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
        as_lists(self)
        as_paths(self, "out")
        at_least(self, seed=0)
        valid_truncation(self.truncation)
        valid_device(self.device)


@dataclass(frozen=True, kw_only=True)
class LatentWalkSettings(LatentSettings):
    """Settings of `ganscope latent walk`."""

    fakes: tuple[str, ...]
    """Where the walk leads along: numbers of fakes (12), or SEED:NUMBER (3:12)."""
    steps: int = 8
    """From one fake to the next."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, steps=1)
        valid_suffix(self.out, ".png", ".gif")
        if len(self.fakes) < 2:
            raise GanscopeError("name at least two fakes to walk between, for example 3 17")


@dataclass(frozen=True, kw_only=True)
class LatentArithmeticSettings(LatentSettings):
    """Settings of `ganscope latent arithmetic`."""

    expression: str
    """Groups of fakes, each averaged, with + and - between: "1,5,9 - 2,3 + 7,8"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        valid_suffix(self.out, ".png")


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
        as_paths(self, "with_", "without", "corpus")
        valid_suffix(self.out, ".json")


@dataclass(frozen=True, kw_only=True)
class LatentApplySettings(LatentSettings):
    """Settings of `ganscope latent apply`."""

    direction: Path
    """What `ganscope latent direction` wrote."""
    fakes: tuple[str, ...]
    """Numbers of fakes (12), or SEED:NUMBER (3:12): a row each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        as_paths(self, "direction")
        valid_suffix(self.out, ".png")
        if not self.fakes:
            raise GanscopeError("name at least one fake to change, for example 3")
