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


def taught(locate: Any, out: Path, minutes: float) -> tuple[Detector, Detector, np.ndarray]:
    """A detector, and the same with places that it learned: noise is in the left half or not."""
    torch.manual_seed(0)
    before = Detector.create("vit:test_vit", size=32, beside=4).eval()
    asked = {"where_own": [0, 1]}
    found = locate.asking_where(before, asked)
    rng = np.random.default_rng(0)
    pixels = np.full((64, 48, 48, 3), 128, np.uint8)
    pixels[:, :, :24] += rng.integers(0, 60, (64, 48, 24, 3), dtype=np.uint8)
    masks = np.zeros((64, 48, 48), np.uint8)
    masks[:, :, :24] = 255
    options = locate._options()
    options.minutes, options.out, options.learning_rate = minutes, out, 3e-3
    locate.learn(found, pixels, masks, options)
    return before, found, pixels


def test_a_copy_of_the_backbone_learns_where_and_no_score_moves(
    locate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "places.safetensors"
    monkeypatch.setattr("sys.argv", ["locate", "corpus", "--autoencoder", "a", "--out", str(path)])
    monkeypatch.setattr(locate, "KEPT", 0.0)
    before, found, pixels = taught(locate, path, 0.1)
    views = np.ascontiguousarray(pixels[:4, 8:40, 8:40])
    local, whole = found.local_logits(views)
    left = np.tile(np.arange(local.shape[2]) < local.shape[2] / 2, (4, local.shape[1], 1))
    assert roc_auc_score(left.ravel(), local.ravel()) > 0.95
    np.testing.assert_allclose(whole, before.logits(views), atol=1e-6)
    locate.calibrate(found, pixels[:8], np.where(np.arange(48) < 24, 255, 0) * np.ones((8, 48, 1)))
    locate.save_places(found, {"where_own": [0, 1]}, path)
    again = locate.with_places(before, path)
    np.testing.assert_allclose(
        again.local_logits(views)[0], found.local_logits(views)[0], atol=0.02 * local.std()
    )
    again.config["steps"] |= {"net.backbone.": "net.plain."}
    again.save(tmp_path / "shipped")
    kept = Detector.load(tmp_path / "shipped").local_logits(views)[0]
    np.testing.assert_allclose(kept, again.local_logits(views)[0], atol=0.05 * local.std())
    # What was learned is kept, and gone on from: nothing is left to do.
    mean = found.net.where.weight.clone()
    _, more, _ = taught(locate, path, 0.0)
    torch.testing.assert_close(more.net.where.weight != 0, mean != 0)


def test_both_parts_of_a_picture_count_alike(locate: Any) -> None:
    def moved(unclear: float) -> torch.Tensor:
        share = torch.zeros(2, 4, 4)
        share[:, 0], share[:, 1] = 1.0, unclear
        flat = torch.zeros(2, 4, 4, requires_grad=True)
        locate.places_loss(flat, share).backward()
        assert flat.grad is not None
        return flat.grad[0].mean(1)

    fake, *real = moved(0.0)
    torch.testing.assert_close(-fake, sum(real))
    _, unclear, real, _ = moved(0.4)  # a little of both
    assert abs(unclear) < 0.1 * real


def test_regions_lie_anywhere(locate: Any) -> None:
    """Hot in the middle is worth nothing: every part of a picture is changed about as often."""
    rng = np.random.default_rng(0)
    from edited import region

    mean = np.mean([region(60, 90, rng) for _ in range(1500)], axis=0)
    parts = [part.mean() for row in np.array_split(mean, 3) for part in np.array_split(row, 3, 1)]
    assert max(parts) < 1.35 * min(parts)
