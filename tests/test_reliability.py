"""What the campaigns in `benchmarks/campaigns/` found, and what they rest on."""

import contextlib
import csv
import io
import json
import os
import pickle
import shutil
import signal
import sqlite3
import time
import weakref
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from ganscope import cli, containers
from ganscope.config import CheckSettings, ExportSettings, GenerateSettings, ScanSettings
from ganscope.datasets.corpus import open_corpus
from ganscope.detector.benchmark import benchmark
from ganscope.detector.benchmark.contestants import open_scorer
from ganscope.detector.exported.loading import load_judge
from ganscope.detector.judging.checking import check_image
from ganscope.detector.judging.exporting import export_detector
from ganscope.detector.model import Detector, load_detector
from ganscope.detector.networks.weights import read_weights
from ganscope.detector.scanning.scan import scan_images
from ganscope.errors import GanscopeError
from ganscope.files import csv_line, csv_text, free_name, plain_cell, replacing
from ganscope.folders import CHECKPOINT, CONFIG, FolderModel, load_checkpoint
from ganscope.generator.model import Generator, load_generator
from ganscope.generator.sampling import generate_corpus
from ganscope.web.project import Project

RETURN = "a\r=cmd|' C'!A0,b"
"""Behind an unquoted carriage return spreadsheets begin a row."""


