"""The images on which detectors were most sure of the wrong answer, as they saw them."""

from collections.abc import Mapping

import cv2
import numpy as np
import pandas as pd

from ganscope.datasets.alignment import Alignment
from ganscope.datasets.degradations import CLEAN
from ganscope.detector.benchmark.contestants import Scorer
from ganscope.detector.benchmark.report.page import MOST_MISTAKES, Mistake, shrunk
from ganscope.detector.benchmark.report.summary import main_protocol
from ganscope.detector.judging.heatmaps import heatmap, lay_over
from ganscope.detector.judging.metrics import ranked_by
from ganscope.detector.model import Detector
from ganscope.devices import pick_device
from ganscope.errors import GanscopeError
from ganscope.images import open_image

HEAT_PIXELS = 600 * 600
"""Larger images get no heatmap: one would take longer than the benchmark of many."""


def worst_mistakes(
    table: pd.DataFrame,
    scorers: Mapping[str, Scorer],
    alignment: Alignment | None,
    most: int = MOST_MISTAKES,
) -> list[Mistake]:
    """Photographs that a detector calls fake and fakes that it does not, at its own threshold.

    table: as in `Scores`; clean images count, aligned ones where a detector has scored such. Those
    with the highest (reals) and lowest (fakes) scores come, of every detector as many, together
    `most` or a few more.
    """
    clean = table[table["degradation"] == CLEAN.label]
    each = max(1, most // (2 * max(1, clean["detector"].nunique())))
    found = []
    for name, rows in clean.groupby("detector", sort=False):
        scorer = scorers[str(name)]
        rows = rows[rows["protocol"] == main_protocol(rows)].drop_duplicates("path")
        called = rows["score"] >= scorer.threshold
        alarms = rows[called & (rows["label"] == 0)].nlargest(each, ranked_by(rows))
        misses = rows[~called & (rows["label"] == 1)].nsmallest(each, ranked_by(rows))
        for row in pd.concat([alarms, misses]).to_dict("records"):
            try:
                pixels = _as_seen(row["path"], alignment if row["protocol"] == "aligned" else None)
            except (GanscopeError, cv2.error):  # it was there when it was scored
                continue
            about = (row["path"], row["label"], row["generator"], str(name), row["score"])
            heat = _heat(scorer, pixels)
            found.append(Mistake(*about, shrunk(pixels), None if heat is None else shrunk(heat)))
    return found


def _as_seen(path: str, alignment: Alignment | None) -> np.ndarray:
    pixels = open_image(path).pixels
    return pixels if alignment is None else alignment(pixels)


def _heat(scorer: Scorer, pixels: np.ndarray) -> np.ndarray | None:
    network: Detector | None = scorer.network
    if network is None or pixels.shape[0] * pixels.shape[1] > HEAT_PIXELS:
        return None
    try:
        heat = heatmap(network.to(pick_device(scorer.device)), pixels)
    except Exception:  # not every network has one, and a picture is not worth a benchmark
        return None
    return lay_over(pixels, heat)
