"""The page, the API, the review and the game, over HTTP; and who is refused."""

import asyncio
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

pytest.importorskip("fastapi", reason="needs the extra: pip install 'ganscope[web]'")
from fastapi.testclient import TestClient
from fragile_worker import work

from ganscope.config import CheckSettings, ServeSettings
from ganscope.detector.judging.checking import FIELDS, check_image, check_images
from ganscope.detector.model import Detector
from ganscope.errors import GanscopeError
from ganscope.named import shipped
from ganscope.web import judge as judging
from ganscope.web.app import make_app
from ganscope.web.guard import HELD, Guard, Tokens
from ganscope.web.judge import Full, Judge
from ganscope.web.keeping import Keeper
from ganscope.web.metrics import Metrics
from ganscope.web.project import Project
from ganscope.web.reading import Sent, clean_name
from ganscope.web.report import Report
from ganscope.web.worker import validation

NAME = '"><img src=x onerror=alert(1)>.jpg'
"""A file's name that must never become a part of a page."""
BASE = "http://127.0.0.1"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector on disk that calls everything fake; what it was validated by is beside it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    detector = Detector.create("cnn", width=8, depth=3).eval()
    detector.config["thresholds"] = {"fake": 0.0, "real": 0.0, "fpr_1": 0.0, "fpr_5": 0.0}
    detector.card = "# Card\n\n<script>alert(1)</script>\n"
    detector.save(folder)
    (folder / "scores.csv").write_text("split,label,score\nval,0,0.12\nval,1,0.97\ntest,1,0.5\n")
    return folder


