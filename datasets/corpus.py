"""A corpus: a folder (or CSV) of labelled images, read as one table whatever its layout.

The table is the contract between all parts: a row an image, the columns below always present.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ganscope.datasets import face_layouts  # noqa: F401, registers its layouts
from ganscope.datasets.frames import with_frames
from ganscope.datasets.layouts import MANIFEST, layouts
from ganscope.errors import GanscopeError, GanscopeWarning, in_a_line, refuse_bytes
from ganscope.files import read_json

UNFINISHED = ".metadata"
"""How the names of the manifest's parts begin while a corpus is being written."""
REQUEST, ROWS = "corpus.json", "rows"
"""How a corpus that was made here was asked for; and in it how many rows its manifest had."""
COLUMNS = ("path", "file_name", "label", "generator", "source", "group", "split")
"""Columns of every table. `path` can be opened; `file_name` is below the corpus' root; `label` is 0
(real) or 1 (fake); `generator` is "real" for reals; `source` says where an image is from; images of
one `group` show the same scene or prompt ("" = alone); `split` is "", train, val or test."""

LABEL_WORDS = {
    **dict.fromkeys(("0", "0.0", "real", "nature", "false"), 0),
    **dict.fromkeys(("1", "1.0", "fake", "ai", "generated", "true"), 1),
}
"""What a label may be called, in lower case."""


class UnknownLayout(GanscopeError):
    """A folder or file that is laid out as no known corpus is."""


@dataclass(frozen=True)
class Corpus:
    """Where a corpus lies, and its table (see `COLUMNS`; further manifest columns are kept).

    Where there is a column `mask`, it names a file below the root, or is ""; see `masks.py`.
    """

    root: Path
    table: pd.DataFrame

    def __len__(self) -> int:
        return len(self.table)


def open_corpus(path: str | Path) -> Corpus:
    """Open a corpus in any known layout, without converting it.

    Videos are sampled (`frames.py`). A choice may stand behind the path: `ff++@c23` takes that
    compression where several lie side by side, `ff++@16` sixteen frames of each video, and
    `ff++@c23@16` both. Where there is a column `mask`, it names a file below the root, or is "";
    see `masks.py`.

    Raises `GanscopeError` if there is none at `path`, it is unfinished, or its manifest is faulty;
    `UnknownLayout`, which is one, for what is laid out otherwise.
    """
    refuse_bytes(str(path))
    root, compression, most = _chosen(Path(path))
    if not root.exists():
        raise GanscopeError(f"{root}: no such corpus; make one with ganscope generate")
    if is_unfinished(root):
        raise GanscopeError(
            f"{root}: an unfinished corpus; run the same generate command again to finish it"
        )
    for read in layouts.values():
        rows = read(root)
        if rows is not None:
            folder = root if root.is_dir() else root.parent
            rows = with_frames(folder, _of_compression(root, rows, compression), most)
            found = Corpus(folder, _normal(root, rows))
            if root.is_dir():
                _remark_on_lost_rows(found)
            return found
    raise UnknownLayout(
        f"{root}: no layout that ganscope reads. Known: "
        + "; ".join((read.__doc__ or "").split("\n")[0].rstrip(".") for read in layouts.values())
    )


def _chosen(path: Path) -> tuple[Path, str, int | None]:
    """A corpus' path, and what is chosen behind it: a compression or "", frames a video or None."""
    compression, most = "", None
    while not path.exists() and "@" in path.name:
        name, _, choice = path.name.rpartition("@")
        if choice.isdecimal() and int(choice):
            most = int(choice)
        else:
            compression = choice
        path = path.with_name(name) if name else path.parent
    return path, compression, most


def _of_compression(root: Path, rows: pd.DataFrame, compression: str) -> pd.DataFrame:
    if not compression:
        return rows
    known = sorted(set(rows["compression"]) - {""}) if "compression" in rows else []
    if compression not in known:
        of = f"; it has {', '.join(known)}" if known else ", which knows none"
        raise GanscopeError(f"{root}: no compression {compression!r} in this corpus{of}")
    return rows[rows["compression"] == compression].reset_index(drop=True)


def _remark_on_lost_rows(corpus: Corpus) -> None:
    """Warn if a manifest has fewer rows than when the corpus was finished."""
    try:
        rows = read_json(corpus.root / REQUEST).get(ROWS)
    except GanscopeError:  # none, damaged, or somebody else's: the manifest stands alone
        return
    if isinstance(rows, int) and len(corpus) < rows:
        warnings.warn(
            f"{corpus.root / MANIFEST} lists {len(corpus):,} of the {rows:,} images that were "
            "made; if you did not take them out, the file is damaged: make the corpus anew",
            GanscopeWarning,
            stacklevel=3,
        )


