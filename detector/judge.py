"""What judges a picture, whatever computes its logits: pixels in, logits out, and what they mean.

A `Detector` computes with torch, an exported one (`exported/`) without. What turns a logit into a
verdict is said by the configuration that both carry, and is here, once.
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from ganscope.detector.networks.face_head import FaceHead

SMALLEST = 32
"""Pixels: images with a shorter side get no verdict, whatever the detector; one may want more of
them (`Judge.smallest`)."""

BATCH = 32
"""Tiles or views at a time where nothing speaks for more."""


class Judge(ABC):
    """Batches of pixels -> logits, higher = more likely fake; logits -> scores and verdicts.

    A subclass has a `config`, as `Detector` describes it, a `name`, and computes.
    """

    config: dict[str, Any]
    name: str
    """What the user called it, or the folder's name."""
    margin: float = 0.0
    """How far the logit of a view may be from the exact one, and that of an image of n views by
    so much over the root of n. Where that could change what is said of it, `exact_logits` are asked
    for.
    """

    @abstractmethod
    def prepare(self, device: str = "auto") -> None:
        """Get ready to compute on a device; raises `GanscopeError` if it is not there."""

    @property
    @abstractmethod
    def on_cpu(self) -> bool:
        """Whether it computes on the CPU, and so competes with what opens images."""

    def batch(self) -> int:
        """Tiles or views that it had best be given at a time."""
        return BATCH

    @abstractmethod
    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """(N, size, size, 3) uint8 RGB -> logits (N,) float32."""

    def exact_logits(self, pixels: np.ndarray) -> np.ndarray:
        """`logits`, without the errors that `margin` bounds, and slower."""
        return self.logits(pixels)

    def in_doubt(self, logit: float, views: int) -> bool:
        """Whether the exact logit of an image of so many views may lie on the other side of a
        threshold.
        """
        if not self.margin:
            return False
        margin = self.margin / views**0.5
        low, high = self.score(logit - margin), self.score(logit + margin)
        return any(low <= self.thresholds[name] <= high for name in ("fake", "real"))

    def may_be_settled(self, logit: float, views: int) -> bool:
        """Whether it is in doubt by the exact logit whether more views are looked at. That seldom
        decides a verdict: a third of the margin does.
        """
        assert self.views
        return abs(logit - self.views["settled"]) < self.margin / views**0.5 / 3

    @property
    def face_head(self) -> FaceHead | None:
        """What tells swapped faces, if it has anything that does."""
        return None

    def face_logits(self, pixels: np.ndarray) -> np.ndarray:
        """(N, size, size, 3) uint8 RGB, squares around faces as `face_head` wants them -> logits
        (N,) float32, higher = more likely swapped. Only with a `face_head`.
        """
        raise NotImplementedError

    @property
    @abstractmethod
    def has_map(self) -> bool:
        """Whether `local_logits` gives any."""

    @property
    @abstractmethod
    def has_places(self) -> bool:
        """Whether the map of logits is of its own, by a layer that says where a picture is fake,
        and not the parts of the pictures' logits.
        """

    @property
    @abstractmethod
    def has_gradients(self) -> bool:
        """Whether Grad-CAM can be asked where the evidence lies."""

    @abstractmethod
    def local_logits(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, size, size, 3) uint8 RGB -> the map of logits (N, h, w) float32, and those of the
        images (N,). Raises `GanscopeError` if there is no map.
        """

    @property
    def size(self) -> int:
        """Side of the input tiles in pixels."""
        return int(self.config["input"]["size"])

    @property
    def views(self) -> dict[str, Any] | None:
        """What it looks at in an image (`judging.views.cut_views`); None: at native tiles."""
        return self.config["input"].get("views")

    @property
    def faces_alone(self) -> bool:
        """Whether it looks at the faces of a picture and at nothing else."""
        return self.config["input"].get("looks_at") == "faces"

    @property
    def around_faces(self) -> float:
        """Side of the square that such a detector looks at, in longer sides of a face's box."""
        return float(self.config["input"].get("margin", 1.0))

    @property
    def smallest(self) -> int:
        """Pixels: an image with a shorter side than this gets no verdict."""
        return int(self.config["input"].get("smallest", SMALLEST))

    @property
    def thresholds(self) -> dict[str, float]:
        return self.config["thresholds"]

    def score(self, logit: Any) -> Any:
        """logit(s) -> score(s) in [0, 1], higher = more likely fake; no probability."""
        return sigmoid(logit)

    def probability(self, logit: Any) -> Any:
        """logit(s) -> calibrated probability of being fake, for equally many reals and fakes."""
        calibration = self.config["calibration"]
        return sigmoid(np.asarray(logit) * calibration["scale"] + calibration["shift"])

    def verdict(self, score: float) -> str:
        """ "fake" from the upper threshold on, "real" below the lower one, else "unsure"."""
        if score >= self.thresholds["fake"]:
            return "fake"
        return "real" if score < self.thresholds["real"] else "unsure"


def sigmoid(logit: Any) -> Any:
    """Sigmoid of a number or an array in double precision, without overflow."""
    x = np.asarray(logit, np.float64)
    value = np.exp(-np.logaddexp(0.0, -x))
    return float(value) if value.ndim == 0 else value


def check_config(config: dict[str, Any]) -> None:
    """Raise `ValueError` for numbers that no detector can have."""
    numbers = [
        *(("thresholds", name) for name in ("fake", "real")),
        *(("calibration", name) for name in ("scale", "shift")),
        ("input", "size"),
    ]
    if "smallest" in config["input"]:
        numbers.append(("input", "smallest"))
    for part, name in numbers:
        value = config[part][name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{part}: {name} is {value!r}, no number")
        if not np.isfinite(value):
            raise ValueError(f"{part}: {name} is {value!r}, not finite")
    size, scale = config["input"]["size"], config["calibration"]["scale"]
    real, fake = (config["thresholds"][name] for name in ("real", "fake"))
    if size < 1:
        raise ValueError(f"input: size is {size}")
    if scale < 0:  # fakes would be called real
        raise ValueError(f"calibration: scale is {scale}, negative")
    if real > fake:
        raise ValueError(f"thresholds: real is {real}, above fake")
    looks_at, margin = (config["input"].get(name) for name in ("looks_at", "margin"))
    if looks_at not in (None, "faces"):
        raise ValueError(f"input: looks_at is {looks_at!r}; this version knows faces")
    if looks_at and (not isinstance(margin, int | float) or not 1 <= margin <= 10):
        raise ValueError(f"input: margin is {margin!r}, not from 1 to 10")
    views = config["input"].get("views")
    if views is None:
        return
    try:
        whole, settled = views["whole"], views["settled"]
        if isinstance(whole, bool) or not isinstance(whole, int):
            raise TypeError
        settled = settled + 0.0
    except (KeyError, TypeError):
        raise ValueError(f"input: views is {views!r}") from None
    if whole < size or not np.isfinite(settled):
        raise ValueError(f"input: views is {views!r}")
