"""Commands on disks that are full or read-only, in folders that go while they run, and two at once.

    python benchmarks/campaigns/disk.py                     # one of each, of each command
    python benchmarks/campaigns/disk.py --times 50          # fifty sizes of a disk
    python benchmarks/campaigns/disk.py --only check

Each ends with status 2 and one line, breaks nothing, and the same command again, with room, ends
as an undisturbed one. Root mounts small disks for that (tmpfs); others get the limit of the
largest file (`ulimit -f`) and a folder without the right to write. The exit status is 1 if there
is a fault.
"""

import argparse
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from commands import (
    CASES,
    Case,
    Tally,
    begin,
    chosen_cases,
    end_session,
    halves,
    last_line,
    one_line,
    prepare,
    result,
    run,
)

ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def mounted(folder: Path, size: str) -> bool:
    """Whether a disk of that size is in the folder's place now."""
    folder.mkdir(exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    return ROOT and subprocess.run(words, capture_output=True).returncode == 0


def unmount(folder: Path) -> None:
    if folder.is_mount():
        subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=True)


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


class Campaign:
    """One case in one place."""

    def __init__(self, one: Case, place: Path, rng: random.Random, tally: Tally):
        self.one, self.place, self.rng, self.tally = one, place, rng, tally
        self.out, self.log = place / one.out, place / "log.txt"
        self.ends: Counter[str] = Counter()
        started = time.monotonic()
        status, said = run(one.words, place, self.log)
        self.seconds = time.monotonic() - started
        self.expected = result(one, place)
        if status or not self.expected:
            tally.fault(f"{one.name}: undisturbed, status {status}: {last_line(said)}")
        self.bytes = bytes_of(self.out) if self.out.is_dir() else 0
        self.fresh()

    def fresh(self) -> None:
        unmount(self.out)
        for path in (self.out, self.place / "kept"):
            shutil.rmtree(path, ignore_errors=True)

    def refused(self, what: str, before: Callable[[], object] | None = None) -> bool:
        """Run it where it cannot end; whether it did end, all the same.

        What it says goes through a pipe: of a log that is a file the limit of files holds, too.
        """
        self.tally.runs += 1
        reader, writer = os.pipe()
        process = begin(self.one.words, self.place, writer, before)
        os.close(writer)
        process.join(300)
        os.set_blocking(reader, False)
        with open(reader, "rb") as pipe:
            self.log.write_bytes(pipe.read() or b"")
        return self.judged(what, process)

    def judged(self, what: str, process: BaseProcess) -> bool:
        if process.exitcode is None:
            end_session(process)
            self.tally.fault(f"{self.one.name}, {what}: hangs")
        said = self.log.read_text(errors="replace")
        if process.exitcode == 0:
            self.ends[f"{what}: done"] += 1
        elif wrong := one_line(said, process.exitcode or 0):
            self.tally.fault(f"{self.one.name}, {what}: {wrong}")
        else:
            self.ends[f"{what}: one line"] += 1
            self.ends[f"  {last_line(said)[:110]}"] += 1
        for half in halves(self.out):
            self.tally.fault(f"{self.one.name}, {what}: half a file: {half}")
        return process.exitcode == 0

    def again(self, what: str) -> None:
        """The same command, with room."""
        status, said = run(self.one.words, self.place, self.log)
        if status:
            self.tally.fault(f"{self.one.name}, after {what}: status {status}: {last_line(said)}")
        elif result(self.one, self.place) != self.expected:
            self.tally.fault(f"{self.one.name}, after {what}: another result")

    def full(self) -> None:
        what = "full disk"
        self.fresh()
        size = self.rng.randrange(4096, max(8192, self.bytes), 4096)
        if mounted(self.out, str(size)):
            done = self.refused(what)
            if not done:
                remount(self.out, "size=256m")
                self.again(f"{what} of {size:,} bytes")
        self.fresh()

    def limited(self) -> None:
        what = "limit of a file"
        self.fresh()
        most = self.rng.choice((0, 512, 4096, 16384))
        limits = (most, resource.RLIM_INFINITY)
        if not self.refused(what, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits)):
            self.again(f"{what} of {most:,} bytes")

    def read_only(self) -> None:
        what = "read-only"
        self.fresh()
        if mounted(self.out, "1m"):
            remount(self.out, "ro")
            if self.refused(what):
                self.tally.fault(f"{self.one.name}, {what}: says that it is done")
            self.fresh()
        elif not ROOT:
            self.out.mkdir()
            self.out.chmod(0o500)
            if self.refused(what):
                self.tally.fault(f"{self.one.name}, {what}: says that it is done")
            self.out.chmod(0o700)
        else:
            self.ends["read-only: cannot be mounted here"] += 1

    def removed(self) -> None:
        what = "removed"
        self.fresh()
        self.tally.runs += 1
        process = begin(self.one.words, self.place, self.log)
        until = time.monotonic() + self.seconds
        while not self.out.exists() and process.exitcode is None and time.monotonic() < until:
            process.join(0.01)
        process.join(self.rng.uniform(0, 0.8 * self.seconds))
        if process.exitcode is not None:
            self.ends[f"{what}: was done before"] += 1
            return
        while self.out.exists() and os.system(f"rm -rf {self.out}"):  # it may write meanwhile
            pass
        process.join(300)
        if self.judged(what, process) and result(self.one, self.place) != self.expected:
            self.tally.fault(f"{self.one.name}, {what}: says that it is done")
        self.fresh()  # what it may have written afterwards
        self.again(what)

    def two(self) -> None:
        what = "two at once"
        self.fresh()
        self.tally.runs += 2
        first = begin(self.one.words, self.place, self.log)
        first.join(self.rng.uniform(0, 0.5 * self.seconds))
        if first.exitcode is not None:  # it was quicker than the undisturbed one: not at once
            self.tally.runs -= 1
            self.judged(f"{what}, done before the second", first)
            return
        log, self.log = self.log, self.place / "second.txt"
        second = begin(self.one.words, self.place, self.log)
        second.join(300)
        self.judged(what, second)
        self.log = log
        first.join(300)
        self.judged(what, first)
        if first.exitcode and second.exitcode:
            self.tally.fault(f"{self.one.name}, {what}: neither is done")
        elif result(self.one, self.place) != self.expected:
            self.tally.fault(f"{self.one.name}, {what}: another result")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument("--times", type=int, default=1, help="of each, of each command")
    options.add_argument("--minutes", type=float, help="begin anew until so many have passed")
    options.add_argument(
        "--only", action="append", default=[], help=", ".join(c.name for c in CASES)
    )
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    rng, tally = random.Random(chosen.seed), Tally()
    with tempfile.TemporaryDirectory() as name:
        place = prepare(Path(name).resolve())
        campaigns = [Campaign(one, place, rng, tally) for one in chosen_cases(chosen.only)]
        try:
            while True:
                for one in campaigns:
                    for _ in range(chosen.times):
                        for kind in (one.full, one.limited, one.read_only, one.removed, one.two):
                            kind()
                if time.monotonic() - tally.started >= 60 * (chosen.minutes or 0):
                    break
        finally:
            for one in campaigns:
                one.fresh()
        for one in campaigns:
            print(f"  {one.one.name}:")
            for end, count in one.ends.items():
                print(f"    {count} {end}")
    sys.exit(tally.close("disk"))


if __name__ == "__main__":
    main()
