"""`ganscope audit`: does the file format give the answer away?"""

import json as json_library
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from ganscope.cli.console import DropDeclared, Seed, err, out
from ganscope.config import AuditSettings


def audit(
    corpus: Annotated[Path, typer.Argument(help="Corpus folder.")],
    max_auroc: Annotated[
        float, typer.Option(help="Exit with status 1 if the clues together tell better than this.")
    ] = 0.6,
    aligned: Annotated[
        bool,
        typer.Option(
            "--aligned", help="Audit native crops of one size, compressed alike, in their place."
        ),
    ] = False,
    drop_declared: DropDeclared = False,
    seed: Seed = 0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Test whether what must not tell (container, size, JPEG tables, EXIF ...) tells real from
    fake.

    A detector trained on a corpus that leaks learns the file format, not the artefacts. 0.5 means
    that the files' outsides say nothing; 1.0 that no look at the pixels is needed.

    Examples:

      ganscope audit corpus/

      ganscope audit downloaded_benchmark/ --max-auroc 0.55
    """
    settings = AuditSettings(
        corpus=corpus,
        max_auroc=max_auroc,
        aligned=aligned,
        drop_declared=drop_declared,
        seed=seed,
    )
    from ganscope.datasets.audit import audit_corpus

    result = audit_corpus(settings)
    if json:
        print(json_library.dumps(result.as_dict()))
        raise typer.Exit(int(result.leaks))
    table = Table(box=None, pad_edge=False, title_justify="left")
    table.add_column("clue")
    table.add_column("AUROC alone", justify="right")
    for clue, auroc in result.clues:
        style = "red" if auroc > max_auroc else ""
        table.add_row(clue, f"{auroc:.3f}", style=style)
    out.print(table)
    verdict = "[bold red]LEAKS[/bold red]" if result.leaks else "[green]fair[/green]"
    low, high = result.interval
    out.print(
        f"{verdict}: {result.n_real:,} reals and {result.n_fake:,} fakes are told apart by their "
        f"files alone with AUROC [bold]{result.auroc:.3f}[/bold] "
        f"(95 % interval {low:.3f} to {high:.3f}, limit {max_auroc:g})",
        highlight=False,
    )
    if result.leaks and aligned:
        out.print(
            "All files are alike now; what is left is that one class has more texture and takes "
            "more bytes.",
            style="dim",
        )
    elif result.leaks:
        out.print(
            "Bring both classes to one container, quality and size before you test on this corpus; "
            "train-detector aligns what it trains on.",
            style="dim",
        )
    if result.unreadable:
        err.print(f"left out: {result.unreadable:,} images that cannot be read", style="yellow")
    for remark in result.remarks:
        err.print(Text(remark), style="yellow")
    raise typer.Exit(int(result.leaks))
