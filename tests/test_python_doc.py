"""docs/python.md runs from top to bottom, and leaves out no public name."""

import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

import ganscope

PAGE = (Path(__file__).resolve().parents[1] / "docs/python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_every_public_name_is_shown() -> None:
    shown = set(re.findall(r"\bganscope\.(\w+)", "\n".join(BLOCKS)))
    assert set(ganscope.__all__) - {"__version__"} <= shown
    assert len(ganscope.__all__) == 23  # the page counts them


def test_the_examples_run_in_order(tmp_path: Path, photo: Path, astronaut: np.ndarray) -> None:
    assert photo.parent == tmp_path
    (tmp_path / "my_photos").mkdir()
    for i in range(12):
        part = np.ascontiguousarray(np.roll(astronaut, 37 * i, axis=1)[20 * i : 20 * i + 160, :200])
        cv2.imwrite(str(tmp_path / "my_photos" / f"{i}.jpg"), part[..., ::-1])
    (tmp_path / "page.py").write_text("\n".join(BLOCKS), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "page.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report" / "report.html").exists()
    assert (tmp_path / "picture.png").exists()
