"""After the last epoch: calibration, thresholds, evaluation, pictures and the model card."""

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch

import ganscope
from ganscope.config import TrainDetectorSettings, write_json, write_text
from ganscope.detector.judging import plots
from ganscope.detector.judging.calibration import (
    calibrate,
    choose_thresholds,
    count_called,
)
from ganscope.detector.judging.metrics import NAMES, evaluate_by_generator
from ganscope.detector.judging.scoring import score_images
from ganscope.detector.model import SMALLEST, Detector
from ganscope.detector.training.views import Views
from ganscope.errors import ImageError

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
    scores = score_table(detector, views, table[table["split"] != "train"], settings.batch_size)
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
    images = _counts(table)
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
        "compressed_alike": any(views.qualities.values()),
    }
    for name in splits:
        part = scores[judged & (scores["split"] == name)]
        metrics[name] = _evaluate(part, detector.thresholds["fake"])
    detector.config["training"]["images"] = images
    detector.config["versions"] = {
        "ganscope": ganscope.__version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
    }
    detector.card = _card(run, settings, detector, metrics)
    write_text(run / SCORES, scores.to_csv(index=False))
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
    """`table` with logit and score of each whole image, scored as `check` does: by native tiles;
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


def _evaluate(scores: pd.DataFrame, threshold: float) -> dict[str, Any]:
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


def _card(
    run: Path, settings: TrainDetectorSettings, detector: Detector, metrics: dict[str, Any]
) -> str:
    """The model card: what it learned from, how it was judged, how to use it, what it cannot do."""
    size, thresholds, images = detector.size, detector.thresholds, metrics["images"]
    corpora = ", ".join(Path(corpus).resolve().name for corpus in settings.corpora)
    held_out = ", ".join(sorted(set(images["val"]) - set(images["train"])))
    method = (
        f"Validated on photographs and on generators that training never saw: {held_out}."
        if held_out
        else "Validated on other images of the generators it was trained on: expect less on others."
    )
    alike = (
        "\nLossless images of one class were first compressed as JPEG like the other's files, in\n"
        "training and for the figures below: the file format must not tell.\n"
        if metrics["compressed_alike"]
        else ""
    )
    learned_from = "\n".join(
        f"| {split} | {', '.join(f'{count:,} {name}' for name, count in counts.items())} |"
        for split, counts in images.items()
    )
    return f"""---
library_name: ganscope
tags: [ganscope, generated-image-detection, {settings.detector.replace(":", "-")}]
---
# A {settings.detector} detector of generated images, {size}x{size} pixels

Trained by ganscope {ganscope.__version__} on the corpus {corpora}. It looks at tiles of
{size}x{size} pixels at native resolution; the logit of an image is the mean of its tiles'.
{_learning(settings, metrics)}

## What it learned from

| split | images |
|---|---|
{learned_from}

Reals and fakes were drawn equally often; {_drawn(settings)}. Both classes went
through the same random crops and, with probability {settings.degrade:g}, the same degradations.
{alike}
## How good it is

{method}
95 % bootstrap intervals in brackets:

| split | generator | AUROC | balanced accuracy | TPR at 1 % FPR | TPR at 5 % FPR |
|---|---|---|---|---|---|
{_figures(metrics)}

Epoch, calibration and thresholds were chosen on the val split, so its figures flatter; those of a
test split, where there is one, do not.

A score from {thresholds["fake"]:.4f} on is *fake*, one below {thresholds["real"]:.4f} is *real*,
and what lies between is *unsure*. Of the validation reals at most 1 % score
{thresholds["fpr_1"]:.4f} or more, at most 5 % {thresholds["fpr_5"]:.4f} or more; the threshold of
*fake* is set with a margin for how few they are. The probability is calibrated on the val split for
equally many reals and fakes. Images with a side of less than {detector.smallest} pixels get no
verdict and have no part in this.

| {metrics["false_alarms"]["split"]} split, source | photographs | called fake | at most (95 %) |
|---|---|---|---|
{_false_alarms(metrics["false_alarms"])}

## How to use it

    ganscope check photo.jpg --detector {run}

## Limits

A verdict is evidence, not proof. It says little about generators, cameras and processing unlike
those above, about strongly compressed or shrunk copies, and about photographs edited only in parts.

## How it was made

    {_command(settings)}

It ran in {detector.config["training"].get("precision", "fp32")}; with that as --precision, the same
seed gives the same weights on such a machine.
"""


def _drawn(settings: TrainDetectorSettings) -> str:
    """How often what was drawn, for the card."""
    if settings.pairs is None:
        return (
            "of each class, what one source and generator made came by the square root\n"
            "of its number"
        )
    return (
        f"{settings.pairs:.0%} of the fakes came from generators\n"
        "that worked on the photographs beside them, where there are such and others, and in each "
        "kind the\ngenerators came equally often"
    )


def _learning(settings: TrainDetectorSettings, metrics: dict[str, Any]) -> str:
    """How the weights came about, for the card."""
    if settings.recipe == "frozen-linear":
        start = settings.pretrained or "random weights"
        said = (
            f"A linear classifier on a frozen backbone ({start}), which looked at each image "
            f"{settings.epochs} times."
        )
    elif settings.recipe == "finetune" and settings.soup == 1:
        start = settings.pretrained or "random weights"
        said = (
            f"Adapters of rank {settings.rank} on a transformer ({start}), learned with a "
            "classifier on its\nblocks and merged into its weights, an exponential average."
        )
    elif settings.soup > 1:
        said = (
            f"The weights are the mean of {settings.soup} trainings that differ by their seeds, "
            f"each an exponential average; {metrics['epochs']} epochs in all."
        )
    else:
        said = (
            f"The weights are an exponential average, taken after epoch {metrics['best_epoch']} "
            f"of {metrics['epochs']}."
        )
    if settings.fuse:
        said += f" Its logit is joined to that of {Path(settings.fuse).name}."
    return said


def _figures(metrics: dict[str, Any]) -> str:
    """The rows of the card's table."""
    shown = ("auroc", "balanced_accuracy", "tpr_at_fpr_1", "tpr_at_fpr_5")
    rows = []
    for split in ("val", "test"):
        if split in metrics:
            for name, found in {
                "all": metrics[split]["overall"],
                **metrics[split]["by_generator"],
            }.items():
                cells = (_with_interval(found[m]) for m in shown)
                rows.append(f"| {split} | {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _with_interval(found: dict[str, float | None]) -> str:
    if found["value"] is None:
        return "-"
    span = "" if found["low"] is None else f" ({found['low']:.3f}-{found['high']:.3f})"
    return f"{found['value']:.3f}{span}"


def _false_alarms(found: dict[str, Any]) -> str:
    """The rows of the card's second table."""
    return "\n".join(
        f"| {name} | {row['photographs']:,} | {row['called_fake']:,} | {row['at_most']:.1%} |"
        for name, row in {"all": found, **found["by_source"]}.items()
    )


def _command(settings: TrainDetectorSettings) -> str:
    """The command line that gives these settings."""
    words = ["ganscope train-detector", *(shlex.quote(str(c)) for c in settings.corpora)]
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name == "corpora" or value == field.default:
            continue
        flag = "--" + field.name.replace("_", "-")
        words += [
            flag if one is True else f"{flag} {shlex.quote(str(one))}"
            for one in (value if isinstance(value, tuple) else (value,))
        ]
    return " ".join(words)
