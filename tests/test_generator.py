"""Generators: networks, losses with closed-form answers, training that resumes, fakes made
again.
"""

import copy
import itertools
import os
import resource
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from commands import side_by_side
from safetensors.torch import load_file

from ganscope.config import TrainGeneratorSettings
from ganscope.datasets.sources import open_source
from ganscope.errors import GanscopeError, GanscopeWarning
from ganscope.generator import training
from ganscope.generator.kinds import losses
from ganscope.generator.kinds.architecture import Batch, Play
from ganscope.generator.kinds.architectures import architectures
from ganscope.generator.kinds.autoencoders import divergence
from ganscope.generator.kinds.toys import Stack
from ganscope.generator.kinds.translation import inputs
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


def sizes_of(name: str) -> list[tuple[str, int]]:
    return [(name, size) for size in architectures[name].sizes]


@pytest.mark.parametrize(("name", "size"), itertools.chain(*map(sizes_of, sorted(architectures))))
def test_shapes_and_ranges(name: str, size: int) -> None:
    architecture = architectures[name]
    classes = ["a", "b"] if architecture.conditional else []
    wish = TrainGeneratorSettings(real="", generator=name, size=size, width=4)
    network = architecture.generator(**architecture.arguments(wish, classes))
    labels = [torch.tensor([0, 1, 1])] if classes else []
    start = torch.zeros(3, 3, size, size) if architecture.from_photos else torch.randn(3, 100)
    images = network.eval()(start, *labels)
    assert images.shape == (3, 3, size, size)
    assert images.abs().max() <= 1
    opponents = architecture.opponents(wish, classes)
    if "discriminator" in opponents and not architecture.from_photos:
        assert opponents["discriminator"](images, *labels).shape == (3,)


@pytest.mark.parametrize("name", sorted(architectures))
def test_every_architecture_trains_and_its_generator_loads(name: str, tmp_path: Path) -> None:
    """A few steps move every network; what is saved makes fakes."""
    architecture = architectures[name]
    data: dict = {"real": "digits", "size": 8} if architecture.conditional else {"size": 32}
    data |= {"input": "grey"} if architecture.from_photos else {}
    seen = []
    run = train_generator(tiny(tmp_path / "run", generator=name, steps=3, **data), seen.append)
    assert np.isfinite(pd.DataFrame(seen).select_dtypes("number")).all(axis=None)
    assert any(key.endswith("_loss") for key in seen[0])
    generator = Generator.load(run)
    if architecture.from_photos:
        photo = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
        (made,) = generator.make(0, [0], [photo])
        assert made.shape == photo.shape
        # It starts from what it was trained on: a grey copy of the photograph.
        grey = np.broadcast_to(photo[..., :1], photo.shape)
        assert np.array_equal(generator.make(0, [0], [inputs["grey"](photo)])[0], made)
        assert not np.array_equal(generator.make(0, [0], [grey])[0], made)
    else:
        assert np.shape(generator.make(0, range(5))) == (5, data["size"], data["size"], 3)
    assert (run / "losses.png").exists()
    assert cv2.imread(str(run / "samples" / "000002.png")) is not None


def paint(folder: Path, tints: list[tuple[int, int, int]]) -> str:
    """A folder of one-coloured pictures; returns its name."""
    folder.mkdir()
    for i, tint in enumerate(tints):
        cv2.imwrite(str(folder / f"{i}.png"), np.full((40, 44, 3), tint[::-1], np.uint8))
    return str(folder)


def test_pix2pix_learns_from_two_folders_which_belong_together(tmp_path: Path) -> None:
    greys = [(g, g, g) for g in (30, 220)]
    colours = [(200, 30, 30), (30, 30, 200)]
    run = train_generator(
        tiny(
            tmp_path / "run",
            generator="pix2pix",
            input=paint(tmp_path / "grey", greys),
            real=paint(tmp_path / "colour", colours),
            steps=60,
            width=8,
            learning_rate=2e-3,
            ema=0.5,
            sample_every=60,
        )
    )
    photos = [np.full((40, 44, 3), grey, np.uint8) for grey in greys]
    red, blue = Generator.load(run).make(0, [0, 1], photos)
    assert red[..., 0].mean() > red[..., 2].mean() + 60
    assert blue[..., 2].mean() > blue[..., 0].mean() + 60


