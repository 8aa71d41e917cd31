"""The settings of `ganscope export`."""

from dataclasses import dataclass
from pathlib import Path

from ganscope.config.validation import as_lists, as_paths, at_least, one_of, valid_suffix
from ganscope.errors import GanscopeError

EXPORTS = ("onnx", "torchscript", "openvino")
ENDINGS = {"onnx": ".onnx", "torchscript": ".pt", "openvino": "-openvino"}


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Settings of `ganscope export`."""

    detector: str
    """A shipped detector's name, a run folder of `train-detector`, or a hub id owner/name."""
    to: str = "onnx"
    """onnx, torchscript or openvino."""
    out: Path | None = None
    """File, or folder for openvino; None: the detector's name with the format's ending."""
    int8: bool = False
    """Weights as bytes with scales, and what a transformer multiplies them by, too: a quarter of
    the size, and transformers nearly twice as quick on a CPU, for small differences in scores."""
    half: bool = False
    """Weights in fp16, computed with in fp32: half the size."""
    map: bool = True
    """Whether the map goes along that heatmaps are made of. Without it a file is smaller, and for
    ONNX or OpenVINO quicker, where the map is a backbone's of its own (`default`), and heatmaps are
    made of tiles."""
    sample: tuple[str, ...] = ()
    """Pictures and folders to compare its scores on; none: pictures made for it."""
    most: int = 32
    """Pictures of the sample that are looked at, at most."""
    tolerance: float | None = None
    """The largest difference in score that is promised; None: 0.001, with half 0.01, with int8
    0.15."""

    def __post_init__(self) -> None:
        as_lists(self)
        as_paths(self, "out")
        at_least(self, most=1)
        one_of(self, to=EXPORTS)
        if self.int8 and self.half:
            raise GanscopeError("--int8 and --half exclude each other; give one")
        if self.int8 and self.to == "torchscript":
            raise GanscopeError("--int8 is for --to onnx and openvino; TorchScript takes --half")
        if self.tolerance is not None and not 0 <= self.tolerance <= 1:
            raise GanscopeError(f"--tolerance must be between 0 and 1, not {self.tolerance:g}")
        if self.to != "openvino":
            valid_suffix(self.out, ENDINGS[self.to])

    @property
    def promised(self) -> float:
        """The largest difference in score."""
        if self.tolerance is not None:
            return self.tolerance
        return 0.15 if self.int8 else 0.01 if self.half else 0.001
