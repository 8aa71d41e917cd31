"""What a user types after `--generator PREFIX:`, taken apart: options, labels, hashes.

`taesd?times=2&noise=0.1` is a head and its options; every generator that takes options takes them
in this one spelling.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ganscope.errors import GanscopeError, reason_of
from ganscope.registry import unknown

Reader = Callable[[str], Any]
"""Text of an option -> its value; raises `ValueError` that says what it must be."""


def split_options(
    name: str,
    text: str,
    readers: Mapping[str, Reader],
    other: Reader | None = None,
    headless: bool = False,
) -> tuple[str, dict[str, Any]]:
    """`HEAD?key=value&key=value` -> HEAD and the values that were given, read by `readers`.

    name: the generator as the user typed it. other: reads the options that `readers` do not name.
    headless: it has no head. Raises `GanscopeError` for a head that is missing or one too many, an
    option that is unknown, given twice or without a value, or a value that its reader refuses.
    """
    head, _, tail = text.partition("?")
    if headless and head:
        raise GanscopeError(
            f"--generator {name}: nothing goes between the colon and its options; write "
            f"{name.partition(':')[0]}:?key=value"
        )
    if not head and not headless:
        raise GanscopeError(f"--generator {name}: say what after the colon")
    values: dict[str, Any] = {}
    for part in tail.split("&") if tail else ():
        key, equals, value = part.partition("=")
        if not equals:
            raise GanscopeError(
                f"--generator {name}: write options as ?key=value&key=value, not {part!r}"
            )
        read = readers.get(key, other)
        if read is None:
            raise GanscopeError(f"--generator {name}: {unknown('option', key, sorted(readers))}")
        if key in values:
            raise GanscopeError(f"--generator {name}: {key} is given twice")
        try:
            values[key] = read(value)
        except ValueError as error:
            raise GanscopeError(f"--generator {name}: {key} {error}, not {value!r}") from None
    return head, values


def number(low: float, high: float = float("inf")) -> Reader:
    """Reader of a finite number from `low` to `high`, both allowed."""
    wanted = f"must be a number of at least {low:g}"
    if high < float("inf"):
        wanted = f"must be a number from {low:g} to {high:g}"

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError(wanted) from None
        if not (low <= value <= high and value < float("inf")):
            raise ValueError(wanted)
        return value

    return read


def whole(low: int) -> Reader:
    """Reader of a whole number of at least `low`."""

    def read(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text) or int(text) < low:
            raise ValueError(f"must be a whole number of at least {low}")
        return int(text)

    return read


def choice(*names: str) -> Reader:
    """Reader of one of some names."""

    def read(text: str) -> str:
        if text not in names:
            raise ValueError(f"must be one of {', '.join(names)}")
        return text

    return read


def as_label(*parts: str, **options: Any) -> str:
    """One name for a corpus' folder and manifest: no separators but "-", nothing a shell minds.

    options: a corpus may hold one generator's fakes at several settings; words say of themselves
    what they are of, and tables are narrow.
    """
    for key, value in sorted(options.items()):
        if isinstance(value, str):
            parts += (value,)
        else:
            parts += (f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}",)
    label = re.sub(r"[^\w.=-]+", "--", "-".join(parts), flags=re.ASCII)
    return label.strip("-.") or "generator"


def hash_networks(*networks: nn.Module) -> str:
    """12 hexadecimal digits of the SHA-256 of networks' names and weights."""
    digest = hashlib.sha256()
    for network in networks:
        for key, value in sorted(network.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


def read_state(name: str, path: Path) -> dict[str, Tensor]:
    """The tensors in a .safetensors file or one of `torch.save`; no code in it is run.

    Raises `GanscopeError` if there is no such file or it holds something else.
    """
    if not path.is_file():
        raise GanscopeError(f"--generator {name}: no such file: {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's, zipfile's, torch's, safetensors'
        raise GanscopeError(
            f"--generator {name}: {path} cannot be read as a state dict ({reason_of(error)})"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise GanscopeError(f"--generator {name}: {path} holds no state dict")
    return state


def seed_of(*numbers: int) -> int:
    """One 63-bit seed for torch out of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
