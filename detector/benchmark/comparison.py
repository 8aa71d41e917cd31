"""Which of two detectors is better beyond chance, and how many photographs each calls fake.

Two detectors that scored the same images are compared pair by pair: what is hard for one is often
hard for the other, so the interval of their difference is narrower than theirs suggest.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

from ganscope.detector.judging.calibration import count_called
from ganscope.detector.judging.metrics import (
    against_generators,
    bootstrap_weights,
    ranked_by,
    units,
    weighted_auroc,
)

COLUMNS = (
    "detector",
    "other",
    "generator",
    "degradation",
    "difference",
    "low",
    "high",
    "p_value",
    "p_adjusted",
    "method",
)
DELONG, CLUSTERS = "DeLong", "cluster bootstrap"
_ROUNDING = 1e-12
"""A resampled difference of less is none."""


def compare_detectors(table: pd.DataFrame, bootstrap: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Differences of AUROC between every two detectors, on the images that both have scored.

    table: columns image, degradation, detector, score (or value), label, generator, group. Returns
    a row for each two detectors, generator (and "all") and degradation with both classes, with
    `COLUMNS`: difference is detector's AUROC minus other's, with its 95 % interval; method is
    DeLong's test, or where images share a group a bootstrap of whole groups, with the same
    resamples for both. p_adjusted is Holm's (1979) over all pairs of one generator and degradation.

    The bootstrap gives no p-value below 2 / (bootstrap + 1), nor one that so few groups cannot
    bear: 2 ** (1 - n) for n groups of the rarer class, as if all had spoken for one detector. Where
    a class is of one image or one group, p is 1 and the interval NaN; with bootstrap 0, what needs
    it is NaN.
    """
    order = list(dict.fromkeys(table["detector"]))
    about = table.drop_duplicates("image").set_index("image")[["label", "generator", "group"]]
    rows = []
    for degradation, part in table.groupby("degradation", sort=False):
        scores = part.pivot(index="image", columns="detector", values=ranked_by(part))
        known: dict[tuple[str, bytes], np.ndarray] = {}  # other pairs ask for the same resamples
        for one, other in combinations([name for name in order if name in scores], 2):
            both = scores[[one, other]].set_axis(["a", "b"], axis=1).dropna().join(about)
            for generator, cell in against_generators(both):
                if cell["label"].nunique() == 2:
                    found = _compare(cell, (one, other), bootstrap, seed, known)
                    where = {"generator": generator, "degradation": degradation}
                    rows.append({"detector": one, "other": other, **where, **found})
    compared = pd.DataFrame(rows, columns=[*COLUMNS])
    if len(compared):
        cells = compared.groupby(["generator", "degradation"])["p_value"]
        compared["p_adjusted"] = cells.transform(adjust)
    return compared


def delong(
    labels: Sequence[int] | np.ndarray,
    scores_a: Sequence[float] | np.ndarray,
    scores_b: Sequence[float] | np.ndarray,
) -> tuple[float, float, float]:
    """AUROC of two detectors on the same images (N,), and the two-sided p of their being equal.

    DeLong et al. 1988, in O(N log N) by mid-ranks (Sun and Xu 2014). Where nothing varies there is
    no such test, and p is 2 ** (1 - n) for n images of the rarer class: chance that they all speak
    for one detector; it is 1 without a difference. Raises `ValueError` for images of one class, and
    for scores that are no finite numbers.
    """
    y, a, b = _checked(labels, scores_a, scores_b)
    wins_a, wins_b = _wins(y, a), _wins(y, b)
    difference, variance = _mean(y, wins_a - wins_b), _variance(y, wins_a - wins_b)
    return _mean(y, wins_a), _mean(y, wins_b), _p_value(y, difference, variance)


def auroc_variance(
    labels: Sequence[int] | np.ndarray, scores: Sequence[float] | np.ndarray
) -> float:
    """DeLong's variance of the AUROC of scores (N,); NaN where a class is of one image."""
    y, s = _checked(labels, scores)
    return _variance(y, _wins(y, s))


def adjust(p_values: Sequence[float] | np.ndarray | pd.Series) -> np.ndarray:
    """p-values (N,) that stay true when all are looked at (Holm 1979)."""
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(adjusted, 1)


def false_alarms_by_source(table: pd.DataFrame, thresholds: Mapping[str, float]) -> pd.DataFrame:
    """How many photographs of each source every detector calls fake.

    table: as for `compare_detectors`, with source. thresholds: detector -> score from which on it
    says fake. Returns a row for each detector, degradation and source: detector, degradation,
    source, photographs (images of one group are one photograph), called_fake, share, and at_most,
    its upper 95 % limit.
    """
    reals = table[table["label"] == 0]
    reals = reals.assign(
        called=reals["score"] >= [thresholds[name] for name in reals["detector"]],
        photograph=reals["group"].where(reals["group"] != "", reals["image"]),
    )
    rows = []
    by = ["detector", "degradation", "source"]
    for names, part in reals.groupby(by, sort=False):
        found = count_called(part["called"].to_numpy(), part["photograph"].to_numpy())
        share = found["called_fake"] / found["photographs"]
        rows.append({**dict(zip(by, names, strict=True)), **found, "share": share})
    return pd.DataFrame(rows, columns=[*by, "photographs", "called_fake", "share", "at_most"])


