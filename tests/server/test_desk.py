"""What is kept, reviewed, and made a corpus of."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra: pip install 'ganscope[web]'")
from fastapi.testclient import TestClient

from ganscope.config import CheckSettings, ServeSettings
from ganscope.detector.judging.checking import FIELDS, check_images
from ganscope.errors import GanscopeError
from ganscope.web.app import make_app
from ganscope.web.keeping import Keeper
from ganscope.web.project import Project
from ganscope.web.reading import Sent

from .served import BASE, closed


def test_what_is_kept_is_on_the_disk_before_it_is_answered(
    tiny: Path, tmp_path: Path, jpeg: bytes
) -> None:
    keep, project = tmp_path / "kept", tmp_path / "p.db"
    settings = ServeSettings(detector=str(tiny), keep=keep, project=project, device="cpu")
    with TestClient(make_app(settings), base_url=BASE) as client:
        answer = client.post("/api/v1/check", files={"file": ("../../up.jpg", jpeg)})
        assert "thumbnail" not in answer.json()
        client.post("/api/v1/check", files={"file": ("bad.jpg", b"x")})
        (kept,) = keep.iterdir()
        assert kept.name.startswith("up-")
        assert kept.read_bytes() == jpeg
        with Project(project) as other:  # another process would see it, too
            (one,) = other.pictures()
        assert one["path"] == str(kept)
        assert one["record"]["verdict"] == "fake"
        assert one["thumbnail"].startswith("data:image/jpeg")
        desk = client.get("/desk").text
        assert kept.name in desk


def test_a_name_of_long_letters_is_kept(tmp_path: Path) -> None:
    Keeper(tmp_path, None).keep(Sent("\U00020000" * 200 + ".png", b"x"), {"error": None}, "")
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith("\U00020000")
    assert kept.read_bytes() == b"x"


@pytest.fixture
def reviewed(tiny: Path, tmp_path: Path, astronaut: np.ndarray) -> Path:
    """A project of three pictures and a file that is none."""
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    for number in range(3):
        cv2.imwrite(str(inbox / f"<b>{number}.png"), astronaut[: 200 + number])
    (inbox / "bad.png").write_bytes(b"x")
    with Project(tmp_path / "p.db") as project:
        settings = CheckSettings(paths=(str(inbox),), detector=str(tiny), device="cpu")
        for check in check_images(settings):
            project.add(check.as_dict())
    return tmp_path / "p.db"


def test_a_person_reviews_and_exports(reviewed: Path, tmp_path: Path) -> None:
    client = closed(project=reviewed)
    page = client.get("/desk").text
    assert "4 pictures" in page
    assert "&lt;b&gt;0.png" in page
    assert "<b>0.png" not in page
    first = client.get("/desk/1").text
    assert "Wrong: it is real" in first
    after = client.post(
        "/desk/1",
        data={"truth": "real", "note": "<i>mine</i>", "show": "open", "order": "name"},
        follow_redirects=False,
    )
    assert after.headers["location"] == "/desk/2?show=open&order=name"
    client.post("/desk/2", data={"truth": "fake"})
    assert "&lt;i&gt;mine" in client.get("/desk/1").text
    assert "detector was wrong on 1" in client.get("/desk").text
    table = client.get("/desk/export.csv").text.splitlines()
    assert len(table) == 5
    assert ",real,0,<i>mine</i>," in table[1]
    picture = client.get("/desk/1/picture")
    assert picture.headers["content-type"] == "image/jpeg"
    assert picture.content[:2] == b"\xff\xd8"
    for path in (
        "/desk/99",
        f"/desk/{2**70}",
        "/desk/99/picture",
        "/desk/4/picture",
        "/desk?show=nothing",
    ):
        assert client.get(path).status_code in (404, 422), path
    assert client.post("/desk/1", data={"truth": "maybe"}).status_code == 400
    from ganscope.datasets.corpus import open_corpus

    with Project(reviewed) as project:
        assert project.write_corpus(tmp_path / "c") == (2, 0)
        assert project.write_corpus(tmp_path / "w", wrong=True) == (1, 0)
        with pytest.raises(GanscopeError, match="not empty"):
            project.write_corpus(tmp_path / "c")
    table = open_corpus(tmp_path / "c").table
    assert sorted(zip(table["label"], table["generator"], strict=True)) == [
        (0, "real"),
        (1, "reviewed"),
    ]
    assert all(Path(path).is_file() for path in table["path"])


def test_what_is_no_picture_file_is_left_out_of_a_corpus(reviewed: Path, tmp_path: Path) -> None:
    """A picture in an archive, one at an address, and a video, beside one that is a file."""
    with Project(reviewed) as project:
        (one, *_) = project.pictures(order="added")
        (tmp_path / "a.zip").write_bytes(b"x")
        (tmp_path / "clip.mp4").write_bytes(b"x")
        for path, more in (
            (str(tmp_path / "a.zip" / "1.png"), {}),
            ("https://example.org/1.png", {}),
            (str(tmp_path / "clip.mp4"), {"frames": []}),
        ):
            project.review(project.add(one["record"] | {"path": path} | more), "real", "")
        with pytest.raises(GanscopeError, match="none of its 3 reviewed pictures is a file here"):
            project.write_corpus(tmp_path / "none")
        project.review(one["id"], "real", "")
        assert project.write_corpus(tmp_path / "c") == (1, 3)


def test_a_project_knows_files_alone(reviewed: Path) -> None:
    """What comes from standard input or an address is looked at each time."""
    with Project(reviewed) as project:
        (one, *_) = project.pictures(order="added")
        assert project.has(one["path"], one["detector"])
        assert not project.has(one["path"], "other")
        for path in ("-", "https://example.org/1.png"):
            project.add(one["record"] | {"path": path})
            assert not project.has(path, one["detector"]), path


def test_reviews_outlive_another_look(reviewed: Path) -> None:
    with Project(reviewed) as project:
        (one, *_) = project.pictures()
        project.review(one["id"], "real", "seen")
        project.add(one["record"] | {"verdict": "unsure"})
        again = project.picture(one["id"])
        assert again is not None
        assert (again["truth"], again["note"], again["verdict"]) == ("real", "seen", "unsure")


def test_only_files_that_are_the_same_are_in_a_project_already(tmp_path: Path, jpeg: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg)
    with Project(tmp_path / "p.db") as project:
        for path in (str(tmp_path / "a.jpg"), "-", "https://example.org/a.jpg"):
            project.add(dict.fromkeys(FIELDS) | {"path": path, "detector": "one"})
        assert project.has(str(tmp_path / "a.jpg"), "one")
        assert not project.has(str(tmp_path / "a.jpg"), "another")
        assert not project.has("-", "one")  # another picture may come in there
        assert not project.has("https://example.org/a.jpg", "one")
        (tmp_path / "a.jpg").write_bytes(jpeg + b" ")
        assert not project.has(str(tmp_path / "a.jpg"), "one")


def test_a_project_that_is_none_is_told(tmp_path: Path) -> None:
    import sqlite3

    (tmp_path / "text.db").write_text("no project" * 100)
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE x (y)").connection.close()
    Project(tmp_path / "new.db").close()
    newer = sqlite3.connect(tmp_path / "new.db")
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    for name, said in (
        ("text.db", "cannot be used"),
        ("other.db", "no project file of ganscope"),
        ("new.db", "newer ganscope"),
    ):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(GanscopeError, match=said):
            Project(tmp_path / name)
        assert (tmp_path / name).read_bytes() == before, name


def test_without_a_project_there_is_no_desk() -> None:
    answer = closed().get("/desk")
    assert answer.status_code == 404
    assert "--project FILE.db" in answer.text


def test_export_is_written_whole(reviewed: Path, tmp_path: Path) -> None:
    text = io.StringIO()
    with Project(reviewed) as project:
        assert project.write_csv(text) == 4
        assert project.write_csv(io.StringIO(), wrong=True) == 0
    assert text.getvalue().startswith("path,score,verdict,")
