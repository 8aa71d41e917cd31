"""Metrics: closed-form answers, agreement with scikit-learn and torchmetrics, intervals that cover,
calibration, thresholds.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    roc_auc_score,
    roc_curve,
)

from ganscope.detector.judging import metrics
from ganscope.detector.judging.calibration import calibrate, choose_thresholds
from ganscope.detector.judging.metrics import NAMES, evaluate_by_generator, evaluate_scores

Drawn = tuple[np.ndarray, np.ndarray, np.ndarray | None]
"""Labels, scores and groups."""


def sample(n: int = 400, shift: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores in (0, 1), with ties, of two overlapping classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    logits = rng.normal(size=n) + shift * labels
    return labels, np.round(1 / (1 + np.exp(-logits)), 2)


def test_perfect_reversed_and_useless_scores() -> None:
    labels = [0] * 50 + [1] * 50
    perfect = evaluate_scores(labels, [0.0] * 50 + [1.0] * 50, bootstrap=0)
    assert {name: perfect[name].value for name in NAMES} == {
        "auroc": 1,
        "ap": 1,
        "accuracy": 1,
        "balanced_accuracy": 1,
        "eer": 0,
        "tpr_at_fpr_1": 1,
        "tpr_at_fpr_5": 1,
        "ece": 0,
        "brier": 0,
    }
    reverse = evaluate_scores(labels, [1.0] * 50 + [0.0] * 50, bootstrap=0)
    assert reverse["auroc"].value == 0
    assert reverse["eer"].value == 1
    useless = evaluate_scores(labels, [0.5] * 100, bootstrap=0)
    assert useless["auroc"].value == 0.5
    assert useless["eer"].value == 0.5
    assert useless["tpr_at_fpr_5"].value == 0
    assert useless["brier"].value == 0.25


def test_fake_is_the_positive_class() -> None:
    assert evaluate_scores([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], bootstrap=0)["auroc"].value == 1


def test_tpr_at_fpr_counts_false_alarms() -> None:
    """100 reals: one false alarm is 1 %, so fakes count that beat all reals but one."""
    reals = np.linspace(0, 0.99, 100)
    fakes = np.array([0.985, 0.995, 0.5, 0.945])  # beaten by 1, 0, 49 and 5 reals
    found = evaluate_scores([0] * 100 + [1] * 4, np.r_[reals, fakes], bootstrap=0)
    assert found["tpr_at_fpr_1"].value == 0.5
    assert found["tpr_at_fpr_5"].value == 0.75


def test_calibration_error_of_a_constant_forecast() -> None:
    found = evaluate_scores([0] * 75 + [1] * 25, [0.75] * 100, bootstrap=0)
    # Both classes weigh alike, as calibration means them to: half are fakes.
    assert found["ece"].value == pytest.approx(0.25)
    assert found["brier"].value == pytest.approx((0.75**2 + 0.25**2) / 2)


def test_the_bootstraps_arithmetic_is_scikit_learns() -> None:
    """With whole-number weights, a weighted metric is the metric of the repeated images."""
    labels, scores = sample()
    rng = np.random.default_rng(1)
    weights = rng.integers(0, 4, (3, len(labels))).astype(float)
    found = metrics._weighted(labels, scores, scores, 0.6, scores, weights)
    for i, weight in enumerate(weights):
        y, s = (np.repeat(a, weight.astype(int)) for a in (labels, scores))
        expected = metrics._exact(y, s, s, 0.6, s)
        for name in NAMES:
            assert found[name][i] == pytest.approx(expected[name], abs=1e-9), name
        assert found["auroc"][i] == pytest.approx(roc_auc_score(y, s))
        assert found["ap"][i] == pytest.approx(average_precision_score(y, s))


def test_intervals_hold_the_value_and_shrink_with_data() -> None:
    small = evaluate_scores(*sample(100), bootstrap=300)["auroc"]
    large = evaluate_scores(*sample(2000), bootstrap=300)["auroc"]
    for metric in (small, large):
        assert metric.low < metric.value < metric.high
    assert large.high - large.low < (small.high - small.low) / 2


def coverage(draw: Callable[[int], Drawn], truth: float, sets: int, grouped: bool = True) -> float:
    """How often the AUROC's interval holds the truth; not grouped: where it is not told groups."""
    hits = 0
    with pytest.MonkeyPatch.context() as patch:
        # The values take most of the time, and have no part in the intervals.
        patch.setattr(metrics, "_exact", lambda *_: dict.fromkeys(NAMES, 0.0))
        for seed in range(sets):
            labels, scores, groups = draw(seed)
            given = groups if grouped else None
            found = evaluate_scores(labels, scores, 0 * scores, 0.5, 200, seed, given)["auroc"]
            hits += found.low <= truth <= found.high
    return hits / sets