def test_pairs_that_do_not_match_are_named(tmp_path: Path) -> None:
    one, two = paint(tmp_path / "a", [(9, 9, 9)]), paint(tmp_path / "b", [(9, 9, 9), (8, 8, 8)])
    wish = {"generator": "pix2pix", "input": one, "real": two}
    with pytest.raises(GanscopeError, match="no partner"):
        train_generator(tiny(tmp_path / "run", **wish))
    (tmp_path / "b" / "1.png").unlink()
    with pytest.raises(GanscopeError, match="smaller than 64x64"):
        train_generator(tiny(tmp_path / "run", **wish | {"size": 64}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["autoencoder", "vae"])
def test_autoencoders_reconstruct_and_sample(tmp_path: Path, name: str) -> None:
    """Digits come back closer to themselves than to each other; samples look like digits."""
    run = train_generator(
        tiny(
            tmp_path / "run",
            generator=name,
            real="digits",
            size=8,
            steps=500,
            width=32,
            batch_size=64,
            learning_rate=2e-3,
            mirror=False,
            sample_every=500,
            zoom=1,
            ema=0.9,
        )
    )
    assert (run / "samples" / "000500-reconstructions.png").exists()
    generator = Generator.load(run)
    digits = open_source("digits")
    images = np.stack([digits.photo(i) for i in range(200)]).transpose(0, 3, 1, 2) / 127.5 - 1
    known = torch.from_numpy(images).float()
    made, mean, _ = generator.net(known)
    kept = 0.5 if name == "autoencoder" else 0.8  # a VAE is told to forget
    assert (made - known).square().mean() < kept * (known - known.mean(0)).square().mean()
    assert mean.std(0).mean() < 1.5
    samples = np.asarray(generator.make(0, range(100)))[..., 0].reshape(100, -1) / 127.5 - 1
    between = np.square(samples[:, None] - known[:, 0].flatten(1).numpy()[None]).mean(2).min(1)
    noise = np.random.default_rng(0).uniform(-1, 1, (100, 64))
    apart = np.square(noise[:, None] - known[:, 0].flatten(1).numpy()[None]).mean(2).min(1)
    assert between.mean() < apart.mean() / 2


def test_divergence_from_the_standard_normal() -> None:
    mean, log_variance = torch.tensor([[1.0, 0.0]]), torch.log(torch.tensor([[1.0, 4.0]]))
    expected = 0.5 * 1 + 0.5 * (4 - 1 - np.log(4))
    assert divergence(mean, log_variance).item() == pytest.approx(expected)


def test_losses_at_known_points() -> None:
    zero, two = torch.zeros(5), torch.full((5,), 2.0)
    assert losses.bce_discriminator(zero, zero).item() == pytest.approx(2 * np.log(2))
    assert losses.bce_generator(zero).item() == pytest.approx(np.log(2))
    assert losses.wasserstein_critic(two, zero).item() == -2
    assert losses.wasserstein_generator(two).item() == -2
    assert losses.minimax_generator(zero).item() == pytest.approx(-np.log(2))
    # Smoothed, a logit that is too sure costs: -.9 log s(2) - .1 log s(-2).
    sure = -0.9 * np.log(1 / (1 + np.exp(-2))) - 0.1 * np.log(1 / (1 + np.exp(2)))
    smoothed = losses.bce_discriminator(two, torch.full((5,), -50.0), smoothing=0.1)
    assert smoothed.item() == pytest.approx(sure, rel=1e-5)


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


def play_points(name: str, **changes: object) -> Play:
    """A game of `name` about points in the plane."""
    torch.manual_seed(0)
    architecture = architectures[name]
    settings = TrainGeneratorSettings(real="", generator=name, **changes)  # type: ignore[arg-type]
    networks = {
        "generator": Stack(1, [4, 16, 2], 0.0, 1.0, 1.0),
        "discriminator": Stack(1, [2, 16, 1], 0.2, 1.0, 1.0),
    }
    optimizers = {k: architecture.optimizer(v, 1e-2) for k, v in networks.items()}
    return Play(networks, optimizers, lambda x: x.backward(), settings, torch.device("cpu"), 4)


def test_the_penalty_weighs_what_it_is_told_to() -> None:
    found = []
    for weight in (0.0, None, 20.0):
        play = play_points("wgan-gp", gradient_penalty=weight)
        torch.manual_seed(1)
        real, fake = torch.randn(8, 2), torch.randn(8, 2)
        critic = play.networks["discriminator"]
        found.append(architectures["wgan-gp"].penalty(play, critic, real, fake).item())
    assert found[0] == 0 < found[1]
    assert found[2] == pytest.approx(2 * found[1])


def test_clipping_keeps_the_critic_small() -> None:
    play = play_points("wgan")
    architectures["wgan"].step(play, [Batch(torch.randn(8, 2))] * 5)
    assert max(p.abs().max() for p in play.networks["discriminator"].parameters()) <= 0.01


def test_unrolling_equals_the_steps_that_adam_would_take() -> None:
    """Looking k steps ahead gives the opinion of a copy that really made those steps."""
    play = play_points("unrolled", unroll=3)
    unrolled = architectures["unrolled"]
    real = Batch(torch.randn(8, 2))
    for _ in range(3):
        unrolled.step(play, [real])
    fake = torch.randn(8, 2, requires_grad=True)
    found = unrolled.verdict(play, real, fake)
    assert torch.autograd.grad(found.sum(), fake, retain_graph=True)[0].abs().sum() > 0

    twin = copy.deepcopy(play.networks["discriminator"])
    adam = unrolled.optimizer(twin, 1e-2)
    adam.load_state_dict(play.optimizers["discriminator"].state_dict())
    for _ in range(3):
        adam.zero_grad()
        losses.bce_discriminator(twin(real.images), twin(fake.detach())).backward()
        adam.step()
    assert torch.allclose(found, twin(fake), atol=1e-4)
    before = play.networks["discriminator"](fake)
    assert not torch.allclose(found, before, atol=1e-3)


def test_one_scale_for_all_gradients_of_a_pass() -> None:
    """fp16's scale moves on once an update, whatever number of networks it is about."""
    nets = {name: torch.nn.Linear(1, 1, bias=False) for name in ("generator", "backward")}
    optimizers = {name: torch.optim.SGD(net.parameters(), 1.0) for name, net in nets.items()}
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)
    settings = TrainGeneratorSettings(real="")
    play = Play(
        nets,
        optimizers,
        lambda loss: scaler.scale(loss).backward(),
        settings,
        torch.device("cpu"),
        1,
        scaler,
    )
    before = {name: net.weight.item() for name, net in nets.items()}
    one = torch.ones(1, 1)
    play.update(("generator", "backward"), nets["generator"](one) + nets["backward"](one))
    for name, net in nets.items():
        assert before[name] - net.weight.item() == pytest.approx(1.0)
    assert scaler.get_scale() == 8


