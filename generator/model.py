"""A trained generator: z in, images out; saved in and loaded from a folder."""

from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ganscope.folders import FolderModel
from ganscope.generator.architectures import architectures

CPU_BATCH, GPU_BATCH = 16, 256
"""Fakes are always computed in batches of this many: the last bits of a convolution depend on the
batch, and a fake must be the same bytes however many are made beside it. A small batch stays in a
CPU's cache."""


class Generator(FolderModel):
    """z (N, latent_dim) standard normal -> images (N, 3, size, size) float RGB in [0, 1].

    config: `architecture` (a name), `arguments` (size, latent_dim, width), `training`, `versions`.
    """

    kind = "generators"

    def __init__(self, config: dict[str, Any]):
        super().__init__(config)
        self.net = architectures[config["architecture"]].generator(**config["arguments"])
        # Transposed convolutions run 1.0 to 1.4 times as fast in this layout on every CPU tried; it
        # is fixed, not measured, because the layout changes last bits and a seed must give the same
        # bytes.
        self.to(memory_format=torch.channels_last)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(config)

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return self.config["arguments"]["size"]

    @property
    def latent_dim(self) -> int:
        return self.config["arguments"]["latent_dim"]

    @property
    def batch(self) -> int:
        """Fakes that are computed at a time where the weights are now."""
        return CPU_BATCH if next(self.parameters()).device.type == "cpu" else GPU_BATCH

    def forward(self, z: Tensor) -> Tensor:
        return (self.net(z) + 1) / 2

    @torch.inference_mode()
    def pixels(self, z: np.ndarray) -> np.ndarray:
        """z (N, latent_dim) -> (N, size, size, 3) uint8 RGB, on whatever device the weights are."""
        device, batch = next(self.parameters()).device, self.batch
        made = []
        for start in range(0, len(z), batch):
            part = np.zeros((batch, self.latent_dim), np.float32)
            rows = z[start : start + batch]
            part[: len(rows)] = rows
            images = self(torch.from_numpy(part).to(device)).clamp_(0, 1).mul_(255).round_()
            made.append(images.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()[: len(rows)])
        return np.concatenate(made)


def latent(seed: int, index: int, latent_dim: int) -> np.ndarray:
    """The z (latent_dim,) float32 of fake number `index` of a seed: it depends on nothing else."""
    return np.random.default_rng((seed, index)).standard_normal(latent_dim, dtype=np.float32)


def load_generator(name: str = "photos") -> Generator:
    """Load a generator by shipped name, run folder or hub id; see `Generator.load`."""
    return Generator.load(name)
