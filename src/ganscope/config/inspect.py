"""The settings of `ganscope inspect` and `ganscope trust update`."""

from dataclasses import dataclass
from pathlib import Path

from ganscope.config.validation import as_lists, as_paths
from ganscope.errors import GanscopeError


@dataclass(frozen=True, kw_only=True)
class InspectSettings:
    """Settings of `ganscope inspect`."""

    paths: tuple[str, ...]
    """Image files and folders."""
    watermarks: bool = False
    """Look into the pixels for invisible watermarks, too; needs invisible-watermark."""
    trust_anchors: Path | None = None
    """Certificates (PEM) of the issuers whose C2PA signatures are trusted; None: those that
    `ganscope trust update` fetched."""
    json: bool = False
    """Print one JSON object a line instead of a table."""

    def __post_init__(self) -> None:
        as_lists(self)
        as_paths(self, "trust_anchors")
        if not self.paths:
            raise GanscopeError("name at least one image or folder to inspect")


@dataclass(frozen=True, kw_only=True)
class TrustUpdateSettings:
    """Settings of `ganscope trust update`."""

    url: str | None = None
    """Address or file of the list of issuers; None: the C2PA's official one."""
    stamps_url: str | None = None
    """Address or file of the list of those who stamp times; None: the official one with the
    official one, else `url`."""