@pytest.fixture(scope="module")
def client(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A server with a worker of its own, for all tests that only ask."""
    corpus = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for folder in ("0_real/a", "1_fake/gan", "1_fake/other"):
        (corpus / folder).mkdir(parents=True)
        for number in range(2):
            noise = rng.integers(0, 256, (80, 80, 3), np.uint8)
            cv2.imwrite(str(corpus / folder / f"{number}.png"), noise)
    settings = ServeSettings(detector=str(tiny), corpus=corpus, max_pixels=1_000_000, device="cpu")
    with TestClient(make_app(settings), base_url=BASE) as found:
        yield found


@pytest.fixture
def jpeg(astronaut: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", astronaut[..., ::-1])[1].tobytes()


def closed(**settings: Any) -> TestClient:
    """A server that has no worker, for what is refused before it comes to that."""
    return TestClient(make_app(ServeSettings(**settings)), base_url=BASE)


# -- the API ---------------------------------------------------------------------------------------


def test_the_api_says_what_check_says(client: TestClient, photo: Path, tiny: Path) -> None:
    detector = Detector.load(tiny)
    detector.name = "tiny"
    wanted = check_image(photo, detector, device="cpu").as_dict() | {"path": photo.name}
    with open(photo, "rb") as file:
        answer = client.post("/api/v1/check", files={"file": (photo.name, file)})
    assert answer.status_code == 200
    assert answer.json() == json.loads(json.dumps(wanted))
    assert list(answer.json()) == list(wanted)
    bare = client.post(
        f"/api/v1/check?name={photo.name}",
        content=photo.read_bytes(),
        headers={"content-type": "image/jpeg"},
    )
    assert bare.json() == answer.json()
    curl = {"content-type": "application/x-www-form-urlencoded"}  # what --data-binary says
    same = client.post(f"/api/v1/check?name={photo.name}", content=photo.read_bytes(), headers=curl)
    assert same.json() == answer.json()


def test_several_pictures_are_a_list_or_lines(client: TestClient, jpeg: bytes) -> None:
    files = [("files", ("a.jpg", jpeg)), ("files", ("b.txt", b"no picture"))]
    answer = client.post("/api/v1/check", files=files)
    assert [one["path"] for one in answer.json()] == ["a.jpg", "b.txt"]
    assert answer.json()[0]["verdict"] == "fake"
    assert "not an image" in answer.json()[1]["error"]
    assert list(answer.json()[1]) == list(FIELDS)
    assert answer.json()[1]["declared"] == "nothing said"  # as in the rows of `check --json`
    lines = client.post("/api/v1/check", files=files, headers={"accept": "application/x-ndjson"})
    assert [json.loads(line) for line in lines.text.splitlines()] == answer.json()
    one = client.post("/api/v1/check", files=files[:1])
    assert isinstance(one.json(), list)


def test_heatmap_and_tiles_come_when_they_are_asked_for(client: TestClient, jpeg: bytes) -> None:
    plain = client.post("/api/v1/check", files={"file": jpeg}).json()
    assert plain["heatmap"] is None
    assert "tiles" not in plain
    full = client.post("/api/v1/check?heatmap=1&tiles=1", files={"file": jpeg}).json()
    assert full["heatmap"].startswith("data:image/jpeg;base64,")
    assert {tile["size"] for tile in full["tiles"]} == {64}
    assert full["score"] == plain["score"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no picture", "not an image"),
        (b"\xff\xd8\xff\xe0" + bytes(99), "damaged"),
        ("bomb", "more than the limit of 1,000,000"),
        ("half", "truncated"),
    ],
)
def test_a_bad_file_is_a_line_with_the_right_status(
    client: TestClient, jpeg: bytes, content: bytes | str, said: str
) -> None:
    if content == "bomb":
        content = cv2.imencode(".png", np.zeros((1001, 1000), np.uint8))[1].tobytes()
    if content == "half":
        content = jpeg[: len(jpeg) // 2]
    answer = client.post("/api/v1/check", files={"file": ("x.png", content)})
    assert answer.status_code == 422
    assert said in answer.json()["error"]
    assert list(answer.json()) == list(FIELDS)
    page = client.post("/check", files={"files": ("x.png", content)})
    assert said in page.text


def test_the_ending_of_a_name_is_not_believed(client: TestClient, jpeg: bytes) -> None:
    assert client.post("/api/v1/check", files={"file": ("x.txt", jpeg)}).json()["verdict"] == "fake"


@pytest.mark.parametrize(
    ("send", "status", "said"),
    [
        ({"files": {"file": ("", b"")}}, 422, "field"),
        ({"data": {}}, 400, "no picture was sent"),
        ({"json": {"adress": "x"}}, 400, "no picture was sent"),
        ({"json": ["x"]}, 400, '{"url"'),
        ({"content": b""}, 400, "no picture was sent"),
        ({"files": [("files", ("a.jpg", b"x"))] * 65}, 413, "may bring 64 pictures"),
    ],
)
def test_a_request_without_pictures_is_told_what_to_send(
    client: TestClient, send: dict[str, Any], status: int, said: str
) -> None:
    answer = client.post("/api/v1/check", **send)
    if "files" in send and status == 422:  # an unnamed, empty file is what an empty form sends
        status, said = 400, "no picture was sent"
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]


def test_the_empty_form_is_answered_by_a_page(client: TestClient) -> None:
    answer = client.post("/check", files={"files": ("", b"")})
    assert answer.status_code == 400
    assert "<h1>" in answer.text
    assert "No picture was sent" in answer.text
    card = client.post("/check", files={"files": ("", b"")}, headers={"x-ganscope": "card"})
    assert card.status_code == 400
    assert card.text.strip().startswith('<article class="card problem"')
    assert "No picture was sent" in card.text


def test_a_video_is_judged_as_check_does(client: TestClient, tiny: Path, tmp_path: Path) -> None:
    """By its content, whatever its name; the page shows a frame of it."""
    pytest.importorskip("av", reason="needs the extra: pip install 'ganscope[video]'")
    from test_videos import clip

    path = clip(tmp_path / "clip.mp4", (4, 3))
    settings = CheckSettings(paths=(str(path),), detector=str(tiny), device="cpu")
    (check,) = check_images(settings)
    sent = {"files": {"file": ("clip.jpg", path.read_bytes())}}
    answer = client.post("/api/v1/check?tiles=true&heatmap=true", **sent)
    assert answer.status_code == 200
    expected = check.as_dict() | {"path": "clip.jpg", "detector": "tiny", "tiles": []}
    assert len(expected["frames"]) == 7
    assert answer.json() == json.loads(json.dumps(expected))
    page = client.post("/check", **sent).text
    assert "most suspect of the 7 frames" in page
    assert page.count('src="data:image/jpeg;base64,') == 2  # and in the report's row
    inspected = client.post("/api/v1/inspect", **sent)
    assert inspected.status_code == 422
    assert "a video" in inspected.json()["error"]


def test_the_shipped_detector_tells_its_validation() -> None:
    """The counts are those that its thresholds and false alarms are made of."""
    config = json.loads((shipped("detectors")["default"] / "config.json").read_text())
    real, fake = (validation(config, None)[name] for name in ("real", "fake"))  # type: ignore[index]
    images, alarms = config["training"]["images"]["train"], config["false_alarms"]
    assert (sum(real), sum(fake)) == (images["real"], images["fake"])
    assert len(real) == len(fake) == 20
    above = int(config["thresholds"]["fake"] * 20)
    assert sum(real[above + 1 :]) <= alarms["called_fake"] <= sum(real[above:])
    missed = int(config["thresholds"]["real"] * 20)
    assert sum(fake[:missed]) <= 0.1 * sum(fake) <= sum(fake[: missed + 1])


def test_a_defect_is_told_with_the_headers_of_every_answer() -> None:
    app = make_app(ServeSettings())
    app.add_api_route("/api/v1/broken", lambda: 1 / 0)
    answer = TestClient(app, base_url=BASE, raise_server_exceptions=False).get("/api/v1/broken")
    assert answer.status_code == 500
    assert "defect of ours" in answer.json()["error"]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_trust_anchors_of_no_use_are_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "none.pem").write_text("no certificate")
    with pytest.raises(GanscopeError, match=r"none\.pem"):
        make_app(ServeSettings(trust_anchors=tmp_path / "none.pem"))


def test_a_name_of_long_letters_is_kept(tmp_path: Path) -> None:
    Keeper(tmp_path, None).keep(Sent("\U00020000" * 200 + ".png", b"x"), {"error": None}, "")
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith("\U00020000")
    assert kept.read_bytes() == b"x"


def test_health_detectors_and_metrics(client: TestClient, jpeg: bytes) -> None:
    client.post("/api/v1/check", files={"file": jpeg})
    assert client.get("/api/v1/health").json()["status"] == "ok"
    about = client.get("/api/v1/detectors").json()
    assert about["shipped"] == ["default"]
    assert about["detector"]["name"] == "tiny"
    real, fake = (about["detector"]["validation"][name] for name in ("real", "fake"))
    assert (real[2], sum(real), fake[19], sum(fake)) == (1, 1, 1, 1)
    counted = client.get("/api/v1/metrics").text
    found = re.search(r'ganscope_pictures_total\{verdict="fake"\} (\d+)', counted)
    assert found
    assert int(found[1]) >= 1
    assert 'route="/api/v1/check",status="200"' in counted


def test_the_openapi_document_has_examples(client: TestClient) -> None:
    document = client.get("/api/v1/openapi.json").json()
    check = document["paths"]["/api/v1/check"]["post"]
    example = check["responses"]["200"]["content"]["application/json"]["example"]
    assert list(example) == list(FIELDS)
    assert set(check["requestBody"]["content"]) >= {"multipart/form-data", "application/json"}
    assert "429" in check["responses"]
    assert {"/api/v1/inspect", "/api/v1/health", "/api/v1/metrics"} <= set(document["paths"])


@pytest.fixture
def declared(astronaut: np.ndarray) -> bytes:
    """A PNG that says it was generated, in words that must never become markup."""
    out, texts = io.BytesIO(), PngInfo()
    prompt = f"a cat {NAME}"
    texts.add_text(
        "parameters", f"{prompt}\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Model: {NAME}"
    )
    exif = Image.Exif()
    exif[0x010E] = exif[0x0131] = NAME
    Image.fromarray(astronaut).save(out, "PNG", pnginfo=texts, exif=exif)
    return out.getvalue()


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


def test_inspect_says_what_the_command_says(
    client: TestClient, declared: bytes, jpeg: bytes, tmp_path: Path
) -> None:
    from ganscope.config import InspectSettings
    from ganscope.detector.evidence.inspection import inspect_images

    (tmp_path / "x.png").write_bytes(declared)
    (wanted,) = inspect_images(InspectSettings(paths=(str(tmp_path / "x.png"),)))
    found = client.post("/api/v1/inspect", files={"file": ("x.png", declared)}).json()
    alone = {"path": "x.png", "remarks": []}  # what options could find is said on a terminal alone
    assert found == json.loads(json.dumps(wanted.as_dict())) | alone
    bad = client.post("/api/v1/inspect", files={"file": ("x.png", b"no picture")})
    assert bad.status_code == 422
    assert "not an image" in bad.json()["error"]


def test_the_client_of_the_docs(
    client: TestClient, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx

    page = (Path(__file__).resolve().parents[1] / "docs/web.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    known: dict[str, Any] = {}
    exec(code, known)
    answers = [httpx.Response(429, headers={"Retry-After": "0"})]

    def post(url: str, timeout: float, **rest: Any) -> Any:
        return answers.pop() if answers else client.post(url, **rest)

    monkeypatch.setattr(httpx, "post", post)
    record = known["check"](photo, server=BASE, token="some-token-of-some-length")
    assert (record["path"], record["verdict"]) == (photo.name, "fake")


# -- addresses -------------------------------------------------------------------------------------


class Pages(BaseHTTPRequestHandler):
    """A web server with a picture, and a way to the machine's own metadata."""

    picture = b""

    def do_GET(self) -> None:
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "http://169.254.169.254/latest/meta-data")
            self.end_headers()
            return
        self.send_response(200 if self.path == "/a%20b.jpg" else 404)
        self.end_headers()
        self.wfile.write(self.picture)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def other_site(jpeg: bytes) -> Iterator[str]:
    Pages.picture = jpeg
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/x.jpg",
        "http://localhost:8000/api/v1/health",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.1/",
        "http://192.168.1.1/",
        "http://0.0.0.0/",
        "http://2130706433/",
        "http://0x7f000001/",
        "file:///etc/passwd",
        "ftp://example.org/x.jpg",
        "gopher://127.0.0.1/",
        "/etc/passwd",
        "http://",
    ],
)
def test_addresses_behind_the_wall_are_refused(client: TestClient, url: str) -> None:
    answer = client.post("/api/v1/check", json={"url": url})
    assert answer.status_code == 422, answer.text
    assert "root:" not in answer.text
    page = client.post("/check", data={"url": url})
    assert page.status_code == 422


