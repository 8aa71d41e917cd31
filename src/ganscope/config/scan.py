"""The settings of `ganscope scan`."""

from dataclasses import dataclass
from pathlib import Path

from ganscope.config.check import RUNTIMES
from ganscope.config.validation import as_lists, as_paths, at_least, one_of, valid_device
from ganscope.errors import GanscopeError

ENGINES = ("auto", "ray", "local")


@dataclass(frozen=True, kw_only=True)
class ScanSettings:
    """Settings of `ganscope scan`."""

    paths: tuple[str, ...]
    """Files, folders, addresses that fsspec reads (s3://, gs://, hf:OWNER/NAME, ...), tar files,
    and lists of those (.txt, .csv, .parquet with a column path)."""
    out: Path = Path("results.parquet")
    """Folder of Parquet files; a scan that was stopped goes on in it."""
    detector: str = "default"
    """A shipped detector's name, a run folder of `train-detector`, a hub id, or an exported
    file."""
    engine: str = "auto"
    """local (processes of this machine), ray (Ray Data: a cluster, or this machine), or auto: ray
    where a cluster is named (`address`, or the variable RAY_ADDRESS)."""
    address: str | None = None
    """Of a Ray cluster, or auto for the one that this machine is a part of; None: with engine ray,
    Ray is started here, for this scan."""
    workers: int | None = None
    """Processes that judge; None: one a GPU, or one a core."""
    dedup: bool = True
    """Judge files of the same content once."""
    retries: int = 3
    """How often a file is read again that cannot be read for a reason that may pass."""
    reencode: bool = True
    """Look again after JPEG 85 and after shrinking to 0.75: a verdict that changes is *unsure*."""
    faces: bool = True
    """Look at each face by itself, too, as in `CheckSettings`."""
    pixels_only: bool = False
    """Judge by the pixels alone: what the file says of itself is shown, but sets no verdict."""
    trust_anchors: Path | None = None
    """Certificates (PEM) of the issuers whose C2PA signatures are trusted."""
    allow_private: bool = False
    """Fetch from private, loopback and link-local web addresses, too."""
    batch_size: int | None = None
    """Tiles scored at a time; None: 32, on a GPU what its free memory takes."""
    device: str = "auto"
    runtime: str = "auto"
    """torch, onnx (onnxruntime, without torch), or auto: the quicker one."""

    def __post_init__(self) -> None:
        as_lists(self)
        as_paths(self, "out", "trust_anchors")
        at_least(self, batch_size=1, workers=1, retries=0)
        one_of(self, engine=ENGINES, runtime=RUNTIMES)
        valid_device(self.device)
        if not self.paths:
            raise GanscopeError("name at least one file, folder or list to scan")
        if self.address and self.engine == "local":
            raise GanscopeError("--address is of a Ray cluster; leave out --engine local")
