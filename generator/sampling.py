"""Writing labelled corpora: a fake and a real at a time, alike in everything but their origin.

Every core computes, cuts, encodes and writes batches of its own: a network spread over all cores
would have to wait, layer by layer, for those that are busy with a file. Memory does not grow with
the number of fakes.
"""

import os
import warnings
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import cv2
import numpy as np
import torch

import ganscope
from ganscope.config import GenerateSettings, next_free, plain
from ganscope.datasets.degradations import estimate_quality
from ganscope.datasets.layouts import MANIFEST
from ganscope.datasets.masks import FOLDER as MASKS
from ganscope.datasets.masks import encode_mask
from ganscope.datasets.sources import ZOOM, Crop, Source, open_folder, open_source, random_crop
from ganscope.datasets.splits import assign_splits
from ganscope.datasets.writing import COLUMNS, SUFFIXES, CorpusWriter, encode_image
from ganscope.devices import one_thread, pick_device, repeatable
from ganscope.errors import GanscopeError, GanscopeWarning, ImageError
from ganscope.folders import hash_files
from ganscope.generator.borrowed.editor import Edit, Editor
from ganscope.generator.by_name import open_generator
from ganscope.generator.model import AnyGenerator
from ganscope.images import open_image
from ganscope.launched import forget_stale, place
from ganscope.locks import holding

DEFAULT_N = 10_000
SIZE = 256
"""Side of the crops where neither the user nor the generator says."""
SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}
CANDIDATES = 8
"""Crops that a compressed real is chosen from."""
MASK_BYTES = "mask as png"
"""In a row on its way to the disk: its mask's file."""
AHEAD = 2
"""Batches that may wait for each core."""


def generate_corpus(
    settings: GenerateSettings,
    report: Callable[[int], None] | None = None,
    *,
    source: Source | None = None,
) -> Path:
    """Write `n` fakes and as many reals with a manifest; returns the corpus' folder.

    An unfinished corpus of the same request is continued. Number i of a seed is the same image
    whatever `n` is. With `shard`, or under `torchrun`, only a part is made; whichever part ends
    last joins the manifests. `report` is called with the number of fakes written so far. source:
    the photographs that reals are cut from, in the place of those that `settings.real` names.

    Raises `GanscopeError` for an unknown generator or source, a folder that is not free or that
    another command is writing to, a full disk.
    """
    part, parts = _shard(settings)
    device = _device(settings, parts)
    generator = open_generator(settings).to(device)
    if settings.from_ and not generator.from_photos:
        raise GanscopeError(
            f"--from: the generator {settings.generator!r} makes images out of noise; "
            "leave it out; the photographs to put beside its fakes are named by --real"
        )
    if settings.from_ and not settings.from_.is_dir():
        raise GanscopeError(f"--from {settings.from_}: name a folder of photographs")
    if settings.from_ is not None:
        source = open_folder(settings.from_)
    source = source or open_source(settings.real)
    size = settings.size or generator.size or SIZE
    if settings.from_ is None:  # photographs too small: say so before writing
        random_crop(source, size, np.random.default_rng(0))
    n = settings.n or DEFAULT_N
    if settings.from_:
        n = min(settings.n or len(source), len(source))
    if settings.from_:
        _see_one(source)
    splits = assign_splits(sorted(set(source.groups)), SHARES, settings.seed)
    if isinstance(generator, Editor):
        generator.told(source, splits)
        if settings.from_ is None:
            generator.crop(size, np.random.default_rng(0), 0)
    names = _names(source.paths, settings.from_) if settings.from_ else []
    out = settings.out or next_free(Path("corpus"), lambda p: (p / MANIFEST).exists())
    request = plain(settings) | {
        "n": n,
        "out": None,
        "shard": parts,
        "device": device.type,  # the last bits of a fake depend on it
        "size": size,
        "weights": generator.weights,
        "ganscope": ganscope.__version__,
    }
    if settings.prompts:
        request["prompts"] = hash_files(settings.prompts)
    with holding(out, f"-{part}-of-{parts}"):
        return _write_corpus(
            settings, out, request, generator, source, splits, names, (part, parts), report
        )


