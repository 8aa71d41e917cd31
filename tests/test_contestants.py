"""Detectors from anywhere: functions, files of scores, ONNX files."""

import json
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from published.made_weights import tiny_ladeda, weights_of

from ganscope.detector.benchmark.contestants import View, open_scorer
from ganscope.detector.judging.heatmaps import heatmap
from ganscope.errors import GanscopeError

LIGHT = """
import cv2
from pathlib import Path

def one(path):
    return cv2.imread(path).mean() / 255

def many(paths: list[Path]):
    return [one(path) for path in paths]

def unsaid(paths):
    return [one(path) for path in paths]

def wrong(path: str):
    return None

def short(paths: list[str]):
    return [0.5]

def logit(path: str):
    return 7.0

def nan(path: str):
    return float("nan")

def breaks(path: str):
    raise RuntimeError("no such layer")
"""


@pytest.fixture
def views(tmp_path: Path) -> list[View]:
    found = []
    for number, level in enumerate((20, 120, 220)):
        pixels = np.full((40, 48, 3), level, np.uint8)
        path = str(tmp_path / f"{number}.png")
        cv2.imwrite(path, pixels)
        found.append(View(path, pixels, changed=False))
    return found


@pytest.fixture
def light(tmp_path: Path) -> str:
    (tmp_path / "light.py").write_text(LIGHT)
    return f"python:{tmp_path / 'light.py'}"


@pytest.mark.parametrize("function", ["one", "many", "unsaid"])
def test_a_function_is_asked_for_one_path_or_for_many(
    light: str, views: list[View], function: str
) -> None:
    scorer = open_scorer(f"{light}:{function}")
    expected = [20 / 255, 120 / 255, 220 / 255]
    assert scorer.values(views) == pytest.approx(expected)
    changed = View(views[0].path, np.full((8, 8, 3), 255, np.uint8), changed=True)
    assert scorer.values([changed, views[1]]) == pytest.approx([1.0, expected[1]])
    assert scorer.key != open_scorer(f"{light}:nan").key


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("wrong", "returned a NoneType, not a number"),
        ("short", "for 3 paths it returned 1 scores"),
        ("logit", "scores from 0"),
        ("breaks", r"RuntimeError: no such layer \(line 27 of light.py\)"),
    ],
)
def test_what_a_function_does_wrong_is_said(
    light: str, views: list[View], function: str, message: str
) -> None:
    with pytest.raises(GanscopeError, match=message):
        open_scorer(f"{light}:{function}").values(views)


def test_a_function_may_fail_on_an_image(light: str, views: list[View]) -> None:
    assert open_scorer(f"{light}:nan").values(views[:1]) == [
        "it gave no finite number for this image"
    ]


def test_scores_come_from_a_table(tmp_path: Path, views: list[View]) -> None:
    file = tmp_path / "scores.csv"
    paths = [views[0].path, "1.png"]  # as the file's folder sees it
    pd.DataFrame({"path": paths, "score": [0.25, 0.75]}).to_csv(file, index=False)
    scorer = open_scorer(f"scores:{file}")
    assert scorer.values(views) == [0.25, 0.75, "has no score in this file"]
    assert scorer.score(np.array([0.25])) == pytest.approx([0.25])
    assert scorer.untouched_only
    pd.DataFrame({"path": paths, "score": [-2.0, 3.0]}).to_parquet(tmp_path / "l.parquet")
    logits = open_scorer(f"scores:{tmp_path / 'l.parquet'}")
    assert logits.score(np.array(logits.values(views[:2]))) == pytest.approx(
        [1 / (1 + np.exp(2)), 1 / (1 + np.exp(-3))]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,score\na,1\n", "no column 'path'"),
        ("path,score\na,1\na,0\n", "a is listed twice"),
        ("path,score\na,1\nb,\n", "the score of b is nan, no number"),
        ("path,score\na,12\nb,98\n", "scores go from 12 to 98; write scores from 0"),
        ("path,score\na,-70\nb,98\n", "logits go from -70 to 98; beyond 30"),
        ("path,score\na,high\n", "the score of a is high, no number"),
    ],
)
def test_faults_of_a_table_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(GanscopeError, match=message):
        open_scorer(f"scores:{tmp_path / 's.csv'}")


