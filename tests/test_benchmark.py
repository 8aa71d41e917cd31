"""The benchmark: every cell, from one table of scores, with the failures named."""

import dataclasses
import json
import shutil
import threading
import time
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from ganscope.cli import benchmark as benchmark_cli
from ganscope.config import BenchmarkSettings, as_command
from ganscope.datasets.alignment import Alignment
from ganscope.datasets.copies import look_at_table
from ganscope.datasets.corpus import open_corpus
from ganscope.detector.benchmark import asking, benchmark, cache, met, mistakes
from ganscope.detector.benchmark.benchmark import benchmark_detectors
from ganscope.detector.benchmark.cache import Cache, FileFacts, read_file
from ganscope.detector.benchmark.contestants import NetworkScorer, View, open_scorer
from ganscope.detector.benchmark.mistakes import worst_mistakes
from ganscope.detector.judging import plots
from ganscope.detector.model import Detector, load_detector
from ganscope.errors import GanscopeError, GanscopeWarning


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reals and the fakes of two generators: one brighter than the reals, one like them."""
    root = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for folder, shift in (("0_real", 0), ("1_fake/bright", 60), ("1_fake/alike", 0)):
        (root / folder).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(60, 130, (40, 48, 3)) + shift
            cv2.imwrite(str(root / folder / f"{i}.png"), pixels.astype(np.uint8))
    return root


@pytest.fixture(scope="module")
def detectors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One whose logit is the mean brightness, and its opposite."""
    root = tmp_path_factory.mktemp("detectors")
    for name, sign in (("light", 1.0), ("dark", -1.0)):
        detector = Detector.create("patch", size=32, width=4)
        for parameter in detector.parameters():
            torch.nn.init.zeros_(parameter)
        with torch.no_grad():  # the first convolution measures light, the rest hands it on
            net = detector.net
            net.features[0].weight[0] = 1 / 27
            net.features[1].weight.fill_(1)
            net.features[1].bias.fill_(2)
            for block in net.features[3:]:
                if not isinstance(block.shortcut, torch.nn.Identity):
                    block.shortcut[0].weight[0, 0] = 1
                    block.shortcut[1].weight.fill_(1)
            net.head.weight[0, 0] = sign
            net.head.bias.fill_(-1.8 * sign)
        detector.eval().save(root / name)
    return {name: str(root / name) for name in ("light", "dark")}


def settings(corpus: Path, out: Path, **changes: object) -> BenchmarkSettings:
    base: dict = {"corpora": (corpus,), "out": out, "bootstrap": 100, "device": "cpu"}
    return BenchmarkSettings(**(base | changes))


