"""`ganscope serve`: the page and the HTTP API."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from ganscope.cli.console import Device, Faces, PixelsOnly, Reencode, TrustAnchors, err
from ganscope.config import ServeSettings
from ganscope.errors import GanscopeError

NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
"""Modules of the extra `web`."""

Detector = Annotated[str, typer.Option(help="A shipped detector, a run folder, or a hub id.")]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all.")]
Port = Annotated[int, typer.Option(help="Port to listen on; 0: a free one.")]
Browser = Annotated[bool, typer.Option(help="Open the page, if started from a terminal.")]


def need_extra() -> None:
    """Raise `GanscopeError` if the extra is not installed, saying how it is."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise GanscopeError(
            f"the page and the API need {missing[0].replace('_', '-')}: pip install 'ganscope[web]'"
        )


def serve(
    detector: Detector = "default",
    host: Host = "127.0.0.1",
    port: Port = 8000,
    project: Annotated[
        Path | None, typer.Option(help="Project file of check --project, to review.")
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="Corpus that the game at /play deals from.")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Keep the pictures that are sent in this folder.")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="Text file of tokens, one a line; without one of them nothing is answered.",
            rich_help_panel="Who may ask",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Further name of this server; may be given several times.",
            rich_help_panel="Who may ask",
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Site whose pages may call the API, https://example.org; may be given several "
            "times.",
            rich_help_panel="Who may ask",
        ),
    ] = None,
    max_mb: Annotated[
        float, typer.Option(help="Megabytes of a request.", rich_help_panel="Limits")
    ] = 32,
    max_pixels: Annotated[
        int, typer.Option(help="Pixels of a picture.", rich_help_panel="Limits")
    ] = 50_000_000,
    timeout: Annotated[
        float,
        typer.Option(
            help="Seconds to send a request, and to be answered.", rich_help_panel="Limits"
        ),
    ] = 120,
    queue: Annotated[
        int,
        typer.Option(
            help="Pictures that may wait; others are told to come back.", rich_help_panel="Limits"
        ),
    ] = 64,
    together: Annotated[
        int, typer.Option(help="Pictures judged at a time.", rich_help_panel="Machine")
    ] = 8,
    fetch: Annotated[bool, typer.Option(help="Fetch pictures from public addresses.")] = True,
    allow_private: Annotated[
        bool,
        typer.Option(
            "--allow-private",
            help="Fetch from private and loopback addresses, too.",
            rich_help_panel="Who may ask",
        ),
    ] = False,
    reencode: Reencode = True,
    faces: Faces = True,
    pixels_only: PixelsOnly = False,
    trust_anchors: TrustAnchors = None,
    browser: Browser = True,
    device: Device = "auto",
) -> None:
    """Open a page in the browser that judges pictures, with an HTTP API at /api/v1, the review of
    a project and the game.

    Nothing that is sent is kept, unless a folder is named with --keep. Needs the extra: pip install
    'ganscope[web]'.

    Examples:

      ganscope serve

      ganscope check inbox/ --project inbox.db && ganscope serve --project inbox.db

      ganscope serve --host 0.0.0.0 --token-file tokens.txt --allow-host photos.example.org
    """
    settings = ServeSettings(
        detector=detector,
        host=host,
        port=port,
        project=project,
        corpus=corpus,
        keep=keep,
        token_file=token_file,
        allow_host=tuple(allow_host or ()),
        allow_origin=tuple(allow_origin or ()),
        max_mb=max_mb,
        max_pixels=max_pixels,
        timeout=timeout,
        queue=queue,
        together=together,
        fetch=fetch,
        allow_private=allow_private,
        reencode=reencode,
        faces=faces,
        pixels_only=pixels_only,
        trust_anchors=trust_anchors,
        browser=browser,
        device=device,
    )
    run(settings)


def run(settings: ServeSettings, path: str = "/") -> None:
    """Serve, saying where."""
    need_extra()
    from ganscope.web.guard import LOCAL
    from ganscope.web.server import serve as serve_pages

    if settings.host not in LOCAL and settings.token_file is None:
        err.print(
            "whoever reaches this machine may ask; --token-file lets only some", style="yellow"
        )
    serve_pages(settings, lambda where: err.print(f"{where}   (Ctrl-C ends)"), path)
