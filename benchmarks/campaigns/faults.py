"""What happens to commands that are killed, doubled, given damaged files, sizes that do not fit, or
a standard output that cannot be written: the situations, and what is printed now.

    python benchmarks/campaigns/faults.py                   # a few of each
    python benchmarks/campaigns/faults.py --times 50        # fifty interleavings, cuts of each kind

The last line counts losses and tracebacks; the exit status is 1 if there are any.
"""

import argparse
import filecmp
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch

from ganscope.config import (
    ArmsRaceSettings,
    BenchmarkSettings,
    GenerateSettings,
    TrainDetectorSettings,
    TrainGeneratorSettings,
)
from ganscope.datasets.corpus import open_corpus
from ganscope.detector.benchmark.benchmark import benchmark_detectors
from ganscope.detector.benchmark.leave_one_out import leave_one_out
from ganscope.detector.model import Detector, load_detector
from ganscope.detector.training import frozen, soup
from ganscope.detector.training.recipes import train_detector
from ganscope.errors import GanscopeError
from ganscope.generator.sampling import generate_corpus
from ganscope.generator.training import train_generator
from ganscope.together import arms_race as race

GANSCOPE = [sys.executable, "-m", "ganscope"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
FAULTS: list[str] = []
"""Losses and tracebacks, a line each."""


class Stop(Exception):
    """Ends a training where a kill would."""


class StopAfter:
    """Stands in for the progress bar."""

    def __init__(self, steps: int):
        self.left = steps

    def add_task(self, *_: Any, **__: Any) -> int:
        return 0

    def update(self, *_: Any, **__: Any) -> None:
        self.left -= 1
        if not self.left:
            raise Stop


def say(command: list[str], folder: Path, status: int = 0, **environment: str) -> None:
    """Run a command and print how it ends; status: how it should."""
    shown = " ".join(["ganscope" if word == GANSCOPE[2] else word for word in command[2:]])
    told = "".join(f"{key}={value} " for key, value in environment.items())
    done = subprocess.run(
        command, capture_output=True, cwd=folder, env=os.environ | environment, timeout=900
    )
    lines = (done.stdout + done.stderr).decode("utf-8", "replace").strip().splitlines()
    print(
        f"$ {told}{shown}\n  status {done.returncode}: {' | '.join(lines[-2:])[:300]}", flush=True
    )
    if any(line.startswith("Traceback") for line in lines) and done.returncode != status:
        FAULTS.append(f"traceback: {shown}")
    if done.returncode != status:
        FAULTS.append(f"status {done.returncode} instead of {status}: {shown}")


def noise(root: Path, counts: dict[str, int], side: int = 32) -> Path:
    """A corpus whose fakes are a little brighter."""
    rng = np.random.default_rng(0)
    rows = []
    for generator, count in counts.items():
        (root / generator).mkdir(parents=True)
        for i in range(count):
            image = rng.normal(128 + 8 * (generator != "real"), 50, (side, side, 3))
            name = f"{generator}/{i}.png"
            cv2.imwrite(str(root / name), image.clip(0, 255).astype(np.uint8))
            rows.append((name, int(generator != "real"), generator))
    table = pd.DataFrame(rows, columns=["file_name", "label", "generator"])
    table.to_csv(root / "metadata.csv", index=False)
    return root


def forked(work: Callable[[], object]) -> multiprocessing.process.BaseProcess:
    """Start work in a process of its own: 0 done, 2 a line, 1 a traceback."""

    def one() -> None:
        os.setpgid(0, 0)
        warnings.simplefilter("ignore")
        try:
            work()
        except GanscopeError:
            os._exit(2)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=one)
    process.start()
    return process


# 1. several processes


