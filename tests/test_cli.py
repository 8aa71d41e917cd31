"""The command line: a mirror of the settings, one clear line for mistakes, the exit statuses."""

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from commands import run
from PIL import Image
from rich.table import Table
from rich.text import Text

from ganscope import config
from ganscope.cli import app, console

COMMANDS = {
    "generate": config.GenerateSettings,
    "train-generator": config.TrainGeneratorSettings,
    "train-detector": config.TrainDetectorSettings,
    "check": config.CheckSettings,
    "scan": config.ScanSettings,
    "inspect": config.InspectSettings,
    "trust update": config.TrustUpdateSettings,
    "benchmark": config.BenchmarkSettings,
    "arms-race": config.ArmsRaceSettings,
    "audit": config.AuditSettings,
    "serve": config.ServeSettings,
    "play": config.PlaySettings,
    "project": config.ProjectSettings,
    "diversity": config.DiversitySettings,
    "spectra": config.SpectraSettings,
    "export": config.ExportSettings,
    "latent walk": config.LatentWalkSettings,
    "latent arithmetic": config.LatentArithmeticSettings,
    "latent direction": config.LatentDirectionSettings,
    "latent apply": config.LatentApplySettings,
}
ONLY_ON_SCREEN = {
    ("arms-race", "json"),
    ("audit", "json"),
    ("benchmark", "json"),
    ("diversity", "json"),
    ("export", "json"),
    ("scan", "json"),
}