def test_the_interval_of_a_small_calibration_error_holds_it() -> None:
    """Probabilities that are right: resamples alone would say that they are not."""
    stated = (np.arange(15) + 0.5) / 15
    labels = np.concatenate([np.arange(30) < round(30 * p) for p in stated]).astype(int)
    found = evaluate_scores(labels, np.repeat(stated, 30))["ece"]
    assert found.value < 0.001
    assert found.low <= found.value < found.high


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """AUROC of normal scores one deviation apart is Phi(1/sqrt 2)."""

    def draw(seed: int) -> Drawn:
        labels = np.repeat([0, 1], 60)
        return labels, np.random.default_rng(seed).normal(size=120) + labels, None

    assert 0.91 <= coverage(draw, stats.norm.cdf(0.5**0.5), 250) <= 0.98


def test_intervals_cover_the_truth_where_images_come_in_groups() -> None:
    """Three images a scene, alike: without the groups, an interval is far too sure."""

    def draw(seed: int) -> Drawn:
        rng = np.random.default_rng(seed)
        labels = np.repeat([0, 1], 120)
        scores = rng.normal(size=80).repeat(3) + 0.5 * rng.normal(size=240) + 1.5 * labels
        return labels, scores, np.arange(240) // 3 + 1

    truth = stats.norm.cdf(1.5 / 2.5**0.5)
    assert 0.90 <= coverage(draw, truth, 200) <= 0.98
    assert coverage(draw, truth, 100, grouped=False) < 0.85


def test_a_photograph_and_the_fake_made_of_it_are_drawn_together() -> None:
    """What a scene does to both scores does not separate them: the interval may be narrower."""

    def draw(seed: int) -> Drawn:
        rng = np.random.default_rng(seed)
        labels = np.repeat([0, 1], 80)
        scores = np.tile(rng.normal(size=80), 2) + 0.5 * rng.normal(size=160) + labels
        return labels, scores, np.tile(np.arange(80), 2)

    other, own = stats.norm.cdf(1 / 2.5**0.5), stats.norm.cdf(1 / 0.5**0.5)  # scene
    truth = (79 * other + own) / 80  # a fake meets its own photograph once
    assert 0.90 <= coverage(draw, truth, 200) <= 0.98
    assert coverage(draw, truth, 60, grouped=False) > 0.98
    labels, _, groups = draw(0)
    weights = metrics._resamples(labels, groups, 20, np.random.default_rng(0))
    assert (weights[:, :80] == weights[:, 80:]).all()


def test_every_resample_has_both_classes() -> None:
    labels = np.array([0] * 5 + [1] * 5)
    groups = np.array(["a", "a", "", "b", "b", "a", "c", "c", "", ""])
    weights = metrics._resamples(labels, groups, 500, np.random.default_rng(0))
    assert (weights @ labels > 0).all()
    assert (weights @ (1 - labels) > 0).all()
    assert (weights[:, [0, 6, 3]] == weights[:, [5, 7, 4]]).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(10), abs=0.15)


