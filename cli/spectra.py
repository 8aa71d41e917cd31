"""`ganscope spectra`: what traces does each generator leave?"""

from pathlib import Path
from typing import Annotated

import typer

from ganscope.cli.console import Seed, out, progress
from ganscope.config import SpectraSettings


def spectra(
    corpora: Annotated[list[Path], typer.Argument(help="Corpus folders.")],
    out_: Annotated[
        Path | None, typer.Option("--out", help="A .png. [default: spectra.png, ...]")
    ] = None,
    n: Annotated[int, typer.Option(help="Images of each generator, at most.")] = 1000,
    seed: Seed = 0,
) -> None:
    """Draw the mean spectrum of the fine detail of reals and of each generator's fakes.

    A lattice of bright points is the trace of upsampling; below, the power at each frequency.

    Examples:

      ganscope spectra corpus/

      ganscope spectra corpus-dcgan/ corpus-stylegan/ --out traces.png
    """
    settings = SpectraSettings(corpora=tuple(corpora), out=out_, n=n, seed=seed)
    from ganscope.datasets.spectra import draw_spectra

    with progress() as bar:
        task = bar.add_task("looking", total=None, note="")
        path = draw_spectra(
            settings, lambda done, total: bar.update(task, completed=done, total=total)
        )
    out.print(str(path), highlight=False, soft_wrap=True)