def start(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """The same as `run`, in a process of its own."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "ganscope", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


def test_without_a_terminal_lines_tell_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with console.progress() as bar:  # nothing in the first half minute
        bar.update(bar.add_task("checking", total=2000, note=""), completed=1)
        assert not capsys.readouterr().err
    monkeypatch.setattr(console, "EVERY", 0.0)
    with console.progress() as bar:
        bar.update(bar.add_task("checking", total=2000, note="[b]3[/b] fake"), completed=1500)
        bar.update(bar.add_task("fine-tuning", total=1.0, note=""), completed=0.25)
        bar.update(bar.add_task("scanning", total=None, note=""), completed=1200)
        slow = bar.add_task("training", total=4, note="")
        for now in (100.0, 160.0, 220.0):
            bar.get_time = lambda now=now: now
            bar.update(slow, advance=1)
    assert capsys.readouterr().err.splitlines() == [
        "checking: 1,500 of 2,000, 75 %, 3 fake",
        "fine-tuning: 25 %",
        "scanning: 1,200",
        "training: 1 of 4, 25 %",
        "training: 2 of 4, 50 %, 0:02:00 left",
        "training: 3 of 4, 75 %, 0:01:00 left",
    ]


def test_control_characters_of_names_do_not_reach_the_terminal(tmp_path: Path) -> None:
    """They colour it, move its cursor, and retitle it."""
    evil = "\x1b[31m\x1b]0;title\x07\r\x9bA\u202egpj.exe"
    screen = console._Console(file=io.StringIO(), force_terminal=True, width=150)
    table = Table()
    table.add_column("path", overflow="fold")
    table.add_row(Text(evil, style="red"))
    screen.print(table)
    screen.print(Text(evil, style="red"))
    printed = screen.file.getvalue()  # type: ignore[attr-defined]
    # Bells and returns rich itself takes out.
    assert r"\x1b[31m\x1b]0;title\x9bA\u202egpj.exe" in printed
    assert printed.count(r"\x1b[31m\x1b]0;title") == 2
    assert "\x1b[31m\\x1b" in printed  # the style is ours
    assert not set("\x07\r\x9b\u202e") & set(printed)
    shown = r"\x1b[31m\x1b]0;title\x07\r\x9bA\u202egpj.exe"
    done = run("check", evil, cwd=tmp_path)
    assert shown in done.stderr
    assert "\x1b" not in done.stderr


def test_logs_are_not_a_thousand_columns_wide() -> None:
    code = """
from rich.table import Table
from ganscope.cli.console import err
err.rule("title")
table = Table(expand=True)
table.add_column("x")
table.add_row("y " * 900)
err.print(table)
err.print("word " * 100)
"""
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    *drawn, text = done.stderr.rstrip("\n").split("\n")
    assert max(map(len, drawn)) == console.WIDEST
    assert len(text.strip()) == 499  # what is no table is not wrapped


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_options_mirror_the_settings(name: str) -> None:
    command: Any = typer.main.get_command(app)
    for word in name.split():
        command = command.commands[word]
    options = {p.name.rstrip("_"): p for p in command.params if p.name != "help"}
    fields = {f.name.rstrip("_"): f for f in dataclasses.fields(COMMANDS[name])}
    shown = {n for c, n in ONLY_ON_SCREEN if c == name}
    assert set(options) - shown == set(fields)
    for field_name, field in fields.items():
        default = options[field_name].default
        if field.default is dataclasses.MISSING:
            assert options[field_name].required
        elif isinstance(field.default, tuple):
            assert default in (None, [], ()), field_name
        else:
            assert default == field.default, field_name


@pytest.mark.parametrize("name", [*sorted(COMMANDS), "list", "demo"])
def test_every_command_has_help_with_examples(name: str, tmp_path: Path) -> None:
    done = run(*name.split(), "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert f"ganscope {name}" in done.stdout
    assert "Example" in done.stdout


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("scan", "[default: one a GPU, or one a core]"),
        ("play", "'ganscope[web]'"),
        ("scan", "The folder can be read while it grows (pandas, duckdb)"),
    ],
)
def test_help_is_shown_as_it_is_written(name: str, said: str, tmp_path: Path) -> None:
    assert said in run(name, "--help", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "--n", "0"], "--n must be at least 1"),
        (["generate", "--generator", "foces"], "did you mean 'faces'"),
        (["generate", "--device", "tpu"], "--device must be one of"),
        (["check", "nowhere.jpg"], "nowhere.jpg"),
        (["scan", "nowhere.jpg"], "nowhere.jpg: no such file or folder"),
        (["scan", "x", "--engine", "rya"], "--engine must be one of"),
        (["check"], "Missing argument"),
        (["check", "x.jpg", "--fail-on", "fakes"], "--fail-on must be one of"),
        (["train-detector"], "ganscope generate"),
        (["train-detector", "nowhere"], "nowhere"),
        (
            ["train-generator", "--real", "photographs", "--size", "50"],
            "dcgan makes images of 8, 16, 28, 32, 64, 128 pixels",
        ),
        (
            ["train-generator", "--real", "photographs", "--generator", "dcgn"],
            "did you mean 'dcgan'",
        ),
        (["benchmark", "nowhere"], "nowhere"),
        (["arms-race", "--real", "nowhere/"], "no such folder"),
        (["arms-race", "--real", "photographs", "--rounds", "1"], "--rounds must be at least 2"),
        (["arms-race", "--real", "photographs", "--size", "50"], "dcgan makes images of"),
        (["audit", "nowhere"], "nowhere"),
        (["diversity", "nowhere", "--features", "pixels"], "nowhere"),
        (["spectra", "nowhere"], "nowhere"),
        (["diversity", "vae"], "vae does not play on toys"),
        (["latent", "walk", "faces", "3"], "name at least two fakes"),
        (["latent", "walk", "faces", "3", "x"], "'x' is no fake"),
        (["latent", "walk", "faces", "3", "4", "--out", "w.jpg"], "--out must end in .png or .gif"),
        (["latent", "arithmetic", "faces", "1 - - 2"], "between single + and -"),
        (["latent", "direction", "faces", "a", "b", "--corpus", "nowhere"], "nowhere"),
        (["latent", "apply", "faces", "nowhere.json", "1"], "nowhere.json"),
        (["list", "detector"], "did you mean 'detectors'"),
    ],
)
def test_mistakes_give_one_clear_line_and_status_2(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    if done.stderr.startswith("ganscope:"):
        assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []  # nothing half-made is left


@pytest.mark.parametrize("what", ["detectors", "generators", "sources", "degradations"])
def test_list(what: str, tmp_path: Path) -> None:
    done = run("list", what, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = {
        "detectors": ["default", "cnn", "npr", "patch", "timm:NAME"],
        "generators": ["photos", "faces", "dcgan", "wgan-gp"],
        "sources": ["photographs", "cifar10", "flowers102", "lfw_people", "hf:owner/name"],
        "degradations": ["jpeg:VALUE", "resize:VALUE", "blur:VALUE"],
    }[what]
    for name in expected:
        assert name in done.stdout


def test_the_whole_circle_in_an_empty_folder(tmp_path: Path, photo: Path) -> None:
    """The three lines of the README, smaller, then the measurements; each in a process of its
    own.
    """
    made = start("generate", "--n", "120", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert made.stdout.strip() == "corpus"
    trained = start("train-detector", "--epochs", "1", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.strip() == "runs/cnn"
    assert re.search(r"test: AUROC [01]\.\d{3} \(.*\), TPR [01]\.\d\d at 1 % FPR", trained.stderr)
    checked = start("check", photo.name, "--json", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    record = json.loads(checked.stdout)
    assert list(record) == [
        "path",
        "score",
        "verdict",
        "probability",
        "meaning",
        "thresholds",
        "detector",
        "width",
        "height",
        "pixels_verdict",
        "decided_by",
        "faces",
        "declared",
        "declared_by",
        "declared_model",
        "declared_seed",
        "declared_prompt",
        "declared_trust",
        "declared_reason",
        "heatmap",
        "warnings",
        "error",
    ]
    assert record["path"] == photo.name
    assert 0 <= record["score"] <= 1
    assert record["verdict"] in {"fake", "real", "unsure"}
    audited = start("audit", "corpus", cwd=tmp_path)
    assert audited.returncode in {0, 1}  # on 120 images the estimate is rough
    plan = ("benchmark", "corpus", "--detector", "runs/cnn", "--bootstrap", "50")
    measured = start(*plan, "--json", cwd=tmp_path)
    assert measured.returncode == 0, measured.stderr
    report = json.loads(measured.stdout)
    assert report["about"]["command"] == " ".join(("ganscope", *plan))
    assert [row["protocol"] for row in report["results"]] == ["raw", "aligned"]
    assert report["gap"][0]["gap"] == report["gap"][0]["raw"] - report["gap"][0]["aligned"]
    for name in ("matrix.png", "report.html", "report.json", "scores.parquet"):
        assert (tmp_path / "benchmark" / name).exists()


@pytest.mark.usefixtures("graphs")
def test_check_statuses_csv_and_rows_for_bad_files(tmp_path: Path, photo: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    photo.rename(inbox / "good.jpg")
    (inbox / "bad.png").write_bytes(b"no image")
    done = run("check", "inbox", "--csv", "verdicts.csv", "--heatmap", "maps", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    lines = (tmp_path / "verdicts.csv").read_text().splitlines()
    assert lines[0].startswith("path,score,verdict,")
    assert [line.split(",")[0] for line in lines[1:]] == ["inbox/bad.png", "inbox/good.jpg"]
    assert len(list((tmp_path / "maps").glob("*.png"))) == 1
    assert done.stderr.count("1 heatmap is in maps: hot places are a hint where to look") == 1
    assert "bad.png" in done.stdout


def test_where_no_heatmap_can_be_drawn_that_is_said(tmp_path: Path) -> None:
    from ganscope.detector.model import Detector

    Detector.create("cnn", width=8, depth=3).save(tmp_path / "small")
    Image.new("RGB", (12, 12), (90, 90, 90)).save(tmp_path / "grey.png")
    done = run(*("check", "grey.png", "--heatmap", "maps", "--detector", "small"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no heatmap was drawn" in done.stderr
    assert not (tmp_path / "maps").exists()


def test_fail_on_fake(tmp_path: Path, photo: Path) -> None:
    """A detector that calls everything fake makes `--fail-on fake` exit with 1."""
    from ganscope.detector.model import Detector

    detector = Detector.create("cnn", width=8, depth=3)
    detector.config["thresholds"] = dict.fromkeys(detector.config["thresholds"], 0.0)
    detector.save(tmp_path / "paranoid")
    done = run("check", photo.name, "--detector", "paranoid", "--fail-on", "fake", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert run("check", photo.name, "--detector", "paranoid", cwd=tmp_path).returncode == 0


def test_a_mistyped_detector_is_answered_with_the_nearest(tmp_path: Path, photo: Path) -> None:
    done = run("check", photo.name, "--detector", "defualt", cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean 'default'" in done.stderr


@pytest.mark.usefixtures("graphs")
def test_a_file_name_is_no_markup(tmp_path: Path, astronaut: np.ndarray) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "[bold]x[red].png"), astronaut)
    done = run("check", "[bold]x[red].png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "[bold]x[red].png" in done.stdout
