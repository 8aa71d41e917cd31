"""Networks that several kinds of generator share: DCGAN's two (Radford et al. 2016,
arXiv:1511.06434), and the dense ones of the first GAN.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot


def init_weights(module: nn.Module) -> None:
    """DCGAN's initialisation: convolutions N(0, 0.02), norms N(1, 0.02) and 0."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


class DCGANGenerator(nn.Module):
    """z (N, latent_dim) -> images (N, 3, size, size) in [-1, 1].

    A 4x4 start, then transposed convolutions with stride 2 until `size`, batch norm and ReLU
    between, tanh at the end. `width` is the number of channels of the last hidden layer, doubled at
    every layer before it up to 8 times. `upsample` enlarges by nearest neighbour and an ordinary
    convolution instead, which leaves other traces in the spectrum.
    """

    def __init__(
        self, size: int = 64, latent_dim: int = 100, width: int = 64, upsample: bool = False
    ):
        super().__init__()
        doublings = int(math.log2(size)) - 3
        channels = [width * min(2**i, 8) for i in reversed(range(doublings + 1))]
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(latent_dim, channels[0], 4, bias=False),
            nn.BatchNorm2d(channels[0]),
            nn.ReLU(True),
        ]
        for before, after in pairwise(channels):
            layers += [
                *_double(before, after, upsample, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(True),
            ]
        layers += [*_double(channels[-1], 3, upsample, bias=True), nn.Tanh()]
        self.layers = nn.Sequential(*layers).apply(init_weights)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z[:, :, None, None])


def _double(before: int, after: int, upsample: bool, bias: bool) -> list[nn.Module]:
    """Layers that double height and width."""
    if upsample:
        return [nn.Upsample(scale_factor=2), nn.Conv2d(before, after, 3, padding=1, bias=bias)]
    return [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=bias)]


class DCGANDiscriminator(nn.Module):
    """images (N, channels, size, size) in [-1, 1] -> logits (N,), here higher means more *real*; or
    (N, outputs).

    The generator mirrored: convolutions with stride 2, LeakyReLU 0.2. `norm` is "batch" (DCGAN) or
    "group" with one group, which is layer norm: WGAN-GP's penalty is on single images, and batch
    norm would tie them together.
    """

    def __init__(
        self,
        size: int = 64,
        width: int = 64,
        norm: str = "batch",
        channels: int = 3,
        outputs: int = 1,
    ):
        super().__init__()
        halvings = int(math.log2(size)) - 2
        layers: list[nn.Module] = []
        before = channels
        for i in range(halvings):
            after = width * min(2**i, 8)
            layers.append(nn.Conv2d(before, after, 4, 2, 1, bias=i == 0))
            if i:
                layers.append(nn.BatchNorm2d(after) if norm == "batch" else nn.GroupNorm(1, after))
            layers.append(nn.LeakyReLU(0.2, True))
            before = after
        layers.append(nn.Conv2d(before, outputs, 4))
        self.layers = nn.Sequential(*layers).apply(init_weights)

    def forward(self, images: Tensor) -> Tensor:
        return _logits(self.layers(images))


class DenseGenerator(nn.Module):
    """z (N, latent_dim) -> (N, *shape) in [-1, 1] by three dense layers."""

    def __init__(self, shape: tuple[int, ...], latent_dim: int, width: int):
        super().__init__()
        self.shape = shape
        self.layers = nn.Sequential(
            *(nn.Linear(latent_dim, width), nn.ReLU(True)),
            *(nn.Linear(width, width), nn.ReLU(True)),
            nn.Linear(width, math.prod(shape)),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z).unflatten(1, self.shape)


class DenseDiscriminator(nn.Module):
    """(N, *shape) -> logits (N,), higher = more real, or (N, outputs); three dense layers."""

    def __init__(self, shape: tuple[int, ...], width: int, outputs: int = 1):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(math.prod(shape), width), nn.LeakyReLU(0.2, True)),
            *(nn.Linear(width, width), nn.LeakyReLU(0.2, True)),
            nn.Linear(width, outputs),
        )

    def forward(self, images: Tensor) -> Tensor:
        return _logits(self.layers(images))


def _logits(values: Tensor) -> Tensor:
    """(N, outputs, ...) -> (N, outputs), of a single output (N,)."""
    values = values.flatten(1)
    return values.squeeze(1) if values.shape[1] == 1 else values


SMALL = 32
"""Below this many pixels a side, convolutions have nothing to stride over: dense layers."""


def from_noise(
    size: int, latent_dim: int, width: int, dense: bool = False, upsample: bool = False
) -> nn.Module:
    """The network from z (N, latent_dim) to images (N, 3, size, size) in [-1, 1]."""
    if dense or size < SMALL:
        return DenseGenerator((3, size, size), latent_dim, width * 4)
    return DCGANGenerator(size, latent_dim, width, upsample)


def from_images(
    size: int,
    width: int,
    dense: bool = False,
    norm: str = "batch",
    channels: int = 3,
    outputs: int = 1,
) -> nn.Module:
    """The network from images (N, channels, size, size) to logits (N,) or (N, outputs)."""
    if dense or size < SMALL:
        return DenseDiscriminator((channels, size, size), width * 4, outputs)
    return DCGANDiscriminator(size, width, norm, channels, outputs)


class Conditional(nn.Module):
    """A network that is told the class: one-hot, beside z or as further channels of the images."""

    def __init__(self, network: nn.Module, classes: int):
        super().__init__()
        self.network, self.classes = network, classes

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        known = one_hot(labels, self.classes).to(x.dtype)
        known = known.reshape(*known.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:])
        return self.network(torch.cat([x, known], dim=1))
