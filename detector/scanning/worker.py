"""One worker: reads files, tells by their content which are known, judges the others, and gives a
row for each. Both engines run it, in as many processes as they have.
"""

import hashlib
import json
import os
import random
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ganscope.detector.exported.loading import load_judge
from ganscope.detector.judging.checking import Check, check_each, unreadable
from ganscope.detector.scanning.listing import Item, is_remote, is_web, store_of
from ganscope.errors import GanscopeError, ImageError, reason_of
from ganscope.faces import open_finder
from ganscope.images import MAX_BYTES, ImageSource, NamedImage, looks_like_image
from ganscope.limits import Limits

READERS = 16
"""Threads that read: files come over a network, too, which is slow to answer."""
CHUNK = 16
"""Local files that one of them takes at a time."""
AHEAD, AHEAD_SLOW = 32, 4
"""Files that may be read and waiting, and that for a detector that takes a second for each."""
QUICK, LATELY = 0.0005, 5
"""Seconds a file within which a disk is quick, in the best of so many chunks."""
HEAD, NO_PICTURE = 1024, 2**26
"""Bytes by which a file's kind is told, and from how many on one that is no picture is not read."""
BACKOFF, LONGEST = 0.5, 30.0
"""Seconds before a file that failed is read again, doubled each time up to the longest."""
FOR_GOOD = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
"""What is the same however often it is tried."""

Row = dict[str, Any]
"""A row of the results, its "item" and the "runtime" that judged it. One with "duplicate" is yet to
be filled from the row of the file that was first with that content."""
Claim = Callable[[list[tuple[str, int]]], list[bool]]
"""SHA-256 and number of each item -> whether it is the first with that content, to be judged."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """How files are judged; goes to every worker."""

    detector: str
    runtime: str = "auto"
    device: str = "auto"
    batch_size: int | None = None
    reencode: bool = True
    finder: str | None = "auto"
    """Of faces, by its name, so that all workers have the same; None: none are looked for."""
    pixels_only: bool = False
    trust_anchors: Path | None = None
    allow_private: bool = False
    retries: int = 3


@dataclass(kw_only=True)
class _Read:
    """An item's bytes, or why there are none."""

    item: Item
    content: bytes | None = None
    """None: the system refuses it, and says why when it is opened as a picture."""
    error: ImageError | None = None
    sha256: str | None = None
    first: bool = True
    """Whether it is the first with its content."""
    size: int | None = None
    """In bytes; None where not all were read."""


