"""The settings of `ganscope serve` and `ganscope play`."""

import os
from dataclasses import dataclass
from pathlib import Path

from ganscope.config.validation import as_lists, as_paths, at_least, valid_device
from ganscope.errors import GanscopeError


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Settings of `ganscope serve`."""

    detector: str = "default"
    """A shipped detector's name, a run folder of `train-detector`, or a hub id owner/name."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0: every one that this machine has."""
    port: int = 8000
    """Port to listen on; 0: a free one."""
    project: Path | None = None
    """Project file (`check --project`) to review; what players of the game answer is kept there,
    too."""
    corpus: Path | None = None
    """Corpus that the game at /play deals from; None: a small one made on the spot."""
    keep: Path | None = None
    """Folder to keep the pictures in that are sent; None: none is kept."""
    token_file: Path | None = None
    """Text file of tokens, one a line: without one of them nothing is answered."""
    allow_host: tuple[str, ...] = ()
    """Further names under which the server may be called."""
    allow_origin: tuple[str, ...] = ()
    """Sites whose pages may call the API (https://example.org); none else may."""
    max_mb: float = 32
    """Megabytes of a request, and of a file at an address, at most."""
    max_pixels: int = 50_000_000
    """Pixels of a picture, at most."""
    timeout: float = 120
    """Seconds for a request: for sending it, and for its answer."""
    queue: int = 64
    """Pictures that may wait at a time; further ones are told to come back (429)."""
    together: int = 8
    """Pictures, of several requests, that the detector is given at a time."""
    fetch: bool = True
    """Fetch pictures from public addresses, too."""
    allow_private: bool = False
    """Fetch from private, loopback and link-local addresses, too: for whoever may ask, the server
    then looks behind the wall that it stands behind."""
    reencode: bool = True
    """Look again after JPEG 85 and after shrinking, as in `CheckSettings`."""
    faces: bool = True
    """Look at each face by itself, too, as in `CheckSettings`."""
    pixels_only: bool = False
    """What a file says of itself is shown, but sets no verdict."""
    trust_anchors: Path | None = None
    """Certificates (PEM) of the issuers whose C2PA signatures are trusted, as in `CheckSettings`.
    """
    browser: bool = True
    """Open the page, where the server is started from a terminal."""
    device: str = "auto"

    def __post_init__(self) -> None:
        as_lists(self)
        as_paths(self, "project", "corpus", "keep", "token_file", "trust_anchors")
        at_least(self, max_pixels=1, timeout=1, queue=1, together=1, max_mb=0.01)
        valid_port(self.port)
        valid_device(self.device)


@dataclass(frozen=True, kw_only=True)
class PlaySettings:
    """Settings of `ganscope play`."""

    corpus: Path | None = None
    """Corpus to deal from; None: a small one made on the spot."""
    detector: str = "default"
    """The detector to play against."""
    project: Path | None = None
    """Project file in which the answers are kept; None: they are forgotten at the end."""
    host: str = "127.0.0.1"
    port: int = 8000
    """Port to listen on; 0: a free one."""
    browser: bool = True
    """Open the page, where the game is started from a terminal."""
    device: str = "auto"

    def __post_init__(self) -> None:
        as_paths(self, "corpus", "project")
        valid_port(self.port)
        valid_device(self.device)


@dataclass(frozen=True, kw_only=True)
class ProjectSettings:
    """Settings of `ganscope project`."""

    project: Path
    """Project file of `check --project`."""
    csv: Path | None = None
    """Write every picture with its verdict and what a person made of it."""
    corpus: Path | None = None
    """Folder for a labelled corpus of the pictures that a person has judged."""
    wrong: bool = False
    """Only those that the detector got wrong, or was unsure about."""

    def __post_init__(self) -> None:
        as_paths(self, "project", "csv", "corpus")
        if not os.fspath(self.project):
            raise GanscopeError("name a project file")


def valid_port(port: int) -> None:
    if not 0 <= port <= 65535:
        raise GanscopeError(f"--port must be between 0 and 65535, not {port}")
