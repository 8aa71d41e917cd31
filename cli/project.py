"""`ganscope project`: what came of a review."""

from pathlib import Path
from typing import Annotated

import typer

from ganscope.cli.console import err, out
from ganscope.config import ProjectSettings
from ganscope.errors import GanscopeError


def project(
    project: Annotated[Path, typer.Argument(help="Project file of check --project.")],
    csv: Annotated[
        Path | None, typer.Option(help="Write all pictures, verdicts and reviews as CSV.")
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="Copy the reviewed pictures into a labelled corpus.")
    ] = None,
    wrong: Annotated[
        bool, typer.Option("--wrong", help="Only what the detector did not get right.")
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
            many, gone = opened.write_corpus(settings.corpus, settings.wrong)
            err.print(f"{many:,} pictures are in {settings.corpus}", highlight=False, markup=False)
            if gone:
                err.print(f"left out: {gone:,} that are no picture files here", style="yellow")
        counts = opened.counts()
    names = {
        "all": "pictures",
        "done": "reviewed",
        "wrong": "detector wrong",
        "error": "unreadable",
    }
    out.print(
        ", ".join(f"{counts[name]:,} {word}" for name, word in names.items()), highlight=False
    )