def test_a_picture_at_an_address(quick: None, other_site: str, jpeg: bytes) -> None:
    url = f"{other_site}/a%20b.jpg"
    with TestClient(make_app(ServeSettings(allow_private=True)), base_url=BASE) as client:
        assert client.post("/api/v1/check", json={"url": url}).json()["path"] == "a b.jpg"
        for many in ({"urls": [url, url]}, {"urls": [url]}):
            found = client.post("/api/v1/check", json=many).json()
            assert [one["path"] for one in found] == ["a b.jpg"] * len(many["urls"])
        assert client.post("/api/v1/check", data={"url": url}).json()["path"] == "a b.jpg"
        missing = client.post("/api/v1/check", json={"url": f"{other_site}/no.jpg"})
        assert missing.status_code == 422
        assert "404" in missing.json()["error"]
    with TestClient(make_app(ServeSettings(fetch=False)), base_url=BASE) as client:
        assert client.post("/api/v1/check", json={"url": url}).status_code == 403
        assert 'name="url"' not in client.get("/").text


def test_one_request_fetches_no_more_than_it_may_send(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in number, which is told before the first is asked, nor in bytes, nor for longer."""
    from ganscope.web import asking

    fetched: list[str] = []

    def fetch(url: str, limits: Any) -> bytes:
        fetched.append(url)
        return bytes(400_000)

    monkeypatch.setattr(asking, "fetch_bytes", fetch)
    settings = ServeSettings(queue=8, max_mb=1, timeout=1)
    with TestClient(make_app(settings), base_url=BASE) as client:
        urls = [f"https://example.org/{number}" for number in range(9)]
        for sent in (
            {"json": {"urls": urls}},
            {"data": {"urls": "\n".join(urls)}},
            {"files": [("urls", (None, "\n".join(urls)))]},
        ):
            assert client.post("/api/v1/check", **sent).status_code == 413
            assert not fetched
        assert client.post("/api/v1/check", json={"urls": urls[:2]}).status_code == 200
        fetched.clear()
        assert client.post("/api/v1/check", json={"urls": urls[:8]}).status_code == 413
        assert len(fetched) == 3
        monkeypatch.setattr(asking, "fetch_bytes", lambda *_: time.sleep(0.4) or b"x")
        assert client.post("/api/v1/check", json={"urls": urls[:8]}).status_code == 504


def test_a_redirect_leads_nowhere_behind_the_wall(
    quick: None, other_site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first server passes for a public one; where it sends us is looked at again."""
    from ganscope import fetching

    asked: list[str] = []

    def public(address: str) -> bool:
        asked.append(address)
        return address == "127.0.0.1"

    monkeypatch.setattr(fetching, "is_public", public)
    with TestClient(make_app(ServeSettings()), base_url=BASE) as client:
        answer = client.post("/api/v1/check", json={"url": f"{other_site}/away"})
    assert asked == ["127.0.0.1", "169.254.169.254"]
    assert answer.status_code == 422
    assert "public internet" in answer.json()["error"]


# -- the page --------------------------------------------------------------------------------------


def test_the_page_works_without_a_script(client: TestClient, jpeg: bytes) -> None:
    page = client.get("/").text
    assert 'action="/check"' in page
    assert 'enctype="multipart/form-data"' in page
    files = [("files", ("photo.jpg", jpeg)), ("files", ("other.jpg", jpeg))]
    answer = client.post("/check", files=files)
    assert answer.text.count("data:image/jpeg;base64") >= 4  # pictures and heatmaps
    assert answer.text.count('<b class="verdict fake">fake</b>') >= 2
    assert "1 real validation pictures" in answer.text
    report = client.post("/report", files=files)
    assert "attachment" in report.headers["content-disposition"]
    assert report.text.count("<tr data-verdict=") == 2


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


# -- who is refused --------------------------------------------------------------------------------


def test_other_sites_may_neither_send_nor_read(jpeg: bytes) -> None:
    client = closed(allow_origin=("https://friend.example",))
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"origin": "http://127.0.0.1:9000"},
    ):
        for path in ("/check", "/report", "/api/v1/check", "/login", "/play", "/desk/1"):
            answer = client.post(path, files={"file": jpeg}, headers=headers)
            assert answer.status_code == 403, (path, headers)
    part = {"sec-fetch-site": "cross-site", "sec-fetch-dest": "image"}
    for path in ("/play", "/", "/style.css", "/api/v1/health"):  # each round of the game is judged
        assert client.get(path, headers=part).status_code == 403, path
    assert client.get("/", headers=part | {"sec-fetch-dest": "document"}).status_code == 200
    assert client.get("/", headers=part | {"sec-fetch-site": "same-origin"}).status_code == 200
    assert "access-control-allow-origin" not in client.get("/api/v1/health").headers
    friend = client.get("/api/v1/health", headers={"origin": "https://friend.example"})
    assert friend.headers["access-control-allow-origin"] == "https://friend.example"
    before = client.options("/api/v1/check", headers={"origin": "https://friend.example"})
    assert before.status_code == 204
    assert (
        client.options("/api/v1/check", headers={"origin": "https://evil.example"}).status_code
        != 204
    )
    assert client.post("/check", headers={"origin": "https://friend.example"}).status_code == 403


