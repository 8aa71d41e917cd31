"""`ganscope latent`: look into the space of z that a generator starts from."""

from pathlib import Path
from typing import Annotated

import typer

from ganscope.cli.console import Device, err, out
from ganscope.config import (
    LatentApplySettings,
    LatentArithmeticSettings,
    LatentDirectionSettings,
    LatentWalkSettings,
)

app = typer.Typer(
    help="Walk between fakes, calculate with them, learn directions: what is in a generator's z.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog="[bold]Example[/bold]: ganscope latent walk faces 3 17 42 --out walk.gif",
)

Name = Annotated[
    str,
    typer.Argument(
        help="A generator that starts from noise: photos, faces, a run folder, a hub id.",
        metavar="GENERATOR",
    ),
]
Fakes = Annotated[
    list[str],
    typer.Argument(help="Numbers of fakes (12), or SEED:NUMBER (3:12).", metavar="FAKE"),
]
Class = Annotated[str | None, typer.Option("--class", help="What a conditional generator makes.")]
Truncation = Annotated[float, typer.Option(help="Psi, 0 to 1: how far fakes stray.")]
Seed = Annotated[int, typer.Option(help="Of fakes that are named by their number alone.")]


@app.command("walk")
def walk(
    generator: Name,
    fakes: Fakes,
    steps: Annotated[int, typer.Option(help="From one fake to the next.")] = 8,
    class_: Class = None,
    truncation: Truncation = 1.0,
    out_: Annotated[
        Path | None, typer.Option("--out", help="A .png or .gif. [default: walk.png, ...]")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Draw the way from fake to fake: as a picture, a row a leg, or as a GIF.

    Examples:

      ganscope latent walk faces 3 17 42

      ganscope latent walk faces 3 1:17 --steps 30 --out walk.gif
    """
    settings = LatentWalkSettings(
        generator=generator,
        fakes=tuple(fakes),
        steps=steps,
        class_=class_,
        truncation=truncation,
        out=out_,
        seed=seed,
        device=device,
    )
    from ganscope.generator.latent import make_walk

    _say(make_walk(settings))


@app.command("arithmetic")
def arithmetic(
    generator: Name,
    expression: Annotated[
        str,
        typer.Argument(
            help='Groups of fakes with + and - between: "1,5,9 - 2,3 + 7,8".',
            metavar="EXPRESSION",
        ),
    ],
    class_: Class = None,
    truncation: Truncation = 1.0,
    out_: Annotated[
        Path | None, typer.Option("--out", help="A .png. [default: arithmetic.png, ...]")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Calculate with averages of fakes: men with glasses - men + women.

    Each group is averaged; the picture shows the averages and what they come to.

    Examples:

      ganscope latent arithmetic faces "1,5,9 - 2,3,4 + 7,8,10"
    """
    settings = LatentArithmeticSettings(
        generator=generator,
        expression=expression,
        class_=class_,
        truncation=truncation,
        out=out_,
        seed=seed,
        device=device,
    )
    from ganscope.generator.latent import make_arithmetic

    _say(make_arithmetic(settings))


@app.command("direction")
def direction(
    generator: Name,
    with_: Annotated[Path, typer.Argument(help="Folder of fakes that show it.", metavar="WITH")],
    without: Annotated[
        Path, typer.Argument(help="Folder of fakes that do not.", metavar="WITHOUT")
    ],
    corpus: Annotated[Path, typer.Option(help="The corpus that the fakes are from.")],
    class_: Class = None,
    truncation: Truncation = 1.0,
    out_: Annotated[
        Path | None, typer.Option("--out", help="A .json. [default: direction.json, ...]")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Learn a direction, a smile say, from fakes that you sorted into two folders.

    Copy fakes of a corpus into the folders under the names that they have. The direction is saved
    with a picture beside it: other fakes, moved along it. latent apply uses it again.

    Examples:

      ganscope generate --generator faces --n 500 --out faces-corpus

      ganscope latent direction faces smiling/ serious/ --corpus faces-corpus --out smile.json

      ganscope latent apply faces smile.json 1 5 9
    """
    settings = LatentDirectionSettings(
        generator=generator,
        with_=with_,
        without=without,
        corpus=corpus,
        class_=class_,
        truncation=truncation,
        out=out_,
        seed=seed,
        device=device,
    )
    from ganscope.generator.latent import learn_direction

    path, learned = learn_direction(settings)
    err.print(
        f"learned from {learned.files[0]} fakes with and {learned.files[1]} without; on those left "
        f"out of the learning it is right in {learned.accuracy:.0%} (50 %: chance)",
        highlight=False,
    )
    _say(path)


@app.command("apply")
def apply(
    generator: Name,
    direction: Annotated[
        Path, typer.Argument(help="What latent direction wrote.", metavar="DIRECTION")
    ],
    fakes: Fakes,
    class_: Class = None,
    truncation: Truncation = 1.0,
    out_: Annotated[
        Path | None, typer.Option("--out", help="A .png. [default: apply.png, ...]")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Draw fakes, a row each, moved along a learned direction.

    They go from -3 to 3 standard deviations of z, themselves in the middle.

    Examples:

      ganscope latent apply faces smile.json 1 5 9 --out smiles.png
    """
    settings = LatentApplySettings(
        generator=generator,
        direction=direction,
        fakes=tuple(fakes),
        class_=class_,
        truncation=truncation,
        out=out_,
        seed=seed,
        device=device,
    )
    from ganscope.generator.latent import apply_direction

    _say(apply_direction(settings))


def _say(path: Path) -> None:
    out.print(str(path), highlight=False, soft_wrap=True)
