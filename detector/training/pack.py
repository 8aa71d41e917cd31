"""Packs: small views of pictures, cut once, so that a training never opens a picture again.

A pack is a folder of parts, `pack-000.safetensors` and so on, of at most 60 MB each, and
`pack.sha256`, their checksums as `sha256sum --check` reads them; it is written last and says that
the pack is whole. A part holds the JPEGs of its views one after the other (`bytes`, uint8), where
each begins (`offsets`, int64, one more than there are views), and of each view the `label`, the
number of its `group`, its `kind` and the number of its `picture` (int64). Names are JSON in the
header. The same pictures give the same pack, and a killed packing goes on after its last part.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from ganscope.config import replacing, write_text
from ganscope.datasets.writing import disk_errors
from ganscope.errors import GanscopeError, ImageError, reason_of

SUMS, VERSION = "pack.sha256", 1
PART_BYTES = 59_000_000
"""JPEGs of a part; with its names it stays below 60 MB."""
SIDE = 256
"""Pixels of a view's side for crops of 224 (see `side_for`)."""
KINDS = ("native", "middle", "whole")
"""A random crop of the pixels as they are; one after the picture was shrunk to a long side of
`MIDDLE` pixels, where it is longer; the picture about its centre, with its short side as the
view's."""
MIDDLE = (640, 1280)
QUALITIES = (90, 94)
AT_ONCE = 64
"""Pictures that are cut at a time."""
DECODED_BYTES = 2 * 2**30
"""Decoded views kept in memory at most where the device is a CPU; a GPU gives half of what is
free."""


def side_for(size: int) -> int:
    """Side of the views from which crops of `size` pixels are taken: 256 for 224."""
    return 8 * math.ceil(size / 7)


