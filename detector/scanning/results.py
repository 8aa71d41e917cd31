"""The results: a folder of Parquet files that grows while the scan runs and can be read meanwhile.

A part takes its name when it is whole and on the disk. Rows that are not in a part yet stand in a
journal, a line of JSON each. Parts and journal are all that a scan goes on from: the index of what
has a row, by path and by content, is made anew from them, and lies on the disk, not in memory.
"""

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ganscope.config import read_json, write_json
from ganscope.detector.judging.checking import FIELDS
from ganscope.detector.scanning.listing import Item
from ganscope.detector.scanning.worker import Row
from ganscope.errors import GanscopeError
from ganscope.files import FULL, damaged, full, replacing
from ganscope.locks import LOCK, holding

PLAN, METRICS, JOURNAL, INDEX = "_scan.json", "_metrics.json", ".journal", ".index.sqlite"
FORMAT = 1
MOST_ROWS = 20_000
"""Rows of a part, at most."""
SECONDS = 30.0
"""After which rows are put into a part, however few; what a reader sees is no older."""
SYNC_EVERY = 5.0
"""Seconds after which the journal is on the disk, should the power fail. A kill costs no row."""
MOST_SAID = 100
"""Characters of what an earlier scan was given."""
OPEN_PARTS = 4
"""Parts held in memory for the rows of what is found once more."""
KINDS = {
    "score": pa.float64(),
    "probability": pa.float64(),
    "width": pa.int32(),
    "height": pa.int32(),
    "bytes": pa.int64(),
    "seconds": pa.float32(),
}
COLUMNS = (*FIELDS, "sha256", "bytes", "seconds", "duplicate_of")
SCHEMA = pa.schema([(name, KINDS.get(name, pa.string())) for name in COLUMNS])
"""As `check --csv` has them, and: SHA-256 of the file, its size, seconds of a worker's time for it,
and the path of the file that was first with the same content."""


def outcome(row: Row) -> str:
    return "error" if row["error"] is not None else row["verdict"]


def text_of(path: str) -> str:
    """A path as a table can hold it: bytes that are no UTF-8 are shown escaped."""
    return path.encode("utf-8", "backslashreplace").decode()


def key_of(path: str) -> bytes:
    return hashlib.blake2b(path.encode(), digest_size=16).digest()


