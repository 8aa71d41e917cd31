"""The architectures that `train-generator --generator NAME` knows: networks, losses and their
habits.

To add one: write its networks and losses, then register an `Architecture` here.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ganscope.generator import losses
from ganscope.generator.networks import DCGANDiscriminator, DCGANGenerator
from ganscope.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A generator, its opponent and what they play for."""

    summary: str
    generator: Callable[..., nn.Module]
    """(size, latent_dim, width) -> network from z (N, latent_dim) to images in [-1, 1]."""
    discriminator: Callable[..., nn.Module]
    """(size, width) -> network from images in [-1, 1] to logits (N,), higher = more real."""
    discriminator_loss: Callable[[Tensor, Tensor], Tensor]
    generator_loss: Callable[[Tensor], Tensor]
    betas: tuple[float, float] = (0.5, 0.999)
    """Adam's."""
    discriminator_steps: int = 1
    """Discriminator updates for each of the generator's."""
    penalty: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None
    """(discriminator, real, fake) -> what is added to the discriminator's loss."""
    penalty_weight: float = 10.0
    latent_dim: int = 100


architectures: Registry[Architecture] = Registry("generator architecture")

architectures.register("dcgan")(
    Architecture(
        summary="DCGAN: strided and transposed convolutions, batch norm, BCE with flipped labels",
        generator=DCGANGenerator,
        discriminator=DCGANDiscriminator,
        discriminator_loss=losses.bce_discriminator,
        generator_loss=losses.bce_generator,
    )
)

architectures.register("wgan-gp")(
    Architecture(
        summary="WGAN-GP: DCGAN's networks, critic with gradient penalty, 5 critic steps",
        generator=DCGANGenerator,
        discriminator=lambda size, width: DCGANDiscriminator(size, width, norm="group"),
        discriminator_loss=losses.wasserstein_critic,
        generator_loss=losses.wasserstein_generator,
        betas=(0.0, 0.9),
        discriminator_steps=5,
        penalty=losses.gradient_penalty,
    )
)