@pytest.mark.parametrize("name", ["python:x.py:f", "scores:x.csv", "onnx:x.onnx", "python:x"])
def test_a_missing_file_is_said(name: str) -> None:
    with pytest.raises(GanscopeError, match=r"no such file|write python:FILE.py:FUNCTION"):
        open_scorer(name)


def test_names_of_several_corpora_are_found_unless_two_share_one(tmp_path: Path) -> None:
    file = tmp_path / "scores.csv"
    pd.DataFrame({"path": ["0/a.png", "0/b.png"], "score": [0.25, 0.75]}).to_csv(file, index=False)
    blank = np.zeros((8, 8, 3), np.uint8)
    views = [View(f"/c/{n}", blank, False, f"/c/{n}") for n in ("0/a.png", "0/b.png", "0/c.png")]
    scorer = open_scorer(f"scores:{file}")
    assert scorer.values(views) == [0.25, 0.75, "has no score in this file"]
    with pytest.raises(GanscopeError, match=r"0/a.png is the name of two images; write paths"):
        scorer.values([View("/d/0/a.png", blank, False, "/d/0/a.png")])


def test_an_onnx_file_judges_tiles(tmp_path: Path, views: list[View]) -> None:
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=0),
            helper.make_node("Sub", ["m", "half"], ["d"]),
            helper.make_node("Mul", ["d", "eight"], ["y"]),
        ],
        "light",
        [helper.make_tensor_value_info("x", 1, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("y", 1, ["n"])],
        [
            helper.make_tensor("axes", 7, [3], [1, 2, 3]),
            helper.make_tensor("half", 1, [], [0.5]),
            helper.make_tensor("eight", 1, [], [8.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    file = tmp_path / "light.onnx"
    onnx.save(model, str(file))
    scorer = open_scorer(f"onnx:{file}")
    expected = [8 * (view.pixels.mean() / 255 - 0.5) for view in views]
    assert scorer.values(views) == pytest.approx(expected, abs=1e-4)
    before = scorer.key
    said = {"input": {"mean": [0.5, 0.5, 0.5]}, "thresholds": {"fake": 0.9}}
    (tmp_path / "light.json").write_text(json.dumps(said))
    scorer = open_scorer(f"onnx:{file}")
    assert scorer.values(views) == pytest.approx([e - 4 for e in expected], abs=1e-4)
    assert scorer.threshold == 0.9
    assert scorer.key != before
    # It has no parameters of its own, and mistakes of it are drawn all the same.
    assert heatmap(scorer.network, views[0].pixels).shape == (40, 48)
    # What exporters put beside the graph counts as its weights.
    (tmp_path / "light.onnx.data").write_bytes(b"weights")
    assert open_scorer(f"onnx:{file}").key != scorer.key
    for wrong, message in (
        ({"thresholds": {"fake": "0.7"}}, r"light.json: thresholds: fake is '0.7', no number"),
        ({"thresholds": {"fake": 0.3}}, r"light.json: thresholds: real is 0.5, above fake"),
        ({"thresholds": [0.7]}, r"light.json: thresholds is \[0.7\], no object"),
        ({"input": {"mean": [0.5]}}, r"light.json: "),
    ):
        (tmp_path / "light.json").write_text(json.dumps(wrong))
        with pytest.raises(GanscopeError, match=message):
            open_scorer(f"onnx:{file}")
    file.write_bytes(b"no graph")
    with pytest.raises(GanscopeError, match=r"onnx:.*light.onnx"):
        open_scorer(f"onnx:{file}")


def test_a_published_detector_takes_its_weights_from_a_file(
    tmp_path: Path, views: list[View]
) -> None:
    state = weights_of(tiny_ladeda())
    torch.save(state, tmp_path / "tiny.pth")
    scorer = open_scorer(f"tiny-ladeda:{tmp_path / 'tiny.pth'}", device="cpu")
    values = scorer.values(views)
    assert np.isfinite(np.array(values, float)).all()
    assert scorer.values(views[::-1]) == pytest.approx(values[::-1], abs=1e-4)
    assert scorer.score(np.array([0.0])) == pytest.approx([0.5])
    assert not scorer.untouched_only
    torch.save({key.replace("fc.", "head."): v for key, v in state.items()}, tmp_path / "w.pth")
    with pytest.raises(GanscopeError, match=r"w\.pth.*fc\.") as error:
        open_scorer(f"tiny-ladeda:{tmp_path / 'w.pth'}")
    assert "\n" not in str(error.value)
    with pytest.raises(GanscopeError, match=r"none\.pth"):
        open_scorer(f"npr:{tmp_path / 'none.pth'}")


def test_two_files_import_each_its_own_neighbour(
    tmp_path: Path, views: list[View], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("a", 0.25), ("b", 0.75)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "neighbour_of_run.py").write_text(f"VALUE = {value}")
        code = "from neighbour_of_run import VALUE\ndef f(path: str):\n    return VALUE"
        (tmp_path / name / "run.py").write_text(code)
    # What lies deeper, as an environment's packages do, is nobody's neighbour.
    deep = ModuleType("deep_module")
    deep.__file__ = str(tmp_path / "a" / ".venv" / "deep_module.py")
    monkeypatch.setitem(sys.modules, "deep_module", deep)
    for _ in range(2):  # and again, the other way round
        one, two = (open_scorer(f"python:{tmp_path}/{name}/run.py:f") for name in "ab")
        assert (one.values(views[:1]), two.values(views[:1])) == ([0.25], [0.75])
    assert sys.modules["deep_module"] is deep


def test_a_file_that_reads_the_command_line_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("import sys\nsys.exit(2)")
    with pytest.raises(GanscopeError, match=r"main\.py cannot be run: SystemExit"):
        open_scorer(f"python:{tmp_path}/main.py:f")


def test_an_onnx_files_output_has_one_of_two_names(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"")
    (tmp_path / "x.json").write_text('{"output": "probabilities"}')
    with pytest.raises(GanscopeError, match="output is 'probabilities'; write"):
        open_scorer(f"onnx:{tmp_path}/x.onnx")


def test_what_a_function_may_return(tmp_path: Path, views: list[View]) -> None:
    code = """
import sys
def some(paths: list[str]):
    return (0.25 for _ in paths)
def text(path: str):
    return "0.7"
def leaves(path: str):
    sys.exit(7)
"""
    (tmp_path / "mine.py").write_text(code)
    scorer = open_scorer(f"python:{tmp_path}/mine.py:some")
    assert scorer.values(views) == [0.25] * 3
    with pytest.raises(GanscopeError, match="it returned a str, not a number"):
        open_scorer(f"python:{tmp_path}/mine.py:text").values(views)
    with pytest.raises(GanscopeError, match=r"it raised SystemExit: 7 \(line 8"):
        open_scorer(f"python:{tmp_path}/mine.py:leaves").values(views)


def test_an_image_with_two_scores_under_two_paths(tmp_path: Path, views: list[View]) -> None:
    (tmp_path / "s.csv").write_text(f"path,score\n{views[0].path},0.5\nother/0.png,0.9\n")
    view = View(views[0].path, views[0].pixels, changed=False, name="other/0.png")
    with pytest.raises(GanscopeError, match=r"other/0\.png is listed twice, under two paths"):
        open_scorer(f"scores:{tmp_path}/s.csv").values([view])


def test_a_mistyped_kind_of_detector_is_told(tmp_path: Path) -> None:
    for name, said in (
        ("nrp:weights.pth", "unknown kind of detector 'nrp'; did you mean 'npr'"),
        ("safe:", "name a file behind safe:"),
        ("python:\udcff.py:f", "this name is no UTF-8"),
    ):
        with pytest.raises(GanscopeError, match=said):
            open_scorer(name)
