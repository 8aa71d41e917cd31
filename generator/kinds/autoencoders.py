"""Autoencoders as generators: an encoder learns where each photograph lies, a decoder makes images
out of places where none does.

Both halves are one network, saved together: z alone makes fakes, an image alone its reconstruction.
"""

import torch
from torch import Tensor, nn

from ganscope.generator.kinds.architecture import GENERATOR, Architecture, Batch, Play
from ganscope.generator.kinds.networks import from_images, from_noise


class Halves(nn.Module):
    """z (N, latent_dim) -> images (N, 3, size, size) in [-1, 1].

    Given images instead: (their reconstructions, mean (N, latent_dim), log variance (N, latent_dim)
    of z); a plain encoder's log variance is empty (N, 0).
    """

    def __init__(self, size: int, latent_dim: int, width: int, variance: bool):
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder = from_images(size, width, outputs=latent_dim * (2 if variance else 1))
        # Without a prior of its own, a plain code is brought to mean 0 and variance 1 of each
        # number, or N(0, 1) would not lie among the codes that the decoder knows.
        self.norm = nn.Identity() if variance else nn.BatchNorm1d(latent_dim, affine=False)
        self.decoder = from_noise(size, latent_dim, width)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the z of images (N, 3, size, size) in [-1, 1]."""
        found = self.encoder(images).float()
        return self.norm(found[:, : self.latent_dim]), found[:, self.latent_dim :]

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        if x.dim() == 2:
            return self.decoder(x)
        mean, log_variance = self.encode(x)
        z = mean
        if self.training and log_variance.numel():
            z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return self.decoder(z), mean, log_variance


class Autoencoder(Architecture):
    summary = "encoder and decoder, squared error; codes brought to N(0, 1)"
    paper = "Hinton & Salakhutdinov 2006, doi:10.1126/science.1127647"
    sizes = (8, 16, 28, 32, 64, 128)
    variance = False

    def generator(self, size: int, latent_dim: int, width: int) -> nn.Module:  # type: ignore[override]
        return Halves(size, latent_dim, width, variance=self.variance)

    def step(self, play: Play, batches: list[Batch]) -> dict[str, Tensor]:
        images = batches[0].images
        made, mean, log_variance = play.networks[GENERATOR](images)
        error = (made.float() - images).square().mean()
        play.update(GENERATOR, self.loss(error, images[0].numel(), mean, log_variance))
        return {
            "squared_error_loss": error.detach(),
            **({"kl_loss": divergence(mean, log_variance).detach()} if self.variance else {}),
        }

    def loss(self, error: Tensor, numbers: int, mean: Tensor, log_variance: Tensor) -> Tensor:
        """What is minimised, of a mean squared error of images of so many numbers each."""
        return error

    def shown(self, network: nn.Module, batch: Batch) -> list[Tensor]:
        return [batch.images, network(batch.images)[0]]


class VAE(Autoencoder):
    summary = "variational autoencoder; its decoder makes smooth images from N(0, 1)"
    paper = "Kingma & Welling 2014, arXiv:1312.6114"
    variance = True
    NEWS = 3 * 16**2
    """Numbers of an image that count, at most. The bound takes each for news, and with many the
    codes hardly keep to N(0, 1); but in larger images most repeat their neighbours. It is the
    weight beta of Higgins et al. 2017 (openreview.net/forum?id=Sy2fzU9gl): 16 at 64 pixels."""

    def loss(self, error: Tensor, numbers: int, mean: Tensor, log_variance: Tensor) -> Tensor:
        """The negative evidence bound a number; the decoder's variance is always the best one,
        the error itself (Rybkin et al. 2021, arXiv:2006.13202).
        """
        told = divergence(mean, log_variance) / min(numbers, self.NEWS)
        return error.clamp_min(1e-6).log() / 2 + told


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence of N(mean, variance) (N, D) from N(0, 1): mean of images, sum
    over D, in nats.
    """
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean() / 2
