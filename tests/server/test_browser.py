"""The page in a real browser: upload, verdict, heatmap, review, game; dark, and on a phone.

Skips itself without playwright (`pip install playwright`) or a Chromium.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from ganscope.config import CheckSettings
from ganscope.detector.judging.checking import check_images
from ganscope.detector.model import Detector
from ganscope.web.project import Project
from ganscope.web.report import Report, thumbnail_of

playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
pytest.importorskip("fastapi", reason="needs the extra: pip install 'ganscope[web]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
if CHROMIUM is None:
    pytest.skip("there is no Chromium here", allow_module_level=True)
NAME = "<img src=x onerror=alert(1)>.png"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector, pictures, a project of them, and a corpus to play with."""
    folder = tmp_path_factory.mktemp("web")
    torch.manual_seed(0)
    detector = Detector.create("cnn", width=8, depth=3).eval()
    detector.config["thresholds"] = {"fake": 0.0, "real": 0.0, "fpr_1": 0.0, "fpr_5": 0.0}
    detector.save(folder / "tiny")
    rng = np.random.default_rng(0)
    for below in ("corpus/0_real/a", "corpus/1_fake/gan", "inbox"):
        (folder / below).mkdir(parents=True)
        for number in range(2):
            noise = rng.integers(0, 256, (120 + number, 200, 3), np.uint8)
            cv2.imwrite(str(folder / below / f"{number}.png"), noise)
    shutil.copy(folder / "inbox" / "0.png", folder / "inbox" / NAME)
    with (
        Project(folder / "p.db") as project,
        Report(folder / "report.html") as report,
    ):
        for number in range(260):
            settings = CheckSettings(
                paths=(str(folder / "inbox"),), detector=str(folder / "tiny"), device="cpu"
            )
            if number == 0:
                checks = list(check_images(settings))
                for one in checks:
                    project.add(one.as_dict(), thumbnail_of(one.as_dict()))
            record = checks[number % 3].as_dict()
            verdict = ("fake", "real")[number % 2]
            report.add(record | {"score": number / 260, "verdict": verdict}, "")
    return folder


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[str]:
    """`ganscope serve`, as it is started by a person."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ("--detector", "tiny", "--project", "p.db", "--corpus", "corpus", "--no-browser")
    command = [sys.executable, "-m", "ganscope", "serve", "--port", str(port), *options]
    environment = os.environ | {"GANSCOPE_CACHE": str(place / "cache")}
    process = subprocess.Popen(command, cwd=place, env=environment)
    where = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{where}/api/v1/health")
            break
        except OSError:
            assert process.poll() is None
            time.sleep(0.2)
    yield where
    process.terminate()
    assert process.wait(60) in (0, 143)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A page on which no script may fail, and nothing strange may run or be asked for."""
    found = chromium.new_page(viewport={"width": 1000, "height": 800})
    wrong: list[str] = []
    found.on("pageerror", lambda error: wrong.append(str(error)))
    found.on("dialog", lambda dialog: wrong.append(dialog.message))
    found.on("request", lambda one: wrong.extend([] if is_ours(one.url) else [one.url]))
    yield found
    found.close()
    assert not wrong


def is_ours(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "data:", "blob:", "file:"))


def check(page: Any, server: str, *files: Path) -> None:
    page.goto(server)
    page.set_input_files("#files", [str(file) for file in files])
    page.wait_for_selector("#after:not([hidden])", timeout=60_000)


