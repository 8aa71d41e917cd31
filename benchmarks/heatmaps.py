"""Do heatmaps point at what is fake? Photographs that were changed in part, against their masks.

    python benchmarks/heatmaps.py CORPUS --autoencoder TAEF2 --detector default --n 140

CORPUS holds photographs and fakes with their sources; only the quarter that `locate.py` leaves out
is used. Each picture is changed in one place (`edited.py`), and each method's heatmap is compared
with the mask: pixel AUROC an image (1: all pixels inside are hotter than those outside, 0.5:
chance), mean and standard error over the images, for all regions that were filled (`made`), those
taken from elsewhere (`taken`), and every kind of edit. `middle` is that of a map that is hot in the
middle of every picture: regions lie anywhere, so it has nothing. `pictures.png` shows the first.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from edited import MADE, TAKEN, Edits
from locate import with_places
from sklearn.metrics import roc_auc_score

from ganscope.detector.judging.heatmaps import heatmap, overlay
from ganscope.detector.model import load_detector

KINDS = ("recon", "recon", "pipe", "pipe", *MADE[2:], "paste", "splice", "reencode")
SIDES = (330, 520)
"""Pixels: the longer sides of the photographs."""
SHOWN = 8


def main() -> None:
    options = _options()
    detector = load_detector(options.detector).eval()
    if options.places:
        detector = with_places(detector, options.places)
    edits = Edits(options.corpus, options.autoencoder, True, options.seed, SIDES)
    rows: list[dict[str, object]] = []
    pictures: list[np.ndarray] = []
    for one in edits.draw(tuple(options.kinds.split(",")), options.n):
        inside = (one.mask > 0.5).ravel()
        y, x = np.mgrid[-1 : 1 : one.mask.shape[0] * 1j, -1 : 1 : one.mask.shape[1] * 1j]
        row = {"kind": one.kind, "middle": roc_auc_score(inside, -(x**2 + y**2).ravel())}
        white = (one.mask * 255).astype(np.uint8)[..., None].repeat(3, 2)
        shown = [one.pixels, white]
        for method in options.methods.split(","):
            heat = heatmap(detector, one.pixels, method)
            row[method] = roc_auc_score(inside, heat.ravel())
            shown.append(overlay(one.pixels, heat))
        rows.append(row)
        if len(pictures) < SHOWN:
            pictures.append(np.hstack([cv2.resize(image, (320, 240)) for image in shown]))
    print(json.dumps({"detector": detector.name, **figures(pd.DataFrame(rows))}, indent=2))
    cv2.imwrite(str(options.pictures), np.vstack(pictures)[..., ::-1])


def figures(found: pd.DataFrame) -> dict[str, dict[str, object]]:
    """Of columns of pixel AUROCs: count, mean and standard error, for groups of kinds and each."""
    groups: dict[str, tuple[str, ...]] = {"made": MADE, "taken": TAKEN}
    groups |= {kind: (kind,) for kind in found["kind"].unique()}
    told: dict[str, dict[str, object]] = {}
    for name, kinds in groups.items():
        part = found[found["kind"].isin(kinds)].drop(columns="kind")
        if len(part):
            told[name] = {"images": len(part)}
            for method in part:
                spread = float(part[method].std(ddof=0) / len(part) ** 0.5)
                told[name][str(method)] = [round(float(part[method].mean()), 3), round(spread, 3)]
    return told


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus")
    parser.add_argument("--autoencoder", required=True, help="as `reconstruct:` takes it")
    parser.add_argument("--detector", default="default")
    parser.add_argument("--places", type=Path, help="a layer that locate.py wrote, in its stead")
    parser.add_argument("--n", type=int, default=140)
    parser.add_argument("--kinds", default=",".join(KINDS), help="in turn")
    parser.add_argument("--methods", default="auto", help="for example patches,tiles,gradcam")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pictures", type=Path, default=Path("pictures.png"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
