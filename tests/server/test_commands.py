"""The commands `serve`, `play` and `project`, and what `check` enters."""

import http.client
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
from commands import run

pytest.importorskip("fastapi", reason="needs the extra: pip install 'ganscope[web]'")

from ganscope.errors import GanscopeError
from ganscope.web.project import Project


def test_check_writes_report_and_project_and_goes_on(tiny: Path, photo: Path) -> None:
    """Beside a name that is markup, and a file that is none; the second time only what is new."""
    folder = photo.parent / "inbox"
    folder.mkdir()
    photo.rename(folder / "<b>.jpg")
    (folder / "bad.jpg").write_bytes(b"x")
    words = ("check", "inbox", "--detector", str(tiny), "--report", "r.html", "--project", "p.db")
    done = run(*words, cwd=photo.parent)
    assert done.returncode == 3, done.stderr
    text = (photo.parent / "r.html").read_text()
    assert text.count("<tr data-verdict=") == 2
    assert "inbox/&lt;b&gt;.jpg" in text
    assert "data:image/jpeg;base64," in text
    again = run(*words[:4], "--project", "p.db", cwd=photo.parent)
    assert again.returncode == 0, again.stderr
    assert "2 pictures are in p.db already" in again.stderr
    both = run(*words[:4], "--project", "p.db", "--csv", "all.csv", cwd=photo.parent)
    assert both.returncode == 3, both.stderr
    assert len((photo.parent / "all.csv").read_text().splitlines()) == 3  # nothing passed over
    told = run("project", "p.db", "--csv", "r.csv", cwd=photo.parent)
    assert told.stdout.startswith("2 pictures, 0 reviewed")
    assert len((photo.parent / "r.csv").read_text().splitlines()) == 3
    none = run("project", "p.db", "--corpus", "c", cwd=photo.parent)
    assert none.returncode == 2
    assert "review some with ganscope serve --project p.db" in none.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux only")
def test_a_name_that_is_no_utf_8_ends_no_check(tiny: Path, photo: Path) -> None:
    folder = photo.parent / "inbox"
    folder.mkdir()
    (folder / "good.jpg").write_bytes(photo.read_bytes())
    photo.rename(os.fsdecode(os.fsencode(folder) + b"/bad\xff.jpg"))
    done = run("check", "inbox", "--detector", str(tiny), "--project", "p.db", cwd=photo.parent)
    assert done.returncode == 0, done.stderr
    assert "no UTF-8" in done.stderr
    assert run("project", "p.db", cwd=photo.parent).stdout.startswith("1 picture, 0 reviewed")


def test_what_is_no_file_is_shown_and_never_passed_over(
    tiny: Path, tmp_path: Path, jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture in an archive, one from standard input, and a video, beside a file."""
    pytest.importorskip("av", reason="needs the extra: pip install 'ganscope[video]'")
    from test_videos import clip

    from ganscope.cli.check import check

    monkeypatch.chdir(tmp_path)
    Path("photo.jpg").write_bytes(jpeg)
    clip(Path("clip.mp4"), (2,))
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.write("photo.jpg", "in.jpg")
    for _ in range(2):  # in the second report, the file comes out of the project
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(jpeg)))
        check(
            ["photo.jpg", "clip.mp4", "a.zip", "-"],
            detector=str(tiny),
            report=Path("r.html"),
            project=Path("p.db"),
            device="cpu",
        )
        text = Path("r.html").read_text()
        assert text.count("<tr data-verdict=") == 4
        assert text.count('<img src="data:image/jpeg;base64,') == 4
        with Project(Path("p.db")) as project:
            known = project.pictures()
            assert len(known) == 4
            assert all(one["thumbnail"] for one in known)
            assert project.has("photo.jpg", known[0]["detector"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("serve", "--port", "99999"), "--port must be between"),
        (("serve", "--port", "TAKEN"), "cannot be had"),
        (("serve", "--host", "no such host", "--port", "0"), "cannot be had"),
        (("serve", "--detector", "nowhere/x", "--port", "0"), "nowhere"),
        (("serve", "--token-file", "none.txt", "--port", "0"), "cannot be read"),
        (
            ("serve", "--allow-origin", "example.org", "--port", "0"),
            "--allow-origin must look like",
        ),
        (("serve", "--queue", "0"), "--queue must be at least 1"),
        (("serve", "--corpus", "nowhere", "--port", "0"), "no such corpus"),
        (("play", "nowhere", "--port", "0"), "no such corpus"),
        (("project", "nowhere.db"), "no such file"),
        (("check", "x.jpg", "--report", "y.jpg"), "name of an image"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    words: tuple[str, ...], said: str, tmp_path: Path, photo: Path
) -> None:
    photo.rename(tmp_path / "x.jpg")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run(*(port if word == "TAKEN" else word for word in words), cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"x.jpg", "cache"}


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from ganscope.cli import serve

    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "uvicorn" else True)
    with pytest.raises(GanscopeError, match=r"need uvicorn: pip install 'ganscope\[web\]'"):
        serve.need_extra()


def test_the_server_ends_when_it_is_told_to(tiny: Path, tmp_path: Path, jpeg: bytes) -> None:
    """What was asked before is answered, and the worker is gone."""
    words = ("serve", "--detector", str(tiny), "--port", "0", "--no-browser")
    process = subprocess.Popen(
        [sys.executable, "-m", "ganscope", *words], stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert process.stderr
    port = int(process.stderr.readline().split()[0].rstrip("/").rpartition(":")[2])
    answers: list[int] = []

    def ask() -> None:
        line = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        line.request("POST", "/api/v1/check", jpeg, {"Content-Type": "image/jpeg"})
        answers.append(line.getresponse().status)

    asking = [threading.Thread(target=ask) for _ in range(6)]
    for one in asking:
        one.start()
    time.sleep(0.3)
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    children = [child for path in tasks for child in path.read_text().split()]
    process.send_signal(signal.SIGTERM)
    for one in asking:
        one.join()
    assert answers == [200] * 6
    assert process.wait(60) in (0, 128 + signal.SIGTERM)
    assert "Traceback" not in process.stderr.read()
    patience = time.monotonic() + 20
    while any(map(is_running, children)) and time.monotonic() < patience:
        time.sleep(0.1)
    assert not any(map(is_running, children))


def is_running(process: str) -> bool:
    try:
        about = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return about.rpartition(")")[2].split()[0] != "Z"
