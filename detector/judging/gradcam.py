"""Grad-CAM (Selvaraju et al. 2017, by the grad-cam package) for CNNs and vision transformers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ganscope.detector.judge import Judge
from ganscope.detector.model import Detector


@contextmanager
def relevance_of(detector: Judge) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """(N, size, size, 3) uint8 -> which places moved the logits (N, h, w), while the block runs."""
    from pytorch_grad_cam.utils.model_targets import RawScoresOutputTarget

    assert isinstance(detector, Detector)
    was_training, wanted = detector.training, [p.requires_grad for p in detector.parameters()]
    detector.eval().requires_grad_(True)
    try:
        with _unscaled_gradcam()(
            model=_Column(detector),
            target_layers=detector.gradcam_layers(),
            reshape_transform=_as_map(detector),
        ) as cam:

            def relevance(pixels: np.ndarray) -> np.ndarray:
                images = torch.from_numpy(pixels).to(detector.mean.device)
                images = images.permute(0, 3, 1, 2).float().div_(255)
                return np.ascontiguousarray(cam(images, [RawScoresOutputTarget()] * len(images)))

            yield relevance
    finally:
        detector.train(was_training)
        for parameter, want in zip(detector.parameters(), wanted, strict=True):
            parameter.requires_grad_(want)


def _unscaled_gradcam() -> Any:
    """Grad-CAM whose maps keep their own scale and resolution, so that tiles can be compared."""
    from pytorch_grad_cam import GradCAM  # takes a second to import

    class UnscaledGradCAM(GradCAM):
        def compute_cam_per_layer(self, images, targets, eigen_smooth):
            (activations,), (gradients,) = (
                [part.cpu().numpy() for part in parts]
                for parts in (
                    self.activations_and_grads.activations,
                    self.activations_and_grads.gradients,
                )
            )
            layer = self.target_layers[0]
            return self.get_cam_image(images, layer, targets, activations, gradients, eigen_smooth)

        def aggregate_multi_layers(self, maps):
            return np.maximum(maps, 0)

    return UnscaledGradCAM


class _Column(nn.Module):
    """Logits (N,) as (N, 1): grad-cam wants an output a class."""

    def __init__(self, detector: Detector):
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> Tensor:
        return self.detector(images)[:, None]


def _as_map(detector: Detector) -> Callable[[Tensor], Tensor] | None:
    """For a vision transformer: tokens (N, T, C) -> map (N, C, h, w), class tokens dropped."""
    backbone = getattr(detector.net, "backbone", None)
    prefix = getattr(backbone, "num_prefix_tokens", 0)

    def reshape(tokens: Tensor) -> Tensor:
        if tokens.ndim == 4:  # a convolution's (N, C, h, w), or channels last as in Swin
            return (
                tokens
                if backbone is None or not _last(backbone, tokens)
                else tokens.permute(0, 3, 1, 2)
            )
        tokens = tokens[:, prefix:]
        side = round(tokens.shape[1] ** 0.5)
        return tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)

    return reshape


def _last(backbone: nn.Module, tokens: Tensor) -> bool:
    """Whether a 4-d feature map has its channels last."""
    return tokens.shape[-1] == getattr(backbone, "num_features", -1) != tokens.shape[1]
