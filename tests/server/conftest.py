"""A detector, a server and pictures, for the tests of the server."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ganscope.config import ServeSettings
from ganscope.detector.model import Detector

if TYPE_CHECKING:
    from fastapi.testclient import TestClient


@pytest.fixture(scope="package")
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


@pytest.fixture(scope="package")
def client(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[TestClient]":
    """A server with a worker of its own, for all tests that only ask."""
    from fastapi.testclient import TestClient

    from ganscope.web.app import make_app

    from .served import BASE

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


@pytest.fixture
def declared(astronaut: np.ndarray) -> bytes:
    """A PNG that says it was generated, in words that must never become markup."""
    from .served import NAME

    out, texts = io.BytesIO(), PngInfo()
    prompt = f"a cat {NAME}"
    texts.add_text(
        "parameters", f"{prompt}\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Model: {NAME}"
    )
    exif = Image.Exif()
    exif[0x010E] = exif[0x0131] = NAME
    Image.fromarray(astronaut).save(out, "PNG", pnginfo=texts, exif=exif)
    return out.getvalue()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers with a worker that answers without a detector."""
    from ganscope.web import judge as judging

    from .fragile_worker import work

    monkeypatch.setattr(judging, "work", work)
