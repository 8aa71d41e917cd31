"""Photographs that were changed in part, with their masks: what heatmaps are fitted to and judged
by (`locate.py`, `heatmaps.py`).

A region lies anywhere, and may reach over the picture's edge, so that nothing is known of a place
beforehand. The whole is saved as JPEG 75 to 95 afterwards: both parts live the same life.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd

from ganscope.datasets.blending import toned_like
from ganscope.datasets.corpus import open_corpus
from ganscope.datasets.degradations import jpeg
from ganscope.errors import ImageError
from ganscope.generator.borrowed.reconstruction import Reconstruction, reconstruction_generator
from ganscope.images import open_image

AREAS, SHOWN = (0.04, 0.3), (0.03, 0.35)
"""Of the picture: a region as it is drawn, and what of it must lie within."""
HELD_OUT = 4
"""One source in so many is for tests."""
LEAST = 224
"""Pixels: the shorter side of a photograph."""
MOST = 9e6
"""Pixels of a photograph that is cut at its own resolution."""
MADE = ("recon", "pipe", "jitter", "noise", "smooth", "upsample", "telea")
"""Kinds of edits that are a network's, or an algorithm's, filling of the region: through an
autoencoder and back (as it is; shrunk or enlarged before and brought back; with weights, or
latents, a little off; with smooth latents; with another way to enlarge), or from what is around."""
TAKEN = ("paste", "splice", "resample", "reencode")
"""And those that take it from a generated picture or another photograph, or save it anew."""
LEARNED = (
    *("recon", "pipe", "jitter", "paste", "noise", "recon", "pipe", "splice", "recon", "jitter"),
    *("pipe", "none", "resample", "noise"),
)
"""What the layer learns from; smooth, upsample, telea and reencode are for tests alone."""


@dataclass(frozen=True)
class Edited:
    """A picture (H, W, 3) uint8 RGB, its mask (H, W) in [0, 1], and how it was changed."""

    kind: str
    pixels: np.ndarray
    mask: np.ndarray


class Edits:
    """Draws them from a corpus of photographs and fakes, by sources (column `source`, else
    `group`) of which a quarter is for tests alone; each source as often as the root of its size.

    autoencoder: what `reconstruct:` takes. sides: the longer side of a photograph, from and to.
    """

    def __init__(
        self, corpus: str, autoencoder: str, test: bool, seed: int, sides: tuple[int, int]
    ):
        table = open_corpus(corpus).table
        source = table["source"] if "source" in table else table["group"]
        table = table.assign(source=source.where(source != "", table["file_name"]))
        table = table[[is_for_tests(name) == test for name in table["source"]]]
        self.photos, self.fakes = (table[table["label"] == label] for label in (0, 1))
        if self.photos.empty or self.fakes.empty:
            raise SystemExit(f"{corpus}: no photographs, or no fakes, of such sources")
        self.autoencoder, self.seed, self.sides = autoencoder, seed, sides
        self.rng = np.random.default_rng(seed)
        self._opened: dict[str, Reconstruction] = {}
        self._count = 0

    def draw(self, kinds: tuple[str, ...], n: int) -> Iterator[Edited]:
        """n of them, of these kinds in turn; "none" is a photograph as it is."""
        for number in range(n):
            photo, kind = self._photo(), kinds[number % len(kinds)]
            pixels, mask = photo, np.zeros(photo.shape[:2], np.float32)
            if kind != "none":
                pixels, mask = self._changed(kind, photo)
            yield Edited(kind, jpeg(pixels, int(self.rng.integers(75, 96)), self.rng), mask)

    def _one_of(self, table: pd.DataFrame) -> str:
        by_source = table.groupby("source")["path"]
        weight = by_source.size() ** 0.5
        source = self.rng.choice(weight.index, p=weight / weight.sum())
        return str(self.rng.choice(by_source.get_group(source)))

    def _photo(self) -> np.ndarray:
        rng = self.rng
        while True:
            side, native = int(rng.uniform(*self.sides)), rng.random() < 0.25
            try:
                pixels = open_image(self._one_of(self.photos)).pixels
            except ImageError:
                continue
            height, width = pixels.shape[:2]
            if min(height, width) < LEAST or (native and height * width > MOST):
                continue
            if native:
                h, w = min(height, side), min(width, side * 3 // 4 if height >= side else side)
                y, x = rng.integers(height - h + 1), rng.integers(width - w + 1)
                pixels = pixels[y : y + h, x : x + w]
            elif max(height, width) > side:
                by = side / max(height, width)
                size = [max(round(n * by), LEAST) for n in (width, height)]
                pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
            if min(pixels.shape[:2]) >= LEAST:
                return np.ascontiguousarray(pixels)

    def _changed(self, kind: str, photo: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rng = self.rng
        inside = region(photo.shape[0], photo.shape[1], rng)
        x, y, width, height = cv2.boundingRect(inside.astype(np.uint8))
        more = max(round(0.2 * max(width, height)), 24)
        cut = np.s_[max(y - more, 0) : y + height + more, max(x - more, 0) : x + width + more]
        new = self._new(kind, np.ascontiguousarray(photo[cut]), inside[cut])
        mask: np.ndarray = inside.astype(np.float32)
        if kind != "telea" and rng.random() < 0.6:
            soft = rng.uniform(2, 0.1 * inside.sum() ** 0.5 + 2.1)
            mask = cv2.GaussianBlur(mask, (0, 0), soft / 2)
        mixed = photo.astype(np.float32)
        mixed[cut] += mask[cut][..., None] * (new - mixed[cut])
        return np.rint(mixed).clip(0, 255).astype(np.uint8), mask

    def _new(self, kind: str, piece: np.ndarray, inside: np.ndarray) -> np.ndarray:
        rng = self.rng
        size = piece.shape[1::-1]
        if kind == "recon":
            return self._through("", piece)
        if kind in ("jitter", "noise"):
            share = rng.choice(("0.03", "0.06") if kind == "jitter" else ("0.05", "0.15"))
            return self._through(f"?{kind}={share}", piece)
        if kind in ("smooth", "upsample"):
            return self._through("?smooth=0.4" if kind == "smooth" else "?upsample=bicubic", piece)
        if kind == "pipe":
            by = rng.uniform(0.5, 1.0) if rng.random() < 0.7 else rng.uniform(1.0, 1.6)
            made = self._through("", _scaled(piece, by))
            kernels = (cv2.INTER_LANCZOS4, cv2.INTER_CUBIC, cv2.INTER_LINEAR)
            return cv2.resize(made, size, interpolation=int(rng.choice(kernels)))
        if kind == "telea":
            method = int(rng.choice((cv2.INPAINT_TELEA, cv2.INPAINT_NS)))
            return cv2.inpaint(piece, inside.astype(np.uint8), 5, method)
        if kind == "reencode":
            return jpeg(piece, int(rng.integers(40, 75)), rng)
        if kind == "resample":
            by = rng.uniform(0.5, 0.8) if rng.random() < 0.5 else rng.uniform(1.1, 1.6)
            return cv2.resize(_scaled(piece, by), size, interpolation=cv2.INTER_CUBIC)
        return self._taken(self.photos if kind == "splice" else self.fakes, piece, inside)

    def _through(self, options: str, piece: np.ndarray) -> np.ndarray:
        if options not in self._opened:
            self._opened[options] = reconstruction_generator(self.autoencoder + options)
        self._count += 1
        return self._opened[options].make(self.seed, [self._count], [piece])[0]

    def _taken(self, table: pd.DataFrame, piece: np.ndarray, inside: np.ndarray) -> np.ndarray:
        rng = self.rng
        while True:
            try:
                given = open_image(self._one_of(table)).pixels
            except ImageError:
                continue
            if min(given.shape[:2]) >= 64:
                break
        height, width = piece.shape[:2]
        by = max(2 ** rng.uniform(-1, 1), height / given.shape[0], width / given.shape[1])
        h, w = (
            max(min(round(n / by), m), 1)
            for n, m in zip(piece.shape[:2], given.shape[:2], strict=True)
        )
        y, x = rng.integers(given.shape[0] - h + 1), rng.integers(given.shape[1] - w + 1)
        taken = np.ascontiguousarray(given[y : y + h, x : x + w])
        kernel = cv2.INTER_AREA if by < 1 else cv2.INTER_CUBIC
        taken = cv2.resize(taken, (width, height), interpolation=kernel)
        return toned_like(taken, piece, inside) if rng.random() < 0.5 else taken


def is_for_tests(source: str) -> bool:
    return int(hashlib.sha256(source.encode()).hexdigest(), 16) % HELD_OUT == 0


def region(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """(H, W) bool: a turned ellipse or a polygon, about any point in or just outside."""
    while True:
        area = float(np.exp(rng.uniform(*np.log(AREAS)))) * height * width
        ratio = rng.uniform(0.6, 1.7)
        half = np.sqrt(area / np.pi * np.array([ratio, 1 / ratio]))
        middle = rng.uniform(-half, np.array([width, height]) + half)
        mask = np.zeros((height, width), np.uint8)
        if rng.random() < 0.5:
            turn, (x, y), (a, b) = rng.uniform(0, 180), middle, half
            cv2.ellipse(mask, (int(x), int(y)), (int(a), int(b)), turn, 0, 360, 1, -1)
        else:
            corners = int(rng.integers(5, 11))
            angles = np.arange(corners) + rng.uniform(-0.35, 0.35, corners)
            angles *= 2 * np.pi / corners
            reach = rng.uniform(0.75, 1.25, (corners, 1)) * half * 1.1
            points = middle + reach * np.stack([np.cos(angles), np.sin(angles)], 1)
            cv2.fillPoly(mask, [np.rint(points).astype(np.int32)], 1)
        if SHOWN[0] < mask.mean() < SHOWN[1]:
            return mask > 0


def _scaled(pixels: np.ndarray, by: float) -> np.ndarray:
    kernel = cv2.INTER_AREA if by < 1 else cv2.INTER_CUBIC
    size = [max(round(n * by), 16) for n in pixels.shape[1::-1]]
    return cv2.resize(pixels, size, interpolation=kernel)
