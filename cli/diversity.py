"""`ganscope diversity`: how varied are the fakes beside the reals?"""

import json as json_library
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from ganscope.cli.console import Device, Seed, err, out, progress
from ganscope.config import DiversitySettings

if TYPE_CHECKING:
    from ganscope.generator.diversity import Diversity

SHOWN = 20
"""A histogram on the screen has at most this many classes; JSON has all."""


def diversity(
    what: Annotated[
        str,
        typer.Argument(
            metavar="CORPUS|GENERATOR",
            help="A corpus; a generator as generate takes it; or an architecture (wgan-gp, ...), "
            "which plays on toys.",
        ),
    ],
    features: Annotated[
        str,
        typer.Option(
            help="What images are compared by: inception, timm:NAME, pixels, or auto (the first of "
            "these that can be had)."
        ),
    ] = "auto",
    weights: Annotated[
        Path | None, typer.Option(help="Weights file for inception or timm:NAME.")
    ] = None,
    n: Annotated[int, typer.Option(help="Images of each side that are looked at, at most.")] = 2000,
    real: Annotated[
        str, typer.Option(help="Photographs that a generator's fakes are put beside.")
    ] = "photographs",
    seeds: Annotated[
        int, typer.Option(help="Trainings of an architecture on each toy.", rich_help_panel="Toys")
    ] = 5,
    steps: Annotated[
        int, typer.Option(help="Generator updates of each of them.", rich_help_panel="Toys")
    ] = 10_000,
    loss: Annotated[
        str | None,
        typer.Option(
            help="minimax or non-saturating, for GANs with the original loss.",
            rich_help_panel="Toys",
        ),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure how varied each generator's fakes are beside the reals: distances, precision,
    recall, doubles.

    Frechet and kernel distance (FID and KID, if the features are Inception's): 0 is alike.
    Precision: fakes that look like reals; recall and coverage: reals that the fakes reach, low when
    a generator makes little but the same; density: how deep among the reals the fakes lie, 1 as
    they do themselves. Figures of other features or another n are not comparable.

    An architecture is trained on two toys whose modes can be counted: a ring of 8 Gaussians and a
    grid of 25.

    Examples:

      ganscope diversity corpus/

      ganscope diversity runs/mine --real my_photos/ --features inception --n 10000

      ganscope diversity corpus/ --features timm:resnet18 --weights resnet18.safetensors --json

      ganscope diversity wgan-gp --seeds 5
    """
    settings = DiversitySettings(
        what=what,
        features=features,
        weights=weights,
        n=n,
        real=real,
        seeds=seeds,
        steps=steps,
        loss=loss,
        seed=seed,
        device=device,
    )
    from ganscope.generator.kinds.architectures import architectures

    if what in architectures:
        _toys(settings, json)
        return
    from ganscope.generator.diversity import measure_diversity

    with progress() as bar:
        task = bar.add_task("looking", total=None, note="")
        result = measure_diversity(
            settings, lambda done, total: bar.update(task, completed=done, total=total)
        )
    if json:
        print(json_library.dumps(result.as_dict()))
    else:
        show_diversity(result)


def _toys(settings: DiversitySettings, json: bool) -> None:
    from ganscope.generator.kinds.toys import play_toys

    with progress() as bar:
        total = 2 * settings.steps
        task = bar.add_task(f"{settings.what} plays", total=total, note="")
        found = play_toys(settings, lambda done: bar.update(task, completed=done))
    if json:
        print(json_library.dumps([asdict(result) for result in found]))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("toy", "modes", "of", "good samples", "seeds"):
        table.add_column(column, justify="left" if column == "toy" else "right")
    for one in found:
        table.add_row(
            one.toy,
            f"{one.modes:.1f}" + (f" ± {one.modes_deviation:.1f}" if one.seeds > 1 else ""),
            str(one.of),
            f"{one.high_quality:.1%}"
            + (f" ± {one.high_quality_deviation:.1%}" if one.seeds > 1 else ""),
            str(one.seeds),
        )
    out.print(table)


def show_diversity(result: "Diversity") -> None:
    """Print a table of the figures, a row a generator, and the classes if there are any."""
    inception = result.features.startswith("inception")
    table = Table(box=None, pad_edge=False)
    table.add_column("generator", overflow="fold")
    distances = ("FID", "KID x1000") if inception else ("Frechet", "kernel x1000")
    shares = ("precision", "recall", "density", "coverage", "doubles")
    for column in ("n", *distances, *shares):
        table.add_column(column, justify="right", no_wrap=True)
    for one in result.generators:
        table.add_row(
            Text(one.generator),
            f"{one.n:,}",
            f"{one.frechet:.4g}",
            f"{1000 * one.kernel:.4g}",
            f"{one.precision:.3f}",
            f"{one.recall:.3f}",
            f"{one.density:.3f}",
            f"{one.coverage:.3f}",
            f"{one.duplicates:.1%}",
        )
    out.print(table)
    out.print(Text(f"features: {result.features}, {result.dimensions:,} numbers an image"))
    for one in result.generators:
        if one.classes:
            out.print(_histogram(one.generator, one.classes, one.class_entropy or 0.0))
    if result.unreadable:
        err.print(f"left out: {result.unreadable:,} images that cannot be read", style="yellow")
    for remark in result.remarks:
        err.print(Text(remark), style="dim")


def _histogram(generator: str, classes: dict[str, int], entropy: float) -> Table:
    total, most = sum(classes.values()), max(classes.values())
    table = Table(
        box=None,
        pad_edge=False,
        title=Text(
            f"\n{generator}: {len(classes):,} classes, {entropy:.2f} bits "
            f"(as many as {2**entropy:.1f} even classes)"
        ),
        title_justify="left",
        title_style="",
        show_header=False,
    )
    table.add_column(overflow="fold")
    table.add_column(justify="right")
    table.add_column(no_wrap=True)
    shown = sorted(classes.items(), key=lambda item: -item[1])[:SHOWN]
    for name, count in shown:
        table.add_row(Text(name), f"{count / total:.1%}", "▇" * max(1, round(24 * count / most)))
    if len(classes) > len(shown):
        table.add_row(f"... {len(classes) - len(shown):,} more", "", "")
    return table
