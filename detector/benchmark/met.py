"""Which of a benchmark's images its detectors have met before: by the prints that they keep of what
they learned from, wherever the files lie now; where none are kept, by the names of the corpora.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ganscope.config import BenchmarkSettings
from ganscope.datasets.copies import Looked, look_at_table, name_some
from ganscope.detector.benchmark.contestants import Scorer
from ganscope.prints import find_same

GUESSED = "as far as the names of corpora tell; it keeps no record of its images"


@dataclass
class Met:
    """What one detector has met of the images of a benchmark."""

    learned: set[str]
    """Paths of those that it learned from."""
    chosen: set[str]
    """Paths of those that set its thresholds."""
    guess: str = ""
    """What to remark where no complete record is kept; "" where nothing is known against it."""
    advice: str = ""
    """What to do about it."""


def find_met(
    scorers: dict[str, Scorer], looked: Looked, settings: BenchmarkSettings
) -> dict[str, Met]:
    """For each network of ours what it has met, as far as that is known; looked: all images of the
    corpora, of whichever split.
    """
    paths = looked.table["path"].to_numpy()
    found = {}
    for name, scorer in scorers.items():
        if scorer.network is None:
            continue
        kept, met = scorer.network.learned, Met(set(), set())
        if kept is not None:
            pairs = find_same(looked.prints, kept)
            only_chosen = kept.chosen[pairs[:, 1]]
            met.learned = set(paths[pairs[~only_chosen, 0]])
            met.chosen = set(paths[pairs[only_chosen, 0]]) - met.learned
        if (kept is None or not kept.complete) and not settings.train:
            met.guess = guess(scorer, settings, _has_test(looked.table))
        found[name] = met
    splits = looked.table["split"]
    if not (splits != "").any():
        splits = pd.Series(splits_of_runs(found, looked.table), looked.table.index)
    for met in found.values():
        kept_for_test = looked.table[splits == "test"]
        fresh = ~kept_for_test["path"].isin(met.learned | met.chosen)
        if settings.split == "all" and kept_for_test[fresh]["label"].nunique() == 2 and fresh.all():
            met.advice = "; --split test measures what it never saw"
    return found


def splits_of_runs(met: dict[str, Met], table: pd.DataFrame) -> list[str]:
    """The split of each image of corpora without splits of their own, by what the detectors have
    met of them: test is what none of them has.
    """
    learned: set[str] = set().union(*(one.learned for one in met.values()))
    chosen: set[str] = set().union(*(one.chosen for one in met.values()))
    return [
        "train" if path in learned else "val" if path in chosen else "test"
        for path in table["path"]
    ]


def guess(scorer: Scorer, settings: BenchmarkSettings, has_test: bool) -> str:
    """What to remark on a detector without a record of its images, by the names of the corpora that
    it learned from; has_test: whether these have a test split of their own.
    """
    if scorer.network is None:
        return ""
    training = scorer.network.config.get("training") or {}
    trained_on = {Path(c).resolve() for c in training.get("corpora", ())}
    if not trained_on & {Path(c).resolve() for c in settings.corpora}:
        return ""
    # Where generators or sources were held out, the training drew splits of its own.
    names = ("val_generator", "test_generator", "val_source")
    held_out = any(training.get(name) for name in names) or not has_test
    if settings.split == "test" and not held_out:
        return ""
    if settings.split == "val":
        return f"its thresholds were set by images of this corpus, so this flatters ({GUESSED})"
    more = settings.split == "all" and not held_out
    advice = "; --split test measures what it never saw" if more else ""
    return f"trained on this corpus, so this flatters ({GUESSED}){advice}"


def remark_on_met(met: Met | None, images: pd.DataFrame) -> str:
    """What to remark where a detector is measured on these images; "" if it has met none."""
    if met is None:
        return ""
    learned, chosen = (images[images["path"].isin(part)] for part in (met.learned, met.chosen))
    said = [f"learned from {len(learned):,}"] if len(learned) else []
    said += [f"set its thresholds by {len(chosen):,}"] if len(chosen) else []
    if not said:
        return met.guess
    names = name_some([*learned["file_name"], *chosen["file_name"]])
    return (
        f"it {' and '.join(said)} of these {len(images):,} images ({names}), as they are or saved "
        f"anew, so this flatters{met.advice}"
    )


def without_record(scorers: dict[str, Scorer]) -> list[str]:
    """The trained networks among the detectors that do not say from which images they learned."""
    return [
        name
        for name, scorer in scorers.items()
        if scorer.network is not None
        and (scorer.network.config.get("training") or {}).get("corpora")
        and (scorer.network.learned is None or not scorer.network.learned.complete)
    ]


def _has_test(table: pd.DataFrame) -> bool:
    return table["label"][table["split"] == "test"].nunique() == 2


def look_again(table: pd.DataFrame) -> Looked:
    """The images of a table of scores, each once."""
    images = table.drop_duplicates("path").reset_index(drop=True)
    return look_at_table(images.assign(split=np.full(len(images), "test")))
