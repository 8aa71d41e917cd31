"""`ganscope play`: the game."""

from pathlib import Path
from typing import Annotated

import typer

from ganscope.cli.console import Device
from ganscope.cli.serve import Browser, Detector, Host, Port, run
from ganscope.config import PlaySettings, ServeSettings


def play(
    corpus: Annotated[
        Path | None, typer.Argument(help="Corpus to deal from; else one made on the spot.")
    ] = None,
    detector: Detector = "default",
    project: Annotated[
        Path | None, typer.Option(help="Project file in which the answers are kept.")
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    browser: Browser = True,
    device: Device = "auto",
) -> None:
    """Which one is real? You against the detector, on the pictures of any corpus, in the browser.

    Needs the extra: pip install 'ganscope[web]'.

    Examples:

      ganscope play

      ganscope play corpus/ --detector runs/cnn --project scores.db
    """
    settings = PlaySettings(
        corpus=corpus,
        detector=detector,
        project=project,
        host=host,
        port=port,
        browser=browser,
        device=device,
    )
    run(ServeSettings(**vars(settings)), "/play")
