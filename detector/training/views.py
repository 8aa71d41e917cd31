"""Training images: which are drawn, and how each is cropped and degraded.

A fake that was made from a photograph is drawn together with it, and both go through the same crop
and degradations: nothing but the generator's traces tells them apart (Rajan et al. 2024,
arXiv:2410.11835). All randomness of a draw comes from (seed, key of the draw), so neither the
number of workers nor a resume changes a pixel. Work is done on a region not much larger than the
crop that is learned from, and decoded images stay in memory, so that reading is cheap beside
learning.
"""

import math
import os
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import cv2
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ganscope.datasets.degradations import (
    blur_and_jpeg,
    estimate_quality,
    lossy_history,
    random_degradation,
    random_factor,
)
from ganscope.datasets.masks import read_mask
from ganscope.errors import GanscopeError, ImageError
from ganscope.images import OpenedImage, open_image, read_facts

LOSSLESS = frozenset(["PNG", "BMP", "TIFF", "PPM", "GIF"])
"""Containers, as Pillow names them, whose pixels carry no compression of their own."""
CACHE_BYTES = 2 * 2**30
"""Decoded images kept in memory, all workers together."""
MARGIN = 16
"""Pixels a side by which the degraded region exceeds the crop: the blocks of a compression then lie
anywhere in the crop, as they do in a crop of a file that was compressed all along."""


class Key(NamedTuple):
    """All that a view depends on, besides the seed."""

    epoch: int
    draw: int
    """Number of the draw; a fake and the photograph that it was made from share one."""
    row: int
    """Of the corpus' table."""
    learn: bool
    """True: degraded and mirrored at random; False: clean, for validation."""


def find_twins(table: pd.DataFrame) -> np.ndarray:
    """For each row (rows,) of a corpus' table the row of the photograph that it was made from, -1
    for none: the real of the same group, and the same name without its ending, that lies nearest
    in the tree of folders.
    """
    keys = list(zip(table["group"], map(_stem, table["path"]), strict=True))
    reals: dict[tuple[str, str], list[int]] = {}
    for row in np.flatnonzero((table["label"] == 0) & (table["group"] != "")):
        reals.setdefault(keys[row], []).append(int(row))
    twins = np.full(len(table), -1)
    paths = table["path"].tolist()
    for row in np.flatnonzero(table["label"] == 1):
        near: dict[int, list[int]] = {}
        for real in reals.get(keys[row], []):
            shared = os.path.commonpath([os.path.abspath(paths[r]) for r in (row, real)])
            near.setdefault(len(shared), []).append(real)
        if near and len(near[max(near)]) == 1:  # of two that are as near, which one is not known
            (twins[row],) = near[max(near)]
    return twins


def _stem(path: str) -> str:
    return Path(path).stem


def to_keys(
    rows: np.ndarray, epoch: int, learn: bool, twins: np.ndarray | None = None
) -> list[Key]:
    """A key for each drawn row (n,); a photograph after a fake that was made from it shares its
    draw.
    """
    draws = np.arange(len(rows))
    if twins is not None:
        draws[1:] -= twins[rows[:-1]] == rows[1:]
    return [Key(epoch, int(draw), int(row), learn) for draw, row in zip(draws, rows, strict=True)]


