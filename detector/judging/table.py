"""The CSV of verdicts: it grows out of sight, takes its name when all rows are in it, and a check
that was stopped goes on where it was.

Beside it lies a journal meanwhile, `.NAME.journal`: a line of JSON for each file that was judged,
written as soon as it is and forced onto the disk now and then. The next check of the same detector
and options takes from there what it has of files that are still the same.
"""

import csv
import json
import os
import time
import warnings
from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from ganscope.errors import GanscopeError, GanscopeWarning
from ganscope.files import guard_cell, take_place
from ganscope.images import IMAGE_SUFFIXES

SYNC_EVERY = 5.0
"""Seconds after which rows are on the disk, should the power fail. A kill costs none."""


class Table:
    """Only a file is ever replaced: never a folder, and never a device such as /dev/stdout.

    path: None for no table, which then takes everything and keeps nothing. plan: what must be the
    same for rows of an earlier check to be used.
    """

    def __init__(self, path: Path | None, fields: Sequence[str], plan: dict[str, Any]):
        if path and path.suffix.lower() in IMAGE_SUFFIXES:
            raise GanscopeError(f"--csv {path}: this is the name of an image; name a .csv file")
        if path and path.exists() and not path.is_file():
            raise GanscopeError(f"--csv {path}: is there already and no file; name another")
        self.path = path.resolve() if path else None  # what a link leads to, not the link
        self.fields, self.plan = fields, json.loads(json.dumps(plan, default=str))
        self.count = 0
        self.judged: dict[tuple[str, str], deque[dict[str, Any]]] = defaultdict(deque)
        self.drawn: dict[str, deque[str]] = defaultdict(deque)

    def __enter__(self) -> "Table":
        if self.path:
            self.part = self.path.with_name(f".{self.path.name}.part")
            self.notes = self.path.with_name(f".{self.path.name}.journal")
            try:
                self.part.parent.mkdir(parents=True, exist_ok=True)
                # A file's name need not be UTF-8: its bytes are kept as they are.
                self.file = open(
                    self.part, "w", newline="", encoding="utf-8", errors="surrogateescape"
                )
                self.rows = csv.DictWriter(self.file, self.fields, extrasaction="ignore")
                self.rows.writeheader()
                self.journal = self._open_journal()
            except OSError as error:
                with suppress(OSError):
                    self.part.unlink()
                raise self._unwritable(error) from None
            self.synced = time.monotonic()
        return self

    def earlier(self, name: str, stamp: str) -> dict[str, Any] | None:
        """What the check that was stopped found of a file, if it is the same file still."""
        found = self.judged.get((name, stamp))
        return found.popleft() if found else None

    def add(self, record: dict[str, Any], stamp: str, known: bool = False) -> None:
        """Write a row; known: it comes from `earlier`."""
        if not self.path:
            return
        row = {
            **record,
            "thresholds": json.dumps(record["thresholds"]),
            "faces": json.dumps(record["faces"]) if record["faces"] else "",
            "warnings": "; ".join(record["warnings"]),
        }
        try:
            self.rows.writerow({k: guard_cell(v) for k, v in row.items()})
            if not known:
                self._note({"stamp": stamp, "check": record})
            self.count += 1
        except OSError as error:
            raise self._unwritable(error) from None

    def drawing(self, name: str) -> str | None:
        """The picture that the check which was stopped had made of a file, or was about to."""
        found = self.drawn.get(name)
        return found.popleft() if found else None

    def draw(self, name: str, picture: str) -> None:
        """Note a picture that is about to be made."""
        if self.path:
            try:
                self._note({"name": name, "picture": picture})
            except OSError as error:
                raise self._unwritable(error) from None

    def _note(self, line: dict[str, Any]) -> None:
        self.journal.write(json.dumps(line) + "\n")
        self.journal.flush()
        if time.monotonic() - self.synced > SYNC_EVERY:
            with suppress(OSError):  # it has no disk
                os.fsync(self.journal.fileno())
            self.synced = time.monotonic()

    def _open_journal(self) -> TextIO:
        """Read what an earlier check left, and go on writing there."""
        whole = self.notes.read_bytes() if self.notes.is_file() else b""
        whole = whole[: whole.rfind(b"\n") + 1]  # a power cut leaves half a line
        lines = [_parsed(line) for line in whole.splitlines()]
        used = self.resumed = bool(lines) and lines[0] == {"plan": self.plan}
        if lines and not used:
            warnings.warn(
                f"--csv {self.path}: the check that was stopped had another detector or other "
                "options; begun anew",
                GanscopeWarning,
                stacklevel=3,
            )
        for line in lines[1:] if used else ():
            if "check" in line:
                self.judged[line["check"]["path"], line["stamp"]].append(line["check"])
            elif "picture" in line:
                self.drawn[line["name"]].append(line["picture"])
        if used:
            os.truncate(self.notes, len(whole))  # which takes no room on a full disk
        else:
            self.notes.write_text(json.dumps({"plan": self.plan}) + "\n", encoding="utf-8")
        return open(self.notes, "a", encoding="utf-8")

    def __exit__(self, kind: object, *_: object) -> None:
        if not self.path:
            return
        kept = self.path.with_name(f"{self.path.stem}.part{self.path.suffix}")
        try:
            self.file.close()  # writes what is still in memory
            self.journal.close()
            if kind is None:
                take_place(self.part, self.path)
                self.notes.unlink(missing_ok=True)
                if self.resumed:
                    kept.unlink(missing_ok=True)  # what the check that was stopped had
            elif not self.count and not self.judged:
                self.notes.unlink(missing_ok=True)
            elif kind in (KeyboardInterrupt, GeneratorExit) and self.count:
                take_place(self.part, kept)
                warnings.warn(
                    f"the rows of the {self.count:,} images that were judged are in {kept}; the "
                    "same command goes on from there",
                    GanscopeWarning,
                    stacklevel=2,
                )
        except OSError as error:
            if kind is None:  # else the first error is the one to tell
                raise self._unwritable(error) from None
        finally:
            self.part.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> GanscopeError:
        return GanscopeError(f"--csv {self.path}: cannot be written ({error.strerror})")


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
