"""Does the file give the answer away? A classifier on everything that must *not* tell real from
fake.

In most public sets reals are JPEG and fakes PNG, or one class has one size or one quantisation
table. A detector that is trained there learns the format, and a benchmark there measures it. The
audit trains a shallow classifier on the files' outsides alone, never on pixels; its held-out AUROC
is what a detector could score without looking. 0.5 is fair.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from ganscope.config import AuditSettings
from ganscope.datasets.copies import look_at_table, remark_on_copies
from ganscope.datasets.corpus import open_corpus
from ganscope.datasets.declared import (
    DROPPED,
    KEPT,
    find_declared,
    leave_out_declared,
    remark_on_declared,
)
from ganscope.datasets.degradations import estimate_quality, lossy_history
from ganscope.datasets.writing import encode_image
from ganscope.errors import GanscopeError, ImageError
from ganscope.images import ImageFacts, open_image, read_facts

FOLDS = 5
ALIGNED_SIDE, ALIGNED_QUALITY = 128, 90
"""Size in pixels and JPEG quality of the crops that `aligned` looks at."""
FEWEST = 2 * FOLDS
"""Images of each class below which nothing can be said."""


@dataclass(frozen=True)
class Audit:
    """What the files' outsides tell; `clues` are sorted, the worst first."""

    auroc: float
    """Held-out AUROC of the classifier on all clues together."""
    interval: tuple[float, float]
    """95 % bootstrap interval."""
    clues: list[tuple[str, float]]
    """(clue, held-out AUROC of that clue alone)."""
    by_generator: dict[str, float]
    """AUROC of all clues, the reals against one generator."""
    n_real: int
    n_fake: int
    unreadable: int
    max_auroc: float
    remarks: tuple[str, ...] = ()
    """On pictures that are in the corpus twice, and on files that contradict their label."""
    declared: tuple[str, ...] = ()
    """All files that contradict their label: reals that declare themselves generated or edited with
    AI, fakes that a camera took."""

    @property
    def leaks(self) -> bool:
        return self.auroc > self.max_auroc

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"leaks": self.leaks}


