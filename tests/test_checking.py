"""Checking: the CSV on a hostile disk, odd file names, and what counts as nothing to see."""

import csv
import json
import os
import resource
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
import torch

from ganscope.config import BenchmarkSettings, CheckSettings, TrainDetectorSettings
from ganscope.detector.benchmark.contestants import NetworkScorer
from ganscope.detector.benchmark.met import guess, without_record
from ganscope.detector.judging import checking
from ganscope.detector.judging.checking import Check, check_image, check_images
from ganscope.detector.model import Detector, load_detector
from ganscope.detector.training.recipes import _may_have_learned
from ganscope.errors import GanscopeError, GanscopeWarning
from ganscope.files import guard_cell, plain_cell


@pytest.fixture
def sure(tmp_path: Path) -> str:
    """A detector on disk that calls everything fake."""
    torch.manual_seed(0)
    detector = Detector.create("cnn", width=8, depth=3).eval()
    detector.config["thresholds"] = {"fake": 0.0, "real": 0.0, "fpr_1": 0.0, "fpr_5": 0.0}
    detector.save(tmp_path / "sure")
    return str(tmp_path / "sure")


def checks(photo: Path, sure: str, csv: Path) -> list[Check]:
    settings = CheckSettings(paths=(str(photo),), detector=sure, csv=csv, device="cpu")
    return list(check_images(settings))


def test_texture_in_any_one_colour_is_something_to_see(sure: str, tmp_path: Path) -> None:
    for channel in range(3):
        pixels = np.zeros((96, 96, 3), np.uint8)
        pixels[..., channel] = np.random.default_rng(0).integers(0, 256, (96, 96))
        cv2.imwrite(str(tmp_path / "one.png"), pixels)
        check = check_image(tmp_path / "one.png", sure, device="cpu")
        assert check.verdict == "fake"
        assert not check.warnings


def test_below_its_tiles_a_detector_is_never_sure(photo: Path, sure: str, tmp_path: Path) -> None:
    detector = Detector.load(sure)
    detector.config["input"]["smallest"] = detector.size
    small = cv2.imread(str(photo))[:, : detector.size - 1]
    cv2.imwrite(str(tmp_path / "small.png"), small)
    assert check_image(photo, detector, reencode=False).verdict == "fake"
    check = check_image(tmp_path / "small.png", detector, reencode=False)
    assert check.verdict == "unsure"
    assert f"less than {detector.size} pixels" in (check.meaning or "")


def test_a_csv_never_replaces_a_folder_or_a_device(photo: Path, sure: str, tmp_path: Path) -> None:
    """A device is stood in for by a named pipe: replacing /dev/null would harm the machine."""
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    for name in ("folder.csv", "pipe.csv"):
        with pytest.raises(GanscopeError, match="no file"):
            checks(photo, sure, tmp_path / name)
    assert (tmp_path / "folder.csv").is_dir()
    assert (tmp_path / "pipe.csv").is_fifo()
    assert not list(tmp_path.glob(".*.part"))


def test_a_csv_is_written_through_a_link(photo: Path, sure: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link.csv").symlink_to(tmp_path / "elsewhere" / "verdicts.csv")
    checks(photo, sure, tmp_path / "link.csv")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "elsewhere" / "verdicts.csv").read_text().startswith("path,score")


