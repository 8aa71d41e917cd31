"""The tables of a benchmark's report: cells with their colours for HTML, and one for LaTeX."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import to_hex

from ganscope.datasets.degradations import CLEAN
from ganscope.detector.benchmark.report.summary import (
    ALL,
    comparable,
    format_gap,
    in_words,
    number,
    overall,
    percent,
    signed,
)
from ganscope.detector.judging.metrics import NAMES

PROTOCOLS = {
    "aligned": "Aligned: both classes cropped and saved alike",
    "raw": "Raw: files as they are",
    "face": "Face: the largest face of each image by itself",
}
"""Protocols in the order of the page, and what they are."""
METRICS = {
    "auroc": "AUROC",
    "ap": "AP",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "eer": "EER",
    "tpr_at_fpr_1": "TPR at 1 % FPR",
    "tpr_at_fpr_5": "TPR at 5 % FPR",
    "ece": "ECE",
    "brier": "Brier",
}
MANY_COLUMNS = 9
LOWER_IS_BETTER = {"eer", "ece", "brier"}


@dataclass(frozen=True)
class Cell:
    """A cell: its number, smaller print beneath, what hovering tells, and its colours."""

    text: str
    small: str = ""
    title: str = ""
    background: str = ""
    ink: str = ""
    best: bool = False
    """Best of its column."""
    mark: str = ""
    """Number of a note beneath the table."""


@dataclass
class Table:
    """Rows of cells, each with a name; `caption` says what they are."""

    caption: str
    corner: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def dense(self) -> bool:
        """Whether there are so many columns that the small print must be short."""
        return len(self.columns) > MANY_COLUMNS

    def mark(self, note: str) -> str:
        """The number of a note, which is added if it is new."""
        if not note:
            return ""
        if note not in self.notes:
            self.notes.append(note)
        return str(self.notes.index(note) + 1)


def protocols(table: pd.DataFrame) -> list[str]:
    """The protocols of a table, `aligned` first."""
    found = list(dict.fromkeys(table["protocol"]))
    return sorted(found, key=lambda name: [*PROTOCOLS, *found].index(name))


def protocol_name(protocol: str) -> str:
    return PROTOCOLS.get(protocol, protocol)


def by_generator(
    results: pd.DataFrame, protocol: str, degradation: str = CLEAN.label, small: bool = True
) -> Table:
    """AUROC, detectors down and generators across, "all" first; small: with intervals beneath."""
    rows = results[(results["protocol"] == protocol) & (results["degradation"] == degradation)]
    generators = sorted(dict.fromkeys(rows["generator"]), key=lambda name: name != ALL)
    name = protocol_name(protocol)
    caption = name if degradation == CLEAN.label else f"{name}; {in_words(degradation)}"
    return _coloured(rows, "generator", generators, Table(caption, "detector", generators), small)


def by_degradation(results: pd.DataFrame, protocol: str) -> Table:
    """AUROC over all generators, detectors down and degradations across."""
    rows = overall(results[results["protocol"] == protocol])
    found = list(dict.fromkeys(rows["degradation"]))
    table = Table(protocol_name(protocol), "detector", [in_words(name) for name in found])
    return _coloured(rows, "degradation", found, table)


def _coloured(
    rows: pd.DataFrame, across: str, columns: Sequence[str], table: Table, small: bool = True
) -> Table:
    whole = comparable(rows, across)
    top = rows[whole].groupby(across)["auroc"].max()
    cells = {(row["detector"], row[across]): row for _, row in rows.iterrows()}
    for detector in dict.fromkeys(rows["detector"]):
        found = []
        for column in columns:
            row = cells.get((detector, column))
            if row is None or not np.isfinite(row["auroc"]):
                note = "" if row is None else row["remark"]
                found.append(Cell(number(float("nan")), mark=table.mark(note), title=note))
                continue
            background, ink = shade(row["auroc"])
            found.append(
                Cell(
                    text=number(row["auroc"]),
                    small=_span(row, "auroc", 2 if table.dense else 3) if small else "",
                    title=_told(row),
                    background=background,
                    ink=ink,
                    best=whole[row.name] and row["auroc"] == top[column],
                    mark=table.mark(row["remark"]),
                )
            )
        table.rows.append((detector, found))
    return table


def _span(row: pd.Series, metric: str, decimals: int = 3) -> str:
    low, high = row[f"{metric}_low"], row[f"{metric}_high"]
    return f"{low:.{decimals}f}\N{EN DASH}{high:.{decimals}f}" if np.isfinite(low) else ""


def _told(row: pd.Series) -> str:
    """What hovering over a cell tells."""
    span = _span(row, "auroc")
    return ", ".join(
        part
        for part in (
            f"{row['detector']} on {row['generator']}",
            in_words(row["degradation"]),
            f"AUROC {number(row['auroc'])}" + (f" (95 % {span})" if span else ""),
            f"{row['n_real']:,} reals",
            f"{row['n_fake']:,} fakes",
            row["remark"],
        )
        if part
    )


def gap(scores: pd.DataFrame) -> Table | None:
    """AUROC on raw files less that on aligned ones; None without both."""
    rows = format_gap(scores)
    if not len(rows):
        return None
    found = {(row["detector"], row["generator"]): row for _, row in rows.iterrows()}
    generators = sorted(dict.fromkeys(rows["generator"]), key=lambda name: name != ALL)
    table = Table("Raw minus aligned: what the file format gives away", "detector", generators)
    for detector in dict.fromkeys(rows["detector"]):
        cells = []
        for generator in generators:
            row = found.get((detector, generator))
            if row is None:
                cells.append(Cell(number(float("nan"))))
                continue
            one, two = row["raw"], row["aligned"]
            background, ink = shade(one - two, -0.5, 0.5, "PuOr_r")
            title = f"{detector} on {generator}: raw {number(one)}, aligned {number(two)}"
            cells.append(Cell(signed(one - two), "", title, background, ink))
        table.rows.append((detector, cells))
    return table


def measures(results: pd.DataFrame, protocol: str) -> Table:
    """Every metric over all generators, clean."""
    rows = results[(results["protocol"] == protocol) & (results["degradation"] == CLEAN.label)]
    rows = overall(rows)
    table = Table(protocol_name(protocol), "detector", list(METRICS.values()))
    whole = comparable(rows)
    best = {
        m: rows.loc[whole, m].min() if m in LOWER_IS_BETTER else rows.loc[whole, m].max()
        for m in NAMES
    }
    for i, row in rows.iterrows():
        cells = [
            Cell(number(row[name]), _span(row, name), best=whole[i] and row[name] == best[name])
            for name in METRICS
        ]
        table.rows.append((row["detector"], cells))
    return table


def false_alarms(alarms: pd.DataFrame, protocol: str, degradation: str) -> Table:
    """Share of the photographs called fake, detectors down and sources across."""
    rows = alarms[(alarms["protocol"] == protocol) & (alarms["degradation"] == degradation)]
    sources = list(dict.fromkeys(rows["source"]))
    name = protocol_name(protocol)
    caption = name if degradation == CLEAN.label else f"{name}; {in_words(degradation)}"
    table = Table(caption, "detector", [str(source) or "no source given" for source in sources])
    cells = {(row["detector"], row["source"]): row for _, row in rows.iterrows()}
    for detector in dict.fromkeys(rows["detector"]):
        found = []
        for source in sources:
            row = cells.get((detector, source))
            if row is None:
                found.append(Cell(percent(float("nan"))))
                continue
            background, ink = shade(row["share"], 0, 0.3, "Oranges")
            of = f"{row['called_fake']:,} of {row['photographs']:,}"
            bound = f"\N{LESS-THAN OR EQUAL TO} {percent(row['at_most'])}"
            title = f"{detector} calls {of} photographs of {source or 'no source'} fake; at most "
            title += f"{percent(row['at_most'])} of such, with 95 % confidence"
            text = percent(row["share"])
            found.append(Cell(text, f"{of}; {bound}", title, background, ink))
        table.rows.append((detector, found))
    return table


def localisation(rows: pd.DataFrame) -> Table:
    """Heatmaps against masks, detectors and generators down, measures across."""
    names = {"pixel_auroc": "pixel AUROC", "iou": "IoU", "f1": "F1"}
    columns = [*names.values(), "masked images", "threshold", "marked of photographs"]
    table = Table("Means over images", "detector, generator", columns)
    for _, row in rows.iterrows():
        cells = [Cell(number(row[name]), _span(row, name)) for name in names]
        cells.append(Cell(f"{row['n_masked']:,}"))
        chosen = f"chosen on {row['n_validation']:,} others" if row["n_validation"] else ""
        cells.append(Cell(number(row["threshold"]), chosen))
        cells.append(Cell(percent(row["real_marked"]), f"of {row['n_real']:,} photographs"))
        table.rows.append((f"{row['detector']}, {row['generator']}", cells))
    return table


def shade(
    value: float, low: float = 0.0, high: float = 1.0, colours: str = "RdBu"
) -> tuple[str, str]:
    """Background and ink of a value: with `RdBu`, white is chance, blue right, red wrong."""
    if not np.isfinite(value):
        return "", ""
    background = matplotlib.colormaps[colours](np.clip((value - low) / (high - low), 0, 1))
    # Relative luminance after WCAG 2: the ink that stands out more.
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in background[:3]
    )
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return to_hex(background), "#000000" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "#ffffff"


def tex_table(results: pd.DataFrame) -> str:
    """AUROC of detectors and generators, clean, every protocol, for the package booktabs."""
    rows = results[results["degradation"] == CLEAN.label]
    generators = sorted(dict.fromkeys(rows["generator"]), key=lambda name: name != ALL)
    lines = [
        "% AUROC with 95 % bootstrap intervals, written by ganscope. Needs \\usepackage{booktabs}.",
        f"\\begin{{tabular}}{{l{'r' * len(generators)}}}",
        "\\toprule",
        " & ".join(["detector", *(tex(name) for name in generators)]) + " \\\\",
    ]
    for protocol in protocols(rows):
        part = rows[rows["protocol"] == protocol]
        whole = comparable(part, "generator")
        top = part[whole].groupby("generator")["auroc"].max()
        title = f"\\emph{{{tex(protocol_name(protocol))}}}"
        lines += [
            "\\midrule",
            f"\\multicolumn{{{len(generators) + 1}}}{{l}}{{{title}}} \\\\",
        ]
        for detector, mine in part.groupby("detector", sort=False):
            cells = {row["generator"]: row for _, row in mine.iterrows()}
            values, spans = [], []
            for name in generators:
                row = cells.get(name)
                value = float("nan") if row is None else float(row["auroc"])
                text = f"{value:.3f}" if np.isfinite(value) else "--"
                best = row is not None and whole[row.name] and value == top[name]
                values.append(f"\\textbf{{{text}}}" if best else text)
                span = "" if row is None else _span(row, "auroc").replace("\N{EN DASH}", "--")
                spans.append(f"{{\\tiny {span}}}" if span else "")
            lines.append(" & ".join([tex(str(detector)), *values]) + " \\\\")
            if any(spans):
                lines.append(" & ".join(["", *spans]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


_TEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "|": "\\textbar{}",
}


def tex(text: str) -> str:
    """Text as LaTeX prints it: what would be a command is escaped, line breaks are spaces."""
    text = re.sub(r"[\x00-\x1f\x7f]+", " ", text)
    return "".join(_TEX.get(character, character) for character in text)
