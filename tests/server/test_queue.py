"""The queue and its worker: several requests together, full, killed, stuck."""

import asyncio
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra: pip install 'ganscope[web]'")
from fastapi.testclient import TestClient

from ganscope.config import ServeSettings
from ganscope.errors import GanscopeError
from ganscope.web.app import make_app
from ganscope.web.judge import Full, Judge
from ganscope.web.metrics import Metrics

from .served import BASE


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
