"""What a benchmark found, in plain words: the summary at the top of its report.

Every sentence is made of numbers in the tables, with their intervals; where both protocols were
measured, those of `aligned` are told, since files as they are may give the answer away.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from ganscope.datasets.degradations import CLEAN
from ganscope.detector.judging.calibration import false_alarm_bound
from ganscope.detector.judging.metrics import NAMES, against_generators, ranked_by
from ganscope.errors import counted

ALL, MEAN = "all", "mean"
ENOUGH = 0.9
"""Share of the images that any other detector scored, below which one is not compared with it."""
"""Rows over all generators: their fakes pooled; where no row is, the mean of the generators'."""
FEW = 100
"""Images of a class below which the summary warns: 1 % of them is less than one."""
SIGNIFICANT = 0.05
NAMED = 4
"""Names or kinds that a text lists before it counts the rest."""


@dataclass(frozen=True)
class Finding:
    """A sentence or two of the summary; `figure` is its number as text, or empty."""

    title: str
    text: str
    figure: str = ""
    unit: str = ""


def main_protocol(results: pd.DataFrame) -> str:
    """The protocol that the summary speaks of: `aligned` where there is one that says anything."""
    known = results[results["auroc"].notna()] if "auroc" in results else results
    protocols = list(dict.fromkeys((known if len(known) else results)["protocol"]))
    return "aligned" if "aligned" in protocols else protocols[0]


def overall(results: pd.DataFrame) -> pd.DataFrame:
    """A row for each detector, protocol and degradation, over all generators.

    That is the row `all`; without one the only generator's, or a row `mean` without intervals.
    """
    rows = []
    keys = ["detector", "protocol", "degradation"]
    for _, part in results.groupby(keys, sort=False):
        pooled = part[part["generator"] == ALL]
        row = (pooled if len(pooled) else part).iloc[0].copy()
        if not len(pooled) and len(part) > 1:
            row["generator"], row["remark"] = MEAN, ""
            row["n_real"], row["n_fake"] = part["n_real"].max(), part["n_fake"].sum()
            for name in NAMES:
                row[name] = part[name].mean()
                row[f"{name}_low"] = row[f"{name}_high"] = float("nan")
        rows.append(row)
    return pd.DataFrame(rows).reset_index(drop=True).infer_objects()


def comparable(rows: pd.DataFrame, by: str = "degradation") -> pd.Series:
    """Whether each row has nearly as many images as any of the same generator, or whatever `by`
    names: one of easy images alone would be the best.
    """
    counts = rows["n_real"] + rows["n_fake"]
    return counts >= ENOUGH * counts.groupby(rows[by]).transform("max")


def best_detector(results: pd.DataFrame) -> str | None:
    """The detector of the highest AUROC over all generators, clean, by the main protocol."""
    ranking = _ranking(results)
    return str(ranking["detector"].iloc[0]) if len(ranking) else None


def find(
    results: pd.DataFrame,
    scores: pd.DataFrame,
    about: dict[str, Any],
    comparisons: pd.DataFrame | None = None,
    alarms: pd.DataFrame | None = None,
    audit: dict[str, Any] | None = None,
) -> tuple[list[Finding], list[Finding]]:
    """Findings and warnings, both in the order of the page; tables as `write_report` takes them."""
    findings = [
        _best(results, comparisons),
        _hardest(results),
        _format(results, scores),
        _degraded(results),
        _alarms(results, scores, about, alarms),
        _audit(audit),
    ]
    return [f for f in findings if f], [*_remarks(results), *_few(results), *_left_out(about)]


def levels(videos: pd.DataFrame | None, localisation: pd.DataFrame | None) -> list[Finding]:
    """What is found of whole videos, and of places within images."""
    found = []
    if videos is not None:
        row = _ranking(videos.assign(remark="")).head(1)
        for _, best in row.iterrows():
            count = best["n_real"] + best["n_fake"]
            text = f"{best['detector']}: AUROC {number(best['auroc'])}{interval(best, 'auroc')} on "
            text += f"{count:,} whole videos, by the mean over their frames."
            found.append(Finding("Whole videos", text, number(best["auroc"]), "AUROC"))
    if localisation is not None and localisation["pixel_auroc"].notna().any():
        pooled = localisation[localisation["generator"] == ALL]
        pooled = pooled if len(pooled) else localisation
        best = pooled.loc[pooled["pixel_auroc"].idxmax()]
        text = f"{best['detector']}: its heatmaps part changed pixels from others with an AUROC of "
        text += f"{number(best['pixel_auroc'])}{interval(best, 'pixel_auroc')}, in the mean of "
        text += f"{best['n_masked']:,} masked images"
        if np.isfinite(best["iou"]):
            text += (
                f"; above a threshold chosen on {best['n_validation']:,} others, what is marked "
            )
            text += f"and what was changed have an IoU of {number(best['iou'])}"
            text += f"{interval(best, 'iou')}"
        found.append(
            Finding("Where it was changed", text + ".", number(best["pixel_auroc"]), "AUROC")
        )
    return found


