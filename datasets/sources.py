"""Where real photographs come from: the embedded default, a folder, torchvision or the Hugging Face
hub.

A `Source` is a numbered row of photographs; crops of them are the reals of a corpus and the food of
a generator's training. Both use `random_crop`, so that a generator learns from the same kind of
crops that its fakes are later put beside.
"""

import itertools
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

import cv2
import numpy as np

from ganscope.datasets.corpus import is_unfinished, open_corpus
from ganscope.datasets.layouts import MANIFEST, holds_both
from ganscope.errors import GanscopeError, GanscopeWarning, ImageError, reason_of
from ganscope.images import open_image
from ganscope.inputs import find_images
from ganscope.registry import Registry, unknown

ZOOM = 4.0
"""Reals are crops of 1 to ZOOM times the size, shrunk to it: what generators are trained on."""
NAMED = 3
"""Photographs that are named of those that cannot be used; the others are counted."""
CACHE_BYTES = 1 << 30
"""Decoded photographs are kept in memory up to this many bytes for each source."""


class Source:
    """Photographs by number, decoded on demand and cached up to `CACHE_BYTES`.

    `read(i)` gives the (H, W, 3) uint8 RGB pixels of number i, `groups[i]` the name of the scene
    that it shows; photographs of the same group never end up in different splits. `classes[i]` is
    the name of what it shows, `paths[i]` its file, where the source knows. `origins[i]` is the
    source that a corpus names for it, else this one's name.
    """

    def __init__(
        self,
        name: str,
        groups: Sequence[str],
        read: Callable[[int], np.ndarray],
        classes: Sequence[str] | None = None,
        paths: Sequence[str] = (),
        origins: Sequence[str] = (),
    ):
        if not len(groups):
            raise GanscopeError(f"{name}: no images found; name a folder with photographs")
        self.name, self.groups, self.classes, self.paths = name, groups, classes, paths
        self.origins = origins or [name] * len(groups)
        self.unusable: dict[int, str] = {}
        """Numbers that turned out unreadable or too small, with the reason."""
        self._read = read
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self._cached_bytes = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.groups)

    def tell_unusable(self) -> None:
        """Warn of the photographs that were come to and could not be used."""
        if self.unusable:
            some = [f"{self.groups[i]} ({why})" for i, why in sorted(self.unusable.items())[:NAMED]]
            warnings.warn(
                f"{self.name}: left out: {len(self.unusable):,} of {len(self):,} photographs: "
                f"{', '.join(some)}{', ...' if len(self.unusable) > NAMED else ''}",
                GanscopeWarning,
                stacklevel=3,
            )

    def part(self, numbers: Sequence[int]) -> "Source":
        """Some of its photographs, as a source of the same name."""
        chosen = list(numbers)
        return Source(
            self.name,
            [self.groups[i] for i in chosen],
            lambda i: self._read(chosen[i]),
            None if self.classes is None else [self.classes[i] for i in chosen],
            [self.paths[i] for i in chosen] if self.paths else (),
            [self.origins[i] for i in chosen],
        )

    def photo(self, number: int) -> np.ndarray:
        """The (H, W, 3) uint8 RGB pixels of one photograph; raises `ImageError` if it is
        damaged.
        """
        with self._lock:  # several threads cut crops of one source
            if number in self._cache:
                self._cache.move_to_end(number)
                return self._cache[number]
        pixels = self._read(number)
        with self._lock:
            if number not in self._cache:
                self._cache[number] = pixels
                self._cached_bytes += pixels.nbytes
            while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
                self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return pixels


@dataclass(frozen=True)
class Crop:
    """A square piece of a photograph: where it was taken, and its pixels (size, size, 3) uint8."""

    number: int
    x: int
    y: int
    side: int
    pixels: np.ndarray


def random_crop(
    source: Source,
    size: int,
    rng: np.random.Generator,
    zoom: float = 1.0,
    number: int | None = None,
) -> Crop:
    """Cut a random square of 1 to `zoom` times `size` pixels and shrink it to `size`.

    Photograph `number` is used if it is fit (readable, at least `size` wide and high), else another
    one drawn by `rng`. The side is drawn log-uniformly. Raises `GanscopeError` if no photograph is
    fit.
    """
    tries = itertools.chain(
        [] if number is None else [number],
        (int(rng.integers(len(source))) for _ in range(20)),
        _shuffled(len(source), rng),  # few are fit: look at each
    )
    for number in tries:
        if number in source.unusable:
            continue
        try:
            photo = source.photo(number)
        except ImageError as error:
            source.unusable[number] = error.reason
            continue
        shortest = min(photo.shape[:2])
        if shortest < size:
            source.unusable[number] = (
                f"{photo.shape[1]}x{photo.shape[0]} is smaller than {size} pixels"
            )
            continue
        side = min(round(size * float(zoom ** rng.random())), shortest)
        x = int(rng.integers(photo.shape[1] - side + 1))
        y = int(rng.integers(photo.shape[0] - side + 1))
        pixels = photo[y : y + side, x : x + side]
        if side != size:
            pixels = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)
        return Crop(number, x, y, side, np.ascontiguousarray(pixels))
    example = next(iter(source.unusable.values()))
    raise GanscopeError(
        f"{source.name}: no photograph of at least {size}x{size} pixels could be read "
        f"(for example: {example}); use a smaller --size or other photographs"
    )