def test_another_name_of_this_machine_is_refused() -> None:
    rebound = {"host": "evil.example:8000"}
    assert closed().get("/api/v1/health", headers=rebound).status_code == 421
    assert closed(allow_host=("evil.example",)).get("/", headers=rebound).status_code == 200
    assert closed().get("/", headers={"host": "[::1]:8000"}).status_code == 200
    assert closed(host="0.0.0.0").get("/", headers=rebound).status_code == 200
    assert (
        closed(host="0.0.0.0", allow_host=("a.example",)).get("/", headers=rebound).status_code
        == 421
    )


def test_without_a_token_nothing_is_answered(tmp_path: Path) -> None:
    token = "a-token-of-some-length"
    (tmp_path / "tokens.txt").write_text(f"# for the desk\n{token}\nanother-token-of-some-length\n")
    client = closed(token_file=tmp_path / "tokens.txt")
    assert client.get("/api/v1/detectors").status_code == 401
    assert client.post("/api/v1/check", content=b"x").status_code == 401
    wrong = {"authorization": "Bearer a-token-of-some-lengtH"}
    assert client.get("/api/v1/detectors", headers=wrong).status_code == 401
    right = {"authorization": f"Bearer {token}"}
    assert client.get("/api/v1/detectors", headers=right).status_code != 401
    assert client.get("/api/v1/health").status_code != 401
    page = client.get("/", follow_redirects=False)
    assert (page.status_code, page.headers["location"]) == (303, "/login")
    assert client.post("/login", data={"token": "nonsense"}).status_code == 401
    entered = client.post("/login", data={"token": token}, follow_redirects=False)
    assert entered.status_code == 303
    assert re.search("httponly; .*samesite=strict", entered.headers["set-cookie"].lower())
    assert token not in entered.headers["set-cookie"]
    assert client.get("/").status_code == 200


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "holds no token"), ("# x\n", "holds no token"), ("short", "less than 16")],
)
def test_a_token_file_of_no_use_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(GanscopeError, match=said):
        closed(token_file=tmp_path / "t.txt")
    with pytest.raises(GanscopeError, match="cannot be read"):
        closed(token_file=tmp_path / "nowhere.txt")


