"""The opener: whatever the mode and container, upright 8-bit RGB; whatever the damage, an
ImageError.
"""

import io
import os
import pickle
import struct
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, PngImagePlugin, features

from ganscope.errors import GanscopeError, ImageError
from ganscope.images import IMAGE_SUFFIXES, NamedImage, find_images, open_image, read_facts

RAMP = np.linspace(0, 255, 64, dtype=np.uint8).reshape(8, 8)


def corner_photo() -> Image.Image:
    """24 wide, 16 high, black but for a white upper left corner."""
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8, :8] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    """Stored turned or mirrored, the corner is upper left once the orientation is applied."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = corner_photo()
    if orientation in undo:
        stored = stored.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    stored.save(path, exif=exif)
    opened = open_image(path)
    assert (opened.width, opened.height) == (24, 16)
    assert opened.pixels[2, 2].tolist() == [255] * 3
    assert opened.pixels[-3, -3].tolist() == [0] * 3
    assert opened.has_exif


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("grey.png", Image.fromarray(RAMP), RAMP),
        ("deep.png", Image.fromarray(RAMP.astype(np.uint16) * 257), RAMP),
        ("deep.tif", Image.fromarray(RAMP.astype(np.uint16) * 257), RAMP),
        ("float.tif", Image.fromarray((RAMP / 255).astype(np.float32)), RAMP),
        ("bits.png", Image.fromarray(RAMP > 127), np.where(RAMP > 127, 255, 0)),
        ("palette.gif", Image.fromarray(RAMP).convert("P"), RAMP),
        ("plain.bmp", Image.fromarray(RAMP).convert("RGB"), RAMP),
        ("netpbm.pgm", Image.fromarray(RAMP), RAMP),
        ("lossless.webp", Image.fromarray(RAMP).convert("RGB"), RAMP),
    ],
)
def test_modes_become_8_bit_rgb(
    tmp_path: Path, name: str, image: Image.Image, expected: np.ndarray
) -> None:
    image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    opened = open_image(tmp_path / name)
    assert opened.pixels.dtype == np.uint8
    assert opened.pixels.shape == (8, 8, 3)
    assert np.abs(opened.pixels.astype(int) - expected[..., None].astype(int)).max() <= 1


def test_sixteen_bit_colour_keeps_its_high_byte(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    cv2.imwrite(str(path), np.full((4, 4, 3), (0, 128 * 257, 255 * 257), np.uint16))
    assert open_image(path).pixels[0, 0].tolist() == [255, 128, 0]


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA", "P"])
def test_transparency_is_laid_on_white(tmp_path: Path, mode: str) -> None:
    rgba = np.zeros((4, 6, 4), np.uint8)
    rgba[:, 3:, 3] = 255  # left half clear, right half black
    image = Image.fromarray(rgba)
    path = tmp_path / "clear.png"
    if mode == "P":
        flat = Image.fromarray(np.repeat([[0, 0, 0, 1, 1, 1]], 4, 0).astype(np.uint8), "P")
        flat.putpalette([9, 9, 9, 0, 0, 0])
        flat.save(path, transparency=0)
    elif mode == "PA":
        path = tmp_path / "clear.tif"
        image.save(path)
    else:
        image.convert(mode).save(path)
    opened = open_image(path)
    assert opened.pixels[0, 0].tolist() == [255] * 3
    assert opened.pixels[0, 5].tolist() == [0] * 3
    assert "transparency laid on white" in opened.warnings


def test_cmyk_is_converted(tmp_path: Path) -> None:
    path = tmp_path / "print.jpg"
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(path)
    red, green, blue = open_image(path).pixels[8, 8].tolist()
    assert red > 200
    assert max(green, blue) < 60


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_of_an_animation_the_first_frame_is_taken_and_that_is_said(
    tmp_path: Path, suffix: str
) -> None:
    frames = [Image.new("RGB", (8, 8), (value,) * 3) for value in (250, 5, 120)]
    path = tmp_path / f"moving.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    opened = open_image(path)
    assert opened.pixels.mean() > 240
    assert opened.frames == 3
    assert "first of 3 frames" in opened.warnings[0]


def test_of_an_mpo_the_main_picture_is_taken_and_that_is_said(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (32, 32), (value,) * 3) for value in (250, 5)]
    path = tmp_path / "stereo.mpo"
    frames[0].save(path, format="MPO", save_all=True, append_images=frames[1:])
    opened = open_image(path)
    assert opened.format == "JPEG"  # with another behind it
    assert opened.pixels.mean() > 240
    assert opened.warnings == ("the main picture of 2 in the file",)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif(tmp_path: Path, astronaut: np.ndarray) -> None:
    path = tmp_path / "photo.avif"
    Image.fromarray(astronaut).save(path, quality=90)
    assert np.abs(open_image(path).pixels.astype(int) - astronaut).mean() < 4


def test_one_pixel_is_an_image(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "dot.png")
    assert open_image(tmp_path / "dot.png").pixels.tolist() == [[[1, 2, 3]]]


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its few bytes could never fill."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 100)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_claiming(50_000, 50_000))
    with pytest.raises(ImageError, match="50000x50000 pixels, more than the limit"):
        open_image(path)


def test_the_limit_is_the_number_of_pixels(tmp_path: Path) -> None:
    Image.new("RGB", (10, 10)).save(tmp_path / "x.png")
    assert open_image(tmp_path / "x.png", max_pixels=100).width == 10
    with pytest.raises(ImageError):
        open_image(tmp_path / "x.png", max_pixels=99)


def test_damage_is_named_with_the_path(tmp_path: Path, photo: Path) -> None:
    whole = photo.read_bytes()
    cases = {
        "half.jpg": (whole[: len(whole) // 2], "truncated"),
        "text.jpg": (b"Dear sir or madam, " * 20, "not an image"),
        "empty.jpg": (b"", "empty"),
        "claim.png": (png_claiming(900, 900), "truncated"),
    }
    for name, (data, reason) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match=reason) as caught:
            open_image(tmp_path / name)
        assert caught.value.path == str(tmp_path / name)
    with pytest.raises(ImageError, match="no such file"):
        open_image(tmp_path / "gone.jpg")
    with pytest.raises(ImageError, match="folder"):
        open_image(tmp_path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tif", "bmp"])
def test_random_damage_never_raises_anything_else(
    tmp_path: Path, astronaut: np.ndarray, suffix: str
) -> None:
    path = tmp_path / f"fuzz.{suffix}"
    Image.fromarray(astronaut[::8, ::8]).save(path)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    for seed in range(200 if suffix in {"jpg", "png"} else 60):
        rng = np.random.default_rng(seed)
        data = whole.copy()
        places = rng.integers(0, len(data), rng.integers(1, 20))
        data[places] = rng.integers(0, 256, len(places))
        # Every other file is also cut off; the others keep their end, so that decoders get far.
        path.write_bytes(data[: rng.integers(1, len(data) + 1) if seed % 2 else None].tobytes())
        try:
            pixels = open_image(path).pixels
        except ImageError:
            continue
        assert pixels.ndim == 3
        assert pixels.dtype == np.uint8


def test_image_errors_travel_between_processes() -> None:
    again = pickle.loads(pickle.dumps(ImageError("a.jpg", "is empty")))
    assert (again.path, again.reason, str(again)) == ("a.jpg", "is empty", "a.jpg: is empty")


def test_facts_come_from_the_header(tmp_path: Path, astronaut: np.ndarray) -> None:
    path = tmp_path / "x.jpg"
    Image.fromarray(astronaut).save(path, quality=80, subsampling="4:2:2")
    facts = read_facts(path)
    assert (facts.format, facts.mode, facts.subsampling) == ("JPEG", "RGB", "4:2:2")
    assert (facts.stored_width, facts.stored_height) == (512, 512)
    assert facts.bytes == path.stat().st_size
    assert len(facts.quantization[0]) == 64
    assert not facts.has_exif


def test_a_folders_images_are_found_in_order(tmp_path: Path) -> None:
    for name in (
        "b.JPG",
        "a.png",
        "sub/c.webp",
        "sub/notes.txt",
        ".hidden.png",
        ".git/x.png",
        "ü.gif",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = [Path(p).relative_to(tmp_path).as_posix() for p in find_images(tmp_path)]
    assert found == ["a.png", "b.JPG", "ü.gif", "sub/c.webp"]
    assert list(find_images(str(tmp_path / "sub/notes.txt"))) == [str(tmp_path / "sub/notes.txt")]
    with pytest.raises(GanscopeError, match="no such file or folder"):
        list(find_images(tmp_path / "gone"))
    assert all(s == s.lower() for s in IMAGE_SUFFIXES)


@pytest.mark.parametrize("suffix", ["jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once_in_every_container(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    """From 5 on the sides change places; applied twice or never, they would not."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    Image.new("RGB", (24, 16)).save(path, exif=exif)
    opened = open_image(path)
    assert (opened.width, opened.height) == ((24, 16) if orientation < 5 else (16, 24))


