"""What the commands share: the screen, the progress bar, and the options that mean the same
everywhere.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ganscope.launched import place

_worker = place()[0] > 0  # one of several processes, and not the first

out = Console(quiet=_worker)
"""Results: what a person reads or a program parses; neither is wrapped where no person looks."""
err = Console(stderr=True, quiet=_worker)
"""Progress and remarks."""
for _console in (out, err):
    if not _console.is_terminal:
        _console.width = 1000

Device = Annotated[
    str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", rich_help_panel="Machine")
]
TrustAnchors = Annotated[
    Path | None,
    typer.Option(
        help="File of certificates (PEM) of the issuers whose C2PA signatures are trusted; without "
        "it, those that `ganscope trust update` fetched.",
        metavar="FILE",
    ),
]
DropDeclared = Annotated[
    bool,
    typer.Option(
        "--drop-declared",
        help="Leave out reals whose files say that they were generated or edited with AI, and "
        "fakes whose files name a camera; without it they are only named.",
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        help="auto (the quickest, measured at the start; it may be another the next time), fp32, "
        "bf16 or fp16.",
        rich_help_panel="Machine",
    ),
]
Seed = Annotated[
    int, typer.Option(help="The same seed gives the same result, in the same precision.")
]

VERDICT_STYLES = {"fake": "bold red", "real": "green", "unsure": "yellow"}


def progress() -> Progress:
    """A progress bar on the error stream, gone when done, silent where there is no terminal."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=err,
        transient=True,
        disable=_worker or not err.is_terminal,
    )