class Worker:
    """A loaded detector, and the threads that read for it. claim: None judges every file."""

    def __init__(self, work: Work, claim: Claim | None = None):
        self.work, self.claim = work, claim
        self.judge = load_judge(work.detector, work.runtime, work.device, lasting=True)
        self.judge.prepare(work.device)
        self.finder = open_finder(work.finder) if work.finder else None
        self.limits = Limits(allow_private=work.allow_private)
        self.lately: deque[float] = deque(maxlen=LATELY)
        """Seconds that files took to be read, a mean for each of the last chunks."""
        self.ahead = AHEAD_SLOW if self.judge.views and self.judge.on_cpu else AHEAD

    def run(self, items: Iterable[Item], emit: Callable[[Row], None]) -> None:
        """Judge items as a stream; `emit` gets a row for each, those that need no judging first."""
        line: deque[_Read] = deque()  # what is being judged, in order

        def images() -> Iterator[ImageSource]:
            for read in self._read(items):
                if read.error is not None:
                    emit(self._row(read, unreadable(self.judge, read.error), 0.0))
                elif not read.first:
                    emit({"duplicate": True, **_about(read, 0.0), "path": read.item.path})
                else:
                    line.append(read)
                    content = read.content
                    path = read.item.path
                    yield path if content is None else NamedImage(path, content)
                    read.content = b""

        work, since = self.work, time.perf_counter()
        for check, _ in check_each(
            self.judge,
            images(),
            work.batch_size,
            work.device,
            work.reencode,
            work.pixels_only,
            work.trust_anchors,
            self.finder,
            threads=False,  # a worker has a core
        ):
            now = time.perf_counter()
            emit(self._row(line.popleft(), check, now - since))
            since = now

    def _row(self, read: _Read, check: Check, seconds: float) -> Row:
        return row_of(check) | _about(read, seconds) | {"runtime": self.judge.runtime}

    def _read(self, items: Iterable[Item]) -> Iterator[_Read]:
        """Read files in threads, a bounded number ahead, and keep the order. Beside a network on
        the CPU a disk that is quick is read without them: they cost more than they would wait.
        """
        source = iter(items)
        waiting: deque[tuple[list[Item], Future[list[_Read]] | None]] = deque()
        count, size = 0, 1
        with ThreadPoolExecutor(READERS) as pool:
            try:
                while True:
                    while count < self.ahead and (chunk := list(islice(source, size))):
                        far = any(is_remote(item.place or item.path) for item in chunk)
                        size = 1 if far or self.ahead < CHUNK else CHUNK
                        here = not far and self.judge.on_cpu and self._is_quick()
                        waiting.append((chunk, None if here else pool.submit(self._fetched, chunk)))
                        count += len(chunk)
                    if not waiting:
                        return
                    chunk, found = waiting.popleft()
                    count -= len(chunk)
                    yield from found.result() if found else self._fetched(chunk)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _is_quick(self) -> bool:
        """Whether files came back at once of late: when the machine is busy, at least some did."""
        return not self.lately or min(self.lately) < QUICK

    def _fetched(self, chunk: list[Item]) -> list[_Read]:
        begun = time.perf_counter()
        found = [self._fetch(item) for item in chunk]
        self.lately.append((time.perf_counter() - begun) / len(chunk))
        wanted = [read for read in found if read.sha256 is not None]
        if self.claim and wanted:
            pairs = [(str(read.sha256), read.item.number) for read in wanted]
            for read, first in zip(wanted, self.claim(pairs), strict=True):
                read.first = first
                if not first:  # nobody opens it any more
                    read.content = (read.content or b"")[:0]
        return found

    def _fetch(self, item: Item) -> _Read:
        read = _Read(item=item)
        if item.error:
            read.error = ImageError(item.path, item.error)
            return read
        for attempt in range(self.work.retries + 1):
            try:
                read.content, whole = self._bytes(item)
            except FOR_GOOD as error:
                if not is_remote(item.path) and not item.place:
                    return read
                said = "no such file" if isinstance(error, FileNotFoundError) else reason_of(error)
                if isinstance(error, PermissionError):
                    said = "no permission to read it"
                read.error = ImageError(item.path, said)
                return read
            except ImageError as error:
                read.error = error
                if not (is_web(item.path) and _may_pass(error.reason)):
                    return read
            except GanscopeError as error:  # no package for that kind of address
                read.error = ImageError(item.path, str(error))
                return read
            except Exception as error:  # those of stores share no base
                tried = f", tried {attempt + 1} times" if attempt else ""
                read.error = ImageError(item.path, f"cannot be read ({reason_of(error)}){tried}")
            else:
                read.error = None
                read.sha256 = hashlib.sha256(read.content).hexdigest() if whole else None
                read.size = len(read.content) if whole else None
                return read
            if attempt < self.work.retries:
                time.sleep(min(BACKOFF * 2**attempt, LONGEST) * random.uniform(0.75, 1.25))
        return read

    def _bytes(self, item: Item) -> tuple[bytes, bool]:
        """An item's bytes, and whether they are all of them: of a large file that is no picture
        only the beginning is read.
        """
        place = item.place or item.path
        if is_web(place):
            from ganscope.fetching import fetch  # slow to import, and seldom wanted

            return fetch(place, self.limits), True
        if is_remote(place):
            store, inner = store_of(place)
            if item.size >= 0:
                return store.cat_file(inner, item.start, item.start + item.size), True
            content = store.cat_file(inner)
        else:
            with open(place, "rb") as file:
                size = os.fstat(file.fileno()).st_size if item.size < 0 else item.size
                _refuse_large(item, size)
                file.seek(item.start) if item.start else None
                if size > NO_PICTURE:
                    head = file.read(HEAD)
                    if not looks_like_image(head):
                        return head, False
                    return head + file.read(size - len(head)), True
                content = file.read() if item.size < 0 else file.read(size)
        _refuse_large(item, len(content))
        if item.size > len(content):
            raise ImageError(item.path, f"{item.place} ends before it; fetch that file again")
        return content, True


def row_of(check: Check) -> Row:
    """What the results say of a check, without what is of the file."""
    record = check.as_dict()
    return {
        **record,
        "thresholds": json.dumps(record["thresholds"]),
        "faces": json.dumps(record["faces"]) if record["faces"] else None,
        "warnings": "; ".join(record["warnings"]),
        "duplicate_of": None,
    }


def _refuse_large(item: Item, size: int) -> None:
    if size > MAX_BYTES:
        raise ImageError(item.path, f"more than the limit of {MAX_BYTES:,} bytes; shrink it first")


def _may_pass(reason: str) -> bool:
    """Whether what a web address says may be another thing a little later."""
    return bool(re.match(r"cannot be fetched|took longer|the server answers (429|5\d\d)", reason))


def _about(read: _Read, seconds: float) -> Row:
    return {
        "item": read.item,
        "sha256": read.sha256,
        "bytes": read.size,
        "seconds": seconds,
    }
