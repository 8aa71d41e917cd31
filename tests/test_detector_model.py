"""A detector on disk and what its numbers mean."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ganscope.detector.model import Detector, load_detector
from ganscope.errors import GanscopeError


@pytest.fixture
def detector() -> Detector:
    torch.manual_seed(0)
    return Detector.create("cnn", size=32, width=8).eval()


def test_saved_and_loaded_it_says_the_same(detector: Detector, tmp_path: Path) -> None:
    detector.config["thresholds"] = {"fake": 0.7, "real": 0.2, "fpr_1": 0.7, "fpr_5": 0.4}
    detector.save(tmp_path)
    again = load_detector(str(tmp_path))
    images = torch.rand(4, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(again(images), detector(images), atol=1e-2, rtol=1e-2)
    assert not again.training
    assert again.size == 32
    assert again.thresholds["fake"] == 0.7
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "cnn"
    assert config["arguments"] == {"width": 8}
    assert set(config["input"]) == {"size", "mean", "std", "rule"}


def test_the_size_of_a_transformer_is_kept(tmp_path: Path) -> None:
    Detector.create("timm:test_vit", size=48).save(tmp_path)
    assert load_detector(str(tmp_path))(torch.rand(1, 3, 48, 48)).shape == (1,)


def test_images_are_normalised_inside(detector: Detector) -> None:
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(detector(images), detector.net(images * 2 - 1))


def test_score_probability_and_verdict(detector: Detector) -> None:
    assert detector.score(0.0) == 0.5
    assert detector.score(-2000.0) == 0.0
    np.testing.assert_allclose(detector.score(np.array([-1.0, 1.0])).sum(), 1)
    detector.config["calibration"] = {"scale": 2.0, "shift": -1.0}
    assert detector.probability(0.5) == pytest.approx(0.5)
    assert detector.probability(1.0) == pytest.approx(1 / (1 + np.exp(-1)))
    detector.config["thresholds"] = {"fake": 0.8, "real": 0.3, "fpr_1": 0.8, "fpr_5": 0.6}
    verdicts = [detector.verdict(score) for score in (0.1, 0.3, 0.79, 0.8, 1.0)]
    assert verdicts == ["real", "unsure", "unsure", "fake", "fake"]


def test_only_networks_with_a_map_give_one(detector: Detector) -> None:
    images = torch.rand(2, 3, 64, 64)
    found = detector.patch_logits(images)
    assert found is not None
    torch.testing.assert_close(found.mean((1, 2)), detector(images))
    assert Detector.create("timm:test_vit", size=32).patch_logits(images[..., :32, :32]) is None


@pytest.mark.parametrize("part", ["input", "calibration", "thresholds", "architecture"])
def test_an_incomplete_configuration_is_an_error(
    detector: Detector, tmp_path: Path, part: str
) -> None:
    del detector.config[part]
    detector.save(tmp_path)
    with pytest.raises(GanscopeError, match=part):
        load_detector(str(tmp_path))


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("thresholds", "fake", float("nan")),
        ("thresholds", "real", "0.3"),
        ("calibration", "scale", float("inf")),
        ("input", "smallest", None),
        ("input", "size", -5),
        ("thresholds", "real", 0.9),
        ("calibration", "scale", -3.2),
    ],
)
def test_numbers_that_are_none_are_an_error(
    detector: Detector, tmp_path: Path, part: str, name: str, value: object
) -> None:
    detector.config[part][name] = value
    detector.save(tmp_path)
    with pytest.raises(GanscopeError, match=rf"config.json is faulty \({part}: {name} is"):
        load_detector(str(tmp_path))
    del detector.config[part][name]
    detector.save(tmp_path)
    if name != "smallest":  # older ones do not have it
        with pytest.raises(GanscopeError, match=name):
            load_detector(str(tmp_path))