def _code(text: str) -> float:
    """A stable number for a word; trees only ask whether it is the same."""
    return float(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big"))


CLUES: dict[str, Callable[[ImageFacts], list[float]]] = {
    "container": lambda f: [_code(f.format)],
    "dimensions": lambda f: [f.stored_width, f.stored_height, f.stored_width / f.stored_height],
    "quantisation tables": lambda f: [
        _code(str(f.quantization)),
        estimate_quality(f.quantization) if f.quantization else -1,
    ],
    "chroma subsampling": lambda f: [_code(f.subsampling)],
    "EXIF presence": lambda f: [float(f.has_exif)],
    "colour mode": lambda f: [_code(f.mode)],
    "bytes per pixel": lambda f: [f.main_bytes / (f.stored_width * f.stored_height)],
}
"""Clue -> numbers read off a file's header. To add a clue, add a line; of equal clues the first is
named first, so a cause comes before the change of size that it brings."""


def audit_corpus(settings: AuditSettings) -> Audit:
    """Measure how well a corpus' files tell real from fake from the outside.

    Raises `GanscopeError` if there is no corpus, or too few images of a class to say anything.
    """
    looked = look_at_table(open_corpus(settings.corpus).table)
    declared = find_declared(looked.table)
    kept = leave_out_declared(looked.table, declared) if settings.drop_declared else looked.table
    limit, name = settings.max_auroc, str(settings.corpus)
    found = audit_table(kept, name, limit, settings.aligned, settings.seed)
    return replace(
        found,
        unreadable=found.unreadable + len(looked.unreadable),
        remarks=(
            *remark_on_copies(looked.table, looked.prints),
            *remark_on_declared(declared, DROPPED if settings.drop_declared else KEPT),
        ),
        declared=tuple(declared["file_name"]),
    )


def audit_table(
    table: pd.DataFrame,
    name: str = "the corpus",
    max_auroc: float = AuditSettings.max_auroc,
    aligned: bool = False,
    seed: int = 0,
) -> Audit:
    """`audit_corpus` of some images of a corpus' table; name: for messages."""
    facts = [_facts(path) for path in table["path"]]
    if aligned:
        qualities = [estimate_quality(f.quantization) for f in facts if f and f.quantization]
        rng = np.random.default_rng(seed)
        facts = [f and _aligned(f, qualities, rng) for f in facts]
    readable = np.array([f is not None for f in facts])
    table, known = table[readable], [f for f in facts if f is not None]
    labels = table["label"].to_numpy()
    n_fake = int(labels.sum())
    n_real = len(labels) - n_fake
    if min(n_real, n_fake) < FEWEST:
        raise GanscopeError(
            f"{name}: {n_real} reals and {n_fake} fakes can be read; "
            f"an audit needs at least {FEWEST} of each"
        )
    groups = table["group"].where(table["group"] != "", table["file_name"]).to_numpy()
    folds = list(_folds(labels, groups, seed))
    columns = {name: np.array([read(f) for f in known], float) for name, read in CLUES.items()}
    together = _held_out(np.hstack(list(columns.values())), labels, folds)
    clues = [
        (name, _auroc(labels, _held_out(values, labels, folds))) for name, values in columns.items()
    ]
    reals = labels == 0
    return Audit(
        auroc=_auroc(labels, together),
        interval=_interval(labels, together, seed),
        clues=sorted(clues, key=lambda clue: -clue[1]),
        by_generator={
            str(fakes): _auroc(labels[reals | mask], together[reals | mask])
            for fakes in sorted(set(table["generator"]) - {"real"})
            if (mask := (table["generator"] == fakes).to_numpy()).any()
        },
        n_real=n_real,
        n_fake=n_fake,
        unreadable=int((~readable).sum()),
        max_auroc=max_auroc,
    )


def _facts(path: str) -> ImageFacts | None:
    try:
        return read_facts(path)
    except ImageError:
        return None


def _aligned(
    facts: ImageFacts, qualities: list[int], rng: np.random.Generator
) -> ImageFacts | None:
    """The facts about an image's central crop when all files get one size, container and
    quality.
    """
    try:
        pixels = open_image(facts.path).pixels
    except ImageError:
        return None
    if not facts.quantization:
        pixels = lossy_history(pixels, qualities, rng)
    top, left = (max(side - ALIGNED_SIDE, 0) // 2 for side in pixels.shape[:2])
    crop = pixels[top : top + ALIGNED_SIDE, left : left + ALIGNED_SIDE]
    return replace(
        facts,
        format="JPEG",
        mode="RGB",
        stored_width=crop.shape[1],
        stored_height=crop.shape[0],
        main_bytes=len(encode_image(crop, "jpeg", ALIGNED_QUALITY)),
        has_exif=False,
        quantization=(),
        subsampling="4:2:0",
    )


def _folds(
    labels: np.ndarray, groups: np.ndarray, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Folds that keep groups together and hold both classes; by image if the groups are too few."""
    few = min(len(set(groups[labels == label])) for label in (0, 1)) < 2 * FOLDS
    units = np.arange(len(labels)) if few else groups
    split = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    yield from split.split(labels[:, None], labels, units)


def _held_out(
    values: np.ndarray, labels: np.ndarray, folds: list[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """Score of each image by a classifier that never saw it: (N,)."""
    scores = np.zeros(len(labels))
    for train, test in folds:
        if not np.ptp(values[train], axis=0).any():
            scores[test] = 0.5  # the clue is the same for all: it says nothing
            continue
        model = HistGradientBoostingClassifier(
            max_iter=60,
            max_leaf_nodes=8,
            min_samples_leaf=10,
            class_weight="balanced",
            random_state=0,
        )
        scores[test] = model.fit(values[train], labels[train]).predict_proba(values[test])[:, 1]
    return scores


def _auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    return float(roc_auc_score(labels, scores))


def _interval(
    labels: np.ndarray, scores: np.ndarray, seed: int, times: int = 500
) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    real, fake = scores[labels == 0], scores[labels == 1]
    found = []
    for _ in range(times):
        below = np.sort(rng.choice(real, len(real)))
        above = rng.choice(fake, len(fake))
        wins = [np.searchsorted(below, above, side).mean() for side in ("left", "right")]
        found.append(sum(wins) / 2 / len(below))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)
