"""Leave one generator out: every detector meets its generator for the first time."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score, roc_auc_score
from test_training import make_corpus

from ganscope.cli.console import progress
from ganscope.config import BenchmarkSettings, TrainDetectorSettings
from ganscope.detector.benchmark import benchmark
from ganscope.detector.benchmark import leave_one_out as holdout
from ganscope.detector.benchmark.comparison import adjust
from ganscope.detector.benchmark.contestants import Scorer
from ganscope.detector.benchmark.leave_one_out import leave_one_out
from ganscope.detector.benchmark.report import figures
from ganscope.detector.judging import plots
from ganscope.detector.training.run import split_table
from ganscope.errors import GanscopeError
from ganscope.together.benchmark_corpora import with_corpora


class Killed(Exception):
    pass


def kill(*_: object) -> None:
    raise Killed


def test_each_generator_is_measured_by_a_detector_that_never_met_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus(tmp_path / "c", {"real": 50, "a": 20, "b": 16, "c": 12}, trace=60.0)
    settings = BenchmarkSettings(
        corpora=(corpus,),
        train=("cnn",),
        epochs=2,
        size=16,
        degrade=("jpeg:75",),
        out=tmp_path / "out",
        protocol="raw",
        bootstrap=20,
        device="cpu",
    )
    write, kept = holdout.write_results, []

    def note(*arguments: Any) -> None:
        scorers: Mapping[str, Scorer] = arguments[4]
        kept.extend(scorer.network for scorer in scorers.values())
        write(*arguments)

    monkeypatch.setattr(holdout, "write_results", note)
    results = leave_one_out(settings)
    assert kept == [None] * 3  # of many trainings the networks would fill the memory
    assert list(zip(results["generator"], results["degradation"], strict=True)) == [
        (name, degradation) for name in "abc" for degradation in ("clean", "jpeg:75")
    ]
    assert set(results["detector"]) == {"cnn"}
    for name, count in (("a", 20), ("b", 16), ("c", 12)):
        run = tmp_path / "out" / "runs" / "cnn" / name
        images = json.loads((run / "config.json").read_text())["training"]["images"]
        assert all(name not in images[split] for split in ("train", "val"))
        assert images["test"][name] == count
        row = results[(results["generator"] == name) & (results["degradation"] == "clean")].iloc[0]
        assert (row["n_fake"], row["n_real"]) == (count, images["test"]["real"])
    scores = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    assert len(scores) == 2 * (20 + 16 + 12 + 3 * 10)
    assert set(scores["detector"]) == {"cnn"}
    assert set(scores["left_out"]) == {"a", "b", "c"}
    assert set(scores.loc[scores["left_out"] == "a", "generator"]) == {"real", "a"}
    report = (tmp_path / "out" / "report.html").read_text()
    assert "The detector: cnn" in report
    assert "as they are, mean over the generators left out" in report
    about = json.loads((tmp_path / "out" / "report.json").read_text())["about"]
    assert list(about["detectors"]) == [f"cnn without {name}" for name in "abc"]
    # Killed before the end: what is done is not done again, what was asked must be the same.
    (tmp_path / "out" / "report.json").unlink()
    with pytest.raises(GanscopeError, match=r"other settings \(--epochs\)"):
        leave_one_out(replace(settings, epochs=3))
    monkeypatch.setattr(holdout, "train_detector", None)
    monkeypatch.setattr(holdout, "score_all", None)
    pd.testing.assert_frame_equal(leave_one_out(settings), results, check_exact=False)
    with pytest.raises(GanscopeError, match="is there already"):
        leave_one_out(settings)


def test_what_cannot_be_trained_is_said_before_anything_is(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "c", {"real": 50, "a": 40, "b": 40})
    plain = {"corpora": (corpus,), "out": tmp_path / "out"}
    with pytest.raises(GanscopeError, match=r"unknown generator.*did you mean 'a'"):
        leave_one_out(BenchmarkSettings(train=("cnn",), leave_out=("b", "aa"), **plain))
    with pytest.raises(GanscopeError, match="did you mean 'cnn'"):
        leave_one_out(BenchmarkSettings(train=("patch", "cmn"), **plain))
    for wrong, message in (
        ({"train": ("cnn",), "detector": ("runs/a",)}, "--train and --detector"),
        ({"train": ("cnn",), "split": "test"}, "--split does not go"),
        ({"epochs": 3}, "--epochs goes with --train"),
        ({"leave_out": ("a",)}, "--leave-out goes with --train"),
        ({"n": 60}, "--n and --real go with --generator"),
        ({"align_size": 64, "protocol": "raw"}, "--align-size goes with the aligned protocol"),
    ):
        with pytest.raises(GanscopeError, match=message):
            BenchmarkSettings(**plain, **wrong)
    assert not (tmp_path / "out").exists()


def test_only_some_are_left_out_where_they_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus(tmp_path / "c", {"real": 50, "a": 20, "b": 16, "c": 12})
    begun = []

    def note(plan: TrainDetectorSettings, *_: object) -> None:
        begun.append((plan.test_generator, plan.soup, plan.fuse))
        raise KeyboardInterrupt

    monkeypatch.setattr(holdout, "train_detector", note)
    settings = BenchmarkSettings(
        corpora=(corpus,),
        train=("cnn",),
        leave_out=("b",),
        fuse="patch",
        soup=2,
        pretrained="start.safetensors",
        out=tmp_path / "out",
    )
    whole = (corpus / "a" / "3.png").read_bytes()
    for bad in ("3.png", "4.png"):
        (corpus / "a" / bad).write_bytes(b"no image")
    with pytest.raises(KeyboardInterrupt):
        leave_one_out(settings)
    assert begun == [(("b",), 2, "patch")]
    table = pd.read_csv(corpus / "metadata.csv")
    table[table["file_name"] != "a/3.png"].to_csv(corpus / "metadata.csv", index=False)
    (corpus / "a" / "4.png").write_bytes(whole)
    with pytest.raises(KeyboardInterrupt):  # goes on, one that could not be read gone, one mended
        leave_one_out(settings)
    plan = TrainDetectorSettings(
        corpora=(corpus,), out=tmp_path / "out" / "runs" / "cnn" / "b", test_generator=("b",)
    )
    assert "a/4.png" not in set(split_table(plan)["file_name"])


def test_corpora_made_on_the_spot_lie_in_the_folder_of_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    corpus = make_corpus(tmp_path / "c", {"real": 50, "a": 40})
    (tmp_path / "leave-one-out").write_text("a file, no folder")
    monkeypatch.setattr(holdout, "train_detector", kill)
    settings = BenchmarkSettings(corpora=(corpus,), train=("cnn",), generator=("photos",), n=60)
    with progress() as bar:
        settings = with_corpora(settings, bar)
    assert settings.out == Path("leave-one-out-2")
    assert settings.corpora == (corpus, settings.out / "corpora" / "photos")
    for _ in range(2):  # begun, and continued
        with pytest.raises(Killed):
            leave_one_out(settings)
    (tmp_path / "other" / "corpora").mkdir(parents=True)
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(GanscopeError, match="is there already"):
        leave_one_out(replace(settings, out=tmp_path / "other"))


def test_it_is_not_continued_with_other_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be split otherwise: what the finished trainings learned from could be tested."""
    corpus = make_corpus(tmp_path / "c", {"real": 50, "a": 40, "b": 40})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(holdout, "train_detector", kill)
    settings = BenchmarkSettings(corpora=(corpus,), train=("cnn",), out=Path("leave-one-out"))
    table = (corpus / "metadata.csv").read_text()
    with pytest.raises(Killed):
        leave_one_out(settings)
    (corpus / "a" / "new.png").write_bytes((corpus / "a" / "0.png").read_bytes())
    (corpus / "metadata.csv").write_text(f"{table}a/new.png,1,a\n")
    with pytest.raises(GanscopeError, match="begun with other images in the corpora; restore them"):
        leave_one_out(settings)
    with pytest.raises(Killed):
        leave_one_out(replace(settings, out=None))
    assert Path("leave-one-out-2").is_dir()
    (corpus / "metadata.csv").write_text(table)
    with pytest.raises(Killed):
        leave_one_out(settings)