def cut_views(
    pixels: np.ndarray, name: str, side: int = SIDE, seed: int = 0
) -> Iterator[tuple[int, np.ndarray]]:
    """Kind (a place in `KINDS`) and JPEG bytes (n,) uint8 of each view of a picture (H, W, 3).

    What is random depends on name and seed alone. What is smaller than a view is enlarged.
    """
    drawn = f"{seed}/{name}".encode("utf-8", "surrogateescape")
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(drawn).digest()[:8], "big"))
    height, width = pixels.shape[:2]
    short, long = min(height, width), max(height, width)
    low, high = (bound * side / SIDE for bound in MIDDLE)
    shrunk = rng.uniform(low, min(high, max(long, low)))
    regions = {"native": float(side), "middle": side * long / shrunk, "whole": float(short)}
    for kind, wanted in regions.items():
        region = min(wanted, short)
        shares = rng.random(2)
        quality = int(rng.integers(QUALITIES[0], QUALITIES[1] + 1))
        if kind == "middle" and long <= low:
            continue
        room = np.array([height - region, width - region])
        top, left = room / 2 if kind == "whole" else room * shares
        if region == side:
            top, left = int(top), int(left)
            view = pixels[top : top + side, left : left + side]
        else:
            box = (left, top, left + region, top + region)
            # Only what the box needs: turning a whole picture into Pillow's form is slow.
            y, x = max(int(top) - 8, 0), max(int(left) - 8, 0)
            near = Image.fromarray(
                np.ascontiguousarray(
                    pixels[y : math.ceil(top + region) + 8, x : math.ceil(left + region) + 8]
                )
            )
            view = np.asarray(
                near.resize(
                    (side, side),
                    Image.Resampling.BICUBIC,
                    box=(box[0] - x, box[1] - y, box[2] - x, box[3] - y),
                )
            )
        done, data = cv2.imencode(".jpg", view[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        assert done
        yield KINDS.index(kind), data.ravel()


def groups_of(table: pd.DataFrame) -> tuple[np.ndarray, list[tuple[int, str, str]]]:
    """The group number (rows,) of each picture, and each group's label, source and generator."""
    keys = list(zip(table["label"].astype(int), table["source"], table["generator"], strict=True))
    groups = sorted(set(keys))
    number = {group: i for i, group in enumerate(groups)}
    return np.array([number[key] for key in keys], np.int64), groups


def write_pack(
    folder: Path,
    table: pd.DataFrame,
    pixels_of: Callable[[int], np.ndarray],
    *,
    side: int = SIDE,
    seed: int = 0,
    drop: bool = False,
    told: Callable[[int], object] = lambda _: None,
    part_bytes: int = PART_BYTES,
) -> None:
    """Cut the views of all pictures into a pack; goes on after the last whole part of an earlier
    try, and does nothing where the pack is whole.

    table: a row a picture, columns name, label, source, generator. pixels_of(row) opens one. drop:
    leave out pictures that cannot be read, noting why, rather than stop. told: called with the
    number of pictures done. Raises `GanscopeError` for a folder with another pack, or for a picture
    that cannot be read.
    """
    listed = table[["name", "label", "source", "generator"]].to_csv(index=False)
    about = f"{VERSION} {side} {seed} {part_bytes}\n{listed}"
    fingerprint = hashlib.sha256(about.encode("utf-8", "surrogateescape")).hexdigest()
    group, groups = groups_of(table)
    labels, names = table["label"].to_numpy(np.int64), table["name"].tolist()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GanscopeError(f"{folder}: cannot be written ({error.strerror})") from None
    first = part = 0
    while (path := folder / part_name(part)).exists():
        found = _header(path)
        if found["fingerprint"] != fingerprint:
            raise GanscopeError(
                f"{folder} holds a pack of other pictures; name another folder, or delete it"
            )
        first, part = found["next"], part + 1
    if first == len(table) and (folder / SUMS).exists():
        return
    (folder / SUMS).unlink(missing_ok=True)

    def cut(row: int) -> list[tuple[int, np.ndarray]] | ImageError:
        try:
            return list(cut_views(pixels_of(row), names[row], side, seed))
        except ImageError as error:
            return error

    views: list[tuple[int, int, np.ndarray]] = []
    dropped: dict[str, str] = {}

    def close(stop: int) -> None:
        nonlocal first, part
        rows = np.array([row for row, _, _ in views], np.int64)
        sizes = [len(data) for _, _, data in views]
        tensors = {
            "bytes": np.concatenate([data for _, _, data in views] or [np.empty(0, np.uint8)]),
            "offsets": np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64),
            "label": labels[rows],
            "group": group[rows],
            "kind": np.array([kind for _, kind, _ in views], np.int64),
            "picture": rows,
        }
        header = {
            "version": VERSION,
            "fingerprint": fingerprint,
            "side": side,
            "first": first,
            "next": stop,
            "of": len(table),
            "groups": groups,
            "pictures": names[first:stop],
            "dropped": dropped,
        }
        # A single key: with several, their order would differ from run to run.
        data = save(
            {name: torch.from_numpy(value) for name, value in tensors.items()},
            {"pack": json.dumps(header, sort_keys=True)},
        )
        with disk_errors(folder), replacing(folder / part_name(part)) as half:
            half.write_bytes(data)
        views.clear()
        dropped.clear()
        first, part = stop, part + 1

    size = 0
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        for start in range(first, len(table), AT_ONCE):
            rows = range(start, min(start + AT_ONCE, len(table)))
            for row, done in zip(rows, threads.map(cut, rows), strict=True):
                if isinstance(done, ImageError):
                    if not drop:
                        raise GanscopeError(f"{done}; restore it, or begin anew without it")
                    dropped[names[row]] = done.reason
                    continue
                new = sum(len(data) for _, data in done)
                if views and size + new > part_bytes:
                    close(row)
                    size = 0
                views += [(row, kind, data) for kind, data in done]
                size += new
            told(rows.stop)
    if first < len(table) or not part:
        close(len(table))
    sums = [f"{_sum(folder / part_name(i))}  {part_name(i)}" for i in range(part)]
    write_text(folder / SUMS, "\n".join(sums) + "\n")


def part_name(number: int) -> str:
    return f"pack-{number:03}.safetensors"


def _sum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _header(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})["pack"])
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise GanscopeError(
            f"{path}: no part of a pack, or damaged ({reason_of(error)}); delete it to make it anew"
        ) from None
    if header.get("version") != VERSION:
        raise GanscopeError(f"{path}: version {header.get('version')!r}, not {VERSION}; pack anew")
    return header


@dataclass(frozen=True)
class Pack:
    """A pack in memory, still as JPEGs: a row a view, N of them."""

    jpegs: list[np.ndarray]
    label: np.ndarray
    """(N,) 1: generated."""
    group: np.ndarray
    """(N,) places in `groups`."""
    kind: np.ndarray
    """(N,) places in `KINDS`."""
    picture: np.ndarray
    """(N,) places in `names`."""
    groups: list[tuple[int, str, str]]
    """Label, source and generator of each group."""
    names: list[str]
    dropped: dict[str, str]
    """Name of a picture that could not be read -> why."""
    side: int
    """Pixels of a view's side."""
    sums: str
    """What `pack.sha256` says: changes with every byte."""

    def __len__(self) -> int:
        return len(self.jpegs)


