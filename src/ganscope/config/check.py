"""The settings of `ganscope check`."""

from dataclasses import dataclass
from pathlib import Path

from ganscope.config.validation import as_lists, as_paths, at_least, one_of, valid_device
from ganscope.errors import GanscopeError

RUNTIMES = ("auto", "torch", "onnx")
HEATMAP_METHODS = ("auto", "tiles", "patches", "gradcam")


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """Settings of `ganscope check`."""

    paths: tuple[str, ...]
    """Image files, folders, videos, lists (.txt), archives, PDFs, web addresses; - is standard
    input."""
    detector: str = "default"
    """A shipped detector's name, a run folder of `train-detector`, or a hub id owner/name."""
    heatmap: Path | None = None
    """Folder for heatmap overlays, one PNG an image."""
    heatmap_method: str = "auto"
    """auto (the detector's own), tiles, patches or gradcam."""
    csv: Path | None = None
    """Write the verdicts as CSV."""
    report: Path | None = None
    """Write one HTML file with every picture, its verdict and a thumbnail."""
    project: Path | None = None
    """Enter the pictures into this project file, to review them with `ganscope serve`; files that
    are in it already are passed over."""
    json: bool = False
    """Print one JSON object a line instead of a table."""
    reencode: bool = True
    """Look again after JPEG 85 and after shrinking to 0.75: a verdict that changes is *unsure*."""
    faces: bool = True
    """Look at each face by itself, too: one that was swapped is a small part of a photograph."""
    pixels_only: bool = False
    """Judge by the pixels alone: what the file says of itself is shown, but sets no verdict."""
    trust_anchors: Path | None = None
    """Certificates (PEM) of the issuers whose C2PA signatures are trusted; None: those that
    `ganscope trust update` fetched."""
    frames: int = 16
    """Frames of a video that are looked at, at most, spread over its scenes."""
    timeline: Path | None = None
    """Folder for pictures of videos' timelines; None: that of the heatmaps, if there is one."""
    allow_private: bool = False
    """Fetch from private, loopback and link-local addresses, too."""
    fail_on: str | None = None
    """Exit with status 1 if any image has this verdict."""
    batch_size: int | None = None
    """Tiles scored at a time; None: 32, on a GPU what its free memory takes. Scores do not depend
    on it."""
    device: str = "auto"
    runtime: str = "auto"
    """torch, onnx (onnxruntime, without torch), or auto: the quicker one."""

    def __post_init__(self) -> None:
        as_lists(self)
        as_paths(self, "heatmap", "csv", "timeline", "report", "project", "trust_anchors")
        at_least(self, batch_size=1, frames=1)
        one_of(self, fail_on=("fake", "unsure"), heatmap_method=HEATMAP_METHODS, runtime=RUNTIMES)
        valid_device(self.device)
        for option in ("heatmap", "timeline"):
            folder = getattr(self, option)
            if folder and folder.exists() and not folder.is_dir():
                raise GanscopeError(f"--{option} {folder}: is a file; name a folder")
        if not self.paths:
            raise GanscopeError("name at least one image or folder to check")