def test_orientation_behind_the_pixels_of_a_png_is_applied(tmp_path: Path) -> None:
    """The standard lets EXIF data stand after the pixels, where only decoding finds them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "late.png"
    Image.new("RGB", (24, 16)).save(path)
    whole, body = path.read_bytes(), b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(whole[:-12] + chunk + whole[-12:])
    assert open_image(path).pixels.shape == (24, 16, 3)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_facts_are_read_without_decoding(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x010F] = "camera"
    path = tmp_path / f"x.{suffix}"
    Image.new("RGB", (24, 16)).save(path, exif=exif)

    def decode(self: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", decode)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", decode)
    facts = read_facts(path)
    assert (facts.stored_width, facts.stored_height, facts.has_exif) == (24, 16, True)


def test_the_facts_of_a_bomb_cost_nothing(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_claiming(50_000, 50_000))
    assert read_facts(path).stored_width == 50_000


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_subsampling_is_read_off_the_header(tmp_path: Path, subsampling: str) -> None:
    path = tmp_path / "x.jpg"
    Image.new("RGB", (32, 32)).save(path, subsampling=subsampling)
    assert read_facts(path).subsampling == subsampling


def test_other_containers_have_no_tables_and_grey_jpegs_no_subsampling(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    Image.new("L", (8, 8)).save(tmp_path / "x.jpg")
    png, grey = read_facts(tmp_path / "x.png"), read_facts(tmp_path / "x.jpg")
    assert (png.quantization, png.subsampling, png.has_exif) == ((), "", False)
    assert (len(grey.quantization), grey.subsampling, grey.mode) == (1, "", "L")


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
def test_holes_in_a_floating_point_image_leave_the_rest_alone(tmp_path: Path, hole: float) -> None:
    values = (RAMP / 255).astype(np.float32)
    values[0, 0] = hole
    Image.fromarray(values).save(tmp_path / "hole.tif")
    pixels = open_image(tmp_path / "hole.tif").pixels[..., 0]
    assert np.abs(pixels.astype(int) - RAMP).ravel()[1:].max() <= 1
    assert pixels[0, 0] == (255 if hole == np.inf else 0)


@pytest.mark.parametrize(("mode", "clear"), [("L", 0), ("RGB", (0, 0, 0)), ("1", 0)])
def test_a_colour_declared_transparent_is_laid_on_white(
    tmp_path: Path, mode: str, clear: int | tuple[int, ...]
) -> None:
    path = tmp_path / "clear.png"
    image = Image.new(mode, (4, 4), clear)
    image.putpixel((3, 3), 255 if mode == "1" else 100 if mode == "L" else (100, 100, 100))
    image.save(path, transparency=clear)
    opened = open_image(path)
    assert opened.pixels[0, 0].tolist() == [255] * 3
    assert opened.pixels[3, 3].tolist() == [255 if mode == "1" else 100] * 3
    assert opened.warnings == ("transparency laid on white",)


def test_a_palettes_shares_of_transparency_are_mixed_with_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([0, 0, 0] * 3)
    image.save(tmp_path / "x.png", transparency=bytes([0, 128, 255]))
    assert open_image(tmp_path / "x.png").pixels[0, :, 0].tolist() == [255, 127, 0]


def test_opaque_alpha_is_no_cause_for_remark(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (9, 8, 7, 255)).save(tmp_path / "x.png")
    opened = open_image(tmp_path / "x.png")
    assert opened.pixels[0, 0].tolist() == [9, 8, 7]
    assert opened.warnings == ()


def test_depth_that_is_lost_is_said(tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert open_image(tmp_path / "deep.png").warnings == ("16-bit brought to 8-bit",)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_files_are_refused_wherever_they_end(
    tmp_path: Path, astronaut: np.ndarray, suffix: str, share: float
) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(astronaut[::4, ::4]).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ImageError, match="truncated") as caught:
        open_image(path)
    assert caught.value.reason
    assert str(path) not in caught.value.reason


def test_found_images_keep_the_path_as_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert list(find_images("in")) == ["in/a.png"]
    assert list(find_images("./in")) == ["./in/a.png"]
    assert list(find_images("in/a.png")) == ["in/a.png"]


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
@pytest.mark.parametrize("many", [False, True])
def test_bombs_in_a_pngs_texts_are_passed_over(tmp_path: Path, kind: bytes, many: bool) -> None:
    """One text of 100 MB, or a hundred of 1 MB each, packed into some kB."""

    def chunk(number: int, size: int) -> bytes:
        head = b"k%d\0" % number + (b"\1\0\0\0" if kind == b"iTXt" else b"\0")
        body = kind + head + zlib.compress(b"\0" * size, 9)
        return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))

    bombs = [chunk(i, 1_000_000) for i in range(100)] if many else [chunk(0, 100_000_000)]
    path = tmp_path / "bomb.png"
    Image.new("RGB", (4, 4)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:33] + b"".join(bombs) + whole[33:])
    tracemalloc.start()
    try:
        opened = open_image(path)
        assert opened.pixels.shape == (4, 4, 3)
        passed_over = kind == b"iCCP" and not many  # many replace each other
        said = "its colour profile is too large or damaged and was passed over"
        assert (said in opened.warnings) == passed_over
        assert tracemalloc.get_traced_memory()[1] < 90_000_000
    finally:
        tracemalloc.stop()


def test_postscript_is_not_run_whatever_it_is_called(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "page.eps")
    (tmp_path / "page.jpg").write_bytes((tmp_path / "page.eps").read_bytes())
    for name in ("page.eps", "page.jpg"):
        with pytest.raises(ImageError, match="not an image"):
            open_image(tmp_path / name)


def test_every_16_bit_level_becomes_the_nearest_8_bit_one(tmp_path: Path) -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(levels).save(tmp_path / "levels.png")
    expected = np.rint(levels / 257).astype(np.uint8)
    assert np.array_equal(open_image(tmp_path / "levels.png").pixels[..., 0], expected)


def test_an_image_comes_as_anything_that_holds_one(photo: Path) -> None:
    whole = open_image(photo)
    content = photo.read_bytes()
    assert whole.content == content
    assert "content" not in repr(whole)
    with open(photo, "rb") as file:
        file.seek(100)  # somebody has looked at its head
        one = open_image(file)
        assert not file.closed
    assert (one.path, one.bytes, one.content) == (str(photo), len(content), content)
    pillow = Image.open(photo)
    for source, name, kept in (
        (str(photo), str(photo), content),
        (content, "<bytes>", content),
        (bytearray(content), "<bytes>", content),
        (io.BytesIO(content), "<file>", content),
        (pillow, str(photo), None),
        (whole.pixels, "<pixels>", None),
        (NamedImage("a.zip/b.jpg", content), "a.zip/b.jpg", content),
        (NamedImage("a.zip/b.jpg", io.BytesIO(content)), "a.zip/b.jpg", content),
        (NamedImage("-", photo), "-", content),
        (NamedImage("camera", whole.pixels), "camera", None),
    ):
        opened, facts = open_image(source), read_facts(source)
        assert np.array_equal(opened.pixels, whole.pixels)
        assert (opened.path, facts.path, opened.content) == (name, name, kept)
        assert (opened.bytes, facts.bytes) == (len(kept or b""),) * 2
        if kept or source is pillow:
            assert opened.quantization == facts.quantization == whole.quantization


def test_pixels_may_be_grey_or_have_alpha() -> None:
    assert open_image(RAMP).pixels[3, 3].tolist() == [RAMP[3, 3]] * 3
    rgba = np.zeros((2, 2, 4), np.uint8)
    opened = open_image(rgba)
    assert opened.pixels.min() == 255
    assert opened.warnings == ("transparency laid on white",)
    view = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)[::-1, ::2]
    assert np.array_equal(open_image(view).pixels, view)


def test_what_no_image_can_come_as_is_named() -> None:
    with pytest.raises(TypeError, match=r"a path, bytes.* not as int"):
        open_image(7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="binary mode"):
        open_image(io.StringIO("text"))  # type: ignore[arg-type]
    for pixels in (
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 1), np.uint8),
        np.zeros((3, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ):
        with pytest.raises(ValueError, match=r"uint8 of \(H, W\) grey"):
            open_image(pixels)


def test_errors_carry_the_name(tmp_path: Path) -> None:
    for content, reason in ((b"", "empty"), (b"no picture", "not an image")):
        for source, name in (
            (content, "<bytes>"),
            (io.BytesIO(content), "<file>"),
            (NamedImage("page/2", content), "page/2"),
        ):
            for read in (open_image, read_facts):
                with pytest.raises(ImageError, match=reason) as caught:
                    read(source)
                assert caught.value.path == name
    with pytest.raises(ImageError, match="page/2: no such file"):
        open_image(NamedImage("page/2", tmp_path / "gone.jpg"))


def test_a_pillow_image_is_left_as_it_is() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("RGB", (24, 16)).save(file, "JPEG", exif=exif)
    given = Image.open(file)
    assert open_image(given).pixels.shape == (24, 16, 3)
    assert given.size == (24, 16)
    assert given.getexif()[0x0112] == 6


def test_a_pipe_is_read_to_its_end(photo: Path) -> None:
    read, write = os.pipe()
    whole = open_image(photo)
    small = io.BytesIO()
    Image.fromarray(whole.pixels[:64, :64]).save(small, "PNG")
    os.write(write, small.getvalue())
    os.close(write)
    with open(read, "rb") as file:
        opened = open_image(file)
    assert np.array_equal(opened.pixels, whole.pixels[:64, :64])
    assert opened.path == "<file>"
