"""Files that are written whole or not at all, JSON, and names that are free."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ganscope.errors import GanscopeError


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically: a killed run leaves the old file or the new one, never half."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A name to write to in the same folder, with the same suffix; at the end of the block that
    file takes the place of `path`, unless an error ended it.
    """
    path = Path(path)
    # Several machines may write into a folder; in containers they share their process number, too.
    part = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: str | Path, data: Any) -> None:
    """Write JSON atomically, indented for people."""
    write_text(path, json.dumps(data, indent=2, default=str) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object; raises `GanscopeError` if it is missing or not one."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GanscopeError(f"{path}: no such file") from None
    except (ValueError, OSError) as error:
        raise GanscopeError(f"{path}: not a readable JSON file ({error})") from None
    if not isinstance(data, dict):
        raise GanscopeError(f"{path}: expected a JSON object")
    return data


def next_free(folder: Path, is_finished: Any) -> Path:
    """`folder`, or `folder-2`, `folder-3`, ...: the first that is not finished already."""
    candidate, number = folder, 1
    while is_finished(candidate):
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def cache_folder() -> Path:
    """What is kept between commands: $GANSCOPE_CACHE, or `ganscope` in the user's own place for
    caches.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("GANSCOPE_CACHE") or Path(home) / "ganscope")
