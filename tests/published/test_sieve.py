"""The published detector that is an ONNX file."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ganscope.detector.published import load_published, sieve
from ganscope.errors import GanscopeError
from ganscope.folders import hash_files

from .made_weights import normal


@pytest.fixture
def light(tmp_path: Path) -> str:
    """An ONNX file of sieve's shapes whose logit is the mean of what it gets, less 0.43."""
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["input", "axes"], ["mean"], keepdims=0),
            helper.make_node("Sub", ["mean", "bias"], ["logit"]),
        ],
        "light",
        [helper.make_tensor_value_info("input", 1, ["n", 3, 384, 384])],
        [helper.make_tensor_value_info("logit", 1, ["n"])],
        [
            helper.make_tensor("axes", 7, [3], [1, 2, 3]),
            helper.make_tensor("bias", 1, [], [sieve.BIAS]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(tmp_path / "light.onnx"))
    return str(tmp_path / "light.onnx")


def test_sieve_looks_twice_where_it_is_unsure(light: str, astronaut: np.ndarray) -> None:
    detector = load_published("sieve", light)
    assert (detector.name, detector.weights) == ("sieve", hash_files(light))
    assert (detector.threshold, detector.score(math.log(0.65 / 0.35))) == (
        0.65,
        pytest.approx(0.65),
    )
    wide = astronaut[:400, :501]
    resized, as_it_is = detector.prepare(wide)
    np.testing.assert_allclose(as_it_is, normal(wide[8:392, 58:442]), atol=1e-5)
    # 501 x 440 / 400 = 551.1; the crop begins at its middle, rounded down.
    larger = np.asarray(Image.fromarray(wide).resize((551, 440), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(resized, normal(larger[28:412, 83:467]), atol=1e-5)
    assert detector.prepare(astronaut[:100, :90]).shape == (1, 3, 384, 384)
    views = torch.zeros(4, 2, 3, 384, 384)
    for number, (first, second) in enumerate([(0.5, 0.7), (-1.0, 3.0), (2.0, 9.0), (-1.2, 9.0)]):
        views[number, 0], views[number, 1] = first, second
    # Scores of 0.62, 0.27, 0.88 and 0.23: the first two are unsure.
    expected = torch.tensor([0.6, 1.0, 2.0, -1.2])
    torch.testing.assert_close(detector.logits(views), expected, atol=2e-3, rtol=0)
    alone = detector.logits(views[:, :1])
    torch.testing.assert_close(alone, views[:, 0, 0, 0, 0], atol=2e-3, rtol=0)
    photos = [wide, astronaut[:100, :90], wide[::-1]]
    together = detector.score_pixels(photos)
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, detector.score_pixels(photos, batch_size=1), atol=1e-4)


def test_sieve_says_what_is_wrong_with_a_file(
    light: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"no graph")
    for name, said in [("absent", "no such file"), ("junk", "")]:
        with pytest.raises(GanscopeError, match=rf"^sieve:.*{name}\.onnx: {said}") as told:
            load_published("sieve", tmp_path / f"{name}.onnx")
        assert "\n" not in str(told.value)
    monkeypatch.setattr(sieve, "SIDE", 224)
    with pytest.raises(GanscopeError, match="takes images of 384 pixels, not of 224"):
        load_published("sieve", light)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(GanscopeError, match=r"need onnxruntime: pip install 'ganscope\[onnx\]'"):
        load_published("sieve", light)
