"""StyleGAN2: its convolutions against the formula, styles, penalties, augmentation, training."""

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from commands import side_by_side
from safetensors.torch import load_file
from torch.nn.functional import conv2d, conv_transpose2d, leaky_relu

from ganscope.config import TrainGeneratorSettings
from ganscope.generator.kinds.architecture import Batch, Play
from ganscope.generator.kinds.architectures import architectures
from ganscope.generator.kinds.augment import adapt, augment, cut_out, recolour, translate
from ganscope.generator.kinds.stylegan import (
    Spread,
    StyledConvolution,
    StyleDiscriminator,
    StyleGAN,
    StyleGenerator,
    mix,
    path_spread,
    r1,
)
from ganscope.generator.model import Generator, latent
from ganscope.generator.training import train_generator


def tiny(out: Path, **changes: object) -> TrainGeneratorSettings:
    settings: dict = {
        "real": "photographs",
        "generator": "stylegan",
        "out": out,
        "size": 16,
        "steps": 4,
        "batch_size": 4,
        "width": 4,
        "sample_every": 2,
        "precision": "fp32",
        "device": "cpu",
    }
    return TrainGeneratorSettings(**(settings | changes))


def noisy(net: StyleGenerator) -> StyleGenerator:
    """A generator whose noise, which it learns, is there from the start."""
    for convolution in net.convolutions:
        torch.nn.init.constant_(convolution.strength, 50.0)
    return net


@pytest.mark.parametrize("enlarge", [False, True])
def test_scaling_inputs_and_outputs_equals_weights_of_each_image(enlarge: bool) -> None:
    torch.manual_seed(0)
    layer = StyledConvolution(5, 7, 6, 16 if enlarge else 8, enlarge).eval()
    torch.nn.init.normal_(layer.bias)
    torch.nn.init.constant_(layer.strength, 3.0)
    x, w = torch.randn(3, 5, 8, 8), torch.randn(3, 6)
    weights = layer.weight * layer.style(w)[:, None, :, None, None]  # (3, 7, 5, 3, 3)
    weights = weights / (weights.square().sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()
    if enlarge:
        grouped = weights.transpose(1, 2).flatten(0, 1)
        y = conv_transpose2d(x.reshape(1, 15, 8, 8), grouped, stride=2, groups=3)
        row = torch.tensor([1.0, 3, 3, 1]) / 4
        kernel = (row[:, None] * row).expand(21, 1, 4, 4)
        y = conv2d(y, kernel, padding=1, groups=21).reshape(3, 7, 16, 16)
    else:
        y = conv2d(x.reshape(1, 15, 8, 8), weights.flatten(0, 1), padding=1, groups=3)
        y = y.reshape(3, 7, 8, 8)
    # Its own gain keeps the variance through the ReLU; bias and noise are taken as they are.
    expected = leaky_relu(2**0.5 * y + layer.bias + 0.03 * layer.noise, 0.2)
    torch.testing.assert_close(layer(x, w), expected, atol=1e-5, rtol=1e-5)


def test_variance_is_kept_at_the_start() -> None:
    torch.manual_seed(0)
    net = StyleGenerator(64, 32, 16)
    assert 0.5 < net.mapping(torch.randn(500, 32)).std() < 1.5
    images = net(torch.randn(4, 32)).atanh()
    assert 0.3 < images.std() < 3
    assert 1e6 < sum(p.numel() for p in StyleGenerator(64, 100, 32).parameters()) < 4e6


def test_an_image_depends_on_its_z_alone_but_not_while_training() -> None:
    torch.manual_seed(0)
    net = noisy(StyleGenerator(16, 8, 4))
    z = torch.randn(3, 8)
    assert not torch.equal(net(z), net(z))
    net.eval()
    assert torch.equal(net(z), net(z))
    torch.testing.assert_close(net(z[1:]), net(z)[1:])


def test_psi_leads_to_the_average_image(tmp_path: Path) -> None:
    torch.manual_seed(0)
    arguments = {"size": 16, "latent_dim": 100, "width": 4}
    generator = Generator({"architecture": "stylegan", "arguments": arguments})
    generator.net.w_mean.copy_(generator.net.mapping(torch.randn(2000, 100)).mean(0).detach())
    generator.save(tmp_path)
    generator = Generator.load(tmp_path)
    z = np.stack([latent(0, i, 100) for i in range(4)])
    whole, half, none = (generator.choose(None, psi).pixels(z) for psi in (1.0, 0.5, 0.0))
    assert (none == none[:1]).all()
    spread = [images.astype(float).std(0).mean() for images in (whole, half, none)]
    assert spread[0] > spread[1] > spread[2] == 0


def test_training_moves_the_mean_of_w() -> None:
    torch.manual_seed(0)
    net = StyleGenerator(16, 8, 4)
    for parameter in net.style_layers.parameters():
        parameter.data += 5 * 100  # far from 0; its learning rate is scaled by 1/100
    mean = net.mapping(torch.randn(256, 8)).mean(0)
    for _ in range(40):
        net(torch.randn(8, 8))
    share = 1 - 0.995**40
    assert (net.w_mean - share * mean).norm() < 0.1 * share * mean.norm()
    before = net.w_mean.clone()
    net.eval()(torch.randn(2, 8))
    assert torch.equal(net.w_mean, before)


def test_mixing_takes_coarse_styles_from_one_and_fine_from_the_other() -> None:
    torch.manual_seed(0)
    net = StyleGenerator(32, 8, 4).eval()
    a, b = torch.randn(2, 2, 8)
    assert torch.equal(mix(net, a, b, 0), net(b))
    assert torch.equal(mix(net, a, b, net.layers), net(a))
    assert torch.equal(mix(net, a, b, 3, psi=0.0), net(a, 0.0))
    late = (mix(net, a, b, net.layers - 1) - net(a)).abs().mean()
    early = (mix(net, a, b, 2) - net(a)).abs().mean()
    assert 0 < late < early


def test_most_images_are_mixed_in_training() -> None:
    torch.manual_seed(0)
    net = StyleGenerator(16, 1, 4)
    styles = net._mixed(torch.zeros(4000, 1), torch.ones(4000, 1))[:, :, 0]
    assert styles.shape == (4000, net.layers)
    assert (styles.diff(dim=1) >= 0).all()
    assert (styles[:, 0] == 0).all()  # else it would be the other image
    assert (styles[:, -1] == 1).float().mean().item() == pytest.approx(0.9, abs=0.02)


def test_r1_of_a_linear_discriminator_is_its_squared_slope() -> None:
    net = StyleDiscriminator(16, 4)
    net.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 1, bias=False))
    torch.nn.init.constant_(net.layers[1].weight, 3.003 / np.sqrt(12))
    with torch.autocast("cpu", torch.bfloat16):
        found = r1(net, torch.rand(4, 3, 2, 2))
    assert found.item() == pytest.approx(3.003**2, rel=1e-5)


