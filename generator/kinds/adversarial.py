"""The family of generators that play against a discriminator: one step, and what tells them apart.

A discriminator's logits (N,) are higher for what it takes for *real*.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Adam, Optimizer, RMSprop

from ganscope.config import TrainGeneratorSettings
from ganscope.generator.kinds.architecture import (
    DISCRIMINATOR,
    GENERATOR,
    Architecture,
    Batch,
    Play,
)
from ganscope.generator.kinds.losses import (
    bce_discriminator,
    bce_generator,
    gradient_penalty,
    minimax_generator,
    wasserstein_critic,
    wasserstein_generator,
)
from ganscope.generator.kinds.networks import Conditional, from_images, from_noise


class Adversarial(Architecture):
    """A generator against a discriminator, by the losses of the original GAN."""

    sizes: tuple[int, ...] = (8, 16, 28, 32, 64, 128)
    betas = (0.5, 0.999)
    dense = False
    """Dense layers at every size."""
    upsample = False
    norm = "batch"
    """Of the convolutional discriminator."""
    knows: tuple[str, ...] = ("loss", "label_smoothing", "instance_noise")
    heeds_critic = True
    any_shape = True
    """Its step works with any networks, on points in the plane, too."""

    def generator(  # type: ignore[override]  # config.json says which arguments there are
        self, size: int, latent_dim: int, width: int, classes: list[str] | None = None
    ) -> nn.Module:
        inputs = latent_dim + len(classes or ())
        network = from_noise(size, inputs, width, self.dense, self.upsample)
        return Conditional(network, len(classes)) if classes else network

    def opponents(
        self, settings: TrainGeneratorSettings, classes: list[str]
    ) -> dict[str, nn.Module]:
        size, width = settings.size, settings.discriminator_width or settings.width
        labels = len(classes) if self.conditional else 0
        network = from_images(size, width, self.dense, self.norm, channels=3 + labels)
        return {DISCRIMINATOR: Conditional(network, labels) if labels else network}

    def optimizer(self, network: nn.Module, rate: float) -> Optimizer:
        return Adam(network.parameters(), rate, self.betas)

    def discriminator_loss(
        self, settings: TrainGeneratorSettings, real: Tensor, fake: Tensor
    ) -> Tensor:
        return bce_discriminator(real, fake, settings.label_smoothing)

    def generator_loss(self, settings: TrainGeneratorSettings, fake: Tensor) -> Tensor:
        if settings.loss == "minimax":
            return minimax_generator(fake)
        return bce_generator(fake)

    def penalty(
        self, play: Play, judge: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor
    ) -> Tensor | None:
        """What is added to the discriminator's loss; `judge` gives its logits (N,) of images."""
        return None

    def constrain(self, discriminator: nn.Module) -> None:
        """What is done to the discriminator's weights after its step."""

    def verdict(self, play: Play, batch: Batch, fake: Tensor) -> Tensor:
        """The logits (N,) of fakes that the generator's loss is about."""
        return self.judge(play, play.bare(DISCRIMINATOR), batch, fake)

    def judge(self, play: Play, network: Any, batch: Batch, images: Tensor) -> Tensor:
        """A discriminator's logits (N,) of images, under instance noise, knowing the labels."""
        share = 1 - play.step / play.settings.steps
        if play.settings.instance_noise and share > 0:
            images = images + play.settings.instance_noise * share * torch.randn_like(images)
        return (network(images, batch.labels) if self.conditional else network(images)).float()

    def make(self, play: Play, batch: Batch) -> Tensor:
        """A fake for each image of a batch, of its class."""
        z = play.z(len(batch.images))
        generator = play.networks[GENERATOR]
        return generator(z, batch.labels) if self.conditional else generator(z)

    def step(self, play: Play, batches: list[Batch]) -> dict[str, Tensor]:
        discriminator = play.networks[DISCRIMINATOR]
        for batch in batches:
            with torch.set_grad_enabled(len(batches) == 1):  # else it is made anew below
                fake = self.make(play, batch)
            real, shown = batch.images, fake.detach().float()
            on_real = self.judge(play, discriminator, batch, real)
            on_fake = self.judge(play, discriminator, batch, shown)
            d_loss = self.discriminator_loss(play.settings, on_real, on_fake)
            penalty = self.penalty(
                play, partial(self.judge, play, discriminator, batch), real, shown
            )
            play.update(DISCRIMINATOR, d_loss if penalty is None else d_loss + penalty)
            self.constrain(play.bare(DISCRIMINATOR))
        if len(batches) > 1:
            fake = self.make(play, batch)
        with play.frozen(DISCRIMINATOR):
            g_loss = self.generator_loss(play.settings, self.verdict(play, batch, fake))
            criticism = play.criticism(fake)
            play.update(GENERATOR, g_loss + sum(criticism.values()))
        scalars = {
            "d_loss": d_loss,
            "g_loss": g_loss,
            "d_real": on_real.mean(),
            "d_fake": on_fake.mean(),
        }
        return {name: scalar.detach() for name, scalar in (scalars | criticism).items()}


