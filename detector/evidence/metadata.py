"""What a file carries beside its pixels, by Pillow's readers; nothing is decoded."""

import io
import zlib
from dataclasses import dataclass, field
from typing import Any

from PIL import ExifTags, Image, IptcImagePlugin

from ganscope.containers import open_main
from ganscope.detector.evidence.record import clean, said
from ganscope.errors import ImageError, reason_of
from ganscope.images import MAX_PIXELS

PNG = b"\x89PNG\r\n\x1a\n"
PIXELS = (b"IDAT", b"fdAT", b"fcTL", b"acTL")
"""A PNG's chunks of pixels and frames."""


LONGEST_TEXTS = 48 << 20
"""Bytes of text that are read of a PNG; Pillow stops at 64 million."""


@dataclass(frozen=True)
class Text:
    """A text in a file, and where it lies."""

    where: str
    """ "PNG text", "EXIF", "IPTC", "comment" or "XMP"."""
    key: str
    text: str
    """As it stands there, of any length: `clean` it before it is shown."""


@dataclass
class Metadata:
    """All that a file carries beside its pixels."""

    format: str = ""
    """As Pillow names it; "" for what it cannot open."""
    texts: list[Text] = field(default_factory=list)
    exif: dict[str, Any] = field(default_factory=dict)
    """EXIF values by their names, the photograph's own (exposure, lens, dates) among them."""
    iptc: dict[str, str] = field(default_factory=dict)
    """IPTC-IIM: credit, source, byline, instructions, program, caption, ..."""
    xmp: bytes = b""
    unread: list[str] = field(default_factory=list)
    """What could not be read, and why."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing, and nothing that could not be read."""
        return not (self.texts or self.exif or self.iptc or self.xmp or self.unread)

    def text(self, where: str, key: str) -> str:
        """One text; "" if there is none."""
        return next((t.text for t in self.texts if (t.where, t.key) == (where, key)), "")


def read_metadata(content: bytes) -> Metadata:
    """Read a file's metadata; never raises, what cannot be read is told in `unread`."""
    found = Metadata()
    try:
        if content.startswith(PNG):
            content = _without_pixels(content, found)
        image, found.format, _ = open_main(io.BytesIO(content), "", MAX_PIXELS, decode=False)
        with image:
            for read in (_texts, _exif, _iptc, _xmp):
                try:
                    read(image, found)
                except Exception as error:  # damaged files make readers raise nearly anything
                    name = read.__name__.strip("_").replace("texts", "text").upper()
                    found.unread.append(f"{name} cannot be read ({_short(error)})")
    except ImageError as error:
        found.unread.append(error.reason)
    except Exception as error:
        found.unread.append(f"the file's head cannot be read ({_short(error)})")
    return found


def is_bare(content: bytes) -> bool:
    """Whether a JPEG that can be decoded has nothing but JFIF's head and tables before its pixels,
    so that `read_metadata` would find nothing.
    """
    at = 2
    while content[at : at + 1] == b"\xff":
        kind, size = content[at + 1 : at + 2], int.from_bytes(content[at + 2 : at + 4])
        if kind == b"\xda":
            return True
        jfif = kind == b"\xe0" and content[at + 4 : at + 9] == b"JFIF\0"
        if size < 2 or not (jfif or kind in _TABLES):
            return False
        at += 2 + size
    return False


_TABLES = {b"\xc0", b"\xc1", b"\xc2", b"\xc4", b"\xdb", b"\xdd"}
"""Segments by which a JPEG is decoded: frames, Huffman tables, quantisation, restarts."""


def _short(error: Exception) -> str:
    return clean(" ".join(reason_of(error).split()), 160)


def _without_pixels(content: bytes, found: Metadata) -> bytes:
    """A PNG without its pixels, so that what comes behind them is read at once; chunks that are
    damaged or cut off are left out and told.
    """
    kept, at, damaged, texts, unpacked = [PNG], len(PNG), 0, 0, 0
    while at + 12 <= len(content):
        size, kind = int.from_bytes(content[at : at + 4]), content[at + 4 : at + 8]
        end = at + 12 + size
        if kind == b"IEND":
            break
        if kind not in PIXELS:
            chunk = content[at:end]
            whole = end <= len(content) and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])
            if whole and kind in (b"zTXt", b"iTXt"):
                try:
                    chunk = _unpacked(kind, chunk[8:-4], LONGEST_TEXTS - unpacked)
                    unpacked += len(chunk)
                except OverflowError:
                    chunk, unpacked = b"", LONGEST_TEXTS
            texts += len(chunk) if kind[1:] in (b"EXt", b"TXt") else 0
            if whole and chunk and texts <= LONGEST_TEXTS:
                kept.append(chunk)
            else:
                damaged += 1
        at = end
    if damaged:
        found.unread.append(
            f"{damaged} parts of the PNG are damaged, cut off or too long, and were passed over"
        )
    return b"".join([*kept, b"\0\0\0\0IEND\xaeB`\x82"])


