"""`ganscope list`: what there is to choose from."""

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from ganscope.cli.console import out
from ganscope.errors import GanscopeError
from ganscope.registry import unknown


def list_things(
    what: Annotated[
        str, typer.Argument(help="detectors, generators, sources or degradations.", metavar="WHAT")
    ],
) -> None:
    """List the detectors, generators, sources of reals or degradations that go by a name.

    Examples:

      ganscope list detectors

      ganscope list degradations
    """
    kinds = {
        "detectors": _detectors,
        "generators": _generators,
        "sources": _sources,
        "degradations": _degradations,
    }
    if what not in kinds:
        raise GanscopeError(unknown("kind of thing", what, sorted(kinds)))
    table = Table(box=None, pad_edge=False)
    for column in ("name", "kind", "what it is"):
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    for row in kinds[what]():
        table.add_row(*map(Text, row))  # no markup: [hf] is meant as it stands
    out.print(table)
    if what in _WHERE:
        out.print(_WHERE[what], style="dim", highlight=False)


_WHERE = {
    "detectors": "shipped: for check and benchmark. architecture: to be trained, for "
    "train-detector. published: for benchmark.",
    "generators": "shipped, installed, kind: for generate and benchmark. architecture: to be "
    "trained, for train-generator.",
}
"""Where names of each kind may be used."""


def _first_line(text: str | None) -> str:
    return (text or "").strip().split("\n")[0]


def _title(card: str) -> str:
    return next(
        (line.removeprefix("# ") for line in card.splitlines() if line.startswith("# ")), ""
    )


def _shipped(kind: str) -> list[tuple[str, str, str]]:
    from ganscope.folders import CARD, shipped

    return [
        (name, "shipped", _title((folder / CARD).read_text(encoding="utf-8")))
        for name, folder in shipped(kind).items()
    ]


def _detectors() -> list[tuple[str, str, str]]:
    from ganscope.detector.networks.architectures import detectors
    from ganscope.detector.published import describe_published

    known = [
        (name, "architecture", _first_line(build.__doc__))
        for name, build in sorted(detectors.items())
    ]
    return [
        *_shipped("detectors"),
        *known,
        ("timm:NAME", "architecture", "any backbone of timm, for example timm:resnet18"),
        ("vit:NAME", "architecture", "a transformer of timm, read at several of its blocks"),
        *((name, "published", text) for name, text in describe_published()),
    ]


def _generators() -> list[tuple[str, str, str]]:
    from ganscope.generator.borrowed.functions import entry_point_generators
    from ganscope.generator.by_name import prefixes
    from ganscope.generator.kinds.architectures import architectures

    known = [
        (name, "architecture", f"{a.summary} ({a.paper})")
        for name, a in sorted(architectures.items())
    ]
    installed = [
        (name, "installed", f"{point.value} of {point.dist.name if point.dist else 'a package'}")
        for name, point in sorted(entry_point_generators().items())
    ]
    kinds = []
    for prefix, build in prefixes.items():
        rest, _, text = _first_line(build.__doc__).partition(": ")
        kinds.append((f"{prefix}:{rest}", "kind", text))
    return [*_shipped("generators"), *installed, *known, *kinds]


def _sources() -> list[tuple[str, str, str]]:
    from ganscope.datasets.sources import describe_sources

    return [(name, "source", text) for name, text in describe_sources()]


def _degradations() -> list[tuple[str, str, str]]:
    from ganscope.datasets.degradations import degradations

    return [
        (f"{name}:VALUE", "degradation", _first_line(degrade.__doc__))
        for name, degrade in sorted(degradations.items())
    ]
