"""The model card of a trained detector: what it learned from, how it was judged, how to use it."""

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import ganscope
from ganscope.config import TrainDetectorSettings
from ganscope.detector.model import Detector


def write_card(
    run: Path, settings: TrainDetectorSettings, detector: Detector, metrics: dict[str, Any]
) -> str:
    """The model card: what it learned from, how it was judged, how to use it, what it cannot do."""
    size, thresholds, images = detector.size, detector.thresholds, metrics["images"]
    corpora = ", ".join(Path(corpus).resolve().name for corpus in settings.corpora)
    corpora = corpora or ", ".join(settings.data)
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

Trained by ganscope {ganscope.__version__} on the corpus {corpora}. {_looks(detector)}
{_learning(settings, metrics)}

## What it learned from

| split | images |
|---|---|
{learned_from}

Reals and fakes were drawn equally often; {_drawn(settings)}. Both classes went
through the same random crops and, with probability {settings.degrade:g}, the same degradations.
{alike}{_unreadable(metrics)}
## How good it is

{method}
95 % bootstrap intervals in brackets:

| split | generator | AUROC | balanced accuracy | TPR at 1 % FPR | TPR at 5 % FPR |
|---|---|---|---|---|---|
{_figures(metrics)}
{_places(metrics)}
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


def write_face_card(
    run: Path, settings: TrainDetectorSettings, detector: Detector, metrics: dict[str, Any]
) -> str:
    """The model card of a detector that learned from real faces alone."""
    size, thresholds, places = detector.size, detector.thresholds, metrics["places"]
    margin = detector.config["input"]["margin"]
    corpora = ", ".join(Path(corpus).resolve().name for corpus in settings.corpora)
    counts, photos = metrics["images"], metrics["photographs"]
    where = (
        f"Of pixels in blended validation faces: AUROC {places['pixel_auroc']:.3f}; the mean\n"
        f"intersection over union of what was changed and what it says was: {places['iou']:.2f}."
        if places["pixel_auroc"] is not None
        else "No validation face was changed in part, so where it looks was not measured."
    )
    return f"""---
library_name: ganscope
tags: [ganscope, face-manipulation, {settings.detector.replace(":", "-")}]
---
# A {settings.detector} detector of swapped and retouched faces, {size}x{size} pixels

Trained by ganscope {ganscope.__version__} on real photographs alone, of {corpora}. It looks at each
face of a picture by itself, at a square of {margin:g} times the longer side of the face's box, and
says nothing of pictures without faces.

## What it learned from

| split | photographs | real faces |
|---|---|---|
| train | {photos["train"]:,} | {counts["train"]["real"]:,} |
| val | {photos["val"]:,} | {counts["val"]["real"]:,} |

It never met a fake: each face came beside itself blended onto itself with changed colour, sharpness
and place (arXiv:2204.08376). Both went through the same cut and colours and, with probability
{settings.degrade:g}, the same degradations. It learned from masks, too, where the blended ones were
changed. The weights are an exponential average, taken after part {metrics["best_epoch"]} of
{metrics["epochs"]}.

## How good it is

On faces that it did not learn from, real ones against the same blended onto themselves. Real swaps
differ from these: measure before you rely on it. 95 % bootstrap intervals in brackets:

| split | generator | AUROC | balanced accuracy | TPR at 1 % FPR | TPR at 5 % FPR |
|---|---|---|---|---|---|
{_figures(metrics)}

{where}

The best weights, calibration and thresholds were chosen on these faces, so the figures flatter.
A score from {thresholds["fake"]:.4f} on is *fake*, one below {thresholds["real"]:.4f} is *real*,
and what lies between is *unsure*.

| {metrics["false_alarms"]["split"]} split, source | photographs | called fake | at most (95 %) |
|---|---|---|---|
{_false_alarms(metrics["false_alarms"])}

## How to use it

    ganscope check photo.jpg --detector {run}

## Limits

A verdict is evidence, not proof. It looks for borders and mismatches of blending: a face that was
generated whole, with all around it, has none. Photographs retouched by their makers may look like
fakes to it, strongly compressed or small fakes like photographs.

## How it was made

    {_command(settings)}
"""


def _looks(detector: Detector) -> str:
    """What of an image it looks at, for the card."""
    size = f"{detector.size}x{detector.size}"
    if detector.views:
        return (
            f"It looks at views of\n{size} pixels, parts at native resolution and the whole made "
            "small; the logit of an image is their\nweighted mean."
        )
    return (
        f"It looks at tiles of\n{size} pixels at native resolution; the logit of an image is the "
        "mean of its tiles'."
    )


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


def _places(metrics: dict[str, Any]) -> str:
    """How well it finds places, for the card; "" if it did not learn from masks."""
    if "places" not in metrics:
        return ""
    places = metrics["places"]
    if places["pixel_auroc"] is None:
        return "\nIt learned from masks; no validation image was changed in part to measure by.\n"
    return (
        "\nIt learned from masks where images are fake, too. In crops of validation images that "
        f"were\nchanged in part: pixel AUROC {places['pixel_auroc']:.3f}, mean intersection over "
        f"union {places['iou']:.2f}.\n"
    )


def _unreadable(metrics: dict[str, Any]) -> str:
    """A line on images that were left out, for the card."""
    count = metrics["unreadable"]
    if not count:
        return ""
    return f"\n{count:,} images could not be read: they are in none of the splits and figures.\n"


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
