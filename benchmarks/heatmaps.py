"""Do heatmaps point at what is fake? Regions of fakes pasted into their own photographs.

    python benchmarks/heatmaps.py PAIRS --detector default --split test

PAIRS is a corpus of photographs and fakes made from them (`ganscope generate --generator
reconstruct:... --from ...`). Into each photograph an ellipse of its fake is laid, the whole is
saved as JPEG 95, and each method's heatmap is compared with the ellipse: pixel AUROC an image (1:
all pixels inside are hotter than those outside, 0.5: chance), mean and standard error over the
images; `middle` is that of a map that is hot in the middle of every picture, where most ellipses
are: a heatmap is worth what it has beyond that, or beside the other fakes of the same places.
`pictures.png` shows the first ones.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
from sklearn.metrics import roc_auc_score

from ganscope.datasets.corpus import open_corpus
from ganscope.datasets.degradations import jpeg
from ganscope.detector.judging.heatmaps import heatmap, overlay
from ganscope.detector.model import load_detector
from ganscope.detector.training.views import find_twins, show_the_same
from ganscope.images import open_image

FEATHER = 3
"""Sigma of the ellipse's edge in pixels."""


def ellipse(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A mask (H, W) in [0, 1] that covers a tenth to a quarter of the image, wholly inside."""
    area, aspect = rng.uniform(0.10, 0.25) * height * width, rng.uniform(0.6, 1.6)
    b = min((area / np.pi / aspect) ** 0.5, 0.48 * height)
    a = min(area / np.pi / b, 0.48 * width)
    x, y = rng.uniform(a, width - a), rng.uniform(b, height - b)
    rows, columns = np.mgrid[:height, :width]
    inside = ((columns - x) / a) ** 2 + ((rows - y) / b) ** 2 < 1
    return cv2.GaussianBlur(inside.astype(np.float32), (0, 0), FEATHER)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs")
    parser.add_argument("--detector", default="default")
    parser.add_argument("--split", help="only pairs of this split of the corpus")
    parser.add_argument("--n", type=int, default=60)
    parser.add_argument("--methods", default="auto", help="for example patches,tiles,gradcam")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=Path, default=Path("pictures.png"))
    options = parser.parse_args()
    detector = load_detector(options.detector).eval()
    table = open_corpus(options.pairs).table
    twins = find_twins(table)
    rng = np.random.default_rng(options.seed)
    found: dict[str, list[float]] = {name: [] for name in options.methods.split(",")}
    middle: list[float] = []
    pictures = []
    for row in rng.permutation(np.flatnonzero(twins >= 0)):
        if len(found[next(iter(found))]) == options.n:
            break
        if options.split and table["split"][row] != options.split:
            continue
        fake, photo = (open_image(table["path"][i]).pixels for i in (row, twins[row]))
        if fake.shape != photo.shape or not show_the_same(fake, photo):
            continue
        mask = ellipse(*photo.shape[:2], rng)
        mixed = photo + (fake.astype(np.float32) - photo) * mask[..., None]
        pixels = jpeg(np.rint(mixed).astype(np.uint8), 95, rng)
        rows, columns = np.mgrid[-1 : 1 : mask.shape[0] * 1j, -1 : 1 : mask.shape[1] * 1j]
        inside = (mask > 0.5).ravel()
        middle.append(float(roc_auc_score(inside, -(rows**2 + columns**2).ravel())))
        shown = [pixels, np.repeat((mask * 255).astype(np.uint8)[..., None], 3, 2)]
        for name, values in found.items():
            heat = heatmap(detector, pixels, name)
            values.append(float(roc_auc_score(inside, heat.ravel())))
            shown.append(overlay(pixels, heat))
        if len(pictures) < 8:
            pictures.append(np.hstack([cv2.resize(image, (320, 240)) for image in shown]))
    if not pictures:
        parser.error(f"{options.pairs}: no photographs with fakes made from them in this split")
    result = {
        name: {
            "images": len(values),
            "pixel_auroc": round(float(np.mean(values)), 4),
            "standard_error": round(float(np.std(values) / len(values) ** 0.5), 4),
        }
        for name, values in (found | {"middle": middle}).items()
    }
    print(json.dumps({"detector": detector.name, **result}, indent=2))
    cv2.imwrite(str(options.pictures), np.vstack(pictures)[..., ::-1])


if __name__ == "__main__":
    main()
