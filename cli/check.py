"""`ganscope check`: judge photos."""

import json as json_library
import os
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ganscope.cli.console import (
    VERDICT_STYLES,
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
from ganscope.cli.streams import ReaderGone
from ganscope.config import CheckSettings
from ganscope.errors import counted, escaped
from ganscope.inputs import count_inputs, find_images

if TYPE_CHECKING:
    from ganscope.detector.judging.checking import Check
    from ganscope.web.project import Project

SHOWN = 50
"""A table on the screen has at most this many rows; CSV and JSON have all."""


def check(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Image files, folders, videos, lists (.txt), archives (.zip, .tar), PDFs, web "
            "addresses; - is standard input.",
            metavar="PATH",
        ),
    ],
    detector: Annotated[
        str, typer.Option(help="A shipped detector, a run folder, a hub id or an exported file.")
    ] = "default",
    heatmap: Annotated[
        Path | None, typer.Option(help="Folder for heatmap overlays, one PNG an image.")
    ] = None,
    heatmap_method: Annotated[
        str, typer.Option(help="auto (the detector's own), tiles, patches or gradcam.")
    ] = "auto",
    csv: Annotated[Path | None, typer.Option(help="Write the verdicts as CSV.")] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Write one HTML file with every picture, sortable, with thumbnails."),
    ] = None,
    project: Annotated[
        Path | None,
        typer.Option(
            help="Enter the pictures into this file, to review them with ganscope serve. Those "
            "that are in it already are passed over, unless a CSV, JSON, heatmaps or --fail-on are "
            "wanted, too."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line, no table.")] = False,
    faces: Faces = True,
    pixels_only: PixelsOnly = False,
    trust_anchors: TrustAnchors = None,
    frames: Annotated[
        int, typer.Option(help="Frames of a video looked at, at most, spread over its scenes.")
    ] = 16,
    timeline: Annotated[
        Path | None,
        typer.Option(
            help="Folder for pictures of videos' timelines. [default: that of the heatmaps]"
        ),
    ] = None,
    allow_private: AllowPrivate = False,
    fail_on: Annotated[
        str | None,
        typer.Option(
            help="fake: exit with status 1 if an image is; unsure: if one is that or fake."
        ),
    ] = None,
    reencode: Reencode = True,
    batch_size: TilesAtATime = None,
    device: Device = "auto",
    runtime: Runtime = "auto",
) -> None:
    """Judge photos: score, verdict (fake, real or unsure) and, if wanted, a heatmap of the
    evidence.

    Exit status: 0 done, 1 with --fail-on when one is found, 2 a mistake, 3 some files unreadable.

    Examples:

      ganscope check photo.jpg

      ganscope check inbox/ --csv verdicts.csv --heatmap heatmaps/

      ganscope check *.jpg --json --fail-on fake

      ganscope check https://example.org/photo.jpg photos.zip report.pdf

      ganscope check clip.mp4 --frames 32 --timeline timelines/

      ganscope check portrait.jpg --heatmap heatmaps/   (a box with its score around each face)

      ganscope check inbox/ --report report.html --project inbox.db

      curl -s https://example.org/photo.jpg | ganscope check -
    """
    settings = CheckSettings(
        paths=tuple(paths),
        detector=detector,
        heatmap=heatmap,
        heatmap_method=heatmap_method,
        csv=csv,
        report=report,
        project=project,
        json=json,
        reencode=reencode,
        faces=faces,
        pixels_only=pixels_only,
        trust_anchors=trust_anchors,
        frames=frames,
        timeline=timeline,
        allow_private=allow_private,
        fail_on=fail_on,
        batch_size=batch_size,
        device=device,
        runtime=runtime,
    )
    total = count_inputs(settings.paths)  # a mistyped path is told before the detector is loaded
    from ganscope.detector.judging.checking import check_images

    if settings.report or settings.project:
        from ganscope.web.project import Project
        from ganscope.web.report import Report, thumbnail_of
        from ganscope.web.thumbnails import thumbnail

    counts: Counter[str] = Counter()
    shown: list[Check] = []
    drawn = 0
    with ExitStack() as stack:
        desk = stack.enter_context(Project(settings.project)) if settings.project else None
        # What else is asked for is of all pictures: then those that it has are judged again.
        alone = not (csv or json or fail_on or heatmap or timeline)
        rest, known = _not_yet(settings, desk) if desk and alone else (settings.paths, [])
        if desk and known:
            what = counted(len(known), "picture is", "pictures are")
            err.print(f"{what} in {desk.path} already", highlight=False, markup=False)
        page = stack.enter_context(Report(settings.report)) if settings.report else None
        if desk:
            for path in known if page else ():
                entry = desk.entry(path)
                if page and entry:
                    page.add(entry["record"], entry["thumbnail"])
            if not rest:
                return
            if known:
                settings, total = replace(settings, paths=rest), count_inputs(rest)
        checks = check_images(settings)
        bar = stack.enter_context(progress())
        task = bar.add_task("checking", total=total, note="")
        for one in checks:
            counts[_outcome(one)] += 1
            drawn += one.heatmap is not None
            if desk or page:
                record = one.as_dict()
                small = thumbnail_of(record) if one.small is None else thumbnail(one.small)
                one = replace(one, small=None)
                if page:
                    page.add(record, small)
                if desk:
                    desk.add(record, small)
            if json:
                try:
                    print(json_library.dumps(one.as_dict()), flush=True)
                except ReaderGone:
                    break
            else:
                shown.append(one)
                if len(shown) > 4 * SHOWN:
                    shown = _most_suspect(shown)
            bar.update(task, advance=1)
    if not json:
        show_checks(shown, counts)
        if heatmap and drawn:
            many = counted(drawn, "heatmap is", "heatmaps are")
            err.print(
                f"{many} in {heatmap}: hot places are a hint where to look, no proof",
                highlight=False,
                markup=False,
            )
        elif heatmap:
            err.print("no heatmap was drawn: there is nothing that the pixels tell")
    if fail_on and (counts[fail_on] or (fail_on == "unsure" and counts["fake"])):
        raise typer.Exit(1)
    if counts["error"]:
        raise typer.Exit(3)


def _not_yet(settings: CheckSettings, desk: "Project") -> tuple[tuple[str, ...], list[str]]:
    """What a project does not have from this detector, and what it has."""
    rest, known = [], []
    for path in settings.paths:
        for one in find_images(path) if os.path.isdir(path) else [path]:
            if desk.has(one, settings.detector):
                known.append(one)
            else:
                rest.append(one)
    return tuple(rest), known


def show_checks(checks: list["Check"], counts: Counter[str] | None = None) -> None:
    """Print a table of verdicts; `counts` holds how many there were in all, if these are a part."""
    counts = counts or Counter(_outcome(c) for c in checks)
    total = counts.total()
    rows = checks if total <= SHOWN else _most_suspect(checks)
    out.print(_table(rows))
    judged = [one for one in rows if one.meaning]
    film = getattr(judged[0], "frames", None) if total == 1 and judged else None
    if film:
        out.print(_frames_table(film))
    elif total == 1 and judged and judged[0].faces:
        out.print(_faces_table(judged[0].faces))
    if total == 1 and judged:
        meaning = judged[0].meaning or ""
        # Text, not markup: it may quote the file.
        out.print(Text(f"{meaning[:1].upper()}{meaning[1:]}."))
    if judged:
        fake, real = (judged[0].thresholds[name] for name in ("fake", "real"))
        err.print(f"fake: a score of {fake:.3f} or more; real: below {real:.3f}")
        asked = [face.swap_threshold for one in judged for face in one.faces or ()]
        for least in sorted({least for least in asked if least is not None}):
            err.print(f"a face is swapped, and fake, from a swap score of {least:.3f} on")
        if counts["unsure"]:
            err.print("unsure: no verdict; look for an earlier, larger or less processed copy")
    if total > len(rows):
        err.print(f"the {len(rows)} most suspect of {total:,}; --csv FILE writes all")
    if total > 1:
        err.print(", ".join(f"{count:,} {what}" for what, count in sorted(counts.items())))


def _outcome(check: "Check") -> str:
    return "error" if check.error else check.verdict or ""


def _most_suspect(checks: list["Check"]) -> list["Check"]:
    return sorted(checks, key=lambda c: -1.0 if c.score is None else c.score, reverse=True)[:SHOWN]


def _percent(probability: float | None) -> str:
    """Never 0 % or 100 %: no calibration is that sure."""
    if probability is None:
        return "-"
    return "<1%" if probability < 0.01 else ">99%" if probability > 0.99 else f"{probability:.0%}"


def _faces_table(faces: Any) -> Table:
    """A picture's faces, one below the other."""
    table = Table(box=None, pad_edge=False)
    for name in ("face", "verdict", "score", "swap score"):
        table.add_column(name, justify="right" if name.endswith("score") else "left")
    table.add_column("remarks", overflow="fold")
    for one in faces:
        table.add_row(
            one.place,
            Text(one.verdict or "-", style=VERDICT_STYLES.get(one.verdict or "", "")),
            "-" if one.score is None else f"{one.score:.3f}",
            "-" if one.swap_score is None else f"{one.swap_score:.3f}",
            Text("; ".join(one.warnings)),
        )
    return table


def _frames_table(frames: Any) -> Table:
    """A video's frames, one below the other."""
    table = Table(box=None, pad_edge=False)
    for name in ("seconds", "verdict", "score", "probability"):
        table.add_column(name, justify="left" if name == "verdict" else "right")
    table.add_column("remarks", overflow="fold")
    for one in frames:
        table.add_row(
            f"{one.time:.2f}",
            Text(one.verdict or "", style=VERDICT_STYLES.get(one.verdict or "", "")),
            "-" if one.score is None else f"{one.score:.3f}",
            _percent(None if one.verdict == "unsure" else one.probability),
            Text("; ".join(one.warnings)),
        )
    return table


def _table(checks: list["Check"]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("verdict")
    table.add_column("score", justify="right")
    table.add_column("probability", justify="right")
    declares = any(one.declared not in (None, "nothing said") for one in checks)
    if declares:
        table.add_column("the file says", overflow="fold")
    table.add_column("size", justify="right")
    table.add_column("path", overflow="fold")
    table.add_column("remarks", overflow="fold")
    for one in checks:
        size = f"{one.width}x{one.height}" if one.width else ""
        # Text, not markup: a file's name may hold square brackets, and bytes that are no UTF-8.
        path = Text(escaped(one.path))
        if one.error:
            nothing, why = [""] if declares else [], Text(escaped(one.error))
            table.add_row(Text("error", style="magenta"), "", "", *nothing, size, path, why)
            continue
        says = one.declared if one.declared not in (None, "nothing said") else ""
        says += f" ({one.declared_by})" if one.declared_by else ""
        verdict = Text(one.verdict or "", style=VERDICT_STYLES.get(one.verdict or "", ""))
        table.add_row(
            verdict,
            "-" if one.score is None else f"{one.score:.3f}",
            # Beside "unsure" a number would be read as the verdict that there is none of.
            _percent(None if "unsure" in (one.verdict, one.pixels_verdict) else one.probability),
            *([Text(escaped(says))] if declares else []),
            size,
            path,
            Text("; ".join(one.warnings) or (one.meaning or "" if one.score is None else "")),
        )
    return table
