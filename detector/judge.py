"""What judges a picture, whatever computes its logits: pixels in, logits out, and what they mean.

A `Detector` computes with torch, an exported one (`exported/`) without. What turns a logit into a
verdict is said by the configuration that both carry, and is here, once.
"""

import math
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from ganscope.detector.networks.face_head import FaceHead
from ganscope.named import check_network, faulty, is_whole, read_config, shown

SMALLEST = 32
"""Pixels: images with a shorter side get no verdict, whatever the detector; one may want more of
them (`Judge.smallest`)."""

LARGEST = 4096
"""Pixels: no network sees larger tiles or views."""
BATCH = 32
"""Tiles or views at a time where nothing speaks for more."""


class Judge(ABC):
    """Batches of pixels -> logits, higher = more likely fake; logits -> scores and verdicts.

    A subclass has a `config`, as `Detector` describes it, a `name`, and computes.
    """

    config: dict[str, Any]
    name: str
    """What the user called it, or the folder's name."""
    runtime: str
    """What computes: torch, onnx (onnxruntime) or openvino."""
    margin: float = 0.0
    """How far the logit of a view may be from the exact one, and that of an image of n views by
    so much over the root of n. Where that could change what is said of it, `exact_logits` are asked
    for.
    """
    lasting_margin: float = 0.0
    """As `margin`, of a file that has no exact logits beside it."""

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
        threshold, and can be had.
        """
        return self._near(logit, self.margin / views**0.5)

    def stays_in_doubt(self, logit: float, views: int) -> bool:
        """Whether it may lie there, and cannot be had."""
        return self._near(logit, self.lasting_margin / views**0.5)

    def _near(self, logit: float, margin: float) -> bool:
        if not margin:
            return False
        low, high = self.score(logit - margin), self.score(logit + margin)
        return any(low <= self.thresholds[name] <= high for name in ("fake", "real"))

    def may_be_settled(self, logit: float, views: int) -> bool:
        """Whether it is in doubt by the exact logit whether more views are looked at. That seldom
        decides a verdict: a third of the margin does.
        """
        margin = self.margin / views**0.5 / 3
        return any(abs(logit - one) < margin for one in self._bounds(views))

    def wants_more(self, logit: float, views: int) -> bool:
        """Whether an image of whose first views this is the logit is looked at once more."""
        low, high = self._bounds(views)
        return low <= logit < high

    def _bounds(self, views: int) -> tuple[float, float]:
        """Below the first logit an image is settled as real, from the second on as fake. One view
        is a glance.
        """
        assert self.views
        name = "glance" if views == 1 else "settled"
        return self.views[name], self.views.get(f"{name}_fake", math.inf)

    @property
    def glances(self) -> bool:
        """Whether the whole of an image alone may settle what it is."""
        return "glance" in (self.views or {})

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

    def places(self, pixels: np.ndarray) -> np.ndarray:
        """The map of `local_logits` alone, sooner where it is made apart."""
        return self.local_logits(pixels)[0]

    @property
    def size(self) -> int:
        """Side of the input tiles in pixels."""
        return int(self.config["input"]["size"])

    @property
    def views(self) -> dict[str, Any] | None:
        """What it looks at in an image (`judging.views.cut_views`); None: at native tiles.

        `whole`: side in pixels that the whole is made small to. `glance` and `glance_fake`: logits
        of the whole alone below which an image is real, and from which it is fake, so that nothing
        else is looked at; without the former there is no glance. `settled` and `settled_fake`: the
        same of the first look, which is the whole and the middle. `few`: see there.
        """
        return self.config["input"].get("views")

    @property
    def few(self) -> float:
        """Times that the logit counts of what has no views but the first look, as small pictures
        and faces: thresholds are of what more views come to, which varies less.
        """
        return float((self.views or {}).get("few", 1.0))

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


def read_detector_config(folder: Path, name: str | Path) -> dict[str, Any]:
    """The `config.json` of a detector's folder; name: what the user called it.

    Raises `GanscopeError` as `read_config` does, and for what `check_config` refuses.
    """
    config = read_config(folder, name, "detectors")
    try:
        check_config(config)
    except ValueError as error:
        raise faulty(name, error) from None
    return config


def check_config(config: Any) -> None:
    """Raise `ValueError` for a configuration that no detector can have."""
    if not isinstance(config, dict):
        raise ValueError(f"it is {shown(config)}, no object")
    check_network(config)
    for part in ("input", "thresholds", "calibration"):
        if not isinstance(config.get(part), dict):
            raise ValueError(f"{part} is {shown(config.get(part))}, no object")
    _check_input(config)
    if config["architecture"] == "fused":
        _check_parts(config)
    scale, _ = (_number(config, "calibration", name) for name in ("scale", "shift"))
    real, fake = (_number(config, "thresholds", name) for name in ("real", "fake"))
    if scale < 0:  # fakes would be called real
        raise ValueError(f"calibration: scale is {scale}, negative")
    if real > fake:
        raise ValueError(f"thresholds: real is {real}, above fake")
    _check_looks(config["input"])
    _check_records(config)


def _check_parts(config: dict[str, Any]) -> None:
    """The networks of which a fused one is made."""
    parts, size = config["arguments"].get("parts"), config["input"]["size"]
    if not isinstance(parts, list) or not parts:
        raise ValueError(f"arguments: parts is {shown(parts)}, no list of networks")
    for number, part in enumerate(parts, start=1):
        try:
            if not isinstance(part, dict) or not isinstance(part.get("input"), dict):
                raise ValueError(f"it is {shown(part)}")
            check_network(part)
            _check_input(part)
            if part["input"]["size"] > size:
                raise ValueError(f"input: size is {part['input']['size']}, above that of all")
        except ValueError as error:
            raise ValueError(f"arguments: part {number} of parts: {error}") from None


def _check_input(config: dict[str, Any]) -> None:
    """What the images are like that a network sees."""
    about, size = config["input"], config["input"].get("size")
    if not is_whole(size) or not 1 <= size <= LARGEST:
        raise ValueError(f"input: size is {shown(size)}, no whole number from 1 to {LARGEST}")
    for name in ("mean", "std"):
        value = about.get(name)
        whole = isinstance(value, list | tuple) and len(value) == 3 and all(map(_is_number, value))
        if not whole or (name == "std" and not all(one > 0 for one in value)):
            raise ValueError(f"input: {name} is {shown(value)}, not three numbers that can be")


def _check_looks(about: dict[str, Any]) -> None:
    """How a detector looks at an image: at tiles, at views or at faces."""
    if "smallest" in about:
        _number({"input": about}, "input", "smallest")
    looks_at, margin = (about.get(name) for name in ("looks_at", "margin"))
    if looks_at not in (None, "faces"):
        raise ValueError(f"input: looks_at is {shown(looks_at)}; this version knows faces")
    if looks_at and not (_is_number(margin) and 1 <= margin <= 10):
        raise ValueError(f"input: margin is {shown(margin)}, not from 1 to 10")
    views = about.get("views")
    if views is None:
        return
    if not isinstance(views, dict) or not _is_number(views.get("settled")):
        raise ValueError(f"input: views is {shown(views)}")
    whole = views.get("whole")
    if not is_whole(whole) or not about["size"] <= whole <= LARGEST:
        raise ValueError(f"input: views is {shown(views)}")
    for name in ("settled", "glance"):
        low, high = views.get(name, -math.inf), views.get(f"{name}_fake", math.inf)
        if name in views and not _is_number(low):
            raise ValueError(f"input: views: {name} is {shown(low)}, no number")
        if f"{name}_fake" in views and name not in views:
            raise ValueError(f"input: views: {name}_fake without {name}")
        if f"{name}_fake" in views and not (_is_number(high) and high >= low):
            raise ValueError(
                f"input: views: {name}_fake is {shown(high)}, below {name} or no number"
            )
    if not (_is_number(few := views.get("few", 1.0)) and 0 < few <= 1):
        raise ValueError(f"input: views: few is {shown(few)}, not above 0 and up to 1")


def _check_records(config: dict[str, Any]) -> None:
    """What was measured, where it is shown with verdicts; the rest is nobody's concern."""
    alarms = config.get("false_alarms")
    if isinstance(alarms, dict) and alarms.get("photographs"):
        for name in ("photographs", "called_fake", "at_most"):
            _number(config, "false_alarms", name)
    elif alarms is not None and not isinstance(alarms, dict):
        raise ValueError(f"false_alarms is {shown(alarms)}, no object")
    kept = config.get("validation")
    for name in ("real", "fake"):
        counts = kept.get(name, []) if isinstance(kept, dict) else []
        if not isinstance(counts, list) or not all(map(_is_number, counts)):
            raise ValueError(f"validation: {name} is {shown(counts)}, no counts")


def _is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number; JSON's may be larger than any of numpy's."""
    most = sys.float_info.max
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= most


def _number(config: dict[str, Any], part: str, name: str) -> float:
    value = config[part].get(name)
    if not _is_number(value):
        raise ValueError(f"{part}: {name} is {shown(value)}, no number")
    return value
