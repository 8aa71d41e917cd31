"""Pictures of measurements: written atomically as PNG, or as SVG for the report."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve

from ganscope.config import replacing
from ganscope.datasets.degradations import CLEAN
from ganscope.detector.judging.metrics import reliability

Scored = Mapping[str, tuple[np.ndarray, ...]]
"""Name -> labels (N,), scores or probabilities (N,) and, where several trainings gave them, whose
they are (N,).
"""
REAL, FAKE = "#0072B2", "#D55E00"
"""Colours of the classes. These and the next ones differ for colour-blind people, too (Okabe and
Ito 2008, without the yellow that white paper swallows; two dark ones of Tol 2021)."""
COLOURS = (REAL, FAKE, "#009E73", "#AA4499", "#56B4E9", "#E69F00", "#333333", "#882255")
MOST_PANELS = 8
"""Tables in one picture; it takes seconds to lay out many."""
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 1.5), (1.5, 1.5), (7, 1.5, 1.5, 1.5))


def _save(figure: Figure, path: str | Path) -> None:
    with replacing(path) as part:
        figure.savefig(part, dpi=130, format="png")


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)


def trainings(
    labels: np.ndarray, scores: np.ndarray, whose: np.ndarray | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Labels and scores of each training that has images of both classes."""
    labels, scores = np.asarray(labels), np.asarray(scores)
    of = np.zeros(len(labels)) if whose is None else np.asarray(whose)
    parts = [(labels[of == one], scores[of == one]) for one in dict.fromkeys(of.tolist())]
    return [part for part in parts if len(np.unique(part[0])) == 2]


