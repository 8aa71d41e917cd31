"""Traces that the eye misses: the mean spectrum of what is fine in images, a panel a generator.

Upsampling leaves a lattice of bright points, too little or too much at high frequencies: what a
detector may learn, made visible.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ganscope.config import SpectraSettings, next_free, replacing
from ganscope.datasets.copies import name_some
from ganscope.datasets.corpus import open_corpora
from ganscope.datasets.writing import disk_errors
from ganscope.errors import GanscopeError, GanscopeWarning, ImageError
from ganscope.images import open_image
from ganscope.locks import PATIENCE, holding_file

LARGEST = 256
"""Side in pixels of the squares that are compared, at most."""
SMALLEST = 8


def draw_spectra(
    settings: SpectraSettings, report: Callable[[int, int], None] | None = None
) -> Path:
    """Draw the mean spectra of a corpus' reals and of each generator's fakes; returns the file.

    All are of squares of one size, the largest that is in each image, but for those that are less
    than half as large as most of their generator's or too small for a spectrum: these are left out,
    as are those that cannot be read, and counted in a warning. `report` is called with the number
    of images looked at so far and of all. Raises `GanscopeError` if there is no corpus or no image
    is left.
    """
    table = open_corpora(settings.corpora).table
    rng = np.random.default_rng(settings.seed)
    names = sorted(set(table["generator"]), key=lambda name: (name != "real", name))
    images: dict[str, list[np.ndarray]] = {}
    drawn = {
        name: rng.permutation(table.loc[table["generator"] == name, "path"].to_numpy())[
            : settings.n
        ]
        for name in names
    }
    done, total = 0, sum(map(len, drawn.values()))
    unreadable: list[str] = []
    small: list[str] = []
    for name, paths in drawn.items():
        found: dict[str, np.ndarray] = {}
        for path in paths:
            try:
                found[path] = _middle(open_image(path).pixels)
            except ImageError as error:
                unreadable.append(str(error))
            done += 1
            if report:
                report(done, total)
        sides = {path: image.shape[0] for path, image in found.items()}
        fewest = max(SMALLEST, float(np.median(list(sides.values()) or [0])) / 2)
        small += [f"{path} ({side} pixels)" for path, side in sides.items() if side < fewest]
        images[name] = [image for path, image in found.items() if sides[path] >= fewest]
    _tell(unreadable, small, [name for name, kept in images.items() if not kept], total)
    images = {name: kept for name, kept in images.items() if kept}
    if not images:
        what = "large enough" if small else "readable"
        raise GanscopeError(
            f"{settings.corpora[0]}: no image is {what}, for example {[*small, *unreadable][0]}; "
            f"spectra need {SMALLEST} pixels a side"
        )
    smallest = {name: min(len(image) for image in kept) for name, kept in images.items()}
    size = min(smallest.values())
    if size < max(smallest.values()):
        warnings.warn(
            f"all spectra are of the middle {size} pixels a side, as images of "
            f"{min(smallest, key=smallest.__getitem__)} are no larger",
            GanscopeWarning,
            stacklevel=2,
        )
    spectra = {
        name: mean_spectrum(np.stack([_cut(i, size) for i in kept]))
        for name, kept in images.items()
    }
    counts = {name: len(kept) for name, kept in images.items()}
    told = settings.out
    with holding_file(told or Path("spectra.png"), 0.0 if told else PATIENCE):
        out = told or next_free(
            Path("spectra"), lambda p: p.with_suffix(".png").exists()
        ).with_suffix(".png")
        _draw(out, spectra, counts)
    return out


def _tell(unreadable: list[str], small: list[str], lost: list[str], total: int) -> None:
    """Warn of what is left out."""
    for what, which in (
        ("cannot be read", unreadable),
        ("are too small, or less than half as large as most", small),
    ):
        if which:
            warnings.warn(
                f"left out: {len(which):,} of {total:,} images {what}: {name_some(which)}",
                GanscopeWarning,
                stacklevel=3,
            )
    if lost:
        warnings.warn(
            f"no image of {name_some(lost)} is left: there is no such panel",
            GanscopeWarning,
            stacklevel=3,
        )


def mean_spectrum(images: np.ndarray) -> np.ndarray:
    """Images (N, S, S) uint8 -> mean power (S, S) of their fine detail, the frequency 0 in the
    middle.

    Fine detail is what a 3x3 median takes away (Wang et al. 2020, arXiv:1912.11035).
    """
    total = np.zeros(images.shape[1:])
    for image in images:
        detail = image.astype(np.float64) - cv2.medianBlur(image, 3)
        total += np.abs(np.fft.fft2(detail - detail.mean())) ** 2
    return np.fft.fftshift(total) / len(images) / images[0].size


def radial_profile(spectrum: np.ndarray) -> np.ndarray:
    """Mean power (S / 2 + 1,) at 0, 1, ..., S / 2 waves a picture, in all directions."""
    size = len(spectrum)
    y, x = np.indices(spectrum.shape) - size // 2
    radius = np.rint(np.hypot(x, y)).astype(int).ravel()
    sums = np.bincount(radius, spectrum.ravel()) / np.maximum(np.bincount(radius), 1)
    return sums[: size // 2 + 1]


def _middle(pixels: np.ndarray) -> np.ndarray:
    """The middle of a photograph, grey: native pixels, for resizing would change the spectrum."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return _cut(grey, min(*grey.shape, LARGEST) // 2 * 2)


def _cut(image: np.ndarray, size: int) -> np.ndarray:
    top, left = ((side - size) // 2 for side in image.shape)
    return np.ascontiguousarray(image[top : top + size, left : left + size])


def _draw(out: Path, spectra: dict[str, np.ndarray], counts: dict[str, int]) -> None:
    from matplotlib.figure import Figure

    columns = min(len(spectra), 4)
    rows = -(-len(spectra) // columns)
    figure = Figure(figsize=(2.6 * columns + 0.6, 2.7 * rows + 2.8), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[2.7 * rows, 2.8])
    above, below = parts
    logs = {name: np.log10(s + 1e-6) for name, s in spectra.items()}
    every = np.concatenate([s.ravel() for s in logs.values()])
    low, high = np.percentile(every, [2, 99.8])
    panels = above.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, spectrum) in zip(panels, logs.items(), strict=False):
        axes.imshow(spectrum, cmap="magma", vmin=low, vmax=high, interpolation="nearest")
        axes.set_title(f"{name} ({counts[name]:,})", fontsize=10)
    for axes in panels:
        axes.axis("off")
    axes = below.subplots()
    for name, spectrum in spectra.items():
        profile = radial_profile(spectrum)
        style = {"color": "black", "linewidth": 2} if name == "real" else {"linewidth": 1.3}
        axes.semilogy(np.linspace(0, 0.5, len(profile))[1:], profile[1:], label=name, **style)
    axes.set(xlabel="waves a pixel", ylabel="power", title="mean of all directions")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as part:
            figure.savefig(part, dpi=110, format="png")
