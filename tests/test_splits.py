"""Splits of corpora of every shape: no group on two sides, both classes on each, nothing lost
unsaid.
"""

import numpy as np
import pandas as pd
import pytest

from ganscope.datasets.splits import SHARE, assign_splits, split_corpus
from ganscope.errors import GanscopeError


def corpus(reals: list[tuple[str, str]], **fakes: list[str]) -> pd.DataFrame:
    """A table of reals, (source, group) each, and of each generator's fakes, a group each."""
    rows = [("real", 0, source, group) for source, group in reals]
    rows += [(name, 1, "lab", group) for name, groups in fakes.items() for group in groups]
    table = pd.DataFrame(rows, columns=["generator", "label", "source", "group"])
    names = [f"{i:04}.png" for i in range(len(table))]
    return table.assign(path=names, file_name=names, split="")


def classes(table: pd.DataFrame) -> set[tuple[str, int]]:
    return set(zip(table["split"], table["label"], strict=True))


@pytest.mark.parametrize("seed", range(40))
def test_no_group_is_in_two_splits_whatever_the_corpus(seed: int) -> None:
    """Reals and fakes of one to four generators share groups at random."""
    rng = np.random.default_rng(seed)

    def groups(count: int) -> list[str]:
        return [f"g{g}" if g < 12 else "" for g in rng.integers(0, 16, count)]

    sources = rng.integers(0, 3, 60)
    names = "abcd"[: rng.integers(1, 5)]
    table = corpus(
        [(f"s{s}", g) for s, g in zip(sources, groups(60), strict=True)],
        **{name: groups(int(rng.integers(5, 40))) for name in names},
    )
    before = table.copy()
    test = (names[0],) if len(names) > 1 and seed % 2 else ()
    found = split_corpus(table, test_generator=test, seed=seed)
    pd.testing.assert_frame_equal(table, before)  # the caller's table is left alone
    assert set(found["split"]) <= {"train", "val", "test"}
    grouped = found[found["group"] != ""]
    assert grouped.empty or grouped.groupby("group")["split"].nunique().max() == 1
    assert found.attrs["dropped"] == len(table) - len(found)
    lost = table[~table["file_name"].isin(found["file_name"])]
    assert (lost["group"] != "").all()  # an image on its own is never dropped
    for name in test:
        held_out = found[found["generator"] == name]
        assert set(held_out["split"]) == {"test"}
        photographed = set(table["group"][table["label"] == 0]) - {""}
        alone = (table["generator"] == name) & ~table["group"].isin(photographed)
        assert set(table["file_name"][alone]) <= set(held_out["file_name"])


@pytest.mark.parametrize("images_a_source", [1, 2, 3, 50])
def test_every_split_has_reals_however_small_the_sources(images_a_source: int) -> None:
    table = corpus(
        [(f"s{i // images_a_source}", "") for i in range(100)], a=[""] * 30, b=[""] * 20, c=[""] * 9
    )
    found = split_corpus(table, test_generator=("a",))
    assert classes(found) == {(s, label) for s in ("train", "val", "test") for label in (0, 1)}
    reals = found[found["label"] == 0]
    assert (reals["split"] == "train").mean() > 0.3


def test_large_sources_give_the_same_share_to_every_split() -> None:
    table = corpus([("many", "")] * 100 + [("few", "")] * 10, a=[""] * 5, b=[""] * 5)
    found = split_corpus(table)
    shares = found[found["label"] == 0].groupby("source")["split"].apply(lambda s: s.eq("val"))
    assert shares.groupby("source").mean().to_dict() == {"many": SHARE, "few": SHARE}


def test_a_source_can_be_kept_for_validation() -> None:
    table = corpus(
        [("s", "")] * 50 + [("far", f"scene {i}") for i in range(10)],
        a=[""] * 20,
        b=[""] * 20,
        c=[f"scene {i}" for i in range(10)],
    )
    plain = split_corpus(table, val_generator=("b",))
    found = split_corpus(table, val_generator=("b",), val_source=("far",))
    splits = found.groupby(["generator", "source"])["split"].agg(set).to_dict()
    assert splits["real", "far"] == {"val"}
    assert "c" not in set(found["generator"][found["split"] == "train"])  # made of its photographs
    same = found["source"] == "s"
    pd.testing.assert_frame_equal(
        found[same].reset_index(drop=True), plain[plain["source"] == "s"].reset_index(drop=True)
    )
    own = table.assign(split=np.where(table.index % 5 == 0, "test", ""))
    kept = split_corpus(own, val_source=("far",))
    named = kept.set_index("file_name")["split"]
    tests = own["file_name"][(own["split"] == "test") & own["file_name"].isin(named.index)]
    assert set(named[tests]) == {"test"}  # the corpus' own test stays one
    with pytest.raises(GanscopeError, match=r"unknown source of reals.*did you mean 'far'"):
        split_corpus(table, val_source=("fat",))


def test_one_generators_fakes_follow_their_groups_and_shares() -> None:
    table = corpus([("s", "")] * 100, a=[f"prompt {i // 2}" for i in range(100)])
    found = split_corpus(table)
    counts = found[found["label"] == 1]["split"].value_counts().to_dict()
    assert counts == {"train": 60, "val": 20, "test": 20}
    assert found.attrs["dropped"] == 0


