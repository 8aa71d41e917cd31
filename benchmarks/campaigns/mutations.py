"""Mutated files of every kind that ganscope reads, and pickles handed as weights.

    python benchmarks/campaigns/mutations.py                    # a minute
    python benchmarks/campaigns/mutations.py --files 10000      # so many of each group
    python benchmarks/campaigns/mutations.py --minutes 600 --group tables
    python benchmarks/campaigns/mutations.py --group archives --file FAULT   # one again

Groups: pictures (as in pictures.py), archives (with PDFs and lists), videos, networks
(config.json, model.safetensors), tables (manifests, scores, features), projects, pickles. Each
file is read in a process that may hang, crash or take memory without harm; what ends otherwise
than well or with a line of ours is written to `--keep`. The exit status is 1 if there are faults.
"""

import argparse
import contextlib
import io
import json
import os
import pickle
import re
import shutil
import sqlite3
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import pandas as pd
import pictures
import torch
from pictures import Worker, made, mutated

from ganscope.config import CheckSettings
from ganscope.datasets.corpus import open_corpus
from ganscope.detector.benchmark.contestants import open_scorer
from ganscope.detector.exported.loading import load_judge
from ganscope.detector.model import Detector, load_detector
from ganscope.detector.networks.weights import read_weights
from ganscope.errors import GanscopeError, ImageError
from ganscope.folders import CHECKPOINT, CONFIG, WEIGHTS, load_checkpoint
from ganscope.generator.model import Generator, load_generator
from ganscope.images import open_image
from ganscope.inputs import Video, count_inputs, find_inputs
from ganscope.limits import Limits
from ganscope.named import SAVED_WITH
from ganscope.videos import open_film, read_frames
from ganscope.web.project import Project

SLOW = 60.0
"""Seconds that a file may take."""
Look = Callable[[Path], None]


def reading(place: Path, name: str, look: Look) -> Callable[[bytes], str]:
    """What a worker does with a file: write it where it belongs and read it as a command would."""

    def one(content: bytes) -> str:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        try:
            look(path)
        except GanscopeError as error:
            said = error.reason if isinstance(error, ImageError) else str(error)
            return "refused" if "\n" not in said.strip() else f"several lines: {said!r}"
        return "opened"

    return one


# --- archives, PDFs, lists, videos ---


def look_at_inputs(path: Path) -> None:
    """As `check` does: each picture is opened, or is an error of its own."""
    count_inputs(CheckSettings(paths=(str(path),)).paths)
    limits = Limits(max_bytes=32 << 20, seconds=5)
    for number, one in enumerate(find_inputs([str(path)], limits)):
        with contextlib.suppress(ImageError):
            if isinstance(one, Video):
                look_at_video(one)
            elif not isinstance(one, ImageError):
                open_image(one, max_pixels=pictures.LIMIT)
        if number > 500:
            break


def within(content: bytes) -> bytes:
    """A list without lines that are nothing but the root's name: it would name this whole disk."""
    return re.sub(rb"(?<![^\r\n\0])\s*/[./\s]*(?=[\r\n\0]|\Z)", b"x", content)


def look_at_video(video: Path | Video) -> None:
    film = open_film(video if isinstance(video, Video) else Video(str(video)), 4)
    for _ in read_frames(film):
        pass


