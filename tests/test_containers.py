"""Every file that people have: what a file is, its main picture, and what to install for it."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from made_files import XMP, chunk, dng, encoded, several
from PIL import Image, features

from ganscope import containers, images
from ganscope.containers import IMAGE_SUFFIXES, container_of, jpeg_end, jxl_size
from ganscope.errors import ImageError
from ganscope.images import looks_like_image, open_image, read_facts

CORNER = np.zeros((64, 96, 3), np.uint8)
CORNER[:32, :32] = 255
"""Black but for a white upper left corner: any turn shows."""


def turned(orientation: int) -> Image.Image:
    """`CORNER` as a camera held so would store it, EXIF and all."""
    image = Image.fromarray(CORNER)
    undo = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}
    image = image.transpose(undo[orientation]) if orientation in undo else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.info["exif"] = exif.tobytes()
    return image


def away(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b).mean())


# HEIC, AVIF, JPEG XL


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_heic_is_read_upright(tmp_path: Path, orientation: int) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    path = tmp_path / "phone.heic"
    path.write_bytes(encoded(turned(orientation), "HEIF", quality=90))
    opened = open_image(path)
    assert (opened.format, opened.warnings) == ("HEIF", ())
    assert away(opened.pixels, CORNER) < 2


def test_of_a_burst_the_main_picture_is_taken(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    others = [Image.fromarray(255 - CORNER)] * 2
    content = encoded(CORNER, "HEIF", save_all=True, append_images=others, primary_index=1)
    opened = open_image(content)
    assert opened.warnings == ("the main picture of 3 in the file",)
    assert away(opened.pixels, 255 - CORNER) < 2  # the second


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_avif_is_read_upright(orientation: int) -> None:
    image = turned(orientation)
    opened = open_image(encoded(image, "AVIF", exif=image.info["exif"], quality=90))
    assert opened.format == "AVIF"
    assert away(opened.pixels, CORNER) < 2


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_jpeg_xl_is_read(mode: str) -> None:
    pytest.importorskip("pillow_jxl")
    opened = open_image(encoded(Image.fromarray(CORNER).convert(mode), "JXL", lossless=True))
    assert (opened.format, opened.mode) == ("JXL", mode)
    assert np.array_equal(opened.pixels, CORNER)


def test_a_jpeg_within_jpeg_xl_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    pytest.importorskip("pillow_jxl")
    image = turned(6)
    image.save(tmp_path / "x.jpg", exif=image.info["exif"], quality=95)
    content = encoded(Image.open(tmp_path / "x.jpg"), "JXL", lossless_jpeg=True)
    assert away(open_image(content).pixels, CORNER) < 2


@pytest.mark.parametrize("size", [(8, 8), (96, 64), (640, 480), (333, 77), (4000, 3), (300, 300)])
def test_the_size_of_jpeg_xl_is_read_without_decoding(size: tuple[int, int]) -> None:
    pytest.importorskip("pillow_jxl")
    image = Image.new("RGB", size)
    assert jxl_size(encoded(image, "JXL")) == size
    exif = Image.Exif()
    exif[0x0112] = 1
    assert jxl_size(encoded(image, "JXL", exif=exif.tobytes())) == size  # in boxes
    with pytest.raises(ImageError, match="more than the limit"):
        open_image(encoded(image, "JXL"), max_pixels=size[0] * size[1] - 1)


@pytest.mark.parametrize(
    ("head", "module", "extra"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "pillow_heif", "heic"),
        (b"\xff\x0a\xfa\x1f", "pillow_jxl", "jxl"),
        (b"FUJIFILMCCD-RAW 0201", "rawpy", "raw"),
    ],
)
def test_what_is_missing_is_named_with_what_installs_it(
    head: bytes, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(containers, "import_module", missing)
    for read in (open_image, read_facts):
        with pytest.raises(ImageError, match=rf"{module}: pip install 'ganscope\[{extra}\]'"):
            read(head + bytes(100))


# Raw files


def test_a_raw_file_without_a_preview_is_developed(tmp_path: Path) -> None:
    pytest.importorskip("rawpy")
    path = tmp_path / "x.dng"
    path.write_bytes(dng())
    opened, facts = open_image(path), read_facts(path)
    assert (opened.format, facts.format, opened.bytes) == ("RAW", "RAW", path.stat().st_size)
    assert "developed neutrally" in opened.warnings[0]
    assert opened.pixels.shape == (256, 256, 3)
    levels = opened.pixels.mean((0, 2))
    assert levels[20] < levels[128] < levels[235]


@pytest.mark.parametrize("orientation", [1, 6])
def test_of_a_raw_file_the_cameras_preview_is_taken(tmp_path: Path, orientation: int) -> None:
    pytest.importorskip("rawpy")
    shown = np.zeros((200, 300, 3), np.uint8)
    shown[:100, :100] = 255
    path = tmp_path / "x.dng"
    path.write_bytes(dng(encoded(shown, "JPEG", quality=95), orientation))
    opened = open_image(path)
    assert opened.format == "RAW"
    assert "preview that its camera made" in opened.warnings[0]
    assert away(opened.pixels, np.rot90(shown, -1) if orientation == 6 else shown) < 2
    assert read_facts(path).quantization == opened.quantization != ()


def test_a_small_preview_is_no_picture() -> None:
    pytest.importorskip("rawpy")
    opened = open_image(dng(encoded(np.zeros((40, 60, 3), np.uint8), "JPEG")))
    assert opened.pixels.shape == (256, 256, 3)
    assert "developed" in opened.warnings[0]
    with pytest.raises(ImageError, match="256x256 pixels, more than the limit"):
        open_image(dng(), max_pixels=1000)
    with pytest.raises(ImageError, match="truncated"):
        open_image(dng()[:5000])


# Files of several pictures


def test_the_other_pictures_of_an_mpo_are_said_and_not_counted() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    content = several(encoded(CORNER, "JPEG"), encoded(noise, "JPEG", quality=100))
    opened = open_image(content)
    assert opened.format == "JPEG"
    assert opened.warnings == ("the main picture of 2 in the file",)
    assert opened.bytes == len(content)
    assert jpeg_end(content) - 200 < opened.main_bytes < jpeg_end(content) < len(content) - 3000
    assert away(opened.pixels, CORNER) < 2


@pytest.mark.parametrize(
    ("words", "said"),
    [(b'hdrgm:Version="1.0"', "gain map"), (b'GCamera:MotionPhoto="1"', "film"), (b"", "")],
)
def test_what_cameras_append_to_a_jpeg_is_said_and_not_counted(words: bytes, said: str) -> None:
    main = encoded(CORNER, "JPEG", progressive=True, **({"xmp": XMP % words} if words else {}))
    plain = open_image(encoded(CORNER, "JPEG", progressive=True))
    for behind in (encoded(255 - CORNER, "JPEG"), b"\0\0\0\x18ftypmp42" + bytes(5000)):
        if words or not behind.endswith(b"\xff\xd9"):
            opened = open_image(main + behind)
            assert opened.main_bytes == plain.main_bytes
            assert opened.bytes == len(main) + len(behind)
            assert said in "; ".join(opened.warnings)
            assert bool(opened.warnings) == bool(words)
            assert away(opened.pixels, CORNER) < 2


def test_a_small_copy_in_front_of_a_tiffs_pages_is_passed_over() -> None:
    small, page = Image.new("RGB", (12, 8), "red"), Image.fromarray(CORNER)
    page.encoderinfo = {"tiffinfo": {254: 0}}
    file = io.BytesIO()
    small.save(file, "TIFF", save_all=True, append_images=[page], tiffinfo={254: 1})
    opened = open_image(file)
    assert opened.warnings == ("animated or multi-page: second of 2 frames",)
    assert np.array_equal(opened.pixels, CORNER)
    with pytest.raises(ImageError, match="96x64 pixels, more than the limit"):
        open_image(file, max_pixels=12 * 8)


# What files are


def test_images_are_known_by_their_first_bytes() -> None:
    image = Image.fromarray(CORNER)
    known = {
        name: encoded(image, name) for name in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM")
    }
    for name, content in known.items():
        assert container_of(content[:64]) == name
        assert looks_like_image(content[:64])
    for head in (
        b"",
        b"P",
        b"PNG",
        b"BMW and other cars are",
        b"Python",
        b"P1 was the first",
        b"%PDF-1.7",
        b"RIFF\0\0\0\0WAVEfmt ",
        b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
        b"<svg xmlns=",
        b"PK\x03\x04",
        bytes(64),
    ):
        assert not looks_like_image(head) or head == b"P1 was the first"
    assert {".jxl", ".heic", ".avif", ".dng", ".cr3"} <= IMAGE_SUFFIXES


@pytest.mark.parametrize(
    ("content", "called"),
    [
        (b"%PDF-1.7 ...", "a PDF"),
        (b"\xef\xbb\xbf<!DOCTYPE html><html>", "a web page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'>", "SVG, a drawing"),
        (b"PK\x03\x04....", "a ZIP archive"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "a video"),
    ],
)
def test_what_is_often_taken_for_an_image_is_called_what_it_is(content: bytes, called: str) -> None:
    with pytest.raises(ImageError, match=f"not an image, but {called}"):
        open_image(content)


def test_a_long_file_that_is_no_image_is_not_read_to_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(images, "_BLOCK", 1000)
    file = io.BytesIO(b"\0\0\0\x18ftypmp42" + bytes(1_000_000))
    with pytest.raises(ImageError, match="a video"):
        open_image(file)
    assert file.tell() == 1000


# Metadata that are broken are no broken picture


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"garbage and more of it", b"MM", b"II+\0\x08\0\0\0"])
def test_damaged_exif_data_are_passed_over(format: str, exif: bytes) -> None:
    content = encoded(CORNER, format, **({"exif": exif} if format == "WEBP" else {}))
    if format == "PNG":
        content = content[:33] + chunk(b"eXIf", exif) + content[33:]
    if format == "JPEG":
        body = b"Exif\0\0" + exif
        body = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
        content = content[:2] + body + content[2:]
    read_facts(content)
    assert away(open_image(content).pixels, CORNER) < 4


def test_a_damaged_text_is_no_damaged_png() -> None:
    content = encoded(CORNER, "PNG")
    text = chunk(b"tEXt", b"key\0value")[:-1] + b"?"  # its check sum is wrong
    content = content[:33] + text + content[33:]
    assert np.array_equal(open_image(content).pixels, CORNER)
    assert read_facts(content).stored_width == 96


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt"])
def test_a_png_with_long_texts_is_no_damaged_one(kind: bytes, behind: bool) -> None:
    """ComfyUI writes its workflow there, which may have megabytes."""
    rng = np.random.default_rng(0)
    text = bytes(rng.integers(97, 123, 3_000_000, dtype=np.uint8))
    between = {b"tEXt": b"\0", b"zTXt": b"\0\0", b"iTXt": b"\0\1\0\0\0"}[kind]
    packed = text if kind == b"tEXt" else zlib.compress(text)
    long = chunk(kind, b"workflow" + between + packed)
    content = encoded(CORNER, "PNG")
    at = len(content) - 12 if behind else 33
    content = content[:at] + long + content[at:]
    opened = open_image(content)
    assert np.array_equal(opened.pixels, CORNER)
    assert opened.content == content
    assert opened.bytes == read_facts(content).bytes == len(content)
    assert read_facts(content).stored_width == 96
    assert opened.main_bytes == read_facts(content).main_bytes < 200  # no text is a pixel


@pytest.mark.parametrize("kind", ["HEIF", "AVIF", "JXL", "RAW", "MPO", "float"])
def test_random_damage_to_any_kind_is_told_in_one_line(kind: str) -> None:
    """A few of each; `benchmarks/campaigns/pictures.py` does thousands."""
    if kind in ("HEIF", "JXL", "RAW"):
        pytest.importorskip({"HEIF": "pillow_heif", "JXL": "pillow_jxl", "RAW": "rawpy"}[kind])
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    if kind == "RAW":
        whole = dng(encoded(CORNER, "JPEG"), side=64)
    elif kind == "MPO":
        whole = several(encoded(CORNER, "JPEG"), encoded(255 - CORNER, "JPEG"))
    elif kind == "float":
        whole = cv2.imencode(".tif", CORNER.astype(np.float32) / 100)[1].tobytes()
    else:
        whole = encoded(CORNER, kind)
    reasons = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        data = np.frombuffer(whole, np.uint8).copy()
        places = rng.integers(0, len(data) if seed % 3 else min(len(data), 300), 1 + seed % 4)
        data[places] = rng.integers(0, 256, len(places))
        cut = rng.integers(1, len(data)) if seed % 5 == 0 else len(data)
        try:
            assert open_image(data[:cut].tobytes(), max_pixels=1_000_000).pixels.shape[2] == 3
        except ImageError as error:
            reasons.append(error.reason)
    assert len(reasons) > 5
    assert all(reason.isprintable() for reason in reasons)
