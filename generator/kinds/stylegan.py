"""A small StyleGAN2 (Karras et al. 2020, arXiv:1912.04958) that two cores can train.

z becomes a style w, and w scales the channels of every convolution that turns a learned constant
into an image. With DiffAugment, as much as the discriminator bears, for training sets are small.
"""

import math
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ganscope.config import TrainGeneratorSettings
from ganscope.devices import mean_of_all
from ganscope.generator.kinds.adversarial import Adversarial
from ganscope.generator.kinds.architecture import DISCRIMINATOR, GENERATOR, Batch, Play
from ganscope.generator.kinds.augment import adapt, augment
from ganscope.generator.kinds.losses import bce_discriminator, bce_generator

ROOT2 = math.sqrt(2)
"""Gain of a layer before a leaky ReLU, which keeps about half of the variance."""


class StyleGAN(Adversarial):
    summary = "StyleGAN2: styles, skips, R1, path lengths, DiffAugment; for small training sets"
    paper = "Karras et al. 2020, arXiv:1912.04958"
    sizes = (16, 32, 64, 128, 256)
    learning_rate = 2e-3
    betas = (0.0, 0.99)
    knows = ("instance_noise",)
    any_shape = False
    truncates = True
    R1 = 2e-4
    """Weight of R1 at 1 pixel and 1 image; grows with the area, falls with the batch, as in Karras
    et al. 2020b, arXiv:2006.06676."""
    R1_EVERY = 16
    """Steps between R1 penalties; 0: none."""
    PATH = 2.0
    PATH_EVERY = 8
    """Steps between path length penalties; 0: none."""

    def generator(  # type: ignore[override]  # config.json says which arguments there are
        self, size: int, latent_dim: int, width: int
    ) -> nn.Module:
        return StyleGenerator(size, latent_dim, width)

    def opponents(
        self, settings: TrainGeneratorSettings, classes: list[str]
    ) -> dict[str, nn.Module]:
        width = settings.discriminator_width or settings.width
        return {DISCRIMINATOR: StyleDiscriminator(settings.size, width)}

    def judge(self, play: Play, network: Any, batch: Batch, images: Tensor) -> Tensor:
        altered = augment(images, play.bare(DISCRIMINATOR).altered)  # type: ignore[arg-type]
        return super().judge(play, network, batch, altered)

    def step(self, play: Play, batches: list[Batch]) -> dict[str, Tensor]:
        # Penalties join the loss of a step, as many times as strong as they are rare. They run
        # outside DDP's and accelerate's forward, in full precision: DDP has seen every weight in
        # the loss itself, so it averages the gradient of the sum.
        bare: dict[str, Any] = {name: play.bare(name) for name in play.networks}
        (batch,) = batches
        real, scalars = batch.images, {}
        fake = self.make(play, batch)
        discriminator = play.networks[DISCRIMINATOR]
        on_real = self.judge(play, discriminator, batch, real)
        on_fake = self.judge(play, discriminator, batch, fake.detach().float())
        d_loss = bce_discriminator(on_real, on_fake)
        penalty: Tensor | float = 0.0
        if _due(self.R1_EVERY, play):
            scalars["r1"] = r1(bare[DISCRIMINATOR], augment(real, bare[DISCRIMINATOR].altered))
            weight = self.R1 * play.settings.size**2 / play.settings.batch_size
            penalty = self.R1_EVERY * weight * scalars["r1"] / 2
        play.update(DISCRIMINATOR, d_loss + penalty)
        adapt(bare[DISCRIMINATOR].altered, on_real)

        with play.frozen(DISCRIMINATOR):
            g_loss = bce_generator(self.verdict(play, batch, fake))
            penalty = 0.0
            if _due(self.PATH_EVERY, play):
                scalars["path"] = path_spread(bare[GENERATOR], play.z(len(real) // 2))
                penalty = self.PATH_EVERY * self.PATH * scalars["path"]
            criticism = play.criticism(fake)
            play.update(GENERATOR, g_loss + penalty + sum(criticism.values()))
        scalars |= {
            "d_loss": d_loss,
            "g_loss": g_loss,
            "d_real": on_real.mean(),
            "d_fake": on_fake.mean(),
        }
        return {name: scalar.detach() for name, scalar in (scalars | criticism).items()}


def _due(every: int, play: Play) -> bool:
    """Not at the first step: it is the one that the choice of precision is measured on."""
    return every > 0 and (play.step + 1) % every == 0


def r1(discriminator: "StyleDiscriminator", images: Tensor) -> Tensor:
    """Mean squared gradient of the logits at images (Mescheder et al. 2018,
    arXiv:1801.04406).
    """
    images = images.detach().float().requires_grad_()
    with _full_precision(images):
        logits = discriminator.layers(images)
        (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def path_spread(generator: "StyleGenerator", z: Tensor) -> Tensor:
    """Mean squared distance of path lengths from their running mean, which it moves on.

    A path length is how far the image of a z moves, in a random direction, for a step in w.
    """
    with _full_precision(z):
        w = generator.mapping(z)[:, None].repeat(1, generator.layers, 1)
        images = generator.synthesis(w)
        direction = torch.randn_like(images) / images.shape[-1]
        (slope,) = torch.autograd.grad((images * direction).sum(), w, create_graph=True)
    lengths = slope.square().sum(2).mean(1).sqrt()
    now, mean = mean_of_all(lengths.detach().mean()), generator.path_mean
    # From 0 the mean would take a thousand steps, and shorten all paths on its way.
    mean.copy_(torch.where(mean > 0, mean.lerp(now, 0.01), now))
    return (lengths - mean.clone()).square().mean()


class StyleGenerator(nn.Module):
    """z (N, latent_dim) -> images (N, 3, size, size) in [-1, 1], or in two steps: `mapping`,
    `synthesis`.

    `width` is the number of channels at the full size, doubled at every halving of it up to 8
    times. In training it mixes styles, draws its noise and keeps the mean of w; else the noise is
    the same for every image: an image depends on its z alone, and a walk in w does not flicker.
    """

    w_mean: Tensor
    path_mean: Tensor
    MIXED = 0.9
    """Share of the images in training that have the styles of two z."""

    def __init__(self, size: int = 64, latent_dim: int = 100, width: int = 32):
        super().__init__()
        sides = [4 * 2**i for i in range(int(math.log2(size)) - 1)]
        channels = [width * min(size // side, 8) for side in sides]
        self.layers = 2 * len(sides)
        """Styles that an image takes; coarse ones come first."""
        self.style_layers = nn.Sequential(
            *(
                layer
                for _ in range(4)
                for layer in (Linear(latent_dim, latent_dim, gain=ROOT2, rate=0.01), _leaky())
            )
        )
        self.constant = nn.Parameter(torch.randn(1, channels[0], 4, 4))
        self.convolutions = nn.ModuleList(
            [StyledConvolution(channels[0], channels[0], latent_dim, 4)]
        )
        for (before, after), side in zip(pairwise(channels), sides[1:], strict=True):
            self.convolutions += [
                StyledConvolution(before, after, latent_dim, side, enlarge=True),
                StyledConvolution(after, after, latent_dim, side),
            ]
        self.colours = nn.ModuleList(Colours(n, latent_dim) for n in channels)
        self.register_buffer("w_mean", torch.zeros(latent_dim))
        self.register_buffer("path_mean", torch.zeros(()))

    def forward(self, z: Tensor, psi: float = 1.0) -> Tensor:
        """psi: 1 makes images as they come, 0 the average image (truncation)."""
        w = self.mapping(z)
        if self.training:
            with torch.no_grad():
                self.w_mean.lerp_(w.mean(0), 0.005)
            w = self._mixed(w, self.mapping(torch.randn_like(z)))
        return self.synthesis(self.truncate(w, psi))

    def mapping(self, z: Tensor) -> Tensor:
        """z -> w, both (N, latent_dim)."""
        z = z.float()
        return self.style_layers(z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt())

    def truncate(self, w: Tensor, psi: float) -> Tensor:
        """w nearer to its mean."""
        return w if psi == 1 else self.w_mean.lerp(w, psi)

    def synthesis(self, w: Tensor) -> Tensor:
        """w (N, latent_dim), or one for each layer (N, layers, latent_dim) -> images."""
        if w.dim() == 2:
            w = w[:, None].expand(-1, self.layers, -1)
        styles = w.unbind(1)
        x = self.constant.expand(len(w), -1, -1, -1)
        image = torch.zeros(1, device=w.device)
        for i, convolution in enumerate(self.convolutions):
            x = convolution(x, styles[i])
            if i % 2 == 0:  # all of this size are done
                image = image + self.colours[i // 2](x, styles[i + 1]).float()
                if i < self.layers - 2:
                    image = F.interpolate(image, scale_factor=2, mode="bilinear")
        return image.tanh()

    def _mixed(self, w: Tensor, other: Tensor) -> Tensor:
        """The first styles from w, those after a random layer from another, of most images."""
        first = torch.randint(1, self.layers, (len(w), 1), device=w.device)
        first = first.where(torch.rand(len(w), 1, device=w.device) < self.MIXED, self.layers)
        own = torch.arange(self.layers, device=w.device) < first
        return torch.where(own[:, :, None], w[:, None], other[:, None])


def mix(net: StyleGenerator, z_a: Tensor, z_b: Tensor, layer: int, psi: float = 1.0) -> Tensor:
    """Images (N, 3, size, size) in [-1, 1] with the styles of z_a before `layer`, of z_b from there
    on: the coarse from a, the fine from b.
    """
    a, b = (
        net.truncate(net.mapping(z), psi)[:, None].expand(-1, net.layers, -1) for z in (z_a, z_b)
    )
    return net.synthesis(torch.cat([a[:, :layer], b[:, layer:]], dim=1))


class StyleDiscriminator(nn.Module):
    """images (N, 3, size, size) in [-1, 1] -> logits (N,), higher = more real; residual blocks, as
    wide as the generator's.
    """

    altered: Tensor
    """Share of the images that are altered before they come here."""

    def __init__(self, size: int = 64, width: int = 32):
        super().__init__()
        self.register_buffer("altered", torch.zeros(()))
        halvings = int(math.log2(size)) - 2
        channels = [width * min(2**i, 8) for i in range(halvings + 1)]
        last = channels[-1]
        self.layers = nn.Sequential(
            *(Convolution(3, width, 1), _leaky()),
            *(Halving(before, after) for before, after in pairwise(channels)),
            *(Spread(), Convolution(last + 1, last), _leaky()),
            *(nn.Flatten(), Linear(last * 16, last, gain=ROOT2), _leaky(), Linear(last, 1)),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).flatten()


class Linear(nn.Module):
    """A dense layer with equalised learning rate: weights are N(0, 1) and scaled when used; float32
    under autocast, too. `rate` makes it learn that much slower.
    """

    def __init__(
        self,
        before: int,
        after: int,
        bias: float = 0.0,
        gain: float = 1.0,
        rate: float = 1.0,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before) / rate)
        self.bias = nn.Parameter(torch.full((after,), bias / rate))
        self.gain, self.rate = gain * rate / math.sqrt(before), rate

    def forward(self, x: Tensor) -> Tensor:
        with _full_precision(x):
            return F.linear(x.float(), self.weight * self.gain, self.bias * self.rate)


class Convolution(nn.Module):
    """A convolution with equalised learning rate."""

    def __init__(
        self, before: int, after: int, side: int = 3, gain: float = ROOT2, bias: bool = True
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before, side, side))
        self.bias = nn.Parameter(torch.zeros(after)) if bias else None
        self.gain = gain / math.sqrt(before * side**2)

    def forward(self, x: Tensor) -> Tensor:
        padding = self.weight.shape[-1] // 2
        return F.conv2d(x, self.weight * self.gain, self.bias, padding=padding)


class StyledConvolution(nn.Module):
    """A 3x3 convolution whose input channels w scales (modulation), whose output channels are then
    brought back to unit variance (demodulation); noise, leaky ReLU.

    Scaling what goes in and what comes out gives the same as scaling the weights, without a
    convolution of its own for every image.
    """

    noise: Tensor
    NOISE_RATE = 0.01
    """Noise is learned this much slower than all else, or it comes before there is a picture."""

    def __init__(self, before: int, after: int, w_dim: int, side: int, enlarge: bool = False):
        super().__init__()
        self.style = Linear(w_dim, before, bias=1.0)
        self.weight = nn.Parameter(torch.randn(after, before, 3, 3))
        self.bias = nn.Parameter(torch.zeros(after, 1, 1))
        self.strength = nn.Parameter(torch.zeros(()))
        self.enlarge = enlarge
        self.register_buffer("noise", torch.randn(1, 1, side, side))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style = self.style(w)
        with _full_precision(x):
            variance = style.square() @ self.weight.square().sum((2, 3)).t()
            scale = ROOT2 * (variance + 1e-8).rsqrt()
        x = x * _channels(style, x)
        if self.enlarge:
            x = F.conv_transpose2d(x, self.weight.transpose(0, 1), stride=2)
            x = _blur(x, 1) * 4  # three of four pixels were zeros
        else:
            x = F.conv2d(x, self.weight, padding=1)
        noise = self.noise
        if self.training:
            noise = torch.randn(len(x), *noise.shape[1:], device=x.device)
        noise = noise * self.strength * self.NOISE_RATE
        x = torch.addcmul(self.bias.to(x.dtype), x, _channels(scale, x))
        return F.leaky_relu(x + noise.to(x.dtype), 0.2, inplace=True)


class Colours(nn.Module):
    """Channels -> red, green and blue, by a styled 1x1 convolution without demodulation."""

    def __init__(self, before: int, w_dim: int):
        super().__init__()
        self.style = Linear(w_dim, before, bias=1.0)
        # The sum over all sizes is to begin inside of tanh's slope.
        self.convolution = Convolution(before, 3, 1, gain=0.5)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return self.convolution(x * _channels(self.style(w), x))


class Halving(nn.Module):
    """Two convolutions and half the height and width, beside a shortcut."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.first = Convolution(before, before)
        # The sum of both ways is to have unit variance, hence the gains.
        self.second = Convolution(before, after, gain=1.0)
        self.shortcut = Convolution(before, after, 1, gain=1 / ROOT2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.first(x), 0.2, inplace=True)
        y = F.leaky_relu(self.second(_blur(y, 2)), 0.2, inplace=True)
        return y + self.shortcut(_blur(x, 2))


class Spread(nn.Module):
    """Adds a channel: how much the images of a group of four differ (minibatch stddev), which gives
    away a generator that makes the same image again and again.
    """

    def forward(self, x: Tensor) -> Tensor:
        group = 4 if len(x) % 4 == 0 else len(x)
        groups = x.float().unflatten(0, (group, -1))
        spread = (groups.var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
        spread = spread.repeat(group)[:, None, None, None].to(x.dtype)
        return torch.cat([x, spread.expand(-1, 1, *x.shape[2:])], dim=1)


def _leaky() -> nn.Module:
    return nn.LeakyReLU(0.2)


def _blur(x: Tensor, stride: int) -> Tensor:
    """A 4x4 binomial blur, padded by 1: stride 1 makes the side a pixel smaller, 2 halves it."""
    row = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x.device, dtype=x.dtype) / 8
    kernel = (row[:, None] * row).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(x, kernel, stride=stride, padding=1, groups=x.shape[1])


def _channels(scale: Tensor, x: Tensor) -> Tensor:
    """A factor (N, C) for each channel of x (N, C, H, W)."""
    return scale[:, :, None, None].to(x.dtype)


def _full_precision(x: Tensor) -> AbstractContextManager:
    return torch.autocast(x.device.type, enabled=False)