def _ranking(results: pd.DataFrame) -> pd.DataFrame:
    rows = overall(results[results["protocol"] == main_protocol(results)])
    rows = rows[(rows["degradation"] == CLEAN.label) & rows["auroc"].notna()]
    rows = rows[comparable(rows)]
    return rows.sort_values("auroc", ascending=False, kind="stable")


def _best(results: pd.DataFrame, comparisons: pd.DataFrame | None) -> Finding | None:
    ranking = _ranking(results)
    if not len(ranking):
        return None
    row = ranking.iloc[0]
    where = {ALL: "over all generators", MEAN: "in the mean of the generators"}.get(
        row["generator"], f"on {row['generator']}"
    )
    text = f"AUROC {number(row['auroc'])}{interval(row, 'auroc')} {where}{_how(results)}."
    if row["auroc_low"] <= 0.5:
        text += " That cannot be told from guessing."
    if len(ranking) > 1:
        text += _ahead(row, ranking.iloc[1], comparisons)
    if row["remark"]:
        text += f" But: {row['remark']}."
    alone = results["detector"].nunique() == 1
    title = f"{'The detector' if alone else 'Best detector'}: {row['detector']}"
    return Finding(title, text, number(row["auroc"]), "AUROC")


def _how(results: pd.DataFrame) -> str:
    if results["protocol"].nunique() > 1 and main_protocol(results) == "aligned":
        return ", both classes saved alike"
    return ""


def _ahead(row: pd.Series, second: pd.Series, comparisons: pd.DataFrame | None) -> str:
    """By how much the best is ahead of the second, and whether that may be chance."""
    found = _compared(row, second["detector"], comparisons)
    if found is None:
        lead = number(row["auroc"] - second["auroc"])
        return f" It is ahead of {second['detector']} by {lead}; whether by chance was not tested."
    difference, low, high, p = found
    span = f" (95 % interval {number(low)} to {number(high)})" if np.isfinite(low) else ""
    text = f" It is ahead of {second['detector']} by {number(difference)}{span}"
    if not np.isfinite(p):
        return f"{text}; whether by chance could not be tested."
    chance = f"{p_value(p)} after correction for multiple comparisons"
    if p < SIGNIFICANT:
        return f"{text}, which is significant ({chance})."
    return f"{text}, which is not significant ({chance}): these images cannot tell the two apart."


def _compared(
    row: pd.Series, other: str, comparisons: pd.DataFrame | None
) -> tuple[float, float, float, float] | None:
    """Difference row - other, its interval, and the adjusted p-value; None if not compared."""
    if comparisons is None:
        return None
    same = comparisons
    for key in ("protocol", "generator", "degradation"):
        same = same[same[key] == row[key]]
    for one, two, sign in ((row["detector"], other, 1), (other, row["detector"], -1)):
        pair = same[(same["detector"] == one) & (same["other"] == two)]
        if len(pair):
            first = pair.iloc[0]
            low, high = sorted((sign * first["low"], sign * first["high"]))
            return sign * first["difference"], low, high, first["p_adjusted"]
    return None


def _hardest(results: pd.DataFrame) -> Finding | None:
    best = best_detector(results)
    rows = results[
        (results["protocol"] == main_protocol(results))
        & (results["degradation"] == CLEAN.label)
        & (results["generator"] != ALL)
        & results["auroc"].notna()
    ]
    mine = rows[rows["detector"] == best]
    if len(mine) < 2:
        return None
    worst = mine.loc[mine["auroc"].idxmin()]
    text = (
        f"Of {len(mine)} generators {best} knows the fakes of {worst['generator']} worst: AUROC "
        f"{number(worst['auroc'])}{interval(worst, 'auroc')}{_how(results)}."
    )
    if worst["auroc_low"] <= 0.5:
        text += " That cannot be told from guessing."
    rivals = rows[rows["generator"] == worst["generator"]]
    rival = rivals.loc[rivals["auroc"].idxmax()]
    if rival["detector"] != best:
        text += f" {rival['detector']} does best on them, {number(rival['auroc'])}."
    elif len(rivals) > 1:
        text += " No other detector does better on them."
    return Finding(f"Hardest generator: {worst['generator']}", text, number(worst["auroc"]))


