"""How corpora of swapped and re-enacted faces are laid out: FaceForensics++, Celeb-DF, DFDC, and
DeepfakeBench's lists of them.

Each names its people in its own way. Videos that share one, directly or through others, form a
group, which no split divides; `identity` keeps the people themselves, so that where nearly all are
linked `splits.py` can divide people instead. Videos are rows of their own here: `frames.py` makes
frames of them.
"""

import json
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ganscope.datasets.frames import is_video
from ganscope.datasets.layouts import SPLITS, layouts
from ganscope.datasets.splits import AND
from ganscope.errors import GanscopeError, GanscopeWarning
from ganscope.inputs import find_images

FRAMES = ("frames", "images", "videos")
"""Folders that the same videos may lie in, the first that is there counts: single pictures need no
decoding."""
TEST_LIST = "List_of_testing_videos.txt"
NAMES = (
    (re.compile(r"(\d{3})(?:_(\d{3}))?$"), "ff++"),
    (re.compile(r"(\d\d)(?:_(\d\d))?__"), "dfd"),
    (re.compile(r"(id\d+)(?:_(id\d+))?_\d+$"), "celeb-df"),
)
"""How videos are called that name their people, and whose names these are."""


class _Film(NamedTuple):
    """A video file, or a folder of its frames."""

    path: Path
    label: int
    generator: str
    identity: tuple[str, ...]
    source: str
    split: str = ""
    compression: str = ""
    mask: Path | None = None


@layouts.register("faceforensics")
def faceforensics(root: Path) -> pd.DataFrame | None:
    """FaceForensics++: original_sequences beside manipulated_sequences.

    {original,manipulated}_sequences/NAME/COMPRESSION/{videos,images,frames}, with the split in
    {train,val,test}.json (pairs of ids), and masks in COMPRESSION/masks or masks/.
    """
    classes = (("original_sequences", 0), ("manipulated_sequences", 1))
    if not any((root / name).is_dir() for name, _ in classes):
        return None
    splits = _pairs_of_ids(root)
    films = []
    for name, label in classes:
        for folder in _folders(root / name):
            for compression in (c for c in _folders(folder) if c.name != "masks"):
                for one in _films_in(compression):
                    people = identities(one.stem if one.is_file() else one.name)
                    split = next((splits[p] for p in people if p in splits), "")
                    films.append(
                        _Film(
                            path=one,
                            label=label,
                            generator=folder.name if label else "real",
                            identity=people,
                            source=folder.name,
                            split=split,
                            compression=compression.name,
                            mask=_mask_of(one, folder) if label else None,
                        )
                    )
    if not films:
        raise GanscopeError(
            f"{root}: laid out as FaceForensics++, but no videos, images or frames are below "
            "original_sequences or manipulated_sequences; download some, or finish the download"
        )
    return _rows(root, films)


def _pairs_of_ids(root: Path) -> dict[str, str]:
    """Person -> split, by the JSON files of pairs; says which are missing."""
    found: dict[str, str] = {}
    missing = []
    for split in ("train", "val", "test"):
        places = [root / f / f"{split}.json" for f in ("", "splits", "dataset/splits")]
        path = next((p for p in places if p.is_file()), None)
        if path is None:
            missing.append(f"{split}.json")
            continue
        pairs = _json(path)
        if not isinstance(pairs, list) or not all(isinstance(p, list) for p in pairs):
            raise GanscopeError(f"{path}: no list of pairs of ids, as FaceForensics++ has them")
        for person in (str(p) for pair in pairs for p in pair):
            found[f"ff++ {person}"] = split
    if missing:
        warnings.warn(
            f"{root}: {', '.join(missing)} of FaceForensics++ missing (put them beside "
            "original_sequences); the videos that they would name are split by their people here",
            GanscopeWarning,
            stacklevel=5,
        )
        if len(missing) < 3:  # a part of the official split would mix with a drawn one
            return {}
    return found


