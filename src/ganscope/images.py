"""Opening images: the one place where bytes from outside become pixels.

Everything that ganscope looks at passes through `open_image`, be it a file, bytes, or what another
program has decoded. It applies the EXIF orientation,
brings every mode (16-bit, grey, palette, CMYK, alpha, float) to 8-bit RGB, takes the first frame of
animated files, refuses decompression bombs before decoding, and turns every failure into an
`ImageError`.
"""

import functools
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import BinaryIO, TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ganscope.errors import ImageError

CONTAINERS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "PPM", "HEIF")
"""What is opened, as Pillow names it; nothing else, for Pillow would hand PostScript to a
program.
"""

MAX_PIXELS = 250_000_000
"""Images with more pixels than this are refused unopened (a phone makes 200 million at most)."""

MAX_BYTES = 2**31
"""Files with more bytes than this are refused unread: 250 million pixels of 16-bit colour have
fewer."""
_BLOCK = 1 << 22
"""Bytes read at a time: more than most pictures have."""

IMAGE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".avif",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".mpo",
        ".ppm",
        ".pgm",
        ".heic",
        ".heif",
    ]
)
"""File name endings, in lower case, by which a folder's images are recognised."""

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
    """Container as Pillow names it: "JPEG", "PNG", "WEBP", ...; "" for pixels."""
    mode: str
    """Pillow mode before conversion: "RGB", "L", "CMYK", "I;16", ..."""
    stored_width: int
    stored_height: int
    """Size as stored, before the EXIF orientation is applied."""
    bytes: int
    """Size of the file in bytes; 0 for Pillow images and pixels."""
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
            return _opened(what, name, None, max_pixels)
        content = what if isinstance(what, bytes) else _read(what, name)
        if not content:
            raise ImageError(name, "the file is empty")
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            return _opened(image, name, content, max_pixels)


def read_facts(source: ImageSource) -> ImageFacts:
    """Read an image's header only; takes and raises what `open_image` does."""
    name, what = _named(source)
    with _errors(name):
        if isinstance(what, Image.Image):
            return _facts(what, name, 0)
        if isinstance(what, str) and os.path.isfile(what):
            size = os.path.getsize(what)
            if not size:
                raise ImageError(name, "the file is empty")
            with Image.open(what, formats=_formats()) as image:
                return _facts(image, name, size)
        content = what if isinstance(what, bytes) else _read(what, name)
        if not content:
            raise ImageError(name, "the file is empty")
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            return _facts(image, name, len(content))


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
        if size > MAX_BYTES:
            raise ImageError(name, f"more than the limit of {MAX_BYTES:,} bytes; shrink it first")
    return blocks[0] if len(blocks) == 1 else b"".join(blocks)


def _opened(image: Image.Image, name: str, content: bytes | None, max_pixels: int) -> OpenedImage:
    """`open_image` of a Pillow image, which is not decoded yet if it comes from `content`."""
    if image.width * image.height > max_pixels:
        raise ImageError(
            name,
            f"{image.width}x{image.height} pixels, more than the limit of {max_pixels:,}; "
            "shrink it first",
        )
    image.load()  # a PNG's EXIF may come behind its pixels
    facts, said = _facts(image, name, len(content or b"")), []
    if facts.frames > 1 and facts.format != "MPO":  # an MPO's others are the camera's previews
        said.append(f"animated or multi-page: first of {facts.frames} frames")
    transparent = "A" in image.mode or "a" in image.mode or "transparency" in image.info
    if content is None:  # somebody else's
        image = ImageOps.exif_transpose(image)
    else:
        ImageOps.exif_transpose(image, in_place=True)
    rgb, lost = _to_rgb(image, transparent)
    pixels = np.asarray(rgb, dtype=np.uint8)
    return OpenedImage(
        **vars(facts),
        pixels=pixels,
        warnings=tuple([*said, lost] if lost else said),
        content=content,
    )


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `CONTAINERS` that this Pillow can read (HEIF needs a plug-in)."""
    Image.init()
    return tuple(name for name in CONTAINERS if name in Image.OPEN)


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
        raise ImageError(name, "not an image, or of a kind that Pillow cannot read") from None
    except Image.DecompressionBombError:
        raise ImageError(name, "refused: it unpacks to far more than it weighs") from None
    except MemoryError:
        raise ImageError(name, "too large for the memory of this machine") from None
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        reason = str(error).strip() or type(error).__name__
        raise ImageError(name, f"truncated or damaged ({reason})") from None


def _facts(image: Image.Image, name: str, size: int) -> ImageFacts:
    tables = getattr(image, "quantization", None) or {}
    return ImageFacts(
        path=name,
        format=image.format or "",
        mode=image.mode,
        stored_width=image.width,
        stored_height=image.height,
        bytes=size,
        frames=int(getattr(image, "n_frames", 1)),
        # Not `image.getexif()`: a PNG's decodes every pixel to look for EXIF data behind them.
        has_exif=len(Image.Image.getexif(image)) > 0,
        quantization=tuple(tuple(int(v) for v in tables[key]) for key in sorted(tables)),
        subsampling=_subsampling(image),
    )


def _to_rgb(image: Image.Image, transparent: bool) -> tuple[Image.Image | np.ndarray, str]:
    """Bring any Pillow mode to 8-bit RGB; also say what was lost, or ""."""
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.asarray(image).astype(np.float32)  # worked on in place: it may be huge
        np.nan_to_num(grey, copy=False, nan=0.0, posinf=np.inf, neginf=0.0)
        if image.mode.startswith("I;16") or (image.mode == "I" and grey.max(initial=0) > 255):
            note = "16-bit brought to 8-bit"
            grey /= 257
        elif image.mode == "F" and grey.max(initial=0, where=np.isfinite(grey)) <= 1.0:
            note = "floating point brought to 8-bit"
            grey *= 255
        else:
            note = ""
        np.clip(np.rint(grey, out=grey), 0, 255, out=grey)
        return np.repeat(grey.astype(np.uint8)[..., None], 3, -1), note
    if transparent:
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema() == (255, 255):
            return rgba.convert("RGB"), ""
        page = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(page, rgba).convert("RGB"), "transparency laid on white"
    return image if image.mode == "RGB" else image.convert("RGB"), ""


def _subsampling(image: Image.Image) -> str:
    layers = getattr(image, "layer", None)
    if not layers or len(layers) < 3:
        return ""
    (_, h, v, *_), (_, ch, cv, *_) = layers[0], layers[1]
    known = {(1, 1): "4:4:4", (2, 1): "4:2:2", (2, 2): "4:2:0", (4, 1): "4:1:1", (1, 2): "4:4:0"}
    ratio = (h // max(ch, 1), v // max(cv, 1))
    return known.get(ratio, f"{ratio[0]}x{ratio[1]}")
