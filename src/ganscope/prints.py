"""What an image is known again by: a hash of its pixels, and a coarse look that survives
re-encoding.

A detector keeps the prints of the images that it learned from beside its weights, so that it can be
told, wherever they lie and whatever they are called, that it is tested on them.
"""

import atexit
import os
import sqlite3
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path

import cv2
import numpy as np

from ganscope.errors import ImageError
from ganscope.files import cache_folder, replacing
from ganscope.images import open_image

LEARNED = "learned.npz"
"""The prints of what a detector learned from, in its folder."""
FLAT = 4.0
"""Levels: an image that varies less, once it is shrunk, has no look of its own."""
NEAR = 7
"""Bits of 128 by which two looks of one picture may differ. Saved as JPEG 50 or halved, those of
photographs differ by 0 to 4; different photographs by 30 and more."""
AT_ONCE = 32
"""Files given to a thread at a time."""
_BLOCK = 1 << 20
"""Pairs of looks that are compared at a time."""
VERSION = 1
"""Of prints; to be raised with every change of what they are made of."""
_TABLE = """
CREATE TABLE IF NOT EXISTS prints (
    path BLOB PRIMARY KEY, bytes INTEGER, modified INTEGER, changed INTEGER, print BLOB
) WITHOUT ROWID;
"""
_NUMBERS = np.dtype("<u8")


@dataclass(frozen=True)
class Prints:
    """Prints of images, a row each."""

    pixels: np.ndarray
    """(N,) uint64: hash of the decoded pixels."""
    looks: np.ndarray
    """(N, 2) uint64: where the shrunk image grows brighter; 0, 0 where it is all but flat."""
    labels: np.ndarray
    """(N,) uint8: 0 real, 1 fake."""
    chosen: np.ndarray
    """(N,) bool: the images set thresholds only; those of the others were learned from."""
    complete: bool = True
    """Whether these are all images that were learned from."""

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, rows: np.ndarray) -> "Prints":
        """Some of them."""
        return Prints(self.pixels[rows], self.looks[rows], self.labels[rows], self.chosen[rows])

    def and_of(self, others: Sequence["Prints | None"]) -> "Prints":
        """These and those of others, each once; not complete where another has none."""
        known = [self, *(other for other in others if other is not None)]
        parts = [
            np.concatenate([getattr(one, name) for one in known])
            for name in ("pixels", "looks", "labels", "chosen")
        ]
        order = np.argsort(parts[3], kind="stable")  # learned from weighs more than chosen by
        _, first = np.unique(
            np.column_stack([parts[0], parts[2]])[order], axis=0, return_index=True
        )
        rows = np.sort(order[first])
        complete = None not in others and all(one.complete for one in known)
        pixels, looks, labels, chosen = (part[rows] for part in parts)
        return Prints(pixels, looks, labels, chosen, complete)

    def save(self, path: Path) -> None:
        with replacing(path) as part:
            np.savez(
                part,
                version=np.array(VERSION),
                pixels=self.pixels,
                looks=self.looks,
                labels=self.labels,
                chosen=self.chosen,
                complete=np.array(self.complete),
            )

    @classmethod
    def nothing(cls, complete: bool = True) -> "Prints":
        """Those of no image."""
        none = np.zeros(0, np.uint64)
        return cls(
            none, none.reshape(0, 2), none.astype(np.uint8), none.astype(bool), complete=complete
        )

    @classmethod
    def load(cls, path: Path) -> "Prints | None":
        """Those that `save` wrote; None if there are none, or none that can be read."""
        try:
            with np.load(path) as kept:
                if int(kept["version"]) != VERSION:
                    return None
                found = cls(
                    kept["pixels"].astype(np.uint64),
                    kept["looks"].astype(np.uint64).reshape(-1, 2),
                    kept["labels"].astype(np.uint8),
                    kept["chosen"].astype(bool),
                    bool(kept["complete"]),
                )
        except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
            return None
        same = {len(found.pixels), len(found.looks), len(found.labels), len(found.chosen)}
        return found if len(same) == 1 else None


def print_of(pixels: np.ndarray) -> bytes:
    """The print of an image (H, W, 3) uint8: 24 bytes."""
    digest = blake2b(repr(pixels.shape).encode(), digest_size=8)
    digest.update(np.ascontiguousarray(pixels).data)
    small = cv2.resize(pixels, (9, 9), interpolation=cv2.INTER_AREA).astype(np.float32)
    grey = small @ np.array([0.299, 0.587, 0.114], np.float32)
    if grey.std() < FLAT:
        return digest.digest() + bytes(16)
    right, down = grey[:8, 1:] > grey[:8, :-1], grey[1:, :8] > grey[:-1, :8]
    return digest.digest() + np.packbits(np.stack([right, down])).tobytes()


