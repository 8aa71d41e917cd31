"""Adversarial losses. `real` and `fake` are a discriminator's logits (N,), higher = more real."""

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus


def bce_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """-log D(real) - log(1 - D(fake)) (Goodfellow et al. 2014, arXiv:1406.2661)."""
    return softplus(-real).mean() + softplus(fake).mean()


def bce_generator(fake: Tensor) -> Tensor:
    """-log D(fake): the same loss with flipped labels, which does not saturate when D wins."""
    return softplus(-fake).mean()


def wasserstein_critic(real: Tensor, fake: Tensor) -> Tensor:
    """The critic's (negative) estimate of the Wasserstein distance (arXiv:1701.07875)."""
    return fake.mean() - real.mean()


def wasserstein_generator(fake: Tensor) -> Tensor:
    """Raise the critic's opinion of the fakes."""
    return -fake.mean()


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """Mean squared distance of the critic's gradient norm from 1 on random mixtures
    (arXiv:1704.00028).
    """
    share = torch.rand(len(real), 1, 1, 1, device=real.device, dtype=real.dtype)
    mixed = (share * real + (1 - share) * fake).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()