def _write_corpus(
    settings: GenerateSettings,
    out: Path,
    request: dict[str, Any],
    generator: AnyGenerator,
    source: Source,
    splits: dict[str, str],
    names: list[str],
    shard: tuple[int, int],
    report: Callable[[int], None] | None,
) -> Path:
    """Write this part of a corpus; returns its folder."""
    part, parts = shard
    n, size = request["n"], request["size"]
    columns = [*COLUMNS, *(c for c in generator.columns(0) if c not in COLUMNS)]
    writer = CorpusWriter(out, request, columns, shard)
    making = _Making(
        settings,
        generator,
        source,
        size,
        splits,
        _order(source, settings),
        names,
    )
    first, last = n * (part - 1) // parts, n * part // parts
    step = 1 if settings.from_ else generator.batch  # whole photographs may be large
    waiting: deque[Future[list[dict[str, Any]]]] = deque()

    def make(start: int) -> list[dict[str, Any]]:
        pairs = making.pairs(range(start, min(start + step, last)))
        for row, data in pairs:
            mask = row.pop(MASK_BYTES, None)
            if mask is not None:
                writer.write_image(row["mask"], mask)
            writer.write_image(row["file_name"], data)
        return [row for row, _ in pairs]

    def enter(limit: int) -> None:
        while len(waiting) > limit:
            writer.add_rows(waiting.popleft().result())
            if report:
                report(writer.next - first)

    cores = torch.get_num_threads() if generator.parallel else 1
    if request["device"] != "cpu":
        cores = min(cores, 2)  # one computes while the other writes
    with (
        repeatable(),
        one_thread() if generator.parallel else nullcontext(),
        ThreadPoolExecutor(cores) as pool,
    ):
        try:
            for start in range(max(writer.next, first), last, step):
                waiting.append(pool.submit(make, start))
                enter(cores * AHEAD)
            enter(0)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    source.tell_unusable()
    return writer.finish()


def make_fake(
    generator: AnyGenerator, seed: int, index: int, size: int | None = None
) -> np.ndarray:
    """Make one fake again from its manifest row: (size, size, 3) uint8 RGB, the same pixels.

    For generators that start from noise; a conditional one must have been told the class.
    """
    with repeatable(), one_thread():
        return _fit(generator.make(seed, [index])[0], size or generator.size)


def _shard(settings: GenerateSettings) -> tuple[int, int]:
    """(i, n): this is part i of n, from 1 on, as --shard says or as `torchrun` and its like do."""
    if settings.shard:
        part, _, parts = settings.shard.partition("/")
        return int(part), int(parts)
    forget_stale()
    rank, processes = place()
    return rank + 1, processes


def _device(settings: GenerateSettings, parts: int) -> torch.device:
    device = pick_device(settings.device)
    if parts > 1 and device.type == "cuda" and device.index is None and not settings.shard:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return device


def _names(paths: Sequence[str], root: Path) -> list[str]:
    """Where each photograph lies below `root`, without its suffix, unless two would be alike."""
    below = [Path(os.path.relpath(path, root)) for path in paths]
    if any(os.pardir in path.parts for path in below):
        raise GanscopeError(f"--from {root}: lists images elsewhere; name the folder they lie in")
    count = Counter(path.with_suffix("") for path in below)
    names: dict[str, None] = {}
    for path in below:
        name = (path.with_suffix("") if count[path.with_suffix("")] == 1 else path).as_posix()
        while name in names:
            name += "_"
        names[name] = None
    return list(names)


def _see_one(source: Source) -> None:
    """Say before anything is written that no photograph can be read."""
    error: ImageError | None = None
    for number in range(len(source)):
        try:
            source.photo(number)
            return
        except ImageError as found:
            error = found
    raise GanscopeError(f"--from {source.name}: no photograph can be read ({error})")


def _order(source: Source, settings: GenerateSettings) -> np.ndarray:
    """In which the photographs come; if one class is asked for and the source has it, its only."""
    # Not the order in which `assign_splits` goes through them: the first would all be test and val.
    order = np.random.default_rng((settings.seed, 0, 4)).permutation(len(source))
    if settings.class_ and source.classes and settings.class_ in source.classes:
        return order[[source.classes[i] == settings.class_ for i in order]]
    return order


