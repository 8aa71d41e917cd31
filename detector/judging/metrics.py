"""ROC metrics and their intervals. Labels: 1 = fake; scores: higher = more likely fake.

Every metric takes weights, a row of them a resample: the value is that of equal weights, and the
bootstrap needs a thousand more. Tests hold them to scikit-learn's and torchmetrics'.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

NAMES = (
    "auroc",
    "ap",
    "accuracy",
    "balanced_accuracy",
    "eer",
    "tpr_at_fpr_1",
    "tpr_at_fpr_5",
    "ece",
    "brier",
)
"""Every metric, in the order of tables. `tpr_at_fpr_1`: share of fakes found at 1 % false
alarms.
"""
SHARES = ("auroc", "ap", "accuracy", "balanced_accuracy", "eer", "tpr_at_fpr_1", "tpr_at_fpr_5")
"""Those whose best and worst values are 0 and 1."""
FEWEST = 2
"""Images or groups of a class below which resamples say nothing."""
ECE_BINS = 15
_CHUNK = 2_000_000
"""Numbers in a bootstrap's largest array: bounds its memory."""


@dataclass(frozen=True)
class Metric:
    """A value with its 95 % bootstrap interval; NaN where it cannot be computed."""

    value: float
    low: float = float("nan")
    high: float = float("nan")


def evaluate_scores(
    labels: Sequence[int] | np.ndarray,
    scores: Sequence[float] | np.ndarray,
    probabilities: Sequence[float] | np.ndarray | None = None,
    threshold: float = 0.5,
    bootstrap: int = 1000,
    seed: int = 0,
    groups: Sequence[str] | np.ndarray | None = None,
    values: Sequence[float] | np.ndarray | None = None,
) -> dict[str, Metric]:
    """Every metric of `NAMES` for scores (N,) against labels (N,).

    probabilities: calibrated ones for `ece` and `brier`; None: the scores. threshold: on the score,
    for the accuracies. bootstrap: resamples behind the intervals, drawn within each class, whole
    `groups` at a time where they are given, also those with images of both classes. values: rank
    the images where scores may have become equal, as those of large logits do; None: the scores do.
    Where a class
    has fewer than `FEWEST` images or groups there are no intervals; the interval of a share that is
    0 or 1 in all resamples is that of as many images or groups without an exception (Clopper and
    Pearson 1934). With one class only, all metrics are NaN but the accuracy.
    """
    y, s = np.asarray(labels, int), np.asarray(scores, float)
    p = s if probabilities is None else np.asarray(probabilities, float)
    ranks = s if values is None else np.asarray(values, float)
    if not all(np.isfinite(numbers).all() for numbers in (s, p, ranks)):
        raise ValueError("scores and probabilities must be finite numbers")
    exact = _exact(y, s, p, threshold, ranks)
    unit = units(y, groups)
    fewest = min(len(np.unique(unit[y == label])) for label in (0, 1))
    if not bootstrap or fewest < FEWEST:
        return {name: Metric(exact[name]) for name in NAMES}
    samples: dict[str, list[np.ndarray]] = {name: [] for name in NAMES}
    for weights in bootstrap_weights(y, groups, bootstrap, seed):
        for name, column in _weighted(y, s, p, threshold, ranks, weights).items():
            samples[name].append(column)
    drawn = {name: np.concatenate(columns) for name, columns in samples.items()}
    # Resamples scatter more than samples do, which adds to every bin's gap: without this the
    # interval of a small ECE would lie above it.
    drawn["ece"] = np.clip(drawn["ece"] - drawn["ece"].mean() + exact["ece"], 0, 1)
    found = {}
    for name in NAMES:
        low, high = np.nanquantile(drawn[name], [0.025, 0.975])
        if low == high and name in SHARES:  # no resample errs where no image did
            low, high = min(low, 0.025 ** (1 / fewest)), max(high, 1 - 0.025 ** (1 / fewest))
        found[name] = Metric(exact[name], float(low), float(high))
    return found


