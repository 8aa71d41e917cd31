"""`ganscope generate`: write a labelled corpus of fakes and reals."""

from pathlib import Path
from typing import Annotated

import typer

from ganscope.cli.console import Device, Seed, err, out, progress
from ganscope.config import GenerateSettings


def generate(
    n: Annotated[
        int | None,
        typer.Option(help="Number of fakes, and of reals beside them. [default: 10000]"),
    ] = None,
    generator: Annotated[
        str,
        typer.Option(
            help="A shipped generator (photos, faces), a run folder, a hub id, or KIND:REST; "
            "see ganscope list generators."
        ),
    ] = "photos",
    real: Annotated[
        str,
        typer.Option(
            help="Where the reals come from: a source's name, a folder, or hf:owner/name."
        ),
    ] = "photographs",
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Whole photographs to make a fake from each, under its name; for generators that "
            "start from photographs.",
        ),
    ] = None,
    class_: Annotated[
        str | None,
        typer.Option("--class", help="What a conditional generator makes. [default: all in turn]"),
    ] = None,
    truncation: Annotated[
        float,
        typer.Option(help="Psi, 0 to 1: how far fakes stray from the average."),
    ] = 1.0,
    prompts: Annotated[
        Path | None, typer.Option(help="A text file, a prompt a line, for text-to-image.")
    ] = None,
    out_: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the corpus. [default: corpus, corpus-2, ...]"),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Side of every image in pixels. [default: the generator's]")
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            help="png, jpeg or webp, for both classes. [default: png; with --from, the photo's]"
        ),
    ] = None,
    quality: Annotated[int, typer.Option(help="JPEG and WebP quality, for both classes.")] = 92,
    seed: Seed = 0,
    shard: Annotated[
        str | None,
        typer.Option(
            help="i/n: make part i of n only; in one folder, the part that ends last joins them.",
            rich_help_panel="Machine",
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Write a labelled corpus: N fakes from a generator and as many reals, alike in format and
    size.

    An interrupted run continues when the same command is given again.

    Examples:

      ganscope generate --n 10000

      ganscope generate --generator faces --real my_faces/ --n 2000 --format jpeg

      ganscope generate --generator runs/dcgan --real flowers102 --out flowers-corpus

      ganscope generate --generator faceswap: --from portraits/ --out swapped

      ganscope generate --generator "inpaint:taesd?area=0.1&edge=soft" --from my_photos/
    """
    settings = GenerateSettings(
        n=n,
        generator=generator,
        real=real,
        from_=from_,
        class_=class_,
        truncation=truncation,
        prompts=prompts,
        out=out_,
        size=size,
        format=format,
        quality=quality,
        seed=seed,
        shard=shard,
        device=device,
    )
    from ganscope.datasets.corpus import is_unfinished
    from ganscope.datasets.masks import FOLDER as MASKS
    from ganscope.generator.sampling import generate_corpus

    with progress() as bar:
        task = bar.add_task(f"generating with {generator}", total=n, note="")
        folder = generate_corpus(settings, lambda done: bar.update(task, completed=done))
    if is_unfinished(folder):
        err.print("[green]this part is done[/green]; the last part will join them in")
    else:
        masks = folder / MASKS
        what = "fakes, reals and masks" if masks.is_dir() else "fakes and reals"
        err.print(f"[green]{what}[/green] are in")
    out.print(str(folder), highlight=False, soft_wrap=True)
