"""Heatmaps against masks, faces by themselves and whole videos, in a benchmark."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score, roc_auc_score

from ganscope.config import BenchmarkSettings
from ganscope.detector.benchmark import asking, localisation
from ganscope.detector.benchmark.benchmark import benchmark_detectors
from ganscope.detector.benchmark.localisation import (
    LEVELS,
    choose_level,
    count_heat,
    overlaps,
    pixel_auroc,
)
from ganscope.detector.judging.faces import AROUND
from ganscope.detector.model import Detector
from ganscope.faces import Face

SIDE = 96


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GANSCOPE_CACHE", str(tmp_path / "kept"))


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A detector whose logits are the brightness of places."""
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
        net.head.weight[0, 0] = 1
        net.head.bias.fill_(-1.8)
    folder = tmp_path_factory.mktemp("detectors") / "light"
    detector.eval().save(folder)
    return str(folder)


def corpus(root: Path, splits: bool = True, dark: bool = False) -> Path:
    """Ten grey photographs, and as many with a bright (or dark) square, which their masks say."""
    rng = np.random.default_rng(0)
    rows = []
    for folder in ("0_real", "1_fake", "masks"):
        (root / folder).mkdir(parents=True)
    for i in range(10):
        pixels = rng.integers(90, 110, (SIDE, SIDE, 3))
        cv2.imwrite(str(root / f"0_real/{i}.png"), pixels.astype(np.uint8))
        mask = np.zeros((SIDE, SIDE), bool)
        y, x = rng.integers(0, SIDE // 2, 2)
        mask[y : y + 48, x : x + 48] = True
        pixels[mask] = pixels[mask] + (-80 if dark else 120)
        cv2.imwrite(str(root / f"1_fake/{i}.png"), pixels.astype(np.uint8))
        cv2.imwrite(str(root / f"masks/{i}.png"), mask.astype(np.uint8) * 255)
        split = ("val" if i < 4 else "test") if splits else ""
        rows.append((f"0_real/{i}.png", 0, "real", f"{i}", split, ""))
        rows.append((f"1_fake/{i}.png", 1, "patch", f"{i}", split, f"masks/{i}.png"))
    columns = ["file_name", "label", "generator", "group", "split", "mask"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "metadata.csv", index=False)
    return root


def settings(root: Path, out: Path, detector: str, **changes: object) -> BenchmarkSettings:
    base: dict = {"corpora": (root,), "out": out, "bootstrap": 50, "device": "cpu"}
    base |= {"detector": (detector,), "protocol": "raw"}
    return BenchmarkSettings(**(base | changes))


def places(out: Path) -> pd.Series:
    return pd.read_csv(out / "localisation.csv").iloc[0]


def test_figures_of_counts_are_those_of_the_pixels() -> None:
    rng = np.random.default_rng(1)
    changed = rng.random((40, 50)) < 0.3
    heat = np.clip(rng.normal(0.4 + 0.2 * changed, 0.2), 0, 1)
    level = np.clip((heat * LEVELS).astype(int), 0, LEVELS - 1)
    counts = count_heat(heat, changed)
    assert counts.sum() == heat.size
    assert pixel_auroc(counts) == pytest.approx(roc_auc_score(changed.ravel(), level.ravel()))
    iou, f1 = overlaps(counts)
    for at in (0, 100, 180, 255):
        marked = (level >= at).ravel()
        assert iou[at] == pytest.approx(jaccard_score(changed.ravel(), marked))
        assert f1[at] == pytest.approx(f1_score(changed.ravel(), marked))
    assert choose_level([counts]) in np.flatnonzero(f1 == f1.max())
    assert np.isnan(pixel_auroc(count_heat(heat, np.zeros((40, 50), bool))))


def test_a_planted_change_is_found_where_it_is(tmp_path: Path, light: str) -> None:
    root = corpus(tmp_path / "c")
    results = benchmark_detectors(settings(root, tmp_path / "out", light))
    row = places(tmp_path / "out")
    assert (row["n_masked"], row["n_validation"], row["n_real"]) == (6, 4, 6)
    assert row["pixel_auroc"] > 0.95
    assert row["iou"] > 0.6
    assert row["iou_low"] <= row["iou"] <= row["iou_high"]
    assert row["f1"] > row["iou"]
    assert row["real_marked"] < 0.05
    assert any("of the split val, which are not measured" in n for n in results.attrs["notes"])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["localisation"][0]["iou"] == pytest.approx(row["iou"], abs=1e-5)
    assert any(f["title"] == "Where it was changed" for f in report["findings"])
    assert "Heatmaps against masks" in (tmp_path / "out" / "report.html").read_text()


def test_a_detector_that_looks_elsewhere_is_told_so(tmp_path: Path, light: str) -> None:
    root = corpus(tmp_path / "c", dark=True)
    benchmark_detectors(settings(root, tmp_path / "out", light))
    assert places(tmp_path / "out")["pixel_auroc"] < 0.05


def test_without_a_val_split_some_are_set_aside(tmp_path: Path, light: str) -> None:
    root = corpus(tmp_path / "c", splits=False)
    results = benchmark_detectors(settings(root, tmp_path / "out", light))
    row = places(tmp_path / "out")
    assert (row["n_masked"], row["n_validation"]) == (8, 2)
    assert any("chosen on 2 of 10, which are not measured" in n for n in results.attrs["notes"])


def test_what_was_counted_is_kept_and_none_is_none(
    tmp_path: Path, light: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = corpus(tmp_path / "c")
    benchmark_detectors(settings(root, tmp_path / "one", light))

    def never(*_: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(localisation, "heatmap", never)
    benchmark_detectors(settings(root, tmp_path / "two", light))
    assert places(tmp_path / "one").equals(places(tmp_path / "two"))
    benchmark_detectors(settings(root, tmp_path / "three", light, localise="none"))
    assert not (tmp_path / "three" / "localisation.csv").exists()


def test_a_mask_of_another_size_is_left_out_and_named(tmp_path: Path, light: str) -> None:
    root = corpus(tmp_path / "c")
    cv2.imwrite(str(root / "masks/9.png"), np.zeros((10, 10), np.uint8))
    (root / "masks/8.png").unlink()
    results = benchmark_detectors(settings(root, tmp_path / "out", light))
    assert places(tmp_path / "out")["n_masked"] == 4
    said = "\n".join(results.attrs["missing"])
    assert "a mask of 10x10 pixels for an image of 96x96" in said
    assert "8.png" in said


def test_videos_are_judged_by_the_mean_of_their_frames(tmp_path: Path, light: str) -> None:
    rng = np.random.default_rng(0)
    root = tmp_path / "c"
    rows = []
    for label in (0, 1):
        for video in range(6):
            for frame in range(4):  # one frame gives a fake away, the others are like the reals
                shade = 200 if label and frame == 0 else 100
                name = f"{label}-{video}-{frame}.png"
                root.mkdir(exist_ok=True)
                pixels = rng.integers(shade - 30, shade + 30, (40, 40, 3))
                cv2.imwrite(str(root / name), pixels.astype(np.uint8))
                rows.append((name, label, f"{label}-{video}", f"{label}-{video}"))
    table = pd.DataFrame(rows, columns=["file_name", "label", "video", "group"])
    table.to_csv(root / "metadata.csv", index=False)
    results = benchmark_detectors(settings(root, tmp_path / "out", light))
    row = pd.read_csv(tmp_path / "out" / "videos.csv").iloc[0]
    assert (row["n_real"], row["n_fake"]) == (6, 6)
    assert row["auroc"] == 1
    assert results["auroc"].iloc[0] < 0.8
    scores = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    assert set(scores["video"]) == set(table["video"])
    assert "Whole videos" in (tmp_path / "out" / "report.html").read_text()


def test_faces_are_measured_by_themselves(
    tmp_path: Path, light: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Planted:
        """A face in the left upper corner of all pictures that are not black there."""

        name = "planted"

        def find(self, pixels: np.ndarray) -> list[Face]:
            if not pixels[:8, :8].any():
                return []
            side = 16 if pixels[0, 0, 0] == 1 else 36  # too small to be judged, or not
            return [Face((4, 4, 4 + side, 4 + side), 0.9)]

    monkeypatch.setattr(asking, "open_finder", Planted)
    rng = np.random.default_rng(0)
    root = tmp_path / "c"
    for label, folder in enumerate(("0_real", "1_fake/swap")):
        (root / folder).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(60, 130, (200, 200, 3))
            pixels[:72, :72] += 100 * label
            pixels[100:] = 90 + 60 * (i % 2)  # what surrounds it hides it
            if i == 7:
                pixels[:8, :8] = 0
            if i == 6:
                pixels[0, 0] = 1
            cv2.imwrite(str(root / folder / f"{i}.png"), pixels.astype(np.uint8))
    results = benchmark_detectors(settings(root, tmp_path / "out", light, faces=True))
    rows = results.set_index("protocol")
    assert rows.loc["face", "auroc"] == 1 > rows.loc["raw", "auroc"]
    assert (rows.loc["face", "n_real"], rows.loc["raw", "n_real"]) == (6, 8)
    assert any(
        "4 of 16 images: no face was found of at least 32" in n for n in results.attrs["notes"]
    )
    assert not results.attrs["missing"]
    assert AROUND * 36 == 72
