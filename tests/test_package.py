"""The house: what is packaged, who may import whom, and how quickly the command answers."""

import ast
import os
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {
    "ganscope": ROOT / "src/ganscope",
    "ganscope.cli": ROOT / "cli",
    "ganscope.config": ROOT / "src/ganscope/config",
    "ganscope.datasets": ROOT / "datasets",
    "ganscope.detector": ROOT / "detector",
    "ganscope.detector.benchmark": ROOT / "detector/benchmark",
    "ganscope.detector.benchmark.report": ROOT / "detector/benchmark/report",
    "ganscope.detector.evidence": ROOT / "detector/evidence",
    "ganscope.detector.exported": ROOT / "detector/exported",
    "ganscope.detector.judging": ROOT / "detector/judging",
    "ganscope.detector.networks": ROOT / "detector/networks",
    "ganscope.detector.published": ROOT / "detector/published",
    "ganscope.detector.scanning": ROOT / "detector/scanning",
    "ganscope.detector.training": ROOT / "detector/training",
    "ganscope.generator": ROOT / "generator",
    "ganscope.generator.borrowed": ROOT / "generator/borrowed",
    "ganscope.generator.kinds": ROOT / "generator/kinds",
    "ganscope.together": ROOT / "src/ganscope/together",
    "ganscope.web": ROOT / "web",
}
DOORS = {
    "ganscope.detector.judge": ROOT / "detector/judge.py",
    "ganscope.detector.model": ROOT / "detector/model.py",
    "ganscope.generator.model": ROOT / "generator/model.py",
    "ganscope.generator.pixels": ROOT / "generator/pixels.py",
}
"""Modules that lie in a hall, and that the rooms off it may import though the hall stands above."""
GROUND = {"ganscope", "ganscope.config"}
DATA = GROUND | {"ganscope.datasets"}
MAY_IMPORT = {
    "ganscope": set(),
    "ganscope.config": {"ganscope"},
    "ganscope.datasets": GROUND | {"ganscope.detector.evidence"},
    **{
        f"ganscope.generator{room}": below | {f"ganscope.generator.{one}" for one in inner}
        for room, below, inner in (
            (".pixels", GROUND, ()),
            (".kinds", GROUND, ("pixels",)),
            (".model", GROUND, ("pixels", "kinds")),
            (".borrowed", DATA, ("pixels", "model")),
            ("", DATA, ("pixels", "kinds", "model", "borrowed")),
        )
    },
    **{
        f"ganscope.detector{room}": below | {f"ganscope.detector.{one}" for one in inner}
        for room, below, inner in (
            (".evidence", GROUND, ()),
            (".networks", GROUND, ()),
            (".judge", GROUND, ("networks",)),
            (".model", GROUND, ("networks", "judge")),
            (".published", GROUND, ("networks", "judge", "model")),
            (".exported", GROUND, ("networks", "judge", "model")),
            (".judging", DATA, ("judge", "model", "exported", "evidence")),
            (".scanning", DATA, ("judge", "judging", "exported", "evidence")),
            (".training", DATA, ("networks", "judge", "model", "judging", "evidence")),
            (".benchmark.report", DATA, ("judging",)),
            (
                ".benchmark",
                DATA,
                (
                    "networks",
                    "judge",
                    "model",
                    "published",
                    "judging",
                    "training",
                    "benchmark.report",
                ),
            ),
            ("", set(), ()),
        )
    },
    "ganscope.together": {*ROOMS, *DOORS} - {"ganscope.cli", "ganscope.web"},
    "ganscope.web": DATA
    | {f"ganscope.detector.{one}" for one in ("judging", "evidence", "exported")},
    "ganscope.cli": {*ROOMS, *DOORS},
}
"""Room or door -> what it may import besides itself. Only what stands above all imports a
benchmark, or generators and detectors both."""
ABOVE = {
    ROOMS["ganscope"] / "__init__.py": "the front door names every room, lazily",
    ROOMS["ganscope"] / "__main__.py": "it starts the command",
}


def files_of(room: str) -> list[Path]:
    if room in DOORS:
        return [DOORS[room]]
    return sorted({*ROOMS[room].glob("*.py")} - {*DOORS.values(), *ABOVE})


def room_of(module: str) -> str:
    places = sorted([*ROOMS, *DOORS], key=len, reverse=True)
    return next((p for p in places if (module + ".").startswith(p + ".")), "")


def module_of(path: Path) -> str:
    room = next(room for room, folder in ROOMS.items() if folder == path.parent)
    return room if path.stem == "__init__" else f"{room}.{path.stem}"


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports, those within functions, too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & MODULES) | ({node.module or ""} if names - MODULES else set())
    return {name for name in found if name.split(".")[0] == "ganscope"}


MODULES = {module_of(path) for folder in ROOMS.values() for path in folder.glob("*.py")}


def test_every_package_folder_is_listed_in_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    listed = {name: ROOT / project["package-dir"][name] for name in project["packages"]}
    assert listed == ROOMS
    folders = {p.parent for room in ROOMS.values() for p in room.rglob("__init__.py")}
    assert folders == set(ROOMS.values())


@pytest.mark.parametrize("room", sorted([*ROOMS, *DOORS]))
def test_a_room_imports_only_from_below(room: str) -> None:
    for path in files_of(room):
        above = {room_of(m) for m in imports(path)} - MAY_IMPORT[room] - {room}
        assert not above, f"{path.relative_to(ROOT)} imports {above}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    below = {
        module_of(path): imports(path) for folder in ROOMS.values() for path in folder.glob("*.py")
    }
    try:
        tuple(TopologicalSorter(below).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_template_of_the_report_is_packaged() -> None:
    """Under `make test` the package is installed, and has what a wheel has."""
    from importlib.resources import files

    assert files("ganscope.detector.benchmark.report").joinpath("page.html.jinja").is_file()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "*.jinja" in project["package-data"]["ganscope.detector.benchmark.report"]


def test_pages_of_the_server_are_packaged() -> None:
    from importlib.resources import files

    for name in ("templates/page.html.jinja", "static/style.css", "static/page.js"):
        assert files("ganscope.web").joinpath(name).is_file(), name
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert project["package-data"]["ganscope.web"] == ["templates/*.jinja", "static/*"]


def test_the_server_leaves_torch_to_its_worker() -> None:
    pytest.importorskip("fastapi")
    code = "import sys, ganscope.web.server; print('torch' in sys.modules)"
    assert python(code) == "False"


def test_import_and_help_leave_torch_alone() -> None:
    code = "import sys, ganscope, ganscope.cli, ganscope.config; print('torch' in sys.modules)"
    assert python(code) == "False"


def test_public_names_resolve_and_unknown_ones_do_not() -> None:
    assert (
        python("import ganscope; print([getattr(ganscope, n) for n in dir(ganscope)] and 'all')")
        == "all"
    )
    with pytest.raises(subprocess.CalledProcessError):
        python("import ganscope; ganscope.nothing")


def test_help_answers_quickly() -> None:
    """A loose bound: `make bench` measures; this catches an import of torch or pandas."""
    command = [sys.executable, "-m", "ganscope", "--help"]
    best = 9.0
    for _ in range(3):
        before = os.times()
        subprocess.run(command, capture_output=True, check=True)
        after = os.times()  # of work, not of waiting for others' work
        best = min(best, sum(after[2:4]) - sum(before[2:4]))
    assert best < 1.2


def test_weights_in_the_package_stay_small() -> None:
    weights = list((ROOT / "src/ganscope/weights").rglob("*.safetensors"))
    assert sum(p.stat().st_size for p in weights) < 104e6  # 92 MB in a wheel, which may have 95
