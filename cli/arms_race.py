"""`ganscope arms-race`: a generator and a detector learn in turn."""

import json as json_library
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ganscope.cli.console import Device, Precision, Seed, err, out, progress
from ganscope.config import ArmsRaceSettings


def arms_race(
    real: Annotated[
        str,
        typer.Option(
            help="Photographs to learn from: a source's name, a folder, or hf:owner/name."
        ),
    ],
    rounds: Annotated[int, typer.Option(help="Times that both learn.")] = 5,
    generator: Annotated[
        str, typer.Option(help="Architecture that plays against a discriminator.")
    ] = "dcgan",
    detector: Annotated[
        str, typer.Option(help="Architecture: cnn, npr, patch, lite, or timm:NAME.")
    ] = "cnn",
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 64,
    width: Annotated[int, typer.Option(help="Channels of the generator's last hidden layer.")] = 32,
    n: Annotated[
        int, typer.Option(help="Fakes of each round to learn from; half as many for the test.")
    ] = 1000,
    first_steps: Annotated[
        int, typer.Option(help="Generator updates of the first round, which begins with nothing.")
    ] = 2000,
    steps: Annotated[int, typer.Option(help="Generator updates of each further round.")] = 300,
    epochs: Annotated[
        int, typer.Option(help="Passes of each detector over the images of all rounds so far.")
    ] = 6,
    critic_weight: Annotated[
        float,
        typer.Option(help="How much fooling the detector weighs beside looking like a photograph."),
    ] = 1.0,
    out_: Annotated[
        Path | None, typer.Option("--out", help="Folder. [default: runs/arms-race, numbered on]")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Let a generator learn to fool the last round's detector, then a detector learn from the fakes
    of all rounds so far, and so on; measure every detector on every round's fakes.

    An interrupted race continues when the same command is given again, a finished one with more
    --rounds.

    Examples:

      ganscope arms-race --real my_photos/

      ganscope arms-race --real flowers102 --size 32 --rounds 3 --detector timm:resnet18

      ganscope arms-race --real my_photos/ --rounds 8 --json > triangle.json
    """
    settings = ArmsRaceSettings(
        real=real,
        rounds=rounds,
        generator=generator,
        detector=detector,
        size=size,
        width=width,
        n=n,
        first_steps=first_steps,
        steps=steps,
        epochs=epochs,
        critic_weight=critic_weight,
        out=out_,
        seed=seed,
        device=device,
        precision=precision,
    )
    from ganscope.together.arms_race import arms_race as race

    with progress() as bar:
        results = race(settings, bar)
    if json:
        print(json_library.dumps(results.attrs | {"cells": results.to_dict("records")}))
        return
    cells = results.set_index(["detector", "generator"])["auroc"]
    numbers = range(1, results["generator"].max() + 1)
    table = Table("AUROC", *(f"fakes {i}" for i in numbers), box=None, pad_edge=False)
    for detector_ in numbers:
        row = [cells[detector_, i] for i in numbers]
        table.add_row(f"detector {detector_}", *(f"[{_style(x)}]{x:.2f}[/]" for x in row))
    out.print(table)
    says = results.attrs["says"]
    err.print(f"{says[0].upper()}{says[1:]}.", highlight=False)
    err.print("the triangle, the fakes, all generators, corpora and detectors are in")
    out.print(results.attrs["out"], highlight=False, soft_wrap=True)


def _style(auroc: float) -> str:
    return "green" if auroc >= 0.9 else "yellow" if auroc >= 0.7 else "red"
