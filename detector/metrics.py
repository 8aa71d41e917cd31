"""ROC metrics and their intervals. Labels: 1 = fake; scores: higher = more likely fake.

scikit-learn does the arithmetic of the values. The bootstrap needs each metric a thousand times, so
it has a vectorised twin here that works on weights; a test holds the two together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    roc_auc_score,
    roc_curve,
)

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
) -> dict[str, Metric]:
    """Every metric of `NAMES` for scores (N,) against labels (N,).

    probabilities: calibrated ones for `ece` and `brier`; None: the scores. threshold: on the score,
    for the accuracies. bootstrap: resamples behind the intervals, drawn within each class, whole
    `groups` at a time where they are given. With one class only, all metrics are NaN but the
    accuracy.
    """
    y, s = np.asarray(labels, int), np.asarray(scores, float)
    p = s if probabilities is None else np.asarray(probabilities, float)
    if not np.isfinite(s).all() or not np.isfinite(p).all():
        raise ValueError("scores and probabilities must be finite numbers")
    values = _values(y, s, p, threshold)
    if not bootstrap or len(set(y.tolist())) < 2:
        return {name: Metric(values[name]) for name in NAMES}
    samples: dict[str, list[np.ndarray]] = {name: [] for name in NAMES}
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // len(y))
    for start in range(0, bootstrap, step):
        weights = _resamples(y, groups, min(step, bootstrap - start), rng)
        for name, column in _weighted(y, s, p, threshold, weights).items():
            samples[name].append(column)
    bounds = {n: np.nanquantile(np.concatenate(c), [0.025, 0.975]) for n, c in samples.items()}
    return {n: Metric(values[n], float(bounds[n][0]), float(bounds[n][1])) for n in NAMES}


def evaluate_by_generator(
    table: pd.DataFrame, threshold: float = 0.5, bootstrap: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Metrics of the reals against all fakes ("all") and against one generator at a time.

    table: columns label, generator, score, probability and, if there is one, group. Returns a row a
    generator: generator, n_real, n_fake, and name, name_low, name_high of every metric.
    """
    reals = table[table["label"] == 0]
    fakes = table[table["label"] == 1]
    parts: list[tuple[str, pd.DataFrame]] = [("all", fakes)]
    if fakes["generator"].nunique() > 1 or not len(fakes):
        parts += [(str(name), rows) for name, rows in fakes.groupby("generator")]
    else:
        parts = [(str(fakes["generator"].iloc[0]), fakes)]
    rows = []
    for name, part in parts:
        both = pd.concat([reals, part])
        row: dict[str, Any] = {"generator": name, "n_real": len(reals), "n_fake": len(part)}
        metrics = evaluate_scores(
            both["label"].to_numpy(),
            both["score"].to_numpy(),
            both["probability"].to_numpy(),
            threshold,
            bootstrap,
            seed,
            both["group"].to_numpy() if "group" in both else None,
        )
        for metric, found in metrics.items():
            row |= {metric: found.value, f"{metric}_low": found.low, f"{metric}_high": found.high}
        rows.append(row)
    return pd.DataFrame(rows)


def _values(y: np.ndarray, s: np.ndarray, p: np.ndarray, threshold: float) -> dict[str, float]:
    values = dict.fromkeys(NAMES, float("nan"))
    if len(y):
        values["accuracy"] = float(accuracy_score(y, s >= threshold))
    if len(set(y.tolist())) < 2:
        return values
    fpr, tpr, _ = roc_curve(y, s, drop_intermediate=False)
    return values | {
        "auroc": float(roc_auc_score(y, s)),
        "ap": float(average_precision_score(y, s)),
        "balanced_accuracy": float(balanced_accuracy_score(y, s >= threshold)),
        "eer": float(_eer(fpr[None], tpr[None])[0]),
        "tpr_at_fpr_1": float(tpr[fpr <= 0.01].max()),
        "tpr_at_fpr_5": float(tpr[fpr <= 0.05].max()),
        "ece": float(_ece(y, p, _balanced(y, np.ones((1, len(y)))))[0]),
        "brier": float(brier_score_loss(y, p, sample_weight=_balanced(y, np.ones((1, len(y))))[0])),
    }


def _resamples(
    y: np.ndarray, groups: Sequence[str] | np.ndarray | None, times: int, rng: np.random.Generator
) -> np.ndarray:
    """How often each image is drawn in each resample: (times, N)."""
    units = np.arange(len(y))  # an image without a group is drawn alone
    if groups is not None:
        names, group = np.unique(np.asarray(groups, str), return_inverse=True)
        units = np.where(names[group] != "", len(y) + group, units)
    weights = np.zeros((times, len(y)))
    for label in (0, 1):
        rows = np.flatnonzero(y == label)
        _, unit = np.unique(units[rows], return_inverse=True)
        count = int(unit.max()) + 1
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=times)
        weights[:, rows] = drawn[:, unit]
    return weights


def _weighted(
    y: np.ndarray, s: np.ndarray, p: np.ndarray, threshold: float, w: np.ndarray
) -> dict[str, np.ndarray]:
    """Every metric for each row of weights w (B, N): name -> (B,)."""
    order = np.argsort(-s, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(s[order]) != 0])  # equal scores stand together
    positive = np.add.reduceat(w[:, order] * y[order], starts, axis=1).cumsum(axis=1)
    negative = np.add.reduceat(w[:, order] * (1 - y[order]), starts, axis=1).cumsum(axis=1)
    n1, n0 = positive[:, -1:], negative[:, -1:]
    zero = np.zeros((len(w), 1))
    tpr, fpr = np.hstack([zero, positive / n1]), np.hstack([zero, negative / n0])
    precision = positive / np.maximum(positive + negative, 1e-12)
    right = (s >= threshold) == y
    total = w.sum(axis=1)
    return {
        "auroc": np.trapezoid(tpr, fpr, axis=1),
        "ap": (np.diff(tpr, axis=1) * precision).sum(axis=1),
        "accuracy": (w * right).sum(axis=1) / total,
        "balanced_accuracy": (
            (w * right * y).sum(axis=1) / n1[:, 0] + (w * right * (1 - y)).sum(axis=1) / n0[:, 0]
        )
        / 2,
        "eer": _eer(fpr, tpr),
        "tpr_at_fpr_1": np.where(fpr <= 0.01, tpr, 0).max(axis=1),
        "tpr_at_fpr_5": np.where(fpr <= 0.05, tpr, 0).max(axis=1),
        "ece": _ece(y, p, _balanced(y, w)),
        "brier": (_balanced(y, w) * (p - y) ** 2).sum(axis=1),
    }


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
