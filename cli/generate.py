"""`ganscope generate`: write a labelled corpus of fakes and reals."""

from pathlib import Path
from typing import Annotated

import typer

from ganscope.cli.console import Device, Seed, err, out, progress
from ganscope.config import GenerateSettings


def generate(
    n: Annotated[int, typer.Option(help="Number of fakes, and of reals beside them.")] = 10_000,
    generator: Annotated[
        str, typer.Option(help="A shipped generator (photos, faces), a run folder, or a hub id.")
    ] = "photos",
    real: Annotated[
        str,
        typer.Option(
            help="Where the reals come from: a source's name, a folder, or hf:owner/name."
        ),
    ] = "photographs",
    out_: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the corpus. [default: corpus, corpus-2, ...]"),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Side of every image in pixels. [default: the generator's]")
    ] = None,
    format: Annotated[str, typer.Option(help="png, jpeg or webp, for both classes.")] = "png",
    quality: Annotated[int, typer.Option(help="JPEG and WebP quality, for both classes.")] = 92,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Write a labelled corpus: N fakes from a generator and as many reals, alike in format and
    size.

    An interrupted run continues when the same command is given again.

    Examples:

      ganscope generate --n 10000

      ganscope generate --generator faces --real my_faces/ --n 2000 --format jpeg

      ganscope generate --generator runs/dcgan --real flowers102 --out flowers-corpus
    """
    settings = GenerateSettings(
        n=n,
        generator=generator,
        real=real,
        out=out_,
        size=size,
        format=format,
        quality=quality,
        seed=seed,
        device=device,
    )
    from ganscope.generator.sampling import generate_corpus

    with progress() as bar:
        task = bar.add_task(f"generating with {generator}", total=n, note="")
        folder = generate_corpus(settings, lambda done: bar.update(task, completed=done))
    err.print(f"[green]{n:,} fakes and {n:,} reals[/green] in")
    out.print(str(folder), highlight=False, soft_wrap=True)
