"""The report of `check`: one HTML file with every picture, which opens anywhere.

Style, script and thumbnails are in it; nothing is loaded from elsewhere. It is written as pictures
are judged, so that thousands take no memory. Names and what files say come from strangers: all of
it is escaped where it is put in.
"""

import base64
import functools
import hashlib
import shutil
import tempfile
import time
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

import ganscope
from ganscope.config import replacing
from ganscope.detector.evidence.record import NOTHING
from ganscope.errors import GanscopeError, escaped_in_page
from ganscope.images import IMAGE_SUFFIXES, open_image
from ganscope.web.thumbnails import thumbnail

HERE = files("ganscope.web")
AT_ONCE = 200
"""Rows that are laid out before the script pages them: of thousands that would take long."""
LONG = 2000
"""Characters of a text from a file that are shown."""


def percent(probability: float | None) -> str:
    """Never 0 % or 100 %: no calibration is that sure."""
    if probability is None:
        return ""
    return "<1%" if probability < 0.01 else ">99%" if probability > 0.99 else f"{probability:.0%}"


def readable(text: Any) -> str:
    """Text from a stranger: control characters, and bytes that are no UTF-8, made visible."""
    whole = str(text).encode("utf-8", "replace").decode("utf-8")
    shown = "".join(c if c.isprintable() or c in " \n\t" else "\ufffd" for c in whole[:LONG])
    return shown + (" …" if len(whole) > LONG else "")


def sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


@functools.cache  # a page's template takes longer to read than to fill
def templates() -> jinja2.Environment:
    """The pages' templates; everything put into them is escaped."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(HERE / "templates")),
        autoescape=True,
        finalize=escaped_in_page,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "percent": percent,
        "readable": readable,
        "sentence": sentence,
        "thresholds_of": lambda about, record: about | {"thresholds": record["thresholds"]},
    }
    found.globals["accept"] = ",".join(["image/*", "video/*", *sorted(IMAGE_SUFFIXES)])
    return found


def told_by_file(record: dict[str, Any]) -> list[tuple[str, str]]:
    """What a picture's file says of its own making, as (name, text) for people: the findings, where
    a record has them (`evidence`), else what it declares in sum.
    """
    found = (record.get("evidence") or {}).get("findings")
    if found is None:
        found = [] if record.get("declared") in (None, NOTHING) else [_in_sum(record)]
    lines: list[tuple[str, str]] = []
    for one in found:
        lines.append((one["where"], f"{one['says']} ({one['trust']})"))
        told = {name: one.get(name) for name in ("by", "model", "seed", "prompt")}
        lines += [(name, str(v)) for name, v in (told | one["details"]).items() if v]
    return lines


def _in_sum(record: dict[str, Any]) -> dict[str, Any]:
    """What a record declares, in the form of a finding."""
    told = {name: record.get(f"declared_{name}") for name in ("by", "model", "seed", "prompt")}
    where, trust = "declares", record.get("declared_trust")
    return {"where": where, "says": record["declared"], "trust": trust, "details": {}, **told}


class Report:
    """A report that grows picture by picture, and takes its name when it is complete.

    path: None: it is returned as text by `text`.
    """

    def __init__(self, path: Path | None, title: str = "Pictures checked"):
        if path and path.suffix.lower() in IMAGE_SUFFIXES:
            raise GanscopeError(f"--report {path}: this is the name of an image; name a .html file")
        if path and path.exists() and not path.is_file():
            raise GanscopeError(f"--report {path}: is there already and no file; name another")
        self.path, self.title = path, title
        self.counts: Counter[str] = Counter()
        self._detectors: list[str] = []
        self._rows: Any = None
        environment = templates()
        script = (HERE / "static" / "report.js").read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        self._script = script
        environment.globals["script_hash"] = f"sha256-{digest}"
        self._page: Any = environment.get_template("report.html.jinja").module

    def __enter__(self) -> "Report":
        try:
            if self.path:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            folder = self.path.parent if self.path else None
            self._rows = tempfile.TemporaryFile("w+", encoding="utf-8", dir=folder)
        except OSError as error:
            raise self._unwritable(error) from None
        return self

    def add(self, record: dict[str, Any], picture: str | None = None) -> None:
        """Enter a record (`Check.as_dict()`); picture: its thumbnail as a data URI, None: it is
        made of the file.
        """
        self.counts["error" if record.get("error") else record.get("verdict") or "none"] += 1
        self.told(record.get("detector") or "")
        shown = thumbnail_of(record) if picture is None else picture
        try:
            if self.counts.total() == AT_ONCE + 1:
                self._rows.write('</tbody><tbody class="more">')
            self._rows.write(self.row(record, shown))
        except OSError as error:
            raise self._unwritable(error) from None

    def row(self, record: dict[str, Any], picture: str) -> str:
        """A picture's row, as HTML."""
        return str(self._page.row(record, picture, told_by_file(record)))

    def told(self, detector: str) -> None:
        """Note which detector judged."""
        if detector not in self._detectors:
            self._detectors.append(detector)

    def _around(self) -> tuple[str, str]:
        order = [n for n in ("fake", "unsure", "real", "error", "none") if self.counts[n]]
        total = self.counts.total()
        about = (
            f"{total:,} picture{'s' if total != 1 else ''}, judged by the detector "
            f"{', '.join(sorted(self._detectors)) or '-'} on {time.strftime('%d %B %Y, %H:%M')}"
        )
        style = (HERE / "static" / "style.css").read_text(encoding="utf-8")
        counts = [(name, self.counts[name]) for name in order]
        head = str(self._page.head(self.title, about, counts, style))
        return head, str(self._page.tail(f"ganscope {ganscope.__version__}", self._script))

    def text(self) -> str:
        """The whole page."""
        head, tail = self._around()
        self._rows.seek(0)
        return head + self._rows.read() + tail

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None and self.path:
                head, tail = self._around()
                self._rows.seek(0)
                with (
                    replacing(self.path.resolve()) as part,
                    open(part, "w", encoding="utf-8") as file,
                ):
                    file.write(head)
                    shutil.copyfileobj(self._rows, file)
                    file.write(tail)
        except OSError as error:
            raise self._unwritable(error) from None
        finally:
            self._rows.close()

    def _unwritable(self, error: OSError) -> GanscopeError:
        return GanscopeError(f"--report {self.path}: cannot be written ({error.strerror})")


def thumbnail_of(record: dict[str, Any]) -> str:
    """The thumbnail of a record's file as a data URI, "" where it cannot be opened."""
    if record.get("error"):
        return ""
    try:
        return thumbnail(open_image(record["path"]).pixels)
    except GanscopeError:
        return ""