def _mask_of(film: Path, method: Path) -> Path | None:
    """The masks of a manipulated video: a video, or a folder of pictures with the frames' names."""
    name = film.stem if film.is_file() else film.name
    own = film.parent.parent
    places = [own / "masks", method / "c23" / "masks", method / "masks", method / "raw" / "masks"]
    if film.is_file():
        files = [p / kind / film.name for p in places for kind in ("videos", "")]
        return next((f for f in files if f.is_file()), None)
    folders = [p / kind / name for p in places for kind in ("frames", "images", "")]
    return next((f for f in folders if f.is_dir()), None)


@layouts.register("celeb-df")
def celeb_df(root: Path) -> pd.DataFrame | None:
    """Celeb-DF v1 and v2: Celeb-real, YouTube-real beside Celeb-synthesis.

    With videos in the folders, or in {videos,images,frames} below; the split of
    List_of_testing_videos.txt is kept, its val and train parts are drawn by people.
    """
    if not (root / "Celeb-synthesis").is_dir():
        return None
    tests = set()
    path = root / TEST_LIST
    if path.is_file():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        tests = {line.split()[-1].rsplit(".", 1)[0] for line in lines if line.split()}
    else:
        warnings.warn(
            f"{root}: {TEST_LIST} of Celeb-DF is missing; without it there is no test split",
            GanscopeWarning,
            stacklevel=4,
        )
    films, found = [], set()
    folders = [f for f in _folders(root) if f.name.lower().endswith(("-real", "-synthesis"))]
    for folder in folders:
        label = int(folder.name.lower().endswith("-synthesis"))
        for one in _films_in(folder):
            name = one.stem if one.is_file() else one.name
            listed = f"{folder.name}/{name}"
            found.add(listed)
            films.append(
                _Film(
                    path=one,
                    label=label,
                    generator="celeb-df" if label else "real",
                    identity=identities(name) or (f"celeb-df {listed}",),
                    source=folder.name,
                    split="test" if listed in tests else "",
                )
            )
    if not films:
        raise GanscopeError(f"{root}: laid out as Celeb-DF, but without videos; download some")
    _remark_on_lost(root, tests - found, len(tests), TEST_LIST)
    return _rows(root, films)


@layouts.register("dfdc")
def dfdc(root: Path) -> pd.DataFrame | None:
    """DFDC: folders of videos, each with a metadata.json (label, split, original).

    One such folder, or the folder of all; of the test set also labels.csv (filename,label).
    """
    parts = [
        f
        for f in (root, *_folders(root), *(b for a in _folders(root) for b in _folders(a)))
        if (f / "metadata.json").is_file() or (f / "labels.csv").is_file()
    ]
    parts = [f for f in parts if _films_in(f)]
    films, listed, lost = [], 0, set()
    for part in parts:
        about = _about_dfdc(part)
        if about is None:
            continue
        here = {(f.stem if f.is_file() else f.name): f for f in _films_in(part)}
        for name, record in about.items():
            stem = name.rsplit(".", 1)[0]
            listed += 1
            if stem not in here:
                lost.add(f"{part.name}/{name}")
                continue
            label = _label_of(part, name, record)
            original = str(record.get("original") or name).rsplit(".", 1)[0]
            split = SPLITS.get(str(record.get("split") or part.name).lower(), "")
            films.append(
                _Film(
                    path=here[stem],
                    label=label,
                    generator="dfdc" if label else "real",
                    identity=(f"dfdc {original}",),
                    source=part.name,
                    split=split,
                )
            )
    if not films:
        return None
    _remark_on_lost(root, lost, listed, "metadata.json")
    return _rows(root, films)


