"""An arms race of counterfeiter and cop: does a detector hold against fakes that were made to fool
it?

Each round a generator learns to fool the detector of the round before, and a detector learns from
the fakes of all rounds so far. Both rooms are needed for it, so this module stands above them; they
still know nothing of each other: a generator is handed the detector as a function of images, a
detector is handed corpora.
"""

import hashlib
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import ganscope
from ganscope.config import (
    ArmsRaceSettings,
    GenerateSettings,
    TrainDetectorSettings,
    TrainGeneratorSettings,
    changed,
    next_free,
    plain,
    read_json,
    replacing,
    write_json,
    write_text,
)
from ganscope.datasets.corpus import open_corpus
from ganscope.datasets.layouts import MANIFEST
from ganscope.datasets.sources import Source, open_source, random_crop
from ganscope.datasets.splits import assign_splits
from ganscope.datasets.writing import disk_errors
from ganscope.detector.judging import plots
from ganscope.detector.judging.metrics import evaluate_scores
from ganscope.detector.judging.scoring import score_images
from ganscope.detector.model import Detector, load_detector
from ganscope.detector.training.recipes import train_detector
from ganscope.detector.training.run import ANOTHER
from ganscope.errors import GanscopeError
from ganscope.files import damaged
from ganscope.folders import CHECKPOINT, CONFIG
from ganscope.generator.kinds.architectures import architectures
from ganscope.generator.model import load_generator
from ganscope.generator.sampling import SHARES, generate_corpus
from ganscope.generator.training import check_settings, train_generator
from ganscope.launched import place
from ganscope.locks import holding, is_empty

if TYPE_CHECKING:
    from rich.progress import Progress

SETTINGS, SCORES, TRIANGLE = "settings.json", "scores.csv", "triangle.json"
IGNORED = ("out", "device", "rounds")
"""Settings that may differ when a race is continued: it can be made longer."""
BATCH = 32
"""Images of a generator's update."""
SAVED = 100
"""Generator updates after which a killed race need not begin its round again."""
SCENES = 6
"""Photographs of different scenes without which none would be left to choose and to test by."""
HOLDS = 0.9
"""AUROC from which on a detector is said to hold."""
SHOWN = 12
"""Fakes of each round in the picture."""


def arms_race(settings: ArmsRaceSettings, progress: "Progress | None" = None) -> pd.DataFrame:
    """Let a generator and a detector learn in turn; returns how every detector does on every
    round's fakes.

    A row a cell: detector and generator (numbers of rounds), n_real, n_fake, auroc, auroc_low,
    auroc_high; `attrs` has `out` and `says`, the outcome in a sentence. The folder holds
    `generators/round-N`, `corpora/round-N`, `detectors/round-N`, `tests/round-N` (fresh fakes, and
    photographs that no training saw), `scores.csv`, `triangle.csv`, `triangle.json`, `triangle.png`
    and `fakes.png`. What is there already is not made again; with more rounds a finished race goes
    on. `progress` shows the race and what is being done.

    Raises `GanscopeError` for settings that do not go together, too few photographs, and a folder
    that holds a finished race, one with other settings or photographs, or anything else.
    """
    if place()[1] > 1:
        raise GanscopeError(
            "an arms race runs in one process; start it without accelerate launch or torchrun"
        )
    check_settings(_plan(settings, 1))
    if not architectures[settings.generator].heeds_critic:
        raise GanscopeError(
            f"--generator {settings.generator}: cannot learn from a detector; name one that plays "
            "against a discriminator, such as dcgan"
        )
    Detector.create(settings.detector, size=settings.size)  # unknown: say so before hours go by
    source = open_source(settings.real)
    learned, kept = _divide(source, settings)
    photographs = _fingerprint(source)
    out = _choose(settings, photographs)
    with holding(out):
        done = _open(out, settings, photographs)
        return _run(_Race(settings, out, source, learned, kept, progress), done)


