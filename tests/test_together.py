"""Several processes: whatever the recipe, they give what one gives, and end together."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from commands import side_by_side
from test_training import make_corpus

from ganscope.config import TrainDetectorSettings
from ganscope.detector.model import Detector
from ganscope.detector.training import frozen
from ganscope.detector.training.recipes import train_detector
from ganscope.devices import ending_together
from ganscope.errors import GanscopeError, ToldElsewhere

pytestmark = pytest.mark.filterwarnings("ignore:the backbone is random")
RECIPES: dict[str, dict[str, Any]] = {
    "frozen-linear": {"recipe": "frozen-linear", "detector": "timm:test_vit"},
    "soup": {"soup": 2, "detector": "timm:test_vit", "learning_rate": 3e-3},
    "soup of finetune": {"soup": 2, "recipe": "finetune", "detector": "vit:test_vit", "steps": 4},
    "fuse": {"fuse": "timm:test_vit", "detector": "timm:test_vit", "learning_rate": 3e-3},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus") / "c"
    return make_corpus(root, {"real": 40, "a": 30, "b": 30}, trace=60.0)


def settings(corpus: Path, out: Path, **changes: Any) -> TrainDetectorSettings:
    about: dict[str, Any] = {"corpora": (corpus,), "out": out, "size": 32, "epochs": 1}
    about |= {"batch_size": 8, "degrade": 0.0, "device": "cpu", "precision": "fp32"}
    return TrainDetectorSettings(**about | changes)


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_two_processes_give_what_one_gives(recipe: str, corpus: Path, tmp_path: Path) -> None:
    """Each has half the batch; both see the same images, and average their gradients."""
    # Networks without batch norm, whose statistics are each process' own.
    wish = settings(corpus, tmp_path / "one", **RECIPES[recipe])
    halves = settings(corpus, tmp_path / "two", **RECIPES[recipe] | {"batch_size": 4})
    train_detector(wish)
    assert side_by_side(lambda: train_detector(halves)) == [0, 0]
    one, two = (Detector.load(tmp_path / name) for name in ("one", "two"))
    for name, value in one.state_dict().items():
        assert np.allclose(value, two.state_dict()[name], rtol=0.02, atol=4e-3), name
    scores = [pd.read_csv(tmp_path / name / "scores.csv") for name in ("one", "two")]
    assert scores[0]["path"].tolist() == scores[1]["path"].tolist()
    np.testing.assert_allclose(scores[0]["logit"], scores[1]["logit"], atol=0.02)
    left = {p.name for p in (tmp_path / "two").rglob("*")}
    assert left == {p.name for p in (tmp_path / "one").rglob("*")}


def test_features_are_shared_out_and_taken_up_by_another_number_of_processes(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = settings(corpus, tmp_path / "run", epochs=2, **RECIPES["frozen-linear"])
    whole = train_detector(settings(corpus, tmp_path / "w", epochs=2, **RECIPES["frozen-linear"]))
    compute = frozen.compute_features

    def counted(*args: Any) -> np.ndarray:
        with open(tmp_path / f"{os.environ['RANK']}.txt", "a") as file:
            file.write(f"{args[2][0].epoch} {len(args[2])}\n")
        if args[2][0].epoch == 1:
            os._exit(9)  # in the second look
        return compute(*args)

    with monkeypatch.context() as patch:
        patch.setattr(frozen, "compute_features", counted)
        assert side_by_side(lambda: train_detector(wish)) == [9, 9]
    counts = [(tmp_path / f"{i}.txt").read_text().split() for i in (0, 1)]
    assert abs(int(counts[0][3]) - int(counts[1][3])) <= 1  # half the look each
    assert sorted(p.name for p in (tmp_path / "run").glob("features-*")) == [
        "features-0.npz",
        "features-val.npz",
    ]
    train_detector(wish)  # one process does the rest
    one, again = (Detector.load(p).state_dict() for p in (whole, tmp_path / "run"))
    assert all(np.allclose(value, again[name], atol=2e-3) for name, value in one.items())


@pytest.mark.parametrize("failing", [0, 1])
def test_where_one_process_fails_all_end_and_one_line_says_why(
    failing: int, corpus: Path, tmp_path: Path
) -> None:
    script = (
        "import os, sys, torch; torch.set_num_threads(1)\n"
        "import ganscope.cli as cli\n"
        "from ganscope.detector.training import frozen\n"
        "from ganscope.errors import GanscopeError\n"
        "compute = frozen.compute_features\n"
        "def failing(*args):\n"
        f"    if os.environ['RANK'] == '{failing}':\n"
        "        raise GanscopeError('the disk is gone; plug it in')\n"
        "    return compute(*args)\n"
        "frozen.compute_features = failing\n"
        "cli.main()\n"
    )
    (tmp_path / "train.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(tmp_path / "train.py"), "train-detector", str(corpus), "--recipe=frozen-linear"]
    command += ["--detector=timm:test_vit", "--size=32", "--epochs=1", "--device=cpu"]
    command += ["--out", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert done.stderr.count("ganscope: the disk is gone; plug it in") == 1
    assert "gloo" not in done.stderr
    assert "another of the processes" not in done.stderr
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_process_that_was_killed_ends_the_other_with_a_line(tmp_path: Path) -> None:
    import torch
    from torch import distributed

    def work() -> None:
        distributed.init_process_group("gloo")
        rank = distributed.get_rank()
        try:
            with ending_together():
                if rank == 1:
                    os._exit(9)
                distributed.all_reduce(torch.zeros(1))
        except ToldElsewhere:
            os._exit(4)
        except GanscopeError as error:
            os._exit(2 if "has ended before its time" in str(error) else 3)

    assert side_by_side(work) == [2, 9]
