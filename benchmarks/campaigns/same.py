"""The same seed, the same bytes: two runs, other batch sizes, other numbers of workers and threads.

    python benchmarks/campaigns/same.py                  # each once
    python benchmarks/campaigns/same.py --times 20       # twenty seeds
    python benchmarks/campaigns/same.py --only check

Compared are the images and the manifest of `generate`, the weights that `train-generator` and
`train-detector` save, verdicts and heatmaps of `check`. Sums of floating-point numbers depend on
how they are split: other batches may change the last digits of a score (by `CLOSE` at most, and
nothing else), other numbers of threads the last bits of a trained network; how much is said.

The exit status is 1 if anything else differs.
"""

import argparse
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import cv2
import pandas as pd
import torch
from commands import CASES, Case, Tally, begin, last_line, prepare, result
from safetensors.numpy import load_file

from ganscope.folders import WEIGHTS

CLOSE = 1e-5
"""Difference of two scores or probabilities that is no fault."""
ROUNDED = ("batches of 1", "batches of 7")
"""Variants after which a check's numbers may differ so."""

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
    kept = place / f"{one.out}-first"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(place / one.out, kept)
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
        near = ""
        if other == ["verdicts.csv"] and what in ROUNDED:
            near = alike(kept / "verdicts.csv", place / one.out / "verdicts.csv")
        elif other and (one.name, what) == ("train-detector", "4 threads"):
            near = f"weights differ by {apart(kept, place / one.out):.1e} at most"
        told.append(f"{what} {near or ('DIFFERS' if other else 'the same')}")
        if (other and not near) or not expected:
            tally.fault(f"{one.name}, seed {seed}, {what}: {len(other)} differ: {other[:3]}")
    print(f"  {one.name}, seed {seed}, {len(expected)} files: {', '.join(told)}", flush=True)


def alike(a: Path, b: Path) -> str:
    """How far the numbers of two tables of verdicts are apart; "" if anything else differs."""
    one, other = (pd.read_csv(path, dtype={"probability": float}) for path in (a, b))
    far = max((one[n] - other[n]).abs().max() for n in ("score", "probability"))
    rest = [name for name in one if name not in ("score", "probability")]
    same = one[rest].equals(other[rest]) and one["score"].notna().equals(other["score"].notna())
    return f"scores differ by {far:.1e} at most" if same and far <= CLOSE else ""


def apart(a: Path, b: Path) -> float:
    one, other = (load_file(folder / WEIGHTS) for folder in (a, b))
    return max(float(abs(one[k].astype(float) - other[k].astype(float)).max()) for k in one)


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
