"""`ganscope trust`: whose signatures are trusted."""

from typing import Annotated

import typer

from ganscope.cli.console import out
from ganscope.config import TrustUpdateSettings

app = typer.Typer(
    help="Whose C2PA signatures are trusted.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog="[bold]Example[/bold]: ganscope trust update",
)


@app.callback()
def _trust() -> None:
    """Whose C2PA signatures are trusted."""


@app.command("update")
def update(
    url: Annotated[
        str | None,
        typer.Option(help="Address or file of the list; the C2PA's official one without it."),
    ] = None,
    stamps_url: Annotated[
        str | None,
        typer.Option(
            help="The list of those who stamp times; without it the official one, or --url's."
        ),
    ] = None,
) -> None:
    """Fetch the list of issuers whose C2PA signatures check and inspect call known.

    Without a list a signature is verified, but not who issued it. The list is put in the old one's
    place whole, or not at all.

    Examples:

      ganscope trust update

      ganscope trust update --url anchors.pem
    """
    settings = TrustUpdateSettings(url=url, stamps_url=stamps_url)
    from ganscope.detector.evidence.trust import update_trust

    path, count = update_trust(settings)
    said = f"{count:,} certificates of trusted issuers are in {path}"
    out.print(said, highlight=False, markup=False)
