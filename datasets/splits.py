"""Who learns, who chooses, who is asked last: splits by generator or by group, never by file.

Images of one group (a prompt, a photograph cut several times) never stand on both sides of a split,
or a test would ask for what was learned by heart.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ganscope.errors import GanscopeError, GanscopeWarning
from ganscope.registry import unknown

SHARE = 0.2
"""Share of the reals' groups (and of fakes without generators of their own) given to val and
to test.
"""
AND = " + "
"""Between the people of a column `identity`."""
MOST, KEPT = 0.5, 0.05
"""Share of all rows from which on a group is too large to be split; and share of the rows beside a
test split that must be left when its people are taken out."""


def assign_splits(groups: Sequence[str], shares: dict[str, float], seed: int = 0) -> dict[str, str]:
    """Group -> split, by `shares` that add up to 1; every split gets a group if there are
    enough.
    """
    order = [groups[i] for i in np.random.default_rng(seed).permutation(len(groups))]
    names = sorted(shares, key=lambda name: shares[name])  # the largest takes what is left
    found: dict[str, str] = {}
    start = 0
    for name in names[:-1]:
        count = min(max(1, round(shares[name] * len(order))), max(len(order) - start - 1, 0))
        found |= dict.fromkeys(order[start : start + count], name)
        start += count
    return found | dict.fromkeys(order[start:], names[-1])


def split_corpus(
    table: pd.DataFrame,
    *,
    val_generator: Sequence[str] = (),
    test_generator: Sequence[str] = (),
    val_source: Sequence[str] = (),
    seed: int = 0,
) -> pd.DataFrame:
    """Fill the `split` column of a corpus' table.

    With named generators: those of `test_generator` are test, those of `val_generator` val. Where
    none is named for val and two or more remain, the one with the fewest images (and, among equals,
    the fewest groups shared with others) is val, unless the test takes most of its images' groups.
    A share of the reals goes to each split that exists, and all of those of `val_source` to val.
    With one generator, its fakes are split by group as well. Where nothing is named, a manifest's
    own split is kept if it has both classes in train and val, and otherwise at least its test part.

    A fake of a photograph's group goes where the photograph goes; one of a held-out generator whose
    photograph is elsewhere is dropped. Any other group that would stand in two splits keeps one and
    loses its rows in the other; `attrs["dropped"]` counts all that are lost. Where a column
    `identity` names people, and links between them leave groups too large to be split, people are
    divided first, and fakes of two that were parted are dropped (see `divide_people`). Raises
    `GanscopeError` for an unknown generator or source, or a missing class.
    """
    divided = divide_people(table, seed)
    found = _split_groups(
        table if divided is None else divided,
        val_generator=val_generator,
        test_generator=test_generator,
        val_source=val_source,
        seed=seed,
    )
    if divided is not None:
        found.attrs["dropped"] += divided.attrs["dropped"]
    return found


def divide_people(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame | None:
    """A table whose groups were too large, split by the people of its column `identity`; None where
    none is.

    Too large is a group with more than `MOST` of all rows, or one on both sides of the corpus' own
    test split. Of such a group each person gets a split (those of the own test split: test), rows
    of people of several are dropped, and what is left of it in each split is a group of its own.
    Other groups without a split are drawn beside it. Where the own test split would leave next to
    nothing to learn from, it is given up, with a warning.
    """
    if "identity" not in table:
        return None
    linked = table[(table["group"] != "") & (table["identity"] != "")]
    tested = linked["split"] == "test"
    sizes = linked.groupby("group")["label"].size()
    both = tested.groupby(linked["group"]).nunique() > 1
    large = set(sizes.index[(sizes > MOST * len(table)) | both])
    inside = linked[linked["group"].isin(large)]
    people = inside["identity"].str.split(AND, regex=False)
    if people.map(len).max() < 2 if len(inside) else True:  # nobody links them: one scene
        return None
    own = inside["split"] == "test"
    taken = {person for some in people[own] for person in some}
    others = sorted({person for some in people for person in some} - taken)
    left = people.map(lambda some: not taken.intersection(some))
    if own.any() and left.sum() < KEPT * (~own).sum():
        warnings.warn(
            f"the people of the corpus' own test split are in all but {int(left.sum()):,} of its "
            f"{int((~own).sum()):,} other images; people are divided anew",
            GanscopeWarning,
            stacklevel=3,
        )
        own, taken = own & False, set()
        others = sorted({person for some in people for person in some})
    shares = {"val": SHARE} | ({} if taken else {"test": SHARE})
    shares["train"] = 1 - sum(shares.values())
    where = assign_splits(others, shares, seed) | dict.fromkeys(taken, "test")
    splits = people.map(lambda some: {where[person] for person in some})
    kept = (splits.map(len) == 1) | own
    divided = table.copy()
    for i in inside.index[kept]:
        split = "test" if own[i] else next(iter(splits[i]))
        divided.loc[i, "split"] = split
        divided.loc[i, "group"] = f"{inside['group'][i]}, {split}"
    rest = divided[~divided.index.isin(inside.index) & (divided["split"] == "")]
    unit = rest["group"].where(rest["group"] != "", rest["file_name"])
    divided.loc[rest.index, "split"] = unit.map(assign_splits(sorted(set(unit)), shares, seed))
    divided = divided.drop(index=inside.index[~kept])
    divided.attrs["dropped"] = int((~kept).sum())
    return divided


def _split_groups(
    table: pd.DataFrame,
    *,
    val_generator: Sequence[str],
    test_generator: Sequence[str],
    val_source: Sequence[str],
    seed: int,
) -> pd.DataFrame:
    """As `split_corpus`, of groups as they are."""
    generators = table.loc[table["label"] == 1, "generator"].value_counts()
    for name in (*val_generator, *test_generator):
        if name not in generators.index:
            raise GanscopeError(unknown("generator in this corpus", name, sorted(generators.index)))
    sources = set(table.loc[table["label"] == 0, "source"])
    for name in val_source:
        if name not in sources:
            raise GanscopeError(unknown("source of reals in this corpus", name, sorted(sources)))
    both = set(val_generator) & set(test_generator)
    if both:
        raise GanscopeError(
            f"{sorted(both)[0]} cannot be both --val-generator and --test-generator"
        )
    for label, word in ((0, "reals"), (1, "fakes")):
        if not (table["label"] == label).any():
            raise GanscopeError(f"the corpus holds no {word}; a detector needs both classes")
    named = bool(val_generator or test_generator)
    if not named and not val_source and has_splits(table):
        return _report(table[table["split"] != ""].copy(), 0)

    own_test = table["split"] == "test"
    if not named and own_test.any():
        rest = table[~own_test].assign(split="")
        still = [name for name in val_source if name in set(rest["source"][rest["label"] == 0])]
        rest = _split_groups(rest, val_generator=(), test_generator=(), val_source=still, seed=seed)
        rest["split"] = rest["split"].replace("test", "train")  # the corpus has a test split
        table = pd.concat([rest, table[own_test]], ignore_index=True)
        keep = _one_split_a_group(table, seed)
        return _report(table[keep], rest.attrs["dropped"] + int((~keep).sum()))

    left = [g for g in generators.index if g not in {*val_generator, *test_generator}]
    if not left:
        raise GanscopeError("no generator is left to train on; hold out fewer")
    val = list(val_generator)
    if not val and len(left) >= 2:
        tested = set(table.loc[table["generator"].isin(list(test_generator)), "group"]) - {""}
        taken = table["group"].isin(tested).groupby(table["generator"]).mean()
        val = [min(left, key=lambda g: (taken[g] > 0.5, generators[g], _shared(table, g), g))]
    table = table.copy()
    unit = table["group"].where(table["group"] != "", table["file_name"])
    table["split"] = ""
    table.loc[table["generator"].isin(list(test_generator)), "split"] = "test"
    table.loc[table["generator"].isin(val), "split"] = "val"
    shares = {"val": SHARE} | ({"test": SHARE} if test_generator or not val else {})
    shares["train"] = 1 - sum(shares.values())
    # Reals are drawn source by source, so that each source is in every split; all together where
    # sources are so small that a split would be left without reals.
    reals = table[table["label"] == 0]
    for by in (reals["source"], pd.Series("", reals.index)):
        for _, rows in reals.groupby(by):
            splits = assign_splits(sorted(set(unit[rows.index])), shares, seed)
            table.loc[rows.index, "split"] = unit[rows.index].map(splits)
        if set(table.loc[reals.index, "split"]) == set(shares):
            break
    table.loc[reals.index[reals["source"].isin(list(val_source))], "split"] = "val"
    # What was made from a photograph goes where the photograph goes, or nowhere: else a generator
    # that is held out would take all photographs that it worked on into its split.
    where = table.loc[reals.index].groupby(unit[reals.index])["split"].first()
    follows = unit.map(where).fillna("")
    made = (table["label"] == 1) & (follows != "")
    lost = made & (table["split"] != "") & (table["split"] != follows)
    if len(val):
        lost |= made & (table["split"] == "") & (follows != "train")
    table.loc[made & (table["split"] == ""), "split"] = follows
    table = table[~lost]
    rest = table[table["split"] == ""]
    if len(val):
        table.loc[rest.index, "split"] = "train"
    else:
        for _, fakes in rest.groupby("generator"):
            splits = assign_splits(sorted(set(unit[fakes.index])), shares, seed)
            table.loc[fakes.index, "split"] = unit[fakes.index].map(splits)
    keep = _one_split_a_group(table, seed)
    return _report(table[keep], int((~keep).sum()) + int(lost.sum()))


def has_splits(table: pd.DataFrame) -> bool:
    """Does the manifest's own split have both classes in train and val, and no group in two?"""
    have = set(zip(table["split"], table["label"], strict=True))
    if not {("train", 0), ("train", 1), ("val", 0), ("val", 1)} <= have:
        return False
    grouped = table[(table["group"] != "") & (table["split"] != "")]
    return bool(grouped.empty or (grouped.groupby("group")["split"].nunique() == 1).all())


def _shared(table: pd.DataFrame, generator: str) -> int:
    """How many of the other fakes share a group with `generator`'s."""
    fakes = table[(table["label"] == 1) & (table["group"] != "")]
    own = set(fakes.loc[fakes["generator"] == generator, "group"])
    return int((fakes["group"].isin(own) & (fakes["generator"] != generator)).sum())


def _one_split_a_group(table: pd.DataFrame, seed: int) -> pd.Series:
    """Rows to keep, so that no group is in two splits: test keeps its own, then half go to val."""
    keep = pd.Series(True, index=table.index)
    rng = np.random.default_rng(seed)
    grouped = table[table["group"] != ""]
    for _, rows in grouped.groupby("group"):
        splits = sorted(set(rows["split"]))
        if len(splits) > 1:
            winner = "test" if "test" in splits else str(rng.choice(splits))
            keep[rows.index[rows["split"] != winner]] = False
    return keep


def _report(table: pd.DataFrame, dropped: int) -> pd.DataFrame:
    table = table.reset_index(drop=True)
    table.attrs["dropped"] = dropped
    return table