def test_a_full_disk_is_one_clear_line_and_keeps_the_old_csv(
    photo: Path, sure: str, tmp_path: Path
) -> None:
    csv = tmp_path / "verdicts.csv"
    csv.write_text("yesterday")
    with largest_file(20), pytest.raises(GanscopeError, match="cannot be written"):
        checks(photo, sure, csv)
    assert csv.read_text() == "yesterday"
    assert not list(tmp_path.glob(".*.part"))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes, as on a disk that fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_name_that_is_no_utf8_is_written_as_it_is(photo: Path, sure: str, tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/odd\xff.jpg"
    try:
        os.rename(photo, odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (check,) = checks(Path(os.fsdecode(odd)), sure, tmp_path / "verdicts.csv")
    assert check.error is None
    assert b"odd\xff.jpg" in (tmp_path / "verdicts.csv").read_bytes()


@pytest.mark.parametrize("stop", ["thrown", "closed"])
def test_what_was_judged_is_kept_when_it_is_stopped(
    photo: Path, sure: str, tmp_path: Path, stop: str
) -> None:
    table = tmp_path / "v.csv"
    table.write_text("old")
    plan = CheckSettings(paths=(str(photo),) * 3, detector=sure, csv=table, device="cpu")
    checks: Any = check_images(plan)
    next(checks)
    end = checks.close if stop == "closed" else lambda: checks.throw(KeyboardInterrupt)
    with (
        pytest.warns(GanscopeWarning, match=r"rows of the 1 images that were judged are in .*v"),
        suppress(KeyboardInterrupt),
    ):
        end()
    assert table.read_text() == "old"
    kept = (tmp_path / "v.part.csv").read_text().splitlines()
    assert len(kept) == 2
    assert kept[1].startswith(str(photo))
    assert [p.name for p in tmp_path.glob(".*")] == [".v.csv.journal"]
    assert len(list(check_images(plan))) == 3
    assert len(table.read_text().splitlines()) == 4
    assert not list(tmp_path.glob(".*"))
    assert not (tmp_path / "v.part.csv").exists()


@pytest.mark.parametrize("training", [None, [], {"corpora": "text"}, {"corpora": [1]}])
def test_a_detector_without_a_record_of_its_training_works(
    photo: Path, sure: str, training: object
) -> None:
    """In every command; and the same where the record is no record."""
    config = json.loads((Path(sure) / "config.json").read_text())
    config.pop("training")
    (Path(sure) / "config.json").write_text(
        json.dumps(config | ({} if training is None else {"training": training}))
    )
    assert check_image(photo, sure).verdict is not None
    detector = load_detector(sure)
    met = {"m": NetworkScorer("m", detector)}
    assert without_record(met) == []
    assert guess(met["m"], BenchmarkSettings(corpora=(photo.parent,)), True) == ""
    assert not _may_have_learned(detector.config["training"], TrainDetectorSettings())


def test_false_alarms_of_left_out_sources_are_told_as_such(sure: str, photo: Path) -> None:
    detector = Detector.load(sure)
    alarms = {"photographs": 4342, "called_fake": 44, "at_most": 0.013, "split": "left-out sources"}
    detector.config["false_alarms"] = alarms
    meaning = check_image(photo, detector, device="cpu", reencode=False).meaning or ""
    assert "trainings like it called 44 of 4,342 real pictures fake" in meaning
    assert "at most 1.3% of such" in meaning


KILLED = """
import os, sys
from ganscope.config import CheckSettings
from ganscope.detector.judging import checking
from pathlib import Path

folder, sure, stop = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
write = checking.write_overlay

def overlay(path, *rest):
    write(path, *rest)
    if stop == "picture" and path.name == "photo-2.png":
        os._exit(9)  # between a heatmap and its row

checking.write_overlay = overlay
plan = CheckSettings(paths=("in",), detector=sure, csv=Path("v.csv"), heatmap=Path("maps"),
                     device="cpu")
for number, one in enumerate(checking.check_images(plan)):
    if stop == "row" and number == 1:
        os._exit(9)
"""


def rounded(one: Check | dict[str, Any]) -> dict[str, Any]:
    row = one.as_dict() if isinstance(one, Check) else one
    return row | {n: row[n] and round(float(row[n]), 6) for n in ("score", "probability")}


@pytest.mark.parametrize("stop", ["row", "picture"])
def test_a_check_that_was_killed_goes_on_where_it_was(
    photo: Path, sure: str, tmp_path: Path, stop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It began anew, and wrote each heatmap a second time."""
    monkeypatch.chdir(tmp_path)
    for name in ("in/a/photo.jpg", "in/b/photo.jpg", "in/c/photo.jpg", "in/d.jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(photo.read_bytes())
    Path("in/e.png").write_bytes(b"")
    plan = CheckSettings(
        paths=("in",), detector=sure, csv=Path("v.csv"), heatmap=Path("maps"), device="cpu"
    )
    whole = [rounded(one) for one in check_images(plan)]
    with open("v.csv", newline="") as file:
        table = [rounded(row) for row in csv.DictReader(file)]
    pictures = sorted(os.listdir("maps"))
    for path in (Path("v.csv"), *Path("maps").iterdir()):
        path.unlink()
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), sure, stop])
    assert done.returncode == 9
    assert not Path("v.csv").exists()
    judged: list[str] = []
    judge = checking._judge
    monkeypatch.setattr(
        checking, "_judge", lambda d, s, *rest: judged.append(s.path) or judge(d, s, *rest)
    )
    # Other pictures shared their batches: the last of sixteen digits may be another one.
    assert [rounded(one) for one in check_images(plan)] == whole
    with open("v.csv", newline="") as file:
        assert [rounded(row) for row in csv.DictReader(file)] == table
    assert sorted(os.listdir("maps")) == pictures
    assert len(judged) == {"row": 3, "picture": 2}[stop]  # the others are in the journal
    assert not list(tmp_path.glob(".v*"))


def test_what_changed_since_is_judged_anew(
    photo: Path, sure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other.jpg").write_bytes(photo.read_bytes())
    plan = CheckSettings(
        paths=(str(photo), str(tmp_path / "other.jpg")),
        detector=sure,
        csv=tmp_path / "v.csv",
        device="cpu",
    )
    stream: Any = check_images(plan)
    next(stream)
    with pytest.warns(GanscopeWarning, match="goes on from there"):
        stream.close()
    photo.write_bytes(b"")
    first, second = check_images(plan)
    assert first.error
    assert second.score is not None
    stream = check_images(plan)
    next(stream)
    with pytest.warns(GanscopeWarning, match="goes on from there"):
        stream.close()
    with pytest.warns(GanscopeWarning, match="other options; begun anew"):
        list(check_images(replace(plan, reencode=False)))


def test_a_name_of_240_bytes_gets_its_heatmap(photo: Path, sure: str, tmp_path: Path) -> None:
    """It ended the whole run."""
    long = tmp_path / ("ü" * 118 + ".jpg")
    photo.rename(long)
    plan = CheckSettings(
        paths=(str(long), str(long)), detector=sure, heatmap=tmp_path / "maps", device="cpu"
    )
    one, two = check_images(plan)
    assert one.heatmap != two.heatmap
    assert all(Path(check.heatmap or "").is_file() for check in (one, two))


def test_a_cell_that_a_spreadsheet_would_run_is_guarded(
    photo: Path, sure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["=1+1.jpg", "+a.jpg", "-b.jpg", "@c.jpg", "'=d.jpg", "'plain.jpg"]
    for name in names:
        Path(name).write_bytes(photo.read_bytes())
    plan = CheckSettings(paths=tuple(names), detector=sure, csv=Path("v.csv"), device="cpu")
    list(check_images(plan))
    with open("v.csv", newline="") as file:
        found = [row["path"] for row in csv.DictReader(file)]
    assert found == ["'=1+1.jpg", "'+a.jpg", "'-b.jpg", "'@c.jpg", "''=d.jpg", "'plain.jpg"]
    assert [plain_cell(cell) for cell in found] == names
    assert [plain_cell(guard_cell(x)) for x in ("", "'", "''=", -1.5)] == ["", "'", "''=", -1.5]


def test_what_an_archive_holds_is_judged_like_files(photo: Path, sure: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("in/a.jpg", photo.read_bytes())
        archive.writestr("in/b.jpg", b"broken")
    plan = CheckSettings(
        paths=(str(photo), str(tmp_path / "photos.zip"), str(tmp_path / "photo.jpg")),
        detector=sure,
        heatmap=tmp_path / "maps",
        device="cpu",
    )
    own, inside, broken, again = check_images(plan)
    assert inside.path == f"{tmp_path}/photos.zip/in/a.jpg"
    assert inside.score == own.score == again.score
    assert inside.heatmap == str(tmp_path / "maps" / "a.png")
    assert broken.error


def test_what_is_passed_over_is_said(photo: Path, sure: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    photo.rename(tmp_path / "in" / "photo.jpg")
    (tmp_path / "in" / "clip.mp4").write_bytes(b"")
    plan = CheckSettings(paths=(str(tmp_path / "in"),), detector=sure, device="cpu")
    with pytest.warns(GanscopeWarning, match=r"passed over: 1 .*\.mp4.*clip\.mp4"):
        assert len(list(check_images(plan))) == 1


def night_mode(day: np.ndarray, seed: int) -> np.ndarray:
    """A photograph as a phone would make it at night: lamps, many frames merged, what is left of
    the noise smoothed, shadows lifted, edges sharpened.
    """
    rng = np.random.default_rng(seed)
    light = (day.astype(np.float32) / 255) ** 2.2 * np.array([0.13, 0.14, 0.165], np.float32)
    height, width = light.shape[:2]
    for _ in range(5):
        lamp = np.zeros((height, width), np.float32)
        cv2.circle(lamp, (int(rng.integers(width)), int(rng.integers(height))), 3, 1.0, -1)
        glow = 20 * cv2.GaussianBlur(lamp, (0, 0), width / 60) + 2 * cv2.GaussianBlur(
            lamp, (0, 0), 2
        )
        light += glow[..., None] * np.array([1, 0.85, 0.55], np.float32)
    noise = 0.015 / 12**0.5 * np.sqrt(light + 0.01)
    light += rng.normal(0, 1, light.shape).astype(np.float32) * noise
    shown = (np.clip(light * 3.5, 0, 1) ** (1 / 2.2) * 255).astype(np.uint8)
    shown = cv2.fastNlMeansDenoisingColored(shown, None, 4, 6, 5, 13)
    return cv2.addWeighted(shown, 1.4, cv2.GaussianBlur(shown, (0, 0), 1.0), -0.4, 0)


def test_a_photograph_by_a_night_mode_is_not_called_fake() -> None:
    """An older detector took what has no noise for generated."""
    photo = night_mode(skimage.data.coffee(), 0)
    content = cv2.imencode(".jpg", photo[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 94])[1].tobytes()
    assert check_image(content, device="cpu").verdict != "fake"
