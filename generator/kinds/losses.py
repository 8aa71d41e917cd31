"""Adversarial losses. `real` and `fake` are a discriminator's logits (N,), higher = more real."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus


def bce_discriminator(real: Tensor, fake: Tensor, smoothing: float = 0.0) -> Tensor:
    """-log D(real) - log(1 - D(fake)) (Goodfellow et al. 2014, arXiv:1406.2661).

    smoothing: the label of reals is 1 - smoothing, that of fakes stays 0 (Salimans et al. 2016,
    arXiv:1606.03498): a discriminator that is never quite sure keeps teaching.
    """
    return (softplus(-real) + smoothing * real).mean() + softplus(fake).mean()


def bce_generator(fake: Tensor) -> Tensor:
    """-log D(fake): the same loss with flipped labels, which does not saturate when D wins."""
    return softplus(-fake).mean()


def minimax_generator(fake: Tensor) -> Tensor:
    """log(1 - D(fake)): the discriminator's own loss turned round; its slope dies when D wins."""
    return -softplus(fake).mean()


def wasserstein_critic(real: Tensor, fake: Tensor) -> Tensor:
    """The critic's (negative) estimate of the Wasserstein distance (arXiv:1701.07875)."""
    return fake.mean() - real.mean()


def wasserstein_generator(fake: Tensor) -> Tensor:
    """Raise the critic's opinion of the fakes."""
    return -fake.mean()


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    """Mean squared distance of the critic's gradient norm from 1 on random mixtures
    (arXiv:1704.00028).
    """
    share = torch.rand(len(real), *[1] * (real.dim() - 1), device=real.device, dtype=real.dtype)
    mixed = (share * real + (1 - share) * fake).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()