def test_scikit_learn_agrees() -> None:
    labels, scores = sample(501)
    found = evaluate_scores(labels, scores, threshold=0.6, bootstrap=0)
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    weights = np.where(labels == 1, 1 / labels.sum(), 1 / (1 - labels).sum())
    for name, expected in {
        "auroc": roc_auc_score(labels, scores),
        "ap": average_precision_score(labels, scores),
        "accuracy": accuracy_score(labels, scores >= 0.6),
        "balanced_accuracy": balanced_accuracy_score(labels, scores >= 0.6),
        "tpr_at_fpr_5": np.max(tpr[fpr <= 0.05]),
        "brier": brier_score_loss(labels, scores, sample_weight=weights),
    }.items():
        assert found[name].value == pytest.approx(expected, abs=1e-6), name


def test_torchmetrics_agrees() -> None:
    binary = pytest.importorskip("torchmetrics.functional.classification")
    labels, scores = sample(400)
    rarer = min(labels.sum(), 400 - labels.sum())  # torchmetrics does not weigh the classes
    kept = np.r_[np.flatnonzero(labels == 0)[:rarer], np.flatnonzero(labels == 1)[:rarer]]
    labels, scores = labels[kept], scores[kept]
    found = evaluate_scores(labels, scores, threshold=0.605, bootstrap=0)
    y, s = torch.from_numpy(labels), torch.from_numpy(scores)
    for name, expected in {
        "auroc": binary.binary_auroc(s, y),
        "ap": binary.binary_average_precision(s, y),
        "accuracy": binary.binary_accuracy(s, y, threshold=0.605),
        "ece": binary.binary_calibration_error(s, y, n_bins=metrics.ECE_BINS, norm="l1"),
    }.items():
        assert found[name].value == pytest.approx(float(expected), abs=1e-6), name


def test_groups_widen_the_interval_when_their_images_agree() -> None:
    labels, scores = sample(100)
    many = [np.repeat(a, 10) for a in (labels, scores)]
    groups = np.repeat([f"g{i}" for i in range(100)], 10)
    apart = evaluate_scores(*many, bootstrap=300)["auroc"]
    together = evaluate_scores(*many, bootstrap=300, groups=groups)["auroc"]
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_an_image_without_a_group_is_drawn_alone_whatever_groups_are_called() -> None:
    labels, scores = sample(300)
    numbers = np.where(np.arange(300) < 150, "", (np.arange(300) - 150).astype(str))
    words = np.where(numbers == "", "", np.char.add("photo ", numbers))
    rng = np.random.default_rng(0)
    weights = metrics._resamples(labels, numbers, 50, rng)
    reals = np.flatnonzero(labels == 0)
    same = [
        (i, j) for i in reals for j in reals if i < j and (weights[:, i] == weights[:, j]).all()
    ]
    assert not same  # all groups hold one image here: no two are drawn together
    ours, other = (
        evaluate_scores(labels, scores, bootstrap=50, groups=g) for g in (numbers, words)
    )
    assert ours["auroc"].high - ours["auroc"].low == pytest.approx(
        other["auroc"].high - other["auroc"].low, rel=0.5
    )


def test_one_class_gives_nan_not_a_crash() -> None:
    found = evaluate_scores([1, 1], [0.9, 0.2])
    assert np.isnan(found["auroc"].value)
    assert found["accuracy"].value == 0.5


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        evaluate_scores([0, 1], [0.5, float("nan")])


def test_by_generator_measures_all_reals_against_one_generator_at_a_time() -> None:
    table = pd.DataFrame(
        {
            "label": [0, 0, 1, 1],
            "generator": ["real", "real", "good", "bad"],
            "score": [0.4, 0.6, 0.9, 0.1],
            "probability": [0.4, 0.6, 0.9, 0.1],
        }
    )
    rows = evaluate_by_generator(table, bootstrap=0).set_index("generator")
    assert rows["auroc"].to_dict() == {"all": 0.5, "bad": 0.0, "good": 1.0}
    assert rows["n_real"].tolist() == [2, 2, 2]