def _about_dfdc(part: Path) -> dict[str, dict] | None:
    """Video -> what is said of it; None where the file is no list of DFDC's."""
    path = part / "metadata.json"
    if path.is_file():
        about = _json(path)
        fits = (
            isinstance(about, dict)
            and about
            and all(isinstance(v, dict) and {"label", "is_fake"} & set(v) for v in about.values())
        )
        return about if fits else None
    table = pd.read_csv(part / "labels.csv", dtype=str)
    if not {"filename", "label"} <= set(table.columns):
        return None
    return {n: {"is_fake": v} for n, v in zip(table["filename"], table["label"], strict=True)}


def _label_of(part: Path, name: str, record: dict) -> int:
    said = str(record.get("label", record.get("is_fake"))).strip().lower()
    label = {"real": 0, "0": 0, "false": 0, "fake": 1, "1": 1, "true": 1}.get(said)
    if label is None:
        raise GanscopeError(f"{part}: {name} has the label {said!r}, neither REAL nor FAKE")
    return label


@layouts.register("deepfakebench")
def deepfakebench(root: Path) -> pd.DataFrame | None:
    """DeepfakeBench's JSON: data set -> label -> split -> [compression ->] video -> frames.

    Paths are below the JSON file's folder or one above it, there also in datasets/rgb.
    """
    if root.suffix.lower() != ".json" or not root.is_file():
        return None
    content = _json(root)
    if not isinstance(content, dict) or not all(isinstance(v, dict) for v in content.values()):
        raise GanscopeError(f"{root}: no list of DeepfakeBench's (data set, label, split, video)")
    videos = [video for name, labels in content.items() for video in _listed(root, name, labels)]
    base = _base(root, [f for video in videos for f in video["frames"][:1]])
    whole: dict[tuple[str, str], set[str]] = {}
    for video in videos:
        whole.setdefault(video["key"], set()).add(video["split"])
    # Its validation repeats the test videos, and its training may hold them all.
    always = all(len(splits) == 3 for splits in whole.values())
    rows, seen, lost = [], set(), set()
    for video in videos:
        if video["key"] in seen:
            continue
        seen.add(video["key"])
        splits = whole[video["key"]]
        split = next((s for s in ("test", "train", "val") if s in splits), "")
        masks = {Path(_plain(m)).stem: _plain(m) for m in video["masks"]}
        for frame in sorted(map(_plain, video["frames"])):
            if not (base / frame).is_file():
                lost.add(frame)
                continue
            mask = masks.get(Path(frame).stem, "")
            rows.append(
                {
                    "file_name": _below(root.parent, base / frame),
                    "label": video["label"],
                    "generator": video["generator"] if video["label"] else "real",
                    "source": video["set"],
                    "split": "" if always else split,
                    "identity": AND.join(video["identity"]),
                    "compression": video["compression"],
                    "video": _below(root.parent, (base / frame).parent),
                    "mask": _below(root.parent, base / mask) if mask else "",
                }
            )
    if not rows:
        first = sorted(lost)[0] if lost else "none is listed"
        raise GanscopeError(
            f"{root}: none of its frames is there ({first}); put the JSON file beside the data "
            "sets' folders, or at datasets/ where these are in datasets/rgb"
        )
    _remark_on_lost(root, lost, len(rows) + len(lost), root.name, "frames")
    table = pd.DataFrame(rows)
    table["group"] = groups(table["identity"].str.split(AND, regex=False))
    return table


def _listed(root: Path, name: str, labels: dict) -> Iterable[dict[str, Any]]:
    """The videos of a data set in DeepfakeBench's JSON."""
    for label, splits in labels.items():
        for split, below in (splits if isinstance(splits, dict) else {}).items():
            if split not in SPLITS:
                raise GanscopeError(f"{root}: {name}, {label}: {split!r} is no split")
            for key, value in below.items():
                inner = {key: value} if "frames" in value else value
                compression = "" if "frames" in value else key
                for video, record in inner.items():
                    if not isinstance(record, dict) or "frames" not in record:
                        raise GanscopeError(f"{root}: {name}, {label}, {video}: names no frames")
                    yield {
                        "key": (f"{label} {compression}", video),
                        "set": name,
                        "label": int("real" not in label.lower()),
                        "generator": label,
                        "split": SPLITS[split],
                        "compression": compression,
                        "identity": identities(video) or (f"{name} {video}",),
                        "frames": record["frames"],
                        "masks": record.get("masks") or (),
                    }


