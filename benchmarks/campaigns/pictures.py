"""Whether any damaged picture does more than raise an `ImageError`: files of every kind that is
read, mutated, through `open_image` and `read_facts`.

    python benchmarks/campaigns/pictures.py                 # a minute
    python benchmarks/campaigns/pictures.py --count 2000    # so many files
    python benchmarks/campaigns/pictures.py --minutes 600   # a night
    python benchmarks/campaigns/pictures.py --file FAULT    # one again

Each is opened in a process of its own kind, which may hang, crash or take memory without harm; what
does is written to `--keep`. The last line counts; the exit status is 1 if there are faults.
"""

import argparse
import contextlib
import multiprocessing
import os
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ganscope.errors import ImageError
from ganscope.images import open_image, read_facts

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from made_files import XMP, chunk, dng, encoded, ink_profile, matrix_profile, several

LIMIT = 25_000_000
"""Pixels at most: a larger claim is refused."""
SLOW, MEMORY = 20.0, 2 << 30
"""Seconds and bytes that a file may take."""


def made() -> dict[str, bytes]:
    """A file of every kind that is read here."""
    rng = np.random.default_rng(0)
    pixels = cv2.resize(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8), (96, 72))
    image, other = Image.fromarray(pixels), Image.fromarray(255 - pixels)
    deep = pixels.astype(np.uint16) * 16
    profile = matrix_profile(np.array([[0.52, 0.29, 0.16], [0.24, 0.69, 0.07], [0, 0.04, 0.78]]))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    alpha = image.copy()
    alpha.putalpha(Image.fromarray(pixels[..., 0]))

    def film() -> dict:  # new ones: Pillow leaves notes in what it has saved
        return {"save_all": True, "append_images": [other.copy(), image.copy()]}

    found = {
        "jpeg": encoded(image, "JPEG", exif=exif, icc_profile=profile, xmp=XMP % b""),
        "jpeg progressive": encoded(image, "JPEG", progressive=True, subsampling="4:4:4"),
        "jpeg cmyk": encoded(
            image.convert("CMYK"), "JPEG", icc_profile=ink_profile((60, -30, -40))
        ),
        "jpeg grey": encoded(image.convert("L"), "JPEG"),
        "mpo": several(encoded(image, "JPEG"), encoded(other, "JPEG")),
        "ultra hdr": encoded(image, "JPEG", xmp=XMP % b'hdrgm:Version="1.0"')
        + encoded(other.convert("L"), "JPEG"),
        "motion": encoded(image, "JPEG", xmp=XMP % b'GCamera:MotionPhoto="1"') + bytes(500),
        "png": encoded(image, "PNG", exif=exif, icc_profile=profile),
        "png palette": encoded(image.quantize(16), "PNG", transparency=3),
        "png alpha": encoded(alpha, "PNG"),
        "png 16": cv2.imencode(".png", deep)[1].tobytes(),
        "png 16 grey": cv2.imencode(".png", deep[..., 0])[1].tobytes(),
        "apng": encoded(image, "PNG", **film()),
        "gif": encoded(image.quantize(32), "GIF", **film()),
        "webp": encoded(image, "WEBP", exif=exif, icc_profile=profile),
        "webp lossless": encoded(alpha, "WEBP", lossless=True),
        "webp film": encoded(image, "WEBP", **film()),
        "bmp": encoded(image, "BMP"),
        "bmp palette": encoded(image.quantize(16), "BMP"),
        "ppm": encoded(image, "PPM"),
        "ppm deep": b"P6 8 8 4095\n" + rng.integers(0, 16, 384, dtype=np.uint8).tobytes(),
        "pbm": b"P1 8 4\n" + b"1 0 " * 16,
        "tiff pages": encoded(image, "TIFF", **film()),
        "tiff float": cv2.imencode(".tif", pixels.astype(np.float32) / 100)[1].tobytes(),
        "tiff grey float": encoded(Image.fromarray(pixels[..., 0].astype(np.float32)), "TIFF"),
        "tiff 16": cv2.imencode(".tif", deep)[1].tobytes(),
        "tiff lab": encoded(Image.new("LAB", (16, 16), (99, 120, 130)), "TIFF"),
        "tiff cmyk": encoded(
            image.convert("CMYK"), "TIFF", icc_profile=ink_profile((60, -30, -40))
        ),
        "raw": dng(side=128),
        "raw preview": dng(encoded(image.resize((192, 144)), "JPEG"), orientation=6, side=128),
    }
    for packing in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        found[f"tiff {packing}"] = encoded(image, "TIFF", compression=packing, exif=exif)
    text = chunk(b"zTXt", b"workflow\0\0" + encoded(image, "PNG")[41:300])
    found["png text"] = found["png alpha"][:33] + text + found["png alpha"][33:]
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
        image.info["exif"] = exif.tobytes()
        found["heic"] = encoded(image, "HEIF", icc_profile=profile)
        found["heic burst"] = encoded(image, "HEIF", **film())
        found["heic alpha"] = encoded(alpha, "HEIF")
    with contextlib.suppress(ImportError):
        import pillow_jxl  # noqa: F401

        found["jxl"] = encoded(image, "JXL", exif=exif.tobytes())
        found["jxl lossless"] = encoded(alpha, "JXL", lossless=True)
    if "AVIF" in Image.SAVE:
        found["avif"] = encoded(image, "AVIF", exif=exif, icc_profile=profile)
        found["avif film"] = encoded(image, "AVIF", **film())
    for content in found.values():
        open_image(content)
    return found


