"""Several networks as one: a weighted sum of their logits."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Fused(nn.Module):
    """A weighted sum of several networks' logits. Images are in [0, 1]: each network has its own
    normalisation, and one for smaller images sees tiles that cover the large ones.
    """

    def __init__(self, networks: list[nn.Module], inputs: list[dict[str, Any]]):
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.inputs = inputs
        """size, mean and std of each network's images."""
        self.weights = nn.Parameter(torch.ones(len(networks)) / len(networks))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        found = [self._logits(*part, x) for part in zip(self.networks, self.inputs, strict=True)]
        return torch.stack(found, 1) @ self.weights + self.bias

    def _logits(self, network: nn.Module, about: dict[str, Any], x: Tensor) -> Tensor:
        mean, std = (x.new_tensor(about[name])[:, None, None] for name in ("mean", "std"))
        places = [torch.linspace(0, n - about["size"], -(-n // about["size"])) for n in x.shape[2:]]
        corners = torch.cartesian_prod(*places).round().long().tolist()
        side = about["size"]
        tiles = torch.cat([x[:, :, top : top + side, left : left + side] for top, left in corners])
        return network((tiles - mean) / std).unflatten(0, (len(corners), -1)).mean(0)

    @property
    def has_map(self) -> bool:
        """Whether all networks have maps of logits, of tiles of one size."""
        return len({about["size"] for about in self.inputs}) == 1 and all(
            getattr(network, "has_map", hasattr(network, "patch_logits"))
            for network in self.networks
        )

    def patch_logits(self, x: Tensor) -> Tensor:
        """The weighted sum of the maps, on the grid of the finest; its mean is the logit."""
        maps = []
        for network, about in zip(self.networks, self.inputs, strict=True):
            mean, std = (x.new_tensor(about[name])[:, None, None] for name in ("mean", "std"))
            maps.append(network.patch_logits((x - mean) / std))  # type: ignore[operator]
        grid = max((found.shape[1:] for found in maps), key=lambda shape: shape.numel())
        total = self.bias.expand(len(x), *grid)
        for weight, found in zip(self.weights, maps, strict=True):
            fine = F.interpolate(found[:, None], grid, mode="bilinear")[:, 0]
            fine = fine + (found.mean((1, 2)) - fine.mean((1, 2)))[:, None, None]
            total = total + weight * fine
        return total
