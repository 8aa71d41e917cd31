"""The game: what is counted, and which corpora are none."""

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra: pip install 'ganscope[web]'")
from fastapi.testclient import TestClient

from ganscope.errors import GanscopeError

from .served import closed


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