def mean_roc(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """False- and true-positive rates of one training's curve, or of the mean of several.

    A score means something else in each training, so theirs are not pooled: at each false-positive
    rate the true-positive rates are averaged. The area is the mean AUROC.
    """
    curves = [roc_curve(labels, scores)[:2] for labels, scores in parts]
    if len(curves) == 1:
        return curves[0]
    grid = np.unique(np.concatenate([fpr for fpr, _ in curves]))
    # Where a curve goes straight up, both its ends: backwards, the lower one is found.
    low = [np.interp(-grid, -fpr[::-1], tpr[::-1]) for fpr, tpr in curves]
    high = [np.interp(grid, fpr, tpr) for fpr, tpr in curves]
    return grid.repeat(2), np.stack([np.mean(low, 0), np.mean(high, 0)], axis=1).ravel()


def mean_precision(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Recall, falling, and the precision up to there: of one training, or the mean of several.

    The area is the mean AP: the precision at a recall is that of the first threshold to reach it.
    """
    curves = [precision_recall_curve(*part, drop_intermediate=True)[:2] for part in parts]
    if len(curves) == 1:
        precision, recall = curves[0]
        return recall, precision
    grid = np.unique(np.concatenate([recall for _, recall in curves]))
    found = [p[::-1][np.searchsorted(recall[::-1], grid)] for p, recall in curves]
    return grid[::-1], np.mean(found, axis=0)[::-1]


def draw_roc(path: str | Path, curves: Scored) -> None:
    """ROC curves, one for each name; beside them the low false-alarm end."""
    figure = Figure(figsize=(9.5, 4.4), layout="constrained")
    whole, low = figure.subplots(1, 2)
    low.set(xlim=(1e-3, 1), xscale="log")
    legend = "AUROC"
    for name, scored in curves.items():
        parts = trainings(*scored)
        if not parts:
            continue
        fpr, tpr = mean_roc(parts)
        if len(parts) > 1:
            legend = "mean AUROC"
        label = f"{_label(name)}  {np.mean([roc_auc_score(*part) for part in parts]):.3f}"
        whole.plot(fpr, tpr, label=label, linewidth=1.6)
        low.step(np.maximum(fpr, 1e-4), tpr, where="post", linewidth=1.6)
    whole.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle="--")
    low.axvline(0.01, color="0.6", linewidth=0.8, linestyle="--")
    for axes, title in ((whole, "ROC"), (low, "few false alarms (logarithmic)")):
        axes.set(title=title, xlabel="false-positive rate", ylabel="true-positive rate")
        axes.set_ylim(-0.01, 1.01)
        _plain(axes)
    if whole.lines[:-1]:
        whole.legend(title=legend, frameon=False, fontsize=8, loc="lower right")
    _save(figure, path)


def draw_losses(path: str | Path, log: pd.DataFrame) -> None:
    """Training and validation loss, and validation AUROC, by epoch.

    log: columns epoch, loss, val_loss, val_auroc.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(log["epoch"], log["loss"], marker="o", markersize=3, label="training")
    left.plot(log["epoch"], log["val_loss"], marker="o", markersize=3, label="validation")
    left.set(title="loss", xlabel="epoch")
    left.legend(frameon=False)
    right.plot(log["epoch"], log["val_auroc"], marker="o", markersize=3, color="tab:green")
    right.set(title="validation AUROC", xlabel="epoch")
    for axes in (left, right):
        _plain(axes)
        axes.xaxis.get_major_locator().set_params(integer=True)
    _save(figure, path)


def draw_matrix(path: str | Path, results: pd.DataFrame, metric: str = "auroc") -> None:
    """Colour tables of a metric: detectors down, generators across, a table a degradation.

    results: columns detector, generator, degradation, the metric and, if there is one, protocol.
    Where there would be more than `MOST_PANELS` tables, clean images only.
    """
    results = results.reset_index(drop=True)
    names = results["degradation"].astype(str)
    if "protocol" in results:
        names = results["protocol"] + ": " + names
    if names.nunique() > MOST_PANELS:
        names = names[results["degradation"] == CLEAN.label]
    panels = _in_order(names)
    detectors, generators = _in_order(results["detector"]), _in_order(results["generator"])
    across = min(len(panels), 2)
    down = -(-len(panels) // across)
    width = across * (1.8 + 0.95 * len(generators)) + 0.8
    height = down * (1.3 + 0.45 * len(detectors)) + 0.6
    figure = Figure(figsize=(max(width, 5), max(height, 2.6)), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    image = None
    for place, axes in enumerate(grid.flat):
        if place >= len(panels):
            axes.axis("off")
            continue
        part = results.loc[names.index[names == panels[place]]]
        values = (
            part.pivot_table(index="detector", columns="generator", values=metric, dropna=False)
            .reindex(index=detectors, columns=generators)
            .to_numpy(float)
        )
        # As in the report: white is chance, and colour-blind people see it, too.
        image = axes.imshow(values, cmap="RdBu", vmin=0.0, vmax=1.0, aspect="auto")
        axes.set_title(panels[place], fontsize=10)
        labels = [_label(name) for name in generators]
        axes.set_xticks(range(len(generators)), labels, rotation=35, ha="right", fontsize=8)
        axes.set_yticks(range(len(detectors)), [_label(d) for d in detectors], fontsize=8)
        for y, x in np.ndindex(values.shape):
            text = "-" if np.isnan(values[y, x]) else f"{values[y, x]:.2f}"
            luma = np.dot(image.to_rgba(values[y, x])[:3], (0.299, 0.587, 0.114))
            dark = not np.isnan(values[y, x]) and luma < 0.5
            ink = "white" if dark else "black"
            axes.text(x, y, text, ha="center", va="center", fontsize=9, color=ink)
        axes.spines[:].set_visible(False)
    if image is not None:
        figure.colorbar(image, ax=grid, shrink=0.8, label=metric.upper())
    _save(figure, path)


@dataclass(frozen=True)
class Line:
    """How the curves of one detector look in every figure; dashes in line widths, () = solid."""

    colour: str
    dashes: tuple[float, ...]


def lines_of(names: Sequence[str]) -> dict[str, Line]:
    """A line for each name; the first eight differ in colour, neighbours in dashes, too."""
    return {
        name: Line(COLOURS[i % len(COLOURS)], DASHES[(i + i // len(COLOURS)) % len(DASHES)])
        for i, name in enumerate(names)
    }


def roc_figure(scored: Scored, lines: Mapping[str, Line], logarithmic: bool = False) -> str:
    """ROC curves as SVG; logarithmic: the end of few false alarms, as wide as the reals allow."""
    figure, axes = _panel("false alarms: share of reals", "hits: share of fakes")
    found = {name: trainings(*values) for name, values in scored.items()}
    fewest = min((np.sum(y == 0) for parts in found.values() for y, _ in parts), default=1)
    left = 10.0 ** -np.clip(np.ceil(np.log10(max(fewest, 1))), 2, 4)
    for name, parts in found.items():
        fpr, tpr = mean_roc(parts)
        if logarithmic:
            axes.step(np.maximum(fpr, left), tpr, where="post", **_look(lines[name]))
        else:
            axes.plot(fpr, tpr, **_look(lines[name]))
    chance = np.geomspace(left, 1, 50) if logarithmic else np.array([0, 1])
    axes.plot(chance, chance, color="0.55", linewidth=0.9, linestyle=":")
    _shares(axes, "y")
    if logarithmic:
        axes.set_xscale("log")
        ticks = 10.0 ** np.arange(np.log10(left), 0.5)
        axes.set_xticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
        axes.set_xlim(left, 1)
    else:
        _shares(axes, "x")
    return as_svg(figure)


def precision_figure(scored: Scored, lines: Mapping[str, Line]) -> str:
    """Precision over recall as SVG, with the line of guessing."""
    figure, axes = _panel("recall: share of fakes found", "precision: fakes among those called so")
    found = {name: trainings(*values) for name, values in scored.items()}
    for name, parts in found.items():
        axes.step(*mean_precision(parts), where="post", **_look(lines[name]))
    guessing = [np.mean([np.mean(labels) for labels, _ in parts]) for parts in found.values()]
    shares = sorted({round(float(share), 3) for share in guessing})
    for share in shares:
        axes.axhline(share, color="0.55", linewidth=0.9, linestyle=":")
    _shares(axes, "x")
    # Where fakes are many, every precision is high.
    axes.set_ylim(max(min(shares, default=0) - 0.2, -0.01), 1.01)
    axes.yaxis.set_major_formatter(_per_cent)
    return as_svg(figure)


def reliability_figure(scored: Scored, lines: Mapping[str, Line]) -> str:
    """Share of fakes over the predicted probability, by bins, as SVG."""
    figure, axes = _panel("probability that the detector states", "share of fakes (equal odds)")
    axes.plot([0, 1], [0, 1], color="0.55", linewidth=0.9, linestyle=":")
    for name, (labels, probabilities, *_) in scored.items():
        stated, share, count = reliability(labels, probabilities)
        look = _look(lines[name]) | {"marker": "o", "markersize": 3.5}
        axes.plot(stated[count >= FEWEST_IN_BIN], share[count >= FEWEST_IN_BIN], **look)
    _shares(axes, "x")
    _shares(axes, "y")
    return as_svg(figure)


FEWEST_IN_BIN = 5
"""Images below which the reliability diagram leaves a bin out."""


def degradation_figure(
    values: Sequence[str], curves: Mapping[str, np.ndarray], lines: Mapping[str, Line], metric: str
) -> str:
    """A metric from clean to heavily degraded as SVG.

    values: names of the V steps; curves: name -> (V, 3), value and interval, NaN where unknown.
    """
    figure, axes = _panel("", metric)
    lowest = 0.5
    for place, (name, found) in enumerate(curves.items()):
        # Side by side, intervals can be told apart.
        x = np.arange(len(values)) + 0.3 * ((place + 0.5) / len(curves) - 0.5)
        axes.plot(x, found[:, 0], marker="o", markersize=3.5, **_look(lines[name]))
        axes.vlines(x, found[:, 1], found[:, 2], color=lines[name].colour, linewidth=1.1, alpha=0.7)
        lowest = np.nanmin([lowest, *found.ravel()])
    axes.axhline(0.5, color="0.55", linewidth=0.9, linestyle=":")
    axes.set_xticks(range(len(values)), values)
    axes.set_ylim(max(lowest - 0.03, -0.01), 1.01)
    return as_svg(figure)


def histogram_figure(reals: np.ndarray, fakes: np.ndarray, threshold: float | None) -> str:
    """How the scores of both classes lie, each as shares of its class, as SVG."""
    figure, axes = _panel("score", "share of the class", (3.6, 2.3))
    bins = np.linspace(0, 1, 26)
    for scores, colour in ((reals, REAL), (fakes, FAKE)):
        if len(scores):
            shares = np.histogram(scores, bins)[0] / len(scores)
            axes.stairs(shares, bins, fill=True, color=colour, alpha=0.35)
            axes.stairs(shares, bins, color=colour, linewidth=1.2)
    if threshold is not None:
        axes.axvline(threshold, color="0.2", linewidth=1, linestyle="--")
    axes.set_xlim(0, 1)
    axes.yaxis.set_major_formatter(_per_cent)
    return as_svg(figure)


def as_svg(figure: Figure) -> str:
    """A figure as SVG; the same figure always gives the same text."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "ganscope", "svg.fonttype": "path"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    # A hundredth of a point is finer than any screen; six decimals are half of the file.
    return re.sub(r' d="[^"]*"', lambda d: re.sub(r"(\.\d\d)\d+", r"\1", d[0]), text.getvalue())


def _panel(across: str, up: str, size: tuple[float, float] = (4.5, 3.7)) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=across, ylabel=up)
    _plain(axes)
    return figure, axes


def _look(line: Line) -> dict[str, Any]:
    return {"color": line.colour, "linewidth": 1.7, "linestyle": (0, line.dashes or None)}


def _shares(axes: Axes, which: str) -> None:
    """An axis from 0 to 1 in per cent."""
    ticks = np.linspace(0, 1, 6)
    axes.set(**{f"{which}lim": (-0.01, 1.01), f"{which}ticks": ticks})
    axes.set(**{f"{which}ticklabels": [f"{100 * tick:.0f} %" for tick in ticks]})


def _per_cent(share: float, _: float) -> str:
    return f"{100 * share:g} %"


def _in_order(values: Sequence[str] | pd.Series) -> list[str]:
    return list(dict.fromkeys(values))


def _label(name: str, most: int = 28) -> str:
    """A name of anybody's for a picture: short, and no mathematics."""
    short = name if len(name) <= most else "..." + name[-most + 3 :]
    return short.replace("$", r"\$")
