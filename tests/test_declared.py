"""What files declare beside what pixels look like: in check, in heatmaps, and in corpora."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, PngImagePlugin
from typer.testing import CliRunner

from ganscope.cli import app
from ganscope.config import AuditSettings, BenchmarkSettings, CheckSettings, TrainDetectorSettings
from ganscope.datasets.audit import audit_corpus
from ganscope.datasets.corpus import open_corpus
from ganscope.datasets.declared import find_declared, remark_on_declared
from ganscope.detector.benchmark.benchmark import benchmark_detectors
from ganscope.detector.judging.checking import FIELDS, check_image, check_images
from ganscope.detector.judging.heatmaps import overlay
from ganscope.detector.model import Detector
from ganscope.detector.training.run import split_table
from ganscope.errors import GanscopeError

WEBUI = "a cat\nSteps: 20, Sampler: Euler a, Seed: 7, Model: dream"


@pytest.fixture(scope="module")
def sure(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    """A detector that calls everything real."""
    torch.manual_seed(0)
    detector = Detector.create("cnn", width=8, depth=3).eval()
    detector.config["thresholds"] = {"fake": 1.1, "real": 1.05, "fpr_1": 1.1, "fpr_5": 1.1}
    detector.save(tmp_path_factory.mktemp("detector") / "sure")
    return detector


def save(pixels: np.ndarray, path: Path, text: str = "", source_type: str = "") -> Path:
    info = PngImagePlugin.PngInfo()
    if text:
        info.add_text("parameters", text)
    if source_type:
        info.add_itxt(
            "XML:com.adobe.xmp",
            '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
            '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
            '<rdf:Description xmlns:i="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
            f'i:DigitalSourceType="{source_type}"/></rdf:RDF></x:xmpmeta>',
        )
    Image.fromarray(pixels).save(path, pnginfo=info)
    return path


def camera(pixels: np.ndarray, path: Path) -> Path:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Canon", "EOS R5"
    exif.get_ifd(0x8769)[0x829A] = 0.01
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def test_a_declaration_makes_fake_and_never_moves_the_score(
    sure: Detector, astronaut: np.ndarray, tmp_path: Path
) -> None:
    plain = check_image(save(astronaut, tmp_path / "plain.png"), sure, device="cpu")
    made = check_image(save(astronaut, tmp_path / "made.png", WEBUI), sure, device="cpu")
    assert (plain.verdict, plain.pixels_verdict, plain.declared) == ("real", "real", "nothing said")
    assert (made.verdict, made.pixels_verdict, made.declared) == ("fake", "real", "generated")
    assert made.score == plain.score
    assert made.probability == plain.probability
    assert (made.meaning or "").startswith("the file says so: PNG text parameters")
    assert "its pixels alone: real" in (made.meaning or "")
    assert (made.declared_model, made.declared_seed, made.declared_prompt) == (
        "dream",
        "7",
        "a cat",
    )
    assert made.declared_trust == "plain text that anybody can write"
    only = check_image(tmp_path / "made.png", sure, device="cpu", pixels_only=True)
    assert (only.verdict, only.declared) == ("real", "generated")


def test_a_camera_never_makes_real_and_an_edit_makes_unsure(
    sure: Detector, astronaut: np.ndarray, tmp_path: Path
) -> None:
    word = "compositeWithTrainedAlgorithmicMedia"
    edited = save(astronaut, tmp_path / "edited.png", source_type=word)
    found = check_image(edited, sure, device="cpu")
    assert (found.verdict, found.pixels_verdict, found.declared) == (
        "unsure",
        "real",
        "edited with AI",
    )
    assert any("edited with AI" in remark for remark in found.warnings)
    assert check_image(edited, sure, device="cpu", pixels_only=True).verdict == "real"
    strict = Detector.create("cnn", width=8, depth=3).eval()
    strict.config["thresholds"] = {"fake": 0.0, "real": 0.0, "fpr_1": 0.0, "fpr_5": 0.0}
    photo = check_image(camera(astronaut, tmp_path / "photo.jpg"), strict, device="cpu")
    assert (photo.verdict, photo.declared) == ("fake", "captured by a camera")


def test_a_declaration_holds_where_pixels_say_nothing(sure: Detector, tmp_path: Path) -> None:
    flat = save(np.full((96, 96, 3), 90, np.uint8), tmp_path / "flat.png", WEBUI)
    found = check_image(flat, sure, device="cpu")
    assert (found.verdict, found.pixels_verdict) == ("fake", "unsure")
    assert not any("so unsure" in remark for remark in found.warnings)


def test_pixels_that_come_without_a_file_say_nothing(sure: Detector, astronaut: np.ndarray) -> None:
    found = check_image(astronaut, sure, device="cpu")
    assert (found.declared, found.verdict) == ("nothing said", "real")


def test_csv_and_json_have_the_fields(
    sure: Detector, astronaut: np.ndarray, tmp_path: Path
) -> None:
    sure.save(tmp_path / "sure")
    made = save(astronaut, tmp_path / "made.png", WEBUI)
    settings = CheckSettings(
        paths=(str(made),),
        detector=str(tmp_path / "sure"),
        csv=tmp_path / "out.csv",
        heatmap=tmp_path / "heat",
        device="cpu",
    )
    (found,) = check_images(settings)
    (row,) = csv.DictReader((tmp_path / "out.csv").open(encoding="utf-8"))
    assert list(row) == list(FIELDS) == list(found.as_dict())
    assert (row["declared"], row["declared_seed"], row["pixels_verdict"]) == (
        "generated",
        "7",
        "real",
    )
    assert json.loads(json.dumps(found.as_dict()))["declared_prompt"] == "a cat"
    drawn = cv2.imread(str(found.heatmap))
    assert drawn.shape[0] > 512  # the caption lies below the picture


def test_the_caption_is_written_below_and_changes_nothing_above() -> None:
    pixels, heat = np.zeros((300, 400, 3), np.uint8), np.zeros((300, 400), np.float32)
    bare = overlay(pixels, heat)
    told = overlay(pixels, heat, caption="The file says: generated, by Möller " * 4)
    assert (told[: len(bare)] == bare).all()
    assert len(told) - len(bare) in (60, 80)
    assert (told[len(bare) :] < 128).any()


def test_the_table_shows_what_the_file_says(
    sure: Detector, astronaut: np.ndarray, tmp_path: Path
) -> None:
    sure.save(tmp_path / "sure")
    made = save(astronaut, tmp_path / "made.png", WEBUI)
    command = ["check", str(made), "--detector", str(tmp_path / "sure"), "--device", "cpu"]
    done = CliRunner().invoke(app, [*command, "--fail-on", "fake"])
    assert done.exit_code == 1
    assert "A1111" in done.output
    done = CliRunner().invoke(app, [*command, "--fail-on", "fake", "--pixels-only"])
    assert done.exit_code == 0


def test_what_the_file_says_is_no_markup(
    sure: Detector, astronaut: np.ndarray, tmp_path: Path
) -> None:
    sure.save(tmp_path / "sure")
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", "Midjourney [/red] [bold]7")
    Image.fromarray(astronaut).save(tmp_path / "made.png", pnginfo=info)
    command = ["check", str(tmp_path / "made.png"), "--detector", str(tmp_path / "sure")]
    folder = str(tmp_path / "[" / "heat]")
    done = CliRunner().invoke(app, [*command, "--device", "cpu", "--heatmap", folder])
    assert done.exit_code == 0, done.exception
    assert 'made by "Midjourney [/red] [bold]7"' in done.stdout
    assert "[/heat]" in done.stderr


# --- corpora ---


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Thirty pictures a class; one real declares itself generated, one fake names a camera."""
    rng = np.random.default_rng(0)
    for folder in ("0_real", "1_fake/gan"):
        (tmp_path / "c" / folder).mkdir(parents=True)
        for number in range(30):
            pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            path = tmp_path / "c" / folder / f"{number:02}.png"
            if number == 3 and folder == "0_real":
                save(pixels, path, WEBUI)
            elif number == 5 and folder != "0_real":
                camera(pixels, path.with_suffix(".jpg"))
            else:
                save(pixels, path, WEBUI if number == 7 and folder != "0_real" else "")
    return tmp_path / "c"


