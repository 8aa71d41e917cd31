"""`ganscope inspect`: what files say of their own making."""

import json as json_library
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from ganscope.cli.console import AllowPrivate, TrustAnchors, err, out
from ganscope.cli.streams import ReaderGone
from ganscope.config import InspectSettings
from ganscope.errors import escaped

if TYPE_CHECKING:
    from ganscope.detector.evidence.inspection import Inspection

STYLES = {"generated": "bold red", "edited with AI": "yellow", "captured by a camera": "green"}


def inspect(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Image files, folders, http(s) addresses, archives, lists; - for standard input.",
            metavar="PATH",
        ),
    ],
    watermarks: Annotated[
        bool,
        typer.Option(
            "--watermarks",
            help="Look for invisible watermarks in the pixels, too; needs invisible-watermark.",
        ),
    ] = False,
    trust_anchors: TrustAnchors = None,
    allow_private: AllowPrivate = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line, no table.")] = False,
) -> None:
    """Show what files say of their own making: signed C2PA manifests, XMP, IPTC, EXIF, the settings
    that generators write.

    One file is shown in full, several as a table; --json has all. Nothing here looks at the pixels,
    and nothing said means nothing: text can be stripped or made up.

    Exit status: 0 done, 2 a mistake, 3 some files unreadable.

    Examples:

      ganscope inspect picture.png

      ganscope inspect inbox/ --json | jq .declared
    """
    settings = InspectSettings(
        paths=tuple(paths),
        watermarks=watermarks,
        trust_anchors=trust_anchors,
        allow_private=allow_private,
        json=json,
    )
    from ganscope.detector.evidence.inspection import inspect_images

    counts: Counter[str] = Counter()
    shown: list[Inspection] = []
    for one in inspect_images(settings):
        counts["error" if one.error else one.evidence.declared] += 1
        if json:
            try:
                print(json_library.dumps(one.as_dict()), flush=True)
            except ReaderGone:
                break
        else:
            shown.append(one)
    if not json:
        if len(shown) == 1:
            _show_in_full(shown[0])
        else:
            out.print(_table(shown))
            err.print(", ".join(f"{count:,} {what}" for what, count in sorted(counts.items())))
    if counts["error"]:
        raise typer.Exit(3)


def _show_in_full(one: "Inspection") -> None:
    if one.error:
        out.print(
            Text.assemble(("error", "magenta"), f"  {escaped(one.path)}: {escaped(one.error)}")
        )
        return
    evidence = one.evidence
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    rows = {
        "file": escaped(one.path),
        "declared": Text(evidence.declared, style=STYLES.get(evidence.declared, "")),
        "by": evidence.by,
        "model": evidence.model,
        "seed": evidence.seed,
        "prompt": evidence.prompt,
        "trust": evidence.trust,
        "reason": evidence.reason if evidence.trust else None,
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, value if isinstance(value, Text) else Text(str(value)))
    out.print(table)
    for finding in evidence.findings:
        out.print()
        out.print(Text.assemble((finding.where, "bold"), f": {finding.says}"))
        inner = Table(box=None, pad_edge=False, show_header=False)
        inner.add_column(no_wrap=True, style="dim")
        inner.add_column(overflow="fold")
        told = {"declares": finding.declared} if finding.declared != "nothing said" else {}
        if told or finding.trust == "invalid signature":
            told |= {"trust": finding.trust}
        for name, value in (told | finding.details).items():
            inner.add_row(Text(f"  {name}"), Text(value))
        if inner.row_count:
            out.print(inner)
    for remark in one.remarks:
        err.print(Text(remark))


def _table(inspections: list["Inspection"]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("declared", "by", "model", "trust", "path"):
        table.add_column(column, overflow="fold")
    for one in inspections:
        path = Text(escaped(one.path))
        if one.error:
            table.add_row(Text("error", style="magenta"), "", "", Text(escaped(one.error)), path)
            continue
        found = one.evidence
        table.add_row(
            Text(found.declared, style=STYLES.get(found.declared, "")),
            Text(found.by or ""),
            Text(found.model or ""),
            Text(found.trust or ""),
            path,
        )
    return table