@dataclass(frozen=True)
class _Making:
    """What one fake and its real are made from."""

    settings: GenerateSettings
    generator: AnyGenerator
    source: Source
    size: int
    splits: dict[str, str]
    """Group of photographs -> split."""
    order: np.ndarray
    """In which the photographs of the source come."""
    names: list[str]
    """Of whole photographs, without suffix."""

    def pairs(self, indexes: range) -> list[tuple[dict[str, Any], bytes]]:
        """Rows and encoded files of the fakes and reals with these numbers, in turn."""
        if self.settings.from_:
            return self._from_whole_photos(indexes)
        if isinstance(self.generator, Editor):
            return self._from_edited_crops(indexes, self.generator)
        if self.generator.from_photos:
            return self._from_crops(indexes)
        return self._from_noise(indexes)

    def _from_noise(self, indexes: range) -> list[tuple[dict[str, Any], bytes]]:
        found = []
        for index, pixels in zip(
            indexes, self.generator.make(self.settings.seed, indexes), strict=True
        ):
            fake = self._encode(_fit(pixels, self.size))
            crop, real = _matching_real(
                self.source, self.order, self.settings, index, self.size, len(fake)
            )
            further = self.generator.columns(index)
            # Fakes of one prompt stay together; every z is drawn on its own, so others may part.
            key = (index, 2) if "group" not in further else (crc32(further["group"].encode()), 3)
            draw = np.random.default_rng((self.settings.seed, *key)).random()
            split = "train" if draw < SHARES["train"] else "val"
            split = split if draw < 1 - SHARES["test"] else "test"
            found += [
                (self._fake_row(index, {"split": split} | further), fake),
                (self._real_row(index, crop), real),
            ]
        return found

    def _from_crops(self, indexes: range) -> list[tuple[dict[str, Any], bytes]]:
        crops = [
            random_crop(
                self.source,
                self.size,
                np.random.default_rng((self.settings.seed, index, 1)),
                zoom=ZOOM,
                number=int(self.order[index % len(self.order)]),
            )
            for index in indexes
        ]
        fakes = self.generator.make(self.settings.seed, indexes, [c.pixels for c in crops])
        found = []
        for index, crop, pixels in zip(indexes, crops, fakes, strict=True):
            real = self._real_row(index, crop)
            shared = {"group": real["group"], "split": real["split"]}
            fake = self._fake_row(index, self.generator.columns(index) | shared)
            found += [(fake, self._encode(pixels)), (real, self._encode(crop.pixels))]
        return found

    def _from_edited_crops(
        self, indexes: range, editor: Editor
    ) -> list[tuple[dict[str, Any], bytes]]:
        found = []
        for index in indexes:
            rng = np.random.default_rng((self.settings.seed, index, 1))
            number = int(self.order[index % len(self.order)])
            crop = editor.crop(self.size, rng, number)
            edit = editor.edit(self.settings.seed, index, crop.number, crop.pixels, crop)
            if edit is None:
                continue
            real = self._real_row(index, crop)
            fake = self._fake_row(index, {"group": real["group"], "split": real["split"]})
            _mark(fake, edit)
            found += [(fake, self._encode(edit.pixels)), (real, self._encode(crop.pixels))]
        return found

    def _from_whole_photos(self, indexes: range) -> list[tuple[dict[str, Any], bytes]]:
        found = []
        for index in indexes:
            try:
                photo = open_image(self.source.paths[index])
            except ImageError as error:
                warnings.warn(f"{error}; left out", GanscopeWarning, stacklevel=2)
                continue
            edit = None
            if isinstance(self.generator, Editor):
                edit = self.generator.edit(self.settings.seed, index, index, photo.pixels)
                if edit is None:
                    continue
                pixels = edit.pixels
            else:
                (pixels,) = self.generator.make(self.settings.seed, [index], [photo.pixels])
            format, quality = self.settings.format, self.settings.quality
            if format is None:
                format = {"JPEG": "jpeg", "WEBP": "webp"}.get(photo.format, "png")
                if format == "jpeg":
                    quality = estimate_quality(photo.quantization)
            group, name = self.source.groups[index], self.names[index] + SUFFIXES[format]
            shared = {"group": group, "split": self.splits[group]}
            fake = self._fake_row(index, self.generator.columns(index) | shared)
            fake["file_name"] = f"1_fake/{self.generator.label}/{name}"
            if edit is not None:
                _mark(fake, edit)
            real = {
                "file_name": f"0_real/{name}",
                "label": 0,
                "generator": "real",
                "source": self.source.origins[index],
                "seed": self.settings.seed,
                "index": index,
                **shared,
            }
            found += [
                (fake, encode_image(pixels, format, quality)),
                (real, encode_image(photo.pixels, format, quality)),
            ]
        return found

    def _encode(self, pixels: np.ndarray) -> bytes:
        return encode_image(pixels, self.settings.format or "png", self.settings.quality)

    def _fake_row(self, index: int, further: dict[str, Any]) -> dict[str, Any]:
        label = self.generator.label
        suffix = SUFFIXES[self.settings.format or "png"]
        return {
            "file_name": f"1_fake/{label}/{index:06d}{suffix}",
            "label": 1,
            "generator": label,
            "source": label,
            "seed": self.settings.seed,
            "index": index,
            "weights": self.generator.weights,
            **further,
        }

    def _real_row(self, index: int, crop: Crop) -> dict[str, Any]:
        group = self.source.groups[crop.number]
        return {
            "file_name": f"0_real/{index:06d}{SUFFIXES[self.settings.format or 'png']}",
            "label": 0,
            "generator": "real",
            "source": self.source.origins[crop.number],
            "group": group,
            "split": self.splits[group],
            "seed": self.settings.seed,
            "index": index,
            "photo_x": crop.x,
            "photo_y": crop.y,
            "photo_side": crop.side,
            **self._class_of(crop),
        }

    def _class_of(self, crop: Crop) -> dict[str, str]:
        """What a real shows, where the source knows and the manifest has a column for it."""
        if self.source.classes is None or "class" not in self.generator.columns(0):
            return {}
        return {"class": self.source.classes[crop.number]}


