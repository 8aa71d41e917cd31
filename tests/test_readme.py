"""Every command of the README runs, in order, in one folder; only the sizes are made smaller."""

import re
import shlex
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import typer.main
from commands import run

from ganscope.cli import app

ROOT = Path(__file__).resolve().parents[1]
SMALLER = {
    r"--n \d+": "--n 60",
    r"--steps \d+": "--steps 2",
    r"--rounds \d+": "--rounds 2",
    r"--epochs \d+": "--epochs 1",
    # The one that ships takes a third of a second a view, of which a heatmap wants forty: the first
    # `check` asks it.
    r"--detector default --detector": "--detector",
    r"((check|scan) .*my_photos/.*)": r"\1 --detector runs/cnn",
}


def commands() -> list[str]:
    """The lines of the README's `sh` blocks that call ganscope, joined where they are continued."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.startswith("ganscope ")]


def smaller(command: str) -> list[str]:
    for pattern, replacement in SMALLER.items():
        command = re.sub(pattern, replacement, command)
    words = shlex.split(command)[1:]
    if words[0] == "train-detector" and "--epochs" not in words:
        words += ["--epochs", "1"]
    if words[0] == "arms-race":
        words += ["--size", "16", "--n", "60", "--first-steps", "2", "--steps", "2"]
        words += ["--epochs", "1"]
    if words[0] == "train-generator":
        words += ["--width", "8", "--batch-size", "8", "--precision", "fp32"]
    return words


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the photographs that the README takes for granted."""
    import skimage.data

    root = tmp_path_factory.mktemp("readme")
    coffee = skimage.data.coffee()[..., ::-1]
    cv2.imwrite(str(root / "photo.jpg"), coffee)
    (root / "my_photos").mkdir()
    for i in range(12):
        part = np.ascontiguousarray(np.roll(coffee, 37 * i, axis=1)[20 * i : 20 * i + 160, :200])
        cv2.imwrite(str(root / "my_photos" / f"{i}.jpg"), part)
    return root


def test_the_readme_shows_the_three_lines() -> None:
    start = ["ganscope generate --n 10000", "ganscope train-detector", "ganscope check photo.jpg"]
    assert commands()[:3] == start
    kinds = {command.split()[1] for command in commands()}
    assert {"train-generator", "benchmark", "audit", "list"} <= kinds


def test_every_command_runs(folder: Path) -> None:
    for command in commands():
        if command.split()[1] == "demo":
            continue  # `make demo`: minutes long, and made of the commands tested here
        done = run(*smaller(command), cwd=folder)
        # 1: an audit or a --fail-on that found something; 60 images are few.
        allowed = {0, 1} if "audit" in command or "--fail-on" in command else {0}
        assert done.returncode in allowed, f"{command}\n{done.stderr}"


PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))


def test_what_the_documents_link_to_is_there() -> None:
    """Files, pictures, and headings of pages."""
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if ":" in link:
                continue
            name, _, heading = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), f"{page.name} links to {link}"
            if heading:
                assert heading in headings(target), f"{page.name} links to {link}"


def headings(page: Path) -> set[str]:
    """What comes behind the # of links to a page's headings."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in found}


def test_commands_of_the_documents_have_the_options_that_are_shown() -> None:
    root: Any = typer.main.get_command(app)
    seen = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"(?:^|[`$|&]) *ganscope ([a-z][^`|#\n]*)", text, re.MULTILINE):
            command, words = root, line.split()
            while words and words[0] in getattr(command, "commands", {}):
                command = command.commands[words.pop(0)]
            if command is root:
                continue  # a sentence that begins with the name
            known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
            shown = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert shown <= known | {"--help"}, f"{page.name}: ganscope {line}"
            seen += 1
    assert seen > 100
