"""`ganscope train-generator`: train a generator on photographs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ganscope.cli.console import Device, Precision, Seed, err, out, progress
from ganscope.config import TrainGeneratorSettings


def train_generator(
    real: Annotated[
        str,
        typer.Option(
            help="Photographs to learn from: a source's name, a folder, or hf:owner/name."
        ),
    ],
    generator: Annotated[
        str, typer.Option(help="Architecture; see ganscope list generators.")
    ] = "dcgan",
    input: Annotated[
        str | None,
        typer.Option(
            help="What image-to-image starts from: edges, grey, small, blur, or a folder of images "
            "(same names for pix2pix, any for cyclegan)."
        ),
    ] = None,
    out_: Annotated[
        Path | None,
        typer.Option("--out", help="Run folder. [default: runs/GENERATOR, numbered on]"),
    ] = None,
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 64,
    steps: Annotated[int, typer.Option(help="Generator updates.")] = 20_000,
    batch_size: Annotated[int, typer.Option(help="Images an update.")] = 64,
    width: Annotated[int, typer.Option(help="Channels of the generator's last hidden layer.")] = 64,
    discriminator_width: Annotated[
        int | None,
        typer.Option(help="Channels of the discriminator's first layer. [default: as --width]"),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="For all networks. [default: the architecture's own]")
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="minimax or non-saturating (flipped labels), for GANs with the original loss. "
            "[default: non-saturating]"
        ),
    ] = None,
    label_smoothing: Annotated[
        float, typer.Option(help="The discriminator is told 1 - this for reals (one-sided).")
    ] = 0.0,
    instance_noise: Annotated[
        float, typer.Option(help="Noise on all that the discriminator sees; fades to 0.")
    ] = 0.0,
    gradient_penalty: Annotated[
        float | None, typer.Option(help="Weight of the penalty of `wgan-gp`. [default: 10]")
    ] = None,
    unroll: Annotated[
        int | None,
        typer.Option(help="Discriminator steps that `unrolled` looks ahead. [default: 5]"),
    ] = None,
    mirror: Annotated[
        bool, typer.Option(help="Mirror half of the images; not for digits and letters.")
    ] = True,
    ema: Annotated[
        float, typer.Option(help="Decay of the averaged generator that is saved; 0: no averaging.")
    ] = 0.999,
    zoom: Annotated[
        float,
        typer.Option(help="Crops of 1 to ZOOM times the size, shrunk to it; 1: native crops only."),
    ] = 4.0,
    sample_every: Annotated[
        int, typer.Option(help="Steps between sample grids and checkpoints.")
    ] = 500,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Train a generator on photographs; leaves sample grids, losses and the generator in a run
    folder.

    An interrupted run continues when the same command is given again. For several processes:
    accelerate launch --module ganscope train-generator ...

    Examples:

      ganscope train-generator --real my_photos/ --out runs/mine

      ganscope train-generator --real flowers102 --generator wgan-gp --size 32 --steps 5000

      ganscope train-generator --real digits --generator cgan --size 8 --no-mirror --steps 5000
    """
    settings = TrainGeneratorSettings(
        real=real,
        generator=generator,
        input=input,
        out=out_,
        size=size,
        steps=steps,
        batch_size=batch_size,
        width=width,
        discriminator_width=discriminator_width,
        learning_rate=learning_rate,
        loss=loss,
        label_smoothing=label_smoothing,
        instance_noise=instance_noise,
        gradient_penalty=gradient_penalty,
        unroll=unroll,
        mirror=mirror,
        ema=ema,
        zoom=zoom,
        sample_every=sample_every,
        seed=seed,
        device=device,
        precision=precision,
    )
    from ganscope.generator.training import train_generator as train

    with progress() as bar:
        task = bar.add_task(f"training {generator}", total=steps, note="")

        def report(row: dict[str, Any]) -> None:
            parts = [f"{k[:-5]} {v:.2f}" for k, v in row.items() if k.endswith("_loss")]
            note = "  ".join([*parts, f"{row['images_per_second']:.0f}/s"])
            bar.update(task, completed=row["step"], note=note)

        run = train(settings, report)
    err.print("[green]trained[/green]; samples, losses and the generator are in")
    out.print(str(run), highlight=False, soft_wrap=True)
    reals = f"--real {real}"
    if input is not None and Path(input).is_dir():  # that is what it has learned to start from
        reals = f"--from {input}"
    err.print(f"next: ganscope generate --generator {run} {reals}", highlight=False)
