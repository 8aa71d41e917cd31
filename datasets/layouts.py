"""The field's ways to lay out labelled images, read without conversion.

A layout is a function that looks at a path and returns rows (`file_name`, `label`, and what else it
knows of generator, source, group, split), or None if the path is laid out otherwise. The first that
recognises a path wins; to add one, register it before a more general one.
"""

import io
import os
import re
from collections.abc import Callable, Container
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from ganscope.errors import GanscopeError, refuse_bytes
from ganscope.files import plain_cell
from ganscope.inputs import find_images
from ganscope.registry import Registry

MANIFEST = "metadata.csv"
"""The manifest of a corpus that is laid out as ours."""

Layout = Callable[[Path], pd.DataFrame | None]
layouts: Registry[Layout] = Registry("corpus layout")
NAMES = ("file_name", "filename", "path", "file", "filepath", "file_path", "image", "image_path")
"""What a CSV file may call the column of file names; the first that is there counts."""
TRUTHS = {"is_fake": 1, "is_generated": 1, "is_ai": 1, "fake": 1, "is_real": 0, "real": 0}
"""What the column of labels may be called where it says true or false -> the label of true."""
SEPARATORS = (",", ";", "\t", "|")
TEXTS = ("group", "identity", "source", "generator", "split", "weights", "video", "mask")
"""Columns that are text even where they look like numbers: 0001 is not 1."""


@layouts.register("table")
def table(root: Path) -> pd.DataFrame | None:
    """a CSV file of filename,label (separated by commas, semicolons or tabs).

    Paths are relative to the CSV file; further columns are kept.
    """
    if not root.is_file() or root.suffix.lower() == ".json":
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
    """0_real/[SPLIT/]... beside 1_fake/[SPLIT/]GENERATOR/...."""
    if not ((root / "0_real").is_dir() and (root / "1_fake").is_dir()):
        return None
    rows = _rows(root, root / "0_real", 0)
    fakes = [(root / "1_fake", "")]
    for child in _folders(root / "1_fake"):
        if split := SPLITS.get(child.name.lower()):
            fakes.append((child, split))
    for folder, split in fakes:
        for child in _folders(folder):
            if (child, SPLITS.get(child.name.lower())) not in fakes:
                rows += _rows(root, child, 1, generator=child.name, split=split)
        depth = len(folder.relative_to(root).parts)
        loose = _rows(root, folder, 1, split=split)
        rows += [row for row in loose if row["file_name"].count("/") == depth]
    return pd.DataFrame(rows)


@layouts.register("forensynths")
def forensynths(root: Path) -> pd.DataFrame | None:
    """[SPLIT/]GENERATOR/[CLASS/]{0_real,1_fake}.

    CNNDetection's layout (Wang et al. 2020), with or without a folder a class; SPLIT is train, val
    or test, and may also stand below the generator.
    """
    rows = []
    for pair in _pairs(root, {"0_real": "1_fake"}, 1, 3):
        generator = pair.above[0] if pair.above else "fake"
        for folder, label in ((pair.real, 0), (pair.fake, 1)):
            source = pair.above[-1] if pair.above else ""
            rows += _rows(root, folder, label, generator, source=source, split=pair.split)
    return pd.DataFrame(rows) if rows else None


@layouts.register("genimage")
def genimage(root: Path) -> pd.DataFrame | None:
    """[GENERATOR/]{train,val}/{nature,ai}.

    GenImage's layout (Zhu et al. 2023), whole or one generator's folder.
    """
    rows = []
    for pair in _pairs(root, {"nature": "ai"}, 1, 3):
        generator = pair.above[0] if pair.above else root.resolve().name
        for folder, label in ((pair.real, 0), (pair.fake, 1)):
            rows += _rows(root, folder, label, generator, split=pair.split)
    return pd.DataFrame(rows) if rows else None


@layouts.register("real-fake")
def real_fake(root: Path) -> pd.DataFrame | None:
    """[SPLIT/][GENERATOR/]{real,fake}, files of the same name being pairs.

    SPLIT is train, val or test, and may also stand below the generator; all in any case, as CIFAKE
    has them. real/x.jpg and fake/x.png of one split show the same scene, so they form a group.
    """
    rows = []
    for pair in _pairs(root, {"real": "fake", "reals": "fakes"}, 0, 2):
        generator = pair.above[0] if pair.above else "fake"
        part = _rows(root, pair.real, 0, split=pair.split)
        fakes = _rows(root, pair.fake, 1, generator, split=pair.split)
        stems = [{_stem(r, f) for r in rows} for f, rows in ((pair.real, part), (pair.fake, fakes))]
        for row in part + fakes:
            stem = _stem(row, pair.fake if row["label"] else pair.real)
            if stem in stems[0] & stems[1]:
                row["group"] = f"{pair.split}/{stem}" if pair.split else stem
        rows += part + fakes
    if not rows:
        return None
    table = pd.DataFrame(rows)
    table.attrs["own_groups"] = True
    return table


SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation"), "val"
)
"""Folders that are splits and no generators, in lower case."""


class _Pair(NamedTuple):
    """A folder of fakes and the one of reals beside it, and what stands above them."""

    fake: Path
    real: Path
    split: str
    above: list[str]
    """The folders between, without the split's."""


