"""Detectors as graphs: they say what the network says, without torch, or are not kept."""

import json
import math
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from ganscope.config import CheckSettings, ExportSettings
from ganscope.config.export import ENDINGS
from ganscope.detector.exported import loading, running, shrinking
from ganscope.detector.exported.loading import (
    BYTES_MARGIN,
    QuickJudge,
    cached_graph,
    graph_of,
    load_judge,
)
from ganscope.detector.exported.running import OnnxJudge, ScriptJudge, open_exported
from ganscope.detector.judge import Judge
from ganscope.detector.judging import checking, exporting
from ganscope.detector.judging.checking import check_image, check_images
from ganscope.detector.judging.exporting import export_detector, made_pictures
from ganscope.detector.judging.heatmaps import heatmap
from ganscope.detector.judging.scoring import score_images
from ganscope.detector.model import Detector, load_detector
from ganscope.errors import GanscopeError, GanscopeWarning
from ganscope.named import shipped

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cache in which the shipped detector's graphs are made once for all tests here."""
    return str(tmp_path_factory.mktemp("graphs"))


@pytest.fixture
def cache(graphs: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GANSCOPE_CACHE", graphs)
    return Path(graphs)


def views(count: int = 3, size: int = 224) -> np.ndarray:
    return np.stack([one[:size, :size] for one in made_pictures(size, count)])


def trained(folder: Path, architecture: str, **arguments: Any) -> str:
    """A detector on disk whose logits differ between pictures."""
    torch.manual_seed(0)
    detector = Detector.create(architecture, **arguments)
    for name, value in detector.named_parameters():
        if value.ndim == 1 and "weight" in name:  # norms that begin alike hide mistakes
            value.data *= torch.rand_like(value) + 0.5
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean += torch.randn_like(module.running_mean) * 0.1
            module.running_var *= torch.rand_like(module.running_var) + 0.5
    detector.config["thresholds"] |= {"fake": 0.6, "real": 0.4}
    detector.save(folder)
    return str(folder)


def test_the_shipped_detector_without_torch_is_the_one_with_torch(cache: Path) -> None:
    graph, detector = cached_graph("default"), load_detector()
    pixels = views()
    expected = detector.logits(pixels)
    assert expected.std() > 0.1
    np.testing.assert_allclose(graph.exact_logits(pixels), expected, atol=1e-3)
    local, whole = graph.local_logits(pixels)
    expected_local, expected_whole = detector.local_logits(pixels)
    np.testing.assert_allclose(whole, expected_whole, atol=1e-3)
    np.testing.assert_allclose(local, expected_local, atol=2e-3)
    quick = graph.logits(pixels)
    assert 1e-4 < np.abs(quick - expected).max() < 2 * BYTES_MARGIN  # rounded, but not by much
    assert graph.has_places
    assert graph.config == detector.config
    for name in ("size", "views", "smallest", "thresholds", "name"):
        assert getattr(graph, name) == getattr(detector, name)


def test_check_needs_no_torch(cache: Path, photo: Path, tmp_path: Path) -> None:
    """Nor does a heatmap; and the verdict is the same."""
    judge = cached_graph("default")
    judge.exact_logits(views(1))  # all graphs are made
    judge.face_logits(views(1))
    judge.places(views(1))
    code = f"""
import json, sys
from ganscope.cli import main
sys.argv = ["ganscope", "check", {str(photo)!r}, "--json", "--heatmap", {str(tmp_path / "h")!r}]
try:
    main()
finally:
    print(json.dumps(sorted({{"torch", "timm", "onnx", "pandas", "sklearn"}} & set(sys.modules))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check, imported = map(json.loads, done.stdout.splitlines())
    assert imported == []
    with_torch = check_image(photo, load_judge("default", "torch"))
    assert check["verdict"] == with_torch.verdict
    assert check["score"] == pytest.approx(with_torch.score, abs=0.05)
    assert check["meaning"]
    pixels = cv2.imread(str(photo))[..., ::-1]
    expected = heatmap(load_detector(), pixels)
    found = heatmap(load_judge("default", "onnx"), pixels)
    np.testing.assert_allclose(found, expected, atol=0.01)
    assert cv2.imread(check["heatmap"]) is not None


def test_a_damaged_graph_is_made_again(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = trained(tmp_path / "run", "cnn", width=8, depth=3)
    expected = cached_graph(name).logits(views(1, 64))
    (path,) = (p for p in cache.glob("graphs/*.onnx") if "int8" not in p.name and old(p, name))
    data = bytearray(path.read_bytes())
    place = len(data) // 2
    data[place : place + 64] = bytes(64)
    path.write_bytes(bytes(data))
    np.testing.assert_array_equal(cached_graph(name).logits(views(1, 64)), expected)
    assert bytes(data) != path.read_bytes()
    path.with_suffix(".json").unlink()
    np.testing.assert_array_equal(cached_graph(name).logits(views(1, 64)), expected)
    path.unlink()
    lost: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lost.append)
    np.testing.assert_array_equal(cached_graph(name).logits(views(1, 64)), expected)
    assert not lost


def old(graph: Path, folder: str) -> bool:
    return json.loads(graph.with_suffix(".json").read_text())["folder"] == folder


def test_a_detector_trained_anew_gets_a_new_graph(cache: Path, tmp_path: Path) -> None:
    name = trained(tmp_path / "run", "cnn", width=8, depth=3)
    first = cached_graph(name)
    before = first.logits(views(1, 64))
    detector = load_detector(name)
    detector.net.head.bias.data += 1  # type: ignore[union-attr, operator]
    detector.save(name)
    os.utime(Path(name) / "model.safetensors", ns=(1, 1))  # within the clock's grain
    np.testing.assert_allclose(cached_graph(name).logits(views(1, 64)), before + 1, atol=1e-2)
    assert len([p for p in cache.glob("graphs/*.onnx") if old(p, name)]) == 1
    assert first.made_of
    assert cached_graph(name).made_of != first.made_of


def test_no_second_look_by_another_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the folder was trained anew while its quick graph was at work, that is said."""
    exact = SimpleNamespace(made_of="then", logits=lambda pixels: "exact")
    monkeypatch.setattr(loading, "_from_cache", lambda *_, **__: exact)
    quick = QuickJudge.__new__(QuickJudge)
    quick.origin, quick.made_of = "run", "then"
    assert quick.exact_logits(views(1, 64)) == "exact"
    quick.exact, quick.made_of = None, "before"
    with pytest.raises(GanscopeError, match="run: was trained anew"):
        quick.exact_logits(views(1, 64))


def test_a_graph_is_made_of_what_belongs_together(cache: Path, tmp_path: Path) -> None:
    """As with torch, weights that the configuration was not written with are refused."""
    config = json.loads((shipped("detectors")["default"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"weights": "0" * 12}))
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(GanscopeError, match=r"not the one that config\.json was written with"):
        cached_graph(str(tmp_path))


def test_gradcam_is_left_to_torch(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_is_quicker", lambda *_: True)
    monkeypatch.setattr(loading, "cached_graph", lambda _: "graph")
    monkeypatch.setattr(loading, "_with_torch", lambda *_: "torch")
    assert load_judge() == "graph"
    assert load_judge(gradients=True) == "torch"
    wanted: list[bool] = []

    def load(name: str, runtime: str, device: str, gradients: bool, lasting: bool) -> Any:
        wanted.append(gradients)
        assert not lasting
        raise GanscopeError("enough")

    monkeypatch.setattr(checking, "load_judge", load)
    drawn = CheckSettings(paths=(str(photo),), heatmap=photo.parent, heatmap_method="gradcam")
    for settings in (drawn, replace(drawn, heatmap_method="auto"), replace(drawn, heatmap=None)):
        with pytest.raises(GanscopeError, match="enough"):
            next(iter(check_images(settings)))
    assert wanted == [True, False, False]


def test_onnx_by_itself_is_for_what_needs_no_torch_to_be_made(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = trained(tmp_path / "run", "cnn", width=8, depth=3)
    assert isinstance(load_judge(name, device="cpu"), Detector)
    assert isinstance(load_judge(name, "onnx"), OnnxJudge)
    assert isinstance(load_judge("default", device="cpu"), OnnxJudge)
    assert isinstance(load_judge("default", "torch"), Detector)
    with monkeypatch.context() as patch:
        patch.setattr(loading, "_may_have_gpu", lambda: True)
        assert isinstance(load_judge("default"), Detector)
    with pytest.raises(GanscopeError, match="--device cuda"):
        next(score_images(cached_graph(name), [views(1, 64)[0]], device="cuda"))
    with pytest.raises(GanscopeError, match="unknown detector"):
        load_judge("defualt")


@pytest.mark.parametrize(("says", "does"), [(True, True), (True, False), (False, True)])
def test_torch_judges_many_where_the_processor_is_made_for_bf16(
    cache: Path, monkeypatch: pytest.MonkeyPatch, says: bool, does: bool
) -> None:
    monkeypatch.setattr(loading, "_says_amx", lambda: says)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": does}, raising=False)
    judge = load_judge("default", device="cpu", lasting=True)
    assert isinstance(judge, Detector if says and does else QuickJudge)
    assert judge.margin > 0
    assert isinstance(load_judge("default", device="cpu"), QuickJudge)


def test_many_files_make_a_check_a_lasting_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = []

    def load(name: str, runtime: str, device: str, gradients: bool, lasting: bool) -> Any:
        wanted.append(lasting)
        raise GanscopeError("enough")

    monkeypatch.setattr(checking, "load_judge", load)
    monkeypatch.setattr(checking, "MANY", 3)
    for number in range(3):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{number}.png")
        with pytest.raises(GanscopeError, match="enough"):
            next(iter(check_images(CheckSettings(paths=(str(tmp_path),)))))
    assert wanted == [False, False, True]


def test_without_room_for_a_graph_torch_judges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").write_text("no folder")
    monkeypatch.setenv("GANSCOPE_CACHE", str(tmp_path / "full"))
    with pytest.warns(GanscopeWarning, match="judged with torch, not onnxruntime"):
        assert isinstance(load_judge("default", device="cpu"), Detector)
    with pytest.raises(GanscopeError, match="cannot be written"):
        load_judge("default", "onnx")


def test_a_network_that_the_graph_does_not_know_is_said(tmp_path: Path) -> None:
    config = load_detector().config | {"arguments": {"where": 5, "rings": 2}}
    with pytest.raises(GanscopeError, match=r"no graph is made of it.*rings"):
        graph_of("default", shipped("detectors")["default"], config, tmp_path / "part")


class Rounded(Judge):
    """Made by hand: the logit is a view's brightness in tens less ten, the quick one 0.2 more."""

    name, on_cpu, has_map, has_places, has_gradients = "rounded", True, False, False, False  # type: ignore[assignment]
    margin = 0.6

    def __init__(self) -> None:
        self.exactly = 0
        self.config = {
            "input": {"size": 8, "views": {"whole": 8, "settled": -2.0}},
            "thresholds": {"fake": 0.9, "real": 0.2},
            "calibration": {"scale": 1.0, "shift": 0.0},
        }

    def prepare(self, device: str = "auto") -> None:
        pass

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        return self._logits(pixels) + 0.2

    def exact_logits(self, pixels: np.ndarray) -> np.ndarray:
        self.exactly += len(pixels)
        return self._logits(pixels)

    def local_logits(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError

    @staticmethod
    def _logits(pixels: np.ndarray) -> np.ndarray:
        return (pixels.mean((1, 2, 3)) / 10 - 10).astype(np.float32)


@pytest.mark.parametrize(
    ("brightness", "logit", "exactly"),
    [
        (50, -4.8, 0),  # real, beyond doubt
        (79, -2.1, 2),  # quickly -1.9: would have looked at more
        (86, -1.4, 6),  # log(.2 / .8) is -1.386: quickly unsure
        (110, 1.2, 0),
        (121, 2.1, 6),  # log(.9 / .1) is 2.197: quickly fake
        (140, 4.2, 0),
    ],
)
def test_what_rounding_could_change_is_looked_at_exactly(
    brightness: int, logit: float, exactly: int
) -> None:
    judge = Rounded()
    picture = np.full((12, 24, 3), brightness, np.uint8)
    (scored,) = score_images(judge, [picture])
    assert len(scored.tile_logits) == (6 if brightness > 80 else 2)
    assert judge.verdict(scored.score or 0) == judge.verdict(judge.score(brightness / 10 - 10))
    assert judge.exactly == exactly
    assert scored.logit == pytest.approx(logit, abs=1e-5)
    assert scored.seen is None


@pytest.mark.parametrize(
    ("brightness", "seen", "exactly"),
    [
        (40, 1, 0),  # -6.0: real, beyond doubt
        (69, 1, 1),  # -3.1: quickly -2.9, which would have been looked at once more
        (71, 2, 0),
        (158, 6, 1),  # 5.8: quickly 6.0, which would have been settled
        (162, 1, 0),
    ],
)
def test_rounding_does_not_decide_what_a_glance_settles(
    brightness: int, seen: int, exactly: int
) -> None:
    judge = Rounded()
    judge.config["input"]["views"] |= {"glance": -3.0, "glance_fake": 6.0}
    picture = np.full((12, 24, 3), brightness, np.uint8)
    (scored,) = score_images(judge, [picture])
    assert (len(scored.tile_logits), judge.exactly) == (seen, exactly)


def test_rounding_may_decide_whether_a_first_look_settles_it() -> None:
    judge = Rounded()
    judge.config["input"]["views"]["settled_fake"] = 4.5
    near = judge.margin / 2**0.5 / 3
    for bound in (-2.0, 4.5):
        assert judge.may_be_settled(bound + 0.9 * near, 2)
        assert not judge.may_be_settled(bound + 1.1 * near, 2)
    assert [judge.wants_more(logit, 2) for logit in (-2.1, -2.0, 4.4, 4.5)] == [
        False,
        True,
        True,
        False,
    ]


def test_what_has_no_views_but_the_first_look_counts_by_less() -> None:
    judge = Rounded()
    judge.margin, judge.config["input"]["views"]["few"] = 0.0, 0.5
    small, large = (np.full((side, side, 3), 140, np.uint8) for side in (9, 12))
    few, many = score_images(judge, [small, large])
    assert (len(few.tile_logits), len(many.tile_logits)) == (2, 4)
    assert [few.logit, many.logit] == pytest.approx([2.1, 4.2], abs=1e-5)
    assert [few.score, many.score] == pytest.approx([judge.score(2.1), judge.score(4.2)])


@pytest.mark.parametrize(
    "about", [{"where": [1, 0], "where_plain": [1]}, {"where_own": [2, 0]}, {"where_own": [0]}]
)
def test_the_graph_asks_every_backbone_where(about: dict[str, Any], tmp_path: Path) -> None:
    reads = {"reads": [[1, "cls"]], "map_block": 1, "beside": 4}
    name = trained(tmp_path / "run", "clip", **reads, **about)
    detector, path = Detector.load(name), tmp_path / "d.onnx"
    config = json.loads((tmp_path / "run/config.json").read_text())
    for portable in (False, True):
        model = graph_of(name, tmp_path / "run", config, tmp_path / "part", "float", portable)
        onnx.save(model, path)
        pixels = views(2)
        expected, whole = detector.local_logits(pixels)
        assert expected.std() > 1e-3
        local, logits = open_exported(path).local_logits(pixels)
        np.testing.assert_allclose(local, expected, atol=1e-3 * expected.std())
        np.testing.assert_allclose(logits, whole, atol=1e-4)


def test_the_map_is_made_apart_and_nothing_else_is_asked_for_it(tmp_path: Path) -> None:
    reads = {"reads": [[1, "cls"]], "map_block": 1, "beside": 4, "where_own": [0]}
    name = trained(tmp_path / "run", "clip", **reads)
    judge, detector, pixels = load_judge(name, "onnx"), Detector.load(name), views(2)
    assert isinstance(judge, QuickJudge)
    local, logits = detector.local_logits(pixels)
    np.testing.assert_allclose(judge.places(pixels), local, atol=1e-3 * local.std())
    assert judge.exact is None
    assert judge.mapped is not None
    assert [one.name for one in judge.mapped.session.get_outputs()] == ["places"]
    assert [one.name for one in judge.session.get_outputs()] == ["logits"]
    bare = graph_of(name, tmp_path / "run", detector.config, tmp_path / "p", "int8", mapped=False)
    assert [one.name for one in bare.graph.output] == ["logits"]
    mine, its = judge.local_logits(pixels)
    np.testing.assert_allclose(mine, local, atol=1e-3 * local.std())
    np.testing.assert_allclose(its, logits, atol=1e-4)


def test_a_map_of_no_blocks_is_no_map_of_places(tmp_path: Path) -> None:
    reads = {"reads": [[1, "cls"]], "map_block": 1, "where": []}
    name = trained(tmp_path / "run", "clip", **reads)
    config = json.loads((tmp_path / "run/config.json").read_text())
    onnx.save(graph_of(name, tmp_path / "run", config, tmp_path / "part"), tmp_path / "d.onnx")
    assert not Detector.load(name).has_places
    found = open_exported(tmp_path / "d.onnx")
    assert found.has_map
    assert not found.has_places


ARCHITECTURES = {
    "cnn": {"width": 8, "depth": 3},
    "lite": {"size": 64},
    "npr": {"size": 64},
    "patch": {"width": 8, "size": 64},
    "timm:test_vit": {"size": 64},
    "timm:test_convnext": {"size": 64},
    "timm:resnet18": {"size": 64},
    "vit:test_vit": {"size": 64, "where": 2},
    "vit:test_vit, curved": {"size": 64, "hidden": 8},
    "vit:test_vit, twice": {"size": 64, "beside": 4, "where": [0, 2], "where_plain": [1]},
    "vit:test_vit, thrice": {"size": 64, "beside": 4, "where_own": [0, 2]},
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_exported(architecture: str, tmp_path: Path) -> None:
    """The graph is run on batches of several sizes, and its map is the network's."""
    name = trained(tmp_path / "run", architecture.split(",")[0], **ARCHITECTURES[architecture])
    found = export_detector(ExportSettings(detector=name, out=tmp_path / "d.onnx"))
    assert found.images == 8
    assert found.largest < 1e-5
    assert found.changed == ()
    detector, graph = load_detector(name), open_exported(found.path)
    assert isinstance(graph, OnnxJudge)
    assert (graph.has_map, graph.has_places) == (detector.has_map, detector.has_places)
    for count in (1, 3):
        pixels = views(count, detector.size)
        expected = detector.logits(pixels)
        np.testing.assert_allclose(graph.logits(pixels), expected, atol=1e-4)
        if detector.has_map:
            for mine, its in zip(
                graph.local_logits(pixels), detector.local_logits(pixels), strict=True
            ):
                np.testing.assert_allclose(mine, its, atol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "to"),
    [("cnn", "onnx"), *(("vit:test_vit, thrice", to) for to in ENDINGS)],
)
def test_a_map_is_left_out(architecture: str, to: str, tmp_path: Path) -> None:
    if to == "openvino":
        pytest.importorskip("openvino")
    name = trained(tmp_path / "run", architecture.split(",")[0], **ARCHITECTURES[architecture])
    found, whole = (
        export_detector(ExportSettings(detector=name, to=to, out=tmp_path / out, map=mapped))
        for out, mapped in ((f"d{ENDINGS[to]}", False), (f"whole{ENDINGS[to]}", True))
    )
    detector, judge = load_detector(name), load_judge(str(found.path))
    assert detector.has_map
    assert not judge.has_map
    pixels = views(3, detector.size)
    np.testing.assert_allclose(judge.logits(pixels), detector.logits(pixels), atol=1e-4)
    with pytest.raises(GanscopeError, match="holds no map"):
        judge.local_logits(pixels)
    picture = views(1, 2 * detector.size)[0]
    assert heatmap(judge, picture).shape == picture.shape[:2]
    if "own" in str(ARCHITECTURES[architecture]):
        assert found.bytes < whole.bytes


def test_fused_detectors_are_exported(tmp_path: Path) -> None:
    parts = [
        {"architecture": name, "arguments": about, "input": {"size": size, **normal}}
        for name, about, size in (
            ("cnn", {"width": 8, "depth": 3}, 64),
            ("timm:test_vit", {"size": 96}, 96),
        )
        for normal in ({"mean": [0.5] * 3, "std": [0.2] * 3},)
    ]
    name = trained(tmp_path / "run", "fused", parts=parts)
    found = export_detector(ExportSettings(detector=name, out=tmp_path / "d.onnx"))
    assert found.largest < 1e-5


@pytest.mark.parametrize("half", [False, True])
def test_torchscript_carries_all_it_needs(half: bool, tmp_path: Path) -> None:
    name = trained(tmp_path / "run", "lite", size=64)
    settings = ExportSettings(detector=name, to="torchscript", out=tmp_path / "d.pt", half=half)
    found = export_detector(settings)
    whole = (tmp_path / "run/model.safetensors").stat().st_size  # of fp16
    assert found.bytes < 1.3 * whole if half else found.bytes > 1.9 * whole
    judge = load_judge(str(found.path))
    assert isinstance(judge, ScriptJudge)
    told = dict(judge.config)
    assert told.pop("weights") == load_detector(name).weights
    assert told == load_detector(name).config
    photo = views(1, 64)[0]
    (one,), (other,) = (score_images(j, [photo]) for j in (judge, load_detector(name)))
    assert one.score == pytest.approx(other.score, abs=0.01 if half else 1e-6)


def test_torchscript_says_where(tmp_path: Path) -> None:
    name = trained(tmp_path / "run", "vit:test_vit", size=64, where_own=[1])
    settings = ExportSettings(detector=name, to="torchscript", out=tmp_path / "d.pt")
    judge, detector = load_judge(str(export_detector(settings).path)), Detector.load(name)
    pixels = views(2, 64)
    np.testing.assert_allclose(judge.logits(pixels), detector.logits(pixels), atol=1e-4)
    for mine, its in zip(judge.local_logits(pixels), detector.local_logits(pixels), strict=True):
        np.testing.assert_allclose(mine, its, atol=1e-4)


def test_openvino_gives_a_folder_that_check_takes(photo: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    name = trained(tmp_path / "run", "vit:test_vit", size=64, where_own=[2])
    out = tmp_path / "vino"
    found = export_detector(ExportSettings(detector=name, to="openvino", out=out))
    assert found.largest < 1e-4
    assert {path.name for path in out.iterdir()} == {"model.xml", "model.bin", "ganscope.json"}
    assert check_image(photo, str(out)).verdict == check_image(photo, name).verdict
    judge, pixels = load_judge(str(out)), views(2, 64)
    np.testing.assert_allclose(judge.local_logits(pixels)[1], judge.logits(pixels), atol=1e-4)
    again = ExportSettings(detector=name, to="openvino", out=out)
    export_detector(again)  # takes the place of its own kind
    (out / "letter.txt").write_text("mine")
    with pytest.raises(GanscopeError, match="is a folder already"):
        export_detector(again)
    assert (out / "letter.txt").exists()


def test_what_breaks_its_promise_is_not_kept(tmp_path: Path, monkeypatch: Any) -> None:
    name = trained(tmp_path / "run", "cnn", width=8, depth=3)
    broken = shrinking.to_half

    def worse(model: onnx.ModelProto) -> onnx.ModelProto:
        for one in model.graph.initializer:
            if one.name.endswith("head.weight"):
                value = numpy_helper.to_array(one) * 3 + 1
                one.CopyFrom(numpy_helper.from_array(value.astype(np.float32), one.name))
        return broken(model)

    monkeypatch.setattr(shrinking, "to_half", worse)
    out = tmp_path / "d.onnx"
    export_detector(ExportSettings(detector=name, out=out))
    before = out.read_bytes()
    with pytest.raises(GanscopeError, match=r"promised is 0\.01, so nothing was kept"):
        export_detector(ExportSettings(detector=name, out=out, half=True))
    assert out.read_bytes() == before
    with pytest.raises(GanscopeError, match="is exported already"):
        export_detector(ExportSettings(detector=str(out), out=tmp_path / "e.onnx"))
    for content in (b"another one's", before[: len(before) // 2]):
        out.write_bytes(content)
        with pytest.raises(
            GanscopeError, match="is there already, and no detector that was exported so"
        ):
            export_detector(ExportSettings(detector=name, out=out))
        assert out.read_bytes() == content
    with pytest.raises(GanscopeError, match="cut off, damaged or no ONNX file"):
        load_judge(str(out))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.onnx", "run"]


def test_scores_of_bytes_near_a_threshold_are_told(tmp_path: Path) -> None:
    name = trained(tmp_path / "run", "vit:test_vit", size=64)
    photo = np.kron(views(1, 8)[0], np.ones((12, 12, 1), np.uint8))
    for to, more, expected in (("int8", {"int8": True}, 1), ("float", {}, 0)):
        settings = ExportSettings(detector=name, out=tmp_path / f"{to}.onnx", tolerance=1.0, **more)
        judge = load_judge(str(export_detector(settings).path))
        score = check_image(photo, judge).score
        assert score is not None
        for moved, told in ((0.01, expected), (-0.45, 0)):
            judge.config["thresholds"] |= {"fake": score + moved + 0.01, "real": score + moved}
            found = check_image(photo, judge)
            assert sum("near a threshold" in said for said in found.warnings) == told


def test_mistaken_exports_are_said(tmp_path: Path) -> None:
    name = trained(tmp_path / "run", "cnn", width=8, depth=3)
    for wrong, said in (
        ({"to": "tflite"}, "--to must be one of"),
        ({"int8": True, "half": True}, "exclude each other"),
        ({"int8": True, "to": "torchscript"}, "takes --half"),
        ({"out": "d.pt"}, "--out must end in .onnx"),
        ({"out": tmp_path}, "is a folder; name a file in it that ends in .onnx"),
        ({"tolerance": 2.0}, "--tolerance must be between"),
    ):
        with pytest.raises(GanscopeError, match=said):
            ExportSettings(detector=name, **wrong)  # type: ignore[arg-type]
    with pytest.raises(GanscopeError, match="unknown detector"):
        export_detector(ExportSettings(detector="defualt"))
    (tmp_path / "empty").mkdir()
    settings = ExportSettings(
        detector=name, out=tmp_path / "e.onnx", sample=(str(tmp_path / "empty"),)
    )
    with pytest.raises(GanscopeError, match="no images in this folder"):
        export_detector(settings)
    assert not (tmp_path / "e.onnx").exists()
    (tmp_path / "text").write_text("no detector")
    with pytest.raises(GanscopeError, match="this file is no run folder"):
        load_judge(str(tmp_path / "text"))
    with pytest.raises(GanscopeError, match="no such file"):
        load_judge(str(tmp_path / "gone.onnx"))
    (tmp_path / "d.onnx").mkdir()
    with pytest.raises(GanscopeError, match="is a folder already"):
        export_detector(ExportSettings(detector=name, out=tmp_path / "d.onnx"))
    (tmp_path / "other.onnx").write_bytes(b"no graph")
    with pytest.raises(GanscopeError, match="export it again"):
        load_judge(str(tmp_path / "other.onnx"))
    onnx.save(small_graph(np.ones((4, 4), np.float32)), tmp_path / "foreign.onnx")
    with pytest.raises(GanscopeError, match="was not written by ganscope export"):
        load_judge(str(tmp_path / "foreign.onnx"))


def test_exported_files_judge_in_check(photo: Path, tmp_path: Path) -> None:
    name = trained(tmp_path / "run", "cnn", width=8, depth=3)
    command = [sys.executable, "-m", "ganscope"]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    sample = ["--sample", str(photo), "--sample", str(broken)]
    export = [*command, "export", name, "--out", "d.onnx", *sample, "--json"]
    done = subprocess.run(export, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["images"], found["changed"], found["left_out"]) == (1, [], [str(broken)])
    said = [
        one.as_dict() | {"detector": ""}
        for judge in (name, str(tmp_path / "d.onnx"))
        for one in check_images(CheckSettings(paths=(str(photo),), detector=judge, device="cpu"))
    ]
    assert said[0].pop("score") == pytest.approx(said[1].pop("score"), abs=1e-6)
    assert said[0].pop("probability") == pytest.approx(said[1].pop("probability"), abs=1e-6)
    faces = [[face.pop("score") for face in one["faces"]] for one in said]
    assert faces[0] == pytest.approx(faces[1], abs=1e-6)
    assert said[0] == said[1]
    with pytest.raises(GanscopeError, match="--runtime torch"):
        load_judge(str(tmp_path / "d.onnx"), "torch")


def small_graph(matrix: np.ndarray) -> onnx.ModelProto:
    """(N, T, K) -> layer norm -> @ matrix."""
    width = len(matrix)
    constants = {"m": matrix, "one": np.ones(width), "zero": np.zeros(width)}
    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node("LayerNormalization", ["x", "one", "zero"], ["n"], axis=-1),
                helper.make_node("MatMul", ["n", "m"], ["y"]),
            ],
            "small",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "T", width])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [
                numpy_helper.from_array(np.asarray(value, np.float32), name)
                for name, value in constants.items()
            ],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


@pytest.fixture
def matrix() -> np.ndarray:
    matrix = np.random.default_rng(1).normal(size=(512, 256)).astype(np.float32)
    matrix[7] /= 50  # what meets the large channel
    return matrix


def test_bytes_follow_each_token_and_even_out_channels(matrix: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 512)).astype(np.float32)
    x[..., 7] *= 50
    x[0, 0] *= 1000  # a token that a scale for all would let drown the others
    expected = run(small_graph(matrix), x)
    sizes = np.ones(512)
    sizes[7] = 50
    errors = []
    for known in (None, {"m": sizes}):
        model = shrinking.to_bytes(small_graph(matrix), known)
        assert "MatMulIntegerToFloat" in {node.op_type for node in model.graph.node}
        assert len(model.SerializeToString()) < matrix.nbytes / 3
        errors.append((run(model, x) - expected).std() / expected.std())
    assert errors[1] < 0.02
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("kind", ["bytes", "fp16", "own"])
def test_the_smallest_form_gives_the_same_numbers(kind: str, matrix: np.ndarray) -> None:
    if kind == "bytes":
        scale = np.abs(matrix).max(0) / 127
        matrix = np.round(matrix / scale).astype(np.float32) * scale
    if kind == "fp16":
        matrix = matrix.astype(np.float16).astype(np.float32)
    model = shrinking.to_smallest(small_graph(matrix))
    share = {"bytes": 0.3, "fp16": 0.55, "own": 1.1}[kind]
    assert share - 0.3 < len(model.SerializeToString()) / matrix.nbytes < share
    x = np.random.default_rng(0).normal(size=(2, 5, 512)).astype(np.float32)
    np.testing.assert_allclose(run(model, x), run(small_graph(matrix), x), atol=2e-4)


@pytest.mark.parametrize("number", [None, math.nan])
def test_an_export_without_a_number_is_not_kept(
    number: float | None, tmp_path: Path, monkeypatch: Any
) -> None:
    name = trained(tmp_path / "run", "cnn", width=8, depth=3)
    told: list[str] = []
    settings = ExportSettings(detector=name, out=tmp_path / "d.onnx")
    export_detector(settings, lambda what, *_: told.append(what))
    assert list(dict.fromkeys(told)) == ["writing", "comparing"]
    (tmp_path / "d.onnx").unlink()

    def worse(judge: Judge, *images: Any, **more: Any) -> Any:
        found = list(score_images(judge, *images, **more))
        if isinstance(judge, OnnxJudge):
            found[3].score = number
        return iter(found)

    monkeypatch.setattr(exporting, "score_images", worse)
    with pytest.raises(GanscopeError, match="gives no number for made picture 4, so nothing was"):
        export_detector(settings)
    assert not settings.out or not settings.out.exists()


def test_openvino_takes_no_file_for_a_folder(tmp_path: Path) -> None:
    (tmp_path / "vino").write_text("mine")
    settings = ExportSettings(detector="default", to="openvino", out=tmp_path / "vino")
    with pytest.raises(GanscopeError, match="is there already"):
        export_detector(settings)
    assert (tmp_path / "vino").read_text() == "mine"


def test_full_batches_are_shared_out_among_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one view alone has them all; of a file that was replaced nothing is loaded again."""
    monkeypatch.setattr(running, "_cores", lambda: 4)
    monkeypatch.setenv("GANSCOPE_CACHE", str(tmp_path / "c"))
    monkeypatch.chdir(tmp_path)
    judge = load_judge(trained(tmp_path / "cnn", "cnn"), "onnx", "cpu")
    assert isinstance(judge, OnnxJudge)
    pixels = views(8, judge.size)
    alone = np.concatenate([judge.logits(one[None]) for one in pixels])
    assert (judge.shares, len(alone)) == (1, 8)
    first = judge.session
    together = judge.logits(pixels)
    assert judge.session is not first
    assert judge.shares == 3
    np.testing.assert_allclose(together, alone, atol=1e-5)

    judge = load_judge(str(tmp_path / "cnn"), "onnx", "cpu")
    assert isinstance(judge, OnnxJudge)
    first = judge.session
    judge.path.write_bytes(b"another")
    np.testing.assert_allclose(judge.logits(pixels), alone, atol=1e-5)
    assert judge.session is first
