"""Nothing lost, nothing silent: several processes, two commands at once, damaged files, a full
disk.
"""

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest

from ganscope.config import TrainDetectorSettings
from ganscope.detector.model import load_detector
from ganscope.detector.training import loop
from ganscope.detector.training.recipes import train_detector
from ganscope.detector.training.run import fingerprint, goes_on

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def make_corpus(root: Path, counts: dict[str, int], side: int = 32) -> Path:
    """Noise, a little brighter in fakes."""
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


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "c", {"real": 40, "a": 40})


def settings(corpus: Path, out: Path, **changes: Any) -> TrainDetectorSettings:
    about: dict[str, Any] = {
        "corpora": (corpus,),
        "out": out,
        "size": 32,
        "epochs": 2,
        "batch_size": 8,
        "device": "cpu",
        "precision": "fp32",
    }
    return TrainDetectorSettings(**about | changes)


def words(name: str, corpus: Path, out: Path, **changes: Any) -> list[str]:
    """The same as a command line."""
    about = {"--size": 32, "--epochs": 2, "--batch-size": 8, "--device": "cpu"}
    about |= {"--precision": "fp32"} | {f"--{k.replace('_', '-')}": v for k, v in changes.items()}
    flags = [str(word) for pair in about.items() for word in pair]
    return [name, str(corpus), *flags, "--out", str(out)]


def run(
    *arguments: str, cwd: Path, processes: int = 1, **environment: str
) -> subprocess.CompletedProcess:
    start = [*TORCHRUN, str(processes)] if processes > 1 else [sys.executable]
    return subprocess.run(
        [*start, "-m", "ganscope", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
        timeout=300,
    )


# Several processes


def test_torchrun_finishes_a_training_and_only_the_main_process_speaks(
    corpus: Path, tmp_path: Path
) -> None:
    done = run(*words("train-detector", corpus, tmp_path / "run"), cwd=tmp_path, processes=2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "config.json").is_file()
    assert not list((tmp_path / "run").glob(".ganscope*"))
    assert done.stdout.split() == [str(tmp_path / "run")]
    assert done.stderr.count("next: ganscope check") == 1


def side_by_side(work: Callable[[], object], processes: int = 2) -> list[int | None]:
    """Exit codes of processes that `torchrun` would start, but quicker: they are forked."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def one(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        work()

    context = multiprocessing.get_context("fork")
    started = [context.Process(target=one, args=(rank,)) for rank in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join(200)
    return [process.exitcode for process in started]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_of_two_that_was_killed_while_it_evaluated_is_finished(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    wish, main = settings(corpus, tmp_path / "run", epochs=1), os.getpid()

    def killed(*_: Any) -> None:
        os._exit(9)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "finish_run", killed)
        first = side_by_side(lambda: train_detector(wish))
    assert first == [9, 1]  # the second process waits for the first, and says that it is gone
    assert os.getpid() == main
    assert (tmp_path / "run" / "checkpoint.pt").is_file()
    if processes == 1:
        train_detector(wish)
    else:
        assert side_by_side(lambda: train_detector(wish)) == [0, 0]
    assert load_detector(str(tmp_path / "run")).config["training"]["epochs_run"] == 1
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_run_of_two_is_not_gone_on_with_by_one(corpus: Path, tmp_path: Path) -> None:
    table = pd.DataFrame([["a", 0, "real", "train", ""]])
    table.columns = ["file_name", "label", "generator", "split", "group"]
    two, one = fingerprint(table, 2), fingerprint(table, 1)
    assert not goes_on(one, two, over=False)
    assert goes_on(two, two, over=False)
    assert goes_on(one, two, over=True)
    assert not goes_on(fingerprint(table.assign(label=1), 1), two, over=True)
