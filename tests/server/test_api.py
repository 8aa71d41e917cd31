"""The API: what it answers, and what `check` says of the same file."""

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra: pip install 'ganscope[web]'")
from fastapi.testclient import TestClient

from ganscope.config import CheckSettings, ServeSettings
from ganscope.detector.judging.checking import FIELDS, check_image, check_images
from ganscope.detector.model import Detector
from ganscope.named import shipped
from ganscope.web.app import make_app
from ganscope.web.worker import validation

from .served import BASE


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
    assert answer.json()[1]["declared"] is None  # as in the rows of `check --json`
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
    images, alarms = config["training"]["images"]["calibration"], config["false_alarms"]
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

    page = (Path(__file__).resolve().parents[2] / "docs/web.md").read_text(encoding="utf-8")
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