def test_a_request_that_is_too_large_is_refused(jpeg: bytes) -> None:
    client = closed(max_mb=0.01)
    for path in ("/api/v1/check", "/check"):
        told = client.post(path, files={"file": jpeg})
        assert told.status_code == 413
        assert "0.01 MB" in told.text

        def pieces() -> Iterator[bytes]:  # says nothing of its length
            yield from (bytes(1000) for _ in range(100))

        assert client.post(path, content=pieces()).status_code == 413


# -- keeping, reviewing ----------------------------------------------------------------------------


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


# -- the report ------------------------------------------------------------------------------------


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


# -- the game --------------------------------------------------------------------------------------


def test_the_game_counts_player_and_detector(client: TestClient) -> None:
    rounds = 0
    for kind in ("pair", "single", "pair"):
        page = client.get(f"/play?kind={kind}").text
        name = re.search(r'name="round" value="([^"]+)"', page)
        assert name
        shown = client.get(f"/play/{name[1]}/0")
        assert shown.headers["content-type"] == "image/jpeg"
        on_the_table = page.partition("</form>")[0]
        assert not re.search(r"\b(gan|other|0_real|[01]\.png)\b", on_the_table)
        answer = client.post("/play", data={"round": name[1], "choice": 0}).text
        rounds += 1
        assert re.search(r'verdict (real|fake)">(Right|Wrong)<', answer)
        assert "The detector" in answer
        assert client.get(f"/play/{name[1]}/0").status_code == 404
        again = client.post("/play", data={"round": name[1], "choice": 0}, follow_redirects=False)
        assert again.status_code == 303
    tally = client.get("/play").text
    assert re.search(rf"</b> of {rounds} you", tally) or "left out" in tally


