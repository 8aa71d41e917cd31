"""What a published detector is: a network, its authors' preprocessing, and nothing trained here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ganscope.detector.judge import sigmoid
from ganscope.detector.networks.weights import load_strictly, read_weights
from ganscope.folders import hash_files

USUAL_PIXELS = 256 * 256
"""Of the images that the authors of these detectors tested on."""


@dataclass(frozen=True, eq=False)
class PublishedDetector:
    """A detector as its authors published it: pixels -> `prepare` -> `logits` -> `score`."""

    name: str
    """As registered."""
    net: nn.Module
    """Prepared images (N, 3, h, w) -> N logits; in evaluation mode, fp32."""
    prepare: Callable[[np.ndarray], Tensor]
    """pixels (H, W, 3) uint8 RGB -> (3, h, w), as the authors do it at test time.

    Where they look at an image more than once: (views, 3, h, w), and so the network takes it.
    """
    weights: str
    """12 hexadecimal digits: the hash of the weights files."""
    threshold: float = 0.5
    """The authors' own, on the score: fake above it."""
    finder: str = ""
    """Name of what finds the faces that it looks at, if it looks at faces."""

    def logits(self, images: Tensor) -> Tensor:
        """Prepared images (N, 3, h, w) or (N, views, 3, h, w), where the network is -> (N,),
        higher = more likely fake.
        """
        with torch.inference_mode():
            return self.net(images).flatten()

    def score(self, logit: Any) -> Any:
        """logit(s) -> score(s) in [0, 1], higher = more likely fake; nobody calibrated it."""
        return sigmoid(logit)

    def score_pixels(
        self, images: Sequence[np.ndarray], batch_size: int = 32, device: str | torch.device = "cpu"
    ) -> np.ndarray:
        """Logits (N,) float32 of images (H, W, 3) uint8 RGB of any sizes, in their order.

        batch_size: images at a time, fewer if they are larger than 256x256; neighbours whose
        prepared shapes agree go together. The network is moved to `device`.
        """
        self.net.to(device)
        found: list[np.ndarray] = []
        batch: list[Tensor] = []

        def flush() -> None:
            if batch:
                found.append(self.logits(torch.stack(batch).to(device)).cpu().numpy())
                batch.clear()

        for pixels in images:
            prepared = self.prepare(pixels)
            most = min(batch_size, batch_size * USUAL_PIXELS * 3 // prepared.numel())
            if batch and (batch[0].shape != prepared.shape or len(batch) >= most):
                flush()
            batch.append(prepared)
        flush()
        return np.concatenate([np.empty(0, np.float32), *found])


def from_file(
    name: str, net: nn.Module, prepare: Callable[[np.ndarray], Tensor], weights: str
) -> PublishedDetector:
    """The detector whose network is all in one weights file; raises as `load_published` does."""
    said = f"{name}:{weights}"
    load_strictly(net, read_weights(weights, said), said)
    return PublishedDetector(name, net.eval(), prepare, hash_files(weights))
