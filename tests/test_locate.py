"""What benchmarks/locate.py teaches, by the script itself."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from ganscope.detector.model import Detector

SCRIPTS = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.skipif(not SCRIPTS.exists(), reason="no benchmarks folder here")


@pytest.fixture
def locate(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import locate

    yield locate
    for name in ("locate", "edited"):
        sys.modules.pop(name, None)


def test_a_layer_finds_the_channel_that_tells(locate: Any) -> None:
    rng = np.random.default_rng(0)
    share = (rng.random((160, 49)) < 0.3).astype(np.float32)
    share[:, :5] = 0.5  # a little of both: not learned from
    tokens = torch.from_numpy(rng.normal(size=(160, 49, 24)).astype(np.float32))
    tokens[..., 3] += 2 * torch.from_numpy(share)
    tokens[..., 7] = 50 + 20 * tokens[..., 7]  # large, and says nothing
    layer = torch.nn.Linear(24, 1, bias=False)
    bias = locate.learn(layer, tokens, share, 200, 0)
    with torch.inference_mode():
        logits = (layer(tokens)[..., 0] + bias).numpy()[:, 5:]
    right = share[:, 5:] > 0.5
    assert roc_auc_score(right.ravel(), logits.ravel()) > 0.9  # at best 0.92
    assert logits[right].mean() > 0 > logits[~right].mean()
    assert layer.weight[0].argmax() == 3


def test_a_file_of_places_moves_no_score(locate: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = Detector.create("vit:test_vit", size=32, beside=4, where=0).eval()
    asked = {"where": [2, 0], "where_plain": [1]}
    taught = locate.asking_where(before, asked)
    net: Any = taught.net
    with torch.no_grad():
        net.where.weight.normal_()
        net.where_bias.normal_()
    locate.save_places(net, asked, tmp_path / "places.safetensors")
    found = locate.with_places(before, tmp_path / "places.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    mine, whole = found.local_logits(pixels)
    np.testing.assert_array_equal(mine, taught.local_logits(pixels)[0])
    np.testing.assert_array_equal(whole, before.local_logits(pixels)[1])
    assert np.abs(mine - before.local_logits(pixels)[0]).max() > 0.1
    assert before.config["arguments"] == {"size": 32, "beside": 4, "where": 0}


def test_regions_lie_anywhere(locate: Any) -> None:
    """Hot in the middle is worth nothing: every part of a picture is changed about as often."""
    rng = np.random.default_rng(0)
    from edited import region

    mean = np.mean([region(60, 90, rng) for _ in range(1500)], axis=0)
    parts = [part.mean() for row in np.array_split(mean, 3) for part in np.array_split(row, 3, 1)]
    assert max(parts) < 1.35 * min(parts)
