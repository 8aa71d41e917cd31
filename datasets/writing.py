"""Writing a corpus so that a kill at any moment leaves something that can be continued.

While it grows, the rows stand in `.metadata.part-1-of-1.csv`; a row is added only after its image
is whole on the disk. `metadata.csv`, the sign of a finished corpus, appears last. `corpus.json`
says how the corpus was asked for, and a corpus is continued only by the same request.
"""

import csv
import os
import secrets
import shutil
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ganscope.config import read_json, write_json
from ganscope.datasets.corpus import REQUEST, ROWS, UNFINISHED
from ganscope.datasets.layouts import MANIFEST
from ganscope.errors import GanscopeError, GanscopeWarning
from ganscope.files import FULL, csv_line, full, gone, take_place
from ganscope.locks import PATIENCE, holding

COLUMNS = [
    "file_name",
    "label",
    "generator",
    "source",
    "group",
    "split",
    "seed",
    "index",
    "weights",
    "photo_x",
    "photo_y",
    "photo_side",
]
SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


def encode_image(pixels: np.ndarray, format: str, quality: int = 92) -> bytes:
    """(H, W, 3) uint8 RGB -> the bytes of a png, jpeg or webp file.

    PNG is stored uncompressed: then every file of one size in pixels has the same size in bytes,
    and the file's length cannot tell a noisy fake from a smooth photograph. It is also the
    quickest.
    """
    options = {
        "png": [
            *(cv2.IMWRITE_PNG_COMPRESSION, 0),
            *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE),
        ],
        "jpeg": [cv2.IMWRITE_JPEG_QUALITY, quality],
        "webp": [cv2.IMWRITE_WEBP_QUALITY, quality],
    }[format]
    done, data = cv2.imencode(SUFFIXES[format], cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise GanscopeError(f"this build of opencv cannot write {format}; choose another --format")
    return data.tobytes()


class CorpusWriter:
    """An open corpus at `root`: give it whole images and then their rows, and `finish` it.

    columns: of the manifest. shard: (i, n), part i of n that several processes or machines write;
    each has a manifest of its own until the last one joins them. Rows come in pairs, a fake and
    its real of one `index`; `next` is the first index that is missing.

    Raises `GanscopeError` if the folder holds a finished corpus, one begun by another request, or
    anything else, and when the disk is full or not writable.
    """

    def __init__(
        self,
        root: Path,
        request: dict[str, Any],
        columns: Sequence[str] = COLUMNS,
        shard: tuple[int, int] = (1, 1),
    ):
        self.root, self.columns = root, list(columns)
        self._shard = shard
        self._part = self._table("part", shard[0])
        self._folders: set[Path] = set()
        with holding(root, "-opening", wait=PATIENCE):  # several parts may begin at once
            self._open(request)
        self._done = self._table("done", shard[0])
        """Exists if this part was finished before, and perhaps killed while it joined the parts."""
        if self._done.exists():
            before = self._done.stat().st_size
            self.next = self._whole_rows(self._done)
            if self._done.stat().st_size != before:  # it is not done
                os.replace(self._done, self._part)
        else:
            self.next = self._whole_rows(self._part)

    def _open(self, request: dict[str, Any]) -> None:
        """Enter the folder, or refuse to."""
        root = self.root
        if (root / MANIFEST).exists():
            for path in root.glob(f"{UNFINISHED}.done-*"):  # killed after its last word
                path.unlink(missing_ok=True)
            raise GanscopeError(f"{root} holds a finished corpus; name another folder with --out")
        if (root / REQUEST).exists():
            before = read_json(root / REQUEST, "delete its folder, or name another one with --out")
            other = sorted(k for k in request if before.get(k) != request[k])
            if other:
                raise GanscopeError(
                    f"{root} holds an unfinished corpus begun with another {', '.join(other)}; "
                    "repeat that command to continue it, or name another folder with --out"
                )
        elif root.exists() and (not root.is_dir() or _is_taken(root)):
            raise GanscopeError(f"{root} exists and is not empty; name another folder with --out")
        with disk_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            write_json(root / REQUEST, request)

    def _table(self, state: str, part: int) -> Path:
        return self.root / f"{UNFINISHED}.{state}-{part}-of-{self._shard[1]}.csv"

    def _whole_rows(self, table: Path) -> int:
        """Cut off what a kill or a power cut left half-written, a row, a pair's first or images;
        return `next`.
        """
        header = ",".join(self.columns) + "\n"
        lines: list[bytes] = []
        if table.exists():
            with disk_errors(self.root):
                lines = table.read_bytes().splitlines(keepends=True)
        whole, following = 1, 0
        if lines and lines[0] == header.encode():
            while self._is_pair(lines[whole : whole + 2]):
                following = self._index(lines[whole]) + 1
                whole += 2
        elif lines:
            whole = 0
        lost = (len(lines) - whole) // 2
        if lost > 0:
            warnings.warn(
                f"{table}: {lost:,} fakes are damaged or lost, or follow on such; they are made "
                "anew",
                GanscopeWarning,
                stacklevel=3,
            )
        with disk_errors(self.root):
            if not lines or not whole:
                table.write_bytes(header.encode())
            else:
                with open(table, "r+b") as file:
                    file.truncate(sum(map(len, lines[:whole])))
        return following

    def _index(self, line: bytes) -> int:
        return int(next(csv.reader([line.decode()]))[self.columns.index("index")])

    def _is_pair(self, lines: list[bytes]) -> bool:
        """Whether these are the rows of a fake and its real, and images and mask are whole."""
        try:
            rows = [next(csv.reader([line.decode()], strict=True)) for line in lines]
            if len(rows) < 2 or not lines[1].endswith(b"\n"):
                return False
            names = [row[self.columns.index("file_name")] for row in rows]
            if "mask" in self.columns:
                names += [name for row in rows if (name := row[self.columns.index("mask")])]
            return (
                all(len(row) == len(self.columns) for row in rows)
                and self._index(lines[0]) == self._index(lines[1]) >= 0
                and all(_is_whole(self.root / name) for name in names)
            )
        except (csv.Error, ValueError, IndexError, StopIteration):
            return False

    def write_image(self, file_name: str, data: bytes) -> None:
        """Put an encoded image under its final name, atomically."""
        path = self.root / file_name
        if Path(file_name).is_absolute() or ".." in Path(file_name).parts:
            raise ValueError(f"{file_name} lies outside of {self.root}")
        part = f"{path}.part"
        with disk_errors(self.root):
            if path.parent not in self._folders:
                self.root.stat()  # whoever removed it does not want a part of it back
                path.parent.mkdir(parents=True, exist_ok=True)
                self._folders.add(path.parent)
            try:
                with open(part, "wb") as file:
                    file.write(data)
                os.replace(part, path)
            except OSError:
                Path(part).unlink(missing_ok=True)
                raise

    def add_rows(self, rows: Iterable[dict[str, Any]]) -> None:
        """Enter images that have been written into the manifest."""
        text = ""
        for row in rows:
            text += csv_line(row.get(name, "") for name in self.columns)
            self.next = row["index"] + 1
        with disk_errors(self.root), open(self._part, "r+b") as file:  # never made anew
            file.seek(0, os.SEEK_END)
            file.write(text.encode())

    def finish(self) -> Path:
        """Turn the growing manifest into the final one, once every part is whole; returns the
        corpus' folder.
        """
        with holding(self.root, "-opening", wait=PATIENCE):
            return self._join()

    def _join(self) -> Path:
        done = [self._table("done", i + 1) for i in range(self._shard[1])]
        joined = self.root / f".{MANIFEST}.{secrets.token_hex(4)}.part"
        with disk_errors(self.root):
            if not self._done.exists():
                take_place(self._part, self._done)
            try:
                with open(joined, "wb") as whole:
                    for i, path in enumerate(done):
                        with open(path, "rb") as table:
                            if i:
                                table.readline()  # its header
                            shutil.copyfileobj(table, whole)
                with open(joined, "rb") as whole:
                    rows = sum(1 for _ in whole) - 1
                request = read_json(self.root / REQUEST)
                write_json(self.root / REQUEST, request | {ROWS: rows})
                if hasattr(os, "sync"):
                    os.sync()  # all images: one by one it would take longer than to make them
                take_place(joined, self.root / MANIFEST)
            except FileNotFoundError:
                if not (self._done.exists() or (self.root / MANIFEST).exists()):
                    raise gone(self.root) from None
                return self.root  # others are still at it, or have joined the parts already
            finally:
                joined.unlink(missing_ok=True)
            for path in done:
                path.unlink(missing_ok=True)
        return self.root


def _is_whole(path: Path) -> bool:
    """Whether an encoded image has its end: a power cut may leave its name and no bytes."""
    try:
        with open(path, "rb") as file:
            start = file.read(12)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 12, 0))
            end = file.read()
    except OSError:
        return False
    if path.suffix == ".png":
        return end[4:8] == b"IEND"
    if path.suffix == ".jpg":
        return end.endswith(b"\xff\xd9")
    return start[:4] == b"RIFF" and int.from_bytes(start[4:8], "little") + 8 == size


def _is_taken(root: Path) -> bool:
    """Whether a folder holds anything; hidden files may be those of another process of ours."""
    return any(not path.name.startswith(".") for path in root.iterdir())


@contextmanager
def disk_errors(root: Path) -> Iterator[None]:
    """Turn a full or read-only disk into a line that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise GanscopeError(f"{full(root, error)}: it continues where it stopped") from None
        raise GanscopeError(f"{root}: cannot be written ({error.strerror or error})") from None
