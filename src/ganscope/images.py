"""Opening images: the one place where bytes from outside become pixels.

Everything that ganscope looks at passes through `open_image`, be it a file, bytes, or what another
program has decoded. `containers` finds the main picture in what is read, refusing decompression
bombs before decoding; `colour` brings every mode and profile to 8-bit sRGB; here the EXIF
orientation is applied, and every failure becomes an `ImageError`.
"""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeAlias, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from ganscope.colour import to_rgb
from ganscope.containers import (
    HEAD,
    IMAGE_SUFFIXES,
    bytes_of_main,
    container_of,
    looks_like_image,
    open_main,
    read_deep,
    without_chunks,
)
from ganscope.errors import GanscopeError, ImageError

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "ImageFacts",
    "ImageSource",
    "NamedImage",
    "OpenedImage",
    "container_of",
    "count_images",
    "find_images",
    "looks_like_image",
    "open_image",
    "read_facts",
]

MAX_PIXELS = 250_000_000
"""Images with more pixels than this are refused unopened (a phone makes 200 million at most)."""
MAX_BYTES = 2**31
"""Files with more bytes than this are refused unread: 250 million pixels of 16-bit colour have
fewer."""
_BLOCK = 1 << 22
"""Bytes read at a time: more than most pictures have."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the picture upright."""

Image.MAX_IMAGE_PIXELS = None  # `MAX_PIXELS` is checked in its place, before decoding

Content: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray
"""What an image can come as: a path, the bytes of a file, a file open for reading bytes, a Pillow
image, or pixels (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA, uint8."""


@dataclass(frozen=True)
class NamedImage:
    """An image that is to be called otherwise than by where its bytes lie: one out of an archive,
    an address or standard input.
    """

    name: str
    """What it is called in errors and as `OpenedImage.path`."""
    content: Content


ImageSource: TypeAlias = Content | NamedImage


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """What a file's header says about an image, without decoding it."""

    path: str
    """Its name: a path as given, `NamedImage.name`, an open file's own name; "<bytes>", "<file>",
    "<image>" or "<pixels>" where there is none."""
    format: str
    """Container as Pillow names it: "JPEG" (also with further pictures behind it, an MPO), "PNG",
    "WEBP", "HEIF", "JXL", ...; "RAW" for a camera's raw file; "" for pixels."""
    mode: str
    """Pillow mode before conversion: "RGB", "L", "CMYK", "I;16", ..."""
    stored_width: int
    stored_height: int
    """Size as stored, before the EXIF orientation is applied."""
    bytes: int
    """Size of the file in bytes; 0 for Pillow images and pixels."""
    main_bytes: int
    """Those of its main picture: of a JPEG without the previews, gain maps and films that cameras
    append, of JPEG and PNG without metadata. As `bytes` for other containers."""
    frames: int
    has_exif: bool
    quantization: tuple[tuple[int, ...], ...]
    """JPEG quantisation tables; empty for other containers."""
    subsampling: str
    """JPEG chroma subsampling "4:4:4", "4:2:2", "4:2:0" or another; "" for other containers."""


@dataclass(frozen=True, kw_only=True)
class OpenedImage(ImageFacts):
    """An image's pixels, and the facts about its file that do not survive decoding."""

    pixels: np.ndarray
    """(H, W, 3) uint8 RGB, upright."""
    warnings: tuple[str, ...]
    """What a person should know: "first of 12 frames", "transparency laid on white"."""
    content: bytes | None = field(default=None, repr=False, compare=False)
    """The encoded bytes as read, metadata and all; None for Pillow images and pixels."""

    @property
    def width(self) -> int:
        return self.pixels.shape[1]

    @property
    def height(self) -> int:
        return self.pixels.shape[0]


Facts = TypeVar("Facts", bound=ImageFacts)


def open_image(source: ImageSource, max_pixels: int = MAX_PIXELS) -> OpenedImage:
    """Open one image as upright 8-bit RGB pixels.

    An open file is read from its start, or from where it is if it cannot go back, and left open; a
    Pillow image is left as it is, and what it shows now is taken. Raises `ImageError` for what is
    missing, empty, truncated, no image, or has more than `max_pixels` pixels; `TypeError` for what
    no image can come as, and `ValueError` for pixels of another shape or type.
    """
    name, what = _named(source)
    with _errors(name):
        if isinstance(what, Image.Image):
            if what.width * what.height > max_pixels:
                raise ImageError(name, f"more than the limit of {max_pixels:,} pixels")
            return _opened(what, name, what.format or "", None, [])
        content = what if isinstance(what, bytes) else _read(what, name)
        return _first_readable(
            content, lambda file, said: _decoded(file, content, name, max_pixels, said)
        )


