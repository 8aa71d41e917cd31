"""Sources of reals: the embedded photographs, folders, corpora, and what is said when there is
nothing.
"""

from pathlib import Path

import cv2
import numpy as np
import pytest

from ganscope.datasets.sources import open_source, random_crop
from ganscope.errors import GanscopeError, GanscopeWarning


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def save(path: Path, height: int, width: int, value: int = 128) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), value, np.uint8))


def test_embedded_photographs_need_no_network_and_keep_stereo_pairs_together() -> None:
    source = open_source("photographs")
    assert len(source) >= 12
    assert len(set(source.groups)) < len(source)  # the motorcycle was taken twice
    assert min(source.photo(0).shape[:2]) >= 256


def test_crops_have_the_size_lie_inside_and_depend_on_the_seed_only() -> None:
    source = open_source("photographs")
    for seed in range(20):
        crop = random_crop(source, 64, rng(seed), zoom=4)
        height, width = source.photo(crop.number).shape[:2]
        assert crop.pixels.shape == (64, 64, 3)
        assert 64 <= crop.side <= 256
        assert 0 <= crop.x <= width - crop.side
        assert 0 <= crop.y <= height - crop.side
        again = random_crop(open_source("photographs"), 64, rng(seed), zoom=4)
        assert np.array_equal(crop.pixels, again.pixels)


def test_a_native_crop_is_a_cutting_of_the_photograph() -> None:
    source = open_source("photographs")
    crop = random_crop(source, 50, rng(3), zoom=1)
    photo = source.photo(crop.number)
    assert np.array_equal(crop.pixels, photo[crop.y : crop.y + 50, crop.x : crop.x + 50])


def test_a_folder_passes_over_what_is_damaged_or_small(tmp_path: Path) -> None:
    save(tmp_path / "good.png", 80, 90)
    save(tmp_path / "small.png", 20, 20)
    (tmp_path / "damaged.jpg").write_bytes(b"\xff\xd8\xff nothing")
    source = open_source(str(tmp_path))
    numbers = {random_crop(source, 64, rng(i)).number for i in range(20)}
    assert {source.groups[n] for n in numbers} == {"good.png"}
    assert len(source.unusable) == 2
    with pytest.warns(GanscopeWarning, match=r"left out: 2 of 3 photographs: damaged\.jpg \("):
        source.tell_unusable()


def test_only_small_photographs_is_an_error_that_names_the_size(tmp_path: Path) -> None:
    save(tmp_path / "small.png", 32, 32)
    with pytest.raises(GanscopeError, match=r"at least 64x64.*32x32.*--size"):
        random_crop(open_source(str(tmp_path)), 64, rng())


def test_of_a_labelled_corpus_only_the_reals_are_taken(tmp_path: Path) -> None:
    save(tmp_path / "0_real/a.png", 64, 64, 10)
    save(tmp_path / "1_fake/gan/b.png", 64, 64, 200)
    source = open_source(str(tmp_path))
    assert len(source) == 1
    assert source.photo(0).max() == 10


def test_a_photograph_keeps_the_source_that_its_corpus_names(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        save(tmp_path / f"{name}.png", 32, 32)
    rows = ["file_name,label,source", "a.png,0,camera", "b.png,0,", "c.png,1,gan"]
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    source = open_source(str(tmp_path))
    assert source.origins == ["camera", tmp_path.name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar1", "did you mean 'cifar10'"),
        ("no/such/folder", "no such folder"),
        ("hf:", "hf"),
    ],
)
def test_unknown_sources_say_what_is_known(name: str, message: str) -> None:
    with pytest.raises(GanscopeError, match=message):
        open_source(name)


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GanscopeError, match="no images"):
        open_source(str(tmp_path))


def test_torchvision_data_is_read_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MNIST's own file format, written here, is found and read without a download."""
    raw = tmp_path / "mnist" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)
    for part in ("train", "t10k"):
        header = np.array([2051, 2, 28, 28], ">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = np.array([2049, 2], ">i4").tobytes() + bytes([0, 1])
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    monkeypatch.setenv("GANSCOPE_DATA", str(tmp_path))
    source = open_source("mnist")
    assert len(source) == 2
    assert np.array_equal(source.photo(1)[..., 2], images[1])


def test_a_data_set_that_cannot_be_had_says_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision.datasets

    def offline(root: Path, download: bool, **_: object) -> None:
        raise RuntimeError("Dataset not found") if not download else OSError("no network")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    monkeypatch.setenv("GANSCOPE_DATA", str(tmp_path))
    with pytest.raises(GanscopeError, match=r"no network.*Offline, put its files"):
        open_source("cifar10")


def test_folders_that_merely_sound_like_a_corpus_are_photographs(tmp_path: Path) -> None:
    save(tmp_path / "nature" / "a.png", 80, 80)
    save(tmp_path / "real" / "b.png", 80, 80)
    (tmp_path / "metadata.csv").write_text("id,caption\n1,a tree\n")
    assert len(open_source(str(tmp_path))) == 2


def test_one_fit_photograph_among_many_is_found(tmp_path: Path) -> None:
    for i in range(60):
        save(tmp_path / f"{i}.png", 80 if i == 41 else 20, 80)
    source = open_source(str(tmp_path))
    for seed in range(20):
        assert source.groups[random_crop(source, 64, rng(seed), number=3).number] == "41.png"