def is_unfinished(root: Path) -> bool:
    """Whether a corpus is being written at `root`, or was when something killed it."""
    return next(root.glob(f"{UNFINISHED}*.csv"), None) is not None


def open_corpora(paths: Sequence[str | Path]) -> Corpus:
    """Open several corpora as one; file names keep their corpus' path in front when there are
    many.
    """
    parts = [open_corpus(p) for p in paths]
    if len(parts) == 1:
        return parts[0]
    tables = []
    for part in parts:
        names = [f"{part.root}/{f}" for f in part.table["file_name"]]
        group = part.table["group"]
        if part.table.attrs.get("own_groups"):  # after file names: another's 1.png is another's
            group = [g and f"{part.root}/{g}" for g in group]
        tables.append(part.table.assign(file_name=names, group=group))
        for column in ("mask", "video"):
            if column in part.table:
                tables[-1][column] = [m and str(part.root / m) for m in part.table[column]]
        tables[-1].attrs = {}
    table = pd.concat(tables, ignore_index=True)
    for column in ("mask", "video", "identity"):
        if column in table:
            table[column] = table[column].fillna("")
    whole = [part.root.resolve() / name for part in parts for name in part.table["file_name"]]
    doubles = table["path"][pd.Series(whole).duplicated()]
    if len(doubles):
        raise GanscopeError(f"{doubles.iloc[0]}: is in two of the corpora; name each corpus once")
    return Corpus(Path("."), table)


def newest_corpus(folder: str | Path = ".") -> Path:
    """The finished corpus in `folder`, at most two levels down, that was written last."""
    root = Path(folder)
    found = [p for depth in ("", "*/", "*/*/") for p in root.glob(depth + MANIFEST)]
    if not found:
        raise GanscopeError("no corpus here: make one with ganscope generate, or name its folder")
    return max(found, key=lambda p: p.stat().st_mtime).parent


def _normal(root: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """Fill in the columns that a layout left out, and check the others."""
    table = rows.reset_index(drop=True).copy()
    if table.empty:
        raise GanscopeError(f"{root}: the corpus holds no images")
    folder = root if root.is_dir() else root.parent
    table["file_name"] = table["file_name"].astype(str)
    table["label"] = _labels(root, table["label"])
    fallback = table["label"].map({0: "real", 1: "fake"})
    for column, default in (("generator", fallback), ("source", ""), ("group", ""), ("split", "")):
        if column not in table:
            table[column] = default
        table[column] = table[column].fillna("").astype(str)
    if "mask" in table:
        table["mask"] = table["mask"].fillna("").astype(str)
    unnamed = table["generator"] == ""
    table.loc[unnamed, "generator"] = fallback[unnamed]
    wrong = table[(table["label"] == 0) != (table["generator"] == "real")]
    if len(wrong):
        row = wrong.iloc[0]
        raise GanscopeError(
            f"{root}: {row['file_name']} has label {row['label']} but generator "
            f"{row['generator']!r}; "
            'reals have label 0 and generator "real"'
        )
    strange = set(table["split"]) - {"", "train", "val", "test"}
    table["split"] = table["split"].replace({"validation": "val", "valid": "val"})
    strange -= {"validation", "valid"}
    if strange:
        raise GanscopeError(f"{root}: unknown split {sorted(strange)[0]!r}; use train, val or test")
    doubles = table["file_name"][table["file_name"].duplicated()]
    if len(doubles):
        raise GanscopeError(f"{root}: {in_a_line(str(doubles.iloc[0]))} is listed twice")
    for column in ("mask", "video", "identity"):
        if column in table:
            table[column] = table[column].fillna("").astype(str)
    own = [str(folder / name) for name in table["file_name"]]
    sampled = table["path"].fillna("") if "path" in table and "video" in table else own
    table["path"] = [path or name for path, name in zip(sampled, own, strict=True)]
    rest = [c for c in table.columns if c not in COLUMNS]
    return table[[*COLUMNS, *rest]]


def _labels(root: Path, values: pd.Series) -> pd.Series:
    labels = values.astype(str).str.strip().str.lower().map(LABEL_WORDS)
    if labels.isna().any():
        bad = values[labels.isna()].iloc[0]
        raise GanscopeError(f"{root}: label {bad!r} is neither 0 (real) nor 1 (fake)")
    return labels.astype(int)
