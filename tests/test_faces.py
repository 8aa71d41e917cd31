"""Faces: found, looked at by themselves, and what they make of a picture's verdict."""

import csv
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from ganscope import faces as finding
from ganscope.cli.check import show_checks
from ganscope.config import CheckSettings
from ganscope.detector.judge import Judge
from ganscope.detector.judging import checking
from ganscope.detector.judging.checking import Check, check_each, check_image, check_images
from ganscope.detector.judging.faces import MOST, FaceCheck, FaceViews, around, told_by_faces
from ganscope.detector.judging.heatmaps import FRAMES, overlay
from ganscope.detector.judging.scoring import score_images
from ganscope.detector.judging.videos import FrameCheck
from ganscope.detector.model import Detector
from ganscope.detector.networks.face_head import FaceHead
from ganscope.errors import GanscopeError
from ganscope.faces import Face, Finder, open_finder
from ganscope.videos import Frame

FACE = (176, 66, 272, 175)
"""Where the astronaut's is."""
EYES, MOUTH = ((202, 100), (246, 103)), (223, 145)


@pytest.fixture(params=["mesh", "cascades"])
def finder(request: pytest.FixtureRequest) -> Finder:
    try:
        return open_finder(request.param)
    except GanscopeError as error:
        pytest.skip(str(error))


def test_threads_find_at_once_what_one_finds(finder: Finder, astronaut: np.ndarray) -> None:
    spare = next(v for v in vars(finder).values() if isinstance(v, finding._Spare))
    with spare.one() as one, spare.one() as other:  # neither waits for the other
        assert one is not other
    parts = [np.ascontiguousarray(astronaut[:300, x : x + 300]) for x in (0, 40, 80, 120)]
    alone = [finder.find(part) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(finder.find, parts * 2))
    assert any(alone)
    for found, expected in zip(together, alone * 2, strict=True):
        assert [face.box for face in found] == [face.box for face in expected]


class Reddish(Judge):
    """Calls fake what has many pixels of the purest red."""

    name, on_cpu, has_map, has_places, has_gradients = "reddish", True, False, False, False  # type: ignore[assignment]

    def __init__(self, views: bool):
        self.config = {
            "architecture": "reddish",
            "input": {"size": 64, "smallest": 64},
            "calibration": {"scale": 1.0, "shift": 0.0},
            "thresholds": {"fake": 0.9, "real": 0.3},
        }
        if views:
            self.config["input"]["views"] = {"whole": 80, "settled": -2.0}
        self.batches: list[int] = []

    def prepare(self, device: str = "auto") -> None:
        pass

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        self.batches.append(len(pixels))
        red = (pixels == (255, 0, 0)).all(-1).mean((1, 2))
        return np.where(red > 0.03, 30, -4).astype(np.float32)

    def local_logits(self, pixels: np.ndarray) -> Any:
        raise NotImplementedError


@pytest.fixture(params=[True, False], ids=["views", "tiles"])
def judge(request: pytest.FixtureRequest) -> Reddish:
    return Reddish(request.param)


@pytest.fixture
def portrait(astronaut: np.ndarray) -> np.ndarray:
    """The astronaut in the corner of a larger photograph: (1100, 1200, 3)."""
    whole = np.random.default_rng(0).integers(90, 130, (1100, 1200, 3), dtype=np.uint8)
    whole[80:592, 100:612] = astronaut
    return whole


def swapped(pixels: np.ndarray, finder: Finder) -> np.ndarray:
    """The first face's chin and neck painted red, which leaves it a face to both finders."""
    (face, *_) = finder.find(pixels)
    left, _, right, bottom = face.box
    changed = pixels.copy()
    changed[bottom - face.height // 5 : bottom + face.height // 3, left:right] = (255, 0, 0)
    return changed


def overlap(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """Intersection over union."""
    wide = max(min(one[2], other[2]) - max(one[0], other[0]), 0)
    high = max(min(one[3], other[3]) - max(one[1], other[1]), 0)
    areas = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other))
    return wide * high / (areas - wide * high)