def test_files_that_contradict_their_label_are_found(corpus: Path) -> None:
    found = find_declared(open_corpus(corpus).table)
    assert sorted(found["file_name"]) == ["0_real/03.png", "1_fake/gan/05.jpg"]
    real, fake = remark_on_declared(found)
    assert "1 real says in its file" in real
    assert "0_real/03.png (PNG text parameters" in real
    assert "1 fake is a camera's file" in fake
    assert "--drop-declared" in fake


def test_the_audit_names_them_and_drops_them_on_demand(corpus: Path) -> None:
    found = audit_corpus(AuditSettings(corpus=corpus))
    assert (found.n_real, found.n_fake) == (30, 30)
    assert sorted(found.declared) == ["0_real/03.png", "1_fake/gan/05.jpg"]
    assert sum("03.png" in remark for remark in found.remarks) == 1
    dropped = audit_corpus(AuditSettings(corpus=corpus, drop_declared=True))
    assert (dropped.n_real, dropped.n_fake) == (29, 29)
    assert any("left out" in remark for remark in dropped.remarks)


def test_training_drops_them_on_demand(corpus: Path, tmp_path: Path) -> None:
    def names(**settings: bool) -> set[str]:
        made = TrainDetectorSettings(corpora=(corpus,), out=tmp_path / "run", **settings)
        return set(split_table(made)["file_name"])

    every, kept = names(), names(drop_declared=True)
    assert every - kept == {"0_real/03.png", "1_fake/gan/05.jpg"}
    for path in sorted((corpus / "0_real").glob("*.png")):
        save(np.asarray(Image.open(path)), path, WEBUI)
    with pytest.raises(GanscopeError, match="leaves no real images"):
        names(drop_declared=True)


def test_the_benchmark_notes_them(corpus: Path, tmp_path: Path) -> None:
    detector = Detector.create("patch", size=32, width=4)
    detector.save(tmp_path / "patch")
    results = benchmark_detectors(
        BenchmarkSettings(
            corpora=(corpus,),
            detector=(str(tmp_path / "patch"),),
            out=tmp_path / "out",
            protocol="raw",
            bootstrap=0,
            device="cpu",
        )
    )
    notes = " ".join(results.attrs["notes"])
    assert "0_real/03.png" in notes
    assert "1_fake/gan/05.jpg" in notes
    assert "0_real/03.png" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_files_that_are_gone_contradict_nothing(corpus: Path) -> None:
    table = open_corpus(corpus).table
    (corpus / "0_real/03.png").unlink()
    assert isinstance(find_declared(table), pd.DataFrame)
    assert len(find_declared(table)) == 1