def format_gap(scores: pd.DataFrame) -> pd.DataFrame:
    """AUROC on files as they are, less that on the same files saved alike, clean: what the format
    gives away. scores: as `write_report` takes them. Columns detector, generator, raw, aligned,
    gap; empty without both protocols.
    """
    rows = []
    clean = scores[scores["degradation"] == CLEAN.label]
    by = ["detector", *(["left_out"] if "left_out" in clean else [])]
    for names, part in clean.groupby(by, sort=False):
        both = part.pivot(index="image", columns="protocol", values=ranked_by(part))
        if not {"raw", "aligned"} <= set(both.columns):
            continue
        about = part.drop_duplicates("image").set_index("image")[["label", "generator"]]
        for generator, cell in against_generators(both.dropna().join(about)):
            y = cell["label"].to_numpy()
            if len(set(y.tolist())) == 2:
                raw, aligned = (roc_auc_score(y, cell[name]) for name in ("raw", "aligned"))
                rows.append((names[0], generator, raw, aligned, raw - aligned))
    return pd.DataFrame(rows, columns=["detector", "generator", "raw", "aligned", "gap"])


def _format(results: pd.DataFrame, scores: pd.DataFrame) -> Finding | None:
    """AUROC on files as they are, less that on files saved alike."""
    rows = format_gap(scores)
    pooled = rows[rows["generator"] == ALL].set_index("detector")[["raw", "aligned"]]
    means = rows.groupby("detector", sort=False)[["raw", "aligned"]].mean()
    table = pooled.combine_first(means).reindex(means.index)
    gap = table["raw"] - table["aligned"]
    if not len(gap):
        return None
    best = best_detector(results)
    most = str(gap.idxmax())

    def told(name: str) -> str:
        raw, aligned = table.loc[name, "raw"], table.loc[name, "aligned"]
        return f"{name} has AUROC {number(raw)} on files as they are, {number(aligned)} on files"

    shown = best if best in gap.index else most
    text = f"{told(str(shown))} of both classes saved alike."
    if abs(gap[shown]) < 0.01:
        text += " The format tells it next to nothing."
    if most != shown and gap[most] > gap[shown]:
        text += f" The format helps {most} most: {number(table.loc[most, 'raw'])} becomes "
        text += f"{number(table.loc[most, 'aligned'])}."
    return Finding("What the file format gives away", text, signed(gap[shown]), "AUROC")


def _degraded(results: pd.DataFrame) -> Finding | None:
    best, protocol = best_detector(results), main_protocol(results)
    rows = results[(results["detector"] == best) & (results["protocol"] == protocol)]
    if not len(rows):
        return None
    values = overall(rows).dropna(subset="auroc").set_index("degradation")
    if CLEAN.label not in values.index or len(values) < 2:
        return None
    clean = values.loc[CLEAN.label, "auroc"]
    hurt = values.drop(index=CLEAN.label).sort_values("auroc", kind="stable")
    worst: dict[str, pd.Series] = {}
    for name, row in hurt.iterrows():
        worst.setdefault(str(name).partition(":")[0], row.rename(str(name)))
    parts = [
        f"{in_words(str(row.name))}: {number(row['auroc'])}{interval(row, 'auroc', '95 %')}"
        for row in list(worst.values())[:NAMED]
    ]
    if len(worst) > NAMED:
        parts.append(f"{len(worst) - NAMED} other kinds cost less")
    first = hurt.iloc[0]
    text = f"Of {best}'s {number(clean)} remains, at the worst, after " + "; ".join(parts) + "."
    return Finding(
        "Compression, shrinking and the like",
        text,
        signed(first["auroc"] - clean),
        f"AUROC, {in_words(str(hurt.index[0]))}",
    )


def _alarms(
    results: pd.DataFrame, scores: pd.DataFrame, about: dict[str, Any], alarms: pd.DataFrame | None
) -> Finding | None:
    best, protocol = best_detector(results), main_protocol(results)
    if alarms is None or best is None:
        return None
    rows = _cell(alarms, best, protocol)
    rows = rows[rows["photographs"] > 0]
    if not len(rows):
        return None
    called, photographs = int(rows["called_fake"].sum()), int(rows["photographs"].sum())
    text = (
        f"At its own threshold {best} calls {called:,} of {photographs:,} photographs fake (with "
        f"95 % confidence at most {percent(false_alarm_bound(called, photographs))} of such)."
    )
    worst = rows.loc[rows["share"].idxmax()]
    if called and len(rows) > 1:
        text += (
            f" Most from {worst['source']}: {worst['called_fake']:,} of {worst['photographs']:,}."
        )
    fakes = _cell(scores, best, protocol)
    fakes = fakes[fakes["label"] == 1]
    threshold = about.get("thresholds", {}).get(best)
    if threshold is not None and len(fakes):
        text += f" It finds {percent((fakes['score'] >= threshold).mean())} of the fakes there."
    return Finding("False alarms", text, percent(called / photographs), "of photographs")