def test_a_face_is_found_with_its_points(finder: Finder, astronaut: np.ndarray) -> None:
    (face,) = finder.find(astronaut)
    assert overlap(face.box, FACE) > 0.75
    if finder.name == "cascades":  # which say yes or no
        assert face.confidence is None
    else:
        assert face.confidence is not None
        assert 0.5 < face.confidence <= 1
    points = face.landmarks
    assert points is not None
    assert (points.shape, points.dtype) == ((68, 2), np.float32)
    for part, place in ((points[36:42], EYES[0]), (points[42:48], EYES[1]), (points[48:], MOUTH)):
        assert np.hypot(*(part.mean(0) - place)) < 9
    chin, brow, ears = points[8], points[17:27].mean(0), points[[0, 16]]
    assert chin[1] > points[57, 1] > points[33, 1] > brow[1]
    assert ears[0, 0] < points[36, 0] < points[45, 0] < ears[1, 0]


def test_a_grey_and_a_mirrored_face_are_found(finder: Finder, astronaut: np.ndarray) -> None:
    grey = np.repeat(cv2.cvtColor(astronaut, cv2.COLOR_RGB2GRAY)[..., None], 3, -1)
    (face,) = finder.find(grey)
    assert overlap(face.box, FACE) > 0.7
    (face,) = finder.find(astronaut[:, ::-1])
    assert overlap(face.box, (512 - FACE[2], FACE[1], 512 - FACE[0], FACE[3])) > 0.7


def test_faces_come_largest_first(finder: Finder, astronaut: np.ndarray) -> None:
    whole = np.full((700, 900, 3), 120, np.uint8)
    whole[90:602, 360:872] = astronaut
    whole[100:356, 30:286] = cv2.resize(astronaut, (256, 256), interpolation=cv2.INTER_AREA)
    found = finder.find(whole)
    sizes = [face.width * face.height for face in found]
    assert sizes == sorted(sizes, reverse=True)
    assert overlap(found[0].box, (536, 156, 632, 265)) > 0.6
    if finder.name == "mesh":
        assert len(found) == 2


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 3000), (3000, 1), (11, 300), (24, 24), (30, 2500), (640, 13), (23, 23)]
)
@pytest.mark.parametrize("what", ["black", "noise"])
def test_no_shape_is_too_odd(finder: Finder, shape: tuple[int, int], what: str) -> None:
    pixels = np.zeros((*shape, 3), np.uint8)
    if what == "noise":
        pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for face in finder.find(pixels):
        left, top, right, bottom = face.box
        assert 0 <= left < right <= shape[1]
        assert 0 <= top < bottom <= shape[0]


def test_boxes_stay_within_the_picture(finder: Finder, astronaut: np.ndarray) -> None:
    """Cut ever closer, through the forehead, the cheek and the chin."""
    for cut in (astronaut[80:], astronaut[:, 200:], astronaut[:160], astronaut[:, :250]):
        cut = np.ascontiguousarray(cut)
        for face in finder.find(cut):
            assert min(face.box) >= 0
            assert face.box[2] <= cut.shape[1]
            assert face.box[3] <= cut.shape[0]


def test_without_the_extra_cascades_find(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding.importlib.util, "find_spec", lambda name: None)
    assert open_finder().name == "cascades"
    with pytest.raises(GanscopeError, match=r"ganscope\[faces\]"):
        open_finder("mesh")
    with pytest.raises(GanscopeError, match="cascades"):
        open_finder("cascade")


@pytest.mark.parametrize("times", [1.0, 2.0, 9.0])
def test_squares_stay_square_and_inside(times: float) -> None:
    for box in ((0, 0, 40, 50), (260, 150, 300, 200), (100, 60, 180, 190), (0, 0, 300, 200)):
        top, left, bottom, right = around(Face(box, 1.0), 200, 300, times)
        assert (
            bottom - top
            == right - left
            == min(round(times * max(box[2] - box[0], box[3] - box[1])), 200)
        )
        assert top >= 0 <= left
        assert bottom <= 200
        assert right <= 300
    inner = around(Face((140, 80, 160, 100), 1.0), 200, 300, 2.0)
    assert inner == (70, 130, 110, 170)