def _unpacked(kind: bytes, body: bytes, most: int) -> bytes:
    """A chunk of compressed text as one that is not: Pillow stops at more than a megabyte, which
    graphs of ComfyUI have. Nothing for one that cannot be unpacked; raises `OverflowError` for one
    of more than `most` bytes.
    """
    key, _, rest = body.partition(b"\0")
    if kind == b"zTXt":
        kind, head, packed = b"tEXt", key + b"\0", rest[1:]
    elif rest[:1] == b"\1":
        language, _, rest = rest[2:].partition(b"\0")
        translated, _, packed = rest.partition(b"\0")
        head = key + b"\0\0\0" + language + b"\0" + translated + b"\0"
    else:
        head, packed = body, b""
    text = _inflated(packed, most) if packed else b""
    if text is None:
        return b""
    chunk = kind + head + text
    return (len(chunk) - 4).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4)


def _inflated(packed: bytes, most: int) -> bytes | None:
    """What was compressed; None if it is damaged. Raises `OverflowError` if it is longer."""
    if most <= 0:
        raise OverflowError
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(packed, most)
    except zlib.error:
        return None
    if unpacker.unconsumed_tail:
        raise OverflowError
    return text


def _texts(image: Image.Image, found: Metadata) -> None:
    if image.format == "PNG":
        for key, value in image.info.items():
            if isinstance(value, str) and isinstance(key, str) and key != "XML:com.adobe.xmp":
                found.texts.append(Text("PNG text", key, value))
    comment = image.info.get("comment")
    if comment and image.format != "PNG":
        found.texts.append(Text("comment", "comment", _decoded(comment)))


def _exif(image: Image.Image, found: Metadata) -> None:
    exif = Image.Image.getexif(image)  # not `image.getexif()`: a PNG's would decode the pixels
    found.exif = {ExifTags.TAGS.get(tag, f"tag {tag}"): value for tag, value in exif.items()}
    for ifd in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        part = exif.get_ifd(ifd)
        if ifd == ExifTags.IFD.GPSInfo:
            found.exif |= {"GPS": "a position is given"} if part else {}
        else:
            found.exif |= {ExifTags.TAGS.get(tag, f"tag {tag}"): v for tag, v in part.items()}
    for key, value in found.exif.items():
        if key in ("XPTitle", "XPComment", "XPAuthor", "XPKeywords", "XPSubject"):
            raw = bytes(value) if isinstance(value, tuple | list) else value
            value = raw.decode("utf-16-le", "replace") if isinstance(raw, bytes) else raw
        elif key == "UserComment" and isinstance(value, bytes):
            value = _user_comment(value)
        elif isinstance(value, bytes) and key != "MakerNote":
            value = _decoded(value)
        if isinstance(value, str) and (value := value.strip("\0 ")):
            found.texts.append(Text("EXIF", key, value))


def _user_comment(value: bytes) -> str:
    """EXIF's UserComment: eight bytes name the encoding, and UTF-16 comes in either order."""
    code, text = value[:8], value[8:]
    if code == b"UNICODE\0":
        if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return text.decode("utf-16", "replace")
        big = text[0:400:2].count(0) > text[1:400:2].count(0)
        return text.decode("utf-16-be" if big else "utf-16-le", "replace")
    if code in (b"ASCII\0\0\0", b"\0" * 8, b"JIS\0\0\0\0\0"):
        return text.decode("utf-8", "replace")
    return _decoded(value)


def _decoded(value: object) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.decode("latin-1")
    return value if isinstance(value, str) else ""


IPTC = {
    (2, 5): "Title",
    (2, 25): "Keywords",
    (2, 40): "Instructions",
    (2, 65): "Program",
    (2, 80): "Byline",
    (2, 105): "Headline",
    (2, 110): "Credit",
    (2, 115): "Source",
    (2, 116): "Copyright",
    (2, 120): "Caption",
}


def _iptc(image: Image.Image, found: Metadata) -> None:
    opened: Any = image  # what Pillow calls an ImageFile
    for key, value in (IptcImagePlugin.getiptcinfo(opened) or {}).items():
        if key in IPTC:
            parts = value if isinstance(value, list) else [value]
            text = "; ".join(_decoded(part) for part in parts)
            found.iptc[IPTC[key]] = text
            found.texts.append(Text("IPTC", IPTC[key], text))


def _xmp(image: Image.Image, found: Metadata) -> None:
    packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    found.xmp = packet.encode("utf-8", "replace") if isinstance(packet, str) else bytes(packet)


def shown(exif: dict[str, Any], *names: str) -> dict[str, str]:
    """Some EXIF values as text, those that are there."""
    pairs = ((name, said(_plain(exif.get(name)))) for name in names)
    return {name: text for name, text in pairs if text}


def _plain(value: Any) -> object:
    """An EXIF value as text or number; None for what is neither."""
    if isinstance(value, bytes):
        return _decoded(value).strip("\0 ")
    if isinstance(value, str):
        return value.strip("\0 ")
    if isinstance(value, tuple):
        return ", ".join(str(part) for part in value[:8])
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return f"{number:.6g}" if number == number else None
