"""Fakes of faces: a face blended onto itself, or another's in its place."""

import numpy as np

from ganscope.datasets.blending import self_blend, swap_face
from ganscope.errors import ImageError
from ganscope.faces import FINDERS, Face
from ganscope.generator.borrowed.editor import Edit, Editor
from ganscope.generator.borrowed.options import as_label, choice, split_options

OFFERED, LOOKED_AT = 4, 40
"""Donors of which the one that looks the same way is taken, out of so many photographs; more are
looked at only until there is one."""


class SelfBlending(Editor):
    """The largest face of a photograph blended onto itself; see `blending.self_blend`."""

    def _change(
        self,
        seed: int,
        index: int,
        number: int,
        photo: np.ndarray,
        face: Face | None,
        rng: np.random.Generator,
    ) -> Edit | None:
        assert face is not None
        return Edit(*self_blend(photo, face, rng), {})


class FaceSwap(Editor):
    """The largest face of a photograph replaced by that of another photograph; see
    `blending.swap_face`.
    """

    donates = True

    def _change(
        self,
        seed: int,
        index: int,
        number: int,
        photo: np.ndarray,
        face: Face | None,
        rng: np.random.Generator,
    ) -> Edit | None:
        assert face is not None
        donor = self._donor(number, face, rng)
        if donor is None:
            return None
        try:
            given = self.source.photo(donor)
        except ImageError:  # it could be read a moment ago
            return None
        pixels, mask = swap_face(photo, face, given, self._faces_of(donor)[0], rng)
        return Edit(pixels, mask, {"donor": self.source.groups[donor]})

    def _donor(self, number: int, face: Face, rng: np.random.Generator) -> int | None:
        """Of a few other faces the one that looks the most the same way and is not much smaller."""
        offered: list[tuple[float, int]] = []
        for looked_at, other in enumerate(self._donors(number, rng)):
            if len(offered) == OFFERED or (offered and looked_at >= LOOKED_AT):
                break
            if offered and self._is_beside(offered[0][1], number) > self._is_beside(other, number):
                break  # from here on they are of other splits
            if faces := self._faces_of(other):
                offered.append((_unlike(face, faces[0]), other))
        return min(offered)[1] if offered else None

    def _is_beside(self, other: int, number: int) -> bool:
        return bool(self._by_split[other] == self._by_split[number])


def _unlike(one: Face, other: Face) -> float:
    """How far two faces' landmarks are from each other once one is laid on the other, in parts of
    their size; and something for each time that the other is smaller.
    """
    assert one.landmarks is not None
    assert other.landmarks is not None
    first, second = (p - p.mean(0) for p in (one.landmarks, other.landmarks))
    a, b = (p.astype(np.float64) @ (1, 1j) for p in (first, second))
    turn = np.vdot(b, a) / max(float(np.vdot(b, b).real), 1e-9)
    apart = np.sqrt(np.mean(np.abs(a - turn * b) ** 2) / max(float(np.mean(np.abs(a) ** 2)), 1e-9))
    smaller = np.log2(max(np.abs(a).mean() / max(np.abs(b).mean(), 1e-9), 1))
    return float(apart + 0.1 * smaller)


def face_generator(kind: str, spec: str) -> Editor:
    """`faceswap:` or `selfblend:`, then `?finder=mesh`: see `FaceSwap` and `SelfBlending`.

    finder: auto, mesh or cascades; see `ganscope.faces.open_finder`. Raises `GanscopeError` if it
    cannot be had.
    """
    name = f"{kind}:{spec}"
    _, options = split_options(name, spec, {"finder": choice(*FINDERS)}, headless=True)
    of_kind = {"faceswap": FaceSwap, "selfblend": SelfBlending}[kind]
    return of_kind(name, as_label(kind, **options), options.get("finder", "auto"))