def read_content(source: ImageSource) -> bytes:
    """An image's encoded bytes as they are, none for Pillow images and pixels; raises `ImageError`
    for what is missing or empty.
    """
    name, what = _named(source)
    with _errors(name):
        if isinstance(what, Image.Image):
            return b""
        content = what if isinstance(what, bytes) else _read(what, name)
        if not content:
            raise ImageError(name, "the file is empty")
        return content


def read_facts(source: ImageSource) -> ImageFacts:
    """Read an image's header only; takes and raises what `open_image` does."""
    name, what = _named(source)
    with _errors(name):
        if isinstance(what, Image.Image):
            return _facts(what, name, what.format or "", None)
        if isinstance(what, str) and os.path.isfile(what):
            with open(what, "rb") as file:
                return _read_facts(file, name)
        content = what if isinstance(what, bytes) else _read(what, name)
        return _read_facts(io.BytesIO(content), name)


def _read_facts(file: BinaryIO, name: str) -> ImageFacts:
    def read(readable: BinaryIO, _: list[str]) -> ImageFacts:
        image, container, _ = open_main(readable, name, MAX_PIXELS, decode=False)
        with image:
            return _facts(image, name, container, file)

    try:
        return read(file, [])
    except ImageError:
        raise
    except Exception:  # perhaps it is only its texts
        file.seek(0)
        return _first_readable(file.read(), read)


def _first_readable(content: bytes, read: Callable[[BinaryIO, list[str]], Facts]) -> Facts:
    """What `read` makes of a file, if need be without a PNG's texts or its colour profile: Pillow
    stops at those that are damaged or of more than a megabyte, though they say nothing of the
    pixels.
    """
    texts = (b"tEXt", b"zTXt", b"iTXt")
    first = None
    for left_out in ((), texts, (*texts, b"iCCP")):
        readable = without_chunks(content, left_out) if left_out else content
        if left_out and len(readable) == len(content):
            continue
        said = ["its colour profile is too large or damaged and was passed over"]
        try:
            return read(io.BytesIO(readable), said if b"iCCP" in left_out else [])
        except ImageError:
            raise
        except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
            first = first or error
            if content[:4] != b"\x89PNG":
                break
    assert first
    raise first


def _named(source: ImageSource) -> tuple[str, str | bytes | BinaryIO | Image.Image]:
    """What an image is called, and its content: a path as a string, pixels as a Pillow image."""
    name, what = (source.name, source.content) if isinstance(source, NamedImage) else ("", source)
    if isinstance(what, str | os.PathLike):
        path = os.fspath(what)
        if isinstance(path, str):
            return name or path, path
    if isinstance(what, bytes | bytearray | memoryview):
        return name or "<bytes>", bytes(what)
    if isinstance(what, Image.Image):
        return name or str(getattr(what, "filename", "") or "<image>"), what
    if isinstance(what, np.ndarray):
        return name or "<pixels>", _from_pixels(what)
    if hasattr(what, "read") and not isinstance(what, io.TextIOBase):
        own = getattr(what, "name", None)  # a number where it was opened by a descriptor
        return name or (own if isinstance(own, str) and own else "<file>"), what
    raise TypeError(
        "an image comes as a path, bytes, a file opened in binary mode, a Pillow image, an array "
        f"or a NamedImage of one of them, not as {type(what).__name__}"
    )


