"""Published detectors of swapped faces: which faces they see, and how."""

import numpy as np
import pytest
import torch
from torch import nn

from ganscope.detector.published import cutting, load_published, sbi
from ganscope.faces import Face

from .made_weights import Saved


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sbi", [0.743308, 0.903188]),
        ("xception-faces", [-2501.787, -2480.502]),
        ("f3net", [123.6046, 123.7558]),
    ],
)
def test_face_networks_compute_what_their_authors_do(
    name: str, expected: list[float], saved: Saved
) -> None:
    """As above; of two outputs, the second less the first."""
    images = torch.tensor(np.random.RandomState(1).standard_normal((2, 3, 256, 256))).float()
    images = images[:, None] if name == "sbi" else images
    detector = load_published(name, saved(name))
    if name == "sbi":  # or nothing would be left of an image after so many layers
        for part in detector.net.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.data *= 1.3
    logits = detector.logits(images)
    torch.testing.assert_close(logits, torch.tensor(expected), rtol=1e-4, atol=2e-4)


class Planted:
    """Faces that are known; their landmarks are where `points` says."""

    name = "planted"

    def __init__(self, *boxes: tuple[int, int, int, int], points: np.ndarray | None = None):
        self.faces = [Face(box, 0.9, points) for box in boxes]

    def find(self, pixels: np.ndarray) -> list[Face]:
        return self.faces


def test_sbi_looks_at_all_large_faces_and_takes_the_worst(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.arange(200 * 300 * 3, dtype=np.uint32).reshape(200, 300, 3).astype(np.uint8)
    boxes = (100, 40, 180, 120), (0, 0, 64, 80), (250, 150, 260, 160)
    monkeypatch.setattr(cutting, "finder", lambda: Planted(*boxes))
    cut = cutting.boxed(pixels, sbi.MARGIN)
    assert [one.shape for one in cut] == [(101, 101, 3), (91, 73, 3)]  # the third is too small
    assert (cut[0] == pixels[30:131, 90:191]).all()
    detector = load_published("sbi", saved("sbi"))
    prepared = detector.prepare(pixels)
    assert prepared.shape == (2, 3, 380, 380)
    assert 0 <= prepared.min() <= prepared.max() <= 1
    both = [float(detector.logits(face[None, None])) for face in prepared]
    assert float(detector.logits(prepared[None])) == pytest.approx(max(both), rel=1e-4)
    monkeypatch.setattr(cutting, "finder", Planted)
    assert cutting.boxed(pixels, sbi.MARGIN)[0] is pixels


def test_faces_are_turned_upright(monkeypatch: pytest.MonkeyPatch) -> None:
    places = np.array(cutting.PLACES) * 2
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    points = places @ turn.T * 0.8 + [190, 20]
    matrix = cutting.similarity(points, places)
    np.testing.assert_allclose(points @ matrix[:, :2].T + matrix[:, 2], places, atol=1e-9)
    landmarks = np.zeros((68, 2), np.float32)
    landmarks[cutting.EYES_NOSE_MOUTH] = points
    pixels = np.zeros((240, 260, 3), np.uint8)
    for x, y in points.round().astype(int):
        pixels[y - 2 : y + 3, x - 2 : x + 3] = 255
    planted = Planted((40, 40, 160, 160), points=landmarks)
    monkeypatch.setattr(cutting, "finder", lambda: planted)
    face = cutting.aligned(pixels, 256)
    # A face of 112 pixels, 1.3 times as much of it, in 256.
    expected = (np.array(cutting.PLACES) - 56) * 256 / 112 / 1.3 + 128
    for x, y in expected.round().astype(int):
        assert face[y - 1 : y + 2, x - 1 : x + 2].min() > 200
    assert face.mean() < 5
    square = np.full((100, 100, 3), 77, np.uint8)  # a face already: as it is
    monkeypatch.setattr(cutting, "finder", lambda: Planted((20, 20, 80, 80), points=landmarks))
    assert (cutting.aligned(square, 256) == 77).all()
