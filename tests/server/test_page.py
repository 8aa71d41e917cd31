"""The page and the report: without a script, and of no one else's markup."""

import re
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra: pip install 'ganscope[web]'")
from fastapi.testclient import TestClient

from ganscope.config import ServeSettings
from ganscope.detector.judging.checking import FIELDS
from ganscope.detector.model import Detector
from ganscope.errors import GanscopeError
from ganscope.web.app import make_app
from ganscope.web.reading import clean_name
from ganscope.web.report import Report

from .served import BASE, NAME


def test_the_empty_form_is_answered_by_a_page(client: TestClient) -> None:
    answer = client.post("/check", files={"files": ("", b"")})
    assert answer.status_code == 400
    assert "<h1>" in answer.text
    assert "No picture was sent" in answer.text
    card = client.post("/check", files={"files": ("", b"")}, headers={"x-ganscope": "card"})
    assert card.status_code == 400
    assert card.text.strip().startswith('<article class="card problem"')
    assert "No picture was sent" in card.text


def test_the_page_works_without_a_script(client: TestClient, jpeg: bytes) -> None:
    page = client.get("/").text
    assert 'action="/check"' in page
    assert 'enctype="multipart/form-data"' in page
    files = [("files", ("photo.jpg", jpeg)), ("files", ("other.jpg", jpeg))]
    answer = client.post("/check", files=files)
    assert answer.text.count("data:image/jpeg;base64") >= 4  # pictures and heatmaps
    assert "are a hint where to look, no proof" in answer.text
    assert answer.text.count('<b class="verdict fake">fake</b>') >= 2
    assert "1 real validation pictures" in answer.text
    report = client.post("/report", files=files)
    assert "attachment" in report.headers["content-disposition"]
    assert report.text.count("<tr data-verdict=") == 2


def test_a_picture_that_the_whole_alone_settled_says_so(tmp_path: Path, jpeg: bytes) -> None:
    detector = Detector.create("vit:test_vit", size=32)
    detector.config["input"]["views"] |= {"glance": 99.0}
    detector.config["thresholds"] |= {"fake": 0.99, "real": 0.99}  # no face decides
    detector.save(tmp_path / "vit")
    settings = ServeSettings(detector=str(tmp_path / "vit"), device="cpu")
    with TestClient(make_app(settings), base_url=BASE) as client:
        card = client.post("/check", files={"files": jpeg}, headers={"x-ganscope": "card"}).text
        assert "no place was looked at closely" in card
        assert client.post("/api/v1/check?tiles=1", files={"file": jpeg}).json()["tiles"] == []


def test_nothing_is_loaded_from_another_host(client: TestClient) -> None:
    for path in ("/", "/api", "/model-card", "/play", "/style.css", "/page.js"):
        answer = client.get(path)
        assert answer.status_code == 200, path
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        found = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(https?:)?//""", answer.text)
        assert not found, path


def test_names_and_cards_are_no_markup(client: TestClient, jpeg: bytes) -> None:
    for headers in ({}, {"x-ganscope": "card"}):
        page = client.post("/check", files={"files": (NAME, jpeg)}, headers=headers).text
        assert "<img src=x" not in page
        assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "<img src=x" not in client.post("/report", files={"files": (NAME, jpeg)}).text
    assert "<script>alert" not in client.get("/model-card").text
    assert "&lt;script&gt;alert(1)" in client.get("/model-card").text


def test_names_are_cleaned() -> None:
    assert clean_name("../../etc/passwd") == "passwd"
    assert clean_name("C:\\Users\\me\\a.jpg") == "a.jpg"
    assert clean_name("a\r\nb\x00.jpg") == "ab.jpg"
    assert clean_name("") == clean_name("a/\x00") == "picture"
    assert len(clean_name("x" * 999)) == 200


@pytest.mark.parametrize(
    "path",
    ["/static/style.css", "/..%2f..%2fetc/passwd", "/web/app.py", "/templates/base.html.jinja"],
)
def test_no_file_is_reachable_by_name(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_what_the_file_says_is_shown_and_escaped(client: TestClient, declared: bytes) -> None:
    record = client.post("/api/v1/check", files={"file": ("x.png", declared)}).json()
    assert record["declared"] == "generated"
    assert record["declared_seed"] == "5"
    page = client.post("/check", files={"files": ("x.png", declared)}).text
    assert "The file says: generated" in page
    assert "a cat" in page
    assert "<img src=x" not in page
    report = client.post("/report", files={"files": ("x.png", declared)}).text
    assert "a cat" in report
    assert "<img src=x" not in report


def test_a_report_is_one_file_and_escapes(tmp_path: Path, jpeg: bytes) -> None:
    import base64
    import hashlib

    record = dict.fromkeys(FIELDS) | {"warnings": [NAME], "thresholds": {}, "path": NAME}
    record |= {"score": 0.5, "verdict": "fake", "probability": 0.999, "detector": NAME}
    out = tmp_path / "report.html"
    with Report(out) as report:
        report.add(record | {"prompt": NAME, "evidence": {"software": [NAME]}}, "")
        report.add(record | {"error": "truncated", "path": "odd\udcff.jpg"}, "")
        assert not out.exists()
    text = out.read_text()
    assert "<img src=x" not in text
    assert text.count("&lt;img src=x onerror=alert(1)&gt;") >= 4
    assert "&gt;99%" in text
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text.replace("&#39;", "'")
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(https?:)?//""", text)
    assert not list(tmp_path.glob(".*"))


def test_a_report_takes_no_name_of_something_else(tmp_path: Path) -> None:
    for name in (tmp_path, tmp_path / "x.jpg"):
        with pytest.raises(GanscopeError, match="--report"):
            Report(name)