def read_pack(folder: Path) -> Pack:
    """Read and check a pack.

    Raises `GanscopeError`, naming the part, if the pack is unfinished, or a part is missing or
    differs from its checksum.
    """
    try:
        sums = (folder / SUMS).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise GanscopeError(f"{folder}: no whole pack ({SUMS} is missing)") from None
    except (OSError, ValueError) as error:
        raise GanscopeError(f"{folder / SUMS}: cannot be read ({reason_of(error)})") from None
    columns: dict[str, list[np.ndarray]] = {k: [] for k in ("label", "group", "kind", "picture")}
    jpegs: list[np.ndarray] = []
    names: list[str] = []
    dropped: dict[str, str] = {}
    header: dict[str, Any] = {}
    for line in sums.split("\n")[:-1]:
        digest, _, name = line.partition("  ")
        path = folder / Path(name).name
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise GanscopeError(f"{path}: this part of the pack is missing") from None
        except OSError as error:
            raise GanscopeError(f"{path}: cannot be read ({error.strerror})") from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise GanscopeError(f"{path}: damaged, its checksum is not that of {SUMS}")
        tensors = {key: value.numpy() for key, value in load(data).items()}
        header = _header(path)
        ends = tensors["offsets"]
        jpegs += [tensors["bytes"][a:b] for a, b in pairwise(ends)]
        for key, values in columns.items():
            values.append(tensors[key])
        names += header["pictures"]
        dropped |= header["dropped"]
    if not header or header["next"] != header["of"]:
        raise GanscopeError(f"{folder}: {SUMS} lists too few parts")
    return Pack(
        jpegs=jpegs,
        **{key: np.concatenate(values) for key, values in columns.items()},
        groups=[(int(label), source, generator) for label, source, generator in header["groups"]],
        names=names,
        dropped=dropped,
        side=header["side"],
        sums=sums,
    )


class PackViews:
    """A pack's views as pixels on a device: decoded once if they fit there, else as they are
    asked for, the next batch while the network works on this one.
    """

    def __init__(self, pack: Pack, device: torch.device, most_bytes: int | None = None):
        """most_bytes: decoded views that may be kept; None: `DECODED_BYTES`."""
        self.pack, self.device = pack, device
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1)
        self._coming: tuple[np.ndarray, list[Future[np.ndarray]]] | None = None
        if most_bytes is None:
            most_bytes = DECODED_BYTES
            if device.type == "cuda":
                most_bytes = torch.cuda.mem_get_info(device)[0] // 2
        self.kept: Tensor | None = None
        """(N, side, side, 3) uint8 on the device, if they fit."""
        if len(pack) * 3 * pack.side**2 <= most_bytes:
            self.kept = torch.empty(
                (len(pack), pack.side, pack.side, 3), dtype=torch.uint8, device=device
            )
            for start in range(0, len(pack), 1024):
                rows = np.arange(start, min(start + 1024, len(pack)))
                self.kept[start : start + len(rows)] = self._wait(self._ask(rows))

    def _ask(self, rows: np.ndarray) -> list[Future[np.ndarray]]:
        return [self._threads.submit(_decode, self.pack.jpegs[row]) for row in rows]

    @staticmethod
    def _wait(asked: list[Future[np.ndarray]]) -> Tensor:
        return torch.from_numpy(np.stack([one.result() for one in asked]))

    def prefetch(self, rows: np.ndarray) -> None:
        """Begin to decode what `fetch` will be asked for next."""
        if self.kept is None:
            self._coming = rows, self._ask(rows)

    def fetch(self, rows: np.ndarray) -> Tensor:
        """Views (n, 3, side, side) uint8 on the device."""
        if self.kept is not None:
            found = self.kept[torch.from_numpy(rows).to(self.device)]
        else:
            ready = self._coming is not None and np.array_equal(self._coming[0], rows)
            asked = self._coming[1] if ready and self._coming else self._ask(rows)
            found = self._wait(asked).to(self.device)
        return found.permute(0, 3, 1, 2)


def _decode(data: np.ndarray) -> np.ndarray:
    """JPEG bytes -> (H, W, 3) uint8 RGB."""
    pixels = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    if pixels is None:  # the checksum was right: it was packed so
        raise GanscopeError("a view of the pack is no JPEG; pack anew")
    return pixels
