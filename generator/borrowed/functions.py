"""Functions as generators: one in a Python file of the user's, or one that a package plugs in.

A function gets whole batches with a seed each, so that number i of a seed comes out the same
whatever is asked beside it.
"""

import contextlib
import inspect
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ganscope.errors import GanscopeError, reason_of
from ganscope.folders import hash_files
from ganscope.functions import line_of, load_function
from ganscope.generator.borrowed.options import (
    as_label,
)
from ganscope.generator.model import AnyGenerator

GROUP = "ganscope.generators"
"""Entry points group in which packages offer generators."""
FUNCTION_BATCH = 16
"""Images that a Python function is asked for at a time; its fakes depend on it."""

Function = Callable[[int, int], Any]
"""(n, seed) -> n images: (n, H, W, 3) uint8 or float in [0, 1], (n, 3, H, W) float in [0, 1], or a
list of Pillow images; the same images whenever it is given the same two numbers."""


class FunctionGenerator(AnyGenerator):
    """A Python function `(n, seed) -> images` as a maker of fakes.

    Number i is row i % 16 of the function's batch i // 16, and every batch has a seed of its own.
    The first batch of seed 0 is made at once, to learn the size and to find mistakes early. Raises
    `GanscopeError` if the function raises anything or returns something else than images.
    """

    batch = FUNCTION_BATCH

    def __init__(self, name: str, label: str, function: Function, weights: str = ""):
        self.name, self.label, self.weights, self.function = name, label, weights, function
        self._made: dict[tuple[int, int], np.ndarray] = {}
        self.size: int | None = min(self._images(0, 0).shape[1:3])

    def make(
        self, seed: int, indexes: Sequence[int], photos: Sequence[np.ndarray] | None = None
    ) -> list[np.ndarray]:
        return [self._images(seed, i // FUNCTION_BATCH)[i % FUNCTION_BATCH] for i in indexes]

    def _images(self, seed: int, batch: int) -> np.ndarray:
        if (seed, batch) not in self._made:
            self._made = {(seed, batch): self._call(seed, batch)}  # only the latest is kept
        return self._made[seed, batch]

    def _call(self, seed: int, batch: int) -> np.ndarray:
        own_seed = int(np.random.SeedSequence((seed, batch)).generate_state(1)[0])
        try:
            with torch.no_grad():
                images = self.function(FUNCTION_BATCH, own_seed)
        except Exception as error:
            file = getattr(getattr(self.function, "__code__", None), "co_filename", "")
            raise GanscopeError(
                f"--generator {self.name}: it raised {reason_of(error)}{line_of(error, file)}"
            ) from error
        try:
            return _as_pixels(images, FUNCTION_BATCH)
        except ValueError as error:
            raise GanscopeError(
                f"--generator {self.name}: asked for {FUNCTION_BATCH} images, it returned {error}; "
                "return (n, H, W, 3) uint8, or float in [0, 1]"
            ) from None


def _as_pixels(images: Any, n: int) -> np.ndarray:
    """What a function returned as (n, H, W, 3) uint8; `ValueError` says what it is else."""
    if isinstance(images, list | tuple):
        rows = [np.asarray(i.convert("RGB") if hasattr(i, "convert") else i) for i in images]
        if len({r.shape for r in rows}) != 1:
            raise ValueError("images of several sizes" if rows else "none")
        images = np.stack(rows)
    if isinstance(images, Tensor):
        images = images.detach().cpu()
        images = (images.float() if images.is_floating_point() else images).numpy()
    if not isinstance(images, np.ndarray):
        raise ValueError(f"a {type(images).__name__}")
    if images.ndim == 4 and images.shape[3] != 3 and images.shape[1] == 3:
        images = images.transpose(0, 2, 3, 1)
    if images.ndim != 4 or images.shape[3] != 3 or not images.size:
        raise ValueError(f"an array of the shape {images.shape}")
    if len(images) != n:
        raise ValueError(f"{len(images)}")
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images)
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"numbers of the type {images.dtype}")
    low, high = float(images.min()), float(images.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # NaN is neither
        raise ValueError(f"floats from {low:.3g} to {high:.3g}")
    return np.rint(np.clip(images.astype(np.float32), 0, 1) * 255).astype(np.uint8)


def python_generator(spec: str) -> FunctionGenerator:
    """`FILE.py:FUNCTION`, somebody's own function; the file is run.

    Raises `GanscopeError` if there is no such file or function, or the file cannot be run.
    """
    name = f"python:{spec}"
    function, path = load_function(spec, f"--generator {name}")
    label = as_label(path.stem, spec.rpartition(":")[2])
    return FunctionGenerator(name, label, function, hash_files(path))


def entry_point_generators() -> dict[str, EntryPoint]:
    """Name -> entry point of the generators that installed packages offer."""
    return {point.name: point for point in entry_points(group=GROUP)}


def entry_point_generator(point: EntryPoint) -> FunctionGenerator:
    """A generator that an installed package offers: a function as in `python_generator`.

    Raises `GanscopeError` if it cannot be imported or is no function.
    """
    try:
        function = point.load()
    except Exception as error:
        raise GanscopeError(
            f"--generator {point.name}: {point.value} cannot be imported ({reason_of(error)}); "
            "install its package anew"
        ) from error
    if not callable(function):
        raise GanscopeError(f"--generator {point.name}: {point.value} is no function")
    weights = ""
    with contextlib.suppress(OSError, TypeError):  # compiled: no source to hash
        weights = hash_files(inspect.getsourcefile(function) or "")
    return FunctionGenerator(point.name, as_label(point.name), function, weights)
