"""From scores to probabilities and verdicts, by validation images only.

A score is no probability: calibration fits one (Platt 1999), for equally many reals and fakes. The
thresholds answer two other questions: above which score are false alarms rare, below which are
misses.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression

from ganscope.errors import GanscopeError

MISSES = 0.05
"""Share of validation fakes that may lie below the threshold of "real"."""


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
    scores: Sequence[float] | np.ndarray, labels: Sequence[int] | np.ndarray
) -> dict[str, float]:
    """Thresholds on the score: fpr_1, fpr_5, fake, real.

    fpr_1 (fpr_5): at most 1 % (5 %) of the reals score as high or higher. fake = fpr_1. real: at
    most 5 % of the fakes score below it, and it is never above fake. What lies between is *unsure*;
    where all fakes score above all reals, that is the middle third of the gap.
    Raises `GanscopeError` if there are images of one class only.
    """
    s, y = np.asarray(scores, float), np.asarray(labels, int)
    _both_classes(y)
    reals, fakes, every = np.sort(s[y == 0]), np.sort(s[y == 1]), np.unique(s)
    fpr_1, fpr_5 = (_above(reals, share, every) for share in (0.01, 0.05))
    spared = fakes[int(MISSES * len(fakes))]  # so many fakes lie below this one
    lower = every[every < spared]
    real = float((spared + lower[-1]) / 2) if len(lower) else float(spared)
    fake = fpr_1
    if fakes[0] > reals[-1]:  # the classes are apart: the middle of the gap is nobody's
        third = (fakes[0] - reals[-1]) / 3
        fake, real = float(reals[-1] + 2 * third), float(reals[-1] + third)
    return {"fake": fake, "real": min(real, fake), "fpr_1": fpr_1, "fpr_5": fpr_5}


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
