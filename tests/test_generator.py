"""Generators: networks, losses with closed-form answers, training that resumes, fakes made
again.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from ganscope.config import TrainGeneratorSettings
from ganscope.errors import GanscopeError
from ganscope.generator import losses
from ganscope.generator.architectures import architectures
from ganscope.generator.model import Generator, latent
from ganscope.generator.training import train_generator


def tiny(out: Path, **changes: object) -> TrainGeneratorSettings:
    settings: dict = {
        "real": "photographs",
        "out": out,
        "size": 32,
        "steps": 4,
        "batch_size": 4,
        "width": 4,
        "sample_every": 2,
        "precision": "fp32",
        "device": "cpu",
    }
    return TrainGeneratorSettings(**(settings | changes))


@pytest.mark.parametrize("name", sorted(architectures))
@pytest.mark.parametrize("size", [32, 64, 128])
def test_shapes_and_ranges(name: str, size: int) -> None:
    architecture = architectures[name]
    images = architecture.generator(size=size, latent_dim=100, width=4)(torch.randn(3, 100))
    assert images.shape == (3, 3, size, size)
    assert images.abs().max() <= 1
    assert architecture.discriminator(size=size, width=4)(images).shape == (3,)


def test_losses_at_known_points() -> None:
    zero, two = torch.zeros(5), torch.full((5,), 2.0)
    assert losses.bce_discriminator(zero, zero).item() == pytest.approx(2 * np.log(2))
    assert losses.bce_generator(zero).item() == pytest.approx(np.log(2))
    assert losses.wasserstein_critic(two, zero).item() == -2
    assert losses.wasserstein_generator(two).item() == -2


def test_gradient_penalty_of_a_linear_critic_is_its_slope_from_one() -> None:
    critic = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 1, bias=False))
    torch.nn.init.constant_(critic[1].weight, 3 / np.sqrt(12))  # gradient norm 3 everywhere
    real, fake = torch.rand(4, 3, 2, 2), torch.rand(4, 3, 2, 2)
    assert losses.gradient_penalty(critic, real, fake).item() == pytest.approx(4.0, rel=1e-5)


def test_a_fake_does_not_depend_on_how_many_are_made_with_it() -> None:
    torch.manual_seed(0)
    generator = Generator(
        {"architecture": "dcgan", "arguments": {"size": 32, "latent_dim": 100, "width": 8}}
    ).eval()
    z = np.stack([latent(7, i, 100) for i in range(70)])
    together = generator.pixels(z)
    assert together.shape == (70, 32, 32, 3)
    assert together.dtype == np.uint8
    for i in (0, 3, 63, 69):
        assert np.array_equal(generator.pixels(z[i : i + 1])[0], together[i])


@pytest.mark.parametrize("name", ["dcgan", "wgan-gp"])
def test_a_killed_training_resumes_to_the_same_weights(tmp_path: Path, name: str) -> None:
    whole = train_generator(tiny(tmp_path / "whole", generator=name))

    class Killed(Exception):
        pass

    def kill(row: dict) -> None:
        if row["step"] == 3:
            raise Killed

    with pytest.raises(Killed):
        train_generator(tiny(tmp_path / "parts", generator=name), kill)
    assert not (tmp_path / "parts" / "config.json").exists()
    parts = train_generator(tiny(tmp_path / "parts", generator=name))
    a, b = (load_file(run / "model.safetensors") for run in (whole, parts))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert pd.read_csv(parts / "losses.csv")["step"].tolist() == [1, 2, 3, 4]
    assert sorted(p.name for p in (parts / "samples").glob("*.png")) == [
        "000000.png",
        "000002.png",
        "000004.png",
    ]
    assert (parts / "losses.png").exists()


def test_training_learns_the_colour_of_its_photographs(tmp_path: Path) -> None:
    """A generator fed with red pictures makes redder ones than it did before."""
    import cv2

    reds = tmp_path / "reds"
    reds.mkdir()
    for i in range(4):
        cv2.imwrite(str(reds / f"{i}.png"), np.full((40, 40, 3), (20, 20, 200 + 10 * i), np.uint8))
    run = train_generator(
        tiny(
            tmp_path / "run",
            real=str(reds),
            steps=60,
            width=8,
            batch_size=16,
            learning_rate=2e-3,
            ema=0.5,
        )
    )
    made = Generator.load(run).pixels(np.stack([latent(0, i, 100) for i in range(16)]))
    red, green, blue = made.reshape(-1, 3).mean(0)
    assert red > max(green, blue) + 60


def test_folders_that_are_taken_are_left_alone(tmp_path: Path) -> None:
    run = train_generator(tiny(tmp_path / "run", steps=2))
    with pytest.raises(GanscopeError, match="finished network"):
        train_generator(tiny(run, steps=2))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("precious")
    with pytest.raises(GanscopeError, match="not a run"):
        train_generator(tiny(tmp_path / "other"))
    assert (tmp_path / "other" / "mine.txt").read_text() == "precious"


def test_an_unfinished_run_is_not_continued_with_other_settings(tmp_path: Path) -> None:
    def stop(row: dict) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_generator(tiny(tmp_path / "run"), stop)
    with pytest.raises(GanscopeError, match="--width"):
        train_generator(tiny(tmp_path / "run", width=8))


def test_saved_and_loaded_generators_make_the_same_fakes(tmp_path: Path) -> None:
    run = train_generator(tiny(tmp_path / "run", steps=2))
    generator = Generator.load(run)
    generator.save_pretrained(tmp_path / "copy")
    z = latent(0, 0, 100)[None]
    again = Generator.from_pretrained(str(tmp_path / "copy"))
    assert np.array_equal(generator.pixels(z), again.pixels(z))


def test_two_processes_train_together(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "from ganscope.config import TrainGeneratorSettings as S\n"
        "from ganscope.generator.training import train_generator as train\n"
        f"train(S(real='photographs', out=Path({str(tmp_path / 'run')!r}), size=32, steps=2,"
        " batch_size=4, width=4, sample_every=2, precision='fp32', device='cpu'))\n"
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--standalone",
        script,
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model.safetensors").exists()
