"""What tells swapped faces: the same with torch and without, and refused where it is damaged."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from ganscope.config import CheckSettings, ScanSettings
from ganscope.detector.exported import loading
from ganscope.detector.exported.loading import (
    QuickJudge,
    cached_graph,
    graph_of,
    load_judge,
    save_graph,
)
from ganscope.detector.exported.running import OnnxJudge
from ganscope.detector.judging.checking import check_images
from ganscope.detector.model import Detector, load_detector
from ganscope.detector.networks import face_head
from ganscope.detector.networks.face_head import PARTS, FaceHead, zones
from ganscope.detector.scanning import scan as scanning
from ganscope.detector.scanning.results import Results
from ganscope.errors import GanscopeError
from ganscope.faces import best_finder
from ganscope.named import CONFIG, FACES, WEIGHTS, read_config, weights_hash

SIZE, BLOCK, MARGIN = 64, 1, 1.4


def make_head(scale: float = 0.03) -> FaceHead:
    weight = np.random.default_rng(1).normal(0, scale, PARTS * 768).astype(np.float32)
    return FaceHead(weight, 0.25, BLOCK, MARGIN, 0.8, {"faces": 3})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small detector whose fine-tuned blocks are not its untouched ones, with a head."""
    torch.manual_seed(0)
    reads = [[0, "cls"], [1, "mean"]]
    detector = Detector.create("clip", size=SIZE, reads=reads, beside=4)
    folder = tmp_path_factory.mktemp("faces") / "run"
    detector.save(folder)
    make_head().save(folder)
    return folder


def squares() -> np.ndarray:
    made = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    made[1, 16:48, 16:48] = 120  # flat where a face is
    return made


def test_a_head_comes_back_as_it_was(tmp_path: Path) -> None:
    assert FaceHead.load(tmp_path) is None
    head = make_head()
    head.save(tmp_path)
    found = FaceHead.load(tmp_path)
    assert found is not None
    np.testing.assert_array_equal(found.weight, head.weight)
    assert {**vars(found), "weight": 0} == {**vars(head), "weight": 0}
    assert found.digest == head.digest != make_head(0.02).digest


def test_a_copy_of_a_detector_has_its_head(tmp_path: Path) -> None:
    """`push_to_hub` saves one; from the hub its head is fetched."""
    head = replace(make_head(), weight=np.ones(PARTS * 64, np.float32), block=0)
    Detector.create("vit:test_vit", size=64).save(tmp_path / "run")
    head.save(tmp_path / "run")
    load_detector(str(tmp_path / "run")).save_pretrained(tmp_path / "copy")
    again = load_detector(str(tmp_path / "copy")).face_head
    assert again is not None
    assert (again.digest, again.about) == (head.digest, head.about)


def test_a_damaged_head_is_named(tmp_path: Path) -> None:
    make_head().save(tmp_path)
    data = (tmp_path / FACES).read_bytes()
    (tmp_path / FACES).write_bytes(data[:-9])
    with pytest.raises(GanscopeError, match=r"faces.safetensors is damaged"):
        FaceHead.load(tmp_path)
    FaceHead(np.full(7, np.nan, np.float32), 0.0, 1, 1.4, 0.8, {}).save(tmp_path)
    with pytest.raises(GanscopeError, match="not finite"):
        FaceHead.load(tmp_path)