def test_a_face_makes_a_real_photograph_unsure(
    judge: Reddish, finder: Finder, portrait: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "open_finder", lambda: finder)
    for pixels, expected in ((portrait, "real"), (swapped(portrait, finder), "unsure")):
        plain = check_image(pixels, judge, reencode=False, faces=False)
        assert (plain.verdict, plain.decided_by, plain.faces) == ("real", "picture", None)
        found = check_image(pixels, judge, reencode=False)
        assert found.verdict == found.pixels_verdict == expected
        assert found.score == plain.score  # the whole picture's, as ever
        assert found.faces is not None
        (face,) = found.faces
        assert overlap(face.box, tuple(np.add(FACE, (100, 80, 100, 80)))) > 0.5
        assert face.verdict == ("real" if expected == "real" else "fake")
        assert found.decided_by == ("picture" if expected == "real" else "face")
        if expected == "unsure":
            assert "a face looks generated" in " ".join(found.warnings)
            assert "a face looks generated" in (found.meaning or "")
            assert f"{face.box[0]},{face.box[1]}" in " ".join(found.warnings)


def test_without_faces_nothing_changes(judge: Reddish, finder: Finder) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (400, 500, 3), dtype=np.uint8)
    ((plain, _),) = check_each(judge, [pixels])
    batches, judge.batches = judge.batches, []
    ((found, _),) = check_each(judge, [pixels], finder=finder)
    assert judge.batches == batches
    assert found.faces == ()
    assert plain.faces is None
    without = {**plain.as_dict(), "faces": []}
    assert found.as_dict() == without


