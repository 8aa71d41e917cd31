"""How varied a generator's fakes are beside the reals: precision and recall, density and coverage,
distances of distributions, doubles and classes.

All of it depends on the features that images are compared by, so results name them.
Distances are computed pair by pair, not through a matrix product that would blur small ones.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from scipy.spatial.distance import cdist, pdist

from ganscope.config import DiversitySettings, GenerateSettings
from ganscope.datasets.corpus import open_corpus
from ganscope.devices import pick_device
from ganscope.errors import GanscopeError, ImageError
from ganscope.folders import CONFIG
from ganscope.generator.features import Extractor, open_extractor, shrink
from ganscope.generator.sampling import generate_corpus
from ganscope.images import open_image

T = TypeVar("T")

NEIGHBOURS = 5
"""k of precision, recall, density and coverage."""
FEWEST = 2 * NEIGHBOURS
"""Images a side below which nothing can be said."""
ALIKE = 1 / 3
"""Share of the reals' mean distance below which the fakes of a training are too much alike."""
MOST_ALIKE = 0.9
"""Share of the images of each side that have one size, where the others are odd ones out."""
_BLOCK = 1 << 19
"""Distances that a core holds in memory at a time."""


@dataclass(frozen=True)
class Neighbourhoods:
    """Which samples lie among the other side's; see `compare_neighbourhoods`."""

    precision: float
    recall: float
    density: float
    coverage: float


def compare_neighbourhoods(
    real: np.ndarray, fake: np.ndarray, k: int = NEIGHBOURS
) -> Neighbourhoods:
    """`precision`, `recall`, `density` and `coverage` of features real (N, D) and fake (M, D) in
    one pass.

    Raises `GanscopeError` unless both sides have more than `k` samples.
    """
    if min(len(real), len(fake)) <= k:
        raise GanscopeError(
            f"{len(real)} reals and {len(fake)} fakes: a comparison by the {k} nearest neighbours "
            f"needs at least {k + 1} of each"
        )
    real_radii, fake_radii = _nearest(real, k), _nearest(fake, k)

    def look(rows: slice, distances: np.ndarray) -> tuple[int, int, Any, Any]:
        return (
            int((distances <= real_radii).any(1).sum()),
            int((distances < real_radii).sum()),
            (distances <= fake_radii[rows, None]).any(0),
            distances.min(0),
        )

    inside, counts, reached, nearest = zip(*_by_blocks(fake, real, look), strict=True)
    return Neighbourhoods(
        precision=sum(inside) / len(fake),
        recall=float(np.any(reached, axis=0).mean()),
        density=sum(counts) / (k * len(fake)),
        coverage=float((np.min(nearest, axis=0) < real_radii).mean()),
    )


def precision(real: np.ndarray, fake: np.ndarray, k: int = NEIGHBOURS) -> float:
    """Share of the fakes that lie in the closed ball of some real out to its k-th nearest real
    (Kynkäänniemi et al. 2019, arXiv:1904.06991).
    """
    return compare_neighbourhoods(real, fake, k).precision


def recall(real: np.ndarray, fake: np.ndarray, k: int = NEIGHBOURS) -> float:
    """Share of the reals that lie in the closed ball of some fake out to its k-th nearest fake
    (Kynkäänniemi et al. 2019, arXiv:1904.06991).
    """
    return compare_neighbourhoods(real, fake, k).recall


def density(real: np.ndarray, fake: np.ndarray, k: int = NEIGHBOURS) -> float:
    """In how many reals' open balls a fake lies on average, divided by k; may exceed 1
    (Naeem et al. 2020, arXiv:2002.09797).
    """
    return compare_neighbourhoods(real, fake, k).density


def coverage(real: np.ndarray, fake: np.ndarray, k: int = NEIGHBOURS) -> float:
    """Share of the reals that have a fake in their open ball (Naeem et al. 2020,
    arXiv:2002.09797).
    """
    return compare_neighbourhoods(real, fake, k).coverage


def _nearest(features: np.ndarray, k: int) -> np.ndarray:
    """Distance of each sample (N, D) to its k-th nearest other: (N,)."""

    def look(rows: slice, distances: np.ndarray) -> np.ndarray:
        own = np.arange(rows.start, rows.start + len(distances))
        distances[own - rows.start, own] = np.inf
        return np.partition(distances, k - 1)[:, k - 1]

    return np.concatenate(_by_blocks(features, features, look))


def _by_blocks(
    left: np.ndarray, right: np.ndarray, look: Callable[[slice, np.ndarray], T]
) -> list[T]:
    """`look(rows, distances of left[rows] to right)` for all rows, in blocks, on every core."""
    height = max(1, _BLOCK // len(right))
    blocks = [slice(start, start + height) for start in range(0, len(left), height)]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(lambda rows: look(rows, cdist(left[rows], right)), blocks))