def mutated(content: bytes, others: list[bytes], rng: np.random.Generator) -> bytes:
    """A file after one to three accidents; every other PNG with sums that are right again, for its
    decoder to get far.
    """
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        if not data:
            break
        # Half of them near the start, where the headers are.
        end = len(data) if rng.random() < 0.5 else min(len(data), 400)
        at = int(rng.integers(end))
        length = int(rng.integers(1, 1 + min(200, len(data))))
        match int(rng.integers(8)):
            case 0:
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                for place in rng.integers(0, end, 8):
                    data[place] = rng.integers(256)
            case 2:
                del data[at:]
            case 3:
                data[at : at + length] = bytes(length)
            case 4:
                del data[at : at + length]
            case 5:
                data[at:at] = data[at : at + length] * int(rng.integers(1, 20))
            case 6:
                number = int(rng.choice([0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]))
                data[at : at + 4] = struct.pack(rng.choice(["<I", ">I"]), number)
            case 7:
                other = others[int(rng.integers(len(others)))]
                place = int(rng.integers(len(other)))
                data[at : at + length] = other[place : place + length]
    return summed(bytes(data)) if rng.random() < 0.5 else bytes(data)


def summed(content: bytes) -> bytes:
    """A PNG whose chunks have the check sums that they should have; other files as they are."""
    data, at = bytearray(content), 8
    while content[:4] == b"\x89PNG" and at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(data)


def look(content: bytes) -> str:
    """Open a file; says how it ends."""
    with contextlib.suppress(ImageError):
        read_facts(content)
    try:
        opened = open_image(content, max_pixels=LIMIT)
    except ImageError as error:
        return "refused" if error.reason.isprintable() else f"unprintable: {error.reason!r}"
    assert opened.pixels.dtype == np.uint8
    assert opened.pixels.shape[2] == 3
    assert opened.pixels.size <= 3 * LIMIT
    return "opened"


def work(pipe: Connection, look: Callable[[bytes], str]) -> None:
    """Look at what comes, until it is told to end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # what the libraries print
    warnings.simplefilter("ignore")
    while content := pipe.recv_bytes():
        try:
            said = look(content)
        except BaseException:
            said = traceback.format_exc()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        pipe.send((said, peak))


class Worker:
    """A process that looks at files, begun anew after each that it does not survive.

    look: what it does with one; says "opened", "refused", or what is wrong.
    """

    def __init__(self, look: Callable[[bytes], str] = look, slow: float = SLOW) -> None:
        self.at_work, self.slow = look, slow
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, self.at_work), daemon=True)
        self.process.start()
        theirs.close()
        self.peak = 0

    def look(self, content: bytes) -> str:
        self.pipe.send_bytes(content)
        if not self.pipe.poll(self.slow):
            self.stop()
            self.start()
            return f"hang: more than {self.slow:.0f} s"
        try:
            said, peak = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            said = f"crash: exit code {self.process.exitcode}"
            self.start()
            return said
        grown, self.peak = peak > MEMORY, peak
        if grown:
            self.stop()
            self.start()
            return f"memory: {peak / 2**30:.1f} GiB"
        return said

    def stop(self) -> None:
        if self.process.pid:
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()


def campaign(stop: Callable[[int], bool], seed: int, kinds: list[str], keep: Path) -> int:
    """Returns the number of faults."""
    files = {name: content for name, content in made().items() if not kinds or name in kinds}
    names, others = list(files), list(files.values())
    worker, ends, faults, peak, slowest = Worker(), Counter[str](), 0, 0, (0.0, "")
    by_name: dict[str, Counter[str]] = {name: Counter() for name in names}
    number = 0
    while not stop(number):
        rng = np.random.default_rng((seed, number))
        name = names[number % len(names)]
        content = mutated(files[name], others, rng) or b"\0"
        begun = time.monotonic()
        said = worker.look(content)
        slowest = max(slowest, (time.monotonic() - begun, name))
        peak = max(peak, worker.peak)
        number += 1
        if said not in ("opened", "refused"):
            faults += 1
            keep.mkdir(parents=True, exist_ok=True)
            kept = keep / f"{name.replace(' ', '-')}-{seed}-{number - 1}"
            kept.write_bytes(content)
            print(f"{kept}: {said}", flush=True)
            said = "fault"
        by_name[name][said] += 1
        ends[said] += 1
    worker.stop()
    for name, counts in by_name.items():
        told = ", ".join(f"{count} {end}" for end, count in sorted(counts.items()))
        print(f"  {name}: {told}")
    told = ", ".join(f"{ends[end]:,} {end}" for end in ("opened", "refused"))
    print(f"{number:,} files of {len(names)} kinds: {told}, {faults} faults; ", end="")
    print(f"slowest {slowest[0]:.1f} s ({slowest[1]}), most memory {peak / 2**20:.0f} MiB")
    return faults


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument("--minutes", type=float, default=1.0)
    options.add_argument("--count", type=int, help="so many files, however long it takes")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--kind", action="append", default=[], help="only files made from these")
    options.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "pictures")
    options.add_argument("--file", type=Path, help="open this one and tell")
    chosen = options.parse_args()
    if chosen.file:
        print(look(chosen.file.read_bytes()))
        return
    end = time.monotonic() + 60 * chosen.minutes

    def stop(number: int) -> bool:
        return number >= chosen.count if chosen.count else time.monotonic() > end

    sys.exit(bool(campaign(stop, chosen.seed, chosen.kind, chosen.keep)))


if __name__ == "__main__":
    main()
