"""What detectors said of images before: kept on disk, so that nothing is computed twice.

A value is found again by the image's bytes, by what was done to the image, and by the detector. It
does not matter where the file lies or what corpus names it.
"""

import os
import sqlite3
import time
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from pathlib import Path

import numpy as np

from ganscope.datasets.degradations import estimate_quality
from ganscope.errors import GanscopeWarning, ImageError
from ganscope.files import cache_folder
from ganscope.images import read_facts

READERS, AT_ONCE = 8, 64
"""Threads that read files from a slow disk, and files given to a thread at a time: to hand over a
small file takes longer than to read it."""
VERSION = 4
"""Of what is kept. To be raised with every change of what ganscope itself does to images on their
way to a value: degradations, alignment, tiles, the preprocessing of published detectors, estimates
of JPEG quality, heatmaps. What an older version has kept is then forgotten."""
_HEAT = """
CREATE TABLE IF NOT EXISTS heat (
    detector TEXT, method TEXT, image TEXT, counts BLOB, PRIMARY KEY (detector, method, image)
) WITHOUT ROWID;
"""
_TABLES = """
CREATE TABLE IF NOT EXISTS files (
    path BLOB PRIMARY KEY, bytes INTEGER, modified INTEGER, changed INTEGER, image TEXT,
    quality INTEGER, width INTEGER, height INTEGER
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS looks (
    detector TEXT, change TEXT, image TEXT, value REAL, PRIMARY KEY (detector, change, image)
) WITHOUT ROWID;
"""


def cache_file() -> Path:
    """Where values are kept."""
    return cache_folder() / "benchmark.sqlite"


@dataclass(frozen=True)
class FileFacts:
    """What the benchmark must know of a file before it opens it."""

    image: str
    """Hash of the file's bytes."""
    quality: int
    """JPEG quality, 1 to 100; 0: another container."""
    width: int
    height: int