def gaussian_distance(
    mean: np.ndarray, covariance: np.ndarray, other_mean: np.ndarray, other_covariance: np.ndarray
) -> float:
    """Squared Frechet distance of two Gaussians: |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2))."""
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    # C C' and the symmetric C^(1/2) C' C^(1/2) have the same eigenvalues.
    mixed = np.linalg.eigvalsh(root @ other_covariance @ root).clip(0)
    shift = np.square(mean - other_mean).sum()
    return float(shift + np.trace(covariance + other_covariance) - 2 * np.sqrt(mixed).sum())


def frechet_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """Frechet distance of Gaussians fitted to features (N, D) and (M, D): the FID, if the features
    are Inception's (Heusel et al. 2017, arXiv:1706.08500).

    It is too high for small N and M, the more the fewer: compare at equal numbers only.
    """
    sides = [(f.mean(0), np.atleast_2d(np.cov(f, rowvar=False))) for f in (real, fake)]
    return max(0.0, gaussian_distance(*sides[0], *sides[1]))


def kernel_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """Unbiased squared MMD of features (N, D) and (M, D) under the kernel (x.y / D + 1)^3: the KID,
    if the features are Inception's (Binkowski et al. 2018, arXiv:1801.01401).

    Of all images at once, not of random subsets; 0 on average for equal distributions, so it can be
    below 0.
    """
    n, m = len(real), len(fake)
    within_real = (_kernel_sum(real, real) - _kernel(real, real).sum()) / (n * (n - 1))
    within_fake = (_kernel_sum(fake, fake) - _kernel(fake, fake).sum()) / (m * (m - 1))
    return float(within_real + within_fake - 2 * _kernel_sum(real, fake) / (n * m))


