"""Opening image files: the one place where bytes from outside become pixels.

Everything that ganscope looks at passes through `open_image`: it applies the EXIF orientation,
brings every mode (16-bit, grey, palette, CMYK, alpha, float) to 8-bit RGB, takes the first frame of
animated files, refuses decompression bombs before decoding, and turns every failure into an
`ImageError`.
"""

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from ganscope.errors import GanscopeError, ImageError

CONTAINERS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "PPM", "HEIF")
"""What is opened, as Pillow names it; nothing else, for Pillow would hand PostScript to a
program.
"""

MAX_PIXELS = 250_000_000
"""Images with more pixels than this are refused unopened (a phone makes 200 million at most)."""

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


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """What a file's header says about an image, without decoding it."""

    path: str
    format: str
    """Container as Pillow names it: "JPEG", "PNG", "WEBP", ..."""
    mode: str
    """Pillow mode before conversion: "RGB", "L", "CMYK", "I;16", ..."""
    stored_width: int
    stored_height: int
    """Size as stored, before the EXIF orientation is applied."""
    bytes: int
    """Size of the file in bytes."""
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

    @property
    def width(self) -> int:
        return self.pixels.shape[1]

    @property
    def height(self) -> int:
        return self.pixels.shape[0]


def open_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> OpenedImage:
    """Open one image file as upright 8-bit RGB pixels.

    Raises `ImageError` for a file that is missing, empty, truncated, no image, or has more than
    `max_pixels` pixels.
    """
    name = os.fspath(path)
    with _file_errors(name), Image.open(name, formats=_formats()) as image:
        if image.width * image.height > max_pixels:
            raise ImageError(
                name,
                f"{image.width}x{image.height} pixels, more than the limit of {max_pixels:,}; "
                "shrink it first",
            )
        image.load()  # a PNG's EXIF may come behind its pixels
        facts, said = _facts(image, name), []
        if facts.frames > 1 and facts.format != "MPO":  # an MPO's others are the camera's previews
            said.append(f"animated or multi-page: first of {facts.frames} frames")
        transparent = "A" in image.mode or "a" in image.mode or "transparency" in image.info
        ImageOps.exif_transpose(image, in_place=True)
        rgb, lost = _to_rgb(image, transparent)
        pixels = np.asarray(rgb, dtype=np.uint8)
    return OpenedImage(
        **vars(facts), pixels=pixels, warnings=tuple([*said, lost] if lost else said)
    )


def read_facts(path: str | Path) -> ImageFacts:
    """Read an image file's header only; raises `ImageError` as `open_image` does."""
    name = os.fspath(path)
    with _file_errors(name), Image.open(name, formats=_formats()) as image:
        return _facts(image, name)


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `CONTAINERS` that this Pillow can read (HEIF needs a plug-in)."""
    Image.init()
    return tuple(name for name in CONTAINERS if name in Image.OPEN)


@contextmanager
def _file_errors(name: str) -> Iterator[None]:
    """Turn whatever a damaged or hostile file makes Pillow raise into an `ImageError`."""
    try:
        if os.path.getsize(name) == 0:
            raise ImageError(name, "the file is empty")
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


def _facts(image: ImageFile.ImageFile, name: str) -> ImageFacts:
    tables = getattr(image, "quantization", None) or {}
    return ImageFacts(
        path=name,
        format=image.format or "",
        mode=image.mode,
        stored_width=image.width,
        stored_height=image.height,
        bytes=os.path.getsize(name),
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


def _subsampling(image: ImageFile.ImageFile) -> str:
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
