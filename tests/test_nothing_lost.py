"""Nothing lost, nothing silent: several processes, two commands at once, damaged files, a full
disk.
"""

import errno
import io
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from commands import side_by_side
from typer.testing import CliRunner

from ganscope import locks
from ganscope.cli import app, main
from ganscope.cli.demo import demo
from ganscope.config import (
    ArmsRaceSettings,
    BenchmarkSettings,
    CheckSettings,
    GenerateSettings,
    LatentWalkSettings,
    SpectraSettings,
    TrainDetectorSettings,
    TrainGeneratorSettings,
)
from ganscope.datasets.corpus import open_corpus
from ganscope.datasets.spectra import draw_spectra
from ganscope.detector.benchmark.benchmark import benchmark_detectors
from ganscope.detector.benchmark.cache import Cache, FileFacts
from ganscope.detector.benchmark.leave_one_out import leave_one_out
from ganscope.detector.judging.checking import check_images
from ganscope.detector.model import Detector, _misfit, load_detector
from ganscope.detector.networks.architectures import build
from ganscope.detector.training import frozen, loop
from ganscope.detector.training.recipes import train_detector
from ganscope.detector.training.run import fingerprint, goes_on
from ganscope.errors import GanscopeError, GanscopeWarning
from ganscope.files import write_text
from ganscope.folders import load_checkpoint, save_checkpoint
from ganscope.generator.latent import make_walk
from ganscope.generator.sampling import generate_corpus
from ganscope.generator.training import train_generator
from ganscope.locks import holding, holding_file, is_empty
from ganscope.together.arms_race import arms_race

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


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_of_two_that_was_killed_while_it_evaluated_is_finished(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    wish = settings(corpus, tmp_path / "run", epochs=1)

    def killed(*_: Any) -> None:
        os._exit(9)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "finish_run", killed)
        first = side_by_side(lambda: train_detector(wish))
    assert first == [9, 1]  # the second process waits for the first, and says that it is gone
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


def test_other_commands_run_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for command in (["benchmark", "c"], ["demo"], ["check", "x.jpg"], ["audit", "c"]):
        with pytest.raises(GanscopeError, match="runs in one process"):
            CliRunner().invoke(app, command, catch_exceptions=False)


# Two commands at once


@contextmanager
def another_holds(folder: Path, part: str = "") -> Iterator[None]:
    """Another line of work is in a folder."""
    entered, over = threading.Event(), threading.Event()

    def work() -> None:
        with holding(folder, part):
            entered.set()
            over.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    assert entered.wait(60)
    try:
        yield
    finally:
        over.set()
        thread.join()


def generate(out: Path, n: int = 6, **changes: Any) -> Path:
    about: dict[str, Any] = {"n": n, "out": out, "size": 32, "device": "cpu"}
    return generate_corpus(GenerateSettings(**about | changes))


def test_two_that_write_one_corpus_at_once_lose_nothing(tmp_path: Path) -> None:
    def work() -> None:
        del os.environ["RANK"], os.environ["WORLD_SIZE"]  # they know nothing of each other
        try:
            generate(tmp_path / "g", 24)
        except GanscopeError as error:
            os._exit(2 if "is writing there" in str(error) else 3)

    assert sorted(side_by_side(work), key=str) == [0, 2]
    table = open_corpus(tmp_path / "g").table
    assert len(table) == 48
    assert all(Path(path).is_file() for path in table["path"])
    assert not list((tmp_path / "g").glob(".*"))


WRITERS: dict[str, Callable[[Path, Path], object]] = {
    "generate": lambda corpus, out: generate(out),
    "train-detector": lambda corpus, out: train_detector(settings(corpus, out)),
    "soup": lambda corpus, out: train_detector(settings(corpus, out, soup=2)),
    "frozen": lambda corpus, out: train_detector(
        settings(corpus, out, recipe="frozen-linear", detector="timm:test_vit", pretrained="hub")
    ),
    "train-generator": lambda corpus, out: train_generator(
        TrainGeneratorSettings(real="photographs", out=out, size=8, steps=1, device="cpu")
    ),
    "benchmark": lambda corpus, out: benchmark_detectors(
        BenchmarkSettings(corpora=(corpus,), out=out, device="cpu")
    ),
    "benchmark --train": lambda corpus, out: leave_one_out(
        BenchmarkSettings(corpora=(corpus,), out=out, train=("cnn",), device="cpu")
    ),
    "arms-race": lambda corpus, out: arms_race(
        ArmsRaceSettings(real="photographs", out=out, size=16, device="cpu")
    ),
    "demo": lambda corpus, out: demo(out),
}


