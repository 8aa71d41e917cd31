"""What becomes of evidence on damaged and hostile files, on real photographs, and of the clock.

    python benchmarks/campaigns/evidence.py                            # 300 mutated files
    python benchmarks/campaigns/evidence.py --files 3000 --samples makers_files/ --check 100
    python benchmarks/campaigns/evidence.py --files 0 --reals corpus/  # wrong declarations
    python benchmarks/campaigns/evidence.py --files 0 --times photo.jpg

Files with metadata (written here, and those of `--samples`) are damaged in many ways and given to
`inspect`; some to `check`, too. An error, a hang, a process that dies or runs out of memory is a
fault; the exit status is 1 if there are any.
"""

import argparse
import io
import json
import multiprocessing
import os
import resource
import struct
import subprocess
import sys
import time
import traceback
import zlib
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from ganscope.datasets.corpus import open_corpus
from ganscope.detector.evidence.evidence import evidence_of, read_evidence
from ganscope.detector.evidence.record import EDITED, GENERATED, PATTERN
from ganscope.detector.evidence.watermarks import SMALLEST, watermarks_installed
from ganscope.images import open_image

PATIENCE = 20.0
"""Seconds for one file; more is a hang."""
MEMORY = 6 << 30
"""Bytes of address space of the process that reads."""

WEBUI = "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, Seed: 7, Model: dream"
GRAPH = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "m.safetensors"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "cat", "clip": ["1", 1]}},
    "3": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
    "4": {"class_type": "VAEEncode", "inputs": {"pixels": ["3", 0], "vae": ["1", 2]}},
    "5": {
        "class_type": "KSampler",
        "inputs": {"seed": 1, "model": ["1", 0], "positive": ["2", 0], "latent_image": ["4", 0]},
    },
    "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0]}},
}
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
    'xmlns:i="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:T="http://www.tc260.org.cn/ns/" '
    'i:DigitalSourceType="trainedAlgorithmicMedia" T:AIGC="{&quot;Label&quot;:&quot;1&quot;}">'
    "</rdf:Description></rdf:RDF></x:xmpmeta>"
)
TEXTS = {
    "parameters": WEBUI,
    "prompt": json.dumps(GRAPH),
    "workflow": json.dumps({"nodes": [{"id": 1, "type": "KSampler"}], "links": [[1, 1, 0, 1, 0]]}),
    "Comment": json.dumps({"prompt": "cat", "seed": 1, "steps": 2, "AIGC": {"Label": "1"}}),
    "invokeai_metadata": json.dumps({"positive_prompt": "cat", "seed": 1, "model": {"name": "m"}}),
}


def make_png(texts: dict[str, str], xmp: str = XMP, packed: bool = False) -> bytes:
    info, file = PngImagePlugin.PngInfo(), io.BytesIO()
    for key, value in texts.items():
        info.add_text(key, value.encode("utf-8", "replace").decode(), zip=packed)
    info.add_itxt("XML:com.adobe.xmp", xmp, zip=packed)
    Image.new("RGB", (64, 48), (9, 99, 200)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def make_other(container: str) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x010F], exif[0x0110], exif[0x0131] = "Canon", "EOS R5", "Midjourney"
    exif.get_ifd(0x8769).update(
        {0x829A: 0.01, 0x829D: 2.8, 0x9286: b"UNICODE\0" + WEBUI.encode("utf-16-be")}
    )
    Image.new("RGB", (64, 48), (9, 99, 200)).save(file, container, exif=exif, xmp=XMP.encode())
    return file.getvalue()


def seeds(samples: Path | None) -> list[bytes]:
    """Whole files with metadata of every kind."""
    found = [make_png(TEXTS), make_png(TEXTS, packed=True)]
    found += [make_other(container) for container in ("JPEG", "WEBP", "TIFF")]
    if samples:
        found += [path.read_bytes() for path in sorted(samples.iterdir()) if path.is_file()]
    return found


# --- damages ---


def head(content: bytes) -> int:
    """Where a file's pixels begin, or its end."""
    places = [content.find(mark) for mark in (b"IDAT", b"\xff\xda", b"VP8 ")]
    return min((place for place in places if place > 16), default=len(content))