def _from_pixels(pixels: np.ndarray) -> Image.Image:
    shape = pixels.shape
    fits = pixels.ndim == 2 or (pixels.ndim == 3 and shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not fits or not pixels.size:
        raise ValueError(
            "pixels must be uint8 of (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA, "
            f"not {pixels.dtype} of {shape}"
        )
    return Image.fromarray(np.ascontiguousarray(pixels))


def _read(what: str | BinaryIO, name: str) -> bytes:
    """All bytes of a file, or of an open one from its start where it can go there."""
    if isinstance(what, str):
        with open(what, "rb") as file:
            return _read(file, name)
    with suppress(AttributeError, OSError, ValueError):  # of a pipe, what is left of it
        what.seek(0)
    blocks, size = [], 0
    while block := what.read(_BLOCK):
        if not isinstance(block, bytes):
            raise ImageError(name, "gives text; open it in binary mode")
        blocks.append(block)
        size += len(block)
        if size == len(block) >= HEAD and not looks_like_image(block[:HEAD]):
            break  # it is refused by its beginning, however long it is
        if size > MAX_BYTES:
            raise ImageError(name, f"more than the limit of {MAX_BYTES:,} bytes; shrink it first")
    return blocks[0] if len(blocks) == 1 else b"".join(blocks)


def _decoded(
    file: BinaryIO, content: bytes, name: str, max_pixels: int, said: list[str]
) -> OpenedImage:
    """`open_image` of a file; content: all of its bytes, of which it may give less."""
    image, container, notes = open_main(file, name, max_pixels, decode=True)
    with image:
        return _opened(image, name, container, content, [*said, *notes])


def _opened(
    image: Image.Image,
    name: str,
    container: str,
    content: bytes | None,
    said: list[str],
) -> OpenedImage:
    """Decode a Pillow image; content: the bytes that it comes from, if it does from a file."""
    deep = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    image.load()  # a PNG's EXIF may come behind its pixels
    facts = _facts(image, name, container, None if content is None else io.BytesIO(content))
    rgb, lost = to_rgb(image, (lambda: read_deep(content)) if deep and content else None)
    turn = _TURNS.get(_orientation(image, container))
    if turn is not None:
        rgb = rgb.transpose(turn)
    return OpenedImage(
        **vars(facts),
        pixels=np.asarray(rgb, dtype=np.uint8),
        warnings=(*said, *lost),
        content=content,
    )


def _orientation(image: Image.Image, container: str) -> int:
    """EXIF's, 1 to 8; 1 where the decoder has turned the picture already, or EXIF is damaged."""
    if container == "JXL" and not getattr(image, "jpeg", False):
        return 1
    with suppress(Exception):  # Pillow raises nearly anything, and the picture is whole
        return image.getexif().get(0x0112, 1)
    return 1


def _has_exif(image: Image.Image) -> bool:
    try:
        # Not `image.getexif()`: a PNG's decodes every pixel to look for EXIF data behind them.
        return len(Image.Image.getexif(image)) > 0
    except Exception:
        return True


@contextmanager
def _errors(name: str) -> Iterator[None]:
    """Turn whatever a damaged or hostile file makes Pillow raise into an `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(name, "no such file") from None
    except IsADirectoryError:
        raise ImageError(name, "is a folder, not an image") from None
    except PermissionError:
        raise ImageError(name, "no permission to read it") from None
    except UnidentifiedImageError:
        raise ImageError(name, "not an image, or of a kind that is not read") from None
    except Image.DecompressionBombError:
        raise ImageError(name, "refused: it unpacks to far more than it weighs") from None
    except MemoryError:
        raise ImageError(name, "too large for the memory of this machine") from None
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        reason = _printable(str(error)) or type(error).__name__
        raise ImageError(name, f"truncated or damaged ({reason})") from None


def _printable(text: str) -> str:
    """The words of a message on one line, without what a damaged file may put into it."""
    words = " ".join(text.split())[:200]
    return "".join(letter if letter.isprintable() else "?" for letter in words)


def _facts(image: Image.Image, name: str, container: str, file: BinaryIO | None) -> ImageFacts:
    tables = getattr(image, "quantization", None) or {}
    size, main = (0, 0) if file is None else bytes_of_main(image, file)
    return ImageFacts(
        path=name,
        format="JPEG" if container == "MPO" else container,
        mode=image.mode,
        stored_width=image.width,
        stored_height=image.height,
        bytes=size,
        main_bytes=main,
        frames=int(getattr(image, "n_frames", 1)),
        has_exif=_has_exif(image),
        quantization=tuple(tuple(int(v) for v in tables[key]) for key in sorted(tables)),
        subsampling=_subsampling(image),
    )


def _subsampling(image: Image.Image) -> str:
    layers = getattr(image, "layer", None)
    if not layers or len(layers) < 3:
        return ""
    (_, h, v, *_), (_, ch, cv, *_) = layers[0], layers[1]
    known = {(1, 1): "4:4:4", (2, 1): "4:2:2", (2, 2): "4:2:0", (4, 1): "4:1:1", (1, 2): "4:4:0"}
    ratio = (h // max(ch, 1), v // max(cv, 1))
    return known.get(ratio, f"{ratio[0]}x{ratio[1]}")


def find_images(path: str | Path) -> Iterator[str]:
    """Yield an image's own path, or the images below a folder in sorted order.

    A folder's files are named by the folder's path as given, then the path below it; those without
    an image's ending and hidden ones are passed over. Raises `GanscopeError` if `path` does not
    exist.
    """
    name = os.fspath(path)
    if not os.path.isdir(name):
        if not os.path.exists(name):
            raise GanscopeError(f"{name}: no such file or folder")
        yield name
        return
    for folder, folders, files in os.walk(name):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for file in sorted(files):
            if not file.startswith(".") and os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES:
                yield os.path.join(folder, file)


def count_images(paths: Sequence[str | Path]) -> int:
    """How many images `find_images` finds; raises `GanscopeError` for a path that does not exist
    and for a folder without images.
    """
    total = 0
    for path in paths:
        found = sum(1 for _ in find_images(path))
        if not found:
            raise GanscopeError(f"{path}: no images in this folder")
        total += found
    return total