def _run(race: "_Race", done: int) -> pd.DataFrame:
    """Make every round that is not done yet; returns the results.

    done: how many rounds were.
    """
    settings, out, progress = race.settings, race.out, race.progress
    task = progress.add_task("arms race", total=settings.rounds, note="") if progress else None
    for number in range(1, settings.rounds + 1):
        race.train_generator(number)
        race.make_corpus("corpora", number)
        race.make_corpus("tests", number)
        race.train_detector(number)
        if number > done:
            results = _measure(race.score(number), settings.seed)
            race.write(number, results)
            if progress and number < settings.rounds:
                progress.console.print(f"round {number}: {outcome(results)}", highlight=False)
        if progress and task is not None:
            progress.update(task, completed=number)
    results.attrs |= {"out": str(out), "says": outcome(results)}
    return results


def outcome(results: pd.DataFrame) -> str:
    """What the first and the last detector of a race are worth where each is worst, in a
    sentence.
    """
    cells = results.set_index(["detector", "generator"])["auroc"]
    last = int(results["generator"].max())
    first = f"the first detector finds the fakes of round 1 with AUROC {cells[1, 1]:.2f}"
    if last == 1:
        return first
    later = cells[1].drop(1)
    worst = cells[last].min()
    holds = f"holds against all rounds: {worst:.2f} at least"
    if worst < HOLDS:
        holds = f"does not hold against round {cells[last].idxmin()}: {worst:.2f}"
    return f"{first}, those of round {later.idxmin()} with {later.min():.2f}; the last one {holds}"


def _plan(settings: ArmsRaceSettings, number: int) -> TrainGeneratorSettings:
    """How the generator of a round is trained."""
    return TrainGeneratorSettings(
        real=settings.real,
        generator=settings.generator,
        size=settings.size,
        steps=settings.steps if number > 1 else settings.first_steps,
        batch_size=BATCH,
        width=settings.width,
        sample_every=SAVED,
        # Other noise and crops in each round.
        seed=int(np.random.SeedSequence((settings.seed, number)).generate_state(1)[0]),
        device=settings.device,
        precision=settings.precision,
    )


def _divide(source: Source, settings: ArmsRaceSettings) -> tuple[Source, Source]:
    """The photographs that may be learned from, and those that are kept for the test: the test
    split of every corpus that `generate_corpus` makes of them.
    """
    groups = sorted(set(source.groups))
    if len(groups) < SCENES:
        raise GanscopeError(
            f"--real {settings.real}: {len(groups)} photographs of different scenes are too few; "
            f"at least {SCENES} are needed, to learn from some and be tested on others"
        )
    splits = assign_splits(groups, SHARES, settings.seed)
    test = np.array([splits[group] == "test" for group in source.groups])
    learned, kept = (source.part(np.flatnonzero(part).tolist()) for part in (~test, test))
    for part in (learned, kept):  # photographs too small: say so before writing
        random_crop(part, settings.size, np.random.default_rng(0))
    return learned, kept


def _fingerprint(source: Source) -> str:
    """Of the photographs: with one more or less they would be divided otherwise."""
    return hashlib.sha256("\n".join(source.groups).encode(errors="surrogateescape")).hexdigest()


def _choose(settings: ArmsRaceSettings, photographs: str) -> Path:
    """The folder: as told, or the first that holds no finished race."""
    return settings.out or next_free(
        Path("runs") / "arms-race", lambda p: _over(p, settings, photographs)
    )


def _open(out: Path, settings: ArmsRaceSettings, photographs: str) -> int:
    """Make or re-enter the folder; returns how many rounds are done.

    photographs: their `_fingerprint`.
    """
    done = _rounds_done(out)
    if done >= settings.rounds:
        raise GanscopeError(
            f"{out} holds a finished arms race of {done} rounds; name another folder with --out, "
            "or more --rounds to go on with it"
        )
    if (out / SETTINGS).exists():
        flags = _changed(out, settings)
        if flags:
            raise GanscopeError(
                f"{out} holds an arms race with other settings ({', '.join(flags)}); repeat its "
                "settings to continue it, or name another folder with --out"
            )
        if _other_photographs(out, photographs):
            raise GanscopeError(
                f"{out} was begun with other photographs in {settings.real}; restore them to "
                "continue it, or name another folder with --out"
            )
    elif out.exists() and (not out.is_dir() or not is_empty(out)):
        raise GanscopeError(f"{out} exists and is not an arms race; name another --out")
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / SETTINGS, plain(settings) | {"photographs": photographs})
    return done