class GAN(Adversarial):
    summary = "the first GAN: dense layers, BCE; minimax or flipped labels (--loss)"
    paper = "Goodfellow et al. 2014, arXiv:1406.2661"
    sizes = (8, 16, 28, 32, 64)
    dense = True


class DCGAN(Adversarial):
    summary = "strided and transposed convolutions, batch norm, BCE with flipped labels"
    paper = "Radford et al. 2016, arXiv:1511.06434"


class UpsampleDCGAN(Adversarial):
    summary = "DCGAN that enlarges by nearest neighbour and convolution: no checkerboard"
    paper = "Odena et al. 2016, distill.pub/2016/deconv-checkerboard"
    upsample = True


class WGAN(Adversarial):
    summary = "Wasserstein critic with clipped weights, RMSprop, 5 critic steps"
    paper = "Arjovsky et al. 2017, arXiv:1701.07875"
    norm = "group"
    knows: tuple[str, ...] = ("instance_noise",)
    draws = 5
    learning_rate = 5e-5
    CLIP = 0.01

    def optimizer(self, network: nn.Module, rate: float) -> Optimizer:
        return RMSprop(network.parameters(), rate)

    def discriminator_loss(
        self, settings: TrainGeneratorSettings, real: Tensor, fake: Tensor
    ) -> Tensor:
        return wasserstein_critic(real, fake)

    def generator_loss(self, settings: TrainGeneratorSettings, fake: Tensor) -> Tensor:
        return wasserstein_generator(fake)

    def constrain(self, discriminator: nn.Module) -> None:
        with torch.no_grad():
            for weight in discriminator.parameters():
                weight.clamp_(-self.CLIP, self.CLIP)


class WGANGP(WGAN):
    summary = "Wasserstein critic with gradient penalty, 5 critic steps"
    paper = "Gulrajani et al. 2017, arXiv:1704.00028"
    learning_rate = 2e-4
    betas = (0.0, 0.9)
    knows = ("instance_noise", "gradient_penalty")

    def optimizer(self, network: nn.Module, rate: float) -> Optimizer:
        return Adam(network.parameters(), rate, self.betas)

    def penalty(
        self, play: Play, judge: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor
    ) -> Tensor:
        weight = play.settings.gradient_penalty
        return (10.0 if weight is None else weight) * gradient_penalty(judge, real, fake)

    def constrain(self, discriminator: nn.Module) -> None:
        """The penalty does it."""


class CGAN(Adversarial):
    summary = "conditional: generator and discriminator are told the class"
    paper = "Mirza & Osindero 2014, arXiv:1411.1784"
    conditional = True
    any_shape = False


class Unrolled(Adversarial):
    summary = "the generator looks --unroll steps of the discriminator ahead"
    paper = "Metz et al. 2017, arXiv:1611.02163"
    knows = (*Adversarial.knows, "unroll")

    def verdict(self, play: Play, batch: Batch, fake: Tensor) -> Tensor:
        """What a discriminator that has learned from these fakes for some more steps says of them.

        Those steps are Adam's, from the state that the real discriminator's Adam is in, and the
        generator's gradient flows through them; the real discriminator stays as it is.
        """
        network = play.bare(DISCRIMINATOR)
        adam = play.optimizers[DISCRIMINATOR]
        group = adam.param_groups[0]
        rate, (b1, b2), eps = group["lr"], group["betas"], group["eps"]
        weights, means, squares, count = {}, {}, {}, 0
        for name, weight in network.named_parameters():
            state = adam.state[weight]
            weights[name] = weight.detach().clone().requires_grad_()
            # Nothing yet if fp16's first step overflowed.
            means[name] = state.get("exp_avg", torch.zeros_like(weight)).clone()
            squares[name] = state.get("exp_avg_sq", torch.zeros_like(weight)).clone()
            count = int(state.get("step", 0))

        def ahead(*known: Tensor) -> Tensor:
            return functional_call(network, weights, known)

        look = partial(self.judge, play, ahead, batch)
        for _ in range(play.settings.unroll or 5):
            loss = self.discriminator_loss(play.settings, look(batch.images), look(fake))
            gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
            count += 1
            for name, gradient in zip(weights, gradients, strict=True):
                means[name] = b1 * means[name] + (1 - b1) * gradient
                squares[name] = b2 * squares[name] + (1 - b2) * gradient.square()
                # eps inside the root: the root's own slope at 0 is infinite.
                size = (squares[name] / (1 - b2**count) + eps**2).sqrt()
                weights[name] = weights[name] - rate * means[name] / (1 - b1**count) / size
        return look(fake)
