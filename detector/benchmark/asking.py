"""Every detector asked for every image, as it is and after every change.

Each image is opened once for all detectors and changes, and what a detector said of it is kept
(`cache`): adding a detector or a generator costs only what is new.
"""

import os
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pandas as pd

from ganscope.config import BenchmarkSettings
from ganscope.datasets.alignment import Alignment, choose_alignment
from ganscope.datasets.degradations import CLEAN, Degradation, parse_degradations
from ganscope.detector.benchmark.cache import Cache, FileFacts, cache_file
from ganscope.detector.benchmark.contestants import FACELESS, Scorer, View
from ganscope.detector.judging.faces import AROUND, SMALLEST, around
from ganscope.devices import pick_device
from ganscope.errors import GanscopeError, ImageError, reason_of
from ganscope.faces import open_finder
from ganscope.images import open_image

if TYPE_CHECKING:
    from rich.progress import Progress

CHUNK, CHUNK_PIXELS = 256, 50_000_000
"""Images prepared at a time, and fewer where they and their changed copies have so many pixels."""
RUN, RUN_PIXELS = 32, 1_000_000
"""Images given to a thread at a time, and fewer of larger ones: to hand over a small image takes
longer than to open it."""
NAMED = 3
"""Images that are named of those that lack a score for the same reason; the others are counted."""
NO_FACE = f"no face was found of at least {SMALLEST} pixels"
WORKERS = min(4, os.cpu_count() or 1)
"""Threads that open and change images, and that compute figures."""


@dataclass(frozen=True)
class Change:
    """What is done to an image before a detector sees it."""

    protocol: str
    """raw: the file as it is; aligned: see `datasets.alignment`; face: a square of twice its
    largest face, as a picture of its own."""
    degradation: Degradation = CLEAN

    @property
    def nothing(self) -> bool:
        return self == Change("raw")


