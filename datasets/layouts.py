"""The field's ways to lay out labelled images, read without conversion.

A layout is a function that looks at a path and returns rows (`file_name`, `label`, and what else it
knows of generator, source, group, split), or None if the path is laid out otherwise. The first that
recognises a path wins; to add one, register it before a more general one.
"""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from ganscope.errors import GanscopeError, refuse_bytes
from ganscope.inputs import find_images
from ganscope.registry import Registry

MANIFEST = "metadata.csv"
"""The manifest of a corpus that is laid out as ours."""

Layout = Callable[[Path], pd.DataFrame | None]
layouts: Registry[Layout] = Registry("corpus layout")
NAMES = ("file_name", "filename", "path")
"""What a CSV file may call the column of file names; the first that is there counts."""
TEXTS = ("group", "source", "generator", "split", "weights")
"""Columns that are text even where they look like numbers: 0001 is not 1."""


@layouts.register("table")
def table(root: Path) -> pd.DataFrame | None:
    """a CSV file of filename,label.

    Paths are relative to the CSV file; further columns are kept.
    """
    if not root.is_file():
        return None
    return _read_csv(root)


@layouts.register("manifest")
def manifest(root: Path) -> pd.DataFrame | None:
    """a folder with metadata.csv (file_name,label,generator,...).

    Written by `ganscope generate`; Hugging Face's imagefolder reads it too.
    """
    path = root / MANIFEST
    return _read_csv(path) if path.is_file() else None


@layouts.register("ganscope")
def ganscope(root: Path) -> pd.DataFrame | None:
    """0_real/... beside 1_fake/GENERATOR/...."""
    if not ((root / "0_real").is_dir() and (root / "1_fake").is_dir()):
        return None
    rows = _rows(root, root / "0_real", 0)
    for child in _folders(root / "1_fake"):
        rows += _rows(root, child, 1, generator=child.name)
    loose = [row for row in _rows(root, root / "1_fake", 1) if row["file_name"].count("/") == 1]
    return pd.DataFrame(rows + loose)


@layouts.register("forensynths")
def forensynths(root: Path) -> pd.DataFrame | None:
    """GENERATOR/[CLASS/]{0_real,1_fake}.

    CNNDetection's layout (Wang et al. 2020), with or without a folder a class.
    """
    rows = []
    for found in sorted([*root.glob("*/1_fake"), *root.glob("*/*/1_fake")]):
        generator = found.relative_to(root).parts[0]
        for folder, label in ((found.with_name("0_real"), 0), (found, 1)):
            rows += _rows(root, folder, label, generator, source=folder.parent.name)
    return pd.DataFrame(rows) if rows else None


@layouts.register("genimage")
def genimage(root: Path) -> pd.DataFrame | None:
    """[GENERATOR/]{train,val}/{nature,ai}.

    GenImage's layout (Zhu et al. 2023), whole or one generator's folder.
    """
    rows = []
    for found in sorted([*root.glob("*/ai"), *root.glob("*/*/ai"), *root.glob("*/*/*/ai")]):
        split = found.parent.name
        above = found.relative_to(root).parts[:-2]
        generator = above[0] if above else root.resolve().name
        for folder, label in ((found.with_name("nature"), 0), (found, 1)):
            rows += _rows(root, folder, label, generator, split=split)
    return pd.DataFrame(rows) if rows else None


@layouts.register("real-fake")
def real_fake(root: Path) -> pd.DataFrame | None:
    """[GENERATOR/]{real,fake}, files of the same name being pairs.

    real/x.jpg and fake/x.png show the same scene, so they form a group.
    """
    rows = []
    for found in sorted([*root.glob("fake"), *root.glob("*/fake")]):
        real = found.with_name("real")
        generator = found.parent.name if found.parent != root else "fake"
        part = _rows(root, real, 0) + _rows(root, found, 1, generator)
        stems = {label: {_stem(r) for r in part if r["label"] == label} for label in (0, 1)}
        for row in part:
            if _stem(row) in stems[0] & stems[1]:
                row["group"] = _stem(row)
        rows += part
    if not rows:
        return None
    table = pd.DataFrame(rows)
    table.attrs["own_groups"] = True
    return table


def _stem(row: dict) -> str:
    """Path below the real or fake folder, without the ending."""
    parts = Path(row["file_name"]).with_suffix("").parts
    start = max(i for i, part in enumerate(parts[:-1]) if part in {"real", "fake"}) + 1
    return "/".join(parts[start:])


def _rows(
    root: Path, folder: Path, label: int, generator: str = "fake", source: str = "", split: str = ""
) -> list[dict]:
    """A row for every image below `folder`; reals have the generator "real"."""
    if not folder.is_dir():
        return []
    for path in find_images(folder):
        refuse_bytes(path)
    return [
        {
            "file_name": Path(path).relative_to(root).as_posix(),
            "label": label,
            "generator": generator if label else "real",
            "source": source or (folder.name if label else Path(path).parent.name),
            "group": "",
            "split": split,
        }
        for path in find_images(folder)
    ]


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        rows = pd.read_csv(
            path,
            dtype=dict.fromkeys([*NAMES, *TEXTS], str),
            keep_default_na=False,  # a group may be called "None" or "NA"
            na_values=[""],
        )
    except (ValueError, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise GanscopeError(f"{path}: not a readable CSV table ({reason})") from None
    name = next((c for c in NAMES if c in rows), "file_name")
    rows = rows.rename(columns={name: "file_name"})
    missing = {"file_name", "label"} - set(rows.columns)
    if missing:
        raise GanscopeError(
            f"{path}: has no column {sorted(missing)[0]!r} (file_name,label needed)"
        )
    if rows["file_name"].isna().any():
        raise GanscopeError(f"{path}: row {rows['file_name'].isna().argmax() + 1} names no file")
    return rows