def test_every_cell_is_the_auroc_of_its_scores(
    corpus: Path,
    detectors: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = benchmark_detectors(
        settings(
            corpus,
            tmp_path / "out",
            detector=(detectors["light"], detectors["dark"]),
            degrade=("jpeg:75", "resize:0.9"),
        )
    )
    # protocols x detectors x (all, bright, alike) x (clean, two)
    assert len(results) == 2 * 2 * 3 * 3
    scores = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    assert len(scores) == 36 * 3 * 2 * 2
    for _, row in results.iterrows():
        same = ["detector", "protocol", "degradation"]
        part = scores[(scores[same] == row[same]).all(axis=1)]
        if row["generator"] != "all":
            part = part[part["generator"].isin(["real", row["generator"]])]
        expected = roc_auc_score(part["label"], part["score"])
        assert row["auroc"] == pytest.approx(expected, abs=1e-6)
    raw = results[results["protocol"] == "raw"]
    cells = raw.set_index(["detector", "generator", "degradation"])["auroc"]
    assert cells[detectors["light"], "bright", "clean"] == 1
    assert cells[detectors["dark"], "bright", "jpeg:75"] == 0
    assert 0.2 < cells[detectors["light"], "alike", "clean"] < 0.8
    remarks = raw.set_index(["detector", "generator", "degradation"])["remark"]
    assert "inverted" in remarks[detectors["dark"], "bright", "clean"]
    assert remarks[detectors["light"], "bright", "clean"] == ""
    compared = pd.read_csv(tmp_path / "out" / "comparisons.csv")
    assert len(compared) == 2 * 3 * 3  # one pair; protocols, generators, degradations
    assert set(compared["detector"]) == {detectors["light"]}
    assert set(compared["other"]) == {detectors["dark"]}
    for _, row in compared[compared["protocol"] == "raw"].iterrows():
        one, other = (
            cells[row[name], row["generator"], row["degradation"]] for name in ("detector", "other")
        )
        assert row["difference"] == pytest.approx(one - other, abs=1e-5)
    alarms = pd.read_csv(tmp_path / "out" / "false_alarms.csv", keep_default_na=False)
    assert alarms["photographs"].tolist() == [12] * 2 * 2 * 3
    reals = scores[(scores["label"] == 0) & (scores["degradation"] == "clean")]
    for _, row in alarms[alarms["degradation"] == "clean"].iterrows():
        part = reals[
            (reals["detector"] == row["detector"]) & (reals["protocol"] == row["protocol"])
        ]
        threshold = load_detector(row["detector"]).thresholds["fake"]
        assert row["called_fake"] == (part["score"] >= threshold).sum()
    for name in ("roc.png", "matrix.png"):
        assert cv2.imread(str(tmp_path / "out" / name)).shape[0] > 200
    assert (
        "<h1>2 detectors against 2 generators</h1>"
        in (tmp_path / "out" / "report.html").read_text()
    )
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["about"]["command"].startswith(f"ganscope benchmark {corpus} --detector ")
    assert report["about"]["images"]["count"] == 36
    assert report["audit"]["n_fake"] == 24
    both = results[results["degradation"] == "clean"].set_index(
        ["protocol", "detector", "generator"]
    )
    assert len(report["gap"]) == 2 * 3
    for row in report["gap"]:
        one, two = (
            both.loc[(p, row["detector"], row["generator"]), "auroc"] for p in ("raw", "aligned")
        )
        assert row["gap"] == pytest.approx(one - two)
    benchmark_cli.show_results(results)
    said = capsys.readouterr().out
    assert "what the format gives away" in said
    assert "p corrected" in said


def test_an_unreadable_image_is_left_out_and_named(
    corpus: Path, detectors: dict[str, str], tmp_path: Path
) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(corpus, broken)
    (broken / "0_real" / "3.png").write_bytes(b"damaged")
    results = benchmark_detectors(
        settings(broken, tmp_path / "out", detector=(detectors["light"],))
    )
    assert list(results.attrs["unreadable"]) == [str(broken / "0_real" / "3.png")]
    assert results["n_real"].tolist() == [11] * 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"degrade": ("jepg:75",)}, "did you mean 'jpeg'"),
        ({"degrade": ("jpeg:0",)}, "between 1 and 100"),
        ({"degrade": ("blur",)}, "NAME:VALUE"),
        ({"detector": ("no-such",)}, "unknown detector"),
        ({"split": "test"}, "no reals in the split 'test'"),
    ],
)
def test_mistakes_are_named(
    corpus: Path, detectors: dict[str, str], tmp_path: Path, change: dict, message: str
) -> None:
    arguments = {"detector": (detectors["light"],)} | change
    with pytest.raises(GanscopeError, match=message):
        benchmark_detectors(settings(corpus, tmp_path / "out", **arguments))
    assert not (tmp_path / "out").exists()