def test_a_pair_of_photograph_and_fake_stays_together() -> None:
    """Each fake was made from one of the photographs: nothing needs to be dropped."""
    pairs = [f"scene {i}" for i in range(50)]
    found = split_corpus(corpus([("s", g) for g in pairs], a=pairs))
    assert found.attrs["dropped"] == 0
    assert found.groupby("group")["split"].nunique().max() == 1


def test_the_smallest_generator_validates_and_among_equals_the_one_that_shares_least() -> None:
    reals = [("s", "")] * 20
    small = split_corpus(corpus(reals, a=[""] * 9, b=[""] * 5, c=[""] * 8))
    assert set(small.loc[small["split"].eq("val") & small["label"].eq(1), "generator"]) == {"b"}
    own = [f"own {i}" for i in range(9)]
    shared = [f"p {i}" for i in range(9)]
    equal = split_corpus(corpus(reals, a=shared, b=shared, c=own))
    assert set(equal.loc[equal["split"].eq("val") & equal["label"].eq(1), "generator"]) == {"c"}
    assert equal.attrs["dropped"] == 0


def test_a_generator_whose_prompts_are_in_the_test_does_not_validate() -> None:
    """It would be the smallest, but next to nothing of it would be left."""
    prompts = [f"p {i}" for i in range(40)]
    table = corpus([("s", "")] * 20, a=prompts, b=prompts[:30], c=[""] * 35, d=[""] * 50)
    found = split_corpus(table, test_generator=("a",))
    assert found.loc[found["label"].eq(1) & found["split"].eq("val"), "generator"].tolist() == (
        ["c"] * 35
    )


@pytest.mark.parametrize(
    "flaw",
    ["val without reals", "val without fakes", "a group in two splits"],
)
def test_a_manifests_split_that_cannot_be_used_is_drawn_anew(flaw: str) -> None:
    table = corpus([("s", "")] * 20, a=["g"] + [""] * 9, b=["g"] + [""] * 9)
    table["split"] = ["train", "val"] * 20
    table.loc[20, "split"], table.loc[30, "split"] = "train", "train"
    assert split_corpus(table)["split"].tolist() == table["split"].tolist()
    if flaw == "a group in two splits":
        table.loc[30, "split"] = "val"
    else:
        table.loc[table["label"] == int(flaw.endswith("fakes")), "split"] = "train"
    found = split_corpus(table)
    assert {("train", 0), ("train", 1), ("val", 0), ("val", 1)} <= classes(found)
    assert found[found["group"] == "g"]["split"].nunique() == 1


def test_rows_that_a_manifests_split_leaves_out_stay_out() -> None:
    table = corpus([("s", "")] * 10, a=[""] * 10)
    table["split"] = ["train", "val"] * 10
    table.loc[[3, 12], "split"] = ""
    assert len(split_corpus(table)) == 18


def test_a_generator_cannot_choose_and_be_asked() -> None:
    table = corpus([("s", "")] * 9, a=["", ""], b=["", ""])
    with pytest.raises(GanscopeError, match="a cannot be both"):
        split_corpus(table, val_generator=("a",), test_generator=("a",))
    with pytest.raises(GanscopeError, match="no reals"):
        split_corpus(corpus([], a=[""]))
    with pytest.raises(GanscopeError, match="unknown generator in this corpus 'real'"):
        split_corpus(table, test_generator=("real",))


def test_shares_are_drawn_by_the_seed_not_by_the_order_of_names() -> None:
    groups, shares = [str(i) for i in range(50)], {"train": 0.6, "val": 0.2, "test": 0.2}
    one = assign_splits(groups, shares, 1)
    assert set(one) == set(groups)
    assert one == assign_splits(groups, shares, 1) != assign_splits(groups, shares, 2)
    counts = pd.Series(one).value_counts().to_dict()
    assert counts == {"train": 30, "val": 10, "test": 10}
    assert set(groups[:30]) != {g for g, split in one.items() if split == "train"}


@pytest.mark.parametrize(("groups", "splits"), [(0, 0), (1, 1), (2, 2), (3, 3)])
def test_few_groups_go_round_as_far_as_they_do(groups: int, splits: int) -> None:
    shares = {"train": 0.6, "val": 0.2, "test": 0.2}
    found = assign_splits([str(i) for i in range(groups)], shares)
    assert len(set(found.values())) == splits


def test_what_was_made_from_a_photograph_goes_where_it_goes() -> None:
    """Three generators that worked on the same photographs, one of them held out."""
    rows = [
        {"label": int(g != "real"), "generator": g, "group": f"p{i}", "file_name": f"{g}/{i}"}
        for g in ("real", "a", "b", "c")
        for i in range(100)
    ]
    table = pd.DataFrame(rows).assign(source="", split="")
    found = split_corpus(table, test_generator=["c"])
    assert found.groupby("group")["split"].nunique().max() == 1
    counts = found.groupby(["split", "generator"]).size().to_dict()
    assert counts["test", "c"] == counts["test", "real"] == 20
    assert counts["val", "real"] == 20
    assert counts["train", "real"] == 60
    held_out = {name for split, name in counts if split == "train"}
    assert "c" not in held_out
    assert sum(counts["train", name] for name in held_out - {"real"}) == 60
    assert found.attrs["dropped"] == 400 - len(found)