def several(folder: Path, corpus: Path, kills: int, rng: random.Random) -> None:
    flags = ["--size", "32", "--epochs", "2", "--batch-size", "8", "--device", "cpu"]
    train = [*TORCHRUN, "-m", "ganscope", "train-detector", str(corpus), *flags, "--out"]
    say([*train, "m8"], folder)
    if not (folder / "m8" / "config.json").is_file():
        FAULTS.append("torchrun leaves no config.json")
    for number in range(kills):
        name = f"killed-{number}"
        started = subprocess.Popen(
            [*train, name], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while started.poll() is None and not (folder / name / "settings.json").exists():
            time.sleep(0.1)
        time.sleep(rng.uniform(0, 8))
        for process in family(started.pid) if started.poll() is None else ():
            os.kill(process, signal.SIGKILL)
        started.wait()
        if not (folder / name / "config.json").exists():
            say([*train, name], folder)
        load_detector(str(folder / name))


def family(process: int) -> list[int]:
    """A process and those that it started, and they."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [process, *(one for child in children for one in family(int(child)))]


# 2. two commands at once


def at_once(folder: Path, corpus: Path, times: int, rng: random.Random) -> None:
    """Two or three writers of one folder, some killed; whatever happens, the last one finds or
    makes all of it.
    """

    def make(out: Path) -> None:
        generate_corpus(GenerateSettings(n=24, out=out, size=32, device="cpu"))

    def judge(out: Path) -> None:
        about: dict[str, Any] = {"detector": (str(folder / "detector"),), "device": "cpu"}
        about |= {"bootstrap": 0, "cache": False}
        benchmark_detectors(BenchmarkSettings(corpora=(corpus,), out=out, **about))

    def train(out: Path) -> None:
        train_detector(small(corpus, out))

    make(folder / "whole")
    forked(lambda: train(folder / "detector")).join()  # the one that ships takes a minute each time
    expected = open_corpus(folder / "whole").table
    ends: Counter[str] = Counter()
    for number in range(times):
        for name, work in (("generate", make), ("benchmark", judge), ("train-detector", train)):
            out = folder / f"{name}-{number}"
            started = []
            for _ in range(rng.choice((2, 2, 3))):
                started.append(forked(lambda work=work, out=out: work(out)))  # type: ignore[misc]
                time.sleep(rng.uniform(0, 0.4))
            if rng.random() < 0.5 and (process := rng.choice(started)).is_alive():
                process.kill()
            for process in started:
                process.join()
                words = {0: "done", 2: "one line", 1: "traceback", -9: "killed"}
                ends[f"{name}: {words.get(process.exitcode or 0, 'other')}"] += 1
                if process.exitcode == 1:
                    FAULTS.append(f"traceback: two {name} at once, round {number}")
            last = forked(lambda work=work, out=out: work(out))  # type: ignore[misc]
            last.join()
            if last.exitcode == 1:
                FAULTS.append(f"traceback: {name} after two at once, round {number}")
            lost = {
                "generate": lambda out: not same_corpus(expected, out),
                "benchmark": lambda out: not (out / "report.json").is_file(),
                "train-detector": lambda out: not (out / "config.json").is_file(),
            }[name](out)
            if lost or list(out.glob(".ganscope*")):
                FAULTS.append(f"lost: two {name} at once, round {number}")
            shutil.rmtree(out, ignore_errors=True)
    for end, count in sorted(ends.items()):
        print(f"  {end}: {count}")


def same_corpus(expected: pd.DataFrame, out: Path) -> bool:
    """Whether a corpus holds the same rows, and the same bytes in its images."""
    try:
        made = open_corpus(out).table
    except GanscopeError:
        return False
    names = made["file_name"].tolist() == expected["file_name"].tolist()
    pairs = zip(made["path"], expected["path"], strict=False)
    return names and all(filecmp.cmp(a, b, shallow=False) for a, b in pairs)


# 3. damaged files


def small(corpus: Path, out: Path, **changes: Any) -> TrainDetectorSettings:
    about: dict[str, Any] = {"corpora": (corpus,), "out": out, "size": 32, "epochs": 2}
    about |= {"batch_size": 8, "device": "cpu", "precision": "fp32"}
    return TrainDetectorSettings(**about | changes)


@dataclass
class Unfinished:
    """A folder that a kill left, and how it is gone on with."""

    name: str
    folder: Path
    go_on: Callable[[Path], object]
    files: tuple[str, ...]
    result: str
    """File or folder that going on leads to, the same whatever happened before."""


def unfinished(root: Path, corpus: Path, two: Path) -> list[Unfinished]:
    found = []

    def stopped(name: str, work: Callable[[Path], object]) -> Path:
        try:
            work(root / name)
        except Stop:
            return root / name
        raise AssertionError(f"{name} was not stopped")

    def detector(out: Path, bar: Any = None) -> None:
        train_detector(small(corpus, out), bar)

    folder = stopped("detector", lambda out: detector(out, StopAfter(9)))
    files = ("checkpoint.pt", "speed.json", "settings.json")
    found.append(Unfinished("detector", folder, detector, files, "model.safetensors"))

    def generator(out: Path, report: Any = None) -> None:
        about: dict[str, Any] = {"real": "photographs", "size": 8, "steps": 4, "batch_size": 2}
        about |= {"width": 4, "sample_every": 2, "device": "cpu", "precision": "fp32"}
        train_generator(TrainGeneratorSettings(**about, out=out), report)

    def at_three(row: dict[str, Any]) -> None:
        if row["step"] == 3:
            raise Stop

    folder = stopped("generator", lambda out: generator(out, at_three))
    files = ("checkpoint.pt", "speed.json", "settings.json", "losses.csv")
    found.append(Unfinished("generator", folder, generator, files, "model.safetensors"))

    def features(out: Path) -> None:
        plan = small(corpus, out, recipe="frozen-linear", detector="timm:test_vit", epochs=1)
        train_detector(plan)

    def end(*_: Any) -> None:
        raise Stop

    fit, frozen._fit = frozen._fit, end  # type: ignore[assignment]
    folder = stopped("frozen", features)
    frozen._fit = fit
    files = ("features-val.npz", "features-0.npz", "features.json", "settings.json")
    found.append(Unfinished("frozen", folder, features, files, "model.safetensors"))

    def average(out: Path) -> None:
        train_detector(small(corpus, out, soup=2, epochs=1, detector="patch"))

    mean, soup.average_weights = soup.average_weights, end  # type: ignore[assignment]
    folder = stopped("soup", average)
    soup.average_weights = mean
    files = ("images.json", "settings.json", "seed-0/losses.csv", "seed-0/model.safetensors")
    files += ("seed-1/config.json",)
    found.append(Unfinished("soup", folder, average, files, "model.safetensors"))

    def make(out: Path, report: Any = None) -> None:
        generate_corpus(GenerateSettings(n=12, out=out, size=32, device="cpu"), report)

    def half(done: int) -> None:
        if done >= 6:
            raise Stop

    folder = stopped("corpus", lambda out: make(out, half))
    part = ".metadata.part-1-of-1.csv"
    rows = pd.read_csv(folder / part)["file_name"]
    files = (part, "corpus.json", rows[2], rows[5])
    found.append(Unfinished("corpus", folder, make, files, "metadata.csv"))

    def left_out(out: Path) -> None:
        plan: dict[str, Any] = {"corpora": (two,), "train": ("cnn",), "epochs": 1, "bootstrap": 0}
        plan |= {"size": 32, "leave_out": ("a",), "protocol": "raw", "cache": False}
        leave_one_out(BenchmarkSettings(**plan, out=out, device="cpu"))

    left_out(root / "leave-one-out")
    (root / "leave-one-out" / "report.json").unlink()
    files = ("settings.json", "runs/cnn/a/held-out.parquet", "runs/cnn/a/held-out.json")
    found.append(
        Unfinished("leave-one-out", root / "leave-one-out", left_out, files, "scores.parquet")
    )

    def rounds(out: Path) -> None:
        plan: dict[str, Any] = {"real": "photographs", "rounds": 2, "size": 16, "width": 4}
        plan |= {"n": 60, "first_steps": 2, "steps": 2, "epochs": 1, "device": "cpu"}
        race.arms_race(ArmsRaceSettings(**plan, precision="fp32", out=out))

    rounds(root / "race")
    (root / "race" / "triangle.json").unlink()
    found.append(
        Unfinished("race", root / "race", rounds, ("scores.csv", "settings.json"), "scores.csv")
    )

    judge = train_detector(small(corpus, root / "judge"))

    def kept(out: Path) -> None:
        os.environ["GANSCOPE_CACHE"] = str(out)
        plan: dict[str, Any] = {"corpora": (corpus,), "bootstrap": 0, "protocol": "raw"}
        plan["detector"] = (str(judge),)
        shutil.rmtree(out / "b", ignore_errors=True)
        benchmark_detectors(BenchmarkSettings(**plan, out=out / "b", device="cpu"))

    kept(root / "cache")
    found.append(
        Unfinished("cache", root / "cache", kept, ("benchmark.sqlite",), "b/scores.parquet")
    )
    return found


def damage(path: Path, rng: random.Random) -> str:
    """Do to a file what a power cut, a full disk or a person may have done; says what."""
    data = path.read_bytes()
    at = rng.randrange(len(data)) if data else 0
    what = rng.choice(("cut", "cut", "cut", "zeros", "text", "empty", "other keys"))
    if what == "other keys" and path.suffix == ".pt":
        torch.save({"left": 1}, path)
        return what
    path.write_bytes(
        {
            "cut": data[:at],
            "zeros": data[:at] + bytes(len(data) - at),
            "text": b"this is not what it was\n" * 3,
            "empty": b"",
            "other keys": b'{"left": 1}',
        }[what]
    )
    return what if what not in ("cut", "zeros") else f"{what} at {at} of {len(data)}"


def cuts(folder: Path, corpus: Path, two: Path, times: int, rng: random.Random) -> None:
    for one in unfinished(folder / "templates", corpus, two):
        whole = folder / "whole"
        shutil.rmtree(whole, ignore_errors=True)
        shutil.copytree(one.folder, whole)
        said = in_its_place(one, whole)
        if said is not None:
            FAULTS.append(f"lost: {one.name} does not go on")
        for name in one.files:
            ends: Counter[str] = Counter()
            for _ in range(times):
                out = folder / "damaged"
                shutil.rmtree(out, ignore_errors=True)
                shutil.copytree(one.folder, out)
                how = damage(out / name, rng)
                said = in_its_place(one, out)
                if said is None and not alike(whole / one.result, out / one.result):
                    said = "lost: another result"
                ends["went on, same result" if said is None else said.split(":")[0]] += 1
                if said and not said.startswith("one line"):
                    FAULTS.append(f"{said}: {one.name}/{name} {how}")
            told = ", ".join(f"{end} {count}" for end, count in sorted(ends.items()))
            print(f"  {one.name}/{name}: {told}", flush=True)


def in_its_place(one: Unfinished, folder: Path) -> str | None:
    """Go on with a folder where the template lay: settings name it. None: it went on."""
    aside = one.folder.with_name(f"{one.folder.name}-aside")
    one.folder.rename(aside)
    folder.rename(one.folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            one.go_on(one.folder)
        return None
    except GanscopeError as error:
        return "one line" if "\n" not in str(error) else f"lost: {error}"
    except Exception as error:
        traceback.print_exc()
        return f"traceback: {type(error).__name__}"
    finally:
        one.folder.rename(folder)
        aside.rename(one.folder)


def alike(a: Path, b: Path) -> bool:
    if a.suffix == ".parquet":
        columns = ["file_name", "detector", "value"]
        return pd.read_parquet(a)[columns].equals(pd.read_parquet(b)[columns])
    return filecmp.cmp(a, b, shallow=False)


# 6. sizes that do not fit


def sizes(folder: Path, corpus: Path, two: Path) -> None:
    for name, size in (
        ("timm:inception_v3", 64),
        ("timm:efficientformer_l1", 64),
        ("timm:crossvit_9_240", 64),
        ("timm:convnext_atto", 16),
        ("vit:test_vit", 50),
        ("clip", 100),
    ):
        try:
            Detector.create(name, size=size)
            print(f"  {name} at {size}: works")
        except GanscopeError as error:
            print(f"  {error}")
        except Exception as error:
            FAULTS.append(f"traceback: {name} at {size}: {error}")
    about = ["--size", "16", "--device", "cpu"]
    name = "timm:convnext_atto"
    say([*GANSCOPE, "train-detector", str(corpus), "--detector", name, *about], folder, 2)
    say([*GANSCOPE, "benchmark", str(two), "--train", name, *about], folder, 2)
    say([*GANSCOPE, "arms-race", "--real", "photographs", "--detector", name, *about], folder, 2)


# 8. standard output


def outputs(folder: Path, corpus: Path) -> None:
    (folder / "u").mkdir()
    shutil.copy(next((corpus / "real").iterdir()), folder / "u" / "图.png")
    say([*GANSCOPE, "check", "u"], folder, PYTHONIOENCODING="cp1252")
    for command in (
        ["check", "u", "--fail-on", "fake"],
        ["check", "u", "--json"],
        ["list", "detectors"],
        ["--help"],
        ["audit", str(corpus)],
    ):
        line = " ".join([*GANSCOPE, *command]) + " > /dev/full"
        done = subprocess.run(line, shell=True, cwd=folder, capture_output=True, text=True)
        print(f"$ ganscope {' '.join(command)} > /dev/full\n  status {done.returncode}: ", end="")
        print(done.stderr.strip())
        if done.returncode != 2 or "Traceback" in done.stderr:
            FAULTS.append(f"{' '.join(command)} > /dev/full: status {done.returncode}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument("--times", type=int, default=2, help="interleavings, and cuts of a kind")
    options.add_argument("--kills", type=int, default=1, help="runs of two that are killed")
    options.add_argument("--only", default="1,2,3,6,8", help="points of the list")
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    points, rng = chosen.only.split(","), random.Random(chosen.seed)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["GANSCOPE_CACHE"] = str(folder / "kept")
        corpus = noise(folder / "corpus", {"real": 40, "a": 40})
        two = noise(folder / "two", {"real": 40, "a": 30, "b": 30})
        if "2" in points:  # before anything starts threads: it forks
            print(f"2. two or three commands at once, {chosen.times} times")
            at_once(folder / "2", corpus, chosen.times, rng)
        if "1" in points:
            print("1. several processes")
            several(folder, corpus, chosen.kills, rng)
        if "3" in points:
            print(f"3. damaged files, {chosen.times} of each kind")
            cuts(folder / "3", corpus, two, chosen.times, rng)
        if "6" in points:
            print("6. sizes that do not fit")
            sizes(folder, corpus, two)
        if "8" in points:
            print("8. standard output")
            outputs(folder, corpus)
    for fault in FAULTS:
        print(fault)
    lost = sum(fault.startswith("lost") for fault in FAULTS)
    print(f"{lost} losses, {len(FAULTS) - lost} tracebacks and other faults")
    sys.exit(bool(FAULTS))


if __name__ == "__main__":
    main()