def test_what_counts_as_right_in_the_game() -> None:
    from ganscope.web.game import by_detector, tally

    def said(score: float | None, verdict: str = "unsure") -> dict[str, Any]:
        return {"score": score, "verdict": verdict, "error": None}

    assert by_detector("pair", [1, 0], [said(0.9), said(0.1)]) == 1
    assert by_detector("pair", [0, 1], [said(0.9), said(0.1)]) == 0
    assert by_detector("pair", [0, 1], [said(0.1), said(0.1)]) == 0.5
    assert by_detector("pair", [0, 1], [said(0.1), said(None)]) is None
    assert by_detector("single", [1], [said(0.9, "fake")]) == 1
    assert by_detector("single", [0], [said(0.9, "fake")]) == 0
    assert by_detector("single", [0], [said(0.5)]) == 0.5
    rows = [
        {"generator": "a", "right": 1, "detector_right": 0.5},
        {"generator": "b", "right": 0, "detector_right": 1.0},
        {"generator": "b", "right": 1, "detector_right": None},
    ]
    found = tally(rows)
    assert (found["many"], found["you"], found["detector"], found["silent"]) == (2, 1, 1.5, 1)
    assert found["curve"] == [(1, 0.5), (0.5, 0.75)]
    assert found["by_generator"] == [("a", 1, 1, 0.5), ("b", 1, 0, 1.0)]


