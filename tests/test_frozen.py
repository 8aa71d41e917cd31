"""The frozen-linear recipe: nothing but the classifier learns, features are computed once."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from test_training import make_corpus

from ganscope.config import TrainDetectorSettings
from ganscope.detector.judging.heatmaps import heatmap
from ganscope.detector.model import Detector
from ganscope.detector.training import frozen, loop
from ganscope.detector.training.fusion import fuse_detectors
from ganscope.detector.training.recipes import train_detector
from ganscope.devices import Speed
from ganscope.errors import GanscopeError, GanscopeWarning

pytestmark = pytest.mark.filterwarnings("ignore:the backbone is random")


def settings(corpus: Path, out: Path, **changes: Any) -> TrainDetectorSettings:
    plain = TrainDetectorSettings(
        corpora=(corpus,),
        detector="timm:test_vit",
        recipe="frozen-linear",
        out=out,
        size=32,
        epochs=2,
        batch_size=16,
        degrade=0.0,
        device="cpu",
        precision="fp32",
    )
    return replace(plain, **changes)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus") / "c"
    return make_corpus(root, {"real": 60, "a": 40, "b": 40}, trace=60.0)


def test_a_classifier_is_fitted_to_frozen_features(corpus: Path, tmp_path: Path) -> None:
    with pytest.warns(GanscopeWarning, match="random, of which.*--pretrained: hub"):
        run = train_detector(settings(corpus, tmp_path / "run"))
    assert "linear classifier on a frozen backbone" in (run / "README.md").read_text()
    assert (run / "losses.csv").exists()
    trained = Detector.load(run)
    torch.manual_seed(0)
    before = Detector.create("timm:test_vit", size=32)
    names = before.net.head_names()
    for name, weight in before.net.backbone.state_dict().items():
        same = torch.allclose(weight, trained.net.backbone.state_dict()[name], atol=1e-3)
        assert same != name.startswith(names), name
    assert trained.config["training"]["recipe"] == "frozen-linear"
    assert trained.config["training"]["penalty"] in frozen.STRENGTHS
    assert trained.config["false_alarms"]["photographs"] == 12
    metrics = (run / "metrics.json").read_text()
    assert '"auroc"' in metrics
    assert not list(run.glob("features*"))
    assert (run / "loss.png").exists()


@pytest.mark.parametrize("hidden", [0, 8])
def test_features_of_several_blocks(corpus: Path, tmp_path: Path, hidden: int) -> None:
    wish = settings(corpus, tmp_path / "run", detector="vit:test_vit", hidden=hidden)
    run = train_detector(wish)
    trained = Detector.load(run)
    loss = pd.read_csv(run / "losses.csv")["val_loss"][0]
    assert loss < 0.7
    assert (getattr(trained.net, "curve", None) is not None) == bool(hidden)
    table = pd.read_csv(run / "scores.csv")
    fakes = table["label"] == 1
    assert table["logit"][fakes].mean() > table["logit"][~fakes].mean()
    with pytest.raises(GanscopeError, match="has no curved classifier"):
        train_detector(settings(corpus, tmp_path / "other", hidden=8))


def test_a_curved_classifier_finds_what_a_line_cannot() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(5, 3, (2000, 4)).astype(np.float32)
    y = (np.abs(x[:, 1] - 5) > 2).astype(int)
    torch.manual_seed(0)
    curve = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.GELU(), torch.nn.Linear(16, 1))
    parts = [(x[i::2], y[i::2], np.zeros(1000)) for i in (0, 1)]
    frozen.bend(curve, *parts, 0)
    right = (frozen._of_curve(curve, x[1::2]) > 0) == y[1::2]
    assert right.mean() > 0.8
    curve[-1].weight.data.zero_()
    curve[-1].bias.data.zero_()
    noise = rng.integers(0, 2, 2000)
    sure = 9.0 * (2 * noise - 1)
    parts = [(x[i::2], noise[i::2], sure[i::2]) for i in (0, 1)]
    frozen.bend(curve, *parts, 0)  # the line is right already
    assert np.abs(frozen._of_curve(curve, x)).max() < 9


def test_the_classifier_separates_what_the_features_do(corpus: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(200) % 2
    x = rng.normal(5, 3, (200, 8)).astype(np.float32)
    x[:, 3] += 9 * y
    (weights, bias), penalty = frozen._fit(x[:100], y[:100], x[100:], y[100:])
    assert (((x[100:] @ weights + bias) > 0) == y[100:]).mean() > 0.9
    assert np.abs(weights).argmax() == 3
    assert penalty in frozen.STRENGTHS


def test_a_killed_run_does_not_compute_features_again(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, calls = frozen.compute_features, []

    def counted(*args: Any) -> np.ndarray:
        calls.append(args[2][0].epoch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compute(*args)

    monkeypatch.setattr(frozen, "compute_features", counted)
    with pytest.raises(KeyboardInterrupt):
        train_detector(settings(corpus, tmp_path / "run"))
    table = pd.read_csv(corpus / "metadata.csv")
    table.iloc[1:].to_csv(corpus / "metadata.csv", index=False)
    with pytest.raises(GanscopeError, match="begun with other images"):
        train_detector(settings(corpus, tmp_path / "run"))
    table.to_csv(corpus / "metadata.csv", index=False)
    train_detector(settings(corpus, tmp_path / "run"))
    assert calls == [0, 0, 1, 1]  # validation, two looks of which the second was broken off
    monkeypatch.setattr(frozen, "compute_features", compute)
    train_detector(settings(corpus, tmp_path / "whole"))
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "whole")]
    assert weights[0] == weights[1]


def test_a_killed_run_goes_on_in_the_precision_that_was_measured(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, compute = [], frozen.compute_features

    def quickest(read: Callable[[Speed], None], device: torch.device, precision: str) -> Speed:
        asked.append(precision)
        read(Speed("bf16", channels_last=True))
        return Speed("bf16", channels_last=True)

    def killed(*args: Any) -> np.ndarray:
        if args[2][0].epoch == 1:
            raise KeyboardInterrupt
        return compute(*args)

    monkeypatch.setattr(frozen, "fastest", quickest)
    wish = settings(corpus, tmp_path / "run", precision="auto")
    with monkeypatch.context() as patch:
        patch.setattr(frozen, "compute_features", killed)
        with pytest.raises(KeyboardInterrupt):
            train_detector(wish)
    trained = Detector.load(train_detector(wish))
    assert asked == ["auto"]
    assert trained.config["training"]["precision"] == "bf16"
    assert not (tmp_path / "run" / "speed.json").exists()


def test_what_does_not_go_with_it_is_said(corpus: Path, tmp_path: Path) -> None:
    for change, message in (
        ({"detector": "cnn"}, "no linear classifier"),
        ({"learning_rate": 1e-3}, "--learning-rate: --recipe frozen-linear has no use for it"),
        ({"patience": 2}, "--patience: --recipe frozen-linear has no use for it"),
    ):
        with pytest.raises(GanscopeError, match=message):
            train_detector(settings(corpus, tmp_path / "run", **change))
    assert not (tmp_path / "run").exists()
    with pytest.raises(GanscopeError, match="--recipe must be one of full, frozen-linear"):
        TrainDetectorSettings(recipe="linear")


def test_a_fused_detector_is_the_weighted_sum_of_its_parts(corpus: Path, tmp_path: Path) -> None:
    """A part for larger images and one for smaller ones, of which one knows something."""
    plain = settings(corpus, tmp_path / "cnn", detector="cnn", recipe="full", size=16, epochs=3)
    low = Detector.load(train_detector(plain))
    run = train_detector(settings(corpus, tmp_path / "run", fuse=str(tmp_path / "cnn")))
    fused = Detector.load(run)
    assert fused.size == 32
    assert (fused.net.weights >= 0).all()
    assert fused.net.weights.max() > 0
    images = torch.rand(3, 3, 32, 32)
    vit = Detector.create("timm:test_vit", size=32).eval()
    vit.net.load_state_dict(fused.net.networks[0].state_dict())
    with torch.inference_mode():
        whole = vit(images)
        quarters = [
            low.eval()(images[:, :, y : y + 16, x : x + 16]) for y in (0, 16) for x in (0, 16)
        ]
        weights, bias = fused.net.weights, fused.net.bias
        expected = weights[0] * whole + weights[1] * torch.stack(quarters).mean(0) + bias
        torch.testing.assert_close(fused.eval()(images), expected, rtol=2e-3, atol=2e-3)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    assert heatmap(fused, pixels).shape == (50, 70)
    with pytest.raises(GanscopeError, match="no Grad-CAM"):
        heatmap(fused, pixels, "gradcam")


def test_an_architecture_to_fuse_with_is_trained_first(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quickest(plan: TrainDetectorSettings, *_: object) -> Speed:
        return Speed("bf16" if plan.detector == "patch" else "fp32")

    monkeypatch.setattr(loop, "_choose_speed", quickest)
    plain = settings(corpus, tmp_path / "run", detector="cnn", recipe="full", pretrained=None)
    wanted = replace(plain, fuse="patch", epochs=1, split_seed=None)
    fused = Detector.load(train_detector(wanted))
    part = Detector.load(tmp_path / "run" / "fused")
    assert part.config["architecture"] == "patch"
    for name, found in part.net.state_dict().items():
        assert torch.equal(fused.net.networks[1].state_dict()[name], found)
    scores = [pd.read_csv(tmp_path / "run" / x / "scores.csv") for x in (".", "fused")]
    assert set(scores[0]["path"]) == set(scores[1]["path"])
    with pytest.raises(GanscopeError, match="unknown detector 'patsh'"):
        train_detector(replace(wanted, fuse="patsh", out=tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_a_part_that_may_know_the_validation_images_is_told_of(
    corpus: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    cnn = settings(corpus, tmp_path / "cnn", detector="cnn", recipe="full", size=16, epochs=1)
    train_detector(cnn)
    both = replace(cnn, fuse=str(tmp_path / "cnn"))
    train_detector(replace(both, out=tmp_path / "same", seed=cnn.seed))
    assert not [w for w in recwarn if "learned from" in str(w.message)]
    with pytest.warns(GanscopeWarning, match=r"learned from \d+ of the \d+ validation images \("):
        train_detector(replace(both, out=tmp_path / "other", split_seed=7))


def test_a_part_that_knows_nothing_gets_no_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"label": np.arange(100) % 2, "split": "val", "path": np.arange(100)})
    good = rng.normal(size=100) + 3 * table["label"]
    said = iter([good, -good + 0.1 * rng.normal(size=100)])
    monkeypatch.setattr(
        "ganscope.detector.training.fusion.score_table", lambda *_: table.assign(logit=next(said))
    )
    parts = [Detector.create("cnn", width=8, depth=3) for _ in range(2)]
    weights = fuse_detectors(parts, table, None, 1).net.weights  # type: ignore[arg-type]
    assert weights[0] > 0
    assert weights[1] == 0