def _cell(table: pd.DataFrame, detector: str, protocol: str) -> pd.DataFrame:
    """The rows of one detector and protocol, clean."""
    return table[
        (table["detector"] == detector)
        & (table["protocol"] == protocol)
        & (table["degradation"] == CLEAN.label)
    ]


def _audit(audit: dict[str, Any] | None) -> Finding | None:
    if not audit:
        return None
    low, high = audit["interval"]
    text = (
        "How well container, size and quality of the files alone tell real from fake, before "
        f"anyone looks at a picture (95 % interval {number(low)} to {number(high)}); 0.5 is fair."
    )
    if audit["clues"]:
        clue, auroc = max(audit["clues"], key=lambda found: found[1])
        text += f" The strongest clue: {clue}, {number(auroc)}."
    return Finding("The files' outsides", text, number(audit["auroc"]), "AUROC")


def _remarks(results: pd.DataFrame) -> list[Finding]:
    """Each remark of the results once, with the cells that it is about."""
    found = []
    for remark, rows in results[results["remark"] != ""].groupby("remark", sort=False):
        cells = [
            f"{detector} ({listed(part['generator'])}; {listed(part['degradation'].map(in_words))})"
            for detector, part in rows.groupby("detector", sort=False)
        ]
        title, _, rest = str(remark).partition(": ")
        found.append(Finding(_capital(title), (f"{rest}: " if rest else "") + "; ".join(cells)))
    return found


def _few(results: pd.DataFrame) -> list[Finding]:
    few = results[(results["generator"] != ALL) & results["n_fake"].between(1, FEW - 1)]
    fakes = few.groupby("generator", sort=False)["n_fake"].min()
    reals = int(results["n_real"].min())
    parts = [listed([f"{count} fakes of {name}" for name, count in fakes.items()])]
    if 0 < reals < FEW:
        parts.insert(0, f"{reals} reals (1 % of them is less than one photograph)")
    parts = [part for part in parts if part]
    if not parts:
        return []
    return [Finding("Few images", f"{'; '.join(parts)}. Read the intervals, not the values.")]


def _left_out(about: dict[str, Any]) -> list[Finding]:
    found = [
        Finding(title, str(text))
        for name, title in (("missing", "Missing"), ("notes", "Not measured"))
        for text in about.get(name, ())
    ]
    if count := len(about.get("unreadable", ())):
        text = counted(count, "image is", "images are")
        found.append(Finding("Unreadable", f"{text} left out; see the end of this page."))
    return found


def in_words(degradation: str) -> str:
    """`jpeg:75` as "JPEG 75", `resize:0.5` as "resized x 0.5"; others as they are."""
    name, _, value = degradation.partition(":")
    words = {"jpeg": "JPEG", "webp": "WebP", "resize": "resized \N{MULTIPLICATION SIGN}"}
    return f"{words.get(name, name)} {value}".strip()


def listed(names: Sequence[str] | pd.Series) -> str:
    """Names with commas, each once; after `NAMED` of them the others are counted."""
    names = [str(name) for name in dict.fromkeys(names)]
    more = [f"{len(names) - NAMED} more"] if len(names) > NAMED else []
    return ", ".join([*names[:NAMED], *more])


def number(value: float) -> str:
    """Three decimals; a dash where there is no number."""
    return f"{value:.3f}".replace("-", "\N{MINUS SIGN}") if np.isfinite(value) else "\N{EN DASH}"


def signed(value: float) -> str:
    return f"+{number(value)}" if value > 0 else number(value)


def percent(value: float) -> str:
    """A share in [0, 1] as per cent, with a decimal below 10 %."""
    if not np.isfinite(value):
        return "\N{EN DASH}"
    return f"{100 * value:.{0 if value >= 0.1 or value == 0 else 1}f} %"


def p_value(value: float) -> str:
    return f"p {chance(value)}" if value < 0.001 else f"p = {chance(value)}"


def chance(value: float) -> str:
    """A p-value, which is never 0."""
    return "< 0.001" if value < 0.001 else number(value)


def interval(row: pd.Series, metric: str, name: str = "95 % interval") -> str:
    """` (95 % interval 0.912 to 0.951)`, or nothing where there is none."""
    low, high = row[f"{metric}_low"], row[f"{metric}_high"]
    return f" ({name} {number(low)} to {number(high)})" if np.isfinite(low) else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
