"""Pictures of measurements, written atomically as PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score, roc_curve

from ganscope.config import replacing


def _save(figure: Figure, path: str | Path) -> None:
    with replacing(path) as part:
        figure.savefig(part, dpi=130, format="png")


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)


def draw_roc(path: str | Path, curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """ROC curves, one for each name -> (labels, scores); beside them the low false-alarm end."""
    figure = Figure(figsize=(9.5, 4.4), layout="constrained")
    whole, low = figure.subplots(1, 2)
    for name, (labels, scores) in curves.items():
        if len(set(np.asarray(labels).tolist())) < 2:
            continue
        fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
        label = f"{_short(name)}  {roc_auc_score(labels, scores):.3f}"
        whole.plot(fpr, tpr, label=label, linewidth=1.6)
        low.step(np.maximum(fpr, 1e-4), tpr, where="post", linewidth=1.6)
    whole.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle="--")
    low.set_xscale("log")
    low.axvline(0.01, color="0.6", linewidth=0.8, linestyle="--")
    for axes, title in ((whole, "ROC"), (low, "few false alarms (logarithmic)")):
        axes.set(title=title, xlabel="false-positive rate", ylabel="true-positive rate")
        axes.set_ylim(-0.01, 1.01)
        _plain(axes)
    low.set_xlim(1e-3, 1)
    if whole.lines[:-1]:
        whole.legend(title="AUROC", frameon=False, fontsize=8, loc="lower right")
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

    results: columns detector, generator, degradation and the metric.
    """
    degradations = _in_order(results["degradation"])
    detectors, generators = _in_order(results["detector"]), _in_order(results["generator"])
    across = min(len(degradations), 2)
    down = -(-len(degradations) // across)
    width = across * (1.8 + 0.95 * len(generators)) + 0.8
    height = down * (1.3 + 0.45 * len(detectors)) + 0.6
    figure = Figure(figsize=(max(width, 5), max(height, 2.6)), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    image = None
    for place, axes in enumerate(grid.flat):
        if place >= len(degradations):
            axes.axis("off")
            continue
        part = results[results["degradation"] == degradations[place]]
        values = (
            part.pivot_table(index="detector", columns="generator", values=metric, dropna=False)
            .reindex(index=detectors, columns=generators)
            .to_numpy(float)
        )
        image = axes.imshow(values, cmap="RdYlBu", vmin=0.4, vmax=1.0, aspect="auto")
        axes.set_title(degradations[place], fontsize=10)
        axes.set_xticks(range(len(generators)), generators, rotation=35, ha="right", fontsize=8)
        axes.set_yticks(range(len(detectors)), [_short(d) for d in detectors], fontsize=8)
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


def _in_order(values: Sequence[str] | pd.Series) -> list[str]:
    return list(dict.fromkeys(values))


def _short(name: str, most: int = 28) -> str:
    return name if len(name) <= most else "..." + name[-most + 3 :]
