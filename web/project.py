"""A project file: the pictures of a folder as they were judged, what a person made of them, and
what players of the game answered. One SQLite file; what a call has returned for is on the disk.
"""

import json
import shutil
import sqlite3
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ganscope.config import replacing, write_text
from ganscope.errors import GanscopeError, GanscopeWarning, refuse_bytes
from ganscope.files import csv_line, damaged
from ganscope.inputs import is_address
from ganscope.locks import holding

VERSION = 1
"""Of the tables; a newer file is refused."""
OURS = 0x67616E73
"""SQLite's application id of our files: "gans"."""
PATIENCE = 30.0
"""Seconds to wait for another process that writes."""
TRUTHS = ("real", "fake")
ORDERS = {
    "suspect": "score IS NULL, score DESC, id",
    "trusted": "score IS NULL, score, id",
    "unsure": "score IS NULL, abs(score - middle), id",
    "name": "path, id",
    "added": "id",
}
"""How the desk sorts; `unsure`: the nearest to the middle between the thresholds first."""
_TABLES = """
CREATE TABLE pictures (
  id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, stamp TEXT NOT NULL, detector TEXT NOT NULL,
  score REAL, middle REAL, verdict TEXT NOT NULL, record TEXT NOT NULL, thumbnail TEXT NOT NULL,
  added TEXT NOT NULL
);
CREATE INDEX by_score ON pictures (score);
CREATE TABLE reviews (
  id INTEGER PRIMARY KEY, picture INTEGER NOT NULL REFERENCES pictures (id), truth TEXT NOT NULL,
  note TEXT NOT NULL, at TEXT NOT NULL
);
CREATE INDEX by_picture ON reviews (picture, id);
CREATE TABLE answers (
  id INTEGER PRIMARY KEY, player TEXT NOT NULL, kind TEXT NOT NULL, generator TEXT NOT NULL,
  pictures TEXT NOT NULL, right INTEGER NOT NULL, detector_right REAL, at TEXT NOT NULL
);
CREATE INDEX by_player ON answers (player, id);
CREATE VIEW reviewed AS
  SELECT p.*, coalesce(r.truth, '') AS truth, coalesce(r.note, '') AS note,
    coalesce(r.at, '') AS reviewed
  FROM pictures p LEFT JOIN reviews r
    ON r.id = (SELECT max(id) FROM reviews WHERE picture = p.id);
"""
COLUMNS = ("id", "path", "score", "verdict", "detector", "truth", "note", "reviewed", "record")
"""What there is of every picture."""
ANOTHER = "name another file"
SHOWN = {
    "all": "1",
    "open": "truth = ''",
    "done": "truth <> ''",
    "wrong": "truth <> '' AND verdict IN ('real', 'fake') AND truth <> verdict",
    "fake": "verdict = 'fake'",
    "real": "verdict = 'real'",
    "unsure": "verdict = 'unsure'",
    "error": "verdict = 'error'",
}
"""Which pictures the desk shows."""