def _base(root: Path, some: list[str]) -> Path:
    """The folder that a list's paths are below: the first in which one of `some` is found."""
    above = [root.resolve().parent, *root.resolve().parents[1:4]]
    for folder in above:
        for base in (folder, folder / "datasets" / "rgb", folder / "datasets", folder / "rgb"):
            if any((base / _plain(name)).is_file() for name in some[:50]):
                return base
    return root.parent


def _plain(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./")


def _below(folder: Path, path: Path) -> str:
    """A path as it is named from a folder; whole where it lies elsewhere."""
    try:
        return path.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        return str(path.resolve())


def identities(video: str) -> tuple[str, ...]:
    """The people that a video's name names, whose names these are in front; () if it names none."""
    for pattern, owner in NAMES:
        if match := pattern.match(video):
            return tuple(f"{owner} {person}" for person in match.groups() if person)
    return ()


def groups(people: Iterable[Iterable[str]]) -> list[str]:
    """For each video the name of its group: all videos that people link, called by the first."""
    named = [list(some) for some in people]
    leader: dict[str, str] = {}

    def find(person: str) -> str:
        while leader.setdefault(person, person) != person:
            leader[person] = leader[leader[person]]
            person = leader[person]
        return person

    for some in named:
        for other in some[1:]:
            one, two = sorted((find(some[0]), find(other)))
            leader[two] = one
    return [find(some[0]) if some else "" for some in named]


def _films_in(folder: Path) -> list[Path]:
    """The videos of a folder, as files or as folders of frames, below whichever of `FRAMES` it has
    first, else in itself.
    """
    for name in FRAMES:
        inside = folder / name
        if inside.is_dir() and (found := _films_of(inside)):
            return found
    return _films_of(folder) if not any((folder / name).is_dir() for name in FRAMES) else []


def _films_of(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    inside = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    files = [p for p in inside if p.is_file() and is_video(p.name)]
    return files or [p for p in inside if p.is_dir() and p.name not in ("masks", "landmarks")]


def _rows(root: Path, films: list[_Film]) -> pd.DataFrame:
    """A row for each video file and for each frame in a folder of frames."""
    found = []
    for film, group in zip(films, groups(film.identity for film in films), strict=True):
        row = {
            "label": film.label,
            "generator": film.generator,
            "source": film.source,
            "group": group,
            "split": film.split,
            "identity": AND.join(film.identity),
            "compression": film.compression,
            "video": film.path.relative_to(root).as_posix(),
        }
        if film.path.is_file():
            mask = film.mask.relative_to(root).as_posix() if film.mask else ""
            found.append(row | {"file_name": row["video"], "mask": mask})
            continue
        masks = {p.stem: p for p in film.mask.iterdir()} if film.mask else {}
        for name in find_images(film.path):
            path = Path(name)
            mask = masks[path.stem].relative_to(root).as_posix() if path.stem in masks else ""
            found.append(row | {"file_name": path.relative_to(root).as_posix(), "mask": mask})
    table = pd.DataFrame(found)
    if table.empty:
        raise GanscopeError(f"{root}: its folders of frames are empty; finish the download")
    empty = [column for column in ("compression", "mask") if not (table[column] != "").any()]
    return table.drop(columns=empty)


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise GanscopeError(f"{path}: not a readable JSON file ({reason})") from None


def _remark_on_lost(
    root: Path, lost: set[str], of: int, listed_in: str, what: str = "videos"
) -> None:
    if lost:
        warnings.warn(
            f"{root}: {len(lost):,} of the {of:,} {what} that {listed_in} lists are missing, as if "
            f"a download had stopped midway: {sorted(lost)[0]}",
            GanscopeWarning,
            stacklevel=5,
        )