@pytest.mark.parametrize("command", sorted(WRITERS))
def test_the_second_says_who_is_at_work_and_touches_nothing(
    command: str, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    if command == "benchmark --train":
        corpus = make_corpus(tmp_path / "c", {"real": 40, "a": 40, "b": 40})
    part = "-1-of-1" if command == "generate" else ""
    with another_holds(out, part):
        before = sorted(out.iterdir())
        said = rf"out: .*process {os.getpid()} on .*, since .* is writing there"
        with pytest.raises(GanscopeError, match=said):
            WRITERS[command](corpus, out)
        assert sorted(out.iterdir()) == before
    assert not out.exists()  # nothing was in it


def test_a_dead_holders_lock_is_taken_over(tmp_path: Path) -> None:
    def die() -> None:
        with holding(tmp_path / "x"):
            os.kill(os.getpid(), signal.SIGKILL)

    assert side_by_side(die, 1) == [-signal.SIGKILL]
    assert list((tmp_path / "x").iterdir())  # what it left
    generate(tmp_path / "x" / "y")
    with holding(tmp_path / "x"), holding(tmp_path / "x"):  # what it calls may enter, too
        (tmp_path / "x" / "file").touch()
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == ["file", "y"]


def test_parts_of_a_corpus_are_written_side_by_side(tmp_path: Path) -> None:
    with another_holds(tmp_path / "g", "-1-of-2"):
        generate(tmp_path / "g", shard="2/2")
        with pytest.raises(GanscopeError, match="is writing there"):
            generate(tmp_path / "g", shard="1/2")
    generate(tmp_path / "g", shard="1/2")
    assert len(open_corpus(tmp_path / "g")) == 12


def test_files_are_held_as_folders_are(corpus: Path, tmp_path: Path, photo: Path) -> None:
    table, picture = tmp_path / "t.csv", tmp_path / "walk.png"
    spectra = SpectraSettings(corpora=(corpus,), out=picture, n=4)
    walk = LatentWalkSettings(generator="faces", fakes=("1", "2"), steps=2, out=picture)
    checks = CheckSettings(paths=(str(photo),), csv=table, device="cpu")
    work: list[Callable[[], object]] = [
        lambda: list(check_images(checks)),
        lambda: make_walk(walk),
        lambda: draw_spectra(spectra),
    ]
    with holding_file(picture), holding_file(table), ThreadPoolExecutor(1) as pool:
        for one in work:
            with pytest.raises(GanscopeError, match="is writing there"):
                pool.submit(one).result()
    assert not table.exists()
    assert not picture.exists()


def test_where_a_file_system_has_no_locks_a_file_stands_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(self: Any, *_: Any, **__: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.FileLock, "acquire", without)
    with (
        pytest.warns(GanscopeWarning, match="has no locks"),
        holding(tmp_path / "x"),
        pytest.raises(GanscopeError, match="if it runs no more, delete"),
        ThreadPoolExecutor(1) as pool,
    ):
        pool.submit(lambda: holding(tmp_path / "x").__enter__()).result()
    assert not (tmp_path / "x").exists()


# Damaged files

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "zeros": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "cut": lambda data: data[: len(data) // 2],
    "text": lambda data: b"this is not what it was\n" * 3,
    "other keys": lambda data: b'{"left": 1}',
}


class Stop(Exception):
    pass


class StopAfter:
    """Stands in for the progress bar and ends a training at a step."""

    def __init__(self, steps: int):
        self.left = steps

    def add_task(self, *_: Any, **__: Any) -> int:
        return 0

    def update(self, *_: Any, **__: Any) -> None:
        self.left -= 1
        if not self.left:
            raise Stop


def each_damage(path: Path, go_on: Callable[[], object]) -> None:
    """Every damage of a file gives one line that names it and says what to delete."""
    whole = path.read_bytes()
    damages = dict(DAMAGES)
    if path.suffix == ".pt":
        kept = io.BytesIO()
        torch.save({"left": 1}, kept)
        damages["other keys"] = lambda data: kept.getvalue()
    for name, damage in damages.items():
        path.write_bytes(damage(whole))
        with pytest.raises(GanscopeError, match=re.escape(path.name)) as raised:
            go_on()
        assert "delete" in str(raised.value) or name == "other keys", raised.value
        assert "\n" not in str(raised.value)
        assert path.read_bytes() == damage(whole)  # it is the user's to delete
    path.write_bytes(whole)


def test_a_damaged_file_of_an_unfinished_detector_is_named(corpus: Path, tmp_path: Path) -> None:
    wish = settings(corpus, tmp_path / "run", epochs=3)
    with pytest.raises(Stop):
        train_detector(wish, StopAfter(10))  # type: ignore[arg-type]
    assert (tmp_path / "run" / "checkpoint.pt").is_file()
    each_damage(tmp_path / "run" / "checkpoint.pt", lambda: train_detector(wish))
    each_damage(tmp_path / "run" / "speed.json", lambda: train_detector(wish))
    record = tmp_path / "run" / "settings.json"
    for damage in ("empty", "cut", "text"):
        whole = record.read_bytes()
        record.write_bytes(DAMAGES[damage](whole))
        with pytest.raises(GanscopeError, match=r"settings\.json.* delete its folder"):
            train_detector(wish)
        record.write_bytes(whole)
    train_detector(wish)


def test_a_damaged_file_of_an_unfinished_generator_is_named(tmp_path: Path) -> None:
    plan: dict[str, Any] = {"real": "photographs", "out": tmp_path / "run", "size": 8}
    plan |= {"steps": 4, "batch_size": 2, "width": 4, "sample_every": 2, "device": "cpu"}
    wish = TrainGeneratorSettings(**plan, precision="fp32")

    def stop(row: dict[str, Any]) -> None:
        if row["step"] == 3:
            raise Stop

    with pytest.raises(Stop):
        train_generator(wish, stop)
    for name in ("checkpoint.pt", "speed.json", "losses.csv"):
        each_damage(tmp_path / "run" / name, lambda: train_generator(wish))
    table = tmp_path / "run" / "losses.csv"
    whole = table.read_text()
    head, _, values = whole.partition("\n")
    table.write_text(f"{head}\n{values.replace('.', 'x', 1)}")  # a letter in a number
    with pytest.raises(GanscopeError, match=r"losses\.csv.*delete it"):
        train_generator(wish)
    table.write_text(whole)
    train_generator(wish)
    assert len(pd.read_csv(tmp_path / "run" / "losses.csv")) == 4


def test_damaged_features_of_a_frozen_backbone_are_named(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = settings(corpus, tmp_path / "run", detector="timm:test_vit", recipe="frozen-linear")
    wish = replace(wish, epochs=1, degrade=0.0)

    def stop(*_: Any) -> None:
        raise Stop

    def go_on() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train_detector(wish)

    with monkeypatch.context() as patch:
        patch.setattr(frozen, "_fit", stop)
        with pytest.raises(Stop):
            go_on()
    for name in ("features-val.npz", "features-0.npz"):
        each_damage(tmp_path / "run" / name, go_on)
    for damage in ("empty", "cut", "text"):
        begun = tmp_path / "run" / "features.json"
        whole = begun.read_bytes()
        begun.write_bytes(DAMAGES[damage](whole))
        with pytest.raises(GanscopeError, match=r"features\.json.*delete it"):
            go_on()
        begun.write_bytes(whole)
    go_on()


def test_a_corpus_goes_on_from_what_a_power_cut_left(tmp_path: Path) -> None:
    """Rows whose images are cut or gone, and rows that are cut themselves, are made anew."""
    whole = open_corpus(generate(tmp_path / "whole", 8)).table

    def stop(done: int) -> None:
        if done >= 4:
            raise Stop

    def unfinished(name: str) -> tuple[Path, Path]:
        about: dict[str, Any] = {"n": 8, "out": tmp_path / name, "size": 32, "device": "cpu"}
        with pytest.raises(Stop):
            generate_corpus(GenerateSettings(**about), stop)
        return tmp_path / name, tmp_path / name / ".metadata.part-1-of-1.csv"

    for name, damage in DAMAGES.items():
        out, part = unfinished(f"table {name}")
        part.write_bytes(damage(part.read_bytes()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            generate(out, 8)
        made = open_corpus(out).table
        assert made["file_name"].tolist() == whole["file_name"].tolist()
        out, part = unfinished(f"image {name}")
        image = out / pd.read_csv(part)["file_name"][2]
        image.write_bytes(damage(image.read_bytes()))
        with pytest.warns(GanscopeWarning, match="are made anew"):
            generate(out, 8)
        assert image.read_bytes() == Path(whole["path"][2]).read_bytes()
        out, _ = unfinished(f"request {name}")
        request = out / "corpus.json"
        request.write_bytes(damage(request.read_bytes()))
        with pytest.raises(GanscopeError, match=r"delete its folder|begun with another"):
            generate(out, 8)


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_a_damaged_cache_is_done_without(damage: str, photo: Path, tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    cache = Cache(path)
    cache.keep("d", [("c", str(i), 0.5) for i in range(2000)])
    cache.facts([str(photo)])
    cache.close()
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        cache = Cache(path)
        (facts,) = cache.facts([str(photo)])
        cache.values("d", "c")
        cache.keep("d", [("c", "x", 0.5)])
    assert isinstance(facts, FileFacts)
    assert damage == "empty" or any("elete it" in str(one.message) for one in said)


def test_values_that_a_cache_lost_are_no_values(tmp_path: Path) -> None:
    """Zeros in the place of a row's bytes read as NULL."""
    path = tmp_path / "cache.sqlite"
    cache = Cache(path)
    cache.keep("d", [("c", str(i), 0.5) for i in range(3)])
    cache.base.execute("UPDATE looks SET value = NULL WHERE image = '1'")
    cache.base.commit()
    with pytest.warns(GanscopeWarning, match="rows without values.*Delete it"):
        assert cache.values("d", "c") == {}


def test_a_file_is_on_the_disk_before_it_takes_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut would leave: the bytes reach the disk, then the name, then the folder."""
    said: list[str] = []
    fsync, replace_ = os.fsync, os.replace

    def note(descriptor: int) -> None:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        said.append("folder" if folder else "file")
        fsync(descriptor)

    def rename(a: Any, b: Any) -> None:
        said.append("name")
        replace_(a, b)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "replace", rename)
    once = ["file", "name", "folder"]
    write_text(tmp_path / "a.txt", "a")
    assert said == once
    save_checkpoint(tmp_path, {})
    assert said == once * 2
    Detector.create("cnn").save(tmp_path / "d")
    assert said == once * 5  # weights, card, configuration


def test_a_signal_while_a_checkpoint_is_written_leaves_no_half_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path, {"step": 1})

    def stopped(*_: object) -> None:
        assert list(tmp_path.glob("*.part"))  # it is half
        raise SystemExit(143)

    monkeypatch.setattr(os, "fsync", stopped)
    with pytest.raises(SystemExit):
        save_checkpoint(tmp_path, {"step": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert load_checkpoint(tmp_path) == {"step": 1}


def test_a_checkpoint_that_cannot_be_written_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(GanscopeError, match="this folder is gone"):
        save_checkpoint(tmp_path / "run", {})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".checkpoint.pt.part").mkdir()
    with pytest.raises(GanscopeError, match="may be written to"):
        save_checkpoint(tmp_path / "other", {})

    def full(*_: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(GanscopeError, match="free some space"):
        save_checkpoint(tmp_path, {})


def test_a_folder_that_is_just_being_emptied_is_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`rm -r` removes files first: what was to take its place may be missing where it still is."""

    def emptied(_: int) -> None:
        for path in tmp_path.iterdir():
            path.unlink()

    monkeypatch.setattr(os, "fsync", emptied)
    with pytest.raises(GanscopeError, match="this folder is gone; leave it in its place"):
        write_text(tmp_path / "a.txt", "a")


# Writes that fail


def command(
    arguments: list[str],
    folder: Path,
    stdout: str | int,
    encoding: str = "utf-8",
    most: int | None = None,
) -> tuple[int, str]:
    """Exit code and standard error of a command, forked, which is quick; stdout: a file; most:
    bytes that a file may have.
    """
    reader, writer = os.pipe()  # a file would be under that limit, too

    def work() -> None:
        for descriptor, name in ((1, stdout), (2, writer)):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(name if isinstance(name, int) else os.open(name, flags), descriptor)
        for key in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            del os.environ[key]
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w"), encoding, line_buffering=True)
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w"), encoding, line_buffering=True)
        os.chdir(folder)
        if most is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
        sys.argv = ["ganscope", *arguments]
        try:
            main()
        except SystemExit as end:
            os._exit(end.code or 0)  # type: ignore[arg-type]
        except BaseException:
            traceback.print_exc()
            os._exit(99)

    (code,) = side_by_side(work, 1)
    os.close(writer)
    with open(reader, encoding=encoding) as said:
        assert code is not None
        return code, said.read()


def save_tiny(folder: Path) -> None:
    torch.manual_seed(0)
    Detector.create("cnn", width=8, depth=3).save(folder)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
@pytest.mark.parametrize(
    "arguments",
    [
        "--help",
        "--version",
        "check --help",
        "list detectors",
        "list sources",
        "audit c",
        "check c/a --detector tiny --fail-on fake",
        "check c/a --detector tiny --fail-on fake --json",
        "spectra c --n 4",
        "diversity c --features pixels",
        "diversity c --features pixels --json",
        "latent walk faces 1 2 --steps 2",
        "generate --n 2 --size 32 --out made",
        "benchmark c --detector tiny --bootstrap 0 --protocol raw --json",
    ],
)
def test_a_full_disk_behind_standard_output_is_one_line_and_status_2(
    arguments: str, tmp_path: Path
) -> None:
    make_corpus(tmp_path / "c", {"real": 10, "a": 10}, side=64)
    save_tiny(tmp_path / "tiny")
    code, said = command(arguments.split(), tmp_path, "/dev/full", "utf-8")
    assert "standard output cannot be written (No space left on device)" in said
    assert "Traceback" not in said
    assert code == 2


SMALL = {
    "train-generator": "--real photographs --size 8 --steps 1 --batch-size 2 --width 4",
    "train-detector": "c --size 32 --epochs 1 --batch-size 8 --workers 0",
}
"""Trainings that are soon done."""


@pytest.mark.parametrize("name", sorted(SMALL))
def test_where_files_may_hold_nothing_a_training_says_so_and_can_be_begun_anew(
    name: str, tmp_path: Path
) -> None:
    make_corpus(tmp_path / "c", {"real": 40, "a": 40})
    words = [name, *SMALL[name].split(), "--device", "cpu", "--precision", "fp32", "--out", "run"]
    code, said = command(words, tmp_path, os.devnull, most=0)
    assert said.startswith("ganscope: run/settings.json: cannot be written (File too large)")
    assert said.count("\n") == 1
    assert code == 2
    code, said = command(words, tmp_path, os.devnull)
    assert code == 0, said
    assert (tmp_path / "run" / "config.json").is_file()


@pytest.mark.parametrize("name", sorted(SMALL))
def test_what_a_begun_run_leaves_is_taken_up_and_nothing_else(
    name: str, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "samples").mkdir(parents=True)
    for left in (".settings.1a2b3c4d.part.json", ".checkpoint.pt.part", "samples/.0.1a.part.png"):
        (out / left).touch()
    for other in ("a.txt", ".hidden", "part.json", ".metadata.part-1-of-1.csv", "samples/a.png"):
        (out / other).touch()
        with pytest.raises(GanscopeError, match=f"out exists and is not a run of {name}"):
            WRITERS[name](corpus, out)
        (out / other).unlink()
    (out / "link").symlink_to(tmp_path / "c")
    assert not is_empty(out)
    (out / "link").unlink()
    assert is_empty(out)
    WRITERS[name](corpus, out)
    assert (out / "config.json").is_file()


def test_a_reader_that_has_had_enough_finds_no_fakes(tmp_path: Path) -> None:
    """The status of a closed pipe is not 1, which means that a fake was found."""
    reader, writer = os.pipe()
    os.close(reader)
    make_corpus(tmp_path / "c", {"real": 1}, side=64)
    save_tiny(tmp_path / "tiny")
    for arguments in ("list sources", "check c/real --detector tiny --fail-on fake"):
        code, said = command(arguments.split(), tmp_path, writer, "utf-8")
        assert "Traceback" not in said
        assert code == 141
    os.close(writer)


def test_what_a_code_page_lacks_is_escaped(tmp_path: Path) -> None:
    make_corpus(tmp_path / "c", {"real": 10, "图": 10}, side=64)
    save_tiny(tmp_path / "tiny")
    for arguments in (
        "check c/图 --detector tiny --fail-on unsure",
        "audit c",
        "diversity c --features pixels",
    ):
        code, said = command(arguments.split(), tmp_path, str(tmp_path / "out"), "cp1252")
        assert "Traceback" not in said
        assert code in (0, 1), said
        written = (tmp_path / "out").read_bytes()
        assert written
        if "audit" not in arguments:
            assert b"\\u56fe" in written
    code, said = command(["check", "图.jpg"], tmp_path, str(tmp_path / "out"), "cp1252")
    assert code == 2
    assert "\\u56fe.jpg" in said


# Sizes that a network does not take


@pytest.mark.parametrize(
    ("architecture", "size", "works"),
    [
        ("timm:inception_v3", 64, "96"),
        ("timm:efficientformer_l1", 192, "224 works"),
        ("timm:convnext_atto", 16, "32"),
        ("timm:test_vit", 50, "48"),
        ("vit:test_vit", 50, "48"),
        ("cnn", 8, "16"),
    ],
)
def test_a_size_that_does_not_fit_is_said_with_some_that_do(
    architecture: str, size: int, works: str
) -> None:
    with pytest.raises(GanscopeError, match=rf"--size {size}: {architecture}") as raised:
        Detector.create(architecture, size=size)
    advice = str(raised.value).rpartition("; ")[2]
    assert works in advice
    fits = int(advice.split(",")[0].split()[0])
    made = Detector.create(architecture, size=fits)
    assert made(torch.zeros(2, 3, fits, fits)).shape == (2,)


def test_a_size_that_does_not_fit_is_said_by_every_command(corpus: Path, tmp_path: Path) -> None:
    two = make_corpus(tmp_path / "two", {"real": 40, "a": 40, "b": 40})
    name, out = "timm:test_vit", tmp_path / "out"
    work: list[Callable[[], object]] = [
        lambda: train_detector(settings(corpus, out, detector=name, size=50)),
        lambda: train_detector(
            settings(corpus, out, detector=name, size=50, recipe="frozen-linear", pretrained="hub")
        ),
        lambda: leave_one_out(
            BenchmarkSettings(corpora=(two,), train=(name,), size=50, out=out, device="cpu")
        ),
        lambda: arms_race(
            ArmsRaceSettings(real="photographs", detector="timm:inception_v3", out=out)
        ),
    ]
    for one in work:
        with pytest.raises(GanscopeError, match=r"--size \d+: .* work"):
            one()
    assert not out.exists()


def test_the_trial_changes_nothing() -> None:
    net, _ = build("npr")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    assert _misfit(net, 32) is None
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
