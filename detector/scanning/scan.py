"""`ganscope scan`: from names to a folder of Parquet, as a stream.

Listing, engine and results know nothing of each other: items go in, rows come out, and what has a
row already is left out between the first two.
"""

import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ganscope.config import ScanSettings
from ganscope.detector.evidence.trust import find_anchors
from ganscope.detector.judge import read_detector_config
from ganscope.detector.judging.checking import Check
from ganscope.detector.scanning import local, on_ray
from ganscope.detector.scanning.listing import Item, address_of, count_items, find_items, is_remote
from ganscope.detector.scanning.results import Results
from ganscope.detector.scanning.worker import Row, Work, row_of
from ganscope.errors import GanscopeError, GanscopeWarning
from ganscope.faces import best_finder
from ganscope.inputs import Passed, refuse_missing
from ganscope.named import FACES, find_folder, hash_files, weights_hash

LOT, LOT_SLOW, LOT_GPU = 32, 4, 256
"""Files that go to a worker at a time; of a detector that takes a second for each, few."""
HAND = 10
"""So many lots a worker has in hand: more than it reads and opens ahead and has in a batch."""
NOTE_EVERY = 2.0
"""Seconds between the figures of progress."""
WINDOW = 30.0
"""Seconds over which the speed is told."""


@dataclass
class Progress:
    """How far a scan is."""

    engine: str
    workers: int
    runtimes: dict[str, int] = field(default_factory=dict)
    """What computed (torch, onnx, openvino) -> rows of this scan."""
    faces_by: str | None = None
    """The finder of faces; None: none are looked for."""
    rows: int = 0
    """In the results, those of earlier scans included."""
    earlier: int = 0
    """Of them, those that were there before."""
    duplicates: int = 0
    """Of them, those with the content of another."""
    verdicts: dict[str, int] = field(default_factory=dict)
    """Rows by verdict, and "error"."""
    seconds: float = 0.0
    """Since the first file was given out."""
    per_second: float = 0.0
    """Files a second, of late; at the end, of all."""
    left: int | None = None
    """None while it is not known how many there are."""
    bytes: int = 0
    """Of the files of this scan."""
    worker_seconds: float = 0.0
    """Spent on judging in this scan, in all workers."""
    passed: dict[str, int] = field(default_factory=dict)
    """What was found and not looked at (".csv", "broken link") -> how many."""
    done: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(vars(self))


def scan_images(settings: ScanSettings) -> Generator[Progress, None, None]:
    """Judge files and write their rows into `settings.out`; yields how far it is, the last time
    with `done`. What has a row there is not read again.

    Raises `GanscopeError` if nothing is found, a name does not exist or cannot be listed, the
    folder holds something else, the disk is full, or the engine or the detector cannot be had.
    """
    find_anchors(settings.trust_anchors)
    refuse_missing([path for path in settings.paths if not is_remote(address_of(path))])
    on = on_ray if _by_ray(settings) else local
    config, weights, exported = _about(settings)
    if settings.device == "auto" and (exported or settings.runtime == "onnx"):
        settings = replace(settings, device="cpu")  # whatever else this machine has
    lot = _lot(settings, config)
    alone = config["input"].get("looks_at") == "faces"
    finder = best_finder() if settings.faces or alone else None
    work = Work(
        detector=settings.detector,
        runtime=settings.runtime,
        device=settings.device,
        batch_size=settings.batch_size,
        reencode=settings.reencode,
        finder=finder,
        pixels_only=settings.pixels_only,
        trust_anchors=settings.trust_anchors and settings.trust_anchors.resolve(),
        allow_private=settings.allow_private,
        retries=settings.retries,
    )
    with ExitStack() as stack:
        results = stack.enter_context(
            Results(
                settings.out,
                _plan(settings, config, weights, finder, None if exported else _swaps(settings)),
            )
        )
        engine = on.Engine(work, settings, lot * HAND, results.index if settings.dedup else None)
        stack.enter_context(engine)
        scan = _Scan(settings, results, engine, lot, config)
        scan.progress.faces_by = finder
        yield from stack.enter_context(closing(scan.run()))


