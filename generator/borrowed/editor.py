"""Local edits: generators that change a region of a photograph and say which, by a mask."""

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import cv2
import numpy as np

from ganscope.datasets.sources import ZOOM, Crop, Source, random_crop
from ganscope.errors import GanscopeError, ImageError
from ganscope.faces import Face, open_finder
from ganscope.generator.model import AnyGenerator

LEAST_FACE = 24
"""Pixels: the shorter side of a face that is worth changing."""
AROUND = (1.3, 2.6)
"""A crop's side around a face, in the face's longer sides."""
NO_FACE = f"no face of at least {LEAST_FACE} pixels"
ALONE = "no second photograph to take from"


@dataclass(frozen=True)
class Edit:
    """A photograph of which a part was changed."""

    pixels: np.ndarray
    """(H, W, 3) uint8 RGB."""
    mask: np.ndarray
    """(H, W), above 0 where it was changed."""
    columns: Mapping[str, Any]
    """What the manifest says of it."""


class Editor(AnyGenerator):
    """Changes a region of each photograph; outside of its mask no pixel is another.

    It is `told` the photographs before the first edit. finder: of faces, for those that need one in
    every photograph; the others are passed over.
    """

    from_photos = True
    size = None
    parallel = True
    donates = False
    """True: it needs a second photograph, of another group."""

    def __init__(self, name: str, label: str, finder: str | None = None):
        self.name, self.label = name, label
        self.finder = None if finder is None else open_finder(finder)
        self.weights = self._made_by("" if self.finder is None else self.finder.name)
        self._faces: dict[int, list[Face]] = {}
        self._lock = Lock()

    def _made_by(self, *parts: str) -> str:
        """Stands for what its edits depend on besides the seed: they are continued by the same."""
        return hashlib.sha256("/".join([cv2.__version__, *parts]).encode()).hexdigest()[:12]

    def told(self, source: Source, splits: Mapping[str, str]) -> None:
        """The photographs that are changed and taken from, and the split of each of their groups.

        Raises `GanscopeError` if none of them can be changed.
        """
        self.source, self.splits = source, splits
        self._by_group = np.array(source.groups)
        self._by_split = np.array([splits.get(g, "") for g in source.groups])
        if self.finder is None and not self.donates:
            return
        groups: set[str] = set()
        for number in range(len(source)):
            if self.finder is None or self._faces_of(number):
                groups.add(source.groups[number])
            if len(groups) > self.donates:
                return
        if self.finder is not None and not groups:
            raise GanscopeError(
                f"--generator {self.name}: {source.name}: none of {len(source):,} photographs has "
                f"a face of at least {LEAST_FACE} pixels; name photographs of people by --from or "
                "--real"
            )
        what = "faces" if self.finder is not None else "photographs"
        raise GanscopeError(
            f"--generator {self.name}: {source.name}: needs {what} of two scenes at least, to take "
            "from one what is put into the other; add photographs"
        )

    def columns(self, index: int) -> dict[str, Any]:
        return {"mask": "", "donor": ""} if self.donates else {"mask": ""}

    def crop(self, size: int, rng: np.random.Generator, number: int) -> Crop:
        """A crop of 1 to `ZOOM` times the size; where faces are changed, around one, of which it
        shows all. Photograph `number` if it is fit, else another; why not is noted in the source.
        """
        if self.finder is None:
            return random_crop(self.source, size, rng, zoom=ZOOM, number=number)
        # All draws come first: which photographs were tried before must not change a crop.
        others, where = rng.integers(len(self.source), size=20), rng.random(3)
        for other in itertools.chain([number], others.tolist(), range(len(self.source))):
            if other in self.source.unusable:
                continue
            found = self._crop_around(other, size, where)
            if found is not None:
                return found
        raise GanscopeError(
            f"--generator {self.name}: {self.source.name}: no photograph has a face in a square of "
            f"at least {size}x{size} pixels; use a smaller --size or other photographs"
        )

    def _crop_around(self, number: int, size: int, where: np.ndarray) -> Crop | None:
        """The square of a photograph around its largest face; where: three numbers in [0, 1), of
        its side and place.
        """
        faces = self._faces_of(number)
        if not faces:
            self.source.unusable.setdefault(number, NO_FACE)
            return None
        photo, face = self.source.photo(number), faces[0]
        shortest, longer = min(photo.shape[:2]), max(face.width, face.height)
        least, most = max(longer, size), min(shortest, longer * size // LEAST_FACE)
        if least > most:
            self.source.unusable[number] = f"no face in a square of {size} pixels"
            return None
        wanted = longer * (AROUND[0] + (AROUND[1] - AROUND[0]) * float(where[0]))
        side, corner = int(np.clip(round(wanted), least, most)), []
        for axis, whole in enumerate((photo.shape[1], photo.shape[0])):
            first = max(face.box[axis + 2] - side, 0)
            last = max(min(face.box[axis], whole - side), first)
            corner.append(first + int(float(where[axis + 1]) * (last - first + 1)))
        x, y = corner
        pixels = photo[y : y + side, x : x + side]
        if side != size:
            pixels = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)
        return Crop(number, x, y, side, np.ascontiguousarray(pixels))

    def edit(
        self, seed: int, index: int, number: int, photo: np.ndarray, crop: Crop | None = None
    ) -> Edit | None:
        """Fake number `index` of a seed, out of photograph `number` (H, W, 3) uint8 RGB, or out of
        a crop of it; None if it cannot be changed, why being noted in the source.
        """
        rng = np.random.default_rng((seed, index, 5))
        face = None
        if self.finder is not None:
            faces = self._faces_of(number, None if crop else photo)
            if not faces:
                self.source.unusable.setdefault(number, NO_FACE)
                return None
            face = faces[0] if crop is None else _in_crop(faces[0], crop)
        made = self._change(seed, index, number, photo, face, rng)
        if made is None:
            self.source.unusable.setdefault(number, ALONE)
        return made

    def _change(
        self,
        seed: int,
        index: int,
        number: int,
        photo: np.ndarray,
        face: Face | None,
        rng: np.random.Generator,
    ) -> Edit | None:
        """The edit itself; None without a photograph to take from."""
        raise NotImplementedError

    def make(
        self, seed: int, indexes: Sequence[int], photos: Sequence[np.ndarray] | None = None
    ) -> list[np.ndarray]:
        raise TypeError(f"{self.name} makes edits, with masks: call edit()")

    def _faces_of(self, number: int, photo: np.ndarray | None = None) -> list[Face]:
        """Faces worth changing in a photograph, largest first; none in what cannot be read."""
        with self._lock:
            if number in self._faces:
                return self._faces[number]
        assert self.finder is not None
        try:
            photo = self.source.photo(number) if photo is None else photo
        except ImageError as error:
            self.source.unusable[number] = error.reason
            return []
        found = [
            face
            for face in self.finder.find(photo)
            if min(face.width, face.height) >= LEAST_FACE and face.landmarks is not None
        ]
        with self._lock:
            return self._faces.setdefault(number, found)

    def _donors(self, number: int, rng: np.random.Generator) -> Iterator[int]:
        """Photographs of other groups in a random order, those of the same split first: a scene of
        the test set is to be in no fake of the training set.
        """
        other = self._by_group != self._by_group[number]
        same = self._by_split == self._by_split[number]
        for wanted in (other & same, other & ~same):
            yield from rng.permutation(np.flatnonzero(wanted)).tolist()


def _in_crop(face: Face, crop: Crop) -> Face:
    """A photograph's face as it is in a crop of it."""
    size = crop.pixels.shape[0]
    by, corner = size / crop.side, np.array([crop.x, crop.y])
    low, high = ((np.array(face.box).reshape(2, 2) - corner) * by).round().astype(int).tolist()
    landmarks = face.landmarks
    if landmarks is not None:
        landmarks = ((landmarks + 0.5 - corner) * by - 0.5).astype(np.float32)
    box = (max(low[0], 0), max(low[1], 0), min(high[0], size), min(high[1], size))
    return Face(box, face.confidence, landmarks)