def _kernel(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return (np.einsum("nd,nd->n", left, right) / left.shape[1] + 1) ** 3


def _kernel_sum(left: np.ndarray, right: np.ndarray) -> float:
    height = max(1, _BLOCK // len(right))
    parts = (left[start : start + height] for start in range(0, len(left), height))
    return sum(float(((p @ right.T / left.shape[1] + 1) ** 3).sum()) for p in parts)


def duplicate_share(real: np.ndarray, fake: np.ndarray) -> float:
    """Share of the fakes whose nearest other fake is no farther than 1 % of the reals have their
    nearest other real; 0.01 is to be expected, at equal numbers.
    """
    return float((_nearest(fake, 1) <= np.percentile(_nearest(real, 1), 1)).mean())


def entropy(counts: Sequence[int]) -> float:
    """Entropy of a histogram in bits; log2 of the number of classes if all are equally many."""
    shares = np.array([c for c in counts if c]) / sum(counts)
    return float(max(0.0, -(shares * np.log2(shares)).sum()))


@dataclass(frozen=True)
class Measures:
    """One generator's fakes beside the reals."""

    generator: str
    n: int
    """Images that were compared, of each side."""
    frechet: float
    """Frechet distance; the FID if the features are Inception's."""
    kernel: float
    """Kernel distance; the KID if the features are Inception's."""
    precision: float
    recall: float
    density: float
    coverage: float
    duplicates: float
    """See `duplicate_share`."""
    classes: dict[str, int] = field(default_factory=dict)
    """Fakes of each class, if the corpus has a column `class`; all of them are counted."""
    class_entropy: float | None = None
    """Bits."""


@dataclass(frozen=True)
class Diversity:
    """What a corpus' fakes were measured by, and each generator's figures."""

    features: str
    """Name of the features: all figures depend on them."""
    dimensions: int
    """Numbers that an image is compared by."""
    generators: list[Measures]
    real_classes: dict[str, int] = field(default_factory=dict)
    unreadable: int = 0
    remarks: list[str] = field(default_factory=list)
    """What a reader of the figures should know."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


Report = Callable[[int, int], None]


def measure_diversity(settings: DiversitySettings, report: Report | None = None) -> Diversity:
    """Measure a corpus' fakes, one generator at a time, beside its reals; or a generator, which
    makes `n` fakes for it.

    `report` is called with the number of images looked at so far and of all. Raises
    `GanscopeError` if there is no such corpus or generator, too few images of a side to say
    anything, or no features.
    """
    extractor = open_extractor(settings.features, settings.weights, pick_device(settings.device))
    if is_corpus(settings.what):
        return _measure_corpus(settings, settings.what, extractor, report)
    with tempfile.TemporaryDirectory() as folder:
        made = generate_corpus(
            GenerateSettings(
                generator=settings.what,
                n=settings.n,
                real=settings.real,
                seed=settings.seed,
                device=settings.device,
                out=Path(folder) / "corpus",
            )
        )
        return _measure_corpus(settings, made, extractor, report)


def is_corpus(what: str) -> bool:
    """Whether a user's words name files to be measured, not a generator."""
    path = Path(what)
    return path.suffix.lower() == ".csv" or (path.is_dir() and not (path / CONFIG).is_file())


def _measure_corpus(
    settings: DiversitySettings, corpus: str | Path, extractor: Extractor, report: Report | None
) -> Diversity:
    table = open_corpus(corpus).table.sort_values("file_name")
    names = sorted(set(table["generator"]) - {"real"})
    rows = {name: table[table["generator"] == name] for name in ["real", *names]}
    if not names or not len(rows["real"]):
        raise GanscopeError(f"{corpus}: needs both reals and fakes to compare them")
    found = measure_paths(
        rows["real"]["path"].tolist(),
        {name: rows[name]["path"].tolist() for name in names},
        extractor,
        n=settings.n,
        seed=settings.seed,
        report=report,
    )
    histograms = {name: _histogram(part) for name, part in rows.items()}
    measured = []
    for one in found.generators:
        classes = histograms[one.generator]
        spread = entropy(list(classes.values())) if classes else None
        measured.append(replace(one, classes=classes, class_entropy=spread))
    return replace(found, generators=measured, real_classes=histograms["real"])


def measure_paths(
    reals: Sequence[str],
    fakes: Sequence[str] | dict[str, Sequence[str]],
    extractor: Extractor,
    n: int = 2000,
    seed: int = 0,
    report: Report | None = None,
) -> Diversity:
    """Measure image files beside others: `fakes` of one generator, or a list for each.

    At most `n` of each side are drawn by `seed`, and as many reals as fakes are compared.
    """
    if not isinstance(fakes, dict):
        fakes = {"fake": fakes}
    sides = {"real": _draw(reals, n, seed)} | {k: _draw(v, n, seed) for k, v in fakes.items()}
    total = sum(map(len, sides.values()))
    done = unreadable = 0
    sizes: dict[str, Counter[tuple[int, ...]]] = {name: Counter() for name in sides}

    def read(name: str) -> Iterator[np.ndarray]:
        nonlocal done, unreadable
        for path in sides[name]:
            try:
                pixels = open_image(path).pixels
            except ImageError:
                unreadable += 1
            else:
                sizes[name][pixels.shape[:2]] += 1
                yield pixels
            done += 1
            if report:
                report(done, total)

    features = {name: extractor(read(name)) for name in sides}
    fewest = min(features, key=lambda name: len(features[name]))
    if len(features[fewest]) < FEWEST:
        raise GanscopeError(
            f"{len(features[fewest])} readable images of {fewest!r}; "
            f"measuring diversity needs at least {FEWEST} of each side"
        )
    measured = [_measure(name, features["real"], features[name]) for name in fakes]
    dimensions = features["real"].shape[1]
    remarks = []
    if min(one.n for one in measured) <= dimensions:
        remarks.append(
            f"no more images than features ({dimensions:,}): the Frechet distance is far too high; "
            "compare it at the same n only, or read the kernel distance"
        )
    remarks += _remark_on_sizes(sizes)
    if extractor.name.startswith("pixels"):
        remarks.append("shrunk pixels know layout and colour only; a network's features know more")
    return Diversity(extractor.name, dimensions, measured, unreadable=unreadable, remarks=remarks)


def _remark_on_sizes(sizes: dict[str, Counter[tuple[int, ...]]]) -> Iterator[str]:
    """What to remark on sizes, by how many images have each: a few odd ones do not make them
    differ.
    """
    (usual, most) = sum(sizes.values(), Counter()).most_common(1)[0]
    looked = sum(counts.total() for counts in sizes.values())
    alone = max(counts.total() - counts[usual] for counts in sizes.values())
    if most == looked or all(counts == sizes["real"] for counts in sizes.values()):
        return
    if all(counts[usual] >= MOST_ALIKE * counts.total() for counts in sizes.values()):
        height, width = usual
        odd = f"{looked - most:,} of {looked:,} images are not of {width}x{height} pixels"
        yield f"{odd} as the others, at most {alone:,} of a side; the features see that, too"
    else:
        yield "reals and fakes differ in size; the features see that, too"


def _draw(paths: Sequence[str], n: int, seed: int) -> list[str]:
    order = np.random.default_rng(seed).permutation(len(paths))
    return [paths[i] for i in order[:n]]


def _measure(name: str, real: np.ndarray, fake: np.ndarray) -> Measures:
    n = min(len(real), len(fake))
    real, fake = real[:n], fake[:n]
    return Measures(
        generator=name,
        n=n,
        frechet=frechet_distance(real, fake),
        kernel=kernel_distance(real, fake),
        **vars(compare_neighbourhoods(real, fake)),
        duplicates=duplicate_share(real, fake),
    )


def _histogram(rows: pd.DataFrame) -> dict[str, int]:
    """Images of each class, in the classes' order; nothing if the corpus names none."""
    if "class" not in rows:
        return {}
    named = rows["class"].dropna().astype(str)
    return dict(sorted(Counter(named[named != ""]).items()))


def diversity_warning(fakes: np.ndarray, reals: np.ndarray) -> str | None:
    """A line if fakes (N, H, W, 3) uint8 are much more alike than reals (M, H, W, 3), else None.

    Cheap enough for every sample grid of a training: mean distance of two images, shrunk to 8x8.
    """
    if min(len(fakes), len(reals)) < 2:
        return None
    apart, usual = (float(pdist(shrink(i).reshape(len(i), -1)).mean()) for i in (fakes, reals))
    if apart >= ALIKE * usual:
        return None
    return (
        f"the fakes are only {apart / usual:.0%} as far apart as the photographs: "
        "the generator may be collapsing to few images"
    )