def run_main(monkeypatch: pytest.MonkeyPatch, command: Any, *words: str) -> int:
    """Status of the console script where `command` is what it does."""
    app = typer.Typer()
    app.command("check")(command)
    app.callback()(lambda: None)
    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr("sys.argv", ["ganscope", "check", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_puts_away_what_is_half_and_says_so(
    number: signal.Signals, status: int, monkeypatch: pytest.MonkeyPatch, capfd: Any, tmp_path: Path
) -> None:
    def command() -> None:
        with replacing(tmp_path / "whole.txt") as part:
            part.write_text("half")
            os.kill(os.getpid(), number)
            time.sleep(5)

    # A shell's background jobs begin with Ctrl-C ignored.
    asked = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert run_main(monkeypatch, command) == status
    finally:
        signal.signal(signal.SIGINT, asked)
    assert "ganscope: stopped; the same command given again" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_where_python_passes_over_what_is_raised_is_not_lost(
    number: signal.Signals, status: int, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    class Referred:
        pass

    def called(_: object) -> None:
        os.kill(os.getpid(), number)
        for _ in range(1000):  # where it is raised
            pass

    def command() -> None:
        referred = Referred()
        kept = weakref.ref(referred, called)
        del referred
        assert kept() is None
        begun = time.monotonic()
        while time.monotonic() - begun < 5:
            time.sleep(0.01)

    asked = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run_main(monkeypatch, command) == status
    finally:
        signal.signal(signal.SIGINT, asked)
    assert capfd.readouterr().err == "ganscope: stopped; the same command given again begins anew\n"


def test_a_signal_before_the_command_begins_is_told_in_a_line_too(
    monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def early() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(cli, "prepare_streams", early)
    assert run_main(monkeypatch, lambda: None) == 143
    said = capfd.readouterr().err
    assert said == "ganscope: stopped; the same command given again begins anew\n"


def test_a_second_sigterm_does_not_disturb_what_is_put_away(
    monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def command() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            print("put away")

    before = signal.getsignal(signal.SIGTERM)
    assert run_main(monkeypatch, command) == 143
    assert "put away" in capfd.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_forked_worker_dies_of_sigterm_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def command() -> None:
        worker = os.fork()
        if not worker:
            time.sleep(30)
        time.sleep(0.2)
        os.kill(worker, signal.SIGTERM)
        _, status = os.waitpid(worker, 0)
        raise typer.Exit(os.waitstatus_to_exitcode(status) - 100)

    assert run_main(monkeypatch, command) == 43
    assert not capfd.readouterr().err


def test_a_line_about_a_name_with_line_ends_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def command() -> None:
        raise GanscopeError("a\nb.png: is listed twice")

    assert run_main(monkeypatch, command) == 2
    assert capfd.readouterr().err == "ganscope: a\\nb.png: is listed twice\n"


def test_a_folder_that_is_removed_while_a_command_writes_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    gone = pytest.raises(GanscopeError, match="this folder is gone")
    with gone, replacing(tmp_path / "run" / "a.txt") as part:
        part.write_text("x")

    def command() -> None:
        open(tmp_path / "run" / "b.txt", "w")  # noqa: SIM115

    assert run_main(monkeypatch, command) == 2
    assert "this folder is gone" in capfd.readouterr().err


@pytest.mark.parametrize("when", [1, 6])
def test_a_corpus_that_is_removed_while_it_is_made_is_not_said_to_be_done(
    tmp_path: Path, when: int
) -> None:
    def report(done: int) -> None:
        if done >= when:
            shutil.rmtree(tmp_path / "c", ignore_errors=True)

    with pytest.raises(GanscopeError):
        generate_corpus(GenerateSettings(n=6, out=tmp_path / "c", size=32, device="cpu"), report)
    assert not (tmp_path / "c").exists()


def test_a_benchmark_whose_folder_was_removed_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any, **__: Any) -> None:
        shutil.rmtree(tmp_path / "b")
        (tmp_path / "b").mkdir()

    for name in ("_compare", "_audit", "main_protocol", "scored_by", "_digest", "plain", "version"):
        monkeypatch.setattr(benchmark, name, lambda *_, **__: ([], []))
    monkeypatch.setattr(benchmark.plots, "draw_roc", gone)
    monkeypatch.setattr(benchmark.plots, "draw_matrix", lambda *_: None)
    monkeypatch.setattr(benchmark, "write_report", lambda *_: None)
    (tmp_path / "b").mkdir()
    table = pd.DataFrame({"path": ["a"], "hash": ["x"]})
    scores: Any = type("Scores", (), {"table": table, "unreadable": [], "missing": {}, "notes": []})
    settings: Any = type("Settings", (), {"corpora": (), "seed": 0})
    about, given = {"command": "", "begun": 0.0}, (settings, tmp_path / "b", scores, pd.DataFrame())
    with pytest.raises(GanscopeError, match="this folder is gone"):
        benchmark.write_results(*given, {}, [], about)
    assert (tmp_path / "b" / benchmark.UNFINISHED).exists()  # the same command goes on there


def test_a_carriage_return_in_a_name_begins_no_row() -> None:
    table = pd.DataFrame({"name": [RETURN, "=1", "x"], "n": [1, 2, 3]})
    for text in (csv_text(table), "name,n\n" + "".join(csv_line(r) for r in table.to_numpy())):
        rows = list(csv.reader(io.StringIO(text, newline="")))
        assert [plain_cell(row[0]) for row in rows[1:]] == [RETURN, "=1", "x"]
        assert rows[2][0] == "'=1"
        assert '"a\r' in text
        assert text.endswith("\n")
        assert not text.endswith("\r\n")


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_manifests_keep_line_ends_in_names(tmp_path: Path, ends: str) -> None:
    names = ["a\rb.png", "a\r\nb.png", "a\nb.png"]
    lines = ["file_name,label", *(f'"{name}",{i % 2}' for i, name in enumerate(names))]
    (tmp_path / "metadata.csv").write_bytes((ends.join(lines) + ends).encode())
    assert open_corpus(tmp_path).table["file_name"].tolist() == names


def test_what_is_named_after_an_image_shows_all_its_letters(tmp_path: Path) -> None:
    name = "\u202egpj.exe\u2066\u200b\u2028\ufeff\x1b[31m.png"
    assert free_name(tmp_path, name, ".png").name == "_gpj.exe_____[31m.png"


def test_pages_show_what_steers_terminals_and_turns_writing() -> None:
    from ganscope.web.report import templates

    page = templates().from_string("<p>{{ a }}</p>{{ b }}")
    joined = templates().from_string("{{ a | join('<') }}")
    assert joined.render(a=["\x1b", np.str_("\u202e")]) == "\\x1b&lt;\\u202e"
    made = page.render(a="\x1b[31m\u202egpj<b>\ta\r\nb\ud800", b=page.render(a=1, b=""))
    assert made == "<p>\\x1b[31m\\u202egpj&lt;b&gt;\ta\nb\\ud800</p>&lt;p&gt;1&lt;/p&gt;"


class Trap:
    """Pickled, it makes a folder when it is read."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def test_pickles_handed_as_weights_never_run(tmp_path: Path) -> None:
    trap, raw, packed = tmp_path / "ran", tmp_path / "raw.pth", tmp_path / CHECKPOINT
    raw.write_bytes(pickle.dumps(Trap(trap), 2))
    torch.save({"state_dict": {"a": Trap(trap)}}, packed)
    for file in (raw, packed):
        for take in (
            lambda file: read_weights(str(file), "--pretrained"),
            lambda file: open_scorer(f"npr:{file}"),
            lambda _: load_checkpoint(tmp_path),
        ):
            with pytest.raises(GanscopeError):
                take(file)
    assert not trap.exists()
    torch.load(packed, weights_only=False)
    assert trap.exists()  # it would have


CNN_3: dict[str, Any] = {"width": 8, "depth": 3}
PART: dict[str, Any] = {"architecture": "cnn", "arguments": CNN_3, "input": {"size": 32}}
COUNTS = {"photographs": 9, "called_fake": 1, "at_most": 0.3, "split": "test"}
MEANS = {"mean": [0.5] * 3, "std": [0.5] * 3}


def faulty_copy(model: FolderModel, folder: Path, changes: dict[str, Any]) -> str:
    """Saved with another configuration: `part.part.name` -> value."""
    model.save(folder)
    config = json.loads((folder / CONFIG).read_text())
    for place, value in changes.items():
        *parts, name = (int(part) if part.isdigit() else part for part in place.split("."))
        holder = config
        for part in parts:
            holder = holder[part]
        holder[name] = value
    (folder / CONFIG).write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": 3}, "architecture is 3, no name"),
        ({"architecture": ["cnn"]}, r"architecture is \['cnn'\], no name"),
        ({"architecture": "cn"}, "unknown detector architecture 'cn'"),
        ({"arguments": None}, "arguments is None, no object"),
        ({"arguments": {"depth": 0}}, "detector cnn: depth is 0, not from 1 to"),
        ({"arguments.depth": 20}, "detector cnn: depth is 20, not from 1 to"),
        ({"arguments.depth": 10**9}, "arguments: depth is 1000000000, beyond"),
        ({"arguments.width": [0, 1e308]}, r"arguments: width is \[0, 1e\+308\], beyond"),
        ({"arguments.width": float("nan")}, "arguments: width is nan, beyond"),
        ({"input": []}, r"input is \[\], no object"),
        ({"input.size": 10**9}, "input: size is 1000000000, no whole number from 1 to 4096"),
        ({"input.size": 10**400}, r"input: size is 1000+\.\.\., no whole"),
        ({"input.size": 64.5}, "input: size is 64.5, no whole"),
        ({"input.size": 1}, "input: size is 1, of which it takes none"),
        ({"input.mean": [0, 0]}, r"input: mean is \[0, 0\], not three"),
        ({"input.std": [0, 1, 1]}, r"input: std is \[0, 1, 1\], not three"),
        ({"input.views": {"whole": 10**6, "settled": 0}}, "input: views is"),
        ({"input.looks_at": "faces", "input.margin": True}, "input: margin is True"),
        ({"false_alarms": COUNTS | {"at_most": []}}, r"false_alarms: at_most is \[\]"),
        ({"arguments.width": "8"}, "arguments: width is '8', no whole number"),
        ({"arguments.width": 8.0}, "arguments: width is 8.0, no whole number"),
        ({"input.views": {"whole": 80.0, "settled": 0}}, "input: views is"),
        ({"false_alarms": [1]}, r"false_alarms is \[1\], no object"),
        ({"validation": {"real": [1, "x"]}}, r"validation: real is \[1, 'x'\]"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_faulty_configuration_of_a_detector_is_a_line_that_names_it(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    detector = Detector.create("cnn", **CNN_3)
    detector.config |= {"false_alarms": COUNTS, "validation": {"real": [1], "fake": [0]}}
    name = faulty_copy(detector, tmp_path / "d", {})
    load_judge(name)
    name = faulty_copy(detector, tmp_path / "d", changes)
    with pytest.raises(GanscopeError, match=rf"{name}: config.json is faulty \({said}") as found:
        load_judge(name)
    assert "\n" not in str(found.value)
    if "detector" in said or "takes none" in said:  # what only its network can tell
        return
    picture = tmp_path / "a.png"
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(picture)
    with pytest.raises(GanscopeError, match=said):
        next(scan_images(ScanSettings(paths=(str(picture),), detector=name, out=tmp_path / "s")))
    with pytest.raises(GanscopeError, match=said):
        export_detector(ExportSettings(detector=name, out=tmp_path / "d.onnx"))


@pytest.mark.parametrize(
    "changes",
    [
        {
            "thresholds.fake": 1,
            "thresholds.real": 0,
            "calibration.scale": 1,
            "calibration.shift": 0,
        },
        {"input.mean": [0, 0, 0], "input.std": [1, 1, 1], "input.smallest": 8},
        {"training": None, "versions": None, "of a later version": {"a": [1e400]}},
        {"false_alarms": {"photographs": 0, "called_fake": 0, "at_most": None}},
        {"false_alarms": {"photographs": 9, "called_fake": 1, "at_most": 0.3}},
        {"validation": {"auroc": 0.98, "real": [1], "fake": [0]}},
        {"validation": None, "false_alarms": None},
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_no_verdict_depends_on_may_be_odd(tmp_path: Path, changes: dict[str, Any]) -> None:
    name = faulty_copy(Detector.create("cnn", **CNN_3), tmp_path / "d", changes)
    pixels = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    assert check_image(pixels, load_judge(name)).score is not None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arguments.parts": []}, r"arguments: parts is \[\], no list"),
        ({"arguments.parts.1": "x"}, "arguments: part 2 of parts: it is 'x'"),
        ({"arguments.parts.0.architecture": 1}, "part 1 of parts: architecture is 1, no name"),
        ({"arguments.parts.0.input.size": 0}, "part 1 of parts: input: size is 0"),
        ({"arguments.parts.0.input.mean": "x"}, "part 1 of parts: input: mean is 'x'"),
        ({"input.size": 16}, "part 1 of parts: input: size is 32, above that of all"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_the_parts_of_fused_networks_are_checked_too(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    parts = [PART | {"input": {"size": size, **MEANS}} for size in (32, 16)]
    detector = Detector.create("fused", parts=parts)
    load_detector(faulty_copy(detector, tmp_path, {}))
    with pytest.raises(GanscopeError, match=rf"config.json is faulty \(.*{said}"):
        load_detector(faulty_copy(detector, tmp_path, changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": {}}, r"architecture is \{\}, no name"),
        ({"architecture": "vit"}, "unknown generator architecture 'vit'"),
        ({"arguments.size": 0.5}, "arguments: size is 0.5, no whole number"),
        ({"arguments.size": 1e308}, r"arguments: size is 1e\+308, beyond"),
        ({"arguments.size": 4096}, "arguments: size is 4096, none that it makes"),
        ({"arguments.latent_dim": True}, "arguments: latent_dim is True"),
        ({"arguments.classes": "ab"}, "arguments: classes is 'ab', no list"),
        ({"input": ["edges"]}, r"input is \['edges'\]; known: edges"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_faulty_configuration_of_a_generator_is_a_line_that_names_it(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    arguments = {"size": 16, "latent_dim": 4, "width": 4, "classes": ["a", "b"]}
    generator = Generator({"architecture": "cgan", "arguments": arguments})
    load_generator(faulty_copy(generator, tmp_path, {}))
    name = faulty_copy(generator, tmp_path, changes)
    with pytest.raises(GanscopeError, match=rf"{name}: config.json is faulty \({said}"):
        load_generator(name)


def test_what_a_configuration_tells_of_takes_no_memory_until_its_weights_are_there() -> None:
    config = Detector.create("cnn", **CNN_3).config
    for found in (
        Detector.from_config(config),
        Generator.from_config(
            {"architecture": "gan", "arguments": {"size": 8, "latent_dim": 4, "width": 4}}
        ),
    ):
        assert all(weight.is_meta for weight in found.parameters())


def test_a_name_of_line_ends_that_is_listed_twice_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text('file_name,label\n"a\nb.png",0\n"a\nb.png",1\n')
    with pytest.raises(GanscopeError, match=r"'a\\nb.png' is listed twice$"):
        open_corpus(tmp_path)


@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_scores_of_what_can_be_no_path_are_a_line_or_no_harm(tmp_path: Path, end: str) -> None:
    file = tmp_path / f"scores.{end}"

    def scorer(paths: list[str | None], scores: list[float | str]) -> Any:
        table = pd.DataFrame({"path": paths, "score": scores})
        table.to_csv(file, index=False) if end == "csv" else table.to_parquet(file)
        return open_scorer(f"scores:{file}")

    for name in ("a\x00b", "a" * 5000):
        found = scorer([name, "b.png"], [0.5, 0.25])
        assert list(found.whole) == [str(tmp_path / "b.png")]
    with pytest.raises(GanscopeError, match="row 2 has no path"):
        scorer(["a.png", None], [0.5, 0.25])
    with pytest.raises(GanscopeError, match=r"the score of 'a\\n' is '\\n', no number"):
        scorer(["a\n"], ["\n"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("UPDATE pictures SET record = '{\"a\": '", "is damaged .JSONDecodeError"),
        ("UPDATE pictures SET record = '{\"warnings\": [1]}'", "is damaged .*warnings of"),
        ("UPDATE pictures SET verdict = CAST(x'fffe' AS TEXT)", "cannot be used .*UTF-8"),
        ("DROP VIEW reviewed; CREATE VIEW reviewed AS SELECT * FROM pictures", "is damaged .*"),
    ],
)
def test_a_damaged_project_is_a_line(tmp_path: Path, change: str, said: str) -> None:
    with Project(tmp_path / "p.db") as project:
        record = {"path": "x.jpg", "score": 0.1, "verdict": "real", "detector": "d", "error": None}
        project.add(record | {"thresholds": {"fake": 0.6, "real": 0.4}}, "")
        assert project.write_csv(io.StringIO()) == 1
    with contextlib.closing(sqlite3.connect(tmp_path / "p.db")) as base:
        base.executescript(change)
    with Project(tmp_path / "p.db") as project, pytest.raises(GanscopeError, match=said) as found:
        project.write_csv(io.StringIO())
    assert "\n" not in str(found.value)


def test_json_of_great_depth_is_a_line(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text('{"a": ' + "[" * 200_000)
    with pytest.raises(GanscopeError, match=r"config.json: not a readable JSON file"):
        load_detector(str(tmp_path))


def test_inspect_says_which_extra_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.heic"
    file.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))

    def missing(name: str) -> Any:
        if name == "pillow_heif":
            raise ImportError(name)
        return import_module(name)

    monkeypatch.setattr(containers, "import_module", missing)
    done = CliRunner().invoke(cli.app, ["inspect", str(file), "--json"])
    assert done.exit_code == 3
    assert "ganscope[heic]" in json.loads(done.stdout)["error"]


def test_inspect_gives_its_remarks_to_machines_too(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "a.png")
    done = CliRunner().invoke(cli.app, ["inspect", str(tmp_path / "a.png"), "--json"])
    assert isinstance(json.loads(done.stdout)["remarks"], list)


@pytest.mark.parametrize("option", ["heatmap", "timeline"])
def test_a_file_where_a_folder_should_be_is_refused_at_once(tmp_path: Path, option: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GanscopeError, match=f"--{option} .*is a file; name a folder"):
        CheckSettings(paths=("x.jpg",), **{option: tmp_path / "file"})