def test_faces_share_batches_and_keep_their_order(
    judge: Reddish, finder: Finder, portrait: np.ndarray
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    pictures = [portrait, noise, swapped(portrait, finder), noise, portrait]
    alone = [next(score_images(judge, [one], finder=finder)) for one in pictures]
    for size in (1, 3, 64):
        together = list(score_images(judge, pictures, batch_size=size, finder=finder))
        for one, other in zip(together, alone, strict=True):
            assert one.logit == pytest.approx(other.logit)
            assert one.faces is not None
            logits = [face.logit() for face in one.faces]
            assert logits == pytest.approx([face.logit() for face in other.faces or ()])
    assert [len(one.faces or ()) for one in alone] == [1, 0, 1, 0, 1]


def test_of_thirty_faces_the_largest_are_looked_at(
    judge: Reddish, finder: Finder, astronaut: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "open_finder", lambda: finder)
    head = astronaut[30:210, 130:310]
    crowd = np.tile(head, (5, 6, 1))
    found = check_image(crowd, judge, reencode=False)
    assert found.faces is not None
    assert len(found.faces) == MOST
    assert any(f"the {MOST} largest looked at" in said for said in found.warnings)
    if finder.name == "mesh":
        assert any(said.startswith("30 faces") for said in found.warnings)


def test_small_faces_are_found_but_not_judged(
    judge: Reddish, astronaut: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Placed:
        name = "placed"

        def find(self, pixels: np.ndarray) -> list[Face]:
            return [Face((100, 100, 160, 170), 0.9), Face((10, 10, 21, 22), 0.7)]

    monkeypatch.setattr(checking, "open_finder", Placed)
    found = check_image(astronaut, judge, reencode=False)
    assert found.faces is not None
    large, small = found.faces
    assert large.verdict == "real"
    assert (small.score, small.verdict) == (None, None)
    assert "too small" in small.warnings[0]
    assert "1 face is too small to judge" in found.warnings
    assert found.decided_by == "picture"


@pytest.mark.parametrize("name", ["drawn", "flat", "strip", "tiny", "coins"])
def test_what_is_hardly_a_photograph_is_no_crash(
    judge: Reddish, finder: Finder, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import skimage.data

    monkeypatch.setattr(checking, "open_finder", lambda: finder)
    drawn = np.full((300, 300, 3), 255, np.uint8)
    cv2.circle(drawn, (150, 150), 100, (240, 200, 170), -1)
    for x in (115, 185):
        cv2.circle(drawn, (x, 125), 14, (0, 0, 0), -1)
    cv2.ellipse(drawn, (150, 190), (45, 20), 0, 0, 180, (160, 20, 20), -1)
    pixels = {
        "drawn": drawn,
        "flat": np.full((200, 200, 3), 9, np.uint8),
        "strip": np.tile(skimage.data.astronaut()[60:180, 150:300], (1, 12, 1)),
        "tiny": skimage.data.astronaut()[66:86, 176:190],
        "coins": np.repeat(skimage.data.coins()[..., None], 3, -1),
    }[name]
    found = check_image(pixels, judge, reencode=False)
    assert found.verdict in ("real", "unsure")
    json.dumps(found.as_dict(), allow_nan=False)


def test_rows_and_overlay_have_the_faces(
    portrait: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    judge, finder = Reddish(views=True), open_finder()
    monkeypatch.setattr(checking, "load_judge", lambda *_: judge)
    cv2.imwrite(str(tmp_path / "swapped.png"), swapped(portrait, finder)[..., ::-1])
    settings = CheckSettings(
        paths=(str(tmp_path / "swapped.png"),),
        csv=tmp_path / "out.csv",
        heatmap=tmp_path / "maps",
        heatmap_method="tiles",
    )
    (found,) = check_images(settings)
    assert found.verdict == "unsure"
    record = json.loads(json.dumps(found.as_dict()))
    assert Check.from_dict(record) == found
    (face,) = record["faces"]
    assert set(face) == {
        *("box", "confidence", "score", "verdict", "warnings"),
        *("swap_score", "swap_threshold", "swapped"),
    }
    (row,) = csv.DictReader((tmp_path / "out.csv").open(encoding="utf-8"))
    assert (row["decided_by"], json.loads(row["faces"])) == ("face", record["faces"])
    drawn = cv2.imread(str(found.heatmap))[..., ::-1]
    left, top = face["box"][:2]
    edge = drawn[top + 30 : top + 50, left].reshape(-1, 3).astype(int)
    assert np.abs(edge - FRAMES["fake"]).max() <= 2
    show_checks([found])
    assert found.faces is not None
    assert found.faces[0].place in capsys.readouterr().out
    (spared,) = check_images(CheckSettings(paths=settings.paths, faces=False))
    assert (spared.verdict, spared.faces) == ("real", None)


class Purple(Reddish):
    """Calls nothing fake, and every face swapped whose square is purely red in part."""

    face_head = FaceHead(np.zeros(7, np.float32), 0.0, 0, 1.4, 0.9, {})  # type: ignore[assignment]

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        return np.full(len(pixels), -4, np.float32)

    def face_logits(self, pixels: np.ndarray) -> np.ndarray:
        assert pixels.shape[1:] == (64, 64, 3)
        return super().logits(pixels)


def test_a_swapped_face_makes_a_real_picture_unsure(portrait: np.ndarray) -> None:
    judge, finder = Purple(views=True), open_finder()
    honest = check_image(portrait, judge)
    assert honest.faces is not None
    assert (honest.verdict, honest.decided_by) == ("real", "picture")
    assert (honest.faces[0].swapped, honest.faces[0].swap_score) == (
        False,
        pytest.approx(0.018, abs=1e-3),
    )
    found = check_image(swapped(portrait, finder), judge)
    assert found.faces is not None
    assert (found.verdict, found.decided_by) == ("unsure", "face")
    assert (found.faces[0].swapped, found.faces[0].verdict) == (True, "fake")
    assert found.faces[0].swap_threshold == judge.face_head.threshold
    assert any("a face looks swapped (score 1.000" in said for said in found.warnings)
    assert Check.from_dict(json.loads(json.dumps(found.as_dict()))) == found


def test_boxes_are_drawn_where_the_faces_are() -> None:
    pixels = np.full((600, 400, 3), 100, np.uint8)
    face = FaceCheck(box=(0, 0, 400, 600), confidence=1.0, score=None, verdict=None)
    for faces in ([face], [face] * 3):  # at the very border, without a score
        shown = overlay(pixels, np.zeros((600, 400), np.float32), faces=faces)
        assert (shown[300, 0] == 200).all()


def test_faces_make_nothing_fake_and_nothing_real() -> None:
    def face(verdict: str | None, score: float | None) -> FaceCheck:
        return FaceCheck(box=(0, 0, 90, 90), confidence=1.0, score=score, verdict=verdict)

    fake, real, none = face("fake", 0.95), face("real", 0.1), face(None, None)
    assert told_by_faces([fake, real], 2, "real").verdict == "unsure"
    assert told_by_faces([fake], 1, "unsure").verdict == "unsure"
    assert told_by_faces([real], 1, "unsure").verdict == "unsure"
    assert told_by_faces([real], 1, "fake").verdict == "fake"
    assert told_by_faces([none], 1, "real").verdict == "real"
    assert "2 faces look generated" in told_by_faces([fake, fake], 2, "real").meaning


def test_frames_keep_their_faces() -> None:
    face = FaceCheck(box=(1, 2, 90, 95), confidence=0.8, score=0.4, verdict="unsure")
    for faces in (None, (), (face,)):
        frame = FrameCheck(
            time=0.5,
            since=0.0,
            until=1.0,
            scene=0,
            score=0.2,
            verdict="real",
            probability=0.2,
            warnings=("dark",),
            faces=faces,
        )
        assert FrameCheck.from_dict(json.loads(json.dumps(frame.as_dict()))) == frame


def test_exported_detectors_say_the_same_of_faces(portrait: np.ndarray, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    import torch

    from ganscope.config import ExportSettings
    from ganscope.detector.exported.running import open_exported
    from ganscope.detector.judging.exporting import export_detector

    torch.manual_seed(0)
    Detector.create("cnn", width=8, depth=3).eval().save(tmp_path / "cnn")
    export_detector(ExportSettings(detector=str(tmp_path / "cnn"), out=tmp_path / "cnn.onnx"))
    exported, finder = open_exported(str(tmp_path / "cnn.onnx")), open_finder()
    assert exported is not None
    detector = Detector.load(tmp_path / "cnn")
    ((expected, _),) = check_each(detector, [portrait], device="cpu", finder=finder)
    ((found, _),) = check_each(exported, [portrait], device="cpu", finder=finder)
    assert expected.faces
    assert [f.box for f in found.faces or ()] == [f.box for f in expected.faces]
    scores = [face.score for face in expected.faces]
    assert [face.score for face in found.faces or ()] == pytest.approx(scores, abs=1e-4)


def test_a_face_that_gives_no_number_is_no_verdict() -> None:
    views = FaceViews(Face((0, 0, 90, 90), 1.0), np.zeros((1, 64, 64, 3), np.uint8), np.ones(1))
    views.tile_logits = np.array([np.nan], np.float32)
    from ganscope.detector.judging.faces import judge_faces

    (face,) = judge_faces(Reddish(views=True), [views])
    assert (face.score, face.verdict) == (None, None)
    views.swap_logit = float("nan")
    (face,) = judge_faces(Purple(views=True), [views])
    assert (face.swap_score, face.swapped, face.verdict) == (None, False, None)


@pytest.fixture
def of_faces(tmp_path: Path) -> Path:
    """A detector, not trained, that looks at faces and at nothing else."""
    import torch

    torch.manual_seed(0)
    detector = Detector.create("timm:test_efficientnet", size=64, where=True).eval()
    detector.config["input"] |= {"looks_at": "faces", "margin": 1.4, "smallest": 32}
    detector.save(tmp_path / "of-faces")
    return tmp_path / "of-faces"


@pytest.fixture
def gallery(tmp_path: Path, astronaut: np.ndarray) -> Path:
    """A real and a fake with a face, and as many without."""
    rng = np.random.default_rng(0)
    for label, folder in enumerate(("0_real", "1_fake")):
        (tmp_path / "gallery" / folder).mkdir(parents=True)
        face = np.clip(astronaut.astype(int) + label, 0, 255)
        for name, pixels in (("face", face), ("none", rng.integers(90, 130, (300, 300, 3)))):
            path = tmp_path / "gallery" / folder / f"{name}.png"
            cv2.imwrite(str(path), pixels.astype(np.uint8)[..., ::-1])
    return tmp_path / "gallery"


def test_a_detector_of_faces_is_exported(
    of_faces: Path, gallery: Path, astronaut: np.ndarray, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from ganscope.config import ExportSettings
    from ganscope.detector.exported.running import open_exported
    from ganscope.detector.judging.exporting import export_detector
    from ganscope.detector.judging.heatmaps import heatmap

    out = tmp_path / "faces.onnx"
    exported = export_detector(ExportSettings(detector=str(of_faces), out=out))
    assert exported.images == 8
    judge = open_exported(str(out))
    assert judge is not None
    detector = Detector.load(of_faces)
    ((expected, _),) = check_each(detector, [astronaut], device="cpu")
    ((found, _),) = check_each(judge, [astronaut], device="cpu")
    assert expected.decided_by == found.decided_by == "face"
    assert found.score == pytest.approx(expected.score, abs=1e-4)
    assert np.abs(heatmap(judge, astronaut) - heatmap(detector, astronaut)).max() < 1e-3
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "none.png").write_bytes((gallery / "0_real" / "none.png").read_bytes())
    with pytest.raises(GanscopeError, match="looks at faces, and none are found"):
        export_detector(
            ExportSettings(detector=str(of_faces), out=tmp_path / "x.onnx", sample=(bare,))
        )


def test_a_video_of_nobody_says_why_nothing_can_be_said(of_faces: Path) -> None:
    from ganscope.detector.judging.videos import summarise

    ((check, _),) = check_each(
        Detector.load(of_faces), [np.zeros((200, 200, 3), np.uint8)], device="cpu"
    )
    shown = Frame(time=0, since=0, until=1, scene=0, pixels=np.zeros((2, 2, 3), np.uint8))
    frame = checking._of_frame(shown, check)
    told = summarise([frame], Detector.load(of_faces))
    assert (told.score, told.verdict) == (None, "unsure")
    assert "looks at faces alone" in told.meaning


def test_a_detector_of_faces_in_a_benchmark(
    of_faces: Path, gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ganscope.config import BenchmarkSettings
    from ganscope.detector.benchmark.benchmark import benchmark_detectors
    from ganscope.detector.benchmark.contestants import open_scorer

    monkeypatch.setenv("GANSCOPE_CACHE", str(tmp_path / "kept"))
    results = benchmark_detectors(
        BenchmarkSettings(
            corpora=(gallery,),
            out=tmp_path / "out",
            detector=(str(of_faces),),
            protocol="raw",
            bootstrap=0,
            device="cpu",
        )
    )
    assert (results["n_real"] == 1).all()
    assert not results.attrs["missing"]  # nothing is wrong with pictures of nobody
    said = f"2 of 4 images: no face was found that is large enough, .* the figures of {of_faces}"
    assert any(re.search(said, note) for note in results.attrs["notes"])
    keys = set()
    for name in ("mesh", "cascades"):  # what is kept is of the finder that found the faces

        def opened(name: str = name) -> Any:
            return SimpleNamespace(name=name)

        monkeypatch.setattr("ganscope.detector.benchmark.contestants.open_finder", opened)
        keys.add(open_scorer(str(of_faces)).key)
    assert len(keys) == 2
