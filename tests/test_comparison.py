"""Comparing detectors: DeLong against brute force and simulation, the paired bootstrap, counts."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from ganscope.detector.benchmark import comparison
from ganscope.detector.benchmark.comparison import (
    adjust,
    auroc_variance,
    compare_detectors,
    delong,
    false_alarms_by_source,
)
from ganscope.detector.judging.calibration import false_alarm_bound
from ganscope.detector.training.evaluation import count_false_alarms


def two_detectors(
    n: int, seed: int, better: float = 0.0, each: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and two detectors' scores (2 n each,), correlated; images come `each` at a time alike.

    better: how many deviations further the first has the classes apart.
    """
    rng = np.random.default_rng(seed)
    y = np.repeat([0, 1], n * each)
    hard = rng.normal(size=2 * n).repeat(each) + 1.5 * y
    a, b = (hard + 0.7 * rng.normal(size=2 * n).repeat(each) for _ in range(2))
    alone = 0.3 * rng.normal(size=(2, len(y)))
    return y, a + better * y + alone[0], b + alone[1]


def long_table(y: np.ndarray, **detectors: np.ndarray) -> pd.DataFrame:
    """Scores of every detector for the same images, as a benchmark has them."""
    images = pd.DataFrame({"image": np.arange(len(y)), "label": y, "group": "", "source": ""})
    images["generator"] = np.where(y == 1, "gan", "real")
    parts = [images.assign(detector=k, score=v, degradation="clean") for k, v in detectors.items()]
    return pd.concat(parts, ignore_index=True)