class Project:
    """An open project file; None: one in memory, which ends with the process.

    Threads may share it. Raises `GanscopeError` if the file is none of ours, of a newer version,
    damaged, or cannot be written.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self._lock = threading.Lock()
        with self._errors():
            if path and path.parent != Path():
                path.parent.mkdir(parents=True, exist_ok=True)
            self._open()

    def _open(self) -> None:
        name = str(self.path) if self.path else ":memory:"
        self._base = sqlite3.connect(
            name, timeout=PATIENCE, check_same_thread=False, isolation_level=None
        )
        self._base.row_factory = sqlite3.Row
        self._base.execute("PRAGMA synchronous = FULL")  # answered is written, come what may
        self._base.execute("PRAGMA foreign_keys = ON")
        self._base.execute("BEGIN IMMEDIATE")
        try:
            (version,) = self._base.execute("PRAGMA user_version").fetchone()
            (ours,) = self._base.execute("PRAGMA application_id").fetchone()
            tables = self._base.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if tables and ours != OURS:
                raise GanscopeError(f"{self.path}: is no project file of ganscope; name another")
            if version > VERSION:
                raise GanscopeError(
                    f"{self.path}: was written by a newer ganscope (version {version} of the file, "
                    f"this one reads {VERSION}); update ganscope, or name another file"
                )
            if not tables:
                for statement in _TABLES.split(";\n"):
                    self._base.execute(statement)
                self._base.execute(f"PRAGMA application_id = {OURS}")
                self._base.execute(f"PRAGMA user_version = {VERSION}")
            self._base.execute("COMMIT")
            self._base.execute("PRAGMA journal_mode = WAL")  # readers do not wait for writers
        except BaseException:
            self._base.close()
            raise

    def close(self) -> None:
        with self._lock:
            self._base.close()

    def __enter__(self) -> "Project":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # text that is none
            busy = "locked" in str(error)
            advice = "wait for the other command that writes" if busy else ANOTHER
            said = " ".join(str(error).split())[:200]
            raise GanscopeError(
                f"{self.path or 'project'}: cannot be used ({said}); {advice}"
            ) from None
        except OSError as error:
            raise GanscopeError(f"{self.path}: cannot be written ({error.strerror})") from None

    def _rows(self, question: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock, self._errors():
            return self._base.execute(question, values).fetchall()

    def _write(self, statement: str, *values: Any) -> int:
        """One statement, one transaction: at its return the disk has it."""
        with self._lock, self._errors():
            return int(self._base.execute(statement, values).lastrowid or 0)

    def has(self, path: str, detector: str) -> bool:
        """Whether a file is in it as it is now, judged by this detector. What is no file (from an
        address, standard input or an archive) may be another one by now: it never is.
        """
        try:
            refuse_bytes(path)
        except GanscopeError:
            return False
        stamp = _stamp(path)
        rows = self._rows("SELECT stamp, detector FROM pictures WHERE path = ?", _whole(path))
        return bool(stamp and rows) and tuple(rows[0]) == (stamp, detector)

    def entry(self, path: str) -> dict[str, Any] | None:
        """What there is of a file, as `picture`; or None."""
        rows = self._rows("SELECT * FROM reviewed WHERE path = ?", _whole(path))
        return self._as_dict(rows[0]) if rows else None

    def add(self, record: dict[str, Any], thumbnail: str = "") -> int:
        """Enter a judged picture (`Check.as_dict()`, whose path is the file's), or what it is
        judged now in place of what it was; reviews stay. Returns its number; 0, with a warning,
        for a name that is no UTF-8.
        """
        try:
            refuse_bytes(record["path"])
        except GanscopeError as error:
            warnings.warn(f"{error}; it is not in {self.path}", GanscopeWarning, stacklevel=2)
            return 0
        path, known = _whole(record["path"]), record.get("thresholds") or {}
        middle = (known.get("fake", 0.5) + known.get("real", 0.5)) / 2
        self._write(
            "INSERT INTO pictures (path, stamp, detector, score, middle, verdict, record, "
            "thumbnail, added) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (path) DO UPDATE SET "
            "stamp = excluded.stamp, detector = excluded.detector, score = excluded.score, "
            "middle = excluded.middle, verdict = excluded.verdict, record = excluded.record, "
            "thumbnail = excluded.thumbnail, added = excluded.added",
            path,
            _stamp(path),
            record.get("detector") or "",
            record.get("score"),
            middle,
            "error" if record.get("error") else record.get("verdict") or "error",
            json.dumps(record, default=str),
            thumbnail,
            _now(),
        )
        return int(self._rows("SELECT id FROM pictures WHERE path = ?", path)[0]["id"])

    def review(self, picture: int, truth: str, note: str) -> None:
        """Note what a person made of a picture; truth: real, fake, or "" for not known."""
        if truth not in ("", *TRUTHS):
            raise GanscopeError(f"a picture is real or fake, not {truth!r}")
        if not self._rows("SELECT 1 FROM pictures WHERE id = ?", picture):
            raise GanscopeError(f"no picture {picture} in this project")
        self._write(
            "INSERT INTO reviews (picture, truth, note, at) VALUES (?, ?, ?, ?)",
            picture,
            truth,
            note[:10_000],
            _now(),
        )

    def picture(self, number: int) -> dict[str, Any] | None:
        """A picture with its record and last review, or None."""
        rows = self._rows("SELECT * FROM reviewed WHERE id = ?", number)
        return self._as_dict(rows[0]) if rows else None

    def pictures(
        self, show: str = "all", order: str = "suspect", start: int = 0, many: int = 60
    ) -> list[dict[str, Any]]:
        """Some of the pictures; show: of `SHOWN`, order: of `ORDERS`."""
        question = f"SELECT * FROM reviewed WHERE {SHOWN[show]} ORDER BY {ORDERS[order]}"
        return [
            self._as_dict(row) for row in self._rows(f"{question} LIMIT ? OFFSET ?", many, start)
        ]

    def beside(self, number: int, show: str, order: str) -> tuple[int | None, int | None]:
        """The pictures before and after one, in the order of the desk."""
        question = (
            f"WITH listed AS (SELECT id, row_number() OVER (ORDER BY {ORDERS[order]}) AS place "
            f"FROM reviewed WHERE {SHOWN[show]} OR id = ?) SELECT "
            "(SELECT id FROM listed WHERE place = here.place - 1) AS before, "
            "(SELECT id FROM listed WHERE place = here.place + 1) AS after "
            "FROM listed AS here WHERE here.id = ?"
        )
        rows = self._rows(question, number, number)
        return (rows[0]["before"], rows[0]["after"]) if rows else (None, None)

    def counts(self) -> dict[str, int]:
        """How many pictures there are of each of `SHOWN`."""
        sums = ", ".join(f"coalesce(sum({rule}), 0) AS '{name}'" for name, rule in SHOWN.items())
        return dict(self._rows(f"SELECT {sums} FROM reviewed")[0])

    def answer(
        self,
        player: str,
        kind: str,
        generator: str,
        pictures: Sequence[str],
        right: bool,
        detector_right: float | None,
    ) -> None:
        """Keep what a player answered in the game, and the detector on the same pictures: 1 right,
        0 wrong, 0.5 undecided, None: no answer.
        """
        self._write(
            "INSERT INTO answers (player, kind, generator, pictures, right, detector_right, at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            player,
            kind,
            generator,
            json.dumps(list(pictures)),
            int(right),
            detector_right,
            _now(),
        )

    def answers(self, player: str) -> list[dict[str, Any]]:
        """What a player answered so far, in order."""
        return [
            dict(row)
            for row in self._rows("SELECT * FROM answers WHERE player = ? ORDER BY id", player)
        ]

    def write_csv(self, file: Any, wrong: bool = False) -> int:
        """Write the reviewed pictures as CSV into an open text file; returns how many."""
        names = ["path", "score", "verdict", "probability", "detector", "truth", "right", "note"]
        file.write(csv_line([*names, "reviewed", "warnings", "error"]))
        count = 0
        for one in self._all():
            if wrong and not _mistaken(one):
                continue
            count += 1
            record = one["record"]
            right: str | int = "" if not one["truth"] else int(one["truth"] == one["verdict"])
            file.write(
                csv_line(
                    (
                        *(one["path"], one["score"], one["verdict"], record.get("probability")),
                        *(one["detector"], one["truth"], right, one["note"], one["reviewed"]),
                        *("; ".join(record.get("warnings") or ()), record.get("error") or ""),
                    )
                )
            )
        return count

    def write_corpus(self, folder: Path, wrong: bool = False) -> tuple[int, int]:
        """Write the pictures whose truth a person has told as a corpus that `train-detector` takes;
        returns how many, and how many are left out since they are no picture files: gone, from an
        archive or an address, or videos.

        wrong: only those that the detector did not get right. Raises `GanscopeError` if there are
        none, or the folder is not empty.
        """
        chosen = [one for one in self._all() if one["truth"] and (not wrong or _mistaken(one))]
        if not chosen:
            what = "that the detector got wrong" if wrong else "whose truth somebody has told"
            raise GanscopeError(
                f"{self.path}: no picture {what}; review some with ganscope serve --project "
                f"{self.path}"
            )
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise GanscopeError(f"--corpus {folder}: exists and is not empty; name another")
        gone, rows = 0, []
        with holding(folder), self._errors():
            for one in chosen:
                below = "0_real" if one["truth"] == "real" else "1_fake/reviewed"
                source = Path(one["path"])
                name = f"{below}/{one['id']:06d}{source.suffix.lower()}"
                if "frames" in one["record"] or not source.is_file():
                    gone += 1
                    continue
                (folder / below).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, folder / name)
                fake = one["truth"] == "fake"
                rows.append(
                    [name, int(fake), "reviewed" if fake else "real", "review", one["note"]]
                )
            if not rows:
                raise GanscopeError(
                    f"{self.path}: none of its {gone} reviewed pictures is a file here"
                )
            with replacing(folder / "metadata.csv") as part, open(part, "w", newline="") as file:
                file.write(csv_line(["file_name", "label", "generator", "source", "note"]))
                file.writelines(csv_line(row) for row in rows)
        return len(rows), gone

    def _all(self) -> Iterator[dict[str, Any]]:
        """Every picture, a few at a time: a project may hold very many."""
        last = 0
        while rows := self._rows("SELECT * FROM reviewed WHERE id > ? ORDER BY id LIMIT 500", last):
            yield from map(self._as_dict, rows)
            last = rows[-1]["id"]

    def _as_dict(self, row: sqlite3.Row) -> dict[str, Any]:
        with damaged(self.path or "project", ANOTHER):
            found = {name: row[name] for name in COLUMNS}
            found["record"] = record = json.loads(row["record"])
            warned = record.get("warnings") or []
            if not isinstance(warned, list) or not all(isinstance(one, str) for one in warned):
                raise ValueError(f"warnings of {row['path']}")
            return dict(row) | found


def export_csv(project: Project, path: Path, wrong: bool = False) -> int:
    """`Project.write_csv` into a file, atomically."""
    import io

    text = io.StringIO()
    count = project.write_csv(text, wrong)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text.getvalue())
    except OSError as error:
        raise GanscopeError(f"--csv {path}: cannot be written ({error.strerror})") from None
    return count


def _mistaken(picture: dict[str, Any]) -> bool:
    return bool(picture["truth"]) and picture["truth"] != picture["verdict"]


def _whole(path: str) -> str:
    return path if is_address(path) else str(Path(path).absolute())


def _stamp(path: str) -> str:
    """A file's size and time, to see whether it is still the one that was judged."""
    try:
        known = Path(path).stat()
    except OSError:
        return ""
    return f"{known.st_size}-{known.st_mtime_ns}"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
