"""After the last epoch: which images set the thresholds, and what is written down."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from ganscope.config import TrainDetectorSettings
from ganscope.detector.judge import SMALLEST
from ganscope.detector.model import Detector, load_detector
from ganscope.detector.training import evaluation as finishing
from ganscope.detector.training.evaluation import are_large, finish_run


def scores_of(reals: int, fakes: int, small: int) -> pd.DataFrame:
    """Reals around -1, fakes around 1, and small reals that score like fakes."""
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1, 0], [reals, fakes, small])
    logit = np.repeat([-1.0, 1.0, 1.0], [reals, fakes, small]) + rng.normal(0, 0.3, len(label))
    return pd.DataFrame(
        {
            "path": [f"{i}.png" for i in range(len(label))],
            "file_name": [f"{i}.png" for i in range(len(label))],
            "label": label,
            "generator": np.where(label == 1, "a", "real"),
            "source": np.repeat(["photos", "a", "thumbnails"], [reals, fakes, small]),
            "group": "",
            "split": "val",
            "logit": logit,
            "score": 1 / (1 + np.exp(-logit)),
            "side": np.repeat([200, 128, 64], [reals, fakes, small]),
        }
    )


def finish(run: Path, monkeypatch: pytest.MonkeyPatch, scores: pd.DataFrame) -> Detector:
    """A detector of 96-pixel tiles that has just been trained and gives these scores."""
    monkeypatch.setattr(finishing, "score_table", lambda *_: scores.copy())
    torch.manual_seed(0)
    detector = Detector.create("cnn", size=96, width=4, depth=2)
    detector.config["training"] |= {"best_epoch": 1}
    table = pd.concat([scores.assign(split="train"), scores])
    table.attrs["dropped"] = 0
    log = [{"epoch": 1, "loss": 0.5, "val_loss": 0.5, "val_auroc": 0.9}]
    views: Any = SimpleNamespace(qualities={0: [], 1: []})
    settings = TrainDetectorSettings(corpora=(run,), out=run)
    finish_run(run, settings, detector, views, table, log)
    return load_detector(str(run))


def test_small_images_neither_set_thresholds_nor_get_verdicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[int, Detector] = {}
    for small in (0, 30):
        (tmp_path / str(small)).mkdir()
        found[small] = finish(tmp_path / str(small), monkeypatch, scores_of(60, 40, small))
        assert found[small].smallest == 96
    assert found[30].thresholds == found[0].thresholds
    assert found[30].config["calibration"] == found[0].config["calibration"]
    assert found[30].config["false_alarms"] == found[0].config["false_alarms"]
    assert found[0].thresholds["fake"] < 0.7
    written = pd.read_csv(tmp_path / "30" / "scores.csv")
    assert set(written["verdict"][written["side"] < 96]) == {"unsure"}
    assert "less than 96 pixels" in found[30].card
    metrics = [json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("0", "30")]
    assert metrics[0]["val"] == metrics[1]["val"]
    fakes = written[(written["label"] == 1) & (written["side"] >= 96)]
    reached = (fakes["score"] >= found[30].thresholds["fake"]).mean()
    assert metrics[1]["val_fakes_found"] == pytest.approx(reached)
    assert metrics[1]["val_photographs"] == 60


def test_where_most_images_are_small_all_set_the_thresholds() -> None:
    assert are_large(scores_of(60, 40, 30), 96)
    assert not are_large(scores_of(60, 40, 70), 96)  # most reals are small
    assert not are_large(scores_of(60, 40, 30), 150)  # the fakes are
    assert not are_large(scores_of(60, 4, 0), 96)  # too few to tell


def test_images_that_are_all_tiny_can_be_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = scores_of(60, 40, 0).assign(side=20)
    assert finish(tmp_path, monkeypatch, scores).smallest == SMALLEST
