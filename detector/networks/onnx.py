"""Networks that others exported to ONNX, run by onnxruntime (an extra)."""

import numpy as np
import torch
from torch import Tensor, nn

from ganscope.devices import pick_device
from ganscope.errors import GanscopeError, reason_of


class OnnxNet(nn.Module):
    """An ONNX file as a network: images (N, 3, H, W) in, logits (N,) out.

    An output of two columns is taken for the logits of real and fake. probability: the file's
    outputs are probabilities, not logits. said: how the user named it; "": --detector onnx:FILE.
    """

    def __init__(self, path: str, probability: bool = False, device: str = "auto", said: str = ""):
        super().__init__()
        said = said or f"--detector onnx:{path}"
        try:
            import onnxruntime
        except ImportError:
            raise GanscopeError(
                "ONNX files need onnxruntime: pip install 'ganscope[onnx]'"
            ) from None
        try:
            providers = onnxruntime.get_available_providers()
            if pick_device(device).type == "cpu":
                providers = ["CPUExecutionProvider"]
            self.session = onnxruntime.InferenceSession(path, providers=providers)
        except Exception as error:  # its errors share no base but Exception
            raise GanscopeError(f"{said}: {reason_of(error)}") from None
        inputs = self.session.get_inputs()
        shape = inputs[0].shape
        if len(inputs) != 1 or len(shape) != 4 or shape[1] not in (3, None):
            raise GanscopeError(
                f"{said}: takes {[i.shape for i in inputs]}; one input of images "
                "(N, 3, H, W) is needed"
            )
        self.input, self.probability = inputs[0].name, probability
        self.side = shape[2] if isinstance(shape[2], int) else None
        self.batch = shape[0] if isinstance(shape[0], int) else None

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.float().cpu().numpy()
        step = self.batch or len(pixels)
        parts = []
        for start in range(0, len(pixels), step):
            part = pixels[start : start + step]
            short = step - len(part)
            filled = np.concatenate([part, np.repeat(part[-1:], short, 0)]) if short else part
            try:
                found = np.asarray(self.session.run(None, {self.input: filled})[0])
            except Exception as error:  # its errors share no base but Exception
                raise GanscopeError(f"onnxruntime: {reason_of(error)}") from None
            parts.append(found.reshape(step, -1)[: len(part)])
        found = np.concatenate(parts).astype(np.float64)
        if found.shape[1] > 2:
            raise GanscopeError(f"gives {found.shape[1]} numbers an image; one or two are needed")
        if self.probability:
            fake = np.clip(found[:, -1], 1e-7, 1 - 1e-7)
            logits = np.log(fake) - np.log1p(-fake)
        else:
            logits = found[:, -1] - (found[:, 0] if found.shape[1] == 2 else 0.0)
        return torch.from_numpy(logits).to(x.device)
