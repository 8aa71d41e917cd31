"""Colour: what a viewer shows, whatever the profile, depth, ink or transparency; never black."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from made_files import ADOBE, P3, SRGB, grey_profile, ink_profile, matrix_profile
from PIL import Image, ImageCms, ImageDraw

from ganscope import colour
from ganscope.colour import to_levels
from ganscope.images import OpenedImage, open_image

RAMP = np.linspace(0, 255, 64, dtype=np.uint8).reshape(8, 8)


def shown_as_srgb(pixels: np.ndarray, matrix: np.ndarray, gamma: float = 2.2) -> np.ndarray:
    """By the formulas, without a library."""
    linear = (pixels / 255) ** gamma @ (np.linalg.inv(SRGB) @ matrix).T
    linear = linear.clip(0, 1)
    curved = np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return curved * 255


def saved(image: Image.Image, format: str, **options: object) -> OpenedImage:
    file = io.BytesIO()
    image.save(file, format, **options)
    return open_image(file)


# Profiles


@pytest.mark.parametrize("matrix", [P3, ADOBE], ids=["Display P3", "Adobe RGB"])
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_colours_are_shown_as_their_profile_says(matrix: np.ndarray, format: str) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(60, 200, (16, 16, 3), dtype=np.uint8)
    options = {"lossless": True} if format == "WEBP" else {}
    opened = saved(Image.fromarray(pixels), format, icc_profile=matrix_profile(matrix), **options)
    expected = shown_as_srgb(pixels, matrix)
    assert np.abs(opened.pixels - expected).max() <= 3
    assert np.abs(opened.pixels - pixels.astype(int)).max() > 10
    assert opened.warnings == ()


def test_a_profile_that_is_srgb_changes_nothing_and_costs_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert np.array_equal(saved(Image.fromarray(pixels), "PNG", icc_profile=profile).pixels, pixels)
    assert colour._transform(profile, "RGB") is None
    grey = saved(Image.fromarray(RAMP), "PNG", icc_profile=profile)  # often seen
    assert np.array_equal(grey.pixels[..., 0], RAMP)
    assert grey.warnings == ()


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_is_shown_as_its_profile_says(mode: str) -> None:
    image = Image.fromarray(RAMP).convert(mode)
    opened = saved(image, "PNG", icc_profile=grey_profile(1.8))
    expected = shown_as_srgb(np.repeat(RAMP[..., None], 3, -1), SRGB, 1.8)
    assert np.abs(opened.pixels - expected).max() <= 3
    assert opened.warnings == ()


def test_the_colours_below_transparency_have_the_profile_too() -> None:
    pixels = np.full((8, 8, 4), (180, 60, 60, 255), np.uint8)
    pixels[:4, :, 3] = 0
    opened = saved(Image.fromarray(pixels), "PNG", icc_profile=matrix_profile(ADOBE))
    expected = shown_as_srgb(pixels[7:8, 7:8, :3], ADOBE)
    assert np.abs(opened.pixels[7, 7] - expected).max() <= 3
    assert opened.pixels[0, 0].tolist() == [255] * 3


def test_inks_are_shown_as_their_profile_says() -> None:
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 0, 0))
    opened = saved(image, "TIFF", icc_profile=ink_profile((60, -30, -40)))
    plain = saved(image, "TIFF")
    # Lab (60, -30, -40) is about (0, 159, 214)
    assert np.abs(opened.pixels[4, 4].astype(int) - (0, 159, 214)).max() < 12
    assert opened.pixels[0, 0].tolist() == [255] * 3
    assert opened.warnings == ()
    assert plain.pixels[4, 4].tolist() == [0, 255, 255]
    assert "CMYK without a colour profile" in plain.warnings[0]


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        (b"no profile at all" * 20, "is broken"),
        (matrix_profile(P3)[:200], "is broken"),
        (ink_profile((60, 0, 0)), "is for CMYK, not for RGB"),
        (b"\0" * ((1 << 23) + 1), "too large"),
    ],
)
def test_a_profile_that_makes_no_sense_is_said_and_passed_over(profile: bytes, said: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    opened = saved(Image.fromarray(pixels), "TIFF", icc_profile=profile)
    assert np.array_equal(opened.pixels, pixels)
    assert said in opened.warnings[0]
    assert "colour profile" in opened.warnings[0]


def test_lab_becomes_colours() -> None:
    image = Image.new("LAB", (4, 4), (153, 128, 128))  # L* 60, no colour
    assert np.abs(saved(image, "TIFF").pixels.astype(int) - 145).max() < 4


# Depth


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("colours", [False, True])
def test_few_bits_in_a_16_bit_file_are_not_black(
    tmp_path: Path, bits: int, suffix: str, colours: bool
) -> None:
    shade = np.linspace(0, (1 << bits) - 1, 64).round().astype(np.uint16).reshape(8, 8)
    path = tmp_path / f"deep.{suffix}"
    stored = np.stack([shade, shade.T, shade[::-1]], -1) if colours else shade
    cv2.imwrite(str(path), stored[..., ::-1] if colours else stored)
    opened = open_image(path)
    expected = stored / ((1 << bits) - 1) * 255
    expected = expected if colours else np.repeat(expected[..., None], 3, -1)
    assert np.abs(opened.pixels - expected).max() <= 1
    assert opened.warnings == (f"{bits} bits in a 16-bit file, brought to 8-bit",)


def test_twelve_bits_with_alpha_keep_it(tmp_path: Path) -> None:
    stored = np.full((8, 8, 4), 2048, np.uint16)
    stored[..., 3] = 65535
    stored[:4, :, 3] = 0
    cv2.imwrite(str(tmp_path / "x.png"), stored)
    opened = open_image(tmp_path / "x.png")
    assert opened.pixels[7, 7].tolist() == [128] * 3
    assert opened.pixels[0, 0].tolist() == [255] * 3


@pytest.mark.parametrize("colours", [False, True])
def test_lost_depth_is_said_of_colours_too(tmp_path: Path, colours: bool) -> None:
    stored = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    stored = np.repeat(stored[..., None], 3, -1) if colours else stored
    cv2.imwrite(str(tmp_path / "x.png"), stored)
    assert open_image(tmp_path / "x.png").warnings == ("16-bit brought to 8-bit",)


@pytest.mark.parametrize("colours", [False, True])
@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (1.0, "floating point brought to 8-bit"),
        (255.0, "floating point up to 255 brought to 8-bit"),
        (65535.0, "floating point up to 65,535 brought to 8-bit"),
        (1e9, "by its range"),
    ],
)
def test_floating_point_of_any_range_is_not_black(
    tmp_path: Path, factor: float, said: str, colours: bool
) -> None:
    shade = np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64)
    stored = shade * np.float32(factor)
    stored = np.repeat(stored[..., None], 3, -1) if colours else stored
    cv2.imwrite(str(tmp_path / "x.tif"), stored)
    opened = open_image(tmp_path / "x.tif")
    assert np.abs(opened.pixels[..., 1] - shade * 255).max() <= (4 if factor == 1e9 else 1)
    assert said in opened.warnings[0]


@pytest.mark.parametrize("colours", [False, True])
def test_highlights_above_one_are_white_and_leave_the_rest_alone(
    tmp_path: Path, colours: bool
) -> None:
    stored = np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64)
    stored[0, :5] = (1.5, 2, 8, 30, 300)
    whole = np.repeat(stored[..., None], 3, -1) if colours else stored
    cv2.imwrite(str(tmp_path / "x.tif"), whole)
    opened = open_image(tmp_path / "x.tif")
    assert np.abs(opened.pixels[..., 0] - stored.clip(0, 1) * 255).max() <= 1
    assert opened.warnings == ("floating point brought to 8-bit, what is above 1.0 as white",)


def test_negative_floating_point_is_said() -> None:
    levels, said = to_levels(np.linspace(-1, 1, 100, dtype=np.float32))
    assert levels.min() == 0
    assert said.endswith("what is below 0 is black")


def test_32_bit_integers_are_not_white() -> None:
    levels, said = to_levels(np.array([[0, 1 << 19, (1 << 20) - 1]], np.int32))
    assert levels.tolist() == [[0, 128, 255]]
    assert said == "20 bits in a 32-bit file, brought to 8-bit"
    assert to_levels(np.zeros((2, 2), np.uint16))[0].max() == 0


# Transparency


def page(text: str, alpha: int, shade: int = 0) -> Image.Image:
    """A grey photograph in the lower half; above it text that is all but transparent."""
    pixels = np.full((128, 256, 4), (255, 255, 255, alpha), np.uint8)
    rng = np.random.default_rng(0)
    pixels[64:, :, :3] = rng.integers(100, 150, (64, 256, 1))
    pixels[64:, :, 3] = 255
    image = Image.fromarray(pixels)
    if text:
        ImageDraw.Draw(image).text((8, 8), text, (shade,) * 3 + (alpha,), font_size=30)
    return image


@pytest.mark.parametrize("alpha", [0, 1, 7])
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_text_hidden_under_alpha_changes_no_pixel_and_is_said(alpha: int, format: str) -> None:
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    clean = saved(page("", alpha), format, **options)
    opened = saved(page("THIS IS A PHOTOGRAPH", alpha), format, **options)
    assert np.array_equal(opened.pixels, clean.pixels)
    assert any("under the transparency" in said for said in opened.warnings)
    assert clean.warnings == ("transparency laid on white",)


def test_grey_that_a_deep_png_declares_transparent_is_not_shown(tmp_path: Path) -> None:
    stored = np.full((8, 8), 30000, np.uint16)
    stored[:, 4:] = 65535
    stored[0, 0] = 500
    image = Image.fromarray(stored)
    image.save(tmp_path / "x.png", transparency=500)
    opened = open_image(tmp_path / "x.png")
    assert opened.pixels[0, 0].tolist() == [255] * 3
    assert opened.pixels[1, 1].tolist() == [round(30000 / 257)] * 3
    assert opened.warnings == ("transparency laid on white", "16-bit brought to 8-bit")


def test_visible_faint_shadows_stay() -> None:
    pixels = np.zeros((32, 256, 4), np.uint8)
    pixels[..., 3] = np.arange(256)
    opened = saved(Image.fromarray(pixels), "PNG")
    assert np.abs(opened.pixels[0, :, 0] - (255 - np.arange(256))).max() <= 1
    assert opened.warnings == ("transparency laid on white",)