def _pairs(root: Path, words: dict[str, str], least: int, most: int) -> list[_Pair]:
    """Folders called by `words` (reals' name -> fakes'), in any case, `least` to `most` levels
    down. One that stands alone is there with the other's name in lower case.
    """
    found = []
    level = [root] if root.is_dir() else []
    for depth in range(most + 1):
        below = {folder: _folders(folder) for folder in level}
        level = []
        for folder, inside in below.items():
            classes = {f.name.lower(): f for f in reversed(inside)}
            for real, fake in words.items():
                if fake not in classes or depth < least:
                    continue
                parts = folder.relative_to(root).parts
                split = next((SPLITS[p.lower()] for p in parts if p.lower() in SPLITS), "")
                above = [p for p in parts if p.lower() not in SPLITS]
                beside = classes.get(real, folder / real)
                found.append(_Pair(classes[fake], beside, split, above))
            level += [f for f in inside if f.name.lower() not in {*words, *words.values()}]
    return sorted(found)


def holds_both(root: Path) -> bool:
    """Whether folders of reals and of fakes stand side by side, at `root` or below."""
    words = {"0_real": "1_fake", "real": "fake", "reals": "fakes", "nature": "ai"}
    return any(pair.real.is_dir() for pair in _pairs(root, words, 0, 2))


def _stem(row: dict, folder: Path) -> str:
    """Path below the real or fake folder, without the ending."""
    parts = Path(row["file_name"]).with_suffix("").parts
    start = max(i for i, part in enumerate(parts[:-1]) if part == folder.name) + 1
    return "/".join(parts[start:])


def _rows(
    root: Path, folder: Path, label: int, generator: str = "fake", source: str = "", split: str = ""
) -> list[dict]:
    """A row for every image below `folder`; reals have the generator "real". A split may also be
    the first folder below.
    """
    if not folder.is_dir():
        return []
    rows = []
    for name in find_images(folder):
        refuse_bytes(name)
        path = Path(name)
        above = path.relative_to(folder).parts[:-1]
        inner = SPLITS.get(above[0].lower(), "") if above else ""
        own = folder.name if len(above) == 1 and inner else path.parent.name
        rows.append(
            {
                "file_name": path.relative_to(root).as_posix(),
                "label": label,
                "generator": generator if label else "real",
                "source": source or (folder.name if label else own),
                "group": "",
                "split": split or inner,
            }
        )
    return rows


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        text = _decoded(path.read_bytes())
        header = re.split("[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
        separator = next((s for s in SEPARATORS if _columns(header, s) >= {"label"}), ",")
        rows = pd.read_csv(
            io.StringIO(text, newline=""),  # a name may hold a carriage return
            sep=separator,
            dtype=str,
            keep_default_na=False,  # a group may be called "None" or "NA"
            na_values=[""],
        )
        rows = rows.rename(columns={c: _plain_name(c) for c in rows})
        rows = _typed(rows, {*NAMES, *TEXTS, "label", *TRUTHS})
    except (ValueError, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise GanscopeError(f"{path}: not a readable CSV table ({reason})") from None
    rows = rows.loc[:, ~rows.columns.duplicated()]
    name = next((c for c in NAMES if c in rows), "file_name")
    rows = rows.rename(columns={name: "file_name"})
    if "label" not in rows:
        for column, true in TRUTHS.items():
            if column in rows:
                rows["label"] = _truth(path, column, rows[column], true)
                break
    missing = {"file_name", "label"} - set(rows.columns)
    if missing:
        has = ", ".join(map(repr, list(rows.columns)[:6]))
        raise GanscopeError(
            f"{path}: has no column {sorted(missing)[0]!r} (file_name,label needed; it has {has}, "
            "separated by commas, semicolons or tabs)"
        )
    if rows["file_name"].isna().any():
        raise GanscopeError(f"{path}: row {rows['file_name'].isna().argmax() + 1} names no file")
    for column in rows.select_dtypes(exclude="number"):
        rows[column] = rows[column].map(plain_cell, na_action="ignore")
    here = path.parent
    rows["file_name"] = [_slashes(here, n) if "\\" in n else n for n in rows["file_name"]]
    return rows


def _decoded(content: bytes) -> str:
    """Text as spreadsheets save it: UTF-8 with or without a mark in front, or UTF-16 with one."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16")
    return content.decode("utf-8-sig")


def _plain_name(column: str) -> str:
    """A column's name as ours are: "File Name" is file_name."""
    return str(column).strip().lower().replace(" ", "_").replace("-", "_")


def _columns(header: str, separator: str) -> set[str]:
    """Names in a table's first line; any word for the label is "label"; empty without a name."""
    found = {_plain_name(c.strip().strip('"')) for c in header.split(separator)}
    if not found & set(NAMES):
        return set()
    return found | ({"label"} if found & set(TRUTHS) else set())


def _typed(rows: pd.DataFrame, texts: Container[str]) -> pd.DataFrame:
    """Numbers as numbers, but for the columns of `texts`."""
    for column in rows:
        if column not in texts:
            with suppress(ValueError, TypeError):
                rows[column] = pd.to_numeric(rows[column])
    return rows


def _truth(path: Path, column: str, values: pd.Series, true: int) -> pd.Series:
    """Labels of a column such as is_fake."""
    words = {"true": 1, "yes": 1, "1": 1, "1.0": 1, "false": 0, "no": 0, "0": 0, "0.0": 0}
    found = values.astype(str).str.strip().str.lower().map(words)
    if found.isna().any():
        bad = values[found.isna()].iloc[0]
        raise GanscopeError(f"{path}: {column} {bad!r} is neither true nor false")
    return found.astype(int) if true else 1 - found.astype(int)


def _slashes(folder: Path, name: str) -> str:
    """A name that Windows wrote, unless a file is called so."""
    if os.name == "nt" or (folder / name).exists():
        return name
    return name.replace("\\", "/")