def _mark(fake: dict[str, Any], edit: Edit) -> None:
    """Enter what was changed into a fake's row: its mask lies below masks/ as it below 1_fake/."""
    below = Path(fake["file_name"]).relative_to("1_fake")
    fake |= dict(edit.columns) | {
        "mask": (Path(MASKS) / below).with_suffix(".png").as_posix(),
        MASK_BYTES: encode_mask(edit.mask),
    }


def _fit(pixels: np.ndarray, size: int | None) -> np.ndarray:
    """A square image of that size; what is not square is cut to its middle first."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    if height != width:
        top, left = (height - side) // 2, (width - side) // 2
        pixels = np.ascontiguousarray(pixels[top : top + side, left : left + side])
    if size is None or side == size:
        return pixels
    kernel = cv2.INTER_AREA if size < side else cv2.INTER_CUBIC
    return cv2.resize(pixels, (size, size), interpolation=kernel)


def _matching_real(
    source: Source,
    order: np.ndarray,
    settings: GenerateSettings,
    index: int,
    size: int,
    length: int,
) -> tuple[Crop, bytes]:
    """A crop for real number `index`, and its file: of several, the one most like the fake in
    length.

    In a compressed format the file's length tells how much texture an image has, and that would
    tell fakes from reals. PNG is stored, so one crop is enough.
    """
    format = settings.format or "png"
    tries = 1 if format == "png" else CANDIDATES
    rng = np.random.default_rng((settings.seed, index, 1))
    found = []
    for i in range(index * tries, (index + 1) * tries):
        crop = random_crop(source, size, rng, zoom=ZOOM, number=int(order[i % len(order)]))
        found.append((crop, encode_image(crop.pixels, format, settings.quality)))
    return min(found, key=lambda pair: abs(len(pair[1]) - length))