@dataclass
class Scores:
    """What all detectors said of all images, and what is missing."""

    table: pd.DataFrame
    """A row an image, protocol, degradation and detector: image, path, file_name, hash (of the
    file), label, generator, source, group, protocol, degradation, detector, value (the logit or
    score that it gave, which ranks images), score, probability."""
    alignment: Alignment | None = None
    """What made the images of the aligned protocol."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """path -> reason, of images that are left out of everything."""
    missing: list[str] = field(default_factory=list)
    """What else could not be had, a sentence each."""
    notes: list[str] = field(default_factory=list)
    """What was not asked for good reason: no failure, but no figure either."""


def list_changes(settings: BenchmarkSettings) -> list[Change]:
    """Every protocol with every degradation, clean first, each once."""
    protocols = ["raw", "aligned"] if settings.protocol == "both" else [settings.protocol]
    if settings.faces:
        protocols.append("face")
    found = [CLEAN, *parse_degradations(settings.degrade)]
    return [Change(p, d) for p in protocols for d in {d.label: d for d in found}.values()]


def score_all(
    settings: BenchmarkSettings,
    table: pd.DataFrame,
    scorers: dict[str, Scorer],
    changes: list[Change],
    progress: "Progress | None" = None,
) -> Scores:
    """Ask every detector for every image after every change, unless it was asked before.

    A detector that fails is left out, and told of; the others go on.
    """
    scores = Scores(pd.DataFrame())
    with closing(Cache(cache_file() if settings.cache else None)) as cache:
        paths = table["path"].tolist()
        facts = cache.facts(paths)
        for path, found in zip(paths, facts, strict=True):
            if isinstance(found, ImageError):
                scores.unreadable[path] = found.reason
        rounds = _Rounds(settings, table, facts, scorers, changes, cache, scores)
        rounds.run(progress)
        scores.table, scores.alignment = rounds.rows(), rounds.alignment
    return scores


class _Rounds:
    """One scoring of a table: what is known, what is to do, and the doing."""

    def __init__(
        self,
        settings: BenchmarkSettings,
        table: pd.DataFrame,
        facts: list[FileFacts | ImageError],
        scorers: dict[str, Scorer],
        changes: list[Change],
        cache: Cache,
        scores: Scores,
    ):
        self.settings, self.table, self.cache, self.scores = settings, table, cache, scores
        self.scorers = dict(scorers)
        self.paths, self.names = table["path"].tolist(), table["file_name"].tolist()
        self.facts = {i: f for i, f in enumerate(facts) if isinstance(f, FileFacts)}
        self.changes = changes
        self.finder = open_finder() if settings.faces else None
        self.on_cpu = pick_device(settings.device).type == "cpu"
        self.alignment = self._choose_alignment()
        self.values: dict[tuple[str, Change], dict[int, float]] = defaultdict(dict)
        self.faceless: dict[tuple[str, str], set[int]] = defaultdict(set)
        self.left_out: Counter[tuple[str, str, str]] = Counter()
        self.todo: dict[int, dict[Change, list[str]]] = defaultdict(lambda: defaultdict(list))
        self._look_up()

    def _choose_alignment(self) -> Alignment | None:
        if not self.facts or all(change.protocol != "aligned" for change in self.changes):
            return None
        known = list(self.facts.values())
        try:
            rows = self.table.iloc[list(self.facts)]
            alignment = choose_alignment(
                rows["generator"].tolist(),
                rows["label"].tolist(),
                [min(f.width, f.height) for f in known],
                [f.quality for f in known],
                self.settings.align_size,
            )
        except GanscopeError as error:
            if self.settings.protocol == "aligned":
                raise
            self.scores.missing.append(f"the aligned protocol: {error}")
            self.changes = [c for c in self.changes if c.protocol != "aligned"]
            return None
        fits = pd.Series([min(f.width, f.height) >= alignment.side for f in known], rows.index)
        kinds = rows["generator"].where(rows["label"] == 1, "the photographs")
        lost = [str(name) for name, part in fits.groupby(kinds) if not part.any()]
        small = int((~fits).sum())
        if lost:
            self.scores.missing.append(
                f"{', '.join(lost)}: all images are smaller than {alignment.side} pixels and not "
                "in the aligned protocol; choose a smaller --align-size"
            )
        elif small:
            few = small <= len(known) / 10  # of so many, another side would not be better
            (self.scores.notes if few else self.scores.missing).append(
                f"{small} of {len(known)} images are smaller than {alignment.side} pixels and not "
                "in the aligned protocol"
            )
        return alignment

    def _look_up(self) -> None:
        """Find out what the cache knows; the rest is to do."""
        for name, scorer in self.scorers.items():
            for change in self.changes:
                if scorer.untouched_only and not change.nothing:
                    continue
                found = self.values[name, change]
                kept = self.cache.values(scorer.key, self._key(change)) if scorer.key else {}
                for i, facts in self.facts.items():
                    if not self._fits(facts, change):
                        continue
                    value = kept.get(facts.image)
                    if value is None:
                        self.todo[i][change].append(name)
                    else:
                        found[i] = value
            if scorer.untouched_only and len(self.changes) > 1:
                self.scores.notes.append(
                    f"{name}: knows the files as they are only; no figures for anything else"
                )

    def _fits(self, facts: FileFacts, change: Change) -> bool:
        if change.protocol != "aligned":
            return True
        return self.alignment is not None and min(facts.width, facts.height) >= self.alignment.side

    def _key(self, change: Change) -> str:
        """Stands for all that a change does to an image."""
        words = [change.degradation.label]
        if change.degradation != CLEAN:  # which may draw
            words.append(f"seed {self.settings.seed}")
        if change.protocol == "face" and self.finder:
            words.append(f"face by {self.finder.name}, {SMALLEST} or more, {AROUND} around")
        if change.protocol == "aligned" and self.alignment:
            words += [f"aligned {self.alignment.side} at {self.alignment.quality}"]
        return ", ".join(words)

    def run(self, progress: "Progress | None") -> None:
        """Do what is to do."""
        task = None
        if progress:
            total = sum(len(part) for part in self.todo.values())
            task = progress.add_task("benchmarking", total=total, note="")
        for chunk in self._prepared():
            for change in self.changes:
                for name in list(self.scorers):
                    views = {
                        i: made[change]
                        for i, made in chunk.items()
                        if name in self.todo[i].get(change, ()) and change in made
                    }
                    if views:
                        self._ask(name, change, views)
                if progress and task is not None:
                    done = sum(change in self.todo[i] for i in chunk)
                    progress.update(task, advance=done)
        self._count_left_out()

    def _ask(self, name: str, change: Change, made: dict[int, np.ndarray | str]) -> None:
        """Ask one detector for some images and keep what it says."""
        scorer = self.scorers[name]
        numbers, views = [], []
        for i, pixels in made.items():
            if isinstance(pixels, str):
                self._left_out(name, change, i, pixels)
                continue
            numbers.append(i)
            views.append(View(self.paths[i], pixels, not change.nothing, self.names[i]))
        try:
            found = _values(scorer, views)
        except GanscopeError as error:
            self.scores.missing.append(f"{name}: {error}; its figures are missing")
            del self.scorers[name]
            return
        rows, key = [], self._key(change)
        for i, value in zip(numbers, found, strict=True):
            if isinstance(value, str):
                self._left_out(name, change, i, value)
                continue
            self.values[name, change][i] = value
            rows.append((key, self.facts[i].image, value))
        if scorer.key:
            self.cache.keep(scorer.key, rows)

    def _left_out(self, name: str, change: Change, i: int, reason: str) -> None:
        what = "" if change.nothing else f", {change.protocol} {change.degradation.label}"
        if reason in (NO_FACE, FACELESS):  # nothing is wrong with such an image
            lacking = "the protocol face" if reason == NO_FACE else f"the figures of {name}"
            self.faceless[reason, lacking].add(i)
            return
        self.left_out[name, what, reason] += 1
        if self.left_out[name, what, reason] <= NAMED:
            self.scores.missing.append(f"{self.table.at[i, 'path']}{what}: {name}: {reason}")

    def _count_left_out(self) -> None:
        """Say how many images there are that were not named."""
        for (reason, lacking), images in self.faceless.items():
            self.scores.notes.append(
                f"{len(images):,} of {len(self.facts):,} images: {reason}, so they are not in "
                f"{lacking}"
            )
        for (name, what, reason), count in self.left_out.items():
            if count > NAMED:
                said = f"{count - NAMED:,} more images{what}: {name}: {reason}"
                self.scores.missing.append(said)

    def _prepared(self) -> Iterator[dict[int, dict[Change, np.ndarray | str]]]:
        """Chunks of image number -> change -> pixels, or why there are none; made in threads."""
        waiting = deque(self._runs())
        ahead: deque[tuple[list[int], int, Future]] = deque()
        chunk: dict[int, dict[Change, np.ndarray | str]] = {}
        size = begun = begun_pixels = 0
        with ThreadPoolExecutor(WORKERS) as pool:
            try:
                while waiting or ahead:
                    while waiting and (
                        not ahead or (begun < CHUNK and begun_pixels < CHUNK_PIXELS)
                    ):
                        run, pixels = waiting.popleft()
                        ahead.append((run, pixels, pool.submit(self._make_all, run)))
                        begun, begun_pixels = begun + len(run), begun_pixels + pixels
                    run, pixels, future = ahead.popleft()
                    begun, begun_pixels = begun - len(run), begun_pixels - pixels
                    for i, made in zip(run, future.result(), strict=True):
                        if isinstance(made, ImageError):
                            self.scores.unreadable[self.paths[i]] = made.reason
                        else:
                            chunk[i] = made
                    size += pixels
                    if len(chunk) >= CHUNK or size >= CHUNK_PIXELS:
                        if self.on_cpu:  # not while detectors work: their threads wait for ours
                            wait([future for _, _, future in ahead])
                        yield chunk
                        chunk, size = {}, 0
                if chunk:
                    yield chunk
            finally:
                pool.shutdown(cancel_futures=True)

    def _runs(self) -> Iterator[tuple[list[int], int]]:
        """Images to do and the pixels of all of them, so many as a thread is given at a time."""
        run: list[int] = []
        size = 0
        for i in sorted(self.todo):
            pixels = self._pixels(i)
            if run and (len(run) == RUN or size + pixels > RUN_PIXELS):
                yield run, size
                run, size = [], 0
            run.append(i)
            size += pixels
        if run:
            yield run, size

    def _make_all(self, run: list[int]) -> list[dict[Change, np.ndarray | str] | ImageError]:
        return [self._make(i) for i in run]

    def _pixels(self, i: int) -> int:
        """How many pixels an image and its changed copies have, about."""
        facts, copies = self.facts[i], 1.0
        for change in self.todo[i]:
            if change.protocol == "raw":
                larger = change.degradation.name.startswith("resize")
                copies += max(1.0, change.degradation.value**2) if larger else 1.0
        return int(facts.width * facts.height * copies)

    def _make(self, i: int) -> dict[Change, np.ndarray | str] | ImageError:
        facts = self.facts[i]
        try:
            pixels = open_image(self.paths[i]).pixels
        except ImageError as error:
            return error
        aligned = face = None
        made: dict[Change, np.ndarray | str] = {}
        for change in self.todo[i]:
            # The same noise and kernel for every detector and in every run.
            rng = np.random.default_rng((self.settings.seed, int(facts.image[:15], 16)))
            try:
                if change.protocol == "aligned" and aligned is None:
                    assert self.alignment
                    aligned = self.alignment(pixels)
                source = pixels if change.protocol == "raw" or aligned is None else aligned
                if change.protocol == "face":
                    if face is None:
                        face = self._face_of(pixels)
                    if not len(face):
                        made[change] = NO_FACE
                        continue
                    source = face
                made[change] = change.degradation(source, rng)
            except GanscopeError as error:
                made[change] = str(error)
            except (cv2.error, MemoryError) as error:
                made[change] = f"cannot be changed so: {reason_of(error)}"
        return made

    def _face_of(self, pixels: np.ndarray) -> np.ndarray:
        """The square around the largest face (h, w, 3); (0, 0, 3) where none is large
        enough.
        """
        assert self.finder
        found = self.finder.find(pixels)
        if not found or min(found[0].width, found[0].height) < SMALLEST:
            return pixels[:0, :0]
        height, width = pixels.shape[:2]
        top, left, bottom, right = around(found[0], height, width, AROUND)
        return np.ascontiguousarray(pixels[top:bottom, left:right])

    def rows(self) -> pd.DataFrame:
        """The table of scores."""
        parts = []
        for (name, change), found in self.values.items():
            if name not in self.scorers or not found:
                continue
            values = np.array(list(found.values()))
            scorer = self.scorers[name]
            parts.append(
                pd.DataFrame(
                    {
                        "image": list(found),
                        "protocol": change.protocol,
                        "degradation": change.degradation.label,
                        "detector": name,
                        "value": values,
                        "score": scorer.score(values),
                        "probability": scorer.probability(values),
                    }
                ).sort_values("image")
            )
        if not parts:
            return pd.DataFrame()
        known = ["path", "file_name", "label", "generator", "source", "group"]
        about = self.table[known + (["video"] if "video" in self.table else [])]
        about = about.assign(hash=pd.Series({i: f.image for i, f in self.facts.items()}))
        return pd.concat(parts, ignore_index=True).join(about, on="image")


def _values(scorer: Scorer, views: list[View]) -> list[float | str]:
    """As `Scorer.values`; what a network cannot bear (an image too small for it, or too large for
    the memory) is a reason for that image alone.
    """
    try:
        return scorer.values(views)
    except RuntimeError as error:
        if len(views) == 1:
            return [reason_of(error)]
        return [value for view in views for value in _values(scorer, [view])]