def test_a_head_of_other_zones_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_head().save(tmp_path)
    with safe_open(tmp_path / FACES, "numpy") as file:
        told = json.loads(file.metadata()["faces"])
    del told["zones"]
    save_file(load_file(tmp_path / FACES), tmp_path / FACES, metadata={"faces": json.dumps(told)})
    assert FaceHead.load(tmp_path) is not None  # those of before do not tell
    for fresh in (False, True):
        if fresh:
            make_head().save(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(face_head, "INNER", 0.6)
            with pytest.raises(GanscopeError, match=r"learned with other zones .*0.7, 1.15, 0.85"):
                FaceHead.load(tmp_path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"weight": np.ones(PARTS * 32, np.float32)}, "features of 32 numbers a part, not 64"),
        ({"block": 9}, "block 9 of"),
        ({"block": -1}, "block -1 of"),
        ({"margin": float("nan")}, "a square of nan faces"),
        ({"margin": 0.2}, "a square of 0.2 faces"),
    ],
    ids=str,
)
def test_a_head_of_another_detector_is_refused_at_once(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    """It is told when the detector is loaded, not when the first face comes along."""
    torch.manual_seed(0)
    Detector.create("vit:test_vit", size=64).save(tmp_path)
    head = replace(make_head(), weight=np.ones(PARTS * 64, np.float32), block=0)
    head.save(tmp_path)
    assert load_judge(str(tmp_path)).face_logits(squares()).shape == (3,)
    replace(head, **changed).save(tmp_path)
    with pytest.raises(GanscopeError, match=rf"faces\.safetensors is of another .*\({said}"):
        load_judge(str(tmp_path))
    state = load_file(tmp_path / WEIGHTS)
    del state["net.backbone.cls_token"]
    save_file(state, tmp_path / WEIGHTS)
    head.save(tmp_path)
    with pytest.raises(GanscopeError, match="no transformer of that kind"):
        FaceHead.load(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"")  # which is told instead
    with pytest.raises(GanscopeError, match=r"model\.safetensors is damaged"):
        load_judge(str(tmp_path))


def test_a_damaged_head_is_told_once(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was: judged with torch, for the head is damaged; then that it is damaged."""
    monkeypatch.setenv("GANSCOPE_CACHE", str(tmp_path))
    monkeypatch.setattr(loading, "_is_quicker", lambda *_: True)
    (run / FACES).write_bytes(b"no head")
    with (
        warnings.catch_warnings(action="error"),
        pytest.raises(GanscopeError, match=r"faces\.safetensors is damaged"),
    ):
        load_judge(str(run))
    make_head().save(run)


def test_what_another_head_said_is_not_gone_on_from(tmp_path: Path, astronaut: np.ndarray) -> None:
    torch.manual_seed(0)
    run, out = tmp_path / "run", tmp_path / "scan"
    Detector.create("vit:test_vit", size=64).save(run)
    heads = [FaceHead(np.ones(PARTS * 64, np.float32), bias, 0, 1.4, 0.8, {}) for bias in (0, 1)]
    heads[0].save(run)
    names = [str(tmp_path / f"{n}.png") for n in range(2)]
    for name in names:
        cv2.imwrite(name, astronaut[:200, :200])
    wish = CheckSettings(
        paths=tuple(names), detector=str(run), csv=tmp_path / "v.csv", device="cpu", reencode=False
    )
    scanned = ScanSettings(paths=(str(tmp_path),), out=out, detector=str(run), engine="local")
    about = (read_config(run, "run", "detectors"), weights_hash(run), best_finder())
    with Results(out, scanning._plan(scanned, *about, scanning._swaps(scanned))):
        pass

    def stopped(settings: CheckSettings) -> list[str]:
        with warnings.catch_warnings(record=True) as said:
            stream: Any = check_images(settings)
            next(stream)
            stream.close()
        return [str(one.message) for one in said]

    assert not any("begun anew" in said for said in stopped(wish))
    assert not any("begun anew" in said for said in stopped(wish))
    heads[1].save(run)
    assert any("begun anew" in said for said in stopped(wish))
    with pytest.raises(GanscopeError, match="with other weights of the detector;"):
        list(scanning.scan_images(scanned))
    spared = replace(scanned, faces=False)
    assert scanning._swaps(spared) is None


def test_zones_part_a_square() -> None:
    found = zones(14, MARGIN)
    assert ((found > 0).sum(0) == 1).all()
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    inner, edge, outer = (found > 0).reshape(3, 14, 14)
    assert inner[6:8, 6:8].all()
    assert outer[0].all()
    assert edge[1:3, 6].any()


def test_logits_are_of_the_zones_of_untouched_tokens(run: Path) -> None:
    detector, head = load_detector(str(run)), make_head()
    images = detector.normalised(detector._images(squares()))
    net = detector.net
    with torch.no_grad():
        x = net.plain.patch_embed(images)
        x = net.plain.norm_pre(net.plain._pos_embed(x))
        for block in net.plain.blocks[: BLOCK + 1]:
            x = block(x)
        tokens = F.layer_norm(x, (768,))
    parts = [tokens[:, 0]]
    within = [torch.from_numpy(row > 0) for row in zones(SIZE // 16, MARGIN)]
    parts += [tokens[:, 1:][:, one].mean(1) for one in within]
    parts += [tokens[:, 1:][:, one].std(1) for one in within]
    expected = torch.cat(parts, 1).numpy() @ head.weight + head.bias
    assert expected.std() > 0.1
    np.testing.assert_allclose(detector.face_logits(squares()), expected, atol=1e-3)


def test_the_graph_says_the_same(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("GANSCOPE_CACHE", str(tmp_path))
    expected = load_detector(str(run)).face_logits(squares())
    config = json.loads((run / CONFIG).read_text())
    save_graph(graph_of(str(run), run, config, tmp_path / "p", face=make_head()), tmp_path / "f")
    exact = OnnxJudge(tmp_path / "f")
    np.testing.assert_allclose(exact.logits(squares()), expected, atol=1e-3)
    assert exact.faces_alone
    quick = cached_graph(str(run))
    assert isinstance(quick, QuickJudge)
    assert quick.face_head is not None
    np.testing.assert_allclose(quick.face_logits(squares()), expected, atol=0.3)
    assert len(list((tmp_path / "graphs").glob("*.onnx"))) == 2  # neither forgot the other
    make_head(0.06).save(run)
    other = load_detector(str(run)).face_logits(squares())
    np.testing.assert_allclose(cached_graph(str(run)).face_logits(squares()), other, atol=0.4)
    assert np.abs(other - expected).max() > 0.5
    make_head().save(run)


def test_numbers_that_are_not_those_that_were_saved_are_damage(tmp_path: Path) -> None:
    make_head().save(tmp_path)
    path = tmp_path / FACES
    data = bytearray(path.read_bytes())
    data[-100] ^= 0x40  # within the weights: still finite, and of the right length
    path.write_bytes(bytes(data))
    with pytest.raises(GanscopeError, match="not those that were saved"):
        FaceHead.load(tmp_path)