def test_trainings_beside_each_other_are_those_one_by_one(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "c", {"real": 50, "a": 40, "b": 40}, trace=60.0)
    plan: dict[str, Any] = {"corpora": (corpus,), "train": ("cnn",), "epochs": 1, "size": 16}
    plan |= {"protocol": "raw", "bootstrap": 0, "device": "cpu", "cache": False}
    columns = ["detector", "generator", "degradation", "n_real", "n_fake"]
    found = [
        leave_one_out(BenchmarkSettings(**plan, jobs=jobs, out=tmp_path / str(jobs)))[columns]
        for jobs in (1, 2)
    ]
    pd.testing.assert_frame_equal(*found)
    runs = {path.parent.name for path in (tmp_path / "2" / "runs").rglob("config.json")}
    assert runs == {"a", "b"}


@pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")
@pytest.mark.parametrize(
    ("number", "status", "learning"),
    [(signal.SIGINT, 130, False), (signal.SIGTERM, 143, True)],
    ids=["ctrl-c while they start", "term while they learn"],
)
def test_trainings_beside_each_other_end_with_the_first(
    tmp_path: Path, number: int, status: int, learning: bool
) -> None:
    make_corpus(tmp_path / "c", {"real": 50, "a": 40, "b": 40})
    words = "benchmark c --train cnn --jobs 2 --epochs 99999 --size 16 --out out --device cpu"
    first = subprocess.Popen(
        [sys.executable, "-m", "ganscope", *words.split()],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background jobs begin with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )

    def begun() -> bool:
        if learning:
            return len(list((tmp_path / "out").glob("runs/cnn/*/losses.csv"))) == 2
        return len(children(first.pid)) == 3  # one looks after what the others share

    try:
        while not begun():
            assert first.poll() is None
            time.sleep(0.01)
        time.sleep(0.3)  # Python answers signals by then, and imports what a training needs
        asked = time.monotonic()
        if number == signal.SIGINT:
            os.killpg(first.pid, number)  # as a terminal does it: to all of them
        else:
            first.send_signal(number)
        _, said = first.communicate(timeout=60)
        while group_lives(first.pid):
            assert time.monotonic() < asked + 60, "orphans"
            time.sleep(0.05)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)
    assert first.returncode == status
    assert "Traceback" not in said
    last = said.strip().splitlines()[-1:]
    assert last == ["ganscope: stopped; the same command given again goes on"]
    assert not list((tmp_path / "out").rglob("*.part*"))


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


