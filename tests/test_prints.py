"""What an image is known again by: after re-encoding, under another name, and nothing else."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data

from ganscope import prints
from ganscope.errors import ImageError
from ganscope.prints import Prints, find_same, look_at, print_of, to_prints


def of(*images: np.ndarray, label: int = 0) -> Prints:
    return to_prints([print_of(image) for image in images], [label] * len(images))


def textures(n: int) -> list[np.ndarray]:
    rng = np.random.default_rng(n)
    return [rng.integers(0, 256, (40, 40, 3), np.uint8) for _ in range(n)]


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    names = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field")
    return [np.ascontiguousarray(getattr(skimage.data, name)()[:400, :400]) for name in names]


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(data, cv2.IMREAD_COLOR)


def halved(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def test_pictures_are_known_again_when_they_are_saved_anew(photographs: list[np.ndarray]) -> None:
    known = of(*photographs)
    for change in (lambda i: jpeg(i, 90), lambda i: jpeg(i, 50), halved):
        again = of(*(change(image) for image in photographs))
        assert not (again.pixels == known.pixels).any()
        assert find_same(again, known).tolist() == [[i, i] for i in range(len(photographs))]


def test_labels_and_flat_pictures_are_kept_apart(photographs: list[np.ndarray]) -> None:
    sky, night = (np.full((64, 64, 3), level, np.uint8) for level in (200, 30))
    known = of(photographs[0], sky)
    assert find_same(of(sky, night, label=1), known).tolist() == []
    assert find_same(of(sky, night), known).tolist() == [[0, 1]]  # the same pixels
    assert find_same(of(photographs[0], label=1), known, same_label=False).tolist() == [[0, 0]]


def test_near_looks_are_found_as_by_comparing_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prints, "_BLOCK", 50)
    rng = np.random.default_rng(0)
    looks = rng.integers(1, 2**63, (300, 2), dtype=np.uint64)
    looks[100:, 0] = looks[rng.integers(0, 100, 200), 0]  # half a look is the same
    for row in range(200, 300):
        looks[row] = looks[row - 200]
        for bit in rng.integers(0, 64, row % 11):
            looks[row, row % 2] ^= np.uint64(1) << np.uint64(bit)
    none = np.zeros(300, np.uint8)
    every = Prints(np.arange(300, dtype=np.uint64), looks, none, none.astype(bool))
    apart = np.bitwise_count(looks[:, None] ^ looks[None]).sum(2)
    expected = np.argwhere(apart <= prints.NEAR)
    assert len(expected) > 400
    assert find_same(every, every).tolist() == expected.tolist()


def test_files_are_opened_once_and_again_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(tmp_path / f"{i}.png") for i in range(40)]
    for path, image in zip(paths, textures(40), strict=True):
        cv2.imwrite(path, image)
    Path(paths[5]).write_bytes(b"no image")
    opened = []
    monkeypatch.setattr(
        prints,
        "open_image",
        lambda path, open_=prints.open_image: opened.append(path) or open_(path),
    )
    first = look_at(paths)
    assert isinstance(first[5], ImageError)
    assert len(set(map(str, first))) == 40
    opened.clear()
    cv2.imwrite(paths[7], textures(1)[0])
    Path(paths[9]).unlink()
    again = look_at(paths)
    assert sorted(opened) == [paths[5], paths[7]]
    assert isinstance(again[9], ImageError)
    assert [i for i in range(40) if again[i] != first[i]] == [5, 7, 9]


def test_prints_join_once_and_say_what_is_missing(tmp_path: Path) -> None:
    a, b = textures(3)[:2], textures(3)[1:]
    both = of(*a).and_of([of(*b)])
    assert len(both) == 3
    assert both.complete
    assert not both.and_of([None]).complete
    # What one chose by and the other learned from was learned from.
    chosen = to_prints([print_of(i) for i in a], [0, 0], np.array([True, True]))
    for joined in (of(*a[:1]).and_of([chosen]), chosen.and_of([of(*a[:1])])):
        assert sorted(joined.chosen) == [False, True]
    both.save(tmp_path / "learned.npz")
    kept = Prints.load(tmp_path / "learned.npz")
    assert kept is not None
    assert (kept.looks == both.looks).all()
    for size in (0, 10, 200, 600):
        (tmp_path / "cut.npz").write_bytes((tmp_path / "learned.npz").read_bytes()[:size])
        assert Prints.load(tmp_path / "cut.npz") is None
