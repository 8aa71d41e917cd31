"""How close `ganscope scan` comes to the bare work, and whether its memory stays flat:

    python benchmarks/scanning.py [--files 5000] [--detector NAME] [--engine local|ray]
        [--workers N] [--side 64] [--no-faces] [--no-reencode] [--folder DIR] [--json OUT]

Makes so many JPEGs, all different, in DIR (a temporary folder; made ones are used again), scans
them, and does the bare work on a sample of the same files with the same number of processes, one
thread each, before and after it: reading, decoding, looking for faces unless --no-faces, and the
forward pass over the tiles that the scan looks at, or of views just the first, in batches. Without
--detector a small network is made for it. Both are told in files a second and, for machines that
are busy, in processor time a file, that of the process that lists and writes included. The memory
is that of the scan's process and all below it (PSS, so that what they share counts once).
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np

SAMPLE = 1000
"""Files that the bare work is done on, at most."""


def make(folder: Path, count: int, side: int) -> None:
    for start in range(0, count, 1000):
        part = folder / f"{start // 1000:06}"
        part.mkdir(parents=True, exist_ok=True)
        for number in range(start, min(start + 1000, count)):
            path = part / f"{number:09}.jpg"
            if path.exists():
                continue
            rng = np.random.default_rng(number)
            pixels = cv2.resize(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8), (side, side))
            pixels = pixels // 2 + rng.integers(0, 127, pixels.shape, dtype=np.uint8)
            cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])


def small_detector(folder: Path) -> str:
    import torch

    from ganscope.detector.model import Detector

    torch.manual_seed(0)
    Detector.create("cnn").eval().save(folder)
    return str(folder)


def bare(detector: str, paths: list[str], reencode: bool, faces: bool, answers: Any) -> None:
    """Bytes from the disk, decoding, networks' forward passes; no more."""
    from ganscope.detector.exported.loading import load_judge
    from ganscope.detector.judging.scoring import reencoded_tiles, tiles
    from ganscope.detector.judging.views import cut_views
    from ganscope.faces import open_finder
    from ganscope.images import open_image
    from ganscope.memory import keep_freed_memory

    keep_freed_memory()
    judge = load_judge(detector, device="cpu")
    judge.prepare("cpu")
    judge.logits(np.zeros((8, judge.size, judge.size, 3), np.uint8))
    finder = open_finder() if faces else None
    begun, busy = time.perf_counter(), time.process_time()
    held: list[np.ndarray] = []
    for path in paths:
        pixels = open_image(path).pixels
        if finder:
            finder.find(pixels)
        if judge.views:
            views = cut_views(pixels, judge.size, judge.views)
            held.append(views.cut[: 1 if judge.glances else views.first])
        else:
            cut, positions = tiles(pixels, judge.size)
            held.append(cut)
            if reencode:
                held.append(reencoded_tiles(pixels, judge.size, positions[:5]))
        if sum(map(len, held)) >= (8 if judge.views else 32):
            judge.logits(np.concatenate(held))
            held.clear()
    if held:
        judge.logits(np.concatenate(held))
    busy = time.process_time() - busy
    answers.put((len(paths) / (time.perf_counter() - begun), busy))


def bare_speed(
    detector: str, paths: list[str], reencode: bool, faces: bool, workers: int
) -> tuple[float, float]:
    """Files a second, of so many processes together, and a file's seconds of a processor."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    shares = [paths[i::workers] for i in range(workers)]
    crew = [
        context.Process(target=bare, args=(detector, share, reencode, faces, answers))
        for share in shares
    ]
    for one in crew:
        one.start()
    found = [answers.get() for _ in crew]
    for one in crew:
        one.join()
    return sum(speed for speed, _ in found), sum(busy for _, busy in found) / len(paths)


def below(pid: int) -> list[int]:
    found, known = [pid], {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            known.setdefault(parent, []).append(int(entry.name))
    for one in found:
        found.extend(known.get(one, ()))
    return found


def memory(pid: int) -> float:
    """MB of a process and all below it."""
    total = 0
    for one in below(pid):
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (OSError, ValueError):
            continue
    return total / 1000


def spent(pid: int) -> float:
    """Seconds of processors that a process and all below it have had, ended ones included."""
    total = 0.0
    for one in below(pid):
        with suppress(OSError):
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--detector")
    parser.add_argument("--engine", default="local")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--no-reencode", action="store_true")
    parser.add_argument("--no-faces", action="store_true")
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as scratch:
        folder = wanted.folder or Path(scratch) / "files"
        make(folder, wanted.files, wanted.side)
        detector = wanted.detector or small_detector(Path(scratch) / "small")
        paths = sorted(map(str, folder.rglob("*.jpg")))[: wanted.files]
        sample = paths[:: max(len(paths) // SAMPLE, 1)][:SAMPLE]
        listed = Path(scratch) / "list.txt"
        listed.write_text("\n".join(paths) + "\n")
        work = detector, sample, not wanted.no_reencode, not wanted.no_faces, wanted.workers
        before = bare_speed(*work)
        out = Path(scratch) / "results.parquet"
        command = [sys.executable, "-m", "ganscope", "scan", str(listed), "--out", str(out)]
        command += ["--detector", detector, "--engine", wanted.engine, "--device", "cpu"]
        command += ["--workers", str(wanted.workers), "--json"]
        command += ["--no-reencode"] if wanted.no_reencode else []
        command += ["--no-faces"] if wanted.no_faces else []
        scanning = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        held: list[tuple[float, float]] = []
        begun = time.monotonic()

        def watch() -> None:
            while scanning.poll() is None:
                held.append((time.monotonic() - begun, memory(scanning.pid)))
                time.sleep(2)

        threading.Thread(target=watch, daemon=True).start()
        assert scanning.stdout
        lines = [json.loads(line) | {"busy": spent(scanning.pid)} for line in scanning.stdout]
        if scanning.wait() not in (0, 3):
            sys.exit(scanning.returncode)
        after = bare_speed(*work)
    last = lines[-1]
    # From the first figures with rows on: what starting costs is told apart.
    first = next(line for line in lines if line["rows"])
    since = first if last["rows"] > first["rows"] else {"rows": 0, "seconds": 0.0, "busy": 0.0}
    rows, seconds, busy = (last[name] - since[name] for name in ("rows", "seconds", "busy"))
    bare_busy = (before[1] + after[1]) / 2
    quarter = [mb for _, mb in held[len(held) // 4 : len(held) // 2]] or [0.0]
    end = [mb for _, mb in held[-len(held) // 4 :]] or [0.0]
    found = {
        "files": last["rows"],
        "engine": wanted.engine,
        "workers": wanted.workers,
        "bare before": before[0],
        "bare after": after[0],
        "files a second": rows / seconds,
        "with the start": last["per_second"],
        "share of bare": rows / seconds / ((before[0] + after[0]) / 2),
        "processor, ms a file": 1000 * busy / rows,
        "processor, bare": 1000 * bare_busy,
        "share of bare, processor": bare_busy / (busy / rows),
        "MB, second quarter": statistics.median(quarter),
        "MB, last quarter": statistics.median(end),
        "MB, most": max(mb for _, mb in held),
        "seconds of a worker a file": last["worker_seconds"] / max(last["rows"], 1),
    }
    for name, value in found.items():
        print(f"{name:28} {value:,.3f}" if isinstance(value, float) else f"{name:28} {value}")
    if wanted.json:
        wanted.json.write_text(json.dumps(found | {"memory": held}, indent=2))


if __name__ == "__main__":
    main()