class _Scan:
    """One scan on its way."""

    def __init__(
        self, settings: ScanSettings, results: Results, engine: Any, lot: int, config: Any
    ):
        self.settings, self.results, self.engine, self.lot = settings, results, engine, lot
        self.config = config
        self.passed = Passed()
        self.listed = self.given = 0
        self.all_listed = False
        self.total: int | None = None
        self.progress = Progress(engine.name, engine.workers, earlier=results.earlier)
        self.noted = self.begun = time.monotonic()
        self.lately: deque[tuple[float, int]] = deque()

    def run(self) -> Generator[Progress, None, None]:
        threading.Thread(target=self._count, daemon=True).start()
        lots: Iterator[list[Item]] = self._lots()
        try:
            yield self._look()
            while True:
                with closing(self.engine.run(lots)) as found:
                    for rows in found:
                        self._take(rows)
                        yield self._look()
                orphans = self.results.orphans()
                if not orphans:
                    break
                lots = iter([orphans])
            if not self.listed:
                said = f"; {self.passed}" if str(self.passed) else ""
                raise GanscopeError(f"{', '.join(self.settings.paths)}: no images found{said}")
            self.results.flush()
            self.progress.done = True
            yield self._look()
        finally:
            with suppress(GanscopeError):
                self._look(now=True)
        if str(self.passed):
            warnings.warn(str(self.passed), GanscopeWarning, stacklevel=2)

    def _lots(self) -> Iterator[list[Item]]:
        """What is to be judged, a few at a time."""
        lot: list[Item] = []

        def fresh() -> list[Item]:
            self.listed += len(lot)
            found = self.results.fresh(lot)
            self.given += len(found)
            lot.clear()
            return found

        for item in find_items(self.settings.paths, self.passed):
            lot.append(item)
            if len(lot) == self.lot and (found := fresh()):
                yield found
        if found := fresh():
            yield found
        self.all_listed = True

    def _count(self) -> None:
        with suppress(GanscopeError, OSError):  # the listing says it
            self.total = count_items(self.settings.paths)

    def _take(self, rows: list[Row]) -> None:
        whole = [self._lost(row) if "lost" in row else row for row in rows]
        self.results.add(whole)
        for row in whole:
            self.progress.bytes += row["bytes"] or 0
            self.progress.worker_seconds += row["seconds"]
            if (runtime := row.get("runtime")) and row["error"] is None:
                self.progress.runtimes[runtime] = self.progress.runtimes.get(runtime, 0) + 1

    def _lost(self, row: Row) -> Row:
        """The row of a file with which no worker comes back."""
        check = Check(
            path=row["item"].path,
            score=None,
            verdict=None,
            probability=None,
            meaning=None,
            thresholds={name: self.config["thresholds"][name] for name in ("fake", "real")},
            detector=self.settings.detector,
            width=None,
            height=None,
            warnings=(),
            error=row["lost"],
            declared=None,
            declared_reason=None,
        )
        own = {"item": row["item"], "sha256": None, "bytes": None, "seconds": 0.0}
        return row_of(check) | own

    def _look(self, now: bool = False) -> Progress:
        """Bring the figures up to date, and leave them for other programs now and then."""
        progress, results, time_now = self.progress, self.results, time.monotonic()
        progress.rows = results.counts.total()
        progress.duplicates = results.duplicates
        progress.verdicts = dict(sorted(results.counts.items()))
        progress.seconds = time_now - self.begun
        progress.passed = dict(self.passed.counts)
        made = progress.rows - progress.earlier
        self.lately.append((time_now, made))
        while time_now - self.lately[0][0] > WINDOW:
            self.lately.popleft()
        since, before = (self.begun, 0) if progress.done else self.lately[0]
        if len(self.lately) == 1 or progress.seconds < WINDOW:
            since, before = self.begun, 0
        progress.per_second = (made - before) / max(time_now - since, 1e-9)
        progress.left = None
        if self.all_listed:
            progress.left = self.given - made
        elif self.total is not None:
            progress.left = max(self.total - self.listed, 0) + self.given - made
        if now or progress.done or time_now - self.noted > NOTE_EVERY:
            results.note(progress.as_dict())
            self.noted = time_now
        return progress


def _by_ray(settings: ScanSettings) -> bool:
    return settings.engine == "ray" or (settings.engine == "auto" and on_ray.is_named(settings))


def _lot(settings: ScanSettings, config: dict[str, Any]) -> int:
    """Files that go to a worker at a time."""
    if any(place.startswith("cuda") for place in local.places_for(settings)):
        return max(LOT_GPU, settings.batch_size or 0)
    slow = bool(config["input"].get("views")) and settings.device in ("auto", "cpu")
    return LOT_SLOW if slow else max(LOT, settings.batch_size or 0)


def _about(settings: ScanSettings) -> tuple[dict[str, Any], str, bool]:
    """A detector's configuration, the digest of its weights, and whether it was exported, without
    loading it.
    """
    from ganscope.detector.exported.running import open_exported

    exported = open_exported(settings.detector)
    if exported is not None:
        place = Path(settings.detector)
        files = sorted(place.glob("*")) if place.is_dir() else [place]
        return exported.config, hash_files(*files), True
    folder = find_folder(settings.detector, "detectors")
    return read_detector_config(folder, settings.detector), weights_hash(folder), False


def _swaps(settings: ScanSettings) -> str | None:
    """The digest of what tells swapped faces, a file beside the detector's weights; None: there is
    none, or nobody asks it.
    """
    path = find_folder(settings.detector, "detectors") / FACES
    return hash_files(path) if settings.faces and path.is_file() else None


def _plan(
    settings: ScanSettings,
    config: dict[str, Any],
    weights: str,
    finder: str | None,
    swaps: str | None,
) -> dict[str, Any]:
    """What a scan must have in common with another to go on in its folder; named as options."""
    near = any(
        not is_remote(address_of(path)) and not os.path.isabs(path) for path in settings.paths
    )
    names = ("detector", "runtime", "reencode", "faces", "pixels_only", "dedup", "trust_anchors")
    return {
        "PATHS": [path.rstrip("/") or path for path in settings.paths],  # photos/ is photos
        **{f"--{name.replace('_', '-')}": getattr(settings, name) for name in names},
        "weights of the detector": [weights, config, *([swaps] if swaps else [])],
        "finder of faces (by the extra faces)": finder,
        **({"working folder": os.getcwd()} if near else {}),
    }