def evaluate_by_generator(
    table: pd.DataFrame, threshold: float = 0.5, bootstrap: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Metrics of the reals against all fakes ("all") and against one generator at a time.

    table: columns label, generator, score, probability and, if there are such, group and value (see
    `ranked_by`). Returns a row a
    generator: generator, n_real, n_fake, and name, name_low, name_high of every metric.
    """
    rows = []
    for name, both in against_generators(table):
        fakes = int(both["label"].sum())
        row: dict[str, Any] = {"generator": name, "n_real": len(both) - fakes, "n_fake": fakes}
        metrics = evaluate_scores(
            both["label"].to_numpy(),
            both["score"].to_numpy(),
            both["probability"].to_numpy(),
            threshold,
            bootstrap,
            seed,
            both["group"].to_numpy() if "group" in both else None,
            both[ranked_by(both)].to_numpy(),
        )
        for metric, found in metrics.items():
            row |= {metric: found.value, f"{metric}_low": found.low, f"{metric}_high": found.high}
        rows.append(row)
    return pd.DataFrame(rows)


def ranked_by(table: pd.DataFrame) -> str:
    """The column of a table of scores that ranks images: `value`, what the detector gave, where
    there is one. Scores may have become equal, as those of large logits do.
    """
    return "value" if "value" in table else "score"


def against_generators(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The reals with all fakes, "all", where there are several generators or none, and with those
    of one generator at a time.
    """
    reals = table[table["label"] == 0]
    fakes = table[table["label"] == 1]
    if fakes["generator"].nunique() != 1:
        yield "all", pd.concat([reals, fakes])
    for name, part in fakes.groupby("generator"):
        yield str(name), pd.concat([reals, part])


def bootstrap_weights(
    y: np.ndarray, groups: Sequence[str] | np.ndarray | None, times: int, seed: int
) -> Iterator[np.ndarray]:
    """How often each image is drawn in each of `times` resamples, in chunks (B, N)."""
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // len(y))
    for start in range(0, times, step):
        yield _resamples(y, groups, min(step, times - start), rng)


def weighted_auroc(y: np.ndarray, s: np.ndarray, w: np.ndarray) -> np.ndarray:
    """AUROC (B,) for each row of weights w (B, N)."""
    return np.trapezoid(*_curve(y, s, w), axis=1)


def units(y: np.ndarray, groups: Sequence[str] | np.ndarray | None) -> np.ndarray:
    """The number (N,) of what each image belongs to: its group, or itself where it has none."""
    own = np.arange(len(y))
    if groups is None:
        return own
    names, group = np.unique(np.asarray(groups, str), return_inverse=True)
    return np.where(names[group] != "", len(y) + group, own)


def reliability(
    labels: Sequence[int] | np.ndarray, probabilities: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What was stated, what came true and of how many images, in the bins of `ece` that hold any.

    Returns mean probability (B,), share of fakes (B,) and images (B,); each class weighs half.
    """
    y, p = np.asarray(labels, int), np.asarray(probabilities, float)
    w = _balanced(y, np.ones((1, len(y))))[0]
    bins = np.minimum((p * ECE_BINS).astype(int), ECE_BINS - 1)
    count = np.bincount(bins, minlength=ECE_BINS)
    weight, stated, true = (
        np.bincount(bins, weights=v, minlength=ECE_BINS)[count > 0] for v in (w, w * p, w * y)
    )
    return stated / weight, true / weight, count[count > 0]


def _exact(
    y: np.ndarray, s: np.ndarray, p: np.ndarray, threshold: float, ranks: np.ndarray
) -> dict[str, float]:
    values = dict.fromkeys(NAMES, float("nan"))
    if len(y):
        values["accuracy"] = float(((s >= threshold) == y).mean())
    if len(set(y.tolist())) < 2:
        return values
    found = _weighted(y, s, p, threshold, ranks, np.ones((1, len(y))))
    # Rounded where sums of many shares are not exact: a perfect AUROC is 1.
    return {name: round(float(column[0]), 12) for name, column in found.items()}


def _resamples(
    y: np.ndarray, groups: Sequence[str] | np.ndarray | None, times: int, rng: np.random.Generator
) -> np.ndarray:
    """How often each image is drawn in each resample: (times, N).

    Units with reals only, with fakes only and with both are drawn separately, so no resample lacks
    a class, and a photograph and the fake made of it are drawn together.
    """
    unit = np.unique(units(y, groups), return_inverse=True)[1]
    kind = np.zeros(int(unit.max()) + 1, int)  # 1: holds a real, 2: a fake, 3: both
    for label in (0, 1):
        kind[unit[y == label]] |= label + 1
    drawn = np.zeros((times, len(kind)))
    for members in (np.flatnonzero(kind == k) for k in (1, 2, 3)):
        if count := len(members):
            drawn[:, members] = rng.multinomial(count, np.full(count, 1 / count), size=times)
    return drawn[:, unit]


def _weighted(
    y: np.ndarray,
    s: np.ndarray,
    p: np.ndarray,
    threshold: float,
    ranks: np.ndarray,
    w: np.ndarray,
) -> dict[str, np.ndarray]:
    """Every metric for each row of weights w (B, N): name -> (B,)."""
    tpr, fpr = _curve(y, ranks, w)
    n1, n0 = ((w * one).sum(axis=1) for one in (y, 1 - y))
    found, alarms = tpr[:, 1:] * n1[:, None], fpr[:, 1:] * n0[:, None]
    precision = found / np.maximum(found + alarms, 1e-12)
    right = (s >= threshold) == y
    total = w.sum(axis=1)
    return {
        "auroc": np.trapezoid(tpr, fpr, axis=1),
        "ap": (np.diff(tpr, axis=1) * precision).sum(axis=1),
        "accuracy": (w * right).sum(axis=1) / total,
        "balanced_accuracy": (
            (w * right * y).sum(axis=1) / n1 + (w * right * (1 - y)).sum(axis=1) / n0
        )
        / 2,
        "eer": _eer(fpr, tpr),
        "tpr_at_fpr_1": np.where(fpr <= 0.01, tpr, 0).max(axis=1),
        "tpr_at_fpr_5": np.where(fpr <= 0.05, tpr, 0).max(axis=1),
        "ece": _ece(y, p, _balanced(y, w)),
        "brier": (_balanced(y, w) * (p - y) ** 2).sum(axis=1),
    }


def _curve(y: np.ndarray, s: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """TPR and FPR (B, 1 + different scores) from (0, 0) on, for each row of weights w (B, N)."""
    order = np.argsort(-s, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(s[order]) != 0])  # equal scores stand together
    weights, zero = w[:, order], np.zeros((len(w), 1))
    rates = []
    for member in (y[order], 1 - y[order]):
        count = np.add.reduceat(weights * member, starts, axis=1).cumsum(axis=1)
        rates.append(np.hstack([zero, count / count[:, -1:]]))
    return rates[0], rates[1]


def _eer(fpr: np.ndarray, tpr: np.ndarray) -> np.ndarray:
    """Equal error rate (B,): where false alarms equal misses, on straight lines between points."""
    gap = fpr + tpr - 1  # grows from -1 to 1 along each curve (B, points)
    right = np.argmax(gap >= 0, axis=1)
    left = np.maximum(right - 1, 0)
    rows = np.arange(len(fpr))
    span = gap[rows, right] - gap[rows, left]
    share = np.where(span > 0, -gap[rows, left] / np.where(span > 0, span, 1), 0)
    return fpr[rows, left] + share * (fpr[rows, right] - fpr[rows, left])


def _balanced(y: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Weights (B, N) such that each class weighs 1/2: probabilities are meant for equal odds."""
    ones, zeros = (w * y).sum(axis=1, keepdims=True), (w * (1 - y)).sum(axis=1, keepdims=True)
    return w * np.where(y == 1, 0.5 / ones, 0.5 / zeros)


def _ece(y: np.ndarray, p: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Expected calibration error (B,): mean gap of probability and frequency in equal-width
    bins.
    """
    bins = np.minimum((p * ECE_BINS).astype(int), ECE_BINS - 1)
    member = np.eye(ECE_BINS)[bins]  # (N, bins)
    return np.abs((w * (p - y)) @ member).sum(axis=1) / w.sum(axis=1)
