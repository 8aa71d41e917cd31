"""Writing labelled corpora: a fake and a real at a time, alike in everything but their origin.

Every core computes, cuts, encodes and writes batches of its own: a network spread over all cores
would have to wait, layer by layer, for those that are busy with a file. Memory does not grow with
the number of fakes.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

import ganscope
from ganscope.config import GenerateSettings, next_free, plain
from ganscope.datasets.corpus import MANIFEST
from ganscope.datasets.sources import Crop, Source, open_source, random_crop
from ganscope.datasets.splits import assign_splits
from ganscope.datasets.writing import SUFFIXES, CorpusWriter, encode_image
from ganscope.devices import one_thread, pick_device
from ganscope.generator.model import Generator, latent, load_generator

SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}
ZOOM = 4.0
"""Reals are crops of 1 to ZOOM times the size, shrunk to it: what generators are trained on."""
CANDIDATES = 8
"""Crops that a compressed real is chosen from."""
AHEAD = 2
"""Batches that may wait for each core."""


def generate_corpus(
    settings: GenerateSettings, report: Callable[[int], None] | None = None
) -> Path:
    """Write `n` fakes and as many reals with a manifest; returns the corpus' folder.

    An unfinished corpus of the same request is continued. Number i of a seed is the same image
    whatever `n` is. `report` is called with the number of fakes written so far.

    Raises `GanscopeError` for an unknown generator or source, a folder that is not free, a full
    disk.
    """
    device = pick_device(settings.device)
    generator = load_generator(settings.generator).to(device)
    source = open_source(settings.real)
    size = settings.size or generator.size
    random_crop(
        source, size, np.random.default_rng(0)
    )  # photographs too small: say so before writing
    out = settings.out or next_free(Path("corpus"), lambda p: (p / MANIFEST).exists())
    request = plain(settings) | {
        "out": None,
        "device": device.type,  # the last bits of a fake depend on it
        "size": size,
        "weights": generator.weights,
        "ganscope": ganscope.__version__,
    }
    writer = CorpusWriter(out, request)
    splits = assign_splits(sorted(set(source.groups)), SHARES, settings.seed)
    label = label_of(generator)
    order = np.random.default_rng(settings.seed).permutation(len(source))

    def make(start: int) -> list[dict[str, Any]]:
        rows = []
        for index, pixels in enumerate(
            generator.pixels(_latents(generator, settings, start)), start
        ):
            fake = encode_image(_fit(pixels, size), settings.format, settings.quality)
            crop, real = _matching_real(source, order, settings, index, size, len(fake))
            suffix = SUFFIXES[settings.format]
            rows += [
                _fake_row(f"1_fake/{label}/{index:06d}{suffix}", label, generator, settings, index),
                _real_row(f"0_real/{index:06d}{suffix}", crop, source, settings, index, splits),
            ]
            writer.write_image(rows[-2]["file_name"], fake)
            writer.write_image(rows[-1]["file_name"], real)
        return rows

    waiting: deque[Future[list[dict[str, Any]]]] = deque()

    def enter(limit: int) -> None:
        while len(waiting) > limit:
            writer.add_rows(waiting.popleft().result())
            if report:
                report(writer.rows // 2)

    cores = torch.get_num_threads()
    with one_thread(), ThreadPoolExecutor(cores) as pool:
        try:
            for start in range(writer.rows // 2, settings.n, generator.batch):
                waiting.append(pool.submit(make, start))
                enter(cores * AHEAD)
            enter(0)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return writer.finish()


def _latents(generator: Generator, settings: GenerateSettings, start: int) -> np.ndarray:
    numbers = range(start, min(start + generator.batch, settings.n))
    return np.stack([latent(settings.seed, i, generator.latent_dim) for i in numbers])


def make_fake(generator: Generator, seed: int, index: int, size: int | None = None) -> np.ndarray:
    """Make one fake again from its manifest row: (size, size, 3) uint8 RGB, the same pixels."""
    z = latent(seed, index, generator.latent_dim)[None]
    return _fit(generator.pixels(z)[0], size or generator.size)


def _fit(pixels: np.ndarray, size: int) -> np.ndarray:
    if pixels.shape[0] == size:
        return pixels
    shrink = size < pixels.shape[0]
    return cv2.resize(
        pixels, (size, size), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC
    )


def label_of(generator: Generator) -> str:
    """The generator's name as a corpus calls it: a folder's own name, or owner--name of a hub
    id.
    """
    if Path(generator.name).is_dir():
        return Path(generator.name).resolve().name
    return generator.name.replace("/", "--")


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
    tries = 1 if settings.format == "png" else CANDIDATES
    rng = np.random.default_rng((settings.seed, index, 1))
    found = []
    for i in range(index * tries, (index + 1) * tries):
        crop = random_crop(source, size, rng, zoom=ZOOM, number=int(order[i % len(order)]))
        found.append((crop, encode_image(crop.pixels, settings.format, settings.quality)))
    return min(found, key=lambda pair: abs(len(pair[1]) - length))


def _fake_row(
    file_name: str, label: str, generator: Generator, settings: GenerateSettings, index: int
) -> dict[str, Any]:
    # Every z is drawn on its own, so fakes may be split one by one.
    draw = np.random.default_rng((settings.seed, index, 2)).random()
    split = "train" if draw < SHARES["train"] else "val" if draw < 1 - SHARES["test"] else "test"
    return {
        "file_name": file_name,
        "label": 1,
        "generator": label,
        "source": label,
        "split": split,
        "seed": settings.seed,
        "index": index,
        "weights": generator.weights,
    }


def _real_row(
    file_name: str,
    crop: Crop,
    source: Source,
    settings: GenerateSettings,
    index: int,
    splits: dict[str, str],
) -> dict[str, Any]:
    group = source.groups[crop.number]
    return {
        "file_name": file_name,
        "label": 0,
        "generator": "real",
        "source": source.name,
        "group": group,
        "split": splits[group],
        "seed": settings.seed,
        "index": index,
        "photo_x": crop.x,
        "photo_y": crop.y,
        "photo_side": crop.side,
    }
