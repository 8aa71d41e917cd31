"""What a file holds, by its first bytes; and its main picture, whatever library can read it.

Pillow reads most. HEIC, JPEG XL and the raw files of cameras need an extra each, for the libraries
behind them are large or under other licences; a file that needs one says which.
"""

import functools
import io
import os
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from typing import BinaryIO

import numpy as np
from PIL import Image, TiffImagePlugin

from ganscope.errors import ImageError

_OF_RAW = "dng cr2 cr3 crw nef nrw arw srf sr2 raf orf rw2 pef srw x3f 3fr iiq mrw kdc dcr erf mef"
RAW_SUFFIXES = frozenset(f".{name}" for name in [*_OF_RAW.split(), "mos", "rwl"])
"""Endings of the raw files of cameras."""

_OF_OTHERS = (
    "jpg jpeg jpe jfif mpo png apng webp avif heic heif hif jxl bmp dib gif tif tiff ppm pgm pbm"
)
IMAGE_SUFFIXES = RAW_SUFFIXES.union(f".{name}" for name in [*_OF_OTHERS.split(), "pnm", "pfm"])
"""File name endings, in lower case, by which a folder's images are recognised."""

HEAD = 64
"""Bytes from which `container_of` tells what a file is."""
SMALL_PREVIEW = 1024
"""A raw file's preview is taken if its longer side has so many pixels; else the file is
developed."""

_EXTRAS = {
    "HEIF": ("HEIC", "pillow_heif", "pip install 'ganscope[heic]'"),
    "JXL": ("JPEG XL", "pillow_jxl", "pip install 'ganscope[jxl]'"),
    "RAW": ("a camera's raw file", "rawpy", "pip install 'ganscope[raw]'"),
}
"""Container -> what it is called, the module that reads it, and how to get that."""
_STARTS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\xff\x0a", "JXL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JXL"),
    (b"FUJIFILMCCD-RAW", "RAW"),
    (b"IIRO", "RAW"),
    (b"IIRS", "RAW"),
    (b"MMOR", "RAW"),
    (b"IIU\0", "RAW"),
    (b"II\x1a\0\0\0HEAPCCDR", "RAW"),
    (b"FOVb", "RAW"),
    (b"\0MRM", "RAW"),
)
_HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"mif2"}
_OTHERS = (
    (b"%PDF", "a PDF"),
    (b"%!PS", "PostScript"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"<svg", "SVG, a drawing"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"8BPS", "a Photoshop document"),
    (b"\x1aE\xdf\xa3", "a video"),
)
"""What is often taken for an image, and what it is called."""


def looks_like_image(head: bytes) -> bool:
    """Whether a file that begins with these (`HEAD` or more) bytes is an image of a kind that
    `open_image` reads, here or with an extra installed.
    """
    return bool(container_of(head))


def container_of(head: bytes) -> str:
    """The container of a file that begins so, as Pillow names it, or "RAW"; "" for no image."""
    for start, name in _STARTS:
        if head.startswith(start):
            marked = head[8:10] == b"CR" or head[8:12] == b"IIII"  # Canon, Phase One
            return "RAW" if name == "TIFF" and marked else name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if (
        head[:2] == b"BM"
        and head[15:18] == b"\0\0\0"
        and head[14] in (12, 16, 40, 52, 56, 64, 108, 124)
    ):
        return "BMP"
    if head[:1] == b"P" and head[1:2] in b"123456f" and head[2:3].isspace():
        return "PPM"
    if head[4:8] == b"ftyp":
        brands = {head[8:12], *(head[i : i + 4] for i in range(16, HEAD, 4))}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        return "RAW" if head[8:12] == b"crx " else "HEIF" if brands & _HEIF else ""
    return ""


def refuse_other(head: bytes, name: str) -> str:
    """The container of a file that begins so; raises `ImageError` if it is no image, or one that
    cannot be read here.
    """
    found = container_of(head)
    if not found:
        start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        for other, called in _OTHERS:
            if start.startswith(other.lower()):
                raise ImageError(name, f"not an image, but {called}")
        if head[4:8] == b"ftyp" or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
            raise ImageError(name, "not an image, but a video or of a kind that is not read")
        raise ImageError(name, "not an image, or of a kind that is not read")
    _require(found, name)
    return found


def _require(container: str, name: str) -> None:
    """Load what reads a container; raises `ImageError` if that is missing."""
    if container in _EXTRAS:
        called, module, how = _EXTRAS[container]
        try:
            plugin = import_module(module)
        except ImportError:
            missing = f"{called}, which cannot be read without {module}: {how}"
            raise ImageError(name, missing) from None
        if container == "HEIF" and container not in Image.OPEN:
            plugin.register_heif_opener()
    elif not _pillow_reads(container):
        raise ImageError(name, f"{container}, which this Pillow cannot read: update Pillow")


@functools.cache
def _pillow_reads(container: str) -> bool:
    """Whether this Pillow does; its five most common readers load first, the others take longer."""
    Image.preinit()
    if container not in Image.OPEN:
        Image.init()
    return container in Image.OPEN