def _shuffled(n: int, rng: np.random.Generator) -> Iterator[int]:
    """0 to n - 1 in a random order, drawn only if it is come to."""
    yield from rng.permutation(n).tolist()


def open_source(name: str) -> Source:
    """The source that `--real NAME` means: a registered name, hf:owner/name, or a folder.

    A folder that is a labelled corpus gives its reals only. Raises `GanscopeError` if there is no
    such source or its data cannot be had.
    """
    if name in sources:
        if os.path.isdir(name):
            warnings.warn(
                f"--real {name}: taken is the source of that name, not the folder; for that write "
                f"{os.path.join(os.curdir, name)}",
                GanscopeWarning,
                stacklevel=2,
            )
        return sources[name](name)
    if name.startswith("hf:"):
        return _hugging_face(name)
    if os.path.isdir(name):
        return open_folder(name)
    if os.path.exists(name) and not name.lower().endswith(".csv"):
        raise GanscopeError(f"--real {name}: is a file; name a folder of photographs")
    if os.path.exists(name):
        return open_folder(name)
    if "/" in name:
        raise GanscopeError(f"--real {name}: no such folder")
    raise GanscopeError(
        unknown("source of reals", name, sorted(sources)) + "; or a folder, or hf:owner/name"
    )


sources: Registry[Callable[[str], Source]] = Registry("source of reals")


@sources.register("photographs")
def _photographs(name: str) -> Source:
    """The photographs that scikit-learn and scikit-image carry in their wheels (no download)."""
    found: dict[str, Path] = {}
    for package, (below, files) in _PHOTOGRAPHS.items():
        spec = find_spec(package)  # importing scikit-learn would take a second
        folder = Path(str(spec and spec.origin)).parent / below
        found |= {Path(f).stem: folder / f for f in files if (folder / f).is_file()}
    # The two views of the motorcycle are one scene.
    groups = [stem.removesuffix("_left").removesuffix("_right") for stem in found]
    paths = list(found.values())
    return Source(name, groups, lambda i: open_image(paths[i]).pixels)