def look_at(
    paths: Sequence[str], report: Callable[[int], None] | None = None
) -> list[bytes | ImageError]:
    """The print of each image file, or what is wrong with it. Files that were looked at before and
    have not changed are not opened.

    `report` is called with the number of files looked at so far.
    """
    with closing(_open_cache()) as base:
        known = _known(base, paths)
        new: list[tuple[bytes, int, int, int, bytes]] = []

        def look(path: str) -> tuple[bytes | ImageError, tuple | None]:
            try:
                about = os.stat(path)
                stamp = (about.st_size, about.st_mtime_ns, about.st_ctime_ns)
                old = known.get(os.path.abspath(path))
                if old and old[0] == stamp:
                    return old[1], None
                return print_of(open_image(path).pixels), stamp
            except ImageError as error:
                return error, None
            except OSError as error:
                return ImageError(path, error.strerror or "cannot be read"), None

        def look_at_some(some: Sequence[str]) -> list:
            return [look(path) for path in some]

        parts = [paths[i : i + AT_ONCE] for i in range(0, len(paths), AT_ONCE)]
        found: list[bytes | ImageError] = []
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            try:
                for part, looked in zip(parts, pool.map(look_at_some, parts), strict=True):
                    for path, (one, stamp) in zip(part, looked, strict=True):
                        found.append(one)
                        if stamp and isinstance(one, bytes):
                            new.append((os.fsencode(os.path.abspath(path)), *stamp, one))
                    if report:
                        report(len(found))
            finally:
                pool.shutdown(cancel_futures=True)
                with suppress(sqlite3.Error), base:  # a full disk: they are looked at again
                    base.executemany("INSERT OR REPLACE INTO prints VALUES (?,?,?,?,?)", new)
    return found


def to_prints(
    found: Sequence[bytes], labels: Sequence[int] | np.ndarray, chosen: np.ndarray | None = None
) -> Prints:
    """Prints as `look_at` gives them, as one table."""
    numbers = np.frombuffer(b"".join(found), _NUMBERS).reshape(-1, 3).astype(np.uint64)
    none = np.zeros(len(numbers), bool)
    return Prints(
        numbers[:, 0],
        numbers[:, 1:],
        np.asarray(labels, np.uint8),
        none if chosen is None else np.asarray(chosen, bool),
    )


def find_same(one: Prints, other: Prints, same_label: bool = True) -> np.ndarray:
    """Pairs (P, 2) of a row of `one` and a row of `other` that are the same picture: the same
    pixels, or looks that are near; with labels that are the same, or not.
    """
    found = [_exact(one.pixels, other.pixels), *_near(one.looks, other.looks)]
    pairs = np.unique(np.concatenate(found), axis=0)
    return pairs[(one.labels[pairs[:, 0]] == other.labels[pairs[:, 1]]) == same_label]


def _exact(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Pairs (P, 2) of rows with equal numbers."""
    order = np.argsort(other, kind="stable")
    low, high = (np.searchsorted(other[order], one, side) for side in ("left", "right"))
    left, right = _ranges(low, high)
    return np.column_stack([left, order[right]])


def _near(one: np.ndarray, other: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs (P, 2) of rows of looks (N, 2) that differ by at most `NEAR` bits.

    Of eight parts of two such looks at least one is equal, so only those are compared.
    """
    ours, theirs = (np.flatnonzero(looks.any(1)) for looks in (one, other))
    left, right = (
        np.ascontiguousarray(looks[rows]).view(np.uint16).reshape(-1, 8)
        for looks, rows in ((one, ours), (other, theirs))
    )
    for part in range(8):
        order = np.argsort(right[:, part], kind="stable")
        edges = right[order, part]
        low, high = (np.searchsorted(edges, left[:, part], side) for side in ("left", "right"))
        for rows in _blocks(high - low):
            i, j = _ranges(low[rows], high[rows])
            i, j = ours[rows][i], theirs[order[j]]
            apart = np.bitwise_count(one[i] ^ other[j]).sum(1)
            yield np.column_stack([i, j])[apart <= NEAR]


def _ranges(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and number for each number from low (N,) to high (N,) of each row."""
    counts = high - low
    rows = np.repeat(np.arange(len(low)), counts)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    return rows, np.arange(len(rows)) - starts + low[rows]


def _blocks(counts: np.ndarray) -> Iterator[slice]:
    """Rows one after the other, so many that their counts make about `_BLOCK`."""
    start, ends = 0, np.cumsum(counts)
    while start < len(counts):
        before = ends[start - 1] if start else 0
        end = max(int(np.searchsorted(ends, before + _BLOCK, "right")), start + 1)
        yield slice(start, end)
        start = end


def _open_cache() -> sqlite3.Connection:
    """Where prints are kept; for the process only, where no command can keep anything."""
    for place in (cache_folder, _for_this_process):
        base = None
        try:
            path = place() / "prints.sqlite"
            path.parent.mkdir(parents=True, exist_ok=True)
            base = sqlite3.connect(path, timeout=60)
            base.execute("PRAGMA journal_mode=WAL")
            if base.execute("PRAGMA user_version").fetchone() != (VERSION,):
                base.executescript(
                    f"DROP TABLE IF EXISTS prints; {_TABLE} PRAGMA user_version={VERSION};"
                )
            break
        except (OSError, sqlite3.Error):
            if base is not None:
                base.close()
            base = None
    return base or sqlite3.connect(":memory:")


@cache
def _for_this_process() -> Path:
    """A folder for a process that can keep nothing between commands; it goes with the process."""
    folder = tempfile.TemporaryDirectory(prefix="ganscope-", ignore_cleanup_errors=True)
    atexit.register(folder.cleanup)
    return Path(folder.name)


def _known(base: sqlite3.Connection, paths: Sequence[str]) -> dict[str, tuple[tuple, bytes]]:
    """Whole path -> size and times of the file, and its print."""
    wanted = {os.path.abspath(path) for path in paths}
    try:
        rows = base.execute("SELECT * FROM prints")
        found = {os.fsdecode(path): (tuple(stamp), kept) for path, *stamp, kept in rows}
    except sqlite3.Error:  # damaged: all are looked at again
        return {}
    return {path: found[path] for path in wanted & found.keys() if len(found[path][1]) == 24}
