"""Hostile names in everything that ganscope writes: terminal, CSV, JSON, HTML, Markdown.

    python benchmarks/campaigns/names.py                 # each name once
    python benchmarks/campaigns/names.py --times 200     # and so many made of their parts

Files, sources and generators are called by newlines, quotes, HTML, terminal escapes, right-to-left
marks and formulas of spreadsheets; `check`, `inspect`, `audit` and `benchmark` write of them. What
people read shows them escaped, what machines read gives them back unchanged. The exit status is 1
if there is a fault.
"""

import argparse
import csv
import io
import json
import random
import re
import shutil
import sys
import tempfile
import time
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from commands import Tally, last_line, prepare, run

from ganscope.errors import _CONTROL
from ganscope.files import csv_text, plain_cell

NAMES = (
    "a\nb",
    "a\r\nb",
    'quote"d',
    "it's",
    "<script>alert(1)</script>".replace("/", "\u2215"),
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "</script><b>".replace("/", "\u2215"),
    "&lt;b&gt; &amp;",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x9b31m",
    "back\b\b\b",
    "\u202egpj.exe",
    "\u2066isolated\u2069",
    "=cmd|' C'!A0",
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "'=1",
    "''=1",
    "| a | b |",
    "[red]markup[/red]".replace("/", "\u2215"),
    "[link=file:x]",
    "`code`",
    "![x](javascript:alert(1))",
    "# heading",
    "*star* _under_",
    "$(touch x)",
    "{{ 7*7 }}{% raw %}",
    "%s %n %(x)s",
    "\\n\\x1b",
    " space ",
    "ends in dot.",
    "comma, semi; tab\t",
    "\u200b\u200f",
    "\U0001f98a\u0301",
    "nul\u2400\ufeff",
    "line\u2028sep\u2029",
)
FORMULA = ("=", "+", "-", "@", "\t", "\r")
RAW = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What must reach neither a terminal nor a page."""


class Campaign:
    def __init__(self, place: Path, names: list[str], tally: Tally):
        self.place, self.names, self.tally = place, names, tally
        rng = np.random.default_rng(0)
        self.corpus = place / "named"
        shutil.rmtree(self.corpus, ignore_errors=True)
        (self.corpus / "real").mkdir(parents=True)
        rows = []
        for name in names:
            for label, folder in enumerate(("real", "fakes")):
                file = f"{folder}/{name}.png"
                path = self.corpus / file
                path.parent.mkdir(exist_ok=True)
                pixels = rng.normal(128, 50, (48, 48, 3)).clip(0, 255).astype(np.uint8)
                path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
                rows.append((file, label, name if label else "real", name, str(label)))
        self.rows = rows
        (self.corpus / "fakes" / f"{names[0]} broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
        table = pd.DataFrame(rows, columns=["file_name", "label", "generator", "source", "note"])
        (self.corpus / "metadata.csv").write_bytes(csv_text(table).encode())

    def fault(self, said: str) -> None:
        self.tally.fault(said)

    def ganscope(self, *words: str, ends: tuple[int, ...] = (0, 3)) -> str:
        self.tally.runs += 1
        status, said = run(words, self.place, self.place / "log.txt")
        said = (self.place / "log.txt").read_bytes().decode("utf-8", "backslashreplace")
        what = " ".join(words[:1])
        if status not in ends or "Traceback (most" in said:
            self.fault(f"{what}: status {status}: {last_line(said)}")
        for found in set(RAW.findall(said)):
            line = next(line for line in said.splitlines() if found in line)
            self.fault(f"{what}: {found!a} in what it prints: {line[:120]!a}")
        return said

    def lines_of_json(self, what: str, said: str, paths: set[str]) -> None:
        found = set()
        for line in said.split("\n"):
            if line.startswith("{"):
                try:
                    found.add(json.loads(line)["path"])
                except ValueError:
                    self.fault(f"{what} --json: no JSON: {line[:120]!a}")
        if missing := paths - found:
            self.fault(f"{what} --json: {len(missing)} names are not there: {min(missing)!a}")

    def table(self, file: Path, column: str, expected: set[str] | None = None) -> None:
        """A CSV gives its names back, and no cell is a formula."""
        text = file.read_bytes().decode("utf-8", "surrogateescape")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        for row in rows:
            for name, cell in row.items():
                number = re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?|-?(inf|nan)", cell or "")
                if (cell or "").startswith(FORMULA) and not number:
                    self.fault(f"{file.name}: a formula in {name}: {cell[:80]!a}")
        if expected is not None:
            found = {plain_cell(row[column]) for row in rows}
            if missing := expected - found:
                self.fault(f"{file.name}: {len(missing)} of {column} missing: {min(missing)!a}")

    def page(self, file: Path) -> None:
        """No element and no attribute of a page comes from a name."""
        text = file.read_text(encoding="utf-8")
        faults: list[str] = []

        class Reader(HTMLParser):
            def handle_starttag(self, tag: str, about: list) -> None:
                for name, value in about:
                    link = name in ("href", "src") and (value or "").strip().lower()
                    if (name.startswith("on") and "alert" in (value or "")) or (
                        link and link.startswith("javascript:")
                    ):
                        faults.append(f"<{tag} {name}={value}>")
                if tag in ("script", "svg", "b") and "alert(1)" in (self.get_starttag_text() or ""):
                    faults.append(f"<{tag}>")

        Reader().feed(text)
        scripts = re.findall(r"<script\b[^>]*>(.*?)</script", text, re.DOTALL | re.IGNORECASE)
        faults += ["a script of a name's" for one in scripts if one.strip() == "alert(1)"]
        faults += [f"{c!a}" for c in set(RAW.findall(text))]
        for fault in faults:
            self.fault(f"{file.name}: {fault[:100]}")

    def markdown(self, file: Path) -> None:
        """Tables stay tables; no HTML, image or link comes from a name."""
        text = file.read_text(encoding="utf-8")
        for bad in ("<img src=x", "<script>", "<svg", "![x](javascript"):
            if bad in text:
                self.fault(f"{file.name}: {bad!r} stands there as it is")
        if found := RAW.search(text):
            self.fault(f"{file.name}: {found[0]!a} stands there as it is")
        width = None
        for line in text.split("\n"):
            bars = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else None
            if bars and width and bars != width:
                self.fault(f"{file.name}: a row of {bars} bars, not {width}: {line[:100]!a}")
            width = bars

    def check(self) -> None:
        paths = {str(Path("named", file)) for file, *_ in self.rows}
        common = ["named", "--detector", "tiny", "--device", "cpu", "--no-reencode"]
        for gone in ("out.csv", "report.html", "heat", "desk.db", "desk.csv"):
            target = self.place / gone
            shutil.rmtree(target, ignore_errors=True) if target.is_dir() else target.unlink(True)
        extra = ["--csv", "out.csv", "--report", "report.html", "--project", "desk.db"]
        said = self.ganscope("check", *common, *extra, "--heatmap", "heat")
        self.table(self.place / "out.csv", "path", paths)
        self.page(self.place / "report.html")
        for drawn in (self.place / "heat").iterdir():
            if _CONTROL.search(drawn.name):
                self.fault(f"heatmap's name: {drawn.name!a}")
        self.ganscope("project", "desk.db", "--csv", "desk.csv")
        self.table(self.place / "desk.csv", "path")
        said = self.ganscope("check", *common, "--json")
        self.lines_of_json("check", said, paths)
        self.ganscope("check", *[f"named/fakes/{name}.png" for name in self.names], *common[1:])

    def inspect(self) -> None:
        paths = {str(Path("named", file)) for file, *_ in self.rows}
        self.lines_of_json("inspect", self.ganscope("inspect", "named", "--json"), paths)
        self.ganscope("inspect", "named")
        for name in self.names[:6]:
            self.ganscope("inspect", f"named/fakes/{name}.png")

    def audit(self) -> None:
        said = self.ganscope("audit", "named", ends=(0, 1))
        if not said:
            self.fault("audit: says nothing")
        json_said = self.ganscope("audit", "named", "--json", ends=(0, 1))
        try:
            json.loads(json_said[json_said.index("{") : json_said.rindex("}") + 1])
        except ValueError as error:
            self.fault(f"audit --json: {error}")

    def benchmark(self) -> None:
        out = self.place / "judged"
        shutil.rmtree(out, ignore_errors=True)
        words = ["benchmark", "named", "--detector", "tiny", "--bootstrap", "0", "--device", "cpu"]
        self.ganscope(*words, "--protocol", "raw", "--no-cache", "--out", "judged", ends=(0,))
        for file in sorted(out.rglob("*")):
            if file.suffix == ".csv":
                self.table(file, "", None)
            elif file.suffix == ".html":
                self.page(file)
            elif file.suffix == ".md":
                self.markdown(file)
            elif file.suffix == ".json":
                json.loads(file.read_text(encoding="utf-8"))
            elif _CONTROL.search(file.name):
                self.fault(f"benchmark: a file called {file.name!a}")
        scores = pd.read_parquet(out / "scores.parquet")
        if missing := set(self.names) - set(scores["generator"]):
            self.fault(f"scores.parquet: {len(missing)} generators missing: {min(missing)!a}")


def mixed(rng: random.Random) -> str:
    """A name made of two or three others' halves."""
    parts = [rng.choice(NAMES) for _ in range(rng.choice((2, 2, 3)))]
    return "".join(part[rng.randrange(len(part)) :] for part in parts)[:60] or "x"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument("--times", type=int, default=0, help="names that are made of their parts")
    options.add_argument("--minutes", type=float, help="begin anew until so many have passed")
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    rng, tally = random.Random(chosen.seed), Tally()
    with tempfile.TemporaryDirectory() as name:
        place = prepare(Path(name).resolve())
        names = list(NAMES)
        while True:
            names += [mixed(rng) for _ in range(chosen.times)]
            # A dot in front hides a file, and hidden ones are left out of folders.
            unique = [one for one in dict.fromkeys(names) if one.strip() and one[0] != "."]
            campaign = Campaign(place, unique, tally)
            for kind in (campaign.check, campaign.inspect, campaign.audit, campaign.benchmark):
                kind()
            if time.monotonic() - tally.started >= 60 * (chosen.minutes or 0):
                break
            names, chosen.times = [], chosen.times or 40
    sys.exit(tally.close(f"names, {len(unique)} in the last round"))


if __name__ == "__main__":
    main()
