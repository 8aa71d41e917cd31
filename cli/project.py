"""`ganscope project`: what came of a review."""

from pathlib import Path
from typing import Annotated

import typer

from ganscope.cli.console import err, out
from ganscope.config import ProjectSettings
from ganscope.errors import GanscopeError, counted


def project(
    project: Annotated[Path, typer.Argument(help="Project file of check --project.")],
    csv: Annotated[
        Path | None, typer.Option(help="Write all pictures, verdicts and reviews as CSV.")
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="Copy the reviewed pictures into a labelled corpus.")
    ] = None,
    wrong: Annotated[
        bool,
        typer.Option(
            "--wrong",
            help="Only what the detector did not get right: called the opposite, or unsure.",
        ),
    ] = False,
) -> None:
    """Say what a review has found, and write it as CSV or as a corpus that train-detector takes.

    Examples:

      ganscope project inbox.db

      ganscope project inbox.db --corpus mistakes/ --wrong

      ganscope train-detector corpus/ mistakes/ --pretrained default
    """
    settings = ProjectSettings(project=project, csv=csv, corpus=corpus, wrong=wrong)
    if not settings.project.is_file():
        raise GanscopeError(
            f"{settings.project}: no such file; ganscope check FOLDER --project FILE.db makes one"
        )
    from ganscope.web.project import Project, export_csv

    with Project(settings.project) as opened:
        if settings.csv:
            export_csv(opened, settings.csv, settings.wrong)
        if settings.corpus:
            written, gone = opened.write_corpus(settings.corpus, settings.wrong)
            told = counted(written, "picture is", "pictures are")
            err.print(f"{told} in {settings.corpus}", highlight=False, markup=False)
            if gone:
                err.print(f"left out: {gone:,} that are no picture files here", style="yellow")
        counts = opened.counts()
    out.print(
        f"{counted(counts['all'], 'picture')}, {counts['done']:,} reviewed, "
        f"{counts['wrong']:,} called the opposite of what they are, {counts['error']:,} unreadable",
        highlight=False,
    )
