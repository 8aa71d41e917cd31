"""Shared fixtures. What is tested is the installed package, not the folders beside this one."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Run from the project root, `datasets/` here would hide Hugging Face's `datasets`, and `detector/`
# would be importable under a second name.
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import skimage.data  # noqa: E402
import torch  # noqa: E402

from ganscope.memory import keep_freed_memory  # noqa: E402

keep_freed_memory()
# Tests run beside each other, a process a core; one thread each, also in the commands they start.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
cv2.setNumThreads(1)  # its threads, once begun, hang what is forked


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds what another one, or the user, kept."""
    monkeypatch.setenv("GANSCOPE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def graphs(own_cache: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    """This test's cache has the graphs of the shipped detector, made once for all that want them,
    in whatever process; each takes seconds.
    """
    root = tmp_path_factory.getbasetemp()
    shared = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "graphs"
    shared.mkdir(exist_ok=True)
    cache = Path(os.environ["GANSCOPE_CACHE"])
    cache.mkdir()
    (cache / "graphs").symlink_to(shared)


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    """(512, 512, 3) uint8 RGB: a photograph that scikit-image carries."""
    return skimage.data.astronaut()


@pytest.fixture
def photo(tmp_path: Path, astronaut: np.ndarray) -> Path:
    """A real JPEG photograph, 512x512, quality 95."""
    path = tmp_path / "photo.jpg"
    cv2.imwrite(str(path), astronaut[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    return path