def _compare(
    cell: pd.DataFrame,
    names: tuple[str, str],
    bootstrap: int,
    seed: int,
    known: dict[tuple[str, bytes], np.ndarray],
) -> dict[str, float | str]:
    """difference, low, high, p_value and method of the scores a and b of two detectors.

    known: a detector's name and its images -> AUROCs in all resamples; filled here.
    """
    y, a, b, groups = (cell[name].to_numpy() for name in ("label", "a", "b", "group"))
    wins = _wins(y, a) - _wins(y, b)
    difference = _mean(y, wins)
    unit = units(y, groups)
    if len(np.unique(unit)) == len(unit):
        method, variance = DELONG, _variance(y, wins)
        reach = float(stats.norm.ppf(0.975) * np.sqrt(variance))
        low, high = difference - reach, difference + reach
        p_value = _p_value(y, difference, variance)
    else:
        method = CLUSTERS
        fewest = min(len(np.unique(unit[y == label])) for label in (0, 1))
        drawn = np.empty((2, bootstrap if fewest > 1 else 0))
        for i, (name, s) in enumerate(zip(names, (a, b), strict=True)):
            key = (name, cell.index.to_numpy().tobytes())
            if key not in known:
                chunks = bootstrap_weights(y, groups, drawn.shape[1], seed)
                known[key] = np.concatenate([[], *(weighted_auroc(y, s, w) for w in chunks)])
            drawn[i] = known[key]
        low, high, p_value = _limits(drawn[0] - drawn[1], fewest)
    return {
        "difference": difference,
        "low": low,
        "high": high,
        "p_value": p_value,
        "method": method,
    }


def _limits(drawn: np.ndarray, fewest: int) -> tuple[float, float, float]:
    """95 % interval and two-sided p of resampled differences (B,), `fewest` units in a class."""
    if not len(drawn):
        return float("nan"), float("nan"), 1.0 if fewest == 1 else float("nan")
    low, high = np.quantile(drawn, [0.025, 0.975])
    beyond = min((drawn <= _ROUNDING).sum(), (drawn >= -_ROUNDING).sum())
    p_value = max(2 * (beyond + 1) / (len(drawn) + 1), 2.0 ** (1 - fewest))
    return float(low), float(high), float(min(p_value, 1.0))


def _checked(labels: Sequence[int] | np.ndarray, *scores: Sequence[float] | np.ndarray) -> list:
    y, *found = np.asarray(labels, int), *(np.asarray(s, float) for s in scores)
    if set(y.tolist()) != {0, 1}:
        raise ValueError("labels must be 0 and 1, with images of both classes")
    if any(s.shape != y.shape or not np.isfinite(s).all() for s in found):
        raise ValueError("scores must be finite numbers, one a label")
    return [y, *found]


def _wins(y: np.ndarray, s: np.ndarray) -> np.ndarray:
    """How many images of the other class each image (N,) stands on the right side of; equal scores
    count half. Whole and half numbers, so what does not vary has a variance of exactly 0.
    """
    wins = np.empty(len(y))
    below = stats.rankdata(s)
    for label in (0, 1):
        wins[y == label] = below[y == label] - stats.rankdata(s[y == label])
    return np.where(y == 1, wins, (y == 1).sum() - wins)


def _mean(y: np.ndarray, wins: np.ndarray) -> float:
    """The AUROC (or a difference of two) by wins (or their differences) (N,)."""
    return float(wins[y == 1].sum() / ((y == 1).sum() * (y == 0).sum()))


def _variance(y: np.ndarray, wins: np.ndarray) -> float:
    """DeLong's variance of what `_mean` gives; NaN where a class is of one image."""
    fakes, reals = (wins[y == label] for label in (1, 0))
    if min(len(fakes), len(reals)) < 2:
        return float("nan")
    of_fakes = fakes.var(ddof=1) / len(fakes) / len(reals) ** 2
    return float(of_fakes + reals.var(ddof=1) / len(reals) / len(fakes) ** 2)


def _p_value(y: np.ndarray, difference: float, variance: float) -> float:
    if variance > 0:
        return float(2 * stats.norm.sf(abs(difference) / np.sqrt(variance)))
    if difference == 0:
        return 1.0
    return float(2.0 ** (1 - min((y == 1).sum(), (y == 0).sum())))
