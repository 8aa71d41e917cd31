"""Calibration and thresholds where validation images fail them; the arithmetic: test_metrics."""

import numpy as np
import pytest
from scipy import stats

from ganscope.detector.judging.calibration import (
    calibrate,
    choose_thresholds,
    false_alarm_bound,
    tail_bound,
)
from ganscope.errors import GanscopeError


@pytest.mark.parametrize(
    ("labels", "missing"), [([0, 0, 0], "fakes"), ([1, 1, 1], "reals"), ([], "reals")]
)
def test_one_class_is_a_clear_error(labels: list[int], missing: str) -> None:
    values = [0.1, 0.5, 0.9][: len(labels)]
    for fit in (calibrate, choose_thresholds):
        with pytest.raises(GanscopeError, match=f"no readable {missing}"):
            fit(values, labels)


def test_a_detector_that_is_certain_of_all_images_calls_none_fake() -> None:
    """Scores of 1 for reals and fakes: no threshold keeps false alarms at 1 %, so none is
    reached.
    """
    found = choose_thresholds([1.0] * 100, [0] * 50 + [1] * 50)
    assert found["fake"] > 1
    assert found["real"] <= 1


@pytest.mark.parametrize("law", [stats.logistic, stats.norm])
@pytest.mark.parametrize("n", [30, 100, 400])
def test_the_bound_holds_as_often_as_it_says(law: stats.rv_continuous, n: int) -> None:
    """A quantile of 100 reals would let more than 1 % through in every other case."""
    rng = np.random.default_rng(n)
    passed = np.array(
        [law.sf(tail_bound(law.rvs(size=n, random_state=rng), 0.01)) for _ in range(500)]
    )
    assert (passed <= 0.01).mean() >= 0.93
    assert np.median(passed) > 1e-6  # it is no wall either


def test_images_of_one_group_count_as_one() -> None:
    """Ten photographs, each cut twenty times: the bound holds for photographs to come."""
    rng = np.random.default_rng(0)
    passed, naive = [], []
    for _ in range(300):
        logits = np.repeat(rng.normal(size=10), 20) + 0.2 * rng.normal(size=200)
        spread = np.hypot(1, 0.2)
        groups = np.arange(200) // 20
        passed.append(stats.norm.sf(tail_bound(logits, 0.01, groups) / spread))
        naive.append(stats.norm.sf(tail_bound(logits, 0.01) / spread))
    assert np.mean(np.array(passed) <= 0.01) > 0.9 > np.mean(np.array(naive) <= 0.01)


def test_a_source_of_its_own_kind_raises_the_threshold() -> None:
    rng = np.random.default_rng(0)
    logits = np.concatenate([rng.normal(-6, 1, 4000), rng.normal(0, 1, 30), rng.normal(4, 1, 100)])
    labels = [0] * 4030 + [1] * 100
    sources = ["a"] * 4000 + ["b"] * 30 + [""] * 100
    scores = 1 / (1 + np.exp(-logits))
    found = choose_thresholds(scores, labels, sources)["fake"]
    assert found > choose_thresholds(scores, labels)["fake"]
    fresh = 1 / (1 + np.exp(-rng.normal(0, 1, 10_000)))
    assert (fresh >= found).mean() <= 0.05


def test_the_share_that_is_not_exceeded() -> None:
    assert false_alarm_bound(0, 299) == pytest.approx(0.01, abs=1e-4)  # the rule of three
    assert false_alarm_bound(0, 0) == false_alarm_bound(5, 5) == 1
    # Exactly 5 % of samples of that share have so few.
    assert stats.binom.cdf(3, 100, false_alarm_bound(3, 100)) == pytest.approx(0.05)
