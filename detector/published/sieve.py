"""Sieve: the ViT of Community Forensics, trained further on OpenFake, as an ONNX file.

https://github.com/Phineas1500/sieve-ai-image-detector, a browser extension, MIT.

Weights: `ft44s_best_fp16.onnx` of the repository's release v0.10.0; needs onnxruntime. The numbers
here are of that release (`extension/model_manifest.json`, commit f494e3f); later ones have others.

Preprocessing: the shorter side resized to 440, the central 384x384, ImageNet's mean and std. Where
that gives a score from 0.25 to 0.85, the central 384x384 of the image as it is are looked at, too,
and the logits averaged. The extension gives no score at all for images under 32 pixels, plain ones
and noise, and reads their metadata first; here there is a score for everything, by pixels alone.
"""

import math
import os

import numpy as np
import torch
from torch import Tensor, nn

from ganscope.detector.networks.onnx import OnnxNet
from ganscope.detector.published.detector import PublishedDetector
from ganscope.detector.published.preparing import normalised, scaled_to
from ganscope.errors import GanscopeError
from ganscope.folders import hash_files

SHORTER, SIDE = 440, 384
BIAS, THRESHOLD = 0.43, 0.65
"""Added to the file's logits; and the score from which on the extension says AI."""
UNSURE = (0.25, 0.85)


class Sieve(nn.Module):
    """Images (N, 1 or 2, 3, 384, 384), resized and as they are, into N logits.

    graph: images (N, 3, 384, 384) -> N logits.
    """

    def __init__(self, graph: nn.Module):
        super().__init__()
        self.graph = graph

    def forward(self, x: Tensor) -> Tensor:
        logits = self.graph(x[:, 0]).float() + BIAS
        scores = logits.sigmoid()
        unsure = (scores >= UNSURE[0]) & (scores <= UNSURE[1])
        if x.shape[1] > 1 and unsure.any():
            again = self.graph(x[unsure, 1]).float() + BIAS
            logits[unsure] = (logits[unsure] + again) / 2
        return logits


def prepare(pixels: np.ndarray) -> Tensor:
    """(2, 3, 384, 384), or (1, 3, 384, 384) of images that are smaller than that."""
    scale = SHORTER / min(pixels.shape[:2])
    sides = (max(SIDE, math.floor(n * scale + 0.5)) for n in pixels.shape[:2])
    views = [scaled_to(pixels, *sides)]
    if min(pixels.shape[:2]) >= SIDE:
        views.append(pixels)
    return torch.stack([normalised(_centre(view)) for view in views])


def _centre(pixels: np.ndarray) -> np.ndarray:
    y, x = ((n - SIDE) // 2 for n in pixels.shape[:2])
    return pixels[y : y + SIDE, x : x + SIDE]


def load(weights: str) -> PublishedDetector:
    """Community Forensics' ViT trained further on OpenFake, ONNX (Sieve 0.10.0)."""
    said = f"sieve:{weights}"
    if not os.path.isfile(weights):
        raise GanscopeError(f"{said}: no such file")
    graph = OnnxNet(weights, said=said)
    if graph.side not in (None, SIDE):
        raise GanscopeError(f"{said}: takes images of {graph.side} pixels, not of {SIDE}")
    return PublishedDetector("sieve", Sieve(graph).eval(), prepare, hash_files(weights), THRESHOLD)
