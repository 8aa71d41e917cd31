"""What the campaigns on whole commands share: small inputs, the commands, what their results are,
and processes that run a command without importing torch once more: they are forked.
"""

import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # and no threads here: this process forks

import cv2
import pandas as pd
import torch
from faults import noise
from PIL import Image
from safetensors.numpy import load_file

import ganscope.cli

# What the commands import anyway.
import ganscope.detector.benchmark.benchmark
import ganscope.detector.judging.checking
import ganscope.detector.training.recipes
import ganscope.generator.sampling
import ganscope.generator.training
from ganscope.detector.model import Detector

FAST = ["--device", "cpu"]
PLAIN = [*FAST, "--precision", "fp32"]


@dataclass(frozen=True)
class Case:
    """A command on small inputs, run in a folder where `prepare` has been."""

    name: str
    words: tuple[str, ...]
    out: str
    """What it makes: a folder."""
    result: tuple[str, ...]
    """Globs below it: files that are the same however often the command was disturbed."""

    @property
    def installed(self) -> bool:
        """Whether this ganscope has the command."""
        return any(one.name == self.name for one in ganscope.cli.app.registered_commands)


def case(name: str, words: str, *result: str, flags: Sequence[str] = FAST) -> Case:
    """words: what is between the name and the usual flags; what is made is called like the
    command.
    """
    return Case(name, (name, *words.split(), *flags), name, result)


CASES = (
    case("generate", "--n 40 --size 32 --out generate", "**/*.png", "**/*.jpg", "metadata.csv"),
    case(
        "train-generator",
        "--real photographs --size 8 --steps 30 --batch-size 2 --width 4 --sample-every 10 "
        "--out train-generator",
        "model.safetensors",
        flags=PLAIN,
    ),
    case(
        "train-detector",
        "corpus --size 32 --epochs 2 --batch-size 8 --workers 0 --out train-detector",
        "model.safetensors",
        flags=PLAIN,
    ),
    case(
        "check",
        "photos --detector tiny --csv check/verdicts.csv --heatmap check/heatmaps",
        "verdicts.csv",
        "heatmaps/*.png",
    ),
    case(
        "benchmark",
        "corpus --detector tiny --bootstrap 20 --protocol raw --out benchmark",
        "scores.parquet",
    ),
    case(
        "scan",
        "photos --detector tiny --engine local --workers 1 --out scan",
        "**/*.parquet",
    ),
)


def prepare(folder: Path) -> Path:
    """The inputs of all cases, and a cache of their own; the folder where they are run."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    os.environ["GANSCOPE_CACHE"] = str(folder / "kept")
    os.environ["HF_HUB_OFFLINE"] = "1"
    noise(folder / "corpus", {"real": 40, "a": 40})
    noise(folder / "pictures", {"real": 12, "a": 12}, side=160)
    shutil.copytree(folder / "pictures", folder / "photos")
    (folder / "photos" / "metadata.csv").unlink()
    tiny_detector(folder / "tiny")
    return folder


def tiny_detector(folder: Path) -> Path:
    """A detector that has learned nothing, the same each time."""
    torch.manual_seed(0)
    Detector.create("cnn", width=8, depth=3).eval().save(folder)
    return folder


def chosen_cases(names: Sequence[str]) -> list[Case]:
    """Those that are named, or all that this ganscope has."""
    return [one for one in CASES if (one.name in names or not names) and one.installed]


# --- processes ---


def begin(
    words: Sequence[str],
    folder: Path,
    log: Path | int,
    before: Callable[[], object] | None = None,
) -> BaseProcess:
    """Run `ganscope WORDS` in a folder, as the leader of a session of its own; what it prints goes
    to `log`, a file or a descriptor. before: what its process does first.
    """

    def run() -> None:
        os.setsid()
        os.chdir(folder)
        with open(log, "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout = io.TextIOWrapper(open(1, "wb", closefd=False), encoding="utf-8")  # noqa: SIM115
        sys.stderr = io.TextIOWrapper(
            open(2, "wb", closefd=False),  # noqa: SIM115
            encoding="utf-8",
            errors="backslashreplace",
            write_through=True,
        )
        _use_streams()
        sys.argv = ["ganscope", *words]
        if before:
            before()
        ganscope.cli.main()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def _use_streams() -> None:
    """Consoles that were made before write to the streams that there are now."""
    from ganscope.cli.console import err, out

    for console in (out, err):
        console._file = None  # it asks sys for its stream then


def run(words: Sequence[str], folder: Path, log: Path, patience: float = 600.0) -> tuple[int, str]:
    """Run a command to its end: status and what it printed."""
    process = begin(words, folder, log)
    process.join(patience)
    if process.exitcode is None:
        end_session(process)
    return process.exitcode or 0, log.read_text(encoding="utf-8", errors="replace")


def end_session(process: BaseProcess, number: int = signal.SIGKILL) -> None:
    """Send a signal to a command and all that it started."""
    for one in [process.pid, *session(process.pid or 0)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one or 0, number)
    process.join()


def session(leader: int) -> list[int]:
    """Processes that a leader of a session started and that live; not itself."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(path.parent.name))
    return [one for one in found if one != leader]