def test_chunks_of_open_images_are_bounded_by_their_pixels(
    corpus: Path, detectors: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    ask = NetworkScorer.values

    def values(self: NetworkScorer, views: list[View]) -> list[float | str]:
        seen.append(len(views))
        return ask(self, views)

    monkeypatch.setattr(NetworkScorer, "values", values)
    monkeypatch.setattr(asking, "CHUNK_PIXELS", 3 * 2 * 40 * 48)  # pixels and a copy
    monkeypatch.setattr(asking, "RUN_PIXELS", 2 * 40 * 48)
    benchmark_detectors(
        settings(corpus, tmp_path / "out", detector=(detectors["light"],), protocol="raw")
    )
    assert seen == [3] * 12


def test_files_on_a_slow_disk_are_read_beside_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The facts come in the order of the files."""
    paths = [str(tmp_path / f"{i}.png") for i in range(9)]
    for i, path in enumerate(paths):
        cv2.imwrite(path, np.zeros((4, 4 + i, 3), np.uint8))
    readers: set[int] = set()

    def slow(path: str) -> FileFacts:
        readers.add(threading.get_ident())
        time.sleep(0.1)
        return read_file(path)

    monkeypatch.setattr(cache, "AT_ONCE", 2)
    monkeypatch.setattr(cache, "read_file", slow)
    with closing(Cache(None)) as base:
        facts = base.facts(paths)
        assert [f.width for f in facts if isinstance(f, FileFacts)] == list(range(4, 13))
        assert len(readers) == 5  # this one, and one for each of the other four pairs
        readers.clear()
        assert base.facts(paths) == facts
        assert not readers  # they have not changed


def test_a_cache_that_fills_up_is_done_without(
    corpus: Path, detectors: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Cache._open

    def small(cache: Cache, name: str) -> None:
        opened(cache, name)
        cache.base.execute("PRAGMA query_only = ON")

    monkeypatch.setattr(Cache, "_open", small)
    with pytest.warns(GanscopeWarning, match="nothing can be kept there") as told:
        results = benchmark_detectors(
            settings(corpus, tmp_path / "out", detector=(detectors["light"],))
        )
    assert len([w for w in told if "nothing can be kept" in str(w.message)]) == 1
    assert results["auroc"].notna().all()


def test_what_an_older_version_kept_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cache.sqlite"
    with closing(Cache(file)) as base:
        base.keep("detector", [("clean", "x", 0.5)])
    with closing(Cache(file)) as base:
        assert base.values("detector", "clean") == {"x": 0.5}
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    with closing(Cache(file)) as base:
        assert base.values("detector", "clean") == {}


def test_without_a_record_the_names_of_corpora_tell_what_was_met(
    corpus: Path, detectors: dict[str, str], tmp_path: Path
) -> None:
    known = {"corpora": [str(corpus)], "val_generator": [], "test_generator": [], "val_source": []}
    detector = load_detector(detectors["light"])

    def told(split: str, has_test: bool = True, **training: object) -> str:
        detector.config["training"] = known | training
        scorer = NetworkScorer("light", detector)
        return met.guess(scorer, settings(corpus, tmp_path, split=split), has_test)

    assert "--split test measures what it never saw" in told("all")
    assert told("test") == ""
    # A training that holds generators out splits anew, whatever the corpus calls its test.
    for split in ("test", "all"):
        for anew in (told(split, val_generator=["bright"]), told(split, has_test=False)):
            assert anew == f"trained on this corpus, so this flatters ({met.GUESSED})"
    assert "thresholds were set by images of this corpus" in told("val")
    assert told("all", corpora=["elsewhere"]) == ""


def keep_record(corpus: Path, detector: str, folder: Path) -> str:
    """A copy of a detector that learned from half of a corpus' images and chose by a quarter."""
    looked = look_at_table(open_corpus(corpus).table)
    rows = np.flatnonzero(np.arange(len(looked.table)) % 4 < 3)
    copy = load_detector(detector)
    copy.learned = dataclasses.replace(looked.prints.take(rows), chosen=rows % 4 == 2)
    copy.save(folder)
    return str(folder)


def test_images_that_a_detector_learned_from_are_known_wherever_they_lie(
    corpus: Path, detectors: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "write_report", lambda *_, **__: None)  # most of the time
    coarse, moved, other = (tmp_path / name for name in ("coarse", "moved", "other"))
    rng = np.random.default_rng(0)
    for path in corpus.rglob("*.png"):
        rough = coarse / path.relative_to(corpus)
        rough.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (12, 12, 3)).astype(np.uint8)
        cv2.imwrite(str(rough), cv2.resize(pixels, (48, 48), interpolation=cv2.INTER_CUBIC))
    corpus = coarse
    taught = keep_record(corpus, detectors["light"], tmp_path / "taught")
    for path in corpus.rglob("*.png"):  # saved anew, elsewhere, under other names
        copy = moved / path.relative_to(corpus).with_name(f"new-{path.stem}.jpg")
        copy.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(copy), cv2.imread(str(path)), [cv2.IMWRITE_JPEG_QUALITY, 97])
        unlike = other / path.relative_to(corpus)
        unlike.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(unlike), cv2.imread(str(path))[::-1, ::-1])
    plan = {"detector": (taught, detectors["dark"]), "protocol": "raw", "bootstrap": 0}
    for folder in (corpus, moved):
        results = benchmark_detectors(settings(folder, tmp_path / f"on-{folder.name}", **plan))
        remarks = results.set_index(["detector", "generator"])["remark"]
        said = remarks[taught, "all"]
        assert "it learned from 18 and set its thresholds by 9 of these 36 images (" in said
        assert said.endswith("so this flatters; --split test measures what it never saw")
        assert "learned from 12 and" in remarks[taught, "alike"]
        assert "flatters" not in remarks[detectors["dark"], "all"]
    results = benchmark_detectors(settings(other, tmp_path / "fresh", **plan))
    assert not results["remark"].str.contains("flatters").any()
    # A corpus without splits of its own is split as the training split it.
    results = benchmark_detectors(settings(moved, tmp_path / "test", split="test", **plan))
    assert results["n_real"].tolist() == [3] * 6
    assert not results["remark"].str.contains("flatters").any()
    assert "the corpora have no splits of their own" in results.attrs["notes"][0]
    with pytest.raises(GanscopeError, match="no splits of their own, and no detector here"):
        benchmark_detectors(settings(other, tmp_path / "none", split="test", **plan))


