"""Who and what is refused: other sites, other names, no token, too much, too slow."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra: pip install 'ganscope[web]'")
from ganscope.config import ServeSettings
from ganscope.errors import GanscopeError
from ganscope.web.app import make_app
from ganscope.web.guard import HELD, Guard, Tokens
from ganscope.web.judge import Full
from ganscope.web.metrics import Metrics

from .served import closed


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


def test_trust_anchors_of_no_use_are_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "none.pem").write_text("no certificate")
    with pytest.raises(GanscopeError, match=r"none\.pem"):
        make_app(ServeSettings(trust_anchors=tmp_path / "none.pem"))
