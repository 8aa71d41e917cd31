"""Files that are written whole or not at all, those that are damaged, JSON, and free names."""

import csv
import errno
import io
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ganscope.errors import GanscopeError, reason_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically: a killed run leaves the old file or the new one, never half."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A name to write to in the same folder, with the same suffix; at the end of the block that
    file takes the place of `path`, unless an error ended it. A power cut, too, leaves the old file
    or the new one.
    """
    path = Path(path)
    # Several machines may write into a folder; in containers they share their process number, too.
    end = f".{secrets.token_hex(4)}.part{path.suffix}"
    part = path.with_name(f".{cut_name(path.stem, LONGEST - 1 - len(os.fsencode(end)))}{end}")
    try:
        yield part
        take_place(part, path)
    except OSError as error:
        if error.errno in FULL:
            raise full(path, error) from None
        taken = error.errno == errno.ENOENT and error.filename == os.fspath(part)
        if taken or not path.parent.is_dir():  # what empties a folder removes the folder last
            raise gone(path.parent) from None
        raise
    finally:
        with suppress(OSError):  # its folder may have become another thing
            part.unlink(missing_ok=True)


_PART = re.compile(r"\..+\.part(\.[^.]*)?")


def is_part(name: str) -> bool:
    """Whether a file has the name of one that was not written to its end, as a kill leaves it."""
    return bool(_PART.fullmatch(name))


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a disk answers that takes no more."""


def full(path: str | Path, error: OSError) -> GanscopeError:
    """The line about a disk that takes no more, or a file that may not grow."""
    remedy = "free some space"
    if error.errno == errno.EFBIG:
        remedy = "raise the limit on a file's size (ulimit -f), or take a disk for larger ones,"
    return GanscopeError(
        f"{path}: cannot be written ({error.strerror}); {remedy} and run the same command again"
    )


def gone(folder: str | Path) -> GanscopeError:
    """The line about a folder that is no longer there."""
    return GanscopeError(
        f"{folder}: this folder is gone; leave it in its place while the command writes there, and "
        "run the same command again"
    )


def write_picture(path: str | Path, pixels: "np.ndarray") -> None:
    """Write (H, W, 3) uint8 RGB as PNG, atomically; a full disk is a `GanscopeError`."""
    from PIL import Image

    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "PNG", compress_level=3)
    with replacing(path) as part:  # encoders of files are silent about a full disk
        part.write_bytes(held.getbuffer())


def take_place(part: Path, path: Path) -> None:
    """Put a file that is written in the place of `path`, once its bytes are on the disk."""
    _sync(part, os.O_RDWR)
    os.replace(part, path)
    if os.name != "nt":  # where a folder is no file
        with suppress(OSError):
            _sync(path.parent, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):  # it has no disk
            raise
    finally:
        os.close(descriptor)


@contextmanager
def damaged(path: str | Path, remedy: str) -> Iterator[None]:
    """Turn whatever reading a damaged file of ours raises into a line.

    remedy: what to do, such as "delete it and run the same command again".
    """
    try:
        yield
    except (GanscopeError, MemoryError):
        raise
    except Exception as error:  # any of torch's, zipfile's, pickle's, pandas', numpy's
        reason = " ".join(reason_of(error).split())[:160]
        raise GanscopeError(f"{path}: is damaged ({reason}); {remedy}") from None


def write_json(path: str | Path, data: Any) -> None:
    """Write JSON atomically, indented for people."""
    write_text(path, json.dumps(data, indent=2, default=str) + "\n")


def read_json(path: str | Path, remedy: str = "") -> dict[str, Any]:
    """Read a JSON object; raises `GanscopeError` if it is missing or not one.

    remedy: as in `damaged`, of a file that is ours.
    """
    end = f"; {remedy}" if remedy else ""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GanscopeError(f"{path}: no such file{end}") from None
    except (ValueError, OSError, RecursionError) as error:
        raise GanscopeError(f"{path}: not a readable JSON file ({error}){end}") from None
    if not isinstance(data, dict):
        raise GanscopeError(f"{path}: expected a JSON object{end}")
    return data


def next_free(folder: Path, is_finished: Any) -> Path:
    """`folder`, or `folder-2`, `folder-3`, ...: the first that is not finished already."""
    candidate, number = folder, 1
    while is_finished(candidate):
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


LONGEST = 255
"""Bytes that a file's name may have on nearly all disks."""
_STRANGE = re.compile(
    r"[\x00-\x1f\x7f-\x9f<>:\"/\\|?*\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def free_name(folder: Path, image: str, suffix: str) -> Path:
    """The path of a file named after an image, that no file in the folder has.

    Characters that not every disk takes, or that nobody sees, become "_"; a long name is cut, so
    that it can be numbered and written under a temporary name first.
    """
    stem = _STRANGE.sub("_", Path(image).stem).rstrip(" .") or "image"
    stem = cut_name(stem, LONGEST - 60)
    found, number = folder / f"{stem}{suffix}", 1
    while found.exists():
        number += 1
        found = folder / f"{stem}-{number}{suffix}"
    return found


def cut_name(name: str, most: int) -> str:
    """The beginning of a name that has `most` bytes at most, characters whole."""
    return os.fsencode(name)[:most].decode("utf-8", "ignore")


_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def guard_cell(value: Any) -> Any:
    """A cell as a table for people may hold it: text that a spreadsheet would run as a formula
    (it begins with =, +, -, @, a tab or a line's end) gets an apostrophe in front.

    `plain_cell` is the opposite. Text that begins so behind apostrophes of its own gets one, too,
    so that what is read back is always what was there.
    """
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def guard_table(table: "pd.DataFrame") -> "pd.DataFrame":
    """A table whose cells are all as `guard_cell` leaves them."""
    guarded = table.copy()
    for name in table.select_dtypes(exclude="number"):
        guarded[name] = table[name].map(guard_cell)
    return guarded


def csv_text(table: "pd.DataFrame", **options: Any) -> str:
    """A table as CSV, for people: cells as `guard_cell` leaves them."""
    guarded = guard_table(table)
    # As `csv_line`: pandas leaves a carriage return unquoted where lines end with a newline.
    texts = [guarded[name] for name in guarded.select_dtypes(exclude="number")]
    returns = any("\r" in value for column in texts for value in column if isinstance(value, str))
    quoting = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
    return guarded.to_csv(index=False, quoting=quoting, **options)


def csv_line(cells: Iterable[Any]) -> str:
    """A line of CSV with its end, a newline, cells as `guard_cell` leaves them.

    Python before 3.13 quotes a carriage return only where it ends lines: unquoted, what stands
    behind it in a name would be a row of its own.
    """
    held = io.StringIO(newline="")
    csv.writer(held, lineterminator="\r\n").writerow([guard_cell(cell) for cell in cells])
    return held.getvalue().removesuffix("\r\n") + "\n"


def plain_cell(value: Any) -> Any:
    """The opposite of `guard_cell`."""
    guarded = isinstance(value, str) and value[:1] == "'" and _FORMULA.match(value)
    return value[1:] if guarded else value


def cache_folder() -> Path:
    """What is kept between commands: $GANSCOPE_CACHE, or `ganscope` in the user's own place for
    caches.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("GANSCOPE_CACHE") or Path(home) / "ganscope")
