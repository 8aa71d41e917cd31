"""The container's files, as far as they can be tested without Docker."""

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from ganscope.cli import app
from ganscope.config import ServeSettings

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
LINES = [line.split(None, 1) for line in TEXT.splitlines() if line and line[0] not in " #"]


def of(word: str) -> list[str]:
    return [rest for name, rest in LINES if name == word]


def serves(words: list[str]) -> dict[str, Any]:
    """What the command line makes of a command in the container."""
    assert words[0] == "serve"
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    return command.make_context("serve", words[1:]).params


def test_what_is_copied_is_there_and_whole() -> None:
    copied = {name for rest in of("COPY") if "--from" not in rest for name in rest.split()[:-1]}
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.split("/")[0] for path in project["package-dir"].values()}
    assert folders <= copied  # every folder that the package is made of
    let = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"}
    assert let == copied


def test_it_reads_what_check_reads_and_judges_the_quick_way() -> None:
    """With every extra that a server can use: HEIC, videos, onnxruntime."""
    (install,) = [rest for rest in of("RUN") if ".[" in rest]
    extras = install.partition("[")[2].partition("]")[0].split(",")
    assert {"web", "formats", "video", "onnx"} <= set(extras)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras) <= set(known["optional-dependencies"])


def test_it_runs_as_nobody_special_and_serves() -> None:
    assert of("USER") == ["10001"]
    assert of("ENTRYPOINT") == ['["ganscope"]']
    given = serves(json.loads(of("CMD")[0]))
    assert given["host"] == "0.0.0.0"
    assert not given["browser"]
    assert of("EXPOSE") == [str(given["port"])]
    ServeSettings(
        **{
            name: tuple(v) if isinstance(v, list) else v
            for name, v in given.items()
            if v is not None
        }
    )
    last = [i for i, (name, _) in enumerate(LINES) if name == "FROM"][-1]
    names = [name for name, _ in LINES[last:]]
    assert names.index("USER") < names.index("ENTRYPOINT")


def test_its_health_is_asked_of_a_route_that_there_is() -> None:
    pytest.importorskip("fastapi")
    from ganscope.web.api import router

    (check,) = of("HEALTHCHECK")
    path = re.search(r"http://127\.0\.0\.1:8000(/[\w/]+)", check)
    assert path
    assert path[1] in {getattr(route, "path", "") for route in router.routes}


def test_the_shell_can_read_its_commands() -> None:
    for rest in of("RUN"):
        assert shlex.split(rest)
    assert any("rm -rf /var/lib/apt/lists" in rest for rest in of("RUN"))


def test_compose_gives_no_more_than_is_needed() -> None:
    (service,) = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"].values()
    given = serves(service["command"])
    assert given["allow_host"] == ["localhost"]
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert str(given["project"]).startswith(service["volumes"][0].split(":")[1])