def archives() -> dict[str, bytes]:
    files = {name: content for name, content in made().items() if name in ("jpeg", "png", "webp")}
    found = {}
    for packing, name in ((zipfile.ZIP_STORED, "zip"), (zipfile.ZIP_DEFLATED, "zip deflated")):
        held = io.BytesIO()
        with zipfile.ZipFile(held, "w", packing) as archive:
            for inner, content in files.items():
                archive.writestr(f"in/{inner}.{inner}", content)
        found[name] = held.getvalue()
    for mode in ("", "gz", "bz2", "xz"):
        held = io.BytesIO()
        with tarfile.open(fileobj=held, mode=f"w:{mode}") as archive:  # type: ignore[call-overload]
            for inner, content in files.items():
                info = tarfile.TarInfo(f"in/{inner}.{inner}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        found[f"tar.{mode}".rstrip(".")] = held.getvalue()
    with contextlib.suppress(ImportError):
        from PIL import Image

        held = io.BytesIO()
        Image.open(io.BytesIO(files["jpeg"])).save(held, "PDF")
        found["pdf"] = held.getvalue()
        held = io.BytesIO()
        Image.open(io.BytesIO(files["png"])).convert("1").save(held, "PDF")
        found["pdf bits"] = held.getvalue()
    found["txt"] = b"in/a.jpg\nhttp://127.0.0.1:9/x.png\n# note\n\n/nowhere/b.png\n"
    return found


def videos() -> dict[str, bytes]:
    """Short films of the codecs that this machine's PyAV writes."""
    try:
        import av
    except ImportError:
        return {}
    found, rng = {}, np.random.default_rng(0)
    for container, codec in (
        ("mp4", "h264"),
        ("mp4", "mpeg4"),
        ("matroska", "vp9"),
        ("webm", "vp8"),
        ("avi", "mjpeg"),
    ):
        held = io.BytesIO()
        with contextlib.suppress(Exception):  # a codec that is not there
            with av.open(held, "w", format=container) as file:
                stream = file.add_stream(codec, rate=5)
                stream.width, stream.height = 96, 64
                stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
                for _ in range(8):
                    pixels = cv2.resize(rng.integers(0, 256, (8, 12, 3), dtype=np.uint8), (96, 64))
                    for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")):
                        file.mux(packet)
                for packet in stream.encode():
                    file.mux(packet)
            found[f"{container} {codec}"] = held.getvalue()
    return found


# --- networks ---


def tiny_networks(place: Path) -> dict[str, tuple[Path, Look]]:
    """Name -> a folder, and what reads it."""
    torch.manual_seed(0)
    blocks: dict[str, Any] = {
        "size": 32,
        "hidden": 4,
        "beside": 4,
        "where": [0, 2],
        "where_plain": [1],
        "where_own": [1],
    }
    about = {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}
    parts = [
        {"architecture": "patch", "arguments": {"width": 8}, "input": about | {"size": 16}},
        {"architecture": "timm:test_vit", "arguments": {"size": 32}, "input": about},
    ]
    detectors = {
        "detector": Detector.create("cnn", width=8, depth=3),
        "vit": Detector.create("timm:test_vit", size=32),
        "blocks": Detector.create("vit:test_vit", **blocks),
        "fused": Detector.create("fused", parts=parts),
    }
    found: dict[str, tuple[Path, Look]] = {}
    for name, detector in detectors.items():
        counts = {"photographs": 90, "called_fake": 3, "at_most": 0.1, "split": "test"}
        detector.config |= {"false_alarms": counts, "validation": {"real": [1] * 20, "fake": [1]}}
        detector.eval().save(place / name)
        found[name] = place / name, _judge
    kinds: dict[str, dict[str, Any]] = {
        "dcgan": {},
        "stylegan": {},
        "cgan": {"classes": ["a", "b"]},
    }
    for kind, more in kinds.items():
        arguments = {"size": 16, "latent_dim": 8, "width": 4} | more
        network = {"architecture": kind, "arguments": arguments, "training": {}}
        Generator(network).eval().save(place / kind)
        found[kind] = place / kind, _make
    return found


def _judge(folder: Path) -> None:
    """What a configuration says must hold when it is used, too."""
    from ganscope.detector.judging.checking import check_image
    from ganscope.web.worker import about

    detector = load_judge(str(folder))
    pixels = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    check_image(pixels, detector, device="cpu", reencode=False)
    about(detector, str(folder))
    if detector.has_map:
        detector.local_logits(np.zeros((1, detector.size, detector.size, 3), np.uint8))


def _make(folder: Path) -> None:
    generator = load_generator(str(folder))
    for index in (0, 1):
        generator.make(0, [index])
        generator.columns(index)


def other_values(content: bytes, rng: np.random.Generator) -> bytes:
    """JSON with one to three values, at any depth, that are of another kind, size or not there."""
    data = json.loads(content)
    for _ in range(int(rng.integers(1, 4))):
        places = list(_places(data))
        if not places:
            break
        holder, key = places[int(rng.integers(len(places)))]
        strange = [None, True, -1, 0, 10**9, 1e308, float("nan"), "", "x", "cnn", [], {}, [1, 2, 3]]
        strange += [{"a": 1}, "\x1b[31m", "../..", "9" * 5000, [[]], [0, 0, 0], 0.5]
        if rng.random() < 0.25:
            del holder[key]
        else:
            holder[key] = strange[int(rng.integers(len(strange)))]
    return json.dumps(data).encode()


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(data) if isinstance(data, dict) else range(len(data)):
        yield data, key
        if isinstance(data[key], dict | list):
            yield from _places(data[key])


STRANGE_CELLS = (
    "", " ", "nan", "inf", "-1", "2", "1e999", "0.5", "real", "fake", "../../etc", "/dev/zero", ".",
    "a" * 5000, "\x00", "\x1b[31m", "=1+1", '"', "\n", "\u202e", "\udcff", "real/0.png", "1_000",
    "\u0661",
)  # fmt: skip
"""What a person, a spreadsheet or an attacker may put into a cell."""


def other_cells(table: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """A table of text with some cells, a column's name, rows or columns that are otherwise."""
    table = table.astype(object).copy()
    for _ in range(int(rng.integers(1, 6))):
        row, column = int(rng.integers(len(table))), int(rng.integers(table.shape[1]))
        cell = STRANGE_CELLS[int(rng.integers(len(STRANGE_CELLS)))]
        match int(rng.integers(10)):
            case 0:
                names = list(table.columns)
                names[column] = cell
                table.columns = pd.Index(names, dtype=object)  # Arrow's text takes no surrogate
            case 1 if table.shape[1] > 1:
                table = table.drop(columns=table.columns[column])
            case 2:
                table = pd.concat([table, table.iloc[[row]]], ignore_index=True)
            case _:
                table.iloc[row, column] = cell
    return table


def changed_cells(content: bytes, parquet: bool, rng: np.random.Generator) -> bytes:
    """A whole table of other content."""
    read = pd.read_parquet if parquet else pd.read_csv
    table = other_cells(read(io.BytesIO(content)), rng)  # type: ignore[operator]
    if not parquet:
        return table.to_csv(index=False).encode("utf-8", "surrogateescape")
    held = io.BytesIO()
    try:
        table.to_parquet(held)
    except Exception:  # kinds that Parquet does not mix
        held = io.BytesIO()
        with contextlib.suppress(Exception):  # a name twice, a surrogate
            table.astype(str).to_parquet(held)
    return held.getvalue()


# --- tables, projects ---


def tables(place: Path) -> dict[str, tuple[str, bytes, Look]]:
    """Name -> file name, content, and what reads it."""
    rng = np.random.default_rng(0)
    names = [f"{kind}/{i}.png" for kind in ("real", "a") for i in range(6)]
    (place / "corpus").mkdir(parents=True)
    for name in names:
        (place / "corpus" / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(place / "corpus" / name), rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    manifest = pd.DataFrame(
        {
            "file_name": names,
            "label": [0] * 6 + [1] * 6,
            "generator": ["real"] * 6 + ["a"] * 6,
            "source": "s, t",
            "split": ["train", "val", "test"] * 4,
            "group": ["", '"g"'] * 6,
            "seed": range(12),
        }
    )
    scores = pd.DataFrame({"path": names, "score": rng.random(12)})
    held = io.BytesIO()
    scores.to_parquet(held)

    def judged(path: Path) -> None:
        scorer = open_scorer(f"scores:{path}")
        scorer.score(np.zeros(3))

    def read(path: Path) -> None:
        for row in open_corpus(path.parent).table.to_dict("records"):
            with contextlib.suppress(ImageError):
                open_image(row["path"], max_pixels=pictures.LIMIT)

    return {
        "manifest": ("corpus/metadata.csv", manifest.to_csv(index=False).encode(), read),
        "scores csv": ("scores.csv", scores.to_csv(index=False).encode(), judged),
        "scores parquet": ("scores.parquet", held.getvalue(), judged),
    }


def project(place: Path) -> bytes:
    with Project(place / "whole.db") as desk:
        for number in range(4):
            cv2.imwrite(str(place / f"{number}.jpg"), np.zeros((8, 8, 3), np.uint8))
            record = {
                "path": str(place / f"{number}.jpg"),
                "score": 0.1 * number,
                "verdict": "real",
            }
            record |= {"thresholds": {"fake": 0.6, "real": 0.4}, "detector": "d", "error": None}
            desk.review(desk.add(record, "data:,"), "fake" if number % 2 else "", f"note {number}")
    base = sqlite3.connect(place / "whole.db")
    base.execute("PRAGMA journal_mode = DELETE")
    base.close()
    return (place / "whole.db").read_bytes()


def look_at_project(path: Path) -> None:
    """As `ganscope project` does."""
    from ganscope.web.project import export_csv

    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    shutil.rmtree(path.with_name("corpus"), ignore_errors=True)
    with Project(path) as desk:
        desk.counts()
        export_csv(desk, path.with_suffix(".csv"))
        desk.write_corpus(path.with_name("corpus"), False)
        desk.add({"path": "x.jpg", "verdict": "fake", "thresholds": {}, "score": 0.9})


# --- pickles ---


class Harmful:
    """Pickled, it makes a file when it is read."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.file),)


def pickles(place: Path) -> int:
    """Hand pickles that do something to everything that takes weights; returns the faults."""
    trap, faults, tried = place / "it-ran", 0, 0
    place.mkdir(exist_ok=True)
    whole = place / "whole"
    Detector.create("cnn", width=8, depth=3).eval().save(whole)
    raw, packed = place / "raw.pth", place / "packed.pth"
    raw.write_bytes(pickle.dumps(Harmful(trap)))
    torch.save({"state_dict": {"a": Harmful(trap)}}, packed)
    object_array = place / "array.npz"
    np.savez(object_array, a=np.array([Harmful(trap)], dtype=object))

    def in_place_of(name: str, file: Path) -> Path:
        folder = place / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        shutil.copy(file, folder / name)
        return folder

    from ganscope.generator.features import open_extractor
    from ganscope.prints import Prints

    ways: dict[str, Callable[[Path], object]] = {
        "weights by name": lambda f: read_weights(str(f), "--pretrained"),
        "checkpoint": lambda f: load_checkpoint(in_place_of(CHECKPOINT, f)),
        "weights of a detector": lambda f: load_detector(str(in_place_of(WEIGHTS, f))),
        "exported graph": lambda f: load_judge(str(shutil.copy(f, place / "graph.onnx"))),
        "exported script": lambda f: load_judge(str(shutil.copy(f, place / "script.pt"))),
        "contestant onnx": lambda f: open_scorer(f"onnx:{f}"),
        "contestant univfd": lambda f: open_scorer(f"univfd:{f}"),
        "contestant npr": lambda f: open_scorer(f"npr:{f}"),
        "scores": lambda f: open_scorer(f"scores:{shutil.copy(f, place / 'scores.parquet')}"),
        "pretrained features": lambda f: open_extractor(str(f), "cpu"),
        "prints": lambda f: Prints.load(f),
    }
    for way, take in ways.items():
        for file in (raw, packed, object_array):
            tried += 1
            try:
                take(file)
            except GanscopeError:
                said = "refused"
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                faults += 1
                print(f"  {way}, {file.name}: {said[:200]}", flush=True)
            if trap.exists():
                faults += 1
                trap.rmdir()
                print(f"  {way}, {file.name}: IT RAN", flush=True)
    # The trap itself must work, or nothing was shown.
    with contextlib.suppress(Exception):
        torch.load(packed, weights_only=False)
    if not trap.exists():
        faults += 1
        print("  the trap does not work")
    print(f"pickles: {tried} handed as weights, {faults} faults")
    return faults


# --- all of it ---


def campaign(
    group: str,
    whole: dict[str, tuple[str, bytes, Look]],
    place: Path,
    stop: Callable[[int], bool],
    seed: int,
    keep: Path,
) -> int:
    """Mutate and read in turn; returns the number of faults."""
    names, others = list(whole), [content for _, content, _ in whole.values()]
    workers = {n: Worker(reading(place, file, look), SLOW) for n, (file, _, look) in whole.items()}
    ends: dict[str, Counter[str]] = {name: Counter() for name in names}
    faults, number, peak, slowest = 0, 0, 0, (0.0, "")
    for name in names:  # what is whole is read
        said = workers[name].look(whole[name][1])
        if said != "opened":
            faults += 1
            print(f"  {group}/{name}: whole, yet {said}", flush=True)
    while names and not stop(number):
        rng = np.random.default_rng((seed, number))
        name = names[number % len(names)]
        file, content, _ = whole[name]
        if file.endswith(".json") and rng.random() < 0.8:
            content = other_values(content, rng)
        elif group == "tables" and rng.random() < 0.7:
            content = changed_cells(content, file.endswith(".parquet"), rng) or b"\0"
        else:
            content = mutated(content, others, rng) or b"\0"
        if file.endswith(".txt"):
            content = within(content)
        number += 1
        begun = time.monotonic()
        said = workers[name].look(content)
        slowest = max(slowest, (time.monotonic() - begun, name))
        peak = max(peak, workers[name].peak)
        if said not in ("opened", "refused"):
            faults += 1
            keep.mkdir(parents=True, exist_ok=True)
            kept = keep / f"{group}-{name.replace(' ', '-')}-{seed}-{number - 1}"
            kept.write_bytes(content)
            print(f"  {kept}: {said[-900:]}", flush=True)
            said = "fault"
        ends[name][said] += 1
    for worker in workers.values():
        worker.stop()
    for name, counts in ends.items():
        told = ", ".join(f"{count} {end}" for end, count in sorted(counts.items()))
        print(f"  {group}/{name}: {told}")
    print(
        f"{group}: {number:,} files, {faults} faults; slowest {slowest[0]:.1f} s ({slowest[1]}), "
        f"most memory {peak / 2**20:.0f} MiB",
        flush=True,
    )
    return faults


GROUPS = ("pictures", "archives", "videos", "networks", "tables", "projects", "pickles")


def group_of(group: str, place: Path) -> dict[str, tuple[str, bytes, Look]]:
    """Name -> file name, whole content, and what reads it."""
    if group == "archives":
        suffix = {"txt": "list.txt"}
        return {
            name: (suffix.get(name, "a.bin"), content, look_at_inputs)
            for name, content in archives().items()
        }
    if group == "videos":
        return {name: ("a.mp4", content, look_at_video) for name, content in videos().items()}
    if group == "networks":
        found: dict[str, tuple[str, bytes, Look]] = {}
        for name, (folder, look) in tiny_networks(place).items():
            for file in (CONFIG, WEIGHTS):
                # Each in a copy of its own: the other file stays whole.
                own = place / f"{name}-{file}"
                shutil.copytree(folder, own)
                if file == WEIGHTS:  # the sum that tells damage would tell it first
                    config = json.loads((own / CONFIG).read_text())
                    config.pop(SAVED_WITH, None)
                    (own / CONFIG).write_text(json.dumps(config))
                found[f"{name} {file}"] = (
                    f"{own.name}/{file}",
                    (own / file).read_bytes(),
                    lambda path, look=look: look(path.parent),  # type: ignore[misc]
                )
        return found
    if group == "tables":
        return tables(place)
    return {"project": ("review.db", project(place), look_at_project)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument("--minutes", type=float, default=1.0, help="in all")
    options.add_argument("--files", type=int, help="of each group, however long it takes")
    options.add_argument("--group", action="append", default=[], choices=GROUPS)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "mutations")
    options.add_argument("--file", type=Path, help="read this one of the group and tell")
    options.add_argument("--kind", help="with --file: as what")
    chosen = options.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    groups = chosen.group or GROUPS
    faults = 0
    with tempfile.TemporaryDirectory() as name:
        for group in groups:
            place = Path(name).resolve() / group
            place.mkdir()
            os.chdir(place)
            end = time.monotonic() + 60 * chosen.minutes / len(groups)

            def stop(number: int, end: float = end) -> bool:
                return number >= chosen.files if chosen.files else time.monotonic() > end

            if group == "pictures":
                faults += pictures.campaign(stop, chosen.seed, [], chosen.keep)
            elif group == "pickles":
                faults += pickles(place)
            else:
                whole = group_of(group, place)
                if chosen.file:
                    file, _, look = whole[chosen.kind or next(iter(whole))]
                    print(reading(place, file, look)(chosen.file.read_bytes()))
                    continue
                faults += campaign(group, whole, place, stop, chosen.seed, chosen.keep)
    print(f"mutations: {faults} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
