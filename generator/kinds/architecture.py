"""What a kind of generator brings to the training loop, and what the loop lends it.

`ganscope.generator.training` draws batches, keeps time, averages, saves and resumes; an
`Architecture` says which networks there are and what one step does with them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam, Optimizer

from ganscope.config import TrainGeneratorSettings
from ganscope.errors import GanscopeError

GENERATOR, DISCRIMINATOR = "generator", "discriminator"
"""Names of networks. The generator is averaged and saved; all others are its opponents or
helpers."""


FURTHER = ("loss", "label_smoothing", "instance_noise", "gradient_penalty", "unroll")
"""Settings that only some kinds know."""


Critic = Callable[[Tensor], Tensor]
"""Images (N, 3, H, W) in [0, 1] -> logits (N,), higher = more likely fake; a detector is one."""


@dataclass
class Batch:
    """Real images to learn from."""

    images: Tensor
    """(N, 3, size, size) in [-1, 1]."""
    labels: Tensor | None = None
    """(N,) int64: number of the class; None: the source has no classes."""
    inputs: Tensor | None = None
    """(N, 3, size, size) in [-1, 1]: what an image-to-image generator starts from."""


class Play:
    """The networks of a training and what a step may do with them."""

    def __init__(
        self,
        networks: dict[str, nn.Module],
        optimizers: dict[str, Optimizer],
        backward: Callable[[Tensor], None],
        settings: TrainGeneratorSettings,
        device: torch.device,
        latent_dim: int,
        scaler: Any = None,
        critic: Critic | None = None,
        critic_weight: float = 1.0,
    ):
        self.networks, self.optimizers = networks, optimizers
        self.settings, self.device, self.latent_dim = settings, device, latent_dim
        self.step = 0
        """Steps done so far."""
        self._backward, self._scaler = backward, scaler
        self._critic, self._critic_weight = critic, critic_weight

    def bare(self, name: str) -> nn.Module:
        """A network inside DDP's wrapper, whose hooks would wait for gradients that never come."""
        network = self.networks[name]
        return network.module if isinstance(network, DistributedDataParallel) else network

    def z(self, n: int) -> Tensor:
        """(n, latent_dim) standard normal."""
        return torch.randn(n, self.latent_dim, device=self.device)

    @contextmanager
    def frozen(self, *names: str) -> Iterator[None]:
        """Networks whose weights take no gradient in here: another's step needs none of them."""
        for name in names:
            self.networks[name].requires_grad_(False)
        try:
            yield
        finally:
            for name in names:
                self.networks[name].requires_grad_(True)

    def criticism(self, fakes: Tensor) -> dict[str, Tensor]:
        """What the frozen critic adds to the generator's loss: -log(1 - D(fake)) of fakes
        (N, 3, H, W) in [-1, 1], weighed, by the name that the log has for it; empty without one.
        """
        if self._critic is None:
            return {}
        logits = self._critic((fakes.float() + 1) / 2)
        return {"critic_loss": self._critic_weight * softplus(logits.float()).mean()}

    def update(self, names: str | tuple[str, ...], loss: Tensor) -> None:
        """One optimizer step of one network, or of several together."""
        names = (names,) if isinstance(names, str) else names
        for name in names:
            self.optimizers[name].zero_grad()
        self._backward(loss)
        if self._scaler is None:
            for name in names:
                self.optimizers[name].step()
            return
        # Accelerate's optimizers move fp16's scale on at each step; the gradients of one backward
        # pass must all be unscaled by the same.
        for name in names:
            optimizer = self.optimizers[name]
            self._scaler.step(getattr(optimizer, "optimizer", optimizer))
        self._scaler.update()


class Architecture:
    """One kind of generator; a subclass overrides what is different about it."""

    summary = ""
    """One line for `ganscope list generators`."""
    paper = ""
    """Authors and year, with the arXiv number."""
    sizes: tuple[int, ...] = (32, 64, 128)
    """Sides of images in pixels that its networks can make."""
    latent_dim = 100
    learning_rate = 2e-4
    draws = 1
    """Batches that a step takes."""
    from_photos = False
    """True: forward takes images in [-1, 1] instead of z, and batches have `inputs`."""
    paired = False
    """True: a batch's inputs show the same scenes as its images."""
    conditional = False
    """True: forward takes (z, labels), and the source must have classes."""
    knows: tuple[str, ...] = ()
    """Those of `FURTHER` that its step heeds."""
    heeds_critic = False
    """True: its step adds what a frozen critic says to the generator's loss."""
    truncates = False
    """True: forward takes a truncation psi; else z itself is scaled by it."""

    def check(self, settings: TrainGeneratorSettings) -> None:
        """Raise `GanscopeError` for settings that this kind cannot heed."""
        usual = {field.name: field.default for field in fields(settings)}
        for name in FURTHER:
            if getattr(settings, name) != usual[name] and name not in self.knows:
                raise GanscopeError(
                    f"--{name.replace('_', '-')}: {settings.generator} has no use for it; leave "
                    "it out"
                )

    def arguments(self, settings: TrainGeneratorSettings, classes: list[str]) -> dict[str, Any]:
        """What `generator` is built from; it goes into config.json."""
        return {
            "size": settings.size,
            "latent_dim": self.latent_dim,
            "width": settings.width,
            **({"classes": classes} if self.conditional else {}),
        }

    def generator(self, **arguments: Any) -> nn.Module:
        """The network from z (N, latent_dim) to images (N, 3, size, size) in [-1, 1]."""
        raise NotImplementedError

    def opponents(
        self, settings: TrainGeneratorSettings, classes: list[str]
    ) -> dict[str, nn.Module]:
        """All other networks that are trained, by name."""
        return {}

    def optimizer(self, network: nn.Module, rate: float) -> Optimizer:
        """The optimizer of one of the networks."""
        return Adam(network.parameters(), rate, (0.5, 0.999))

    def shown(self, network: nn.Module, batch: Batch) -> list[Tensor]:
        """What a sample picture shows of a batch, each (N, 3, size, size), side by side: what the
        generator starts from and what it makes of it; nothing if it makes images of z alone.
        """
        return []

    def step(self, play: Play, batches: list[Batch]) -> dict[str, Tensor]:
        """Update the networks once; returns scalars for the log, losses named ..._loss."""
        raise NotImplementedError
