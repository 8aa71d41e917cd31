"""After the last epoch: calibration, thresholds, evaluation and pictures."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch

import ganscope
from ganscope.config import TrainDetectorSettings, write_json, write_text
from ganscope.datasets.copies import name_some
from ganscope.detector.judge import SMALLEST
from ganscope.detector.judging import plots
from ganscope.detector.judging.calibration import (
    calibrate,
    choose_thresholds,
    count_called,
)
from ganscope.detector.judging.metrics import NAMES, evaluate_by_generator
from ganscope.detector.judging.scoring import score_images
from ganscope.detector.model import Detector
from ganscope.detector.training.card import write_card
from ganscope.detector.training.record import (
    STREAMED,
    learned_from,
    start_record,
    starts_from_a_detector,
)
from ganscope.detector.training.views import Views
from ganscope.errors import GanscopeWarning, ImageError
from ganscope.files import csv_text

METRICS, SCORES = "metrics.json", "scores.csv"
ENOUGH, LISTED = 5, 10
"""Validation images of each class without which nothing can be chosen or set; photographs of a
source without which its false alarms are not listed."""


def finish_run(
    run: Path,
    settings: TrainDetectorSettings,
    detector: Detector,
    views: Views,
    table: pd.DataFrame,
    log: list[dict[str, Any]],
) -> None:
    """Calibrate on the val split, evaluate on val and test, and write the run folder's files.

    The detector's configuration comes last: it marks the run finished.
    """
    # The weights are saved in half precision; what is measured here is what will be loaded.
    detector.load_state_dict(
        {
            k: v.half().float() if v.is_floating_point() else v
            for k, v in detector.state_dict().items()
        }
    )
    bad = pd.DataFrame(table.attrs.get("unreadable", []))
    judged_by = table[table["split"] != "train"]
    scores = score_table(detector, views, judged_by, settings.batch_size)
    lost = judged_by[~judged_by["file_name"].isin(scores["file_name"])]
    if len(lost):
        warnings.warn(
            f"{len(lost):,} of {len(judged_by):,} validation and test images can no longer be read "
            f"and have no score: {name_some(lost['file_name'].tolist())}",
            GanscopeWarning,
            stacklevel=2,
        )
        bad = pd.concat([bad, lost.assign(reason="could no longer be read")])
    detector.config["input"]["smallest"] = SMALLEST
    judged = pd.Series(True, scores.index)
    if are_large(scores[scores["split"] == "val"], detector.size):
        detector.config["input"]["smallest"] = detector.size
        judged = scores["side"] >= detector.size
    val = scores[judged & (scores["split"] == "val")]
    detector.config["calibration"] = calibrate(val["logit"].to_numpy(), val["label"].to_numpy())
    photographs = val["group"].where(val["group"] != "", val["file_name"])
    detector.config["thresholds"] = choose_thresholds(
        val["score"].to_numpy(),
        val["label"].to_numpy(),
        val["source"].to_numpy(str),
        photographs.to_numpy(),
    )
    scores["probability"] = detector.probability(scores["logit"])
    verdicts = np.array([detector.verdict(score) for score in scores["score"]])
    scores["verdict"] = np.where(judged, verdicts, "unsure")
    splits = [name for name in ("val", "test") if (scores["split"] == name).any()]
    reals = scores[judged & (scores["label"] == 0)]
    detector.config["false_alarms"] = count_false_alarms(
        reals[reals["split"] == ("test" if (reals["split"] == "test").any() else "val")]
    )
    found = val.loc[val["label"] == 1, "score"] >= detector.thresholds["fake"]
    streamed = table.attrs.get(STREAMED)
    images = ({"train": streamed} if streamed else {}) | _counts(table)
    metrics: dict[str, Any] = {
        "epochs": len(log),
        "best_epoch": detector.config["training"].get("best_epoch"),
        "calibration": detector.config["calibration"],
        "thresholds": detector.thresholds,
        "false_alarms": detector.config["false_alarms"],
        "val_fakes_found": float(found.mean()),
        "val_photographs": int(photographs[val["label"] == 0].nunique()),
        "images": images,
        "dropped": table.attrs["dropped"],
        "unreadable": len(bad),
        "compressed_alike": any(views.qualities.values()),
    }
    if settings.masks:
        best = log[(metrics["best_epoch"] or len(log)) - 1]
        places = {"pixel_auroc": best["val_pixel_auroc"], "iou": best["val_iou"]}
        metrics["places"] = {k: None if np.isnan(v) else float(v) for k, v in places.items()}
    for name in splits:
        part = scores[judged & (scores["split"] == name)]
        metrics[name] = evaluate(part, detector.thresholds["fake"])
    detector.config["training"]["images"] = images
    detector.config["versions"] = {
        "ganscope": ganscope.__version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
    }
    detector.learned = learned_from(table).and_of(
        [
            *([detector.learned] if detector.learned is not None else []),
            *([start_record(settings)] if starts_from_a_detector(settings) else []),
        ]
    )
    detector.card = write_card(run, settings, detector, metrics)
    whole = scores
    if len(bad):  # a row each: nobody shall think that they were judged
        whole = pd.concat([scores, bad.rename(columns={"reason": "error"})])
    write_text(run / SCORES, csv_text(whole))
    write_json(run / METRICS, metrics)
    plots.draw_losses(run / "loss.png", pd.DataFrame(log))
    curves = {
        str(split): (part["label"].to_numpy(), part["score"].to_numpy())
        for split, part in scores.groupby("split")
    }
    plots.draw_roc(run / "roc.png", curves)
    detector.cpu().save(run)


def are_large(val: pd.DataFrame, size: int) -> bool:
    """Whether most validation images of each class have no side below `size`, that of the tiles:
    then smaller ones get no verdict and set no threshold.

    Small images hold little evidence, and their scores scatter: thresholds that had to hold for
    them, too, would be far too high for all others.
    """
    large = val["side"] >= size
    return all(
        (large & of).sum() >= max(0.5 * of.sum(), ENOUGH)
        for of in (val["label"] == 0, val["label"] == 1)
    )


def count_false_alarms(reals: pd.DataFrame) -> dict[str, Any]:
    """How many photographs there are among the reals of one split, of how many an image was called
    fake, the share that is not exceeded with 95 % confidence, and the same for each source with at
    least `LISTED` of them. Images of one group are of one photograph.
    """
    photographs = reals.assign(
        photograph=reals["group"].where(reals["group"] != "", reals["file_name"]),
        called=reals["verdict"] == "fake",
    )

    def count(rows: pd.DataFrame) -> dict[str, Any]:
        found = count_called(rows["called"].to_numpy(), rows["photograph"].to_numpy())
        return found | {"at_most": round(found["at_most"], 4)}

    sources = {str(name): count(rows) for name, rows in photographs.groupby("source")}
    return {
        **count(photographs),
        "split": str(reals["split"].iloc[0]) if len(reals) else "val",
        "by_source": {k: v for k, v in sources.items() if v["photographs"] >= LISTED},
    }


def score_table(
    detector: Detector, views: Views, table: pd.DataFrame, batch_size: int
) -> pd.DataFrame:
    """`table` with logit and score of each whole image, scored as `check` does;
    and its shorter side in pixels.

    Images that cannot be read are left out. Where one class is compressed and the other is not, the
    lossless images are compressed alike first: their format must not tell.
    """

    def image(row: int) -> str | np.ndarray:
        if any(views.qualities.values()):
            try:
                rng = np.random.default_rng((views.seed, row))
                opened = views.open(row)
                return views.neutral(opened.pixels, opened.format, row, rng)
            except ImageError:
                pass  # the scoring will say why
        return views.paths[row]

    device = str(next(detector.parameters()).device)
    found = list(score_images(detector, map(image, table.index), batch_size, device))
    table = table.assign(
        logit=[scored.logit for scored in found],
        score=[scored.score for scored in found],
        side=[min(scored.width, scored.height) for scored in found],
    )
    return table[[scored.error is None for scored in found]].reset_index(drop=True)


def evaluate(scores: pd.DataFrame, threshold: float) -> dict[str, Any]:
    """Every metric of the reals against all fakes, and against one generator at a time."""
    found = {
        row["generator"]: {
            name: {
                key: None if np.isnan(row[column]) else row[column]  # NaN is no JSON
                for key, column in (
                    ("value", name),
                    ("low", f"{name}_low"),
                    ("high", f"{name}_high"),
                )
            }
            for name in NAMES
        }
        for row in evaluate_by_generator(scores, threshold).to_dict("records")
    }
    return {"overall": found.pop("all", None) or next(iter(found.values())), "by_generator": found}


def _counts(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Split -> generator ("real" for photographs) -> number of images."""
    return {
        str(split): {str(k): int(v) for k, v in rows["generator"].value_counts().items()}
        for split, rows in table.groupby("split", sort=False)
    }