def test_a_corpus_of_one_kind_is_no_game(tmp_path: Path, astronaut: np.ndarray) -> None:
    (tmp_path / "0_real").mkdir()
    (tmp_path / "1_fake").mkdir()
    cv2.imwrite(str(tmp_path / "0_real" / "x.png"), astronaut)
    with pytest.raises(GanscopeError, match="holds no generated pictures"):
        closed(corpus=tmp_path)
    with pytest.raises(GanscopeError, match="no such corpus"):
        closed(corpus=tmp_path / "nowhere")


# -- the queue and its worker ----------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "work", work)


def answers_of(judge: Judge, do: Any) -> Any:
    async def whole() -> Any:
        await judge.run()
        try:
            return await do()
        finally:
            await judge.stop()

    return asyncio.run(whole())


def some_judge(**settings: Any) -> Judge:
    return Judge(ServeSettings(**settings), Metrics())


@pytest.mark.usefixtures("quick")
def test_pictures_of_several_requests_are_judged_together() -> None:
    judge = some_judge(together=4)

    async def do() -> list[dict[str, Any]]:
        asked = [judge.submit([(str(number), b"")])[0] for number in range(9)]
        return list(await asyncio.gather(*asked))

    found = answers_of(judge, do)
    assert [one["path"] for one in found] == [str(number) for number in range(9)]
    assert sorted(one["of"] for one in found) == [1] + [4] * 8


@pytest.mark.usefixtures("quick")
def test_a_full_queue_says_when_to_come_back() -> None:
    judge = some_judge(queue=3, together=1)

    async def do() -> None:
        asked = judge.submit([("a", b""), ("b", b"")])
        with pytest.raises(Full) as told:
            judge.submit([("c", b""), ("d", b"")])  # all or none
        assert told.value.seconds >= 1
        asked += judge.submit([("c", b"")])
        await asyncio.gather(*asked)
        await judge.submit([("d", b"")])[0]

    answers_of(judge, do)


@pytest.mark.usefixtures("quick")
def test_a_picture_that_ends_the_worker_is_answered_and_harms_no_other() -> None:
    judge = some_judge(together=8)

    async def do() -> list[dict[str, Any]]:
        names = ["a", "poison", "b", "c"]
        return list(await asyncio.gather(*judge.submit([(name, b"") for name in names])))

    found = answers_of(judge, do)
    assert [one["error"] is None for one in found] == [True, False, True, True]
    assert "ended the process" in found[1]["error"]


@pytest.mark.usefixtures("quick")
def test_a_picture_that_hangs_is_given_up() -> None:
    judge = some_judge(timeout=1)

    async def do() -> list[dict[str, Any]]:
        return list(await asyncio.gather(*judge.submit([("stuck", b""), ("a", b"")])))

    found = answers_of(judge, do)
    assert "took too long" in found[0]["error"]
    assert found[1]["error"] is None


@pytest.mark.usefixtures("quick")
def test_killing_the_worker_loses_nothing() -> None:
    judge = some_judge(together=4)

    async def do() -> list[dict[str, Any]]:
        asked = judge.submit([(str(number), b"") for number in range(12)])
        await asked[0]
        assert judge.process
        os.kill(judge.process, signal.SIGKILL)
        return list(await asyncio.gather(*asked))

    assert all(one["error"] is None for one in answers_of(judge, do))


@pytest.mark.usefixtures("quick")
def test_a_worker_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = some_judge()
    start, tries = judge.start, []

    def failing() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise BlockingIOError("no process to be had")
        start()

    async def do() -> dict[str, Any]:
        monkeypatch.setattr(judge, "start", failing)
        assert judge.process
        os.kill(judge.process, signal.SIGKILL)
        return await judge.submit([("a", b"")])[0]

    assert answers_of(judge, do)["error"] is None
    assert len(tries) == 3