def group_lives(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


def test_one_generator_cannot_be_left_out(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "c", {"real": 4, "a": 4})
    with pytest.raises(GanscopeError, match="two or more"):
        leave_one_out(BenchmarkSettings(corpora=(corpus,), train=("cnn",), out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def held_out() -> pd.DataFrame:
    """Scores as of two architectures, each trained without a, b and c in turn; the trainings'
    scores lie in places of their own.
    """
    rng = np.random.default_rng(0)
    parts = []
    for place, (name, count) in enumerate({"a": 30, "b": 20, "c": 11}.items()):
        images = pd.DataFrame({"label": np.repeat([0, 1], [25 + place, count])})
        images["generator"] = np.where(images["label"] == 1, name, "real")
        images["image"] = np.arange(len(images)) + 100 * place
        for detector, skill in (("cnn", 1.5), ("npr", 0.3)):
            logit = rng.normal(size=len(images)) + skill * images["label"] + 2 * place
            score = 1 / (1 + np.exp(-logit))
            parts.append(images.assign(detector=detector, left_out=name, score=score))
    about = {"group": "", "source": "", "protocol": "raw", "degradation": "clean"}
    return pd.concat(parts, ignore_index=True).assign(**about)


def test_p_is_corrected_for_all_generators_that_were_left_out(held_out: pd.DataFrame) -> None:
    worse = held_out.assign(degradation="jpeg:75", score=held_out["score"].round(1))
    table = pd.concat([held_out, worse], ignore_index=True)
    thresholds = {f"{d} without {g}": 0.5 for d in ("cnn", "npr") for g in "abc"}
    settings = BenchmarkSettings(corpora=(Path("c"),), train=("cnn", "npr"))
    found, _ = benchmark._compare(table, thresholds, settings)
    assert found["generator"].tolist() == ["a", "a", "b", "b", "c", "c"]
    for _, family in found.groupby("degradation"):
        assert len(family) == 3
        assert family["p_adjusted"].tolist() == pytest.approx(adjust(family["p_value"]).tolist())
        assert (family["p_adjusted"] > family["p_value"]).any()


def test_curves_over_all_generators_are_means(
    held_out: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pooled, scores of trainings that mean something else each would make another curve."""
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
    monkeypatch.setattr(plots, "as_svg", lambda figure: drawn.append(figure))
    scored = figures.scored_by(held_out, "raw")
    lines = plots.lines_of(list(scored))
    plots.draw_roc("roc.png", scored)
    plots.roc_figure(scored, lines)
    plots.precision_figure(scored, lines)
    legend = drawn[0].axes[0].get_legend()
    assert legend.get_title().get_text() == "mean AUROC"
    for place, (detector, rows) in enumerate(held_out.groupby("detector")):
        cells = [(part["label"], part["score"]) for _, part in rows.groupby("left_out")]
        auroc = np.mean([roc_auc_score(*cell) for cell in cells])
        assert abs(auroc - roc_auc_score(rows["label"], rows["score"])) > 0.02
        assert legend.get_texts()[place].get_text() == f"{detector}  {auroc:.3f}"
        for figure in drawn[:2]:
            fpr, tpr = figure.axes[0].lines[place].get_data()
            assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
            assert min(np.diff(fpr).min(), np.diff(tpr).min()) >= 0
            assert np.trapezoid(tpr, fpr) == pytest.approx(auroc)
        recall, precision = drawn[2].axes[0].lines[place].get_data()
        mean = np.mean([average_precision_score(*cell) for cell in cells])
        assert -np.sum(np.diff(recall) * precision[:-1]) == pytest.approx(mean)


def test_what_fails_for_one_generator_does_not_lose_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus(tmp_path / "c", {"real": 50, "a": 20, "b": 16, "c": 12}, trace=60.0)
    for i in range(12):  # none of these can be aligned
        path = str(corpus / "c" / f"{i}.png")
        cv2.imwrite(path, cv2.imread(path)[:24])
    train = holdout.train_detector

    def some(plan: TrainDetectorSettings, *rest: Any) -> Path:
        if plan.test_generator == ("b",):
            raise GanscopeError("no luck")
        return train(plan, *rest)

    monkeypatch.setattr(holdout, "train_detector", some)
    results = leave_one_out(
        BenchmarkSettings(
            corpora=(corpus,),
            train=("cnn",),
            epochs=1,
            size=16,
            out=tmp_path / "out",
            align_size=32,
            bootstrap=20,
            device="cpu",
        )
    )
    assert "cnn without b: no luck" in results.attrs["missing"]
    cells = results.set_index(["generator", "protocol"])
    assert cells["auroc"].notna().to_dict() == {
        ("a", "raw"): True,
        ("a", "aligned"): True,
        ("c", "raw"): True,
        ("c", "aligned"): False,
    }
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["findings"][0]["title"] == "The detector: cnn"