def components(y: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong's V10 and V01, pair of images by pair of images."""
    fakes, reals = s[y == 1][:, None], s[y == 0][None]
    kernel = (fakes > reals) + 0.5 * (fakes == reals)
    return kernel.mean(axis=1), kernel.mean(axis=0)


def test_delong_is_its_definition_computed_pair_by_pair() -> None:
    rng = np.random.default_rng(0)
    y = rng.permutation(np.repeat([0, 1], [45, 30]))  # unequal classes, and below many ties
    a, b = (np.round(rng.normal(size=75) + y, 1) for _ in range(2))
    (a10, a01), (b10, b01) = components(y, a), components(y, b)
    covariance = np.cov(a10, b10) / 30 + np.cov(a01, b01) / 45
    assert auroc_variance(y, a) == pytest.approx(covariance[0, 0])
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    z = (a10.mean() - b10.mean()) / variance**0.5
    expected = (roc_auc_score(y, a), roc_auc_score(y, b), 2 * stats.norm.sf(abs(z)))
    assert delong(y, a, b) == pytest.approx(expected)


def test_delong_of_four_images_by_hand() -> None:
    """Of two fakes one beats one real, the other both: placements 1/2 and 1, and so the reals'."""
    y, s = [0, 0, 1, 1], [1.0, 3.0, 2.0, 4.0]
    assert auroc_variance(y, s) == 0.125  # each class has variance 1/8, of a mean of two 1/16
    # The other detector has the fakes' placements swapped: 1/2 - 1 and 1 - 1/2, variance 1/2 / 2.
    assert delong(y, s, [1.0, 3.0, 4.0, 2.0]) == (0.75, 0.75, 1.0)
    # One that beats all: placements differ by -1/2, 0 in both classes, so z = -1/4 / sqrt(1/8).
    found = delong(y, s, [0.0, 0.0, 1.0, 1.0])
    assert found == pytest.approx((0.75, 1.0, 2 * stats.norm.sf(0.25 / 0.125**0.5)))


@pytest.mark.filterwarnings("error")
def test_detectors_that_never_differ_have_p_one() -> None:
    y, a, _ = two_detectors(20, 0)
    assert delong(y, a, a + 3)[2] == 1
    assert delong(y, np.zeros(40), np.ones(40)) == (0.5, 0.5, 1)
    assert delong(y, y, 2 * y) == (1, 1, 1)
    for one in ([0, 1], [0, 1, 1, 1]):  # a class of one image says nothing of its variance
        assert delong(one, one, np.negative(one)) == (1, 0, 1)
        assert np.isnan(auroc_variance(one, one))
    row = compare_detectors(long_table(y, a=a, b=a + 3)).iloc[0]
    assert (row["difference"], row["low"], row["high"], row["p_value"]) == (0, 0, 0, 1)
    row = compare_detectors(long_table(np.array([0, 1]), a=np.array([0, 1]), b=np.array([1, 0])))
    assert row["p_value"].item() == row["p_adjusted"].item() == 1


@pytest.mark.filterwarnings("error")
def test_a_difference_that_does_not_vary_is_as_sure_as_there_are_images() -> None:
    for n, expected in ((2, 0.5), (10, 2**-9)):
        y = np.repeat([0, 1], n)
        assert delong(y, y, -y) == (1, 0, expected)
        assert delong(y, y, 0 * y) == (1, 0.5, expected)


def test_delong_refuses_what_it_cannot_compare() -> None:
    with pytest.raises(ValueError, match="both classes"):
        delong([1, 1], [0.1, 0.2], [0.3, 0.4])
    with pytest.raises(ValueError, match="finite"):
        delong([0, 1], [0.1, np.nan], [0.3, 0.4])
    with pytest.raises(ValueError, match="one a label"):
        delong([0, 1], [0.1, 0.2], [0.3])


def test_delong_needs_no_table_of_all_pairs() -> None:
    y, a, b = two_detectors(100_000, 0)  # all pairs would take 80 GB
    assert delong(y, a, b)[0] == pytest.approx(stats.norm.cdf(1.5 / (2 * 1.58) ** 0.5), abs=0.005)


def test_p_is_uniform_where_detectors_are_equally_good() -> None:
    p = np.array([delong(*two_detectors(60, seed))[2] for seed in range(400)])
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert 0.025 <= (p < 0.05).mean() <= 0.08


def test_p_is_small_where_one_is_better_and_pairing_is_why() -> None:
    p, apart = [], []
    for seed in range(100):
        y, a, b = two_detectors(60, seed, better=0.8)
        p.append(delong(y, a, b)[2])
        z = (roc_auc_score(y, a) - roc_auc_score(y, b)) / np.sqrt(
            auroc_variance(y, a) + auroc_variance(y, b)
        )
        apart.append(2 * stats.norm.sf(abs(z)))
    assert (np.array(p) < 0.05).mean() > 0.7
    assert (np.array(p) < 0.05).mean() > (np.array(apart) < 0.05).mean() + 0.2


def test_every_two_detectors_are_compared_on_what_both_scored() -> None:
    y, a, b = two_detectors(40, 0, better=1.0)
    table = long_table(y, a=a, b=b, c=b[::-1].copy())
    table.loc[(table["label"] == 1) & (table["image"] % 2 == 0), "generator"] = "vae"
    hidden = (table["detector"] == "b") & table["image"].isin([3, 44, 45, 46])
    table = pd.concat([table[~hidden], table.assign(degradation="jpeg:75")])
    found = compare_detectors(table.sample(frac=1, random_state=0).sort_values("detector"))
    assert tuple(found.columns) == comparison.COLUMNS
    assert len(found) == 3 * 3 * 2  # pairs x (all, gan, vae) x degradations
    assert set(found["method"]) == {"DeLong"}
    seen = ~np.isin(np.arange(80), [3, 44, 45, 46])
    where = ["detector", "other", "generator", "degradation"]
    cells = found.set_index(where).sort_index()
    for generator, kept in (
        ("all", seen),
        ("vae", seen & ((y == 0) | (np.arange(80) % 2 == 0))),
    ):
        one, other, p = delong(y[kept], a[kept], b[kept])
        row = cells.loc[("a", "b", generator, "clean")]
        assert (row["difference"], row["p_value"]) == pytest.approx((one - other, p))
        assert row["low"] < row["difference"] < row["high"]
        assert (row["low"] > 0) == (p < 0.05)  # the interval and the test agree
    assert cells.loc[("a", "b", "all", "jpeg:75"), "p_value"] == pytest.approx(delong(y, a, b)[2])
    family = cells.xs("vae", level="generator").xs("clean", level="degradation")
    assert family["p_adjusted"].tolist() == pytest.approx(adjust(family["p_value"]).tolist())


def test_nothing_to_compare_is_an_empty_table() -> None:
    y, a, b = two_detectors(5, 0)
    assert compare_detectors(long_table(y, a=a)).empty
    reals_only = compare_detectors(long_table(0 * y, a=a, b=b))
    assert reals_only.empty
    assert tuple(reals_only.columns) == comparison.COLUMNS


def test_images_of_one_group_are_one_witness() -> None:
    """On groups that agree DeLong sees differences where there are none, the bootstrap does not."""
    p, naive = [], []
    for seed in range(80):
        y, a, b = two_detectors(40, seed, each=2)
        table = long_table(y, a=a, b=b)
        table["group"] = "scene " + (table["image"] // 2).astype(str)
        row = compare_detectors(table, bootstrap=200, seed=seed).iloc[0]
        assert row["method"] == "cluster bootstrap"
        p.append(row["p_value"])
        naive.append(delong(y, a, b)[2])
    assert (np.array(naive) < 0.05).mean() > 0.12
    assert (np.array(p) < 0.05).mean() < 0.11
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert min(p) >= 1 / 201


def test_the_paired_bootstrap_finds_what_is_there_and_can_be_repeated() -> None:
    y, a, b = two_detectors(40, 0, better=1.5, each=5)
    table = long_table(y, a=a, b=b)
    table["group"] = (table["image"] // 5).astype(str)
    found = compare_detectors(table, bootstrap=200, seed=1)
    pd.testing.assert_frame_equal(found, compare_detectors(table, bootstrap=200, seed=1))
    row = found.iloc[0]
    assert row["difference"] == pytest.approx(roc_auc_score(y, a) - roc_auc_score(y, b))
    assert 0 < row["low"] < row["difference"] < row["high"]
    assert row["p_value"] == pytest.approx(2 / 201)  # as small as 200 resamples can say
    turned = compare_detectors(table.sort_values("detector", ascending=False), 200, 1).iloc[0]
    assert (turned["detector"], turned["other"]) == ("b", "a")
    for name, other in (("difference", "difference"), ("low", "high"), ("high", "low")):
        assert turned[name] == pytest.approx(-row[other])
    # A third detector that missed some images changes nothing for the two, nor they for it.
    third = table[(table["detector"] == "b") & (table["image"] % 7 > 0)].assign(detector="c")
    three = pd.concat([table, third])
    rows = compare_detectors(three, bootstrap=200, seed=1).drop(columns="p_adjusted")
    for i, pair in enumerate((("a", "b"), ("a", "c"), ("b", "c"))):
        two = compare_detectors(three[three["detector"].isin(pair)], bootstrap=200, seed=1)
        pd.testing.assert_series_equal(
            rows.iloc[i], two.drop(columns="p_adjusted").iloc[0], check_names=False
        )
    assert rows.iloc[2]["p_value"] == 1  # c is b
    same = compare_detectors(table.assign(score=table["image"] * 0.1), bootstrap=50).iloc[0]
    assert (same["difference"], same["p_value"]) == (0, 1)
    without = compare_detectors(table, bootstrap=0).iloc[0]
    assert without["difference"] == row["difference"]
    assert np.isnan([without["p_value"], without["p_adjusted"], without["low"]]).all()


@pytest.mark.parametrize(("scenes", "least"), [(1, 1.0), (2, 0.5), (4, 0.125)])
def test_few_groups_prove_little_however_many_images_they_have(scenes: int, least: float) -> None:
    y = np.repeat([0, 1], 100)
    table = long_table(y, right=y, wrong=-y)
    table["group"] = np.where(table["label"] == 0, table["image"] % scenes, "").astype(str)
    row = compare_detectors(table, bootstrap=500).iloc[0]
    assert row["difference"] == 1
    assert row["p_value"] == least
    assert np.isnan(row["low"]) == (scenes == 1)


def test_holm_counts_how_many_were_looked_at() -> None:
    assert adjust([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust([0.6, 0.7]).tolist() == [1, 1]
    assert adjust([0.02]).tolist() == [0.02]


def test_false_alarms_are_counted_in_photographs() -> None:
    y = np.array([0] * 24 + [1] * 4)
    score = np.r_[[0.9, 0.9, 0.2], np.full(17, 0.1), [0.5], np.full(3, 0.4), np.full(4, 0.99)]
    table = long_table(y, strict=score, mild=score)
    table["source"] = np.where(table["image"] < 20, "phone", "scanner")
    table.loc[table["image"] < 3, "group"] = "0"  # three crops of a photograph, called fake twice
    found = false_alarms_by_source(table, {"strict": 0.5, "mild": 0.95})
    assert list(found.columns) == [
        "detector",
        "degradation",
        "source",
        "photographs",
        "called_fake",
        "share",
        "at_most",
    ]
    rows = found.set_index(["detector", "source"])
    assert rows["photographs"].tolist() == [18, 4] * 2
    assert rows["called_fake"].tolist() == [1, 1, 0, 0]  # a score at the threshold is a fake
    assert rows.loc[("strict", "phone"), "share"] == pytest.approx(1 / 18)
    assert rows["at_most"].tolist() == [
        false_alarm_bound(*counts) for counts in ((1, 18), (1, 4), (0, 18), (0, 4))
    ]
    reals = table[(table["label"] == 0) & (table["detector"] == "strict")]
    verdict = np.where(reals["score"] >= 0.5, "fake", "real")
    card = count_false_alarms(
        reals.assign(verdict=verdict, split="test", file_name=reals["image"].astype(str))
    )["by_source"]["phone"]
    assert card == {"photographs": 18, "called_fake": 1, "at_most": 0.2377}
    assert stats.binom.cdf(1, 18, rows["at_most"].iloc[0]) == pytest.approx(0.05)
    with pytest.raises(KeyError):  # no threshold is no zero false alarms
        false_alarms_by_source(table, {"strict": 0.5})