class Sampler:
    """Draws rows: both classes alike, the generators alike that worked on these photographs and
    those that did not, hard images more often.

    Each fake comes beside a real: its twin (see `find_twins`), else any. Where there are reals that
    are nobody's twin, so many fakes come without theirs that those have their turn. An image's
    hardness is a running mean of its losses beside its generator's mean. Reals are one group. Hard
    examples change the odds only within a group, so they never upset the balance.
    """

    MEMORY = 0.7
    """Share of the old value in the running mean of an image's losses."""
    MOST = 4.0
    """An image is drawn at most so many times as often as its group's average, or as rarely."""

    def __init__(
        self,
        table: pd.DataFrame,
        hard_examples: float,
        twins: np.ndarray | None = None,
        pairs: float = 0.8,
    ):
        """Twins: see `find_twins`. pairs: the share of the fakes, 0 to 1, that comes from the
        generators which worked on these photographs, where there are others too.
        """
        fake = table["label"].to_numpy() == 1
        self.twins = np.full(len(table), -1) if twins is None else twins
        self.together = len(set(self.twins[self.twins >= 0])) / max(int((~fake).sum()), 1)
        """Share of the fakes that come with their twins: that of the reals that have one."""
        names = sorted(table["generator"][fake].unique())
        number = {name: i + 1 for i, name in enumerate(names)}
        self.groups = np.where(fake, table["generator"].map(number).fillna(0), 0).astype(int)
        shares = np.full(len(names), 1 / len(names))
        paired = np.array([(self.twins[self.groups == number[n]] >= 0).mean() > 0.5 for n in names])
        if 0 < paired.sum() < len(names):
            shares[paired] = pairs / paired.sum()
            shares[~paired] = (1 - pairs) / (~paired).sum()
        self.shares = np.append(0.5, 0.5 * shares)
        self.hard_examples = hard_examples
        self.losses = np.full(len(table), np.nan)

    def weights(self) -> np.ndarray:
        """The odds (rows,) of each row to be drawn; their sum is 1."""
        odds = np.ones(len(self.groups))
        for group, share in enumerate(self.shares):
            rows = self.groups == group
            losses = self.losses[rows]
            seen = ~np.isnan(losses)
            if seen.any():
                ratio = np.where(seen, losses, losses[seen].mean()) / max(losses[seen].mean(), 1e-9)
                odds[rows] = np.clip(ratio, 1 / self.MOST, self.MOST) ** self.hard_examples
            odds[rows] *= share / odds[rows].sum()
        return odds

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """n rows, fake and real in turn, else in random order; each comes as often as its odds say,
        to within one draw, if it is not drawn as a twin.
        """
        odds, fake = self.weights(), self.groups > 0
        fakes = self._some(n // 2, np.where(fake, odds, 0), rng)
        beside = self.twins[fakes]
        alone = (beside < 0) | (rng.random(len(fakes)) >= self.together)
        others = self._some(int(alone.sum()) + n % 2, np.where(fake, 0, odds), rng)
        beside[alone] = others[: alone.sum()]
        return np.append(np.stack([fakes, beside], 1).ravel(), others[alone.sum() :])

    def _some(self, n: int, odds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """n rows in random order, each as often as its odds say, to within one draw."""
        order = np.argsort(self.groups, kind="stable")
        edges = np.cumsum(odds[order])
        places = (rng.random() + np.arange(n)) / max(n, 1) * edges[-1]
        picked = np.searchsorted(edges, places, side="right").clip(max=len(order) - 1)
        return rng.permutation(order[picked])

    def learn(self, rows: np.ndarray, losses: np.ndarray) -> None:
        """Remember the losses (n,) that the drawn rows (n,) had, in the order of drawing."""
        for row, loss in zip(rows, losses, strict=True):
            old = self.losses[row]
            first = np.isnan(old)
            self.losses[row] = loss if first else self.MEMORY * old + (1 - self.MEMORY) * loss


class Views(Dataset):
    """Crops of a corpus' images: (size, size, 3) uint8 for a `Key`.

    degrade: probability that a view to learn from is degraded. qualities: label -> JPEG qualities
    of that class' files (`jpeg_qualities`); lossless files of the other class are compressed alike.
    mix: probability that a fake to learn from is mixed with its twin (`find_twins`). recipe: as in
    `TrainDetectorSettings`; it says what degrades them.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        *,
        size: int,
        degrade: float,
        qualities: dict[int, list[int]],
        seed: int,
        mix: float = 0.0,
        twins: np.ndarray | None = None,
        recipe: str = "full",
        masks: Sequence[str] | None = None,
        cache_bytes: int = CACHE_BYTES,
    ):
        self.blurs = recipe == "cnndetect"
        self.paths = table["path"].tolist()
        self.labels = [int(label) for label in table["label"]]
        self.size, self.degrade, self.qualities, self.seed = size, degrade, qualities, seed
        self.mix = mix
        self.twins = np.full(len(table), -1) if twins is None else twins
        self.masks = masks
        self._packed: dict[int, np.ndarray] = {}
        self.cache_bytes = cache_bytes
        self._cache: dict[int, OpenedImage] = {}
        self._cached_bytes = 0

    def open(self, row: int) -> OpenedImage:
        """The decoded image; raises `ImageError` if the file cannot be read."""
        opened = self._cache.get(row)
        if opened is None:
            opened = replace(open_image(self.paths[row]), content=None)  # pixels are enough to keep
            if self._cached_bytes + opened.pixels.nbytes <= self.cache_bytes:
                self._cache[row] = opened
                self._cached_bytes += opened.pixels.nbytes
        return opened

    def mask(self, row: int, shape: tuple[int, ...]) -> np.ndarray:
        """Where an image of this shape is fake: (H, W) uint8, 0 or 255. Without a mask a fake is so
        everywhere, a photograph nowhere. Raises `ImageError` for one that does not fit.
        """
        assert self.masks is not None
        height, width = shape[:2]
        if not self.masks[row]:
            return np.full((height, width), 255 * self.labels[row], np.uint8)
        packed = self._packed.get(row)
        if packed is None:
            packed = np.packbits(read_mask(self.masks[row], shape))
            if self._cached_bytes + packed.nbytes <= self.cache_bytes:
                self._packed[row] = packed
                self._cached_bytes += packed.nbytes
        return np.unpackbits(packed, count=height * width).reshape(height, width) * np.uint8(255)

    @property
    def cached(self) -> Set[int]:
        """Rows whose images are in memory."""
        return self._cache.keys()

    def neutral(
        self, pixels: np.ndarray, format: str, row: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Pixels of image `row`, or of a part, with the other class' compression if it has none."""
        if format not in LOSSLESS:
            return pixels
        return lossy_history(pixels, self.qualities[1 - self.labels[row]], rng)

    def __getitem__(self, key: Key) -> np.ndarray:
        return self.cut(self.open(key.row), key)

    def cut(self, opened: OpenedImage, key: Key) -> np.ndarray:
        """The view of an image that has been opened."""
        # Not from the row: twins are cut and degraded alike. What only one of them goes through
        # draws from a source of its own.
        rng = np.random.default_rng((self.seed, key.epoch, key.draw, key.learn))
        own = np.random.default_rng((self.seed, *key))
        degrade = key.learn and rng.random() < self.degrade
        factor = random_factor(rng) if degrade and not self.blurs else 1.0
        region = math.ceil((self.size + MARGIN) / factor)
        top, left = random_corner(opened.pixels.shape, region, rng)
        pixels = opened.pixels[top : top + region, left : left + region]
        twin = int(self.twins[key.row])
        if key.learn and twin >= 0 and own.random() < self.mix:
            other = self.open(twin).pixels
            if other.shape == opened.pixels.shape:
                real = other[top : top + region, left : left + region]
                pixels = mix_pair(pixels, real, own) if show_the_same(pixels, real) else pixels
        pixels = self.neutral(pixels, opened.format, key.row, own)
        if degrade:
            change = blur_and_jpeg if self.blurs else random_degradation
            pixels = change(pixels, rng, factor)
        if self.masks is not None:
            mask = self.mask(key.row, opened.pixels.shape)[top : top + region, left : left + region]
            if mask.shape != pixels.shape[:2]:
                mask = cv2.resize(mask, pixels.shape[1::-1], interpolation=cv2.INTER_AREA)
            pixels = np.dstack([pixels, mask])  # from here on they go the same way
        pixels = random_crop(pad(pixels, self.size), self.size, rng)
        return pixels[:, ::-1] if key.learn and rng.random() < 0.5 else pixels

    def __getitems__(self, keys: Sequence[Key]) -> np.ndarray | ImageError:
        """A batch, for a worker process; an error is handed over whole, to be raised over there."""
        try:
            return np.stack([self[key] for key in keys])
        except ImageError as error:
            return error


class Loader:
    """Batches of views, read by `workers` processes, or by this one for 0.

    In this process, files are opened by threads; the views are cut without them, while the network
    waits: many small steps in threads hinder each other, and learning, more than they help.
    """

    def __init__(self, views: Views, workers: int):
        self.views = views
        self._order: list[list[Key]] = []
        self._processes: DataLoader | None = None
        if workers:
            views.cache_bytes //= workers
            self._processes = DataLoader(
                views,
                batch_sampler=self._order,
                num_workers=workers,
                persistent_workers=True,
                collate_fn=_as_it_is,
                worker_init_fn=_one_thread_each,
            )

    def __enter__(self) -> Self:
        self._opencv_threads = cv2.getNumThreads()
        cv2.setNumThreads(1)  # images run beside each other, each in one thread
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1)
        return self

    def __exit__(self, *_: object) -> None:
        cv2.setNumThreads(self._opencv_threads)
        self._threads.shutdown(cancel_futures=True)
        self._processes = None

    def batches(self, order: list[list[Key]]) -> Iterator[Tensor]:
        """Yield a batch (N, 3, size, size) uint8 for each list of keys; (N, 4, ...) with masks.

        Raises `GanscopeError` for a file that cannot be read.
        """
        for batch in self._read(order):
            if isinstance(batch, ImageError):
                raise GanscopeError(
                    f"{batch}; it could be read when all images were looked at: restore it, and "
                    "give the same command again"
                ) from None
            yield torch.from_numpy(batch).permute(0, 3, 1, 2)

    def _read(self, order: list[list[Key]]) -> Iterator[np.ndarray | ImageError]:
        if self._processes is not None:
            self._order[:] = order
            yield from self._processes
            return
        for keys in order:
            try:
                rows = sorted({key.row for key in keys} - self.views.cached)
                opened = dict(zip(rows, self._threads.map(self.views.open, rows), strict=True))
                yield np.stack(
                    [self.views.cut(opened.get(k.row) or self.views.open(k.row), k) for k in keys]
                )
            except ImageError as error:
                yield error


def _as_it_is(batch: Any) -> Any:
    """Instead of torch's collating: `Views.__getitems__` has made a batch already."""
    return batch


def _one_thread_each(worker: int) -> None:
    if cv2.getNumThreads() != 1:  # what was forked off threads of OpenCV hangs if it touches them
        cv2.setNumThreads(1)


def mix_pair(fake: np.ndarray, real: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A weaker fake (H, W, 3) uint8: half to all of it laid over its photograph, or its high
    frequencies on the photograph's low ones.
    """
    if rng.random() < 0.5:
        share = rng.uniform(0.5, 1.0)
        return cv2.addWeighted(fake, share, real, 1 - share, 0)
    sigma = rng.uniform(0.5, 3.0)
    low = [cv2.GaussianBlur(image, (0, 0), sigma).astype(np.int16) for image in (real, fake)]
    return np.clip(fake + low[0] - low[1], 0, 255).astype(np.uint8)


def show_the_same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two images of one size (H, W, 3) uint8 show the same scene: their small grey versions
    go together. A fake that bears a photograph's name need not be made of its pixels.
    """
    small = [
        cv2.resize(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY), (16, 16), interpolation=cv2.INTER_AREA)
        for x in (a, b)
    ]
    x, y = (one.astype(np.float64).ravel() - one.mean() for one in small)
    return bool(x @ y > 0.7 * np.sqrt((x @ x) * (y @ y)))


def random_corner(shape: tuple[int, ...], size: int, rng: np.random.Generator) -> tuple[int, int]:
    """Top and left of a random crop of `size` pixels a side in an image of this shape."""
    height, width = shape[:2]
    top = int(rng.integers(max(height - size, 0) + 1))
    return top, int(rng.integers(max(width - size, 0) + 1))


def random_crop(pixels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random crop of at most `size` pixels a side, at native resolution."""
    top, left = random_corner(pixels.shape, size, rng)
    return pixels[top : top + size, left : left + size]


def pad(pixels: np.ndarray, size: int) -> np.ndarray:
    """Reflect an image that is smaller than `size` pixels a side until it is not."""
    height, width = pixels.shape[:2]
    below, right = max(size - height, 0), max(size - width, 0)
    if not (below or right):
        return pixels
    return np.pad(pixels, ((0, below), (0, right), (0, 0)), mode="symmetric")


def jpeg_qualities(table: pd.DataFrame, most: int = 300) -> dict[int, list[int]]:
    """Label -> JPEG qualities of that class' files, for the other class' lossless ones to copy.

    Empty where the other class has no lossless files. Reads the headers of about `most` files.
    """
    qualities: dict[int, list[int]] = {0: [], 1: []}
    lossless = {0: False, 1: False}
    for label in qualities:
        paths = table["path"][table["label"] == label].tolist()
        for path in paths[:: max(len(paths) // most, 1)]:
            try:
                facts = read_facts(path)
            except ImageError:
                continue  # whoever opens it in earnest will say what is wrong with it
            lossless[label] |= facts.format in LOSSLESS
            if facts.quantization:
                quality = estimate_quality(facts.quantization)
                qualities[label].append(quality)
    return {label: qualities[label] if lossless[1 - label] else [] for label in qualities}