def test_upload_verdict_heatmap_report(page: Any, server: str, place: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("no picture")
    check(page, server, place / "inbox" / NAME, tmp_path / "letter.txt")
    card = page.locator("article.card").first
    assert card.locator(".says .verdict").inner_text() == "fake"
    assert card.locator("h2").inner_text() == NAME
    assert "not an image" in page.locator("article.card").nth(1).inner_text()
    assert page.locator("#status").inner_text() == "2 pictures checked"
    heat = card.locator(".heat:not([hidden])")
    heat.wait_for(timeout=60_000)
    before = heat.evaluate("one => getComputedStyle(one).clipPath")
    slider = card.locator("input.cut")
    slider.focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert heat.evaluate("one => getComputedStyle(one).clipPath") != before
    tile = card.locator(".tile").first
    tile.hover()
    assert "score" in tile.locator("span").inner_text()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the report", exact=True).click()
    download.value.save_as(tmp_path / "report.html")
    page.goto((tmp_path / "report.html").as_uri())
    assert page.locator("#rows tbody tr").count() == 2
    assert page.locator("#shown").inner_text() == "2 of 2 pictures"
    assert NAME in page.locator("#rows tbody").inner_text()


def test_a_picture_is_pasted_and_dropped(page: Any, server: str, place: Path) -> None:
    page.goto(server)
    content = list((place / "inbox" / "0.png").read_bytes())
    for number, kind in enumerate(("paste", "drop"), 1):
        page.evaluate(
            """([kind, content]) => {
              const held = new DataTransfer();
              const bytes = new Uint8Array(content), type = {type: "image/png"};
              held.items.add(new File([bytes], kind + ".png", type));
              const event = kind === "paste"
                ? new ClipboardEvent("paste", {clipboardData: held, bubbles: true})
                : new DragEvent("drop", {dataTransfer: held, bubbles: true});
              document.body.dispatchEvent(event);
            }""",
            [kind, content],
        )
        page.wait_for_selector(f"article.card[data-verdict] >> nth={number - 1}", timeout=60_000)
    assert page.locator("article.card h2").all_inner_texts() == ["paste.png", "drop.png"]


def test_the_form_alone_is_enough(chromium: Any, server: str, place: Path) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(server)
    page.set_input_files("#files", [str(place / "inbox" / "0.png")])
    page.get_by_role("button", name="Check", exact=True).click()
    page.wait_for_selector("article.card", timeout=60_000)
    assert page.locator(".says .verdict").inner_text() == "fake"
    assert page.locator(".pair img").count() == 2
    context.close()


def test_a_review_by_keys(page: Any, server: str) -> None:
    page.goto(f"{server}/desk?order=name")
    assert page.locator(".desk li").count() == 3
    page.locator(".desk a").first.click()
    page.wait_for_selector("#review")
    first = page.url
    page.keyboard.press("r")
    page.wait_for_url(lambda url: url != first)
    page.goto(f"{server}/desk?show=wrong")
    assert page.locator(".desk li").count() == 1
    assert "wrong: it is real" in page.locator(".desk li").inner_text()


def test_a_round_of_the_game(page: Any, server: str) -> None:
    page.goto(f"{server}/play")
    assert page.locator(".play img").count() == 2
    for image in page.locator(".play img").all():
        assert image.evaluate("one => one.decode().then(() => one.naturalWidth)") > 0
    page.keyboard.press("1")
    page.wait_for_selector(".says", timeout=60_000)
    assert page.locator(".says .verdict").inner_text() in ("Right", "Wrong")
    assert page.locator("svg.chart polyline").count() == 2
    page.keyboard.press("n")
    page.wait_for_selector("button.picture")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_width_and_colours(chromium: Any, server: str, place: Path, scheme: str) -> None:
    """Nothing is wider than the screen, and words stand out from their ground (WCAG AA: 4.5)."""
    page = chromium.new_page(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    check(page, server, place / "inbox" / "0.png")
    paths = ["", "/desk", "/desk/1", "/play", "/api", "/model-card", "/nothing"]
    for path in paths:
        if path:
            page.goto(server + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
        found = page.evaluate(CONTRAST)
        assert min(found.values()) >= 4.5, (path, found)
    page.goto((place / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.close()


CONTRAST = """() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3)
      .map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (one) => {
    for (; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (!/, 0\\)$/.test(colour) && colour !== "transparent") return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = {};
  const words = "p, h1, h2, a, button, .verdict, dt, dd, li, label";
  for (const one of document.querySelectorAll(words)) {
    if (!one.innerText || one.closest("[hidden], .skip, .tile") || one.disabled) continue;
    const [a, b] = [light(getComputedStyle(one).color), light(ground(one))];
    found[one.tagName + "." + one.className] = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  }
  return found;
}"""


def test_every_field_has_a_name(page: Any, server: str) -> None:
    """As a screen reader tells it."""
    for path in ("/", "/desk", "/desk/1", "/play"):
        page.goto(server + path)
        nameless = page.evaluate(
            """() => [...document.querySelectorAll(
                "input:not([type=hidden]), select, textarea, button, a, img"
              )].filter((one) => !(
                one.innerText || one.getAttribute("aria-label") || one.hasAttribute("alt")
                || (one.labels && one.labels.length) || one.querySelector("img[alt]")
              )).map((one) => one.outerHTML)"""
        )
        assert not nameless, path
        assert page.locator("h1").count() == 1
        assert page.locator("html").get_attribute("lang") == "en"


def test_the_report_sorts_filters_and_turns_pages(page: Any, place: Path) -> None:
    page.goto((place / "report.html").as_uri())
    rows = page.locator("#rows tbody tr")
    assert rows.count() == 50
    assert rows.first.locator("td.n").first.inner_text() == "0.996"
    page.get_by_role("button", name="score").click()
    assert rows.first.locator("td.n").first.inner_text() == "0.000"
    for _ in range(5):
        page.get_by_role("button", name="Next").click()
    assert rows.count() == 10
    page.get_by_label("fake").uncheck()
    assert page.locator("#shown").inner_text() == "130 of 260 pictures"
    page.locator("#find").fill("onerror")
    assert page.locator("#shown").inner_text() == "43 of 260 pictures"
    assert rows.count() == 43


def test_the_report_is_whole_without_a_script(chromium: Any, place: Path) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((place / "report.html").as_uri())
    assert page.locator("#rows tbody tr:visible").count() == 260
    context.close()