def _over(out: Path, settings: ArmsRaceSettings, photographs: str) -> bool:
    """Whether a folder holds a finished race that these settings do not make longer."""
    done = _rounds_done(out)
    if not done:
        return False
    with damaged(out / SETTINGS, ANOTHER):
        if done < read_json(out / SETTINGS, ANOTHER)["rounds"]:
            return False
    other = bool(_changed(out, settings)) or _other_photographs(out, photographs)
    return done >= settings.rounds or other


def _changed(out: Path, settings: ArmsRaceSettings) -> list[str]:
    return changed(settings, read_json(out / SETTINGS, ANOTHER), ignore=IGNORED)


def _other_photographs(out: Path, photographs: str) -> bool:
    """Whether there were others when it was begun: then those kept for the test may be among those
    that were learned from. Folders of earlier versions do not tell.
    """
    return read_json(out / SETTINGS, ANOTHER).get("photographs", photographs) != photographs


def _rounds_done(out: Path) -> int:
    if not (out / TRIANGLE).exists():
        return 0
    remedy = "delete it, and the same command writes it again"
    with damaged(out / TRIANGLE, remedy):
        return operator.index(read_json(out / TRIANGLE, remedy)["rounds"])


@dataclass(frozen=True)
class _Race:
    """What every step of a race needs to know."""

    settings: ArmsRaceSettings
    out: Path
    source: Source
    learned: Source
    """Photographs that generators may learn from: all but those of the test."""
    kept: Source
    """Photographs that no training sees."""
    progress: "Progress | None"

    def folder(self, kind: str, number: int) -> Path:
        """A corpus calls its generator by the folder's name: this tells the rounds apart."""
        return self.out / kind / f"round-{number}"

    def train_generator(self, number: int) -> None:
        """Round 1 begins with nothing; each later one where the last ended, against its
        detector.
        """
        run, last = self.folder("generators", number), self.folder("generators", number - 1)
        if not (run / CONFIG).exists():
            further: dict[str, Any] = {}
            if number > 1:
                detector = load_detector(str(self.folder("detectors", number - 1)))
                further = {"after": last, "critic": detector}
            settings = replace(_plan(self.settings, number), out=run)
            with self._task(f"generator {number}", settings.steps) as show:
                train_generator(
                    settings,
                    lambda row: show(row["step"]),
                    source=self.learned,
                    critic_weight=self.settings.critic_weight,
                    keep_checkpoint=True,
                    **further,
                )
        (last / CHECKPOINT).unlink(missing_ok=True)

    def make_corpus(self, kind: str, number: int) -> None:
        """What a round's detector learns from, or "tests": fresh fakes and kept photographs.

        The seed is the same in every round: so are the splits, the reals, and the z of the fakes.
        """
        folder, tests = self.folder(kind, number), kind == "tests"
        if (folder / MANIFEST).exists():
            return
        settings = GenerateSettings(
            n=self.settings.n // 2 if tests else self.settings.n,
            generator=str(self.folder("generators", number)),
            real=self.settings.real,
            out=folder,
            seed=self.test_seed if tests else self.settings.seed,
            device=self.settings.device,
        )
        with self._task(f"fakes {number}", settings.n) as show:
            generate_corpus(settings, show, source=self.kept if tests else self.source)

    def train_detector(self, number: int) -> None:
        """On the fakes of all rounds so far, from the start."""
        run = self.folder("detectors", number)
        if (run / CONFIG).exists():
            return
        train_detector(
            TrainDetectorSettings(
                corpora=tuple(self.folder("corpora", i + 1) for i in range(number)),
                detector=self.settings.detector,
                out=run,
                epochs=self.settings.epochs,
                size=self.settings.size,
                seed=self.settings.seed,
                device=self.settings.device,
                precision=self.settings.precision,
            ),
            self.progress,
        )
        if self.progress:
            self.progress.remove_task(self.progress.task_ids[-1])

    def score(self, rounds: int) -> pd.DataFrame:
        """Scores of every detector for every test, a row an image; those in `scores.csv` stay."""
        path, parts, known = self.out / SCORES, [], set()
        if path.exists():
            parts = [self._read_scores(path)]
            known = set(zip(parts[0]["detector"], parts[0]["generator"], strict=True))
        new = [cell for cell in product(range(1, rounds + 1), repeat=2) if cell not in known]
        with self._task("scores", len(new)) as show:
            for count, (number, generator) in enumerate(new):
                table = open_corpus(self.folder("tests", generator)).table
                detector = load_detector(str(self.folder("detectors", number)))
                found = list(score_images(detector, table["path"], device=self.settings.device))
                for scored in found:
                    if scored.error:
                        raise GanscopeError(f"{scored.path}: {scored.error}")
                about = table[["file_name", "label", "group"]]
                scores = [scored.score for scored in found]
                parts.append(about.assign(detector=number, generator=generator, score=scores))
                show(count + 1)
        scores = pd.concat(parts, ignore_index=True)
        write_text(path, scores.to_csv(index=False))
        return scores

    def _read_scores(self, path: Path) -> pd.DataFrame:
        """The scores of earlier rounds, all of each cell's."""
        with damaged(path, "delete it, and the same command scores the fakes again"):
            scores = pd.read_csv(path, keep_default_na=False, float_precision="round_trip")
            for cell, rows in scores.groupby(["detector", "generator"]):
                images = len(open_corpus(self.folder("tests", int(cell[1]))))
                if len(rows) != images or not np.isfinite(rows["score"]).all():
                    raise ValueError(f"{len(rows)} scores of {images} images")
            return scores[["file_name", "label", "group", "detector", "generator", "score"]]

    def write(self, rounds: int, results: pd.DataFrame) -> None:
        """Tables and pictures of the rounds so far."""
        write_text(self.out / "triangle.csv", results.to_csv(index=False, float_format="%.6g"))
        plots.draw_matrix(
            self.out / "triangle.png",
            results.assign(
                detector="detector " + results["detector"].astype(str),
                generator="fakes " + results["generator"].astype(str),
                degradation="detectors and fakes of each round",
            ),
        )
        runs = [self.folder("generators", i + 1) for i in range(rounds)]
        _draw_fakes(self.out / "fakes.png", runs, self.test_seed)
        about = {
            "settings": plain(self.settings),
            "versions": {"ganscope": ganscope.__version__},
            "rounds": rounds,
            "says": outcome(results),
            "cells": results.to_dict("records"),
        }
        write_json(self.out / TRIANGLE, about)

    @property
    def test_seed(self) -> int:
        return self.settings.seed ^ 1

    @contextmanager
    def _task(self, text: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """A task of the progress bar, gone when it is done; yields what tells it how far it is."""
        if self.progress is None:
            yield lambda completed: None
            return
        bar, task = self.progress, self.progress.add_task(text, total=total, note="")
        try:
            yield lambda completed: bar.update(task, completed=completed)
        finally:
            bar.remove_task(task)


def _measure(scores: pd.DataFrame, seed: int) -> pd.DataFrame:
    """A row a cell of the triangle, with the 95 % interval."""
    rows = []
    for (detector, generator), part in scores.groupby(["detector", "generator"]):
        labels = part["label"].to_numpy()
        groups = part["group"].to_numpy(str)
        found = evaluate_scores(labels, part["score"].to_numpy(), seed=seed, groups=groups)["auroc"]
        rows.append(
            {
                "detector": detector,
                "generator": generator,
                "n_real": int((labels == 0).sum()),
                "n_fake": int((labels == 1).sum()),
                "auroc": found.value,
                "auroc_low": found.low,
                "auroc_high": found.high,
            }
        )
    return pd.DataFrame(rows)


def _draw_fakes(path: Path, runs: list[Path], seed: int) -> None:
    """A row a round; the fakes of a column have the same z."""
    figure = Figure(figsize=(SHOWN * 0.8 + 0.9, len(runs) * 0.84 + 0.1), layout="constrained")
    for run, axes in zip(runs, figure.subplots(len(runs), 1, squeeze=False)[:, 0], strict=True):
        fakes = load_generator(str(run)).make(seed, range(SHOWN))
        axes.imshow(np.hstack(list(fakes)), interpolation="nearest")
        axes.set_ylabel(run.name.replace("-", " "), rotation=0, ha="right", va="center")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    with replacing(path) as part:
        figure.savefig(part, dpi=130, format="png")