def test_calibrated_probabilities_are_frequencies() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 4000)
    logits = 6 * (rng.normal(size=4000) + 1.5 * labels) + 3  # far too sure, and off centre
    fit = calibrate(logits, labels)
    p = 1 / (1 + np.exp(-(fit["scale"] * logits + fit["shift"])))
    scores = 1 / (1 + np.exp(-logits))
    before = evaluate_scores(labels, scores, bootstrap=0)["ece"].value
    after = evaluate_scores(labels, scores, p, bootstrap=0)["ece"].value
    assert before > 0.2
    assert after < 0.04


def test_calibration_does_not_believe_in_certainty_and_never_turns_scores_round() -> None:
    apart = calibrate([-9.0] * 20 + [9.0] * 20, [0] * 20 + [1] * 20)
    assert 0 < apart["scale"] < 2
    wrong = calibrate([1.0, 2.0, -1.0, -2.0] * 5, [0, 0, 1, 1] * 5)
    assert wrong == {"scale": 0.0, "shift": 0.0}


def test_thresholds_keep_their_promises() -> None:
    labels, scores = sample(3000, seed=3)
    found = choose_thresholds(scores, labels)
    reals, fakes = scores[labels == 0], scores[labels == 1]
    assert (reals >= found["fpr_1"]).mean() <= 0.01
    assert (reals >= found["fpr_5"]).mean() <= 0.05
    assert (fakes < found["real"]).mean() <= 0.05
    assert found["real"] <= found["fpr_1"] <= found["fake"]
    assert (reals >= found["fake"]).mean() > 0.002  # the margin is one of chance, no more
    lower = np.unique(scores)[np.unique(scores) < found["fpr_1"]][-1]
    assert (reals >= lower).mean() > 0.01  # and no higher than they need be


def test_thresholds_of_separate_classes_lie_between_them() -> None:
    scores = [*np.linspace(0.19, 0.2, 40), 0.8, 0.9]
    found = choose_thresholds(scores, [0] * 40 + [1] * 2)
    assert found["fake"] == pytest.approx(0.6)
    assert found["real"] == pytest.approx(0.4)  # where no image was seen, it is unsure


def test_large_logits_rank_where_their_scores_have_become_equal() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 50)
    logits = rng.normal(60, 1, 100) + 2 * labels
    table = pd.DataFrame({"label": labels, "generator": np.where(labels, "a", "real")})
    table = table.assign(value=logits, score=1.0, probability=0.5)
    found = evaluate_by_generator(table, bootstrap=100).iloc[0]
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, logits))
    assert found["auroc_low"] < found["auroc"] < found["auroc_high"]
    assert found["accuracy"] == 0.5  # by the score
    assert evaluate_by_generator(table.drop(columns="value"), bootstrap=0)["auroc"][0] == 0.5


def test_a_perfect_share_of_few_images_has_an_interval() -> None:
    found = evaluate_scores(np.repeat([0, 1], 10), np.repeat([0.1, 0.9], 10), bootstrap=50)
    for name in ("auroc", "accuracy", "tpr_at_fpr_5"):
        assert (found[name].low, found[name].high) == (pytest.approx(0.025 ** (1 / 10)), 1)
    assert (found["eer"].low, found["eer"].high) == (0, pytest.approx(1 - 0.025 ** (1 / 10)))
    few = evaluate_scores([0, 0, 1], [0.1, 0.2, 0.9], bootstrap=50)
    assert few["auroc"].value == 1
    assert np.isnan(few["auroc"].low)
    groups = np.repeat(["a", "b", "c", "c"], 5)  # all fakes are of one group
    alike = evaluate_scores(
        np.repeat([0, 1], 10), np.linspace(0, 1, 20), bootstrap=50, groups=groups
    )
    assert np.isnan(alike["auroc"].low)