def test_a_picture_under_both_labels_is_told_of(
    detectors: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(benchmark, "write_report", lambda *_, **__: None)
    rng = np.random.default_rng(0)
    for folder in ("0_real", "1_fake/a"):
        (tmp_path / "c" / folder).mkdir(parents=True)
        for i in range(5):
            pixels = rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)
            cv2.imwrite(str(tmp_path / "c" / folder / f"{i}.png"), pixels)
    shutil.copy(tmp_path / "c/0_real/1.png", tmp_path / "c/1_fake/a/1.png")
    plan = {"detector": (detectors["light"],), "protocol": "raw", "bootstrap": 0}
    results = benchmark_detectors(settings(tmp_path / "c", tmp_path / "out", **plan))
    (note,) = results.attrs["notes"]
    assert "1 fakes are there as reals, too" in note
    assert "1_fake/a/1.png = 0_real/1.png" in note


def test_only_what_is_new_is_asked(
    corpus: Path, detectors: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []
    ask = NetworkScorer.values

    def values(self: NetworkScorer, views: list[View]) -> list[float | str]:
        if len(asked) == stop:
            raise KeyboardInterrupt
        asked.append((self.name, len(views)))
        return ask(self, views)

    monkeypatch.setattr(NetworkScorer, "values", values)
    monkeypatch.setattr(asking, "CHUNK", 12)
    monkeypatch.setattr(asking, "RUN", 6)
    monkeypatch.setattr(benchmark, "write_report", lambda *_, **__: None)  # most of the time
    light, dark = detectors["light"], detectors["dark"]
    plan = {"detector": (light,), "degrade": ("noise:5",)}
    stop = 5  # a chunk is asked for four times: raw and aligned, clean and with noise
    with pytest.raises(KeyboardInterrupt):
        benchmark_detectors(settings(corpus, tmp_path / "killed", **plan))
    assert asked == [(light, 12)] * 5
    stop = -1
    first = benchmark_detectors(settings(corpus, tmp_path / "killed", **plan))
    assert asked == [(light, 12)] * 12
    again = benchmark_detectors(settings(corpus, tmp_path / "again", **plan))
    assert len(asked) == 12
    pd.testing.assert_frame_equal(first, again)
    more = benchmark_detectors(
        settings(corpus, tmp_path / "more", **(plan | {"detector": (light, dark)}))
    )
    assert asked[12:] == [(dark, 12)] * 12
    pd.testing.assert_frame_equal(more[more["detector"] == light].reset_index(drop=True), first)
    fresh = benchmark_detectors(settings(corpus, tmp_path / "fresh", cache=False, **plan))
    assert len(asked) == 36
    pd.testing.assert_frame_equal(fresh, first)


def test_alignment_takes_the_file_format_away(
    astronaut: np.ndarray, detectors: dict[str, str], tmp_path: Path
) -> None:
    """Reals are JPEG, fakes PNG; nothing else tells them apart, for they show the same."""
    root = tmp_path / "corpus"
    for folder in ("0_real", "1_fake"):
        (root / folder).mkdir(parents=True)
    for i in range(16):
        pixels = np.ascontiguousarray(astronaut[20 * i : 20 * i + 64, 8 * i : 8 * i + 72, ::-1])
        quality = [cv2.IMWRITE_JPEG_QUALITY, 60 + i]
        cv2.imwrite(str(root / "0_real" / f"{i}.jpg"), pixels, quality)
        cv2.imwrite(str(root / "1_fake" / f"{i}.png"), pixels)
    code = (
        "import cv2, numpy as np\n"
        "def blocks(path: str):\n"
        "    grey = cv2.imread(path).mean(2)\n"
        "    steps = np.abs(np.diff(grey, axis=1)).mean(0)\n"
        "    edge = steps[7::8].mean() / (steps.mean() + 1e-6)\n"
        "    return float(1 / (1 + edge))\n"
    )
    (tmp_path / "blocks.py").write_text(code)
    results = benchmark_detectors(
        settings(root, tmp_path / "out", detector=(f"python:{tmp_path / 'blocks.py'}:blocks",))
    )
    raw, aligned = results["auroc"]
    assert results["protocol"].tolist() == ["raw", "aligned"]
    assert raw > 0.7
    assert abs(aligned - 0.5) < 0.15


def test_alignment_takes_away_in_what_quality_files_were_saved(
    astronaut: np.ndarray, tmp_path: Path
) -> None:
    """Both classes are JPEG and show the same; fakes were saved with less quality."""
    root = tmp_path / "corpus"
    for folder, quality in (("0_real", 95), ("1_fake", 50)):
        (root / folder).mkdir(parents=True)
        for i in range(16):
            pixels = np.ascontiguousarray(astronaut[20 * i : 20 * i + 64, 8 * i : 8 * i + 64, ::-1])
            name = str(root / folder / f"{i}.jpg")
            cv2.imwrite(name, pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    (tmp_path / "lost.py").write_text(
        "import cv2, numpy as np\n"
        "def fine(path: str):\n"
        "    grey = cv2.imread(path, 0).astype(np.float32)\n"
        "    rows = grey[:64, :64].reshape(8, 8, 8, 8).transpose(0, 2, 1, 3)\n"
        "    high = [np.abs(cv2.dct(b)[5:, 5:]).mean() for b in rows.reshape(64, 8, 8)]\n"
        "    return float(1 / (1 + np.mean(high)))\n"
    )
    detector = f"python:{tmp_path / 'lost.py'}:fine"
    results = benchmark_detectors(settings(root, tmp_path / "out", detector=(detector,)))
    raw, aligned = results["auroc"]
    assert raw > 0.9
    assert abs(aligned - 0.5) < 0.15
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["gap"][0]["gap"] == pytest.approx(raw - aligned)


def test_what_a_network_cannot_bear_is_one_images_fault(
    corpus: Path, detectors: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = NetworkScorer.values

    def bear(scorer: NetworkScorer, views: list[View]) -> list[float | str]:
        if any(view.name.endswith("0_real/3.png") for view in views):
            raise RuntimeError("out of memory")
        return values(scorer, views)

    monkeypatch.setattr(NetworkScorer, "values", bear)
    plan = settings(corpus, tmp_path / "out", detector=(detectors["light"],), protocol="raw")
    results = benchmark_detectors(plan)
    assert results["n_real"].tolist() == [11] * 3
    (missing,) = results.attrs["missing"]
    assert "3.png" in missing
    assert "out of memory" in missing


def test_a_generator_whose_images_are_all_too_small_is_missing(
    corpus: Path, detectors: dict[str, str], tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(corpus, tmp_path / "c")
    (tmp_path / "c" / "1_fake" / "small").mkdir()
    cv2.imwrite(str(tmp_path / "c" / "1_fake" / "small" / "0.png"), np.full((16, 16, 3), 9.0))
    results = benchmark_detectors(
        settings(tmp_path / "c", tmp_path / "out", detector=(detectors["light"],))
    )
    (missing,) = results.attrs["missing"]
    assert missing.startswith("small: all images are smaller than 32 pixels")
    assert set(results["generator"][results["protocol"] == "aligned"]) == {"all", "alike", "bright"}


def test_a_benchmark_that_fails_leaves_no_folder(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("def f(path: str):\n    raise ValueError('no')\n")
    plan = settings(corpus, tmp_path / "out", detector=(f"python:{tmp_path / 'f.py'}:f",))
    with pytest.raises(GanscopeError, match="it raised ValueError"):
        benchmark_detectors(plan)
    assert not (tmp_path / "out").exists()


def test_a_detector_that_fails_does_not_stop_the_others(
    corpus: Path, detectors: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "f.py").write_text(
        "def breaks(path: str):\n    raise ValueError('no')\n\n"
        "def some(path: str):\n    return float('nan') if path.endswith('/3.png') else 0.5\n"
    )
    breaks, some = (f"python:{tmp_path / 'f.py'}:{name}" for name in ("breaks", "some"))
    results = benchmark_detectors(
        settings(
            corpus,
            tmp_path / "out",
            detector=(breaks, "no-such", detectors["light"], some),
            protocol="raw",
        )
    )
    assert set(results["detector"]) == {detectors["light"], some}
    counts = results[results["generator"] == "all"].set_index("detector")["n_fake"]
    assert counts.to_dict() == {detectors["light"]: 24, some: 22}
    missing = results.attrs["missing"]
    assert "unknown detector 'no-such'" in missing[0]
    assert any(said.startswith(f"{breaks}: it raised ValueError: no") for said in missing)
    assert sum("3.png" in said and "no finite number" in said for said in missing) == 3


def test_scores_of_an_outside_program_take_part(
    corpus: Path, detectors: dict[str, str], tmp_path: Path
) -> None:
    names = sorted(p.relative_to(corpus).as_posix() for p in corpus.rglob("*.png"))
    table = pd.DataFrame({"path": names, "score": [float("1_fake" in name) for name in names]})
    table.iloc[1:].to_csv(corpus / "theirs.csv", index=False)
    results = benchmark_detectors(
        settings(corpus, tmp_path / "out", detector=(f"scores:{corpus / 'theirs.csv'}",))
    )
    assert results["protocol"].tolist() == ["raw"] * 3
    assert results["auroc"].tolist() == [1.0] * 3
    assert results["n_real"].tolist() == [11] * 3
    (note,) = results.attrs["notes"]
    assert "files as they are only" in note
    assert json.loads((tmp_path / "out" / "report.json").read_text())["about"]["notes"] == [note]
    (missing,) = results.attrs["missing"]
    assert f"{names[0]}: " in missing
    assert "no score in this file" in missing


def test_a_single_pixel_goes_through_every_degradation(
    corpus: Path, detectors: dict[str, str], tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(corpus, tmp_path / "tiny")
    cv2.imwrite(str(tmp_path / "tiny" / "0_real" / "0.png"), np.full((1, 1, 3), 90, np.uint8))
    degrade = ("resize:0.1", "crop:0.1", "jpeg:75", "blur:2")
    results = benchmark_detectors(
        settings(tmp_path / "tiny", tmp_path / "o", detector=(detectors["light"],), degrade=degrade)
    )
    assert results.attrs["unreadable"] == {}
    assert results.groupby("protocol")["n_real"].first().to_dict() == {"aligned": 11, "raw": 12}


def test_a_benchmark_is_not_written_over(
    corpus: Path, detectors: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.csv").write_text("mine")
    with pytest.raises(GanscopeError, match="another folder"):
        benchmark_detectors(settings(corpus, tmp_path / "out", detector=(detectors["light"],)))
    assert (tmp_path / "out" / "results.csv").read_text() == "mine"


def test_the_worst_mistakes_are_shown_as_the_detector_saw_them(
    corpus: Path, detectors: dict[str, str], tmp_path: Path
) -> None:
    paths = sorted(str(p) for p in corpus.rglob("*.png"))
    table = pd.DataFrame({"path": paths, "label": [int("1_fake" in p) for p in paths]})
    table["generator"] = [Path(p).parent.name if "1_fake" in p else "real" for p in paths]
    table["score"] = [((7 * i) % 36) / 36 for i in range(len(paths))]
    table = table.assign(detector="light", protocol="aligned", degradation="clean")
    better = table.assign(score=table["label"].astype(float))
    table = pd.concat([table, better.assign(protocol="raw"), better.assign(degradation="blur:1")])
    scorer = open_scorer(detectors["light"], device="cpu")
    found = worst_mistakes(table, {"light": scorer}, Alignment(32, None), most=8)
    clean = table[(table["protocol"] == "aligned") & (table["degradation"] == "clean")]
    alarms = clean[(clean["label"] == 0) & (clean["score"] >= scorer.threshold)]
    misses = clean[(clean["label"] == 1) & (clean["score"] < scorer.threshold)]
    assert [m.path for m in found] == [
        *alarms.sort_values("score", ascending=False)["path"][:4],
        *misses.sort_values("score")["path"][:4],
    ]
    for mistake in found:
        assert mistake.thumbnail.shape == (32, 32, 3)
        assert mistake.overlay is not None
        assert mistake.overlay.shape == (32, 32, 3)
    whole = worst_mistakes(table[table["protocol"] == "aligned"], {"light": scorer}, None, most=0)
    assert len(whole) == 2  # one of each class at least


def test_one_protocol_without_a_class_leaves_the_other(
    corpus: Path, detectors: dict[str, str], tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(corpus, tmp_path / "c")
    for path in (tmp_path / "c" / "1_fake").rglob("*.png"):
        cv2.imwrite(str(path), cv2.imread(str(path))[:20, :20])
    results = benchmark_detectors(
        settings(tmp_path / "c", tmp_path / "out", detector=(detectors["light"],), align_size=32)
    )
    raw, aligned = (results[results["protocol"] == name] for name in ("raw", "aligned"))
    assert raw["auroc"].notna().all()
    assert aligned["n_fake"].tolist() == [0]
    assert aligned["remark"].tolist() == ["one class only"]
    assert "alike, bright: all images are smaller than 32 pixels" in results.attrs["missing"][0]
    assert "one class only" in (tmp_path / "out" / "report.html").read_text().lower()


def test_images_without_a_score_are_named_three_times_and_then_counted(
    corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "few.csv").write_text("path,score\n0_real/0.png,0.1\n1_fake/alike/0.png,0.9\n")
    (tmp_path / "twice.csv").write_text("path,score\na.png,0.1\na.png,0.1\n")
    results = benchmark_detectors(
        settings(
            corpus,
            tmp_path / "out",
            detector=(f"scores:{tmp_path / 'few.csv'}", f"scores:{tmp_path / 'twice.csv'}"),
            protocol="raw",
        )
    )
    assert (results["n_real"].item(), results["n_fake"].item()) == (1, 1)
    missing = results.attrs["missing"]
    assert "a.png is listed twice" in missing[0]
    assert sum("png: scores:" in said for said in missing) == 3
    assert missing[-1].startswith("31 more images: scores:")


def test_without_any_score_there_is_one_line(
    corpus: Path, detectors: dict[str, str], tmp_path: Path
) -> None:
    import shutil

    (tmp_path / "none.csv").write_text("path,score\nother.png,0.1\n")
    with pytest.raises(
        GanscopeError, match=r"no image has a score: .*has no score in this"
    ) as none:
        benchmark_detectors(
            settings(corpus, tmp_path / "o", detector=(f"scores:{tmp_path / 'none.csv'}",))
        )
    assert str(none.value).endswith("more such lines")
    shutil.copytree(corpus, tmp_path / "broken")
    for path in (tmp_path / "broken").rglob("*.png"):
        path.write_bytes(b"damaged")
    with pytest.raises(GanscopeError, match=r"no image has a score: .*\.png: "):
        benchmark_detectors(
            settings(tmp_path / "broken", tmp_path / "p", detector=(detectors["light"],))
        )


def test_the_command_is_what_a_user_types(tmp_path: Path) -> None:
    plan = BenchmarkSettings(
        corpora=(Path("my corpus"),),
        detector=("default", "runs/npr"),
        degrade=("jpeg:75",),
        cache=False,
        bootstrap=0,
    )
    assert as_command("benchmark", plan) == (
        "ganscope benchmark 'my corpus' --detector default --detector runs/npr --degrade jpeg:75 "
        "--bootstrap 0 --no-cache"
    )


def test_pictures_take_any_name(tmp_path: Path) -> None:
    name = r"a $\nothing_{ b$"
    results = pd.DataFrame(
        {"detector": [name], "generator": [name], "degradation": "clean", "auroc": [0.9]}
    )
    plots.draw_matrix(tmp_path / "matrix.png", results)
    plots.draw_roc(tmp_path / "roc.png", {name: (np.array([0, 1]), np.array([0.2, 0.7]))})
    assert (tmp_path / "matrix.png").stat().st_size > 1000


def test_alignment_does_not_tell_how_large_an_image_was(astronaut: np.ndarray) -> None:
    """By the place of the blocks of the JPEG before the crop."""
    for size in ((500, 375), (512, 512), (333, 401)):
        pixels = cv2.resize(astronaut, size)
        steps = np.abs(np.diff(Alignment(256, 40)(pixels).astype(int), axis=1)).mean((0, 2))
        assert np.argmax([steps[i::8].mean() for i in range(8)]) == 7  # between columns 7 and 8


def test_an_image_that_cannot_be_changed_is_the_only_one_without(
    corpus: Path, detectors: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aligned = Alignment.__call__

    def choosy(alignment: Alignment, pixels: np.ndarray) -> np.ndarray:
        if pixels.shape[1] == 50:
            raise cv2.error("too large for JPEG")
        return aligned(alignment, pixels)

    monkeypatch.setattr(Alignment, "__call__", choosy)
    root = tmp_path / "corpus"
    shutil.copytree(corpus, root)
    cv2.imwrite(str(root / "0_real" / "0.png"), np.full((40, 50, 3), 99, np.uint8))
    results = benchmark_detectors(
        settings(root, tmp_path / "out", detector=(detectors["light"],), degrade=("jpeg:75",))
    )
    assert set(results[results["protocol"] == "raw"]["n_real"]) == {12}
    assert set(results[results["protocol"] == "aligned"]["n_real"]) == {11}
    assert [said for said in results.attrs["missing"] if "0.png" in said and "too large" in said]


def test_a_heatmap_that_cannot_be_drawn_is_left_out(
    corpus: Path, detectors: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise AttributeError("a list has no shape")  # as of networks that Grad-CAM does not know

    monkeypatch.setattr(mistakes, "heatmap", broken)
    benchmark_detectors(settings(corpus, tmp_path / "out", detector=(detectors["dark"],)))
    assert json.loads((tmp_path / "out" / "report.json").read_text())["mistakes"]


def test_a_benchmark_that_was_killed_while_it_wrote_is_written_again(
    corpus: Path, detectors: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    plan = settings(corpus, tmp_path / "out", detector=(detectors["light"],))
    with monkeypatch.context() as patch:
        patch.setattr(benchmark, "write_report", killed)
        with pytest.raises(KeyboardInterrupt):
            benchmark_detectors(plan)
    assert (tmp_path / "out" / "roc.png").exists()
    benchmark_detectors(plan)
    assert not (tmp_path / "out" / ".unfinished").exists()
    with pytest.raises(GanscopeError, match="holds a benchmark already"):
        benchmark_detectors(plan)
    (tmp_path / "file").touch()
    with pytest.raises(GanscopeError, match="is a file"):
        benchmark_detectors(settings(corpus, tmp_path / "file"))


def test_probably_inverted_is_said_where_it_is_more_than_chance() -> None:
    def said(auroc: float, n: int, high: float = float("nan"), **seen: str) -> str:
        row = {
            "detector": "x",
            "generator": "a",
            "n_real": n,
            "n_fake": n,
            "auroc": auroc,
            "auroc_high": high,
        }
        return benchmark._remark(pd.Series(row), {(k, "a"): v for k, v in seen.items()})

    inverted = "probably inverted: fakes score lower than reals"
    assert said(0.3, 50, 0.4) == inverted
    assert said(0.3, 50, 0.6) == ""
    assert said(0.3, 50) == inverted  # without intervals
    assert said(0.499, 50) == ""
    assert "inverted" not in said(0.0, 1)
    assert said(0.3, 50, 0.4, x="trained here") == f"{inverted}; trained here"


def test_figures_of_next_to_no_images_are_remarked_on() -> None:
    row = pd.Series(
        {
            "detector": "x",
            "generator": "a",
            "n_real": 1,
            "n_fake": 1,
            "auroc": 1.0,
            "auroc_high": np.nan,
        }
    )
    assert "of no more than 1 real and 1 fake images" in benchmark._remark(row, {})
    assert benchmark._remark(pd.Series(dict(row) | {"n_real": 4, "n_fake": 4}), {}) == ""


def test_a_generator_may_not_be_called_all(corpus: Path, tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    shutil.copytree(corpus, root)
    (root / "1_fake" / "alike").rename(root / "1_fake" / "all")
    with pytest.raises(GanscopeError, match="a generator is called 'all'"):
        benchmark_detectors(settings(root, tmp_path / "out"))


def test_a_detector_of_few_images_is_not_the_best(
    corpus: Path, detectors: dict[str, str], tmp_path: Path
) -> None:
    easy = [*(corpus / "0_real").glob("[0-3].png"), *(corpus / "1_fake").glob("*/[0-3].png")]
    rows = [f"{path},{0.9 if '1_fake' in str(path) else 0.1}" for path in easy]
    (tmp_path / "easy.csv").write_text("\n".join(["path,score", *rows]))
    name = f"scores:{tmp_path}/easy.csv"
    results = benchmark_detectors(
        settings(corpus, tmp_path / "out", detector=(name, detectors["light"]), protocol="raw")
    )
    cells = results.set_index(["detector", "generator"])
    assert cells["auroc"][name, "all"] == 1 > cells["auroc"][detectors["light"], "all"]
    assert cells["remark"][name, "all"] == "it scored 12 of 36 images"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["findings"][0]["title"] == f"Best detector: {detectors['light']}"
    first, second = (
        line
        for line in (tmp_path / "out" / "results.tex").read_text().splitlines()
        if line.startswith(("scores:", "/"))
    )
    assert "textbf" not in first
    assert "textbf" in second
