"""The game: which one is real? A player against the detector, on the same pictures."""

import asyncio
import base64
import random
import secrets
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import pandas as pd

from ganscope.datasets.corpus import open_corpora
from ganscope.errors import GanscopeError
from ganscope.files import cache_folder
from ganscope.images import open_image
from ganscope.web.judge import Full, Judge, Lost
from ganscope.web.project import Project
from ganscope.web.thumbnails import as_jpeg, shrunk

KINDS = ("pair", "single")
EMBEDDED = ("photos", "photos-upsample")
"""Generators that ship, whose fakes of photographs are dealt where no corpus is named."""
MADE = 60
"""Fakes of each of them, and as many real crops."""
ENLARGED = 256
"""Pictures with a shorter side than the detector takes are enlarged to this, for both."""
SIDE = 900
"""Longest side in pixels of a picture on the table."""
OPEN = 500
"""Rounds that may be open at a time; older ones are forgotten."""
PATIENCE = 60.0
"""Seconds to wait for the detector's answer."""


@dataclass
class Dealt:
    """A picture on the table."""

    path: str
    label: int
    generator: str
    shown: bytes
    """JPEG, so that both kinds come in the same container, without a word of their own."""
    record: asyncio.Task | None = field(default=None, repr=False)
    """What the detector says, and the file."""


@dataclass
class Round:
    kind: str
    player: str
    name: str
    pictures: list[Dealt]
    generator: str


@dataclass(frozen=True)
class Outcome:
    """How a round ended. detector: 1 right, 0 wrong, 0.5 undecided, None: it gave no answer."""

    right: bool
    detector: float | None
    choice: int
    records: list[dict[str, Any]]


class Game:
    """Deals rounds from a corpus, None: one of the generators that ship, made on first use.

    Raises `GanscopeError` if there is no such corpus, or it lacks reals or fakes.
    """

    def __init__(self, corpus: Path | None, judge: Judge, project: Project):
        self.corpus, self._judge, self._project = corpus, judge, project
        self._rounds: OrderedDict[str, Round] = OrderedDict()
        self._table: pd.DataFrame | None = _read([corpus]) if corpus else None
        self._making = asyncio.Lock()
        self._random = random.SystemRandom()

    async def deal(self, kind: str, player: str) -> Round:
        """A new round for a player: a fake and a real, of one scene where the corpus has such
        pairs, or one of either. Raises `GanscopeError` if no picture of the corpus can be opened.
        """
        async with self._making:
            if self._table is None:
                self._table = await asyncio.to_thread(_embedded)
        for _ in range(20):
            rows = self._draw(kind)
            with suppress(GanscopeError):
                dealt = [await asyncio.to_thread(self._open, row) for row in rows]
                break
        else:
            raise GanscopeError("the pictures of this corpus cannot be opened; name another one")
        fakes = [one.generator for one in dealt if one.label]
        found = Round(kind, player, secrets.token_urlsafe(12), dealt, (fakes or ["real"])[0])
        for one in dealt:
            one.record = asyncio.create_task(self._ask(one))
            one.record.add_done_callback(_retrieved)
        self._rounds[found.name] = found
        while len(self._rounds) > OPEN:
            self._forget(next(iter(self._rounds)))
        return found

    def round(self, name: str, player: str) -> Round | None:
        """A round that a player has still to answer."""
        found = self._rounds.get(name)
        return found if found and found.player == player else None

    @staticmethod
    def as_uri(one: Dealt) -> str:
        """A picture for a page whose round is over."""
        return "data:image/jpeg;base64," + base64.b64encode(one.shown).decode()

    async def answer(self, open_: Round, choice: int) -> Outcome:
        """Take a player's answer: in a pair the number of the picture that is real, of a single one
        its label. The round is over, and what is returned is on the disk.
        """
        self._rounds.pop(open_.name, None)
        records = [await self._told(one) for one in open_.pictures]
        labels = [one.label for one in open_.pictures]
        right = labels[choice] == 0 if open_.kind == "pair" else labels[0] == choice
        detector = by_detector(open_.kind, labels, records)
        await asyncio.to_thread(
            self._project.answer,
            open_.player,
            open_.kind,
            open_.generator,
            [one.path for one in open_.pictures],
            right,
            detector,
        )
        return Outcome(right, detector, choice, records)

    def _draw(self, kind: str) -> list[Any]:
        assert self._table is not None
        pick = self._random
        fakes, reals = (self._table[self._table["label"] == label] for label in (1, 0))
        generator = pick.choice(sorted(fakes["generator"].unique()))
        fakes = fakes[fakes["generator"] == generator]
        fake = fakes.iloc[pick.randrange(len(fakes))]
        twins = reals[reals["group"] == fake["group"]] if fake["group"] else reals
        twins = twins if len(twins) else reals
        real = twins.iloc[pick.randrange(len(twins))]
        both = [fake, real]
        pick.shuffle(both)
        return both if kind == "pair" else both[:1]

    def _open(self, row: Any) -> Dealt:
        pixels = open_image(row["path"]).pixels
        least = min(pixels.shape[:2])
        if least < max(self._judge.about["smallest"], 1):
            grow = ENLARGED / least
            pixels = cv2.resize(pixels, None, fx=grow, fy=grow, interpolation=cv2.INTER_CUBIC)
        shown = as_jpeg(shrunk(pixels, SIDE), 95)
        return Dealt(str(row["path"]), int(row["label"]), str(row["generator"]), shown)

    async def _ask(self, one: Dealt) -> dict[str, Any]:
        """The detector's record: of the file, or where that was enlarged of what is shown."""
        content = await asyncio.to_thread(Path(one.path).read_bytes)
        small = min(open_size(one.path)) < self._judge.about["smallest"]
        sent = (Path(one.path).name, one.shown if small else content)
        (answer,) = self._judge.submit([sent], heatmap=bool(one.label), evidence=True)
        return await answer

    async def _told(self, one: Dealt) -> dict[str, Any]:
        assert one.record is not None
        name = Path(one.path).name
        try:
            return await asyncio.wait_for(one.record, PATIENCE)
        except (Full, Lost, TimeoutError, OSError, GanscopeError):
            return self._judge.failure(name, "the detector was too busy to look at this one")

    def _forget(self, name: str) -> None:
        for one in self._rounds.pop(name).pictures:
            if one.record:
                one.record.cancel()