def last_line(said: str) -> str:
    """What a command said last, for people."""
    lines = said.strip().splitlines()
    return lines[-1][:200] if lines else ""


def one_line(said: str, status: int) -> str:
    """What is wrong with how a command refused to go on; "" if it is one line and status 2."""
    if "Traceback (most recent call last)" in said:
        return f"traceback: {last_line(said)}"
    if status != 2:
        return f"status {status}: {last_line(said)}"
    lines = [line for line in said.splitlines() if line.startswith("ganscope: ")]
    return "" if lines else f"no line: {last_line(said)}"


# --- results ---


def result(one: Case, folder: Path) -> dict[str, str]:
    """What a case made: name below its folder -> hash of the bytes (of tables in Parquet, of their
    rows in order of their names).
    """
    out = folder / one.out
    names = sorted({path for pattern in one.result for path in out.glob(pattern)})
    names = [path for path in names if not path.name.startswith(".")]
    tables = [path for path in names if path.suffix == ".parquet"]
    found = {str(path.relative_to(out)): hashed(path) for path in names if path not in tables}
    if tables:
        rows = pd.concat([pd.read_parquet(path) for path in tables])
        rows = rows[[name for name in ROWS if name in rows]]
        rows = rows.sort_values(list(rows)[:2]).reset_index(drop=True)
        found["rows"] = hashlib.sha256(rows.to_csv(index=False).encode()).hexdigest()
    return found


ROWS = ("path", "file_name", "detector", "value", "score", "verdict", "error")
"""Columns of tables in Parquet that are compared: neither times nor processes."""


def hashed(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def halves(out: Path) -> list[str]:
    """Files under final names that cannot be read to their end."""
    found = []
    for path in sorted(out.rglob("*")) if out.is_dir() else ():
        if not path.is_file() or any(p.startswith(".") for p in path.relative_to(out).parts):
            continue
        if path.name.startswith("checkpoint"):
            continue  # read by what goes on
        try:
            _read(path)
        except Exception as error:  # whatever a reader of half a file raises
            found.append(f"{path.name}: {type(error).__name__}: {error}")
    return found


def _read(path: Path) -> None:
    match path.suffix:
        case ".png" | ".jpg":
            with Image.open(path) as image:
                image.load()
        case ".json":
            json.loads(path.read_text())
        case ".safetensors":
            load_file(path)
        case ".parquet":
            pd.read_parquet(path)
        case ".csv":
            # losses.csv grows a line at a time, which is what it is for
            if not path.read_bytes().endswith(b"\n") and path.name != "losses.csv":
                raise ValueError("no whole lines")
        case ".html":
            if "</html>" not in path.read_text():
                raise ValueError("no end")


class Tally:
    """Counts ends, and keeps faults; `close` prints both and says whether there are faults."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.started = time.monotonic()
        self.runs = 0

    def fault(self, said: str) -> None:
        self.faults.append(said)
        print(f"  FAULT {said}", flush=True)

    def close(self, what: str) -> bool:
        minutes = (time.monotonic() - self.started) / 60
        print(f"{what}: {self.runs:,} runs in {minutes:.1f} min, {len(self.faults)} faults")
        return bool(self.faults)