class Index:
    """What has a row or is in somebody's hands, by path, and who was first with a content.

    It may be used by several threads, and opened by several processes of one machine. Raises
    `GanscopeError` where the disk is full or the folder has gone.
    """

    def __init__(self, path: Path, new: bool = False):
        self.path, self.lock = path, threading.Lock()
        with self._writing():
            self._open(new)

    def _open(self, new: bool) -> None:
        if new:
            self.remove()
        self.base = sqlite3.connect(
            self.path, isolation_level=None, timeout=60, check_same_thread=False
        )
        # It is never gone on from: what a power cut does to it is nobody's loss.
        for line in ("journal_mode=WAL", "synchronous=OFF", "cache_size=-65536"):
            self.base.execute(f"PRAGMA {line}")
        if new:
            self.base.execute("CREATE TABLE files (key BLOB PRIMARY KEY) WITHOUT ROWID")
            self.base.execute(
                "CREATE TABLE contents (sha BLOB PRIMARY KEY, number INT, part INT, place INT) "
                "WITHOUT ROWID"
            )

    def enter(self, paths: Iterable[str]) -> list[bool]:
        """Whether each path is new; from now on it is not."""
        add = "INSERT OR IGNORE INTO files VALUES (?)"
        with self._at_once():
            return [self.base.execute(add, (key_of(p),)).rowcount > 0 for p in paths]

    def claim(self, pairs: Sequence[tuple[str, int]]) -> list[bool]:
        """For each SHA-256 and number of an item: whether that item is the one to be judged."""
        found = []
        with self._at_once():
            for sha, number in pairs:
                key = bytes.fromhex(sha)
                add = "INSERT OR IGNORE INTO contents VALUES (?, ?, 0, 0)"
                if self.base.execute(add, (key, number)).rowcount:
                    found.append(True)
                    continue
                owner, part = self.base.execute(
                    "SELECT number, part FROM contents WHERE sha = ?", (key,)
                ).fetchone()
                found.append(not part and owner == number)  # it is done again, after a crash
        return found

    def settle(self, rows: Iterable[tuple[str, int, int]]) -> None:
        """Note in which part, and where in it, the row of a content is."""
        with self._at_once():
            self.base.executemany(
                "INSERT OR REPLACE INTO contents VALUES (?, -1, ?, ?)",
                ((bytes.fromhex(sha), part, place) for sha, part, place in rows),
            )

    def release(self, shas: Iterable[str]) -> None:
        """Forget whose a content is: who had it did not come back."""
        with self._at_once():
            self.base.executemany(
                "DELETE FROM contents WHERE sha = ? AND part = 0",
                ((bytes.fromhex(sha),) for sha in shas),
            )

    def find(self, sha: str) -> tuple[int, int] | None:
        """Part and place of the row of a content, where there is one."""
        with self._writing(), self.lock:
            return self.base.execute(
                "SELECT part, place FROM contents WHERE sha = ? AND part > 0", (bytes.fromhex(sha),)
            ).fetchone()

    @contextmanager
    def _at_once(self) -> Iterator[None]:
        with self._writing(), self.lock, self.base:  # which commits at the end
            self.base.execute("BEGIN IMMEDIATE")
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise _unwritable(self.path.parent, error) from None

    def remove(self) -> None:
        for end in ("", "-wal", "-shm", "-journal"):
            with suppress(OSError):
                os.unlink(f"{self.path}{end}")

    def close(self) -> None:
        self.base.close()