def test_unrolling_works_before_adam_has_made_a_step() -> None:
    play = play_points("unrolled")
    batch = Batch(torch.randn(8, 2))
    assert torch.isfinite(architectures["unrolled"].verdict(play, batch, torch.randn(8, 2))).all()


def test_instance_noise_fades() -> None:
    play = play_points("gan", instance_noise=1.0, steps=10)
    points, judge = torch.zeros(4, 2), architectures["gan"].judge
    network, batch = play.networks["discriminator"], Batch(torch.zeros(4, 2))
    assert judge(play, network, batch, points).std() > 0
    play.step = 10
    assert judge(play, network, batch, points).std() == 0


def test_minimax_and_flipped_labels_differ_where_the_discriminator_wins() -> None:
    fake = torch.full((4,), -8.0, requires_grad=True)
    slopes = []
    for loss in ("minimax", "non-saturating"):
        wish = TrainGeneratorSettings(real="", generator="gan", loss=loss)
        value = architectures["gan"].generator_loss(wish, fake)
        slopes.append(torch.autograd.grad(value, fake)[0].abs().sum().item())
    assert slopes[0] < 1e-3
    assert slopes[1] == pytest.approx(1.0, rel=1e-3)


def test_mistakes_are_named_before_anything_is_written(tmp_path: Path) -> None:
    for change, message in (
        ({"generator": "dcgam"}, "did you mean 'dcgan'"),
        ({"size": 48}, "makes images of 8, 16, 28, 32, 64, 128 pixels"),
        ({"generator": "cgan"}, "needs labelled photographs"),
        ({"generator": "wgan-gp", "loss": "minimax"}, "--loss: wgan-gp has no use for it"),
        ({"input": "edges"}, "dcgan starts from noise"),
        (
            {"generator": "wgan", "label_smoothing": 0.1},
            "--label-smoothing: wgan has no use",
        ),
        ({"generator": "vae", "instance_noise": 0.1}, "--instance-noise: vae has no use"),
        ({"unroll": 3}, "--unroll: dcgan has no use for it"),
        ({"batch_size": 1}, "at least 2 for dcgan"),
        ({"generator": "cyclegan"}, "Name a folder of images, or blur, edges, grey, small"),
        ({"generator": "pix2pix", "input": "edge"}, "did you mean 'edges'"),
        ({"generator": "pix2pix", "input": "."}, "name the folder of its partners"),
        ({"real": "digits"}, "no photograph of at least 32x32 pixels"),
    ):
        with pytest.raises(GanscopeError, match=message):
            train_generator(tiny(tmp_path / "run", **change))
    assert not (tmp_path / "run").exists()


