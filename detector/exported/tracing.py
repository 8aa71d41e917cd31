"""Any detector as a graph, by following torch through its network: ONNX, TorchScript, OpenVINO."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from ganscope.detector.exported.graph import LOGITS, PIXELS, PLACES
from ganscope.detector.exported.running import ABOUT
from ganscope.detector.exported.shrinking import LARGE
from ganscope.detector.model import Detector
from ganscope.detector.networks.transformer import BlockFeatures
from ganscope.errors import GanscopeError, reason_of

OPSET = 18
SAME = 1e-4
"""A logit is taken for the mean of its map if they differ by no more, on noise."""


class _Bytes(nn.Module):
    """pixels (N, size, size, 3) uint8 -> logits (N,), and the map (N, h, w) where there is one."""

    def __init__(self, detector: Detector, mapped: bool):
        super().__init__()
        self.detector = detector
        self.mapped = mapped and detector.has_map
        self.of_map = False
        if self.mapped and not detector.has_places:
            noise = np.random.default_rng(0).integers(0, 256, (2, detector.size, detector.size, 3))
            _, whole = detector.local_logits(noise.astype(np.uint8))
            found = detector.logits(noise.astype(np.uint8))
            self.of_map = bool(np.abs(found - whole).max() <= SAME)

    def logits(self, pixels: Tensor) -> Tensor:
        return self.detector.net(self._images(pixels))

    def _images(self, pixels: Tensor) -> Tensor:
        return self.detector.normalised(pixels.permute(0, 3, 1, 2).float() / 255)

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        detector, images = self.detector, self._images(pixels)
        if not self.mapped:
            return detector.net(images)
        if detector.has_places:
            local, whole = detector.net.where_logits(images)  # type: ignore[operator]
            return whole, local
        local = detector.net.patch_logits(images)  # type: ignore[operator]
        return local.mean((1, 2)) if self.of_map else detector.net(images), local


def _prepared(detector: Detector, mapped: bool) -> tuple[nn.Module, Tensor]:
    detector.prepare("cpu")
    # Not of equal pixels, nor of one image: what a trace sees, it may take for a constant.
    example = torch.randint(0, 256, (2, detector.size, detector.size, 3), dtype=torch.uint8)
    return _Bytes(detector, mapped).eval(), example


def traced_onnx(detector: Detector, path: Path, mapped: bool) -> onnx.ModelProto:
    """A detector as an ONNX graph in float32; path: a file to write it to meanwhile; mapped: with
    its map, if it has one.

    Raises `GanscopeError` for a network with an operation that ONNX does not have.
    """
    network, example = _prepared(detector, mapped)
    names = [LOGITS, PLACES][: 1 + (mapped and detector.has_map)]
    with warnings.catch_warnings(), torch.inference_mode(), _told(detector):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (example,),
            path,
            input_names=[PIXELS],
            output_names=names,
            dynamic_axes={name: {0: "N"} for name in (PIXELS, *names)},
            opset_version=OPSET,
            dynamo=False,  # the newer way wants a library more, and is slower for these networks
        )
    return onnx.load(path)


@contextmanager
def _bare(detector: Detector, mapped: bool) -> Iterator[None]:
    """Without its map, a network has no backbone for it alone."""
    net = detector.net
    if mapped or not isinstance(net, BlockFeatures):
        yield
        return
    local, net.local = net.local, None
    try:
        yield
    finally:
        net.local = local


@contextmanager
def _told(detector: Detector) -> Iterator[None]:
    """Say in a line what torch raises for a network that cannot be followed, or written."""
    try:
        yield
    except (GanscopeError, OSError):
        raise
    except Exception as error:  # torch.onnx has many, and networks more
        raise GanscopeError(
            f"{detector.name}: its network cannot be expressed ({reason_of(error)[:200]}); "
            "try another --to"
        ) from None


def save_script(
    detector: Detector, path: Path, what: dict[str, Any], half: bool = False, mapped: bool = True
) -> None:
    """Write a detector as a TorchScript file that holds what it is; half: its weights in fp16;
    mapped: with its map, if it has one.
    """
    network, example = _prepared(detector, mapped)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        with _told(detector), _bare(detector, mapped):
            asked: dict[str, Any] = {"forward": (example,)}
            if mapped and detector.has_places:  # which may cost a backbone of their own
                asked[LOGITS] = (example,)
            module = torch.jit.trace_module(network, asked, check_trace=False)
    kept = []
    for weights in [*module.parameters(), *module.buffers()] if half else []:
        if weights.numel() >= LARGE and weights.is_floating_point():
            kept.append((weights, weights.data))
            weights.data = weights.data.half()  # whoever opens the file makes them float again
    try:
        torch.jit.save(module, path, _extra_files={f"{ABOUT}.json": json.dumps(what)})
    finally:
        for weights, data in kept:  # they are the detector's own
            weights.data = data