def test_path_lengths_are_measured_and_their_mean_kept() -> None:
    """The image w * A of a generator has paths as long as its random direction on A."""

    class Line(StyleGenerator):
        def synthesis(self, w: torch.Tensor) -> torch.Tensor:
            return w.sum(1)[:, :1, None, None] * self.slope * torch.ones(1, 3, 16, 16)

    torch.manual_seed(0)
    net = Line(16, 2, 4)
    net.slope = torch.nn.Parameter(torch.tensor(2.0))
    z = torch.randn(4000, 2)
    spread = path_spread(net, z)
    # The direction's sum over 3 * 16 * 16 values N(0, 1/16^2) is N(0, 3), times the slope.
    lengths = 2 * 3**0.5 * torch.randn(100_000).abs()
    assert net.path_mean.item() == pytest.approx(lengths.mean().item(), rel=0.05)
    assert spread.item() == pytest.approx(lengths.var().item(), rel=0.1)
    assert torch.autograd.grad(spread, net.slope)[0] > 0
    net.path_mean.fill_(100.0)
    path_spread(net, z)
    assert net.path_mean.item() == pytest.approx(99 + lengths.mean().item() / 100, rel=1e-3)


def test_discriminator_sees_whether_images_are_all_alike() -> None:
    x = torch.randn(8, 2, 4, 4)
    x[1::2] = x[1]  # images 1, 3, 5, 7 are one group
    seen = Spread()(x)
    assert seen.shape == (8, 3, 4, 4)
    assert torch.equal(seen[:, :2], x)
    assert (seen[1::2, 2] < 1e-3).all()
    assert (seen[::2, 2] > 0.5).all()
    assert Spread()(x[:3]).shape == (3, 3, 4, 4)


def test_augmentation_shifts_cuts_and_recolours_each_image_in_its_own_way() -> None:
    torch.manual_seed(0)
    images = torch.rand(1, 3, 32, 32).repeat(6, 1, 1, 1)
    for alter in (recolour, translate, cut_out):
        altered = alter(images)
        assert altered.shape == images.shape
        assert len({tuple(image.flatten().tolist()) for image in altered}) == 6
    cut = (cut_out(images) == 0).all(1).float().mean((1, 2))
    assert cut.min() > 0.06
    assert cut.max() <= 0.26
    for image in translate(images):
        places = [
            torch.equal(image[:, 8:24, 8:24], images[0, :, 8 + y : 24 + y, 8 + x : 24 + x])
            for y in range(-4, 5)
            for x in range(-4, 5)
        ]
        assert sum(places) == 1
    # Colours: sharper or flatter, brighter or darker, but each channel in step with the pixel.
    grey = torch.rand(4, 1, 8, 8).expand(-1, 3, -1, -1)
    recoloured = recolour(grey)
    torch.testing.assert_close(recoloured[:, :1].expand_as(grey), recoloured)


def test_generator_learns_through_the_augmentation() -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 3, 16, 16, requires_grad=True)
    (slope,) = torch.autograd.grad(augment(images).square().sum(), images)
    assert (slope != 0).float().mean() > 0.99  # what is cut out still counts for the contrast
    (slope,) = torch.autograd.grad(cut_out(translate(images)).sum(), images)
    assert set(slope.unique().tolist()) == {0.0, 1.0}


