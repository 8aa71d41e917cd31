"""`ganscope benchmark`: detectors x generators x degradations."""

import json as json_library
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ganscope.cli.console import Device, Seed, TilesAtATime, err, out, progress
from ganscope.config import (
    BenchmarkSettings,
    as_command,
    read_json,
)
from ganscope.errors import GanscopeError

if TYPE_CHECKING:
    import pandas

METRICS = {"bal.acc.": "balanced_accuracy", "TPR@1%": "tpr_at_fpr_1", "TPR@5%": "tpr_at_fpr_5"}
"""Columns on the screen beside the AUROC; CSV and JSON have every metric."""
MANY_ROWS, MANY_REMARKS = 60, 20
"""With more rows those of degraded images are not shown; further remarks are counted."""
SPAN = "95 %     "


def benchmark(
    corpora: Annotated[
        list[Path] | None, typer.Argument(help="Corpus folders.", metavar="CORPUS")
    ] = None,
    detector: Annotated[
        list[str] | None,
        typer.Option(
            help="Detector to compare: a name, a run folder, a hub id, python:FILE.py:FUNCTION, "
            "scores:FILE, onnx:FILE, or a published one, NAME or NAME:WEIGHTS; may be repeated. "
            "[default: default]"
        ),
    ] = None,
    generator: Annotated[
        list[str] | None,
        typer.Option(help="Make a corpus with this generator first; may be repeated."),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option(help="Fakes of each --generator, and as many reals. [default: 500]"),
    ] = None,
    real: Annotated[
        str | None,
        typer.Option(
            help="Where the reals beside them come from, as for generate. [default: photographs]"
        ),
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
    recipe: Annotated[
        str | None, typer.Option(help="Of each training, as for train-detector. [default: full]")
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
    jobs: Annotated[
        int, typer.Option(help="Trainings of --train beside each other.", rich_help_panel="Machine")
    ] = 1,
    protocol: Annotated[
        str,
        typer.Option(
            help="raw: files as they are; aligned: both classes cut to one size and compressed "
            "alike; both."
        ),
    ] = "both",
    align_size: Annotated[
        int | None,
        typer.Option(help="Side of the aligned images in pixels. [default: what most have]"),
    ] = None,
    faces: Annotated[
        bool, typer.Option("--faces", help="Measure the largest face of each image, too.")
    ] = False,
    localise: Annotated[
        str,
        typer.Option(
            help="Heatmaps to compare with the masks of corpora that have any: auto, patches, "
            "tiles, gradcam; none: do not."
        ),
    ] = "auto",
    degrade: Annotated[
        list[str] | None,
        typer.Option(
            help="Degradation NAME:VALUE beside the clean images, or standard for a list of them; "
            "may be repeated."
        ),
    ] = None,
    out_: Annotated[
        Path | None, typer.Option("--out", help="Folder for the results. [default: benchmark, ...]")
    ] = None,
    split: Annotated[str, typer.Option(help="Which images: all, train, val or test.")] = "all",
    bootstrap: Annotated[
        int, typer.Option(help="Resamples behind each 95 % interval; 0: none.")
    ] = 1000,
    cache: Annotated[
        bool, typer.Option(help="Keep what detectors say of images; ask for new ones only.")
    ] = True,
    batch_size: TilesAtATime = None,
    seed: Seed = 0,
    device: Device = "auto",
    json: Annotated[
        bool, typer.Option("--json", help="Print what report.json holds, no tables.")
    ] = False,
) -> None:
    """Compare detectors on labelled corpora: a report, tables, scores and pictures.

    Every detector is measured on the reals against one generator at a time, clean and degraded, on
    the files as they are and with both classes aligned.

    Exit status: 0 done, 2 a mistake, 3 done, but something is missing (the report says what).

    Examples:

      ganscope benchmark corpus/

      ganscope benchmark a/ b/ --detector default --detector runs/npr --degrade jpeg:75 --degrade
      resize:0.5

      ganscope benchmark --generator photos --generator faces --n 500 --detector scores:theirs.csv

      ganscope benchmark corpus/ --train npr --train timm:resnet18 --out leave-one-out

      ganscope benchmark FaceForensics++@c23 --split test --faces --detector default --detector
      f3net
    """
    if train and detector:
        raise GanscopeError("--train and --detector do not go together; run two benchmarks")
    settings = BenchmarkSettings(
        corpora=tuple(corpora or ()),
        detector=tuple(detector or ("default",)),
        generator=tuple(generator or ()),
        n=n,
        real=real,
        train=tuple(train or ()),
        leave_out=tuple(leave_out or ()),
        epochs=epochs,
        pretrained=pretrained,
        recipe=recipe,
        size=size,
        fuse=fuse,
        soup=soup,
        jobs=jobs,
        protocol=protocol,
        align_size=align_size,
        faces=faces,
        localise=localise,
        degrade=tuple(degrade or ()),
        out=out_,
        split=split,
        bootstrap=bootstrap,
        cache=cache,
        batch_size=batch_size,
        seed=seed,
        device=device,
    )
    from ganscope.detector.benchmark.benchmark import benchmark_detectors
    from ganscope.detector.benchmark.leave_one_out import leave_one_out
    from ganscope.together.benchmark_corpora import with_corpora

    command = as_command("benchmark", settings)
    with progress() as bar:
        settings = with_corpora(settings, bar)
        results = (leave_one_out if train else benchmark_detectors)(settings, bar, command)
    folder = Path(results.attrs["out"])
    if json:
        print(json_library.dumps(read_json(folder / "report.json")))
    else:
        show_results(results)
        err.print("report.html, tables, scores and pictures are in")
        out.print(str(folder), highlight=False, soft_wrap=True)
    if results.attrs["missing"] or results.attrs["unreadable"]:
        raise typer.Exit(3)


def show_results(results: "pandas.DataFrame") -> None:
    """Print a benchmark's results, a row a cell, what the file format gave away, which differences
    are more than chance, and what deserves a remark.
    """
    shown = results
    if len(results) > MANY_ROWS:
        shown = results[results["degradation"] == "clean"]
    figures = ("reals", "fakes", "AUROC", SPAN, *METRICS)
    table = _table(("detector", "protocol", "generator", "degraded"), figures)
    for _, row in shown.iterrows():
        cell = [str(row[n]) for n in ("detector", "protocol", "generator", "degradation")]
        rest = [f"{row[name]:.3f}" for name in METRICS.values()]
        span = _span(row["auroc_low"], row["auroc_high"])
        counts = (f"{row['n_real']:,}", f"{row['n_fake']:,}")
        table.add_row(*map(Text, cell), *counts, f"{row['auroc']:.3f}", span, *rest)
    out.print(table)
    if len(shown) < len(results):
        hidden = f"{len(results) - len(shown):,} rows of degraded images"
        out.print(f"({hidden} are in the report and in results.csv)", highlight=False)
    report = read_json(Path(results.attrs["out"]) / "report.json")
    _show_gap(report["gap"])
    _show_comparisons(report["comparisons"] or [])
    _show_videos(report["videos"] or [])
    _show_localisation(report["localisation"] or [])
    remarks = []
    for remark, rows in results[results["remark"] != ""].groupby("remark", sort=False):
        cells = rows[["detector", "protocol", "generator", "degradation"]].agg(", ".join, axis=1)
        more = f" and {len(cells) - 3} more" if len(cells) > 3 else ""
        remarks.append(f"{remark} ({'; '.join(cells[:3])}{more})")
    left_out = results.attrs["unreadable"].items()
    remarks += [f"left out: {path}: {why}" for path, why in left_out]
    remarks += [*results.attrs["missing"], *results.attrs["notes"]]
    for remark in remarks[:MANY_REMARKS]:
        err.print(Text(remark), style="yellow")
    if len(remarks) > MANY_REMARKS:
        err.print(f"{len(remarks) - MANY_REMARKS:,} more remarks are in report.json")


def _show_gap(rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    out.print("\nAUROC on files as they are less that on aligned ones: what the format gives away")
    table = _table(("detector", "generator"), ("raw", "aligned", "gap"))
    for row in rows:
        figures = (f"{row['raw']:.3f}", f"{row['aligned']:.3f}", f"{row['gap']:+.3f}")
        table.add_row(Text(row["detector"]), Text(row["generator"]), *figures)
    out.print(table)


def _show_comparisons(rows: list[dict[str, Any]]) -> None:
    """Of clean images, of the protocol that the report speaks of; over all generators if it can."""
    rows = [row for row in rows if row["degradation"] == "clean"]
    protocols = {row["protocol"] for row in rows}
    rows = [r for r in rows if r["protocol"] == ("aligned" if "aligned" in protocols else "raw")]
    rows = [row for row in rows if row["generator"] == "all"] or rows
    if not rows:
        return
    out.print("\nDifferences of AUROC, p corrected for the number of comparisons")
    table = _table(
        ("detector", "other", "protocol", "generator"), ("difference", SPAN, "p corrected")
    )
    for row in rows:
        names = [Text(row[n]) for n in ("detector", "other", "protocol", "generator")]
        nan = float("nan")
        low, high, p = (nan if row[n] is None else row[n] for n in ("low", "high", "p_adjusted"))
        chance = "" if p != p else "< 0.001" if p < 0.001 else f"{p:.3f}"
        table.add_row(*names, f"{row['difference']:+.3f}", _span(low, high, "+.2f"), chance)
    out.print(table)


def _show_videos(rows: list[dict[str, Any]]) -> None:
    """Clean, as `_show_comparisons`."""
    rows = [row for row in rows if row["degradation"] == "clean"]
    if not rows:
        return
    out.print("\nWhole videos, by the mean over their frames")
    figures = ("reals", "fakes", "AUROC", SPAN, "bal.acc.")
    table = _table(("detector", "protocol", "generator"), figures)
    for row in rows:
        names = [Text(row[n]) for n in ("detector", "protocol", "generator")]
        counts = (f"{row['n_real']:,}", f"{row['n_fake']:,}")
        span = _span(_known(row["auroc_low"]), _known(row["auroc_high"]))
        accuracy = f"{_known(row['balanced_accuracy']):.3f}"
        table.add_row(*names, *counts, f"{_known(row['auroc']):.3f}", span, accuracy)
    out.print(table)


def _show_localisation(rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    out.print("\nHeatmaps against masks, means over images")
    names = {"pixel AUROC": "pixel_auroc", "IoU": "iou", "F1": "f1"}
    columns = [c for name in names for c in (name, SPAN)]
    table = _table(("detector", "generator"), ("masked", *columns, "marked of reals"))
    for row in rows:
        cells = []
        for metric in names.values():
            low, high = (_known(row[f"{metric}_{end}"]) for end in ("low", "high"))
            known = row[metric] is not None
            cells += [f"{row[metric]:.3f}", _span(low, high)] if known else ["", ""]
        marked = "" if row["real_marked"] is None else f"{row['real_marked']:.1%}"
        words = (Text(row["detector"]), Text(row["generator"]))
        table.add_row(*words, f"{row['n_masked']:,}", *cells, marked)
    out.print(table)


def _known(value: float | None) -> float:
    """A number of report.json, where NaN is null."""
    return float("nan") if value is None else value


def _table(words: tuple[str, ...], figures: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in words:
        table.add_column(column, overflow="fold")
    for column in figures:
        table.add_column(column, justify="right", no_wrap=True, min_width=len(column))
    return table


def _span(low: float, high: float, form: str = ".2f") -> str:
    """An interval, or nothing where there is none."""
    joined = " to " if "+" in form else "-"
    return f"{low:{form}}{joined}{high:{form}}" if low == low else ""  # NaN: no bootstrap