def open_main(
    file: BinaryIO, name: str, max_pixels: int, decode: bool
) -> tuple[Image.Image, str, list[str]]:
    """An image file's main picture, its container, and what should be said of both.

    file: at its start; what is not decoded reads from it later. decode: False where the header is
    enough. Raises `ImageError`, and whatever a damaged file makes the libraries raise.
    """
    head = file.read(HEAD)
    if not head:
        raise ImageError(name, "the file is empty")
    container = refuse_other(head, name)
    file.seek(0)
    if container == "JXL":  # its plug-in decodes while it opens
        content = file.read()
        _limit(jxl_size(content), name, max_pixels)
        file.seek(0)
    if container == "RAW" or (container == "TIFF" and _is_raw(file)):
        _require("RAW", name)
        image, said = _open_raw(file.read(), name, max_pixels, decode)
        return image, "RAW", said
    try:
        image = Image.open(file, formats=("JPEG", "MPO") if container == "JPEG" else (container,))
    except Image.UnidentifiedImageError:
        if container != "TIFF":
            raise ValueError("its header makes no sense") from None
        file.seek(0)
        image = _open_tiff(file.read(), name, max_pixels)
        return image, container, []
    said = _main_of_several(image)
    if decode:
        _limit(image.size, name, max_pixels)
    return image, image.format or container, said


def bytes_of_main(image: Image.Image, file: BinaryIO) -> tuple[int, int]:
    """How many bytes a file has, and how many of them are its main picture's; `image`: that.

    Of a JPEG's and a PNG's, its metadata are none.
    """
    size = file.seek(0, os.SEEK_END)
    if image.format == "PNG":
        return size, _bytes_of_chunks(file, b"IDAT", size)
    if image.format not in ("JPEG", "MPO"):
        return size, size
    about = sum(4 + len(data) for _, data in getattr(image, "applist", ()))
    return size, max(_end_of_main(image, file, size) - about, 0)


def _end_of_main(image: Image.Image, file: BinaryIO, size: int) -> int:
    with suppress(Exception):  # a list that makes no sense says nothing
        listed = image._getmp()  # type: ignore[attr-defined]  # as Pillow's own MPO plug-in does
        if listed and listed[45057] > 1:
            first = int(listed[45058][0]["Size"])
            return first if 0 < first < size else size
    file.seek(-2, os.SEEK_END)
    if file.read(2) == b"\xff\xd9" and not _main_of_several(image):
        return size
    file.seek(0)
    return jpeg_end(file.read())


def _bytes_of_chunks(file: BinaryIO, wanted: bytes, size: int) -> int:
    """How many bytes a PNG's chunks of a kind have."""
    at, found = 8, 0
    for _ in range(_MOST_CHUNKS):
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            return found
        length, kind = struct.unpack(">I4s", head)
        found += length * (kind == wanted)
        at += 12 + length
    return size


_MOST_CHUNKS = 100_000
"""A PNG of 250 million pixels has some 30,000."""


def jpeg_end(content: bytes) -> int:
    """Where the first picture of a JPEG file ends."""
    at = 2
    while found := _MARKER.search(content, at):
        at = found.start()
        if content[at + 1] == 0xD9:
            return at + 2
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return len(content)


_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd8]")
"""What is not pixels in a JPEG."""


def without_chunks(content: bytes, kinds: tuple[bytes, ...]) -> bytes:
    """A PNG without its chunks of some kinds."""
    parts, at = [content[:8]], 8
    while at + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        if kind not in kinds:
            parts.append(content[at : at + 12 + length])
        at += 12 + length
    return b"".join([*parts, content[at:]])


def _limit(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            name,
            f"{width}x{height} pixels, more than the limit of {max_pixels:,}; shrink it first",
        )


def _main_of_several(image: Image.Image) -> list[str]:
    """Turn to the main picture of a file with several; what should be said of it."""
    frames = int(getattr(image, "n_frames", 1))
    if image.format == "TIFF" and frames > 1:
        for page in range(min(frames, 8)):  # a small copy may come first
            image.seek(page)
            if not int(image.tag_v2.get(_SUBFILE, 0)) & 1:  # type: ignore[attr-defined]
                return [f"animated or multi-page: {_ORDINALS[page]} of {frames} frames"]
        image.seek(0)
    if image.format == "JPEG":
        about = image.info.get("xmp", b"")
        about = about if isinstance(about, bytes) else str(about).encode()
        if b"hdrgm:Version" in about or b"hdr-gain-map" in about:
            return ["Ultra HDR: the main picture, without its gain map"]
        if any(word in about for word in _MOTION):
            return ["motion photo: the main picture, without the film behind it"]
        return []
    if frames < 2:
        return []
    if image.format in ("MPO", "HEIF"):
        return [f"the main picture of {frames} in the file"]
    return [f"animated or multi-page: first of {frames} frames"]


_SUBFILE = 254
"""TIFF tag; bit 0: a smaller copy of another page."""
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
_MOTION = (b'MotionPhoto="1"', b"MotionPhoto>1<", b'MicroVideo="1"', b"MicroVideo>1<")


# TIFFs that Pillow does not know: colours in floating point