def mended(content: bytes) -> bytes:
    """A PNG whose checksums fit again, so that what is damaged reaches those who read it."""
    parts, at = [content[:8]], 8
    while at + 12 <= len(content):
        (size,) = struct.unpack_from(">I", content, at)
        chunk = content[at + 4 : at + 8 + size]
        if at + 12 + size > len(content):
            break
        parts.append(content[at : at + 4] + chunk + struct.pack(">I", zlib.crc32(chunk)))
        at += 12 + size
    return b"".join([*parts, content[at:]])


def mutate(whole: list[bytes], number: int, seed: int) -> bytes:
    """The damaged file of a number."""
    rng = np.random.default_rng([seed, number])
    content = bytearray(whole[int(rng.integers(len(whole)))])
    kind = int(rng.integers(8))
    begin = max(head(bytes(content)), 64)
    if kind <= 2:  # bytes of the head changed
        for at in rng.integers(0, begin, 2 ** int(rng.integers(1, 8))):
            content[at] = int(rng.integers(256))
    elif kind == 3:  # a length of many or none
        at = int(rng.integers(0, begin - 4))
        content[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"])
    elif kind == 4:  # cut off
        del content[int(rng.integers(1, len(content))) :]
    elif kind == 5:  # a part twice, or thousands of times
        at = int(rng.integers(0, begin))
        part = bytes(content[at : at + int(rng.integers(1, 400))])
        content[at:at] = part * int(rng.choice([1, 50, 2000]))
    elif kind == 6:  # half of one, half of another
        other = whole[int(rng.integers(len(whole)))]
        content[int(rng.integers(begin)) :] = other[int(rng.integers(len(other))) :]
    else:  # texts of every kind with signs changed
        texts = {key: scrambled(value, rng) for key, value in TEXTS.items()}
        return make_png(texts, scrambled(XMP, rng), bool(rng.integers(2)))
    made = bytes(content)
    return mended(made) if made[:4] == b"\x89PNG" and rng.integers(4) else made


def scrambled(text: str, rng: np.random.Generator) -> str:
    signs = [*list('{}[]":,\\/<>&;%\t\n0-9eE.+aA\x1b\u202eé🦊'), "null", "1e999", "&x;"]
    found = list(text)
    for _ in range(2 ** int(rng.integers(0, 6))):
        at = int(rng.integers(len(found)))
        found[at] = str(rng.choice(signs)) * int(rng.choice([1, 1, 1, 300]))
    if not rng.integers(8):
        found *= 40
    return "".join(found)


# --- in a process of its own ---


def work(pipe: Connection, samples: Path | None, seed: int, check: bool) -> None:
    """Read damaged files by their numbers; what came of each goes back."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    whole = seeds(samples)
    detector = None
    if check:
        import torch

        from ganscope.detector.judging.checking import check_image
        from ganscope.detector.model import Detector
        from ganscope.errors import ImageError

        torch.set_num_threads(1)
        detector = Detector.create("cnn", width=8, depth=3).eval()
    while (number := pipe.recv()) is not None:
        content = mutate(whole, number, seed)
        begun = time.perf_counter()
        try:
            if detector:
                try:
                    found = check_image(content, detector, device="cpu")
                    json.dumps(found.as_dict()).encode("utf-8")
                    said = found.declared
                except ImageError as error:
                    str(error).encode("utf-8", "surrogateescape")
                    said = "cannot be opened"
            else:
                evidence = read_evidence(content)
                json.dumps(evidence.as_dict()).encode("utf-8")
                said = evidence.declared
        except BaseException:
            said = "ERROR " + traceback.format_exc(limit=-3)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        pipe.send((said, time.perf_counter() - begun, peak))


def fuzz(count: int, samples: Path | None, seed: int, check: bool) -> list[str]:
    """Give so many damaged files to one command; what was wrong, a line each."""
    faults: list[str] = []
    outcomes: Counter[str] = Counter()
    slowest, peak = 0.0, 0
    context = multiprocessing.get_context("spawn")
    process = None
    for number in range(count):
        if process is None:
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, samples, seed, check))
            process.start()
            theirs.close()
            patience = PATIENCE + 120  # for what is imported
        ours.send(number)
        try:
            if not ours.poll(patience):
                raise TimeoutError
            said, seconds, used = ours.recv()
            patience = PATIENCE
        except (EOFError, TimeoutError, ConnectionError) as error:
            hangs = isinstance(error, TimeoutError)
            process.kill()
            process.join()
            faults.append(f"file {number}: {'a hang' if hangs else f'died, {process.exitcode}'}")
            process = None
            continue
        slowest, peak = max(slowest, seconds), max(peak, used)
        outcomes["error" if said.startswith("ERROR") else said] += 1
        if said.startswith("ERROR"):
            faults.append(f"file {number}: {said}")
    if process:
        ours.send(None)
        process.join()
    name = "check" if check else "inspect"
    told = ", ".join(f"{n:,} {what}" for what, n in outcomes.most_common())
    print(f"{name}: {count:,} damaged files: {told}")
    print(f"  the slowest took {slowest:.2f} s, the process {peak / 2**20:,.0f} MiB at most")
    return faults


# --- on real photographs, and of the clock ---


def look_at_reals(folder: Path) -> list[str]:
    """Wrong declarations of a corpus' reals, and watermarks that are not there."""
    table = open_corpus(folder).table
    paths = table["path"][table["label"] == 0]
    counts: Counter[str] = Counter()
    wrong, marked, large = [], 0, 0
    for path in paths:
        image = open_image(path)
        found = evidence_of(image)
        counts[found.declared] += 1
        large += image.width * image.height >= SMALLEST
        marked += any(f.trust == PATTERN for f in found.findings)
        if found.declared in (GENERATED, EDITED):
            wrong.append(f"{path}: {found.reason}")
    told = ", ".join(f"{n:,} {what}" for what, n in counts.most_common())
    print(f"{folder}: {len(paths):,} reals: {told}; {len(wrong)} wrong declarations")
    if watermarks_installed():
        print(f"  {marked} of {large:,} that are large enough seem to have a watermark")
    return wrong


def measure(path: Path, repeats: int) -> None:
    """How long `inspect` takes beside `--help`, and `check` with evidence beside without: the
    processor's time, for other programs may be at work.
    """

    def command(*words: str) -> float:
        begun = os.times()
        subprocess.run([sys.executable, "-m", "ganscope", *words], capture_output=True, check=True)
        end = os.times()
        return sum(end[2:4]) - sum(begun[2:4])  # of the processes that were started

    helped, inspected = [], []
    for _ in range(repeats):
        helped.append(command("--help"))
        inspected.append(command("inspect", str(path)))
    print(
        f"inspect {min(inspected):.2f} s, --help {min(helped):.2f} s: "
        f"{min(inspected) / min(helped):.2f} times"
    )
    from ganscope.detector.evidence.record import Evidence
    from ganscope.detector.judging import scoring
    from ganscope.detector.judging.checking import check_image
    from ganscope.detector.model import load_detector

    detector, whole = load_detector("default"), scoring.evidence_of
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    for number in range(2 * repeats + 2):
        name = ("with", "without")[number % 2]
        scoring.evidence_of = whole if name == "with" else lambda *_: Evidence()
        begun = time.process_time()
        check_image(path, detector, device="cpu")
        if number > 1:  # the first ones load what they need
            seconds[name].append(time.process_time() - begun)
    scoring.evidence_of = whole
    low = {name: min(values) for name, values in seconds.items()}
    print(
        f"check with evidence {low['with']:.3f} s, without {low['without']:.3f} s: "
        f"{low['with'] / low['without']:.3f} times"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument("--files", type=int, default=300, help="damaged files for inspect")
    options.add_argument("--check", type=int, default=0, help="damaged files for check, too")
    options.add_argument("--samples", type=Path, help="folder of files with metadata, as seeds")
    options.add_argument("--reals", type=Path, nargs="*", default=[], help="corpora to look at")
    options.add_argument("--times", type=Path, help="a picture to measure the commands with")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    faults: list[str] = []
    if chosen.files:
        faults += fuzz(chosen.files, chosen.samples, chosen.seed, check=False)
    if chosen.check:
        faults += fuzz(chosen.check, chosen.samples, chosen.seed + 1, check=True)
    for folder in chosen.reals:
        faults += look_at_reals(folder)
    if chosen.times:
        measure(chosen.times, chosen.repeats)
    for fault in faults:
        print(fault)
    print(f"{len(faults)} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