def test_only_the_share_is_augmented_and_it_follows_the_discriminator() -> None:
    torch.manual_seed(0)
    images = torch.rand(400, 3, 8, 8)
    assert torch.equal(augment(images, 0.0), images)
    altered = (augment(images, 0.25) != images).flatten(1).any(1).float().mean()
    assert 0.18 < altered < 0.32
    share, sure, unsure = torch.tensor(0.5), torch.full((1000,), 3.0), torch.randn(1000)
    adapt(share, sure)
    assert share.item() == pytest.approx(0.51)
    adapt(share, unsure)
    assert share.item() == pytest.approx(0.5)
    for _ in range(60):
        adapt(share, sure)
    assert share == 1


def test_reals_fakes_and_the_generators_fakes_are_augmented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        "ganscope.generator.kinds.stylegan.augment", lambda x, _: seen.append(x.requires_grad) or x
    )
    train_generator(tiny(tmp_path / "run", steps=1))
    assert seen == [False, False, True]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_penalties_are_rare_and_finite_in_every_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr(StyleGAN, "R1_EVERY", 3)
    monkeypatch.setattr(StyleGAN, "PATH_EVERY", 2)
    run = train_generator(tiny(tmp_path / "run", precision=precision))
    log = pd.read_csv(run / "losses.csv", index_col="step")
    assert np.isfinite(log[["d_loss", "g_loss", "d_real", "d_fake"]]).all(axis=None)
    assert log["r1"].dropna().index.tolist() == [3]
    assert log["path"].dropna().index.tolist() == [2, 4]
    assert (run / "losses.png").exists()


def test_r1_flattens_the_discriminator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Much of it, at every step, keeps the logits from depending on the image."""
    slopes = []
    for weight in (0.0, 10.0):
        torch.manual_seed(0)
        monkeypatch.setattr(StyleGAN, "R1", weight)
        monkeypatch.setattr(StyleGAN, "R1_EVERY", 1)
        play = play_images()
        batch = Batch(torch.rand(8, 3, 16, 16) * 0.2 + 0.8)
        for play.step in range(12):
            architectures["stylegan"].step(play, [batch])
        slopes.append(r1(play.networks["discriminator"], batch.images).item())
    assert slopes[1] < 0.5 * slopes[0]


def test_a_killed_training_resumes_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StyleGAN, "R1_EVERY", 2)
    monkeypatch.setattr(StyleGAN, "PATH_EVERY", 1)
    whole = train_generator(tiny(tmp_path / "whole"))

    class Killed(Exception):
        pass

    def kill(row: dict) -> None:
        if row["step"] == 3:
            raise Killed

    with pytest.raises(Killed):
        train_generator(tiny(tmp_path / "parts"), kill)
    parts = train_generator(tiny(tmp_path / "parts"))
    a, b = (load_file(run / "model.safetensors") for run in (whole, parts))
    assert a["net.path_mean"] > 0
    assert a["net.w_mean"].abs().max() > 0
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_training_learns_the_colour_of_its_photographs(tmp_path: Path) -> None:
    reds = tmp_path / "reds"
    reds.mkdir()
    for i in range(4):
        cv2.imwrite(str(reds / f"{i}.png"), np.full((20, 20, 3), (20, 20, 200 + 10 * i), np.uint8))
    run = train_generator(
        tiny(tmp_path / "run", real=str(reds), steps=50, sample_every=50, ema=0.5, batch_size=8)
    )
    red, green, blue = Generator.load(run).make(0, range(16)).reshape(-1, 3).mean(0)
    assert red > max(green, blue) + 60


def test_two_processes_keep_the_same_weights_under_penalties(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = StyleGAN.step

    def step(self: StyleGAN, play: Play, batches: Any) -> Any:
        scalars = plain(self, play, batches)
        weights = {k: list(play.bare(k).parameters()) for k in play.networks}
        torch.save(weights, tmp_path / os.environ["RANK"])
        return scalars

    for often in ("R1_EVERY", "PATH_EVERY"):
        monkeypatch.setattr(StyleGAN, often, 2)
    monkeypatch.setattr(StyleGAN, "step", step)
    wish = tiny(tmp_path / "run", steps=2, precision="bf16")
    assert side_by_side(lambda: train_generator(wish)) == [0, 0]
    a, b = (torch.load(tmp_path / rank) for rank in "01")
    for name in ("generator", "discriminator"):
        assert all(torch.equal(x, y) for x, y in zip(a[name], b[name], strict=True))


def play_images() -> Play:
    """A game about images of 16x16 pixels."""
    architecture = architectures["stylegan"]
    settings = tiny(Path("unused"), batch_size=8)
    networks = {
        "generator": architecture.generator(**architecture.arguments(settings, [])),
        **architecture.opponents(settings, []),
    }
    optimizers = {k: architecture.optimizer(v, 2e-3) for k, v in networks.items()}
    return Play(networks, optimizers, lambda x: x.backward(), settings, torch.device("cpu"), 100)
