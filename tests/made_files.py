"""Files that tests and campaigns write themselves, where Pillow cannot: raw files, colour profiles,
pictures behind pictures.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def encoded(pixels: np.ndarray | Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, format, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description %s/></x:xmpmeta>'


def several(*pictures: bytes) -> bytes:
    """Pictures of an MPO file: JPEGs one behind the other, listed in the first."""
    images = [Image.open(io.BytesIO(picture)) for picture in pictures]
    return encoded(images[0], "MPO", save_all=True, append_images=images[1:])


# Matrices to XYZ under D50 of a published kind: columns are the primaries.
SRGB = np.array([[0.4360, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
P3 = np.array([[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]])
ADOBE = np.array([[0.6097, 0.2053, 0.1492], [0.3111, 0.6257, 0.0632], [0.0195, 0.0609, 0.7446]])


def icc(space: bytes, pcs: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr") -> bytes:
    """A colour profile, version 2.1."""
    shown = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78)
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    tags = {b"desc": shown, b"cprt": b"text" + bytes(4) + b"none\0", b"wtpt": white, **tags}
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += struct.pack(">4sII", name, 132 + 12 * len(tags) + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", 0, bytes(4), 0x02100000, kind, space, pcs)
    head += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    head += struct.pack(">3i", 63190, 65536, 54061)
    head = struct.pack(">I", 128 + len(table) + len(body)) + head[4:]
    return head.ljust(128, b"\0") + table + body


def matrix_profile(matrix: np.ndarray, gamma: float = 2.2) -> bytes:
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    tags = {name + b"TRC": curve for name in (b"r", b"g", b"b")}
    for name, column in zip((b"r", b"g", b"b"), matrix.T, strict=True):
        tags[name + b"XYZ"] = b"XYZ " + bytes(4) + struct.pack(">3i", *(column * 65536).astype(int))
    return icc(b"RGB ", b"XYZ ", tags)


def grey_profile(gamma: float) -> bytes:
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    return icc(b"GRAY", b"XYZ ", {b"kTRC": curve})


def ink_profile(cyan: tuple[int, int, int]) -> bytes:
    """CMYK whose corners are white, black where there is K, and a Lab of one's own for pure C."""
    corners = np.zeros((2, 2, 2, 2, 3))
    corners[..., 0, :] = (50, 0, 0)
    corners[0, 0, 0, 0] = (100, 0, 0)
    corners[1, 0, 0, 0] = cyan
    table = (corners * (2.55, 1, 1) + (0, 128, 128)).round().clip(0, 255).astype(np.uint8)
    one_to_one = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0])
    lut += struct.pack(">9i", *(np.eye(3).ravel() * 65536).astype(int))
    return icc(
        b"CMYK",
        b"Lab ",
        {b"A2B0": lut + one_to_one * 4 + table.tobytes() + one_to_one * 3},
        b"prtr",
    )


def tiff(*directories: tuple[dict[int, tuple[str, list]], bytes]) -> bytes:
    """A little-endian TIFF whose first directory's tag 330 names the others; each has a strip."""
    sizes = {"B": 1, "s": 1, "H": 2, "I": 4, "R": 8, "S": 8}
    codes = {"B": 1, "s": 2, "H": 3, "I": 4, "R": 5, "S": 10}
    out, places = bytearray(b"II*\0\0\0\0\0"), []

    def put(data: bytes) -> int:
        out.extend(bytes(len(out) % 2))
        place = len(out)
        out.extend(data)
        return place

    for number, (tags, strip) in reversed(list(enumerate(directories))):
        tags = {**tags, 273: ("I", [put(strip)]), 279: ("I", [len(strip)])}
        if number == 0 and places:
            tags[330] = ("I", places)
        rows = b""
        for tag, (kind, values) in sorted(tags.items()):
            flat = [part for value in values for part in (value if kind in "RS" else [value])]
            layout = {"R": "I", "S": "i", "s": "B"}.get(kind, kind)
            data = struct.pack(f"<{len(flat)}{layout}", *flat)
            assert len(data) == len(values) * sizes[kind]
            data = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack("<I", put(data))
            rows += struct.pack("<HHI", tag, codes[kind], len(values)) + data
        places.append(put(struct.pack("<H", len(tags)) + rows + bytes(4)))
    out[4:8] = struct.pack("<I", places[-1])
    return bytes(out)


def dng(preview: bytes = b"", orientation: int = 1, side: int = 256) -> bytes:
    """A raw file of a grey picture, brighter on the right; with a JPEG preview if there is one."""
    mosaic = np.tile(np.linspace(2000, 60000, side, dtype=np.uint16), (side, 1))
    about = {
        271: ("s", list(b"Test\0")),
        272: ("s", list(b"Camera\0")),
        274: ("H", [orientation]),
        50706: ("B", [1, 4, 0, 0]),
        50708: ("s", list(b"Test Camera\0")),
    }
    raw = {
        254: ("I", [0]),
        256: ("I", [side]),
        257: ("I", [side]),
        258: ("H", [16]),
        259: ("H", [1]),
        262: ("H", [32803]),
        277: ("H", [1]),
        278: ("I", [side]),
        33421: ("H", [2, 2]),
        33422: ("B", [0, 1, 1, 2]),
        50717: ("I", [65535]),
        50721: ("S", [(v, 1) for v in (1, 0, 0, 0, 1, 0, 0, 0, 1)]),
        50728: ("R", [(1, 1)] * 3),
        50778: ("H", [21]),
    }
    if not preview:
        return tiff(({**raw, **about}, mosaic.tobytes()))
    width, height = Image.open(io.BytesIO(preview)).size
    small = {254: ("I", [1]), 256: ("I", [width]), 257: ("I", [height]), 258: ("H", [8, 8, 8])}
    small |= {259: ("H", [7]), 262: ("H", [6]), 277: ("H", [3]), 278: ("I", [height])}
    colours = {tag: raw.pop(tag) for tag in (50721, 50728, 50778)}
    return tiff(({**small, **about, **colours}, preview), (raw, mosaic.tobytes()))
