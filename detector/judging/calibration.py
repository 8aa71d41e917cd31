"""From scores to probabilities and verdicts, by validation images only.

A score is no probability: calibration fits one (Platt 1999), for equally many reals and fakes. The
thresholds answer two other questions: above which score are false alarms rare, below which are
misses. Validation photographs are few, so the first is answered with a margin for chance.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.linear_model import LogisticRegression

from ganscope.errors import GanscopeError

MISSES = 0.05
"""Share of validation fakes that may lie below the threshold of "real"."""
FALSE_ALARMS, OF_A_SOURCE = 0.01, 0.05
"""Shares of all photographs, and of those of one source, that may be called fake."""
CONFIDENCE = 0.95
TAIL, FEWEST = 0.2, 25
"""Share of the photographs, the highest, whose logits a tail is fitted to; photographs of a source
without which it gets no tail of its own: a fifth of them would be fewer than five, and the limit
of so few is far above anything that was seen."""


def calibrate(
    logits: Sequence[float] | np.ndarray, labels: Sequence[int] | np.ndarray
) -> dict[str, float]:
    """Platt scaling: scale and shift for probability = sigmoid(scale * logit + shift).

    Both classes weigh alike. The fit is lightly regularised, so classes that do not overlap give no
    infinite certainty; a detector that is wrong way round gets scale 0: it knows nothing. Raises
    `GanscopeError` if there are images of one class only.
    """
    x, y = np.asarray(logits, float)[:, None], np.asarray(labels, int)
    _both_classes(y)
    spread = float(x.std()) or 1.0
    fit = LogisticRegression(C=1.0, class_weight="balanced").fit(x / spread, y)
    scale, shift = float(fit.coef_[0, 0]) / spread, float(fit.intercept_[0])
    return {"scale": scale, "shift": shift} if scale > 0 else {"scale": 0.0, "shift": 0.0}


def choose_thresholds(
    scores: Sequence[float] | np.ndarray,
    labels: Sequence[int] | np.ndarray,
    sources: Sequence[str] | np.ndarray | None = None,
    groups: Sequence[str] | np.ndarray | None = None,
) -> dict[str, float]:
    """Thresholds on the score: fpr_1, fpr_5, fake, real.

    fpr_1 (fpr_5): at most 1 % (5 %) of the reals score as high or higher. fake: never below fpr_1,
    and so high that with 95 % confidence at most 1 % of all reals, and 5 % of those of any one
    source with `FEWEST` or more, reach it (see `tail_bound`; images of one group count as one).
    real: at most 5 % of the fakes score below it, and it is never above fake. What lies between is
    *unsure*; where all fakes score above all reals, that is at least the middle third of the gap.
    Raises `GanscopeError` if there are images of one class only.
    """
    s, y = np.asarray(scores, float), np.asarray(labels, int)
    _both_classes(y)
    reals, fakes, every = np.sort(s[y == 0]), np.sort(s[y == 1]), np.unique(s)
    fpr_1, fpr_5 = (_above(reals, share, every) for share in (0.01, 0.05))
    spared = fakes[int(MISSES * len(fakes))]  # so many fakes lie below this one
    lower = every[every < spared]
    real = float((spared + lower[-1]) / 2) if len(lower) else float(spared)
    logits = np.log(np.clip(reals, 1e-12, None)) - np.log(np.clip(1 - reals, 1e-12, None))
    order = np.argsort(s[y == 0])
    group = np.arange(len(reals)) if groups is None else np.asarray(groups)[y == 0][order]
    bounds = [tail_bound(logits, FALSE_ALARMS, group)]
    if sources is not None:
        source = np.asarray(sources)[y == 0][order]
        for name in np.unique(source):
            part = source == name
            if len(np.unique(group[part])) >= FEWEST:
                bounds.append(tail_bound(logits[part], OF_A_SOURCE, group[part]))
    fake = max(fpr_1, float(1 / (1 + np.exp(-max(bounds)))))
    if fakes[0] > reals[-1]:  # the classes are apart: the middle of the gap is nobody's
        third = (fakes[0] - reals[-1]) / 3
        fake, real = max(fake, float(reals[-1] + 2 * third)), float(reals[-1] + third)
    return {"fake": fake, "real": min(real, fake), "fpr_1": fpr_1, "fpr_5": fpr_5}


def tail_bound(logits: np.ndarray, share: float, groups: np.ndarray | None = None) -> float:
    """The logit that at most `share` of all reals reach, with 95 % confidence, by some of them (N,)
    and their groups (N,), of which each counts as one.

    A plain quantile of few reals is worth little: of 50, none says what 1 in 100 does. So an
    exponential tail is fitted to the highest fifth (peaks over a threshold, Pickands 1975) and
    followed, at the upper confidence limit of its mean, to where `share` is left. Infinite for
    fewer than 2 reals.
    """
    order = np.argsort(logits)
    ordered = np.asarray(logits, float)[order]
    count = min(max(round(TAIL * len(ordered)), 5), len(ordered) - 1)
    if count < 1:
        return float("inf")
    start = ordered[-count - 1]
    mean = (ordered[-count:] - start).mean()
    seen = count if groups is None else len(np.unique(np.asarray(groups)[order[-count:]]))
    upper = mean * 2 * seen / stats.chi2.ppf(1 - CONFIDENCE, 2 * seen)
    return float(start + upper * max(np.log(count / len(ordered) / share), 0.0))


def false_alarm_bound(called_fake: int, reals: int) -> float:
    """The share of reals called fake that is not exceeded, with 95 % confidence (Clopper and
    Pearson 1934).
    """
    if called_fake >= reals:
        return 1.0
    return float(stats.beta.ppf(CONFIDENCE, called_fake + 1, reals - called_fake))


def count_called(
    called: Sequence[bool] | np.ndarray, photographs: Sequence | np.ndarray
) -> dict[str, int | float]:
    """`photographs`: how many there are among images (N,), `called_fake`: of how many any image was
    called fake, and `at_most`: the share that is not exceeded (see `false_alarm_bound`).
    """
    each = pd.Series(np.asarray(called, bool)).groupby(np.asarray(photographs), sort=False).any()
    fakes = int(each.sum())
    return {
        "photographs": len(each),
        "called_fake": fakes,
        "at_most": false_alarm_bound(fakes, len(each)),
    }


def _both_classes(y: np.ndarray) -> None:
    for label, word in ((0, "reals"), (1, "fakes")):
        if not (y == label).any():
            raise GanscopeError(
                f"no readable {word} among the validation images; calibration needs both classes"
            )


def _above(reals: np.ndarray, share: float, every: np.ndarray) -> float:
    """The threshold that `share` of the reals reach: midway from the last real below it to the
    next.
    """
    beaten = reals[len(reals) - 1 - int(share * len(reals))]
    higher = every[every > beaten]
    return float((beaten + higher[0]) / 2) if len(higher) else float(np.nextafter(beaten, np.inf))
