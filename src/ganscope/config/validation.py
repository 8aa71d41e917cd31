"""What the settings of several commands are checked by; what is wrong is named by its flag."""

import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_origin

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


def enough_seeds(seed: int, soup: int | None) -> None:
    """Raise `GanscopeError` if the seeds of a soup's trainings, counted on from one, are too many
    or too large.
    """
    if soup and soup > 1 and seed + soup >= 2**32:
        raise GanscopeError(
            f"--seed must be below {2**32 - soup} with --soup {soup}, which counts on from it, not "
            f"{seed}"
        )


def one_of(settings: object, **choices: tuple[str, ...]) -> None:
    for name, allowed in choices.items():
        value = getattr(settings, name)
        if value is not None and value not in allowed:
            raise GanscopeError(
                f"{flag_of(name)} must be one of {', '.join(allowed)}, not {value!r}"
            )


def valid_device(value: str) -> None:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,2})?", value):
        raise GanscopeError(
            f"--device must be one of {', '.join(DEVICES)} (or cuda:1), not {value!r}"
        )


def valid_truncation(value: float) -> None:
    if not 0 <= value <= 1:
        raise GanscopeError(f"--truncation must be between 0 and 1, not {value:g}")


def valid_suffix(out: Path | None, *allowed: str) -> None:
    if out is not None and out.suffix.lower() not in allowed:
        endings = " or ".join(allowed)
        if out.is_dir():
            raise GanscopeError(
                f"--out {out}: is a folder; name a file in it that ends in {endings}"
            )
        raise GanscopeError(f"--out must end in {endings}, not {out.name!r}")


def is_number(text: str) -> bool:
    """Whether a text is a whole number in digits 0 to 9; ² and its like are digits, too, of which
    `int` knows nothing.
    """
    return bool(re.fullmatch(r"[0-9]{1,9}", text))


def as_lists(settings: Any) -> None:
    """Let Python users write a single thing, or a list, where several can be named."""
    for field in fields(settings):
        if get_origin(field.type) is not tuple:
            continue
        value = getattr(settings, field.name)
        kind = get_args(field.type)[0]
        if value is None:
            value = ()
        elif isinstance(value, str | os.PathLike):
            value = (value,)
        try:
            value = tuple(kind(os.fspath(one)) for one in value)
        except TypeError:
            raise GanscopeError(
                f"{field.name} must be a list of names, not {getattr(settings, field.name)!r}"
            ) from None
        object.__setattr__(settings, field.name, value)


def as_paths(settings: object, *names: str) -> None:
    """Let Python users write paths as text. Raises `GanscopeError` for an address (s3://...)."""
    for name in names:
        value = getattr(settings, name)
        for one in value if isinstance(value, tuple | list) else [value]:
            if one is not None and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(one)):
                raise GanscopeError(
                    f"{flag_of(name)} {one}: must be a path on this machine, not an address"
                )
        if isinstance(value, str):
            object.__setattr__(settings, name, Path(value))
        elif isinstance(value, tuple | list):
            object.__setattr__(settings, name, tuple(Path(v) for v in value))


def flag_of(name: str) -> str:
    return "--" + name.rstrip("_").replace("_", "-")