def by_detector(
    kind: str, labels: Sequence[int], records: Sequence[dict[str, Any]]
) -> float | None:
    """Whether the detector was right: 1, 0, or 0.5 for undecided; None: it gave no answer.

    Of a pair it takes that for real which has the lower score; of a single one its verdict counts.
    """
    if any(record.get("error") or record.get("score") is None for record in records):
        return None
    if kind == "pair":
        fake, real = (records[labels.index(label)]["score"] for label in (1, 0))
        return 0.5 if fake == real else float(fake > real)
    verdict = records[0]["verdict"]
    return 0.5 if verdict == "unsure" else float(verdict == ("real", "fake")[labels[0]])


def tally(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The score of a player beside the detector's, by generator and over time.

    A curve's points are the share right of all answers so far. Where the detector gave no answer
    neither of the two counts.
    """
    both = [one for one in answers if one["detector_right"] is not None]
    you, it, curve = 0.0, 0.0, []
    by: dict[str, list[float]] = {}
    for number, one in enumerate(both, 1):
        you += one["right"]
        it += one["detector_right"]
        curve.append((you / number, it / number))
        line = by.setdefault(one["generator"], [0, 0.0, 0.0])
        line[0] += 1
        line[1] += one["right"]
        line[2] += one["detector_right"]
    return {
        "many": len(both),
        "silent": len(answers) - len(both),
        "you": you,
        "detector": it,
        "curve": curve,
        "by_generator": sorted((name, *line) for name, line in by.items()),
    }


def _retrieved(task: asyncio.Task[Any]) -> None:
    """Nobody may wait for a record any more, as when the server ends."""
    if not task.cancelled():
        task.exception()


def open_size(path: str) -> tuple[int, int]:
    from ganscope.images import read_facts

    facts = read_facts(path)
    return facts.stored_width, facts.stored_height


def _read(paths: Sequence[Path]) -> pd.DataFrame:
    table = open_corpora(paths).table
    for label, what in ((0, "real"), (1, "generated")):
        if not (table["label"] == label).any():
            raise GanscopeError(f"{paths[0]}: holds no {what} pictures; the game needs both kinds")
    return table


def _embedded() -> pd.DataFrame:
    """The corpus of the generators that ship, made by a command of its own, once."""
    folders = [cache_folder() / "play" / f"{name}-{MADE}" for name in EMBEDDED]
    for name, folder in zip(EMBEDDED, folders, strict=True):
        if (folder / "metadata.csv").is_file():
            continue
        command = [sys.executable, "-m", "ganscope", "generate", "--generator", name]
        done = subprocess.run(
            [*command, "--n", str(MADE), "--out", str(folder)], capture_output=True, text=True
        )
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["?"])[-1].removeprefix("ganscope: ")
            raise GanscopeError(f"no pictures to play with: {said}")
    return _read(folders)
