"""Pictures that are in a corpus twice: in two splits, where a test then asks for what was learned
by heart, or under both labels, which cannot both be right.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ganscope.errors import ImageError
from ganscope.prints import Prints, find_same, look_at, to_prints

NAMED = 3
"""Pictures that are named; the others are counted."""


@dataclass(frozen=True)
class Looked:
    """The images of a corpus' table, each of them opened."""

    table: pd.DataFrame
    """Those that can be read."""
    prints: Prints
    """Of them, in their order."""
    unreadable: pd.DataFrame
    """The others, with a column `reason`."""


def look_at_table(table: pd.DataFrame, report: Callable[[int], None] | None = None) -> Looked:
    """Open every image of a table, unless that was done before; see `prints.look_at`."""
    found = look_at(table["path"].tolist(), report)
    readable = np.array([isinstance(one, bytes) for one in found], bool)
    reasons = [one.reason for one in found if isinstance(one, ImageError)]
    prints = to_prints([p for p in found if isinstance(p, bytes)], table["label"][readable])
    return Looked(table[readable], prints, table[~readable].assign(reason=reasons))


def remark_on_copies(table: pd.DataFrame, prints: Prints) -> Iterator[str]:
    """What to remark on pictures that are in a table more than once; prints: of its rows.

    Pictures are the same if their pixels are, or nearly so, as after re-encoding. A fake that is
    made of a photograph may look like it, if the two are in one group.
    """
    names, splits = table["file_name"].to_numpy(), table["split"].to_numpy()
    pairs = find_same(prints, prints)
    for later, earlier in (("val", "train"), ("test", "train"), ("test", "val")):
        both = pairs[(splits[pairs[:, 0]] == later) & (splits[pairs[:, 1]] == earlier)]
        if len(both):
            whole = int((splits == later).sum())
            yield (
                f"{_first(both):,} of the {whole:,} images of the {later} split are in the "
                f"{earlier} split, too, as they are or saved anew, so its figures flatter: "
                f"{name_pairs(names, both)}"
            )
    yield from remark_on_labels(table, prints)


def remark_on_labels(table: pd.DataFrame, prints: Prints) -> Iterator[str]:
    """What to remark on pictures that are in a table as reals and as fakes; prints: of its rows."""
    names, group = table["file_name"].to_numpy(), table["group"].to_numpy()
    pairs = find_same(prints, prints, same_label=False)
    pairs = pairs[prints.labels[pairs[:, 0]] == 1]
    left, right = pairs.T
    made = (group[left] == group[right]) & (group[left] != "")
    pairs = pairs[~made | (prints.pixels[left] == prints.pixels[right])]
    if len(pairs):
        yield (
            f"{_first(pairs):,} fakes are there as reals, too, as they are or nearly so: "
            f"{name_pairs(names, pairs)}; take them out, or put fakes and the photographs that "
            "they are made of into one group"
        )


def name_pairs(names: np.ndarray, pairs: np.ndarray) -> str:
    """A few of the pairs (P, 2) of rows by their names."""
    _, first = np.unique(pairs[:, 0], return_index=True)
    named = [f"{names[i]} = {names[j]}" for i, j in pairs[first[:NAMED]]]
    return "; ".join([*named, "..."] if len(first) > NAMED else named)


def name_some(names: Sequence[str], most: int = NAMED) -> str:
    """A few names."""
    return ", ".join([*names[:most], "..."] if len(names) > most else names)


def _first(pairs: np.ndarray) -> int:
    """How many different rows stand first."""
    return len(np.unique(pairs[:, 0]))