def _open_tiff(content: bytes, name: str, max_pixels: int) -> Image.Image:
    """A TIFF of a kind that Pillow does not read, by OpenCV. (H, W) float goes on as mode F, colour
    as a stack that `colour.to_rgb` is told of by `info["samples"]`.
    """
    tags = _tags(io.BytesIO(content))
    width, height = int(tags.get(256, 0)), int(tags.get(257, 0))
    _limit((width, height), name, max_pixels)
    samples = read_deep(content)
    image = Image.new("RGB", (samples.shape[1], samples.shape[0]))
    image.format = "TIFF"
    image.info |= {"samples": samples, "icc_profile": tags.get(34675)}
    return image


def _tags(file: BinaryIO) -> TiffImagePlugin.ImageFileDirectory_v2:
    """A TIFF's first directory."""
    head = file.read(16)
    tags = TiffImagePlugin.ImageFileDirectory_v2(head if 43 in head[2:4] else head[:8])
    file.seek(tags.next)
    tags.load(file)
    return tags


def read_deep(content: bytes) -> np.ndarray:
    """All the depth that a PNG or TIFF has: (H, W), (H, W, 3) or (H, W, 4), as it is stored, in RGB
    order.
    """
    import cv2  # `ganscope --help` and `inspect` do without it

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # we tell what fails
    found = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None:
        raise ValueError("of a kind that is not read")
    if found.ndim == 3:
        order = [2, 1, 0, 3][: found.shape[2]] if found.shape[2] > 2 else [0]
        found = found[..., order]
    return found


# JPEG XL


def jxl_size(content: bytes) -> tuple[int, int]:
    """Width and height as a JPEG XL file's header says (ISO 18181-1, SizeHeader)."""
    stream = next(_jxl_streams(content), b"")
    bits = int.from_bytes(stream[2:18], "little")

    def take(count: int) -> int:
        nonlocal bits
        found = bits & ((1 << count) - 1)
        bits >>= count
        return found

    def side(small: int) -> int:
        return 8 * (take(5) + 1) if small else 1 + take((9, 13, 18, 30)[take(2)])

    small = take(1)
    height = side(small)
    ratio = take(3)
    if not ratio:
        return side(small), height
    across, down = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height * across // down, height


def _jxl_streams(content: bytes) -> Iterator[bytes]:
    """The first bytes of the code streams of a JPEG XL file, in its boxes or bare."""
    if content[:2] == b"\xff\x0a":
        yield content[:18]
    at = 0
    while at + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        begin = at + 8
        if length == 1:
            length, begin = int.from_bytes(content[begin : begin + 8], "big"), begin + 8
        if kind in (b"jxlc", b"jxlp"):
            begin += 4 * (kind == b"jxlp")
            yield content[begin : begin + 18]
        if length < 8:  # to the end
            return
        at += length


# Raw files


def _is_raw(file: BinaryIO) -> bool:
    """Whether a TIFF is a camera's raw file; leaves the file at its start."""
    try:
        tags = _tags(file)
        compression, kind = tags.get(259, 1), tags.get(262, 0)
        small_copy = bool(int(tags.get(_SUBFILE, 0)) & 1) and 330 in tags
        return 50706 in tags or kind == 32803 or compression in _RAW_PACKED or small_copy
    except Exception:  # whoever reads it next says what is wrong with it
        return False
    finally:
        file.seek(0)


_RAW_PACKED = (32767, 32769, 32770, 34713, 65535)
"""TIFF compressions of Sony, Samsung, Nikon and Pentax."""


def _open_raw(
    content: bytes, name: str, max_pixels: int, decode: bool
) -> tuple[Image.Image, list[str]]:
    """A raw file's preview as its camera made it, or, if that is small, a neutral development."""
    rawpy = import_module("rawpy")
    with rawpy.imread(io.BytesIO(content)) as raw:
        sizes = raw.sizes
        turned = sizes.flip in (5, 6)
        size = (sizes.height, sizes.width) if turned else (sizes.width, sizes.height)
        with suppress(rawpy.LibRawError, OSError, ValueError, SyntaxError):
            thumb = raw.extract_thumb()
            if thumb.format == rawpy.ThumbFormat.JPEG:
                preview = Image.open(io.BytesIO(thumb.data), formats=("JPEG", "MPO"))
                if max(preview.size) >= min(SMALL_PREVIEW, max(size) // 2):
                    _limit(preview.size, name, max_pixels)
                    shown: Image.Image = preview
                    marked = preview.getexif().get(0x0112)
                    if turned and decode and not marked and preview.width > preview.height:
                        shown = preview.transpose(_TURNS[sizes.flip])
                    return shown, ["raw file: the preview that its camera made"]
        _limit(size, name, max_pixels)
        if not decode:
            return Image.new("RGB", size), []
        pixels = raw.postprocess(use_camera_wb=True, no_auto_bright=True, output_bps=8)
        return Image.fromarray(pixels), ["raw file without a large preview: developed neutrally"]


_TURNS = {5: Image.Transpose.ROTATE_90, 6: Image.Transpose.ROTATE_270}
