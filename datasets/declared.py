"""Pictures whose files contradict their label: reals that declare themselves generated, and fakes
that a camera took. One of a guessing game's "real photographs" was found so.
"""

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

from ganscope.datasets.copies import name_some
from ganscope.detector.evidence.evidence import read_evidence
from ganscope.detector.evidence.record import CAPTURED, EDITED, GENERATED
from ganscope.errors import ImageError, counted
from ganscope.images import read_content

NAMED = 10
"""Pictures that are named in a line; the others are counted."""
READERS = min(os.cpu_count() or 1, 8)
"""Threads that read files."""


def find_declared(table: pd.DataFrame, report: Callable[[int], None] | None = None) -> pd.DataFrame:
    """The rows of a corpus' table whose files contradict their label, with a column `reason`.

    report: called with how many files have been read. A file that cannot be read contradicts
    nothing.
    """
    found = []
    with ThreadPoolExecutor(READERS) as pool:
        for done, declared in enumerate(pool.map(_declared_in, table["path"]), 1):
            found.append(declared)
            if report:
                report(done)
    said = np.array([declared for declared, _ in found], object)
    reals = (table["label"] == 0).to_numpy()
    wrong = (reals & np.isin(said, (GENERATED, EDITED))) | (~reals & (said == CAPTURED))
    reasons = [reason for (_, reason), is_wrong in zip(found, wrong, strict=True) if is_wrong]
    return table[wrong].assign(reason=reasons)


def leave_out_declared(table: pd.DataFrame, declared: pd.DataFrame) -> pd.DataFrame:
    """A table without the rows that `find_declared` found in it."""
    return table[~table["path"].isin(set(declared["path"]))]


KEPT, DROPPED = "--drop-declared leaves them out", "left out"
"""What becomes of them, for `remark_on_declared`."""


def remark_on_declared(declared: pd.DataFrame, end: str = KEPT) -> Iterator[str]:
    """What to remark on what `find_declared` found; end: what becomes of them."""
    for label, one, many in (
        (0, "real says in its file that it was generated or edited with AI", "reals say in their "
         "files that they were generated or edited with AI"),
        (1, "fake is a camera's file by its own word", "fakes are a camera's files by their own "
         "word"),
    ):  # fmt: skip
        names = [
            f"{row.file_name} ({row.reason})"
            for row in declared[declared["label"] == label].itertuples()
        ]
        if names:
            yield f"{counted(len(names), one, many)}: {name_some(names, NAMED)}; {end}"


def _declared_in(path: str) -> tuple[str, str]:
    """What a file declares, and where."""
    try:
        about = os.stat(path)
    except OSError:
        return "", ""
    return _read(path, about.st_mtime_ns, about.st_size)


@functools.lru_cache(maxsize=1 << 20)
def _read(path: str, changed: int, size: int) -> tuple[str, str]:
    """`_declared_in` of a file that has not changed since."""
    try:
        found = read_evidence(read_content(path), path)
    except ImageError:
        return "", ""
    return found.declared, found.reason[:200]
