"""The same seed, the same bytes: two runs, other batch sizes, other numbers of workers and threads.

    python benchmarks/campaigns/same.py                  # each once
    python benchmarks/campaigns/same.py --times 20       # twenty seeds
    python benchmarks/campaigns/same.py --only check

Compared are the images and the manifest of `generate`, the weights that `train-generator` and
`train-detector` save, verdicts and heatmaps of `check`. The exit status is 1 if any differs.
"""

import argparse
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import cv2
import torch
from commands import CASES, Case, Tally, begin, last_line, prepare, result

VARIANTS: dict[str, dict[str, tuple[str, ...]]] = {
    "generate": {"once more": (), "4 threads": (), "in two parts": ("--shard",)},
    "train-generator": {"once more": (), "4 threads": ()},
    "train-detector": {"once more": (), "2 workers": ("--workers", "2"), "4 threads": ()},
    "check": {
        "once more": (),
        "batches of 1": ("--batch-size", "1"),
        "batches of 7": ("--batch-size", "7"),
        "4 threads": (),
    },
}
"""Command -> what is otherwise -> options."""


def made(one: Case, place: Path, tally: Tally, *options: str, threads: int = 1) -> dict[str, str]:
    """What a command makes, from nothing."""
    for path in (place / one.out, place / "kept"):
        shutil.rmtree(path, ignore_errors=True)
    log = place / "log.txt"
    tally.runs += 1

    def begun() -> None:
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)

    process = begin((*one.words, *options), place, log, begun)
    process.join(600)
    if process.exitcode:
        tally.fault(f"{one.name} {' '.join(options)}: {last_line(log.read_text(errors='replace'))}")
    return result(one, place)


def compare(one: Case, place: Path, seed: int, tally: Tally) -> None:
    if one.name != "check":
        one = replace(one, words=(*one.words, "--seed", str(seed)))
    expected = made(one, place, tally)
    told = []
    for what, options in VARIANTS[one.name].items():
        if options == ("--shard",):
            made(one, place, tally, "--shard", "1/2")
            tally.runs += 1
            log = place / "log.txt"
            begin((*one.words, "--shard", "2/2"), place, log).join(600)
            found = result(one, place)
        else:
            found = made(one, place, tally, *options, threads=4 if "threads" in what else 1)
        other = sorted(k for k in found.keys() | expected if found.get(k) != expected.get(k))
        told.append(f"{what} {'DIFFERS' if other else 'the same'}")
        if other or not expected:
            tally.fault(f"{one.name}, seed {seed}, {what}: {len(other)} differ: {other[:3]}")
    print(f"  {one.name}, seed {seed}, {len(expected)} files: {', '.join(told)}", flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument("--times", type=int, default=1, help="seeds")
    options.add_argument("--minutes", type=float, help="go on until so many have passed")
    options.add_argument("--only", action="append", default=[], choices=tuple(VARIANTS))
    options.add_argument("--seed", type=int, default=0, help="the first one")
    chosen = options.parse_args()
    tally, seed = Tally(), chosen.seed
    with tempfile.TemporaryDirectory() as name:
        place = prepare(Path(name).resolve())
        while True:
            for one in CASES:
                if one.name in (chosen.only or VARIANTS):
                    compare(one, place, seed, tally)
            seed += 1
            late = time.monotonic() - tally.started >= 60 * (chosen.minutes or 0)
            if seed - chosen.seed >= chosen.times and late:
                break
    sys.exit(tally.close("same"))


if __name__ == "__main__":
    main()