@sources.register("digits")
def _digits(name: str) -> Source:
    """scikit-learn's 1797 handwritten digits, 8x8 pixels, labelled (no download)."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = (images.reshape(-1, 8, 8, 1) * (255 / 16)).round().astype(np.uint8).repeat(3, axis=3)
    groups = [f"{name}/{i}" for i in range(len(pixels))]
    return Source(name, groups, lambda i: pixels[i], [str(label) for label in labels])


_PHOTOGRAPHS = {
    "sklearn": ("datasets/images", ["china.jpg", "flower.jpg"]),
    "skimage": (
        "data",
        [
            "astronaut.png",
            "brick.png",
            "camera.png",
            "chelsea.png",
            "coffee.png",
            "coins.png",
            "grass.png",
            "gravel.png",
            "hubble_deep_field.jpg",
            "moon.png",
            "motorcycle_left.png",
            "motorcycle_right.png",
            "rocket.jpg",
        ],
    ),
}


def open_folder(name: str | Path) -> Source:
    """The photographs of a folder, or the reals of a labelled corpus.

    Where no source is told, it is the folder's own name, not the path that leads there.
    """
    root, name = Path(name), str(name)
    own = root.resolve().stem if root.suffix.lower() == ".csv" else root.resolve().name
    if root.suffix.lower() == ".csv" or _is_corpus(root):
        table = open_corpus(root).table
        table = table[table["label"] == 0]
        paths = table["path"].tolist()
        groups = [g or p for g, p in zip(table["group"], paths, strict=True)]
        classes, origins = None, [origin or own for origin in table["source"]]
    else:
        paths = list(find_images(name))
        groups = [os.path.relpath(p, name) for p in paths]
        classes, origins = _subfolders(paths, root), [own] * len(paths)
    return Source(name, groups, lambda i: open_image(paths[i]).pixels, classes, paths, origins)


def _subfolders(paths: list[str], root: Path) -> list[str] | None:
    """The folder below `root` that each image lies in, if every image lies in one: its class."""
    below = [Path(os.path.relpath(p, root)).parts for p in paths]
    if any(len(parts) < 2 or parts[0] == os.pardir for parts in below):
        return None
    return [parts[0] for parts in below]


def _is_corpus(root: Path) -> bool:
    """Whether a folder is labelled, so that a part of it is fake: both classes stand side by
    side.
    """
    if is_unfinished(root):
        return True
    if (root / MANIFEST).is_file():  # others name a table so, too
        with open(root / MANIFEST, encoding="utf-8", errors="replace") as file:
            return {"file_name", "label"} <= set(file.readline().strip().split(","))
    return holds_both(root)


def data_folder() -> Path:
    """Where downloaded data sets are kept: $GANSCOPE_DATA, or ~/.cache/ganscope."""
    return Path(os.environ.get("GANSCOPE_DATA") or Path.home() / ".cache" / "ganscope")


_TORCHVISION: dict[str, tuple[str, dict[str, Any]]] = {
    "caltech101": ("Caltech101", {}),
    "celeba": ("CelebA", {"split": "train"}),
    "cifar10": ("CIFAR10", {"train": True}),
    "cifar100": ("CIFAR100", {"train": True}),
    "dtd": ("DTD", {"split": "train"}),
    "eurosat": ("EuroSAT", {}),
    "fashion_mnist": ("FashionMNIST", {"train": True}),
    "fgvc_aircraft": ("FGVCAircraft", {"split": "trainval"}),
    "flowers102": ("Flowers102", {"split": "test"}),  # its largest part
    "food101": ("Food101", {"split": "train"}),
    "lfw_people": ("LFWPeople", {"split": "train"}),
    "mnist": ("MNIST", {"train": True}),
    "oxford_pets": ("OxfordIIITPet", {"split": "trainval"}),
    "stl10": ("STL10", {"split": "unlabeled"}),
    "svhn": ("SVHN", {"split": "train"}),
}


def _torchvision(name: str) -> Source:
    """A torchvision data set, downloaded into `data_folder` on first use."""
    import torchvision.datasets

    class_name, arguments = _TORCHVISION[name]
    build, root = getattr(torchvision.datasets, class_name), data_folder() / name
    try:
        try:
            images = build(root, download=False, **arguments)
        except RuntimeError:  # torchvision's way of saying that it is not there yet
            root.mkdir(parents=True, exist_ok=True)
            images = build(root, download=True, **arguments)
    except Exception as error:  # any of urllib's, tarfile's, gdown's, torchvision's own
        reason = reason_of(error)
        raise GanscopeError(
            f"--real {name}: torchvision could not provide it ({reason}). Offline, put its files "
            f"into {root} as torchvision.datasets.{class_name} expects them, or name a folder "
            "of photographs"
        ) from None
    groups = [f"{name}/{i}" for i in range(len(images))]
    return Source(name, groups, lambda i: np.asarray(images[i][0].convert("RGB")), _targets(images))


def _targets(images: Any) -> list[str] | None:
    """Class names of a torchvision data set, under whichever name it keeps them."""
    for attribute in ("targets", "labels", "_labels", "y"):
        numbers = getattr(images, attribute, None)
        if numbers is not None and len(numbers) == len(images) and np.ndim(numbers) == 1:
            names = list(getattr(images, "classes", ()))
            return [str(names[int(i)]) if names else str(int(i)) for i in numbers]
    return None


for _name in _TORCHVISION:
    sources.register(_name)(_torchvision)


def _hugging_face(name: str) -> Source:
    """`hf:owner/name[:split]` through Hugging Face `datasets`; its first image column is read."""
    try:
        # The library of that name, not the folder beside us.
        hugging_face: Any = import_module("datasets")
    except ImportError:
        raise GanscopeError(
            f"--real {name}: needs Hugging Face datasets; pip install 'ganscope[hf]'"
        ) from None
    identity, _, split = name.removeprefix("hf:").partition(":")
    try:
        rows = hugging_face.load_dataset(identity, split=split or "train")
    except Exception as error:  # the library raises a dozen kinds
        reason = reason_of(error)
        raise GanscopeError(
            f"--real {name}: could not be loaded ({reason}); see --help for other sources"
        ) from None
    columns = [k for k, v in rows.features.items() if isinstance(v, hugging_face.Image)]
    if not columns:
        raise GanscopeError(f"--real {name}: has no image column (only {', '.join(rows.features)})")
    groups = [f"{identity}/{i}" for i in range(len(rows))]
    return Source(name, groups, lambda i: np.asarray(rows[i][columns[0]].convert("RGB")))


def describe_sources() -> Iterator[tuple[str, str]]:
    """(name, what it is) of every source, for `ganscope list sources`."""
    yield (
        "photographs",
        "the photographs in scikit-learn's and scikit-image's wheels (default; offline)",
    )
    yield "digits", "scikit-learn's 1797 labelled 8x8 digits (offline)"
    for name, (class_name, _) in sorted(_TORCHVISION.items()):
        yield name, f"torchvision.datasets.{class_name} (downloaded on first use)"
    yield "hf:owner/name", "a data set of the Hugging Face hub (needs the extra ganscope[hf])"
    yield "FOLDER", "your own photographs; of a labelled corpus, its reals"
