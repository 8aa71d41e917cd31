"""Degradations: each does what its name says, by the value given, and nothing else."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from ganscope.datasets.degradations import (
    CLEAN,
    STANDARD,
    blur_and_jpeg,
    degradations,
    estimate_quality,
    lossy_history,
    parse_degradation,
    parse_degradations,
    random_degradation,
    screenshot,
    social,
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


@pytest.mark.parametrize("encoder", ["Pillow", "OpenCV"])
def test_quality_is_read_off_the_tables(encoder: str, astronaut: np.ndarray) -> None:
    small = astronaut[:16, :16]
    for quality in range(30, 99):
        data = io.BytesIO()
        if encoder == "Pillow":
            Image.fromarray(small).save(data, "JPEG", quality=quality)
        else:
            data.write(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, quality])[1])
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


def test_jpeg_takes_high_frequencies_and_leaves_low_ones() -> None:
    pixels = rng(3).integers(0, 256, (128, 128, 3), dtype=np.uint8)

    def power(found: np.ndarray) -> tuple[float, float]:
        spectrum = np.abs(np.fft.fft2(found.mean(-1) - found.mean())) ** 2
        far = np.hypot(*np.meshgrid(*[np.fft.fftfreq(128)] * 2))
        return float(spectrum[far < 0.1].mean()), float(spectrum[far > 0.5].mean())

    (low, high), (low_after, high_after) = power(pixels), power(apply("jpeg", pixels, 20))
    assert high_after < 0.7 * high
    assert low_after > 0.7 * low


@pytest.mark.parametrize("name", sorted(degradations))
def test_a_flat_picture_stays_flat(name: str) -> None:
    """Noise apart, nothing may put structure, borders or a tint where there was none."""
    flat = np.full((40, 40, 3), 128, np.uint8)
    value = {"jpeg": 75, "webp": 75, "blur": 2.0, "noise": 0}.get(name, 0.5)
    assert np.abs(apply(name, flat, value).astype(int) - 128).max() <= 1


def test_nothing_is_done_by_values_that_stand_for_nothing(astronaut: np.ndarray) -> None:
    for name, value in (("blur", 0), ("noise", 0), ("crop", 1), ("resize-bicubic", 1)):
        assert np.array_equal(apply(name, astronaut, value), astronaut), name


def test_resizing_nearest_takes_pixels_and_area_averages_them() -> None:
    board = np.indices((8, 8)).sum(0) % 2 * 200
    pixels = np.repeat(board[..., None], 3, -1).astype(np.uint8)
    assert np.unique(apply("resize-nearest", pixels, 2.0)).tolist() == [0, 200]
    assert np.unique(apply("resize-area", pixels, 0.5)).tolist() == [100]


def test_the_random_resize_draws_its_kernel_by_its_generator(astronaut: np.ndarray) -> None:
    small = astronaut[:64, :64]
    drawn = [apply("resize", small, 0.5, seed) for seed in range(30)]
    kernels = [apply(f"resize-{k}", small, 0.5) for k in ("area", "bilinear", "bicubic", "lanczos")]
    used = {next(i for i, k in enumerate(kernels) if np.array_equal(d, k)) for d in drawn}
    assert len(used) >= 3


def test_noise_differs_by_generator_and_saturates(astronaut: np.ndarray) -> None:
    white = np.full((64, 64, 3), 255, np.uint8)
    one, again, other = (apply("noise", white, 20, seed) for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert 0.4 < (one == 255).mean() < 0.6  # half would be brighter than white; none wraps to black
    assert one.min() > 100


def test_a_resize_drawn_beforehand_is_the_one_applied(astronaut: np.ndarray) -> None:
    for seed in range(10):
        assert random_degradation(astronaut[:64, :32], rng(seed), 0.5).shape == (32, 16, 3)
        assert random_degradation(astronaut[:64, :32], rng(seed), 1.0).shape == (64, 32, 3)


def test_a_history_is_drawn_from_all_the_qualities(astronaut: np.ndarray) -> None:
    small = astronaut[:64, :64]
    expected = {apply("jpeg", small, q).tobytes() for q in (50, 70, 90)}
    found = {lossy_history(small, [50, 70, 90], rng(s)).tobytes() for s in range(20)}
    assert found == expected


def test_blur_and_jpeg_leave_a_quarter_alone(astronaut: np.ndarray) -> None:
    pixels = astronaut[:64, :80]
    found = [blur_and_jpeg(pixels, np.random.default_rng(i)) for i in range(200)]
    assert {f.shape for f in found} == {(64, 80, 3)}
    same = sum(np.array_equal(f, pixels) for f in found)
    assert 40 <= same <= 90  # hardly any blur is none, too


def test_standard_stands_for_a_list() -> None:
    found = parse_degradations(["jpeg:60", "standard"])
    assert [d.label for d in found[:3]] == ["jpeg:60", "jpeg:95", "jpeg:90"]
    assert len(found) == 1 + len(STANDARD)


def test_sharing_shrinks_large_photographs_only(astronaut: np.ndarray) -> None:
    assert social(astronaut, 75, rng()).shape == astronaut.shape
    large = np.repeat(np.repeat(astronaut, 3, 0), 3, 1)[:1000]
    assert max(social(large, 75, rng()).shape) == 1080
    assert screenshot(astronaut, 0.75, rng()).shape == (384, 384, 3)
