"""What tells swapped faces from real ones: a linear classifier on what the untouched transformer of
a detector sees in the square around a face. Without torch.

Its features, of the tokens after one block, each normalised over its width: the class token, then
the mean and the standard deviation of the patches within the face, at its edge and around it. What
was blended in does not fit what surrounds it, and these three meet in one linear sum.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ganscope.errors import GanscopeError, reason_of
from ganscope.files import replacing
from ganscope.named import FACES, WEIGHTS

PARTS = 7
INNER, EDGE, NARROW = 0.7, 1.15, 0.85
"""Where the zones end, in half boxes from a face's middle; faces are higher than wide."""
EARLIER = [0.7, 1.15, 0.85]
"""These three of heads whose files do not tell them."""
TOO_MUCH = (OverflowError, RecursionError)
"""What numbers without end and JSON of great depth raise."""


@dataclass(frozen=True)
class FaceHead:
    """logit = features (N, `PARTS` * width) @ weight + bias, higher = more likely swapped."""

    weight: np.ndarray
    """(`PARTS` * width,) float32."""
    bias: float
    block: int
    """The block (from 0) after which tokens are read."""
    margin: float
    """Side of the square that is looked at, in longer sides of the face's box."""
    threshold: float
    """Of the score, in [0, 1], from which on a face counts as swapped."""
    about: dict[str, Any]
    """How it was made and what was measured."""

    @property
    def digest(self) -> str:
        """12 hexadecimal digits of the SHA-256 of all that its logits depend on."""
        bias = np.float32(self.bias)  # as it is kept
        rest = np.array([bias, self.block, self.margin, self.threshold], np.float64)
        return hashlib.sha256(self.weight.tobytes() + rest.tobytes()).hexdigest()[:12]

    @classmethod
    def load(cls, folder: Path) -> "FaceHead | None":
        """The one in a folder, None if there is none.

        Raises `GanscopeError` if it is damaged, or does not fit the detector whose folder it is.
        """
        path = folder / FACES
        if not path.is_file():
            return None
        try:
            with safe_open(path, "numpy") as file:
                told = json.loads(file.metadata()["faces"])
                weight, bias = file.get_tensor("weight"), float(file.get_tensor("bias")[0])
            head = cls(
                weight.astype(np.float32),
                bias,
                int(told["block"]),
                float(told["margin"]),
                float(told["threshold"]),
                dict(told["about"]),
            )
            if head.weight.ndim != 1 or len(head.weight) % PARTS:
                raise ValueError(f"a classifier of shape {head.weight.shape}")
            if not np.isfinite([*head.weight, bias]).all() or not 0 < head.threshold < 1:
                raise ValueError("numbers that are not finite")
            if told["digest"] != head.digest:
                raise ValueError("its numbers are not those that were saved")
        except (SafetensorError, OSError, LookupError, ValueError, TypeError, *TOO_MUCH) as error:
            raise GanscopeError(
                f"{path} is damaged ({reason_of(error)}); fetch it again, or delete it"
            ) from None
        learned_with = told.get("zones", EARLIER)
        if learned_with != [INNER, EDGE, NARROW]:
            raise GanscopeError(
                f"{path} was learned with other zones of a face ({str(learned_with)[:60]}) than "
                "those that are looked at here; make one anew, or delete it"
            )
        misfit = head._misfit(folder / WEIGHTS)
        if misfit:
            raise GanscopeError(
                f"{path} is of another detector ({misfit}); make one for this, or delete it"
            )
        return head

    def _misfit(self, weights: Path) -> str:
        """Why it cannot be asked about what the network of a weights file sees; "" if it can, or if
        there is no such file, or one that others will say is damaged.
        """
        try:
            with safe_open(weights, "numpy") as file:
                keys = set(file.keys())
                read = "net.plain." if "net.plain.cls_token" in keys else "net.backbone."
                if not {f"{read}cls_token", f"{read}pos_embed"} <= keys:
                    return "this has no transformer of that kind"
                _, tokens, width = file.get_slice(f"{read}pos_embed").get_shape()
        except (SafetensorError, OSError, ValueError):
            return ""
        blocks = {int(one.split(".")[3]) for one in keys if one.startswith(f"{read}blocks.")}
        if self.block not in blocks:
            return f"block {self.block} of {len(blocks)}"
        if len(self.weight) != PARTS * width:
            return f"features of {len(self.weight) // PARTS} numbers a part, not {width}"
        if not 0 < self.margin < np.inf or not zones(math.isqrt(tokens), self.margin).any(1).all():
            return f"a square of {self.margin:g} faces"
        return ""

    def save(self, folder: Path) -> None:
        """Write it into a detector's folder, atomically."""
        kept = ("block", "margin", "threshold", "about", "digest")
        told = {name: getattr(self, name) for name in kept} | {"zones": [INNER, EDGE, NARROW]}
        tensors = {"weight": self.weight, "bias": np.array([self.bias], np.float32)}
        with replacing(folder / FACES) as part:
            save_file(tensors, part, metadata={"faces": json.dumps(told)})


def zones(grid: int, margin: float) -> np.ndarray:
    """(3, grid * grid) float32: within a face in the middle of a square of patches, at its edge,
    and around it; a row's sum is 1.
    """
    y, x = (np.mgrid[:grid, :grid] - (grid - 1) / 2) * (2 * margin / grid)
    away = np.hypot(x / NARROW, y)
    found = np.stack([away < INNER, (away >= INNER) & (away < EDGE), away >= EDGE])
    rows = found.reshape(3, -1).astype(np.float32)
    return rows / np.maximum(rows.sum(1, keepdims=True), 1)


def unbiased(weights: np.ndarray) -> np.ndarray:
    """(3, 1): what the variance in each zone is multiplied by, n / (n - 1)."""
    count = (weights > 0).sum(1, keepdims=True)
    return (count / np.maximum(count - 1, 1)).astype(np.float32)
