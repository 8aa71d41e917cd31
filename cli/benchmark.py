"""`ganscope benchmark`: detectors x generators x degradations."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from ganscope.cli.console import Device, Seed, err, out, progress
from ganscope.config import BenchmarkSettings

if TYPE_CHECKING:
    import pandas

METRICS = {"acc.": "accuracy", "TPR@1%": "tpr_at_fpr_1", "TPR@5%": "tpr_at_fpr_5"}
"""Columns on the screen beside the AUROC; CSV and JSON have every metric."""


def benchmark(
    corpora: Annotated[list[Path], typer.Argument(help="Corpus folders.", metavar="CORPUS...")],
    detector: Annotated[
        list[str] | None,
        typer.Option(help="Detector to compare; may be repeated. [default: default]"),
    ] = None,
    train: Annotated[
        list[str] | None,
        typer.Option(
            help="Architecture to train anew for each generator, on all others, and to measure on "
            "that one; may be repeated."
        ),
    ] = None,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(help="Generator that --train leaves out; may be repeated. [default: each]"),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Of each training of --train. [default: 10]")
    ] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="What each training of --train starts from: a file, or hub.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Side of the crops of --train. [default: its own]")
    ] = None,
    fuse: Annotated[
        str | None,
        typer.Option(help="Architecture that --train trains, too, and joins to each."),
    ] = None,
    soup: Annotated[
        int | None, typer.Option(help="So many trainings of --train averaged. [default: 1]")
    ] = None,
    degrade: Annotated[
        list[str] | None,
        typer.Option(help="Degradation NAME:VALUE beside the clean images; may be repeated."),
    ] = None,
    out_: Annotated[
        Path | None, typer.Option("--out", help="Folder for the results. [default: benchmark, ...]")
    ] = None,
    split: Annotated[str, typer.Option(help="Which images: all, train, val or test.")] = "all",
    bootstrap: Annotated[
        int, typer.Option(help="Resamples behind each 95 % interval; 0: none.")
    ] = 1000,
    batch_size: Annotated[int, typer.Option(help="Tiles scored at a time.")] = 32,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Compare detectors on labelled corpora: a table, CSV, JSON, ROC and matrix pictures.

    Every detector is measured on the reals against one generator at a time, clean and degraded.

    Examples:

      ganscope benchmark corpus/

      ganscope benchmark a/ b/ --detector default --detector runs/npr --degrade jpeg:75 --degrade
      resize:0.5

      ganscope benchmark corpus/ --train npr --train timm:resnet18 --out leave-one-out
    """
    settings = BenchmarkSettings(
        corpora=tuple(corpora),
        detector=tuple(detector or ("default",)),
        train=tuple(train or ()),
        leave_out=tuple(leave_out or ()),
        epochs=epochs,
        pretrained=pretrained,
        size=size,
        fuse=fuse,
        soup=soup,
        degrade=tuple(degrade or ()),
        out=out_,
        split=split,
        bootstrap=bootstrap,
        batch_size=batch_size,
        seed=seed,
        device=device,
    )
    from ganscope.detector.benchmark import benchmark_detectors
    from ganscope.detector.holdout import leave_one_out

    with progress() as bar:
        results = (leave_one_out if train else benchmark_detectors)(settings, bar)
    show_results(results)
    err.print("scores, tables and pictures are in")
    out.print(str(results.attrs["out"]), highlight=False, soft_wrap=True)


def show_results(results: "pandas.DataFrame") -> None:
    """Print a benchmark's results, a row a cell, and below it what deserves a remark."""
    table = Table(box=None, pad_edge=False)
    for column in ("detector", "generator", "degraded"):
        table.add_column(column, overflow="fold")
    for column in ("AUROC", "95 %     ", *METRICS):
        table.add_column(column, justify="right", no_wrap=True, min_width=len(column))
    remarks = []
    for _, row in results.iterrows():
        cell = [str(row[name]) for name in ("detector", "generator", "degradation")]
        low, high = row["auroc_low"], row["auroc_high"]
        interval = f"{low:.2f}-{high:.2f}" if low == low else ""  # NaN: no bootstrap
        rest = [f"{row[name]:.3f}" for name in METRICS.values()]
        table.add_row(*map(Text, cell), f"{row['auroc']:.3f}", interval, *rest)
        if row["remark"]:
            remarks.append(f"{', '.join(cell)}: {row['remark']}")
    out.print(table)
    remarks += [f"left out: {p}: {why}" for p, why in results.attrs.get("unreadable", {}).items()]
    for remark in remarks:
        err.print(Text(remark), style="yellow")