class Cache:
    """Values of images by detector and change, and the hashes of files that have not changed.

    path: an SQLite file; None: nothing outlives the process. One that cannot be written is done
    without, with a warning.
    """

    def __init__(self, path: Path | None):
        self.path, self.writes = path, True
        try:
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._open(str(path or ":memory:"))
        except (OSError, sqlite3.Error) as error:
            self._tell(error, path)
            self._open(":memory:")

    def _open(self, name: str) -> None:
        self.base = sqlite3.connect(name, timeout=60)
        self.base.execute("PRAGMA journal_mode=WAL")
        if self.base.execute("PRAGMA user_version").fetchone() != (VERSION,):
            self.base.executescript(
                "DROP TABLE IF EXISTS files; DROP TABLE IF EXISTS looks; "
                f"DROP TABLE IF EXISTS heat; {_TABLES} PRAGMA user_version={VERSION};"
            )
        self.base.executescript(_HEAT)

    def _tell(self, error: Exception, path: Path | None) -> None:
        warnings.warn(
            f"{path}: nothing can be kept there ({error}); delete it if it is damaged, or set "
            "GANSCOPE_CACHE to a folder of yours",
            GanscopeWarning,
            stacklevel=3,
        )
        self.writes = False

    def close(self) -> None:
        self.base.close()

    def facts(self, paths: list[str]) -> list[FileFacts | ImageError]:
        """The facts about each file; those whose size and times are as they were are not read."""
        known = {
            os.fsdecode(path): ((size, modified, changed), FileFacts(*rest))
            for path, size, modified, changed, *rest in self._read("SELECT * FROM files")
        }
        found: dict[str, FileFacts | ImageError] = {}
        new = []

        def look(path: str) -> tuple[str, tuple[int, int, int] | None, FileFacts | ImageError]:
            """The whole path, what the file system says of a file that was read, and its facts."""
            whole = os.path.abspath(path)
            try:
                about = os.stat(path)
                # Two times: archives give all their files the same time of modification.
                stamp = (about.st_size, about.st_mtime_ns, about.st_ctime_ns)
                old = known.get(whole)
                if old and old[0] == stamp:
                    return whole, None, old[1]
                return whole, stamp, read_file(path)
            except ImageError as error:
                return whole, None, error
            except OSError as error:
                return whole, None, ImageError(path, error.strerror or "cannot be read")

        def look_at(some: list[str]) -> list:
            return [look(path) for path in some]

        parts = [paths[i : i + AT_ONCE] for i in range(0, len(paths), AT_ONCE)]
        wall, busy = time.perf_counter(), time.thread_time()
        first = [look_at(part) for part in parts[:1]]
        wall, busy = time.perf_counter() - wall, time.thread_time() - busy
        # Threads help where the disk makes one wait; else they only compete for the interpreter.
        with ThreadPoolExecutor(READERS if wall > 2 * busy else 1) as pool:
            looked = chain.from_iterable(chain(first, pool.map(look_at, parts[1:])))
            for path, (whole, stamp, facts) in zip(paths, looked, strict=True):
                found[path] = facts
                if stamp and isinstance(facts, FileFacts):
                    rest = (facts.image, facts.quality, facts.width, facts.height)
                    new.append((os.fsencode(whole), *stamp, *rest))
        self._write("INSERT OR REPLACE INTO files VALUES (?,?,?,?,?,?,?,?)", new)
        return [found[path] for path in paths]

    def values(self, detector: str, change: str) -> dict[str, float]:
        """Image -> value, of all images that this detector has seen after this change."""
        asked = "SELECT image, value FROM looks WHERE detector = ? AND change = ?"
        return dict(self._read(asked, (detector, change)))

    def _read(self, command: str, values: tuple = ()) -> list[tuple]:
        """Rows; of a file that turns out to be damaged none, and it is done without."""
        try:
            rows = list(self.base.execute(command, values))
            if any(None in row for row in rows):  # nothing is ever kept as that
                raise sqlite3.DatabaseError("rows without values")
            return rows
        except (sqlite3.Error, UnicodeDecodeError) as error:
            warnings.warn(
                f"{self.path}: is damaged ({error}); all is computed anew and not kept. Delete it",
                GanscopeWarning,
                stacklevel=3,
            )
            self.writes = False
            self.base.close()
            self._open(":memory:")
            return []

    def keep(self, detector: str, rows: Iterable[tuple[str, str, float]]) -> None:
        """Keep (change, image, value) of a detector; at once on disk."""
        self._write(
            "INSERT OR REPLACE INTO looks VALUES (?,?,?,?)", ((detector, *row) for row in rows)
        )

    def counts(self, detector: str, method: str) -> dict[str, np.ndarray]:
        """Image and mask -> pixels by heat (2, N), as this detector's heatmaps were counted."""
        asked = "SELECT image, counts FROM heat WHERE detector = ? AND method = ?"
        found = self._read(asked, (detector, method))
        return {image: np.frombuffer(counts, np.int64).reshape(2, -1) for image, counts in found}

    def keep_counts(self, detector: str, method: str, image: str, counts: np.ndarray) -> None:
        """Keep what `counts` gives back; at once on disk."""
        row = (detector, method, image, counts.astype(np.int64).tobytes())
        self._write("INSERT OR REPLACE INTO heat VALUES (?,?,?,?)", [row])

    def _write(self, command: str, rows: Iterable[tuple]) -> None:
        """Write rows; after the first failure (a full disk, say) nothing is written any more."""
        if not self.writes:
            return
        try:
            with self.base:
                self.base.executemany(command, rows)
        except sqlite3.Error as error:
            self._tell(error, self.path)


def read_file(path: str) -> FileFacts:
    """The facts about a file; raises `ImageError` or `OSError` if it cannot be read."""
    facts = read_facts(path)
    digest = blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    quality = estimate_quality(facts.quantization) if facts.quantization else 0
    return FileFacts(digest.hexdigest(), quality, facts.stored_width, facts.stored_height)
