"""The house: what is packaged, who may import whom, and how quickly the command answers."""

import ast
import subprocess
import sys
import time
import tomllib
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
    "ganscope.detector.judging": ROOT / "detector/judging",
    "ganscope.detector.networks": ROOT / "detector/networks",
    "ganscope.detector.published": ROOT / "detector/published",
    "ganscope.detector.training": ROOT / "detector/training",
    "ganscope.generator": ROOT / "generator",
    "ganscope.generator.borrowed": ROOT / "generator/borrowed",
    "ganscope.generator.kinds": ROOT / "generator/kinds",
}
MAY_IMPORT = {
    "ganscope": set(),
    "ganscope.config": {"ganscope"},
    "ganscope.datasets": {"ganscope", "ganscope.config"},
    "ganscope.generator": {
        "ganscope",
        "ganscope.config",
        "ganscope.datasets",
        "ganscope.generator.borrowed",
        "ganscope.generator.kinds",
    },
    "ganscope.generator.borrowed": {"ganscope", "ganscope.config", "ganscope.generator"},
    "ganscope.generator.kinds": {"ganscope", "ganscope.config", "ganscope.generator"},
    "ganscope.detector": {"ganscope", "ganscope.config", "ganscope.detector.networks"},
    "ganscope.detector.benchmark": {
        "ganscope",
        "ganscope.config",
        "ganscope.datasets",
        "ganscope.detector",
        "ganscope.detector.benchmark.report",
        "ganscope.detector.judging",
        "ganscope.detector.networks",
        "ganscope.detector.published",
        "ganscope.detector.training",
    },
    "ganscope.detector.benchmark.report": {
        "ganscope",
        "ganscope.config",
        "ganscope.datasets",
        "ganscope.detector.judging",
    },
    "ganscope.detector.judging": {
        "ganscope",
        "ganscope.config",
        "ganscope.datasets",
        "ganscope.detector",
    },
    "ganscope.detector.networks": {"ganscope", "ganscope.config"},
    "ganscope.detector.published": {
        "ganscope",
        "ganscope.config",
        "ganscope.datasets",
        "ganscope.detector.networks",
        "ganscope.detector",
    },
    "ganscope.detector.training": {
        "ganscope",
        "ganscope.config",
        "ganscope.datasets",
        "ganscope.detector",
        "ganscope.detector.judging",
        "ganscope.detector.networks",
    },
    "ganscope.cli": set(ROOMS) - {"ganscope.cli"},
}

ABOVE = {
    ROOMS["ganscope"] / name: why
    for name, why in {
        "__init__.py": "the front door names every room, lazily",
        "__main__.py": "it starts the command",
        "race.py": "an arms race needs generator and detector, which may not know each other",
    }.items()
}
"""What lies on the ground floor and stands above the rooms. Only the command line imports it."""


def room_of(module: str) -> str:
    return next(
        (r for r in sorted(ROOMS, key=len, reverse=True) if (module + ".").startswith(r + ".")), ""
    )


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or ""} | {f"{node.module}.{a.name}" for a in node.names}
    return {name for name in found if name.split(".")[0] == "ganscope"}


def test_every_package_folder_is_listed_in_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    listed = {name: ROOT / project["package-dir"][name] for name in project["packages"]}
    assert listed == ROOMS
    folders = {p.parent for room in ROOMS.values() for p in room.rglob("__init__.py")}
    assert folders == set(ROOMS.values())


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_imports_only_from_below(room: str) -> None:
    for path in ROOMS[room].glob("*.py"):
        if path in ABOVE:
            continue
        above = {room_of(m) for m in imports(path)} - MAY_IMPORT[room] - {room}
        assert not above, f"{path.relative_to(ROOT)} imports {above}"


@pytest.mark.parametrize("room", sorted(set(ROOMS) - {"ganscope.cli"}))
def test_no_room_imports_what_stands_above_it(room: str) -> None:
    for path in ROOMS[room].glob("*.py"):
        above = {name for name in imports(path) if name.startswith("ganscope.race")}
        assert not above, f"{path.relative_to(ROOT)} imports {above}"


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_template_of_the_report_is_packaged() -> None:
    """Under `make test` the package is installed, and has what a wheel has."""
    from importlib.resources import files

    assert files("ganscope.detector.benchmark.report").joinpath("page.html.jinja").is_file()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "*.jinja" in project["package-data"]["ganscope.detector.benchmark.report"]


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
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        best = min(best, time.perf_counter() - start)
    assert best < 1.5


def test_weights_in_the_package_stay_small() -> None:
    weights = list((ROOT / "src/ganscope/weights").rglob("*.safetensors"))
    assert sum(p.stat().st_size for p in weights) < 60e6
