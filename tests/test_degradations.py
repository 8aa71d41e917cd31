"""Degradations: each does what its name says, by the value given, and nothing else."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from ganscope.datasets.degradations import (
    CLEAN,
    degradations,
    estimate_quality,
    lossy_history,
    parse_degradation,
    random_degradation,
)
from ganscope.errors import GanscopeError


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def apply(name: str, pixels: np.ndarray, value: float, seed: int = 0) -> np.ndarray:
    return degradations[name](pixels, value, rng(seed))


def error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a.astype(float) - b) ** 2)))


@pytest.mark.parametrize("name", sorted(degradations))
@pytest.mark.parametrize("shape", [(1, 1), (17, 33), (64, 64)])
def test_pixels_in_pixels_out(name: str, shape: tuple[int, int]) -> None:
    pixels = rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    before = pixels.copy()
    value = {"jpeg": 75, "webp": 75, "blur": 1.0, "noise": 5}.get(name, 0.5)
    found = apply(name, pixels, value)
    assert found.dtype == np.uint8
    assert found.ndim == 3
    assert min(found.shape) >= 1
    assert np.array_equal(pixels, before)  # the original is left alone


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_lower_quality_is_further_from_the_original(name: str, astronaut: np.ndarray) -> None:
    errors = [error(apply(name, astronaut, q), astronaut) for q in (95, 75, 50, 20)]
    assert errors == sorted(errors)
    assert 0 < errors[0] < 8
    assert errors[-1] > 1.5 * errors[0]


def test_colours_keep_their_order() -> None:
    red = np.full((32, 32, 3), (200, 30, 20), np.uint8)
    for name in ("jpeg", "webp", "resize", "blur"):
        value = 90 if name in {"jpeg", "webp"} else 1.0
        assert np.abs(apply(name, red, value).astype(int) - red).max() < 8, name


@pytest.mark.parametrize("name", [n for n in degradations if n.startswith("resize")])
def test_resize_multiplies_both_sides(name: str, astronaut: np.ndarray) -> None:
    assert apply(name, astronaut[:100, :200], 0.5).shape == (50, 100, 3)
    assert apply(name, astronaut[:100, :200], 1.5).shape == (150, 300, 3)


def test_blur_takes_detail_and_leaves_flat_areas(astronaut: np.ndarray) -> None:
    flat = np.full((20, 20, 3), 77, np.uint8)
    assert np.array_equal(apply("blur", flat, 2.0), flat)
    detail = [cv2.Laplacian(apply("blur", astronaut, s), cv2.CV_64F).var() for s in (0, 1, 3)]
    assert detail[0] > 4 * detail[1] > 4 * detail[2]


def test_noise_has_the_deviation_asked_for() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    assert apply("noise", grey, 8.0).astype(float).std() == pytest.approx(8.0, rel=0.03)


def test_crop_keeps_the_centre() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[2:6, 2:6] = 255
    assert np.array_equal(apply("crop", pixels, 0.5), np.full((4, 4, 3), 255, np.uint8))


@pytest.mark.parametrize("quality", [30, 50, 75, 90, 95, 98])
def test_quality_is_read_off_the_tables(quality: int, astronaut: np.ndarray) -> None:
    data = io.BytesIO()
    Image.fromarray(astronaut).save(data, "JPEG", quality=quality)
    tables = Image.open(data).quantization
    assert abs(estimate_quality(tuple(tuple(t) for t in tables.values())) - quality) <= 1
    assert estimate_quality(()) == 100


def test_a_lossless_image_gets_the_others_history(astronaut: np.ndarray) -> None:
    assert np.array_equal(lossy_history(astronaut, [], rng()), astronaut)
    expected = apply("jpeg", astronaut, 90)
    assert np.array_equal(lossy_history(astronaut, [90], rng()), expected)


def test_the_training_mix_is_drawn_by_its_generator_alone(astronaut: np.ndarray) -> None:
    small = astronaut[:64, :64]
    for seed in range(30):
        one, again = random_degradation(small, rng(seed)), random_degradation(small, rng(seed))
        assert np.array_equal(one, again)
    changed = [not np.array_equal(random_degradation(small, rng(s)), small) for s in range(100)]
    assert sum(changed) > 75


def test_parsing() -> None:
    assert parse_degradation("jpeg:75").label == "jpeg:75"
    assert parse_degradation("resize-area:0.5").label == "resize-area:0.5"
    assert parse_degradation("clean") == CLEAN
    pixels = np.zeros((4, 4, 3), np.uint8)
    assert CLEAN(pixels, rng()) is pixels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jpg:75", "did you mean 'jpeg'"),
        ("jpeg", "NAME:VALUE"),
        ("jpeg:high", "NAME:VALUE"),
        ("jpeg:0", "between 1 and 100"),
        ("resize:0", "between 0.05 and 8"),
        ("crop:2", "between 0.05 and 1"),
        ("blur:nan", "between"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(GanscopeError, match=message):
        parse_degradation(text)