def test_a_conditional_gan_learns_which_class_is_which(tmp_path: Path) -> None:
    for name, value in (("dark", 20), ("light", 235)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(3):
            pixels = np.full((10, 10, 3), value + 3 * i, np.uint8)
            cv2.imwrite(str(tmp_path / "photos" / name / f"{i}.png"), pixels)
    run = train_generator(
        tiny(
            tmp_path / "run",
            real=str(tmp_path / "photos"),
            generator="cgan",
            size=8,
            steps=500,
            width=32,
            sample_every=500,
            batch_size=16,
            learning_rate=2e-3,
            ema=0.5,
        )
    )
    generator = Generator.load(run)
    dark, light = (generator.choose(name).make(0, range(8)).mean() for name in ("dark", "light"))
    assert light > dark + 80


@pytest.mark.parametrize("name", ["dcgan", "wgan-gp", "unrolled", "vae", "cyclegan"])
def test_a_killed_training_resumes_to_the_same_weights(tmp_path: Path, name: str) -> None:
    further = {"generator": name} | ({"input": "grey"} if name == "cyclegan" else {})
    whole = train_generator(tiny(tmp_path / "whole", **further))

    class Killed(Exception):
        pass

    def kill(row: dict) -> None:
        if row["step"] == 3:
            raise Killed

    with pytest.raises(Killed):
        train_generator(tiny(tmp_path / "parts", **further), kill)
    assert not (tmp_path / "parts" / "config.json").exists()
    parts = train_generator(tiny(tmp_path / "parts", **further))
    a, b = (load_file(run / "model.safetensors") for run in (whole, parts))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert pd.read_csv(parts / "losses.csv")["step"].tolist() == [1, 2, 3, 4]
    assert sorted(p.name for p in (parts / "samples").glob("00000?.png")) == [
        "000000.png",
        "000002.png",
        "000004.png",
    ]
    assert (parts / "losses.png").exists()


def test_training_learns_the_colour_of_its_photographs(tmp_path: Path) -> None:
    """A generator fed with red pictures makes redder ones than it did before."""
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


def test_a_collapse_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator that cannot learn keeps making the same grey."""
    monkeypatch.setattr(training, "WARM_UP", 2)
    with pytest.warns(GanscopeWarning, match=r"step 4: the fakes are only \d+% as far apart"):
        train_generator(tiny(tmp_path / "run", learning_rate=1e-9))


def test_a_diverged_training_is_not_called_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses before its last update were finite, its weights were not: status 0, "trained"."""
    average_into = training.average_into

    def diverge(average: torch.nn.Module, net: torch.nn.Module, decay: float) -> None:
        with torch.no_grad():
            next(net.parameters()).fill_(float("nan"))
        average_into(average, net, decay)

    monkeypatch.setattr(training, "average_into", diverge)
    run = tmp_path / "run"
    with pytest.raises(GanscopeError, match=r"left the finite numbers .*lower --learning-rate"):
        train_generator(tiny(run, steps=1))
    assert not (run / "model.safetensors").exists()
    assert not (run / "checkpoint.pt").exists()


def test_weights_that_cannot_be_loaded_are_not_saved(tmp_path: Path) -> None:
    generator = Generator(
        {"architecture": "dcgan", "arguments": {"size": 32, "latent_dim": 100, "width": 8}}
    )
    for value in (float("nan"), 1e6):  # fp16 ends at 65504
        with torch.no_grad():
            next(generator.parameters()).fill_(value)
        with pytest.raises(GanscopeError, match="NaN or infinity"):
            generator.save(tmp_path / "g")
    assert not (tmp_path / "g").exists()


def test_a_sample_that_may_not_grow_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patch:
        patch.setattr(training, "sample_grid", lambda *_, **__: noise)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
        try:
            with pytest.raises(GanscopeError, match=r"\.png: cannot be written .*ulimit -f"):
                train_generator(tiny(tmp_path / "run"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "run" / "settings.json").exists()
    assert not list((tmp_path / "run" / "samples").iterdir())
    train_generator(tiny(tmp_path / "run"))


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


def test_two_processes_train_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each learns from images of its own, and both have the same weights afterwards."""
    dcgan = training.architectures["dcgan"]
    step, average = dcgan.step, training.average_into

    def watched(*args: Any) -> Any:
        scalars = step(*args)
        Path(os.environ["RANK"] + ".txt").write_text(f"{scalars['d_loss'].item()} ")
        return scalars

    def noted(averaged: Any, network: Any, decay: float) -> None:
        average(averaged, network, decay)
        with open(os.environ["RANK"] + ".txt", "a") as file:
            file.write(f"{sum(p.double().abs().sum().item() for p in network.parameters())}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dcgan, "step", watched)
    monkeypatch.setattr(training, "average_into", noted)
    wish = tiny(tmp_path / "run", steps=2)
    assert side_by_side(lambda: train_generator(wish)) == [0, 0]
    assert (tmp_path / "run" / "model.safetensors").exists()
    losses, weights = zip(
        *((tmp_path / f"{rank}.txt").read_text().split() for rank in (0, 1)), strict=True
    )
    assert losses[0] != losses[1]
    assert float(weights[0]) == pytest.approx(float(weights[1]), rel=1e-6)
