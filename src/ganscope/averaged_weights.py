"""Averaged weights: what is saved of a training is smoother than its last step."""

import torch
from torch import nn


def average_into(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the weights of `average` towards `model`'s by 1 - decay; buffers are copied."""
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        for old, new in zip(average.buffers(), model.buffers(), strict=True):
            old.copy_(new)
