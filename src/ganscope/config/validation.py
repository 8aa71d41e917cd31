"""What the settings of several commands are checked by; what is wrong is named by its flag."""

import re
from pathlib import Path

from ganscope.errors import GanscopeError

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
LOSSES = ("minimax", "non-saturating")


def at_least(settings: object, **lows: float) -> None:
    for name, low in lows.items():
        value = getattr(settings, name)
        if value is not None and not value >= low:
            raise GanscopeError(f"{flag_of(name)} must be at least {low:g}, not {value!r}")
    if "seed" in lows and getattr(settings, "seed", 0) >= 2**32:
        raise GanscopeError("--seed must be below 4294967296")


def one_of(settings: object, **choices: tuple[str, ...]) -> None:
    for name, allowed in choices.items():
        value = getattr(settings, name)
        if value is not None and value not in allowed:
            raise GanscopeError(
                f"{flag_of(name)} must be one of {', '.join(allowed)}, not {value!r}"
            )


def valid_device(value: str) -> None:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        raise GanscopeError(
            f"--device must be one of {', '.join(DEVICES)} (or cuda:1), not {value!r}"
        )


def valid_truncation(value: float) -> None:
    if not 0 <= value <= 1:
        raise GanscopeError(f"--truncation must be between 0 and 1, not {value:g}")


def valid_suffix(out: Path | None, *allowed: str) -> None:
    if out is not None and out.suffix.lower() not in allowed:
        raise GanscopeError(f"--out must end in {' or '.join(allowed)}, not {out.name!r}")


def as_paths(settings: object, *names: str) -> None:
    """Let Python users write paths as text."""
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, str):
            object.__setattr__(settings, name, Path(value))
        elif isinstance(value, tuple | list):
            object.__setattr__(settings, name, tuple(Path(v) for v in value))


def flag_of(name: str) -> str:
    return "--" + name.rstrip("_").replace("_", "-")
