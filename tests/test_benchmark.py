"""The benchmark: every cell, from one table of scores, with the failures named."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from ganscope.config import BenchmarkSettings
from ganscope.detector import benchmark
from ganscope.detector.benchmark import benchmark_detectors
from ganscope.detector.model import Detector
from ganscope.errors import GanscopeError


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
    corpus: Path, detectors: dict[str, str], tmp_path: Path
) -> None:
    results = benchmark_detectors(
        settings(
            corpus,
            tmp_path / "out",
            detector=(detectors["light"], detectors["dark"]),
            degrade=("jpeg:75", "resize:0.9"),
        )
    )
    assert len(results) == 2 * 3 * 3  # detectors x (all, bright, alike) x (clean, two)
    scores = pd.read_csv(tmp_path / "out" / "scores.csv", keep_default_na=False)
    assert len(scores) == 36 * 3
    for _, row in results.iterrows():
        part = scores[scores["degradation"] == row["degradation"]]
        if row["generator"] != "all":
            part = part[part["generator"].isin(["real", row["generator"]])]
        expected = roc_auc_score(part["label"], part[row["detector"]])
        assert row["auroc"] == pytest.approx(expected, abs=1e-6)
    cells = results.set_index(["detector", "generator", "degradation"])["auroc"]
    assert cells[detectors["light"], "bright", "clean"] == 1
    assert cells[detectors["dark"], "bright", "jpeg:75"] == 0
    assert 0.2 < cells[detectors["light"], "alike", "clean"] < 0.8
    remarks = results.set_index(["detector", "generator", "degradation"])["remark"]
    assert "inverted" in remarks[detectors["dark"], "bright", "clean"]
    assert remarks[detectors["light"], "bright", "clean"] == ""
    about = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(about["results"]) == len(results)
    assert set(about["detectors"]) == set(detectors.values())
    for name in ("roc.png", "matrix.png"):
        assert cv2.imread(str(tmp_path / "out" / name)).shape[0] > 200


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
    assert results["n_real"].tolist() == [11, 11, 11]


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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "CHUNK_PIXELS", 250)
    paths = [str(tmp_path / f"{i}.png") for i in range(8)]
    for path in paths:
        cv2.imwrite(path, np.zeros((10, 10, 3), np.uint8))
    Path(paths[4]).write_bytes(b"damaged")
    unreadable: dict[str, str] = {}
    chunks = list(benchmark._opened(paths, unreadable))
    assert [numbers for numbers, _ in chunks] == [[0, 1, 2], [3, 5, 6], [7]]
    assert [len(images) for _, images in chunks] == [3, 3, 1]
    assert list(unreadable) == [paths[4]]


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
    assert set(results["n_real"]) == {12}


def test_a_benchmark_is_not_written_over(
    corpus: Path, detectors: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scores.csv").write_text("mine")
    with pytest.raises(GanscopeError, match="another folder"):
        benchmark_detectors(settings(corpus, tmp_path / "out", detector=(detectors["light"],)))
    assert (tmp_path / "out" / "scores.csv").read_text() == "mine"
