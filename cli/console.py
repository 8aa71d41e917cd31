"""What the commands share: the screen, the progress bar, and the options that mean the same
everywhere.
"""

import os
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.text import Text

from ganscope.errors import escaped
from ganscope.launched import place

_worker = place()[0] > 0  # one of several processes, and not the first

WIDEST = 200
"""Columns of tables and rules where there is no terminal; what is read line by line is JSON or CSV,
and lines of text are not wrapped there."""


class _Console(Console):
    """A console to which no file's name says anything but its letters: control characters, which
    colour a terminal, move its cursor or retitle it, are shown escaped.
    """

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(escaped(segment.text), segment.style)

    def print(self, *objects: Any, **options: Any) -> None:
        if not self.is_terminal and all(isinstance(one, str | Text) for one in objects):
            options.setdefault("soft_wrap", True)
        super().print(*objects, **options)


out = _Console(quiet=_worker)
"""Results: what a person reads or a program parses."""
err = _Console(stderr=True, quiet=_worker)
"""Progress and remarks."""
for _console in (out, err):
    if not _console.is_terminal and "COLUMNS" not in os.environ:
        _console.width = WIDEST

EVERY = 30.0
"""Seconds between two lines of progress where there is no terminal."""
LATELY = 300.0
"""Seconds over which it is measured how quickly things go."""

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
Reencode = Annotated[
    bool,
    typer.Option(
        help="Look again after JPEG 85 and after shrinking to 0.75; a verdict that changes is "
        "unsure. Without, it goes faster."
    ),
]
Faces = Annotated[
    bool,
    typer.Option(
        help="Look at each face by itself, too: one that was swapped is a small part of a "
        "photograph. Without, it goes faster."
    ),
]
PixelsOnly = Annotated[
    bool,
    typer.Option("--pixels-only", help="What a file says of itself is shown, but sets no verdict."),
]
AllowPrivate = Annotated[
    bool,
    typer.Option("--allow-private", help="Fetch from private and loopback addresses, too."),
]
TilesAtATime = Annotated[
    int | None,
    typer.Option(help="Tiles scored at a time. [default: 32, on a GPU by its free memory]"),
]
Runtime = Annotated[
    str,
    typer.Option(help="torch, onnx (onnxruntime, without torch), or auto: the quicker one."),
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


class _Progress(Progress):
    """Where there is no terminal to draw bars on, a line every half minute says how far it is."""

    def __init__(self, *columns: Any, **options: Any):
        super().__init__(*columns, **options)
        self.said = time.monotonic()

    def update(self, task_id: TaskID, **about: Any) -> None:
        super().update(task_id, **about)
        if not self.disable or _worker or time.monotonic() - self.said < EVERY:
            return
        self.said = time.monotonic()
        task = self._tasks[task_id]
        parts = [f"{task.percentage:.0f} %"] if task.total else []
        if not isinstance(task.total, float):  # 1.0 is all of something that is not counted
            parts.insert(0, f"{task.completed:,.0f}" + (f" of {task.total:,.0f}" if parts else ""))
        if task.time_remaining:
            parts.append(f"{timedelta(seconds=round(task.time_remaining))} left")
        parts.append(Text.from_markup(task.fields["note"]).plain)
        err.print(f"{task.description}: {', '.join(filter(None, parts))}", markup=False)


def progress() -> Progress:
    """A progress bar on the error stream, gone when done; lines where there is no terminal."""
    return _Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=err,
        transient=True,
        speed_estimate_period=LATELY,
        disable=_worker or not err.is_terminal,
    )