class Results:
    """The folder `out`, while one scan writes into it.

    plan: what must be the same for rows of an earlier scan to stand beside those of this one.
    """

    def __init__(self, out: Path, plan: dict[str, Any]):
        self.out, self.plan = out, json.loads(json.dumps(plan, default=str))
        self.counts: Counter[str] = Counter()
        """Rows by verdict, and "error"."""
        self.duplicates = 0
        self.earlier = 0
        """Rows that were there before."""
        self.rows: list[Row] = []
        self.lines: list[str] = []
        """Of the journal, not written yet."""
        self.by_content: dict[str, Row] = {}
        self.waiting: dict[str, list[Row]] = {}
        """SHA-256 -> rows that wait for that of the first with this content."""
        self.read: OrderedDict[int, pa.Table] = OrderedDict()
        self.last = 0
        self.stack = ExitStack()

    def __enter__(self) -> "Results":
        if self.out.exists() and not self.out.is_dir():
            raise GanscopeError(f"{self.out}: is there already and no folder; name another --out")
        with ExitStack() as stack:
            stack.enter_context(holding(self.out))
            self._compare()
            try:
                self.index = Index(self.out / INDEX, new=True)
                stack.callback(self.index.remove)
                stack.callback(self.index.close)
                self._take_up()
            except OSError as error:
                raise self._unwritable(error) from None
            self.stack = stack.pop_all()
        self.flushed = self.synced = time.monotonic()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            with suppress(GanscopeError) if kind else ExitStack():
                self.flush()
        finally:
            with suppress(OSError):
                self.journal.close()
            if not self.rows:
                (self.out / JOURNAL).unlink(missing_ok=True)
            if not self.counts and kind:  # nothing was done: nothing is left
                (self.out / PLAN).unlink(missing_ok=True)
                (self.out / METRICS).unlink(missing_ok=True)
            self.stack.close()

    def fresh(self, items: list[Item]) -> list[Item]:
        """Those of items that have no row and are in nobody's hands; from now on they are."""
        new = self.index.enter([text_of(item.path) for item in items])
        return [item for item, is_new in zip(items, new, strict=True) if is_new]

    def add(self, rows: Iterable[Row]) -> None:
        """Take rows; they are in a part at the latest `SECONDS` later."""
        try:
            for row in rows:
                if row.get("duplicate"):
                    first = self._first(row["sha256"])
                    if first is None:
                        self.waiting.setdefault(row["sha256"], []).append(row)
                    else:
                        self._take(_filled(row, first))
                    continue
                self._take(row)
                for other in self.waiting.pop(row["sha256"], ()):
                    self._take(_filled(other, row))
        finally:
            self._write_journal()
        if len(self.rows) >= MOST_ROWS or time.monotonic() - self.flushed > SECONDS:
            self.flush()

    def orphans(self) -> list[Item]:
        """Items that wait for the row of one that did not come back; they are to be judged."""
        found = [row["item"] for rows in self.waiting.values() for row in rows]
        self.index.release(self.waiting)
        self.waiting = {}
        return found

    def flush(self) -> None:
        """Put the rows that there are into a part of their own."""
        self.flushed = time.monotonic()
        if not self.rows:
            return
        number = self.last + 1
        columns = {name: [row[name] for row in self.rows] for name in COLUMNS}
        table = pa.table(columns, schema=SCHEMA)
        path = self._part(number)
        try:
            with replacing(path) as part:
                pq.write_table(table, part, compression="zstd")
            self.last = number
            firsts = [
                (row["sha256"], number, place)
                for place, row in enumerate(self.rows)
                if row["sha256"] and row["duplicate_of"] is None
            ]
            self.rows, self.by_content = [], {}
            self.journal.seek(0)
            self.journal.truncate()
            self.index.settle(firsts)
        except OSError as error:
            raise self._unwritable(error) from None

    def note(self, metrics: dict[str, Any]) -> None:
        """Leave figures of progress for other programs."""
        try:
            write_json(self.out / METRICS, metrics)
        except OSError as error:
            raise self._unwritable(error) from None

    def _take(self, row: Row) -> None:
        row = {name: row[name] for name in COLUMNS}
        for name in ("path", "duplicate_of"):
            row[name] = None if row[name] is None else text_of(row[name])
        self.lines.append(json.dumps(row) + "\n")
        self._count(row)

    def _write_journal(self) -> None:
        """Put the rows that were taken into the journal, all at once."""
        lines, self.lines = "".join(self.lines), []
        try:
            self.journal.write(lines)
            self.journal.flush()
            if time.monotonic() - self.synced > SYNC_EVERY:
                os.fsync(self.journal.fileno())
                self.synced = time.monotonic()
        except OSError as error:
            raise self._unwritable(error) from None

    def _count(self, row: Row) -> None:
        self.rows.append(row)
        if row["sha256"] and row["duplicate_of"] is None:
            self.by_content[row["sha256"]] = row
        self.counts[outcome(row)] += 1
        self.duplicates += row["duplicate_of"] is not None

    def _first(self, sha: str) -> Row | None:
        """The row of the file that was first with a content, if it is there yet."""
        if sha in self.by_content:
            return self.by_content[sha]
        found = self.index.find(sha)
        if found is None:
            return None
        part, place = found
        if part not in self.read:
            self.read[part] = self._table(part, COLUMNS)
            if len(self.read) > OPEN_PARTS:
                self.read.popitem(last=False)
        self.read.move_to_end(part)
        return self.read[part].slice(place, 1).to_pylist()[0]

    def _part(self, number: int) -> Path:
        # Absolute, for pyarrow takes run:1/part for an address.
        return (self.out / f"part-{number:08}.parquet").absolute()

    def _table(self, number: int, columns: Sequence[str]) -> pa.Table:
        path = self._part(number)
        with damaged(path, "delete it and run the same command again: its files are judged anew"):
            return pq.ParquetFile(path).read(columns=list(columns))

    def _compare(self) -> None:
        """Refuse a folder of something else, and one of another scan."""
        plan = self.out / PLAN
        if not plan.exists():
            others = [p.name for p in self.out.iterdir() if not p.name.startswith((LOCK, "."))]
            if others:
                raise GanscopeError(
                    f"{self.out}: holds {others[0]} and no results of a scan; name another --out"
                )
            try:
                write_json(plan, {"format": FORMAT, "plan": self.plan})
            except OSError as error:
                raise self._unwritable(error) from None
            return
        known = read_json(plan, "delete it, if its folder holds results of this very command")
        if known.get("format") != FORMAT:
            raise GanscopeError(f"{self.out}: was written by another ganscope; name another --out")
        old = known.get("plan") or {}
        old["PATHS"] = [path.rstrip("/") or path for path in old.get("PATHS", ())]
        other = [name for name, value in self.plan.items() if old.get(name) != value]
        if other:  # what follows from an option need not be named beside it
            other = [name for name in other if name.startswith(("--", "PATHS"))] or other
            raise GanscopeError(
                f"{self.out}: holds the results of a scan with other "
                f"{', '.join(_was(name, old.get(name)) for name in other)}; name another --out, or "
                "give the command that was given there"
            )

    def _take_up(self) -> None:
        """Index what parts and journal hold, and go on writing there."""
        names = sorted(self.out.glob("part-*.parquet"))
        for path in names:
            digits = path.stem.removeprefix("part-")
            if not digits.isdecimal():
                continue
            number = int(digits)
            self.last = max(self.last, number)
            columns = ("path", "sha256", "duplicate_of", "verdict", "error")
            rows = self._table(number, columns).to_pylist()
            self.index.enter(row["path"] for row in rows)
            self.index.settle(
                (row["sha256"], number, place)
                for place, row in enumerate(rows)
                if row["sha256"] and row["duplicate_of"] is None
            )
            self.counts.update(outcome(row) for row in rows)
            self.duplicates += sum(row["duplicate_of"] is not None for row in rows)
        notes = self.out / JOURNAL
        kept = notes.read_bytes() if notes.is_file() else b""
        for line in kept[: kept.rfind(b"\n") + 1].splitlines():
            with suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                row = {name: row[name] for name in COLUMNS}
                if self.index.enter([row["path"]])[0]:  # else its part was just written
                    if row["sha256"] and row["duplicate_of"] is None:
                        self.index.claim([(row["sha256"], -1)])
                    self._count(row)
        self.earlier = self.counts.total()
        self.journal = open(notes, "a+", encoding="utf-8")  # noqa: SIM115
        if self.rows or kept:
            rows = len(self.rows)
            self.flush()
            if not rows:
                self.journal.truncate(0)

    def _unwritable(self, error: OSError) -> GanscopeError:
        return _unwritable(self.out, error)


def _was(name: str, value: Any) -> str:
    """What stood in an earlier plan, as one may give it: of paths the end, of weights nothing."""
    if name.startswith("weights"):
        return name
    if isinstance(value, bool):
        return f"{name} (there: {name if value else name.replace('--', '--no-', 1)})"
    said = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    said = "none" if value is None else said
    return f"{name} (there: {said if len(said) <= MOST_SAID else '...' + said[-MOST_SAID:]})"


def _unwritable(out: Path, error: Exception) -> GanscopeError:
    if isinstance(error, OSError) and error.errno in FULL:
        return full(out, error)
    said = getattr(error, "strerror", None) or str(error)
    return GanscopeError(
        f"{out}: cannot be written ({said}); what is there is kept, the same command goes on from "
        "there"
    )


def _filled(row: Row, first: Row) -> Row:
    """The row of a file whose content another one had first."""
    own = {name: row[name] for name in ("path", "sha256", "bytes", "seconds")}
    return {**first, **own, "duplicate_of": first["path"]}
