"""`ganscope scan`: judge many files, on one machine or many, into a folder of Parquet."""

import json as json_library
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ganscope.cli.console import (
    AllowPrivate,
    Device,
    Faces,
    PixelsOnly,
    Reencode,
    Runtime,
    TilesAtATime,
    TrustAnchors,
    err,
    out,
    progress,
)
from ganscope.config import ScanSettings
from ganscope.errors import counted

if TYPE_CHECKING:
    from ganscope.detector.scanning.scan import Progress

SAY_EVERY = 2.0
"""Seconds between lines of JSON."""


def scan(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Files, folders, s3://, hf:OWNER/NAME and what else fsspec reads, tar files, and "
            "lists of those: .txt, .csv, .parquet (column path).",
            metavar="PATH",
        ),
    ],
    out_: Annotated[
        Path,
        typer.Option(
            "--out", help="Folder of Parquet files; a scan that was stopped goes on in it."
        ),
    ] = Path("results.parquet"),
    detector: Annotated[
        str, typer.Option(help="A shipped detector, a run folder, a hub id or an exported file.")
    ] = "default",
    engine: Annotated[
        str,
        typer.Option(
            help="local (processes of this machine), ray (Ray Data; extra scale), or auto: ray "
            "where a cluster is named."
        ),
    ] = "auto",
    address: Annotated[
        str | None,
        typer.Option(help="Of a Ray cluster (HOST:PORT), or auto. [default: Ray is started here]"),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that judge. [default: one a GPU, or one a core]",
            rich_help_panel="Machine",
        ),
    ] = None,
    dedup: Annotated[bool, typer.Option(help="Judge files of the same content once.")] = True,
    retries: Annotated[
        int,
        typer.Option(help="How often a file is read again that cannot be read for the moment."),
    ] = 3,
    reencode: Reencode = True,
    faces: Faces = True,
    pixels_only: PixelsOnly = False,
    trust_anchors: TrustAnchors = None,
    allow_private: AllowPrivate = False,
    batch_size: TilesAtATime = None,
    device: Device = "auto",
    runtime: Runtime = "auto",
    json: Annotated[
        bool, typer.Option("--json", help="Figures of progress as JSON, a line now and then.")
    ] = False,
) -> None:
    """Judge many files: a stream from folders, stores and lists to a folder of Parquet, on one
    machine or a Ray cluster.

    A row a file, also for those that cannot be read. The folder can be read while it grows
    (pandas, duckdb); the same command given again goes on, and judges no file twice.

    Exit status: 0 done, 2 a mistake, 3 some files unreadable, 130 and 143 stopped.

    Examples:

      ganscope scan photos/ --out results.parquet

      ganscope scan s3://bucket/photos/ --out results.parquet --workers 8

      ganscope scan list.parquet --engine ray --address auto --json

      ganscope scan shards/*.tar --engine local --no-reencode
    """
    settings = ScanSettings(
        paths=tuple(paths),
        out=out_,
        detector=detector,
        engine=engine,
        address=address,
        workers=workers,
        dedup=dedup,
        retries=retries,
        reencode=reencode,
        faces=faces,
        pixels_only=pixels_only,
        trust_anchors=trust_anchors,
        allow_private=allow_private,
        batch_size=batch_size,
        device=device,
        runtime=runtime,
    )
    from ganscope.detector.scanning.scan import scan_images

    state: Progress | None = None
    said = -SAY_EVERY  # the first at once
    with closing(scan_images(settings)) as states, progress() as bar:
        task = bar.add_task("scanning", total=None, note="")
        for state in states:
            total = None if state.left is None else state.rows + state.left
            note = f"{state.per_second:,.1f}/s  {_counts(state.verdicts)}"
            bar.update(task, completed=state.rows, total=total, note=note)
            if json and (state.done or time.monotonic() - said > SAY_EVERY):
                print(json_library.dumps(state.as_dict()), flush=True)
                said = time.monotonic()
    assert state is not None
    if not json:
        _sum_up(state, settings)
    if state.verdicts.get("error"):
        raise typer.Exit(3)


def _sum_up(state: "Progress", settings: ScanSettings) -> None:
    made = state.rows - state.earlier
    out.print(str(settings.out), highlight=False, markup=False)
    earlier = f", {state.earlier:,} were there before" if state.earlier else ""
    again = f" ({state.duplicates:,} with the content of another)" if state.duplicates else ""
    faces = f", faces by {state.faces_by}" if state.faces_by else ""
    speed = f", {state.per_second:,.1f} a second" if made else ""
    how = ", ".join([state.engine, *sorted(state.runtimes)])
    err.print(
        f"{counted(made, 'file')} in {state.seconds:,.1f} s{speed}, "
        f"by {counted(state.workers, 'worker')} ({how})"
        f"{faces}{earlier}",
        highlight=False,
    )
    err.print(f"{counted(state.rows, 'row')}{again}: {_counts(state.verdicts)}", highlight=False)
    if state.verdicts.get("error"):
        err.print("the column error says why files could not be read", highlight=False)


def _counts(verdicts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in verdicts.items())