@pytest.mark.usefixtures("quick")
def test_nobody_judges_what_nobody_waits_for() -> None:
    judge = some_judge(together=1)

    async def do() -> list[dict[str, Any]]:
        first, gone, last = judge.submit([("a", b""), ("stuck", b""), ("b", b"")])
        gone.cancel()
        return list(await asyncio.gather(first, last))

    assert [one["path"] for one in answers_of(judge, do)] == ["a", "b"]


def test_full_and_slow_over_http(quick: None, jpeg: bytes) -> None:
    settings = ServeSettings(queue=1, timeout=2)
    with TestClient(make_app(settings), base_url=BASE) as client:
        many = client.post("/api/v1/check", files=[("files", ("a", b"x"))] * 3)
        assert many.status_code == 413
        assert "may bring 1 pictures" in many.json()["error"]
        late: list[int] = []

        def stuck() -> None:
            sent = client.post("/api/v1/check", files={"file": ("stuck", b"x")})
            late.append(sent.status_code)

        asking = threading.Thread(target=stuck)
        asking.start()
        while not client.get("/api/v1/health").json()["waiting"]:
            time.sleep(0.01)
        full = client.post("/api/v1/check", files={"file": ("a", b"x")})
        assert full.status_code == 429
        assert int(full.headers["retry-after"]) >= 1
        asking.join()
        assert late[0] in (422, 504)
        for _ in range(30):  # the new worker needs its time
            answer = client.post("/api/v1/check", files={"file": ("a", b"x")})
            if answer.status_code == 200:
                break
            assert answer.status_code in (429, 504)
            time.sleep(0.5)
        assert answer.status_code == 200


def test_a_detector_that_is_none_is_told(tmp_path: Path) -> None:
    judge = some_judge(detector=str(tmp_path / "nowhere"))
    with pytest.raises(GanscopeError, match="nowhere"):
        judge.start()


def test_all_requests_together_are_held_within_a_limit() -> None:
    """Of many large ones at once some are told to come back, and can once others are answered."""
    settings = ServeSettings(max_mb=0.01)

    async def do() -> None:
        gate = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await gate.wait()

        guard = Guard(app, settings, Tokens(None), Metrics())

        async def ask() -> None:
            async def receive() -> dict[str, Any]:
                return {"type": "http.request", "body": bytes(10_000), "more_body": False}

            headers = [(b"host", b"localhost")]
            scope = {"type": "http", "method": "POST", "path": "/api/v1/check", "headers": headers}
            await guard(scope, receive, receive)

        asked = [asyncio.create_task(ask()) for _ in range(HELD)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(Full):
            await asyncio.wait_for(ask(), 10)
        gate.set()
        await asyncio.gather(*asked)
        await ask()
        assert guard.held == 0

    asyncio.run(do())


def test_slow_and_half_uploads_end(quick: None) -> None:
    """A body that does not come in time, or never comes whole, is answered, or let go."""
    app = make_app(ServeSettings(timeout=1))

    async def ask(end: str) -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []
        told = iter([{"type": "http.request", "body": b"\xff\xd8", "more_body": True}])

        async def receive() -> dict[str, Any]:
            for message in told:
                return message
            if end == "gone":
                return {"type": "http.disconnect"}
            await asyncio.sleep(100)
            return {}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/api/v1/check",
            "raw_path": b"/api/v1/check",
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"image/jpeg")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        await app(scope, receive, send)
        return sent

    for end in ("slow", "gone"):
        sent = asyncio.run(ask(end))
        assert sent[0]["status"] == 408, end


def test_export_is_written_whole(reviewed: Path, tmp_path: Path) -> None:
    text = io.StringIO()
    with Project(reviewed) as project:
        assert project.write_csv(text) == 4
        assert project.write_csv(io.StringIO(), wrong=True) == 0
    assert text.getvalue().startswith("path,score,verdict,")


# -- the commands ----------------------------------------------------------------------------------


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ganscope", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


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
