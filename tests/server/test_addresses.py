"""Pictures at addresses: fetched within limits, and from nowhere behind the wall."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra: pip install 'ganscope[web]'")
from fastapi.testclient import TestClient

from ganscope.config import ServeSettings
from ganscope.web.app import make_app

from .served import BASE


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
