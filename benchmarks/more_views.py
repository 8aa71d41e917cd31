"""What pictures of unseen sources come to once all their views were looked at: for thresholds.

    python benchmarks/more_views.py --list collect.tsv --pictures EXPORTED --of oof.csv \\
        --adapters FOLDS --scores OUT/scores.csv --second OUT --pretrained CLIP --out looks-oof.csv
    python benchmarks/more_views.py --list sites.tsv --pictures SITES --of unseen.csv \\
        --adapters final.safetensors=0.6 ... --scores ... --second OUT ... --out looks-unseen.csv
    python benchmarks/more_views.py --list sites.tsv --pictures SITES --of unseen.csv \\
        --detector default --scores ... --second OUT --out looks-unseen.csv
    python benchmarks/ship_clip.py ... --looks looks-oof.csv looks-unseen.csv

`ganscope check` looks at all views of a picture unless the first or the first two settle what it
is, so thresholds have to be of what it decides by. Of the pictures in --of, by adapters that never
saw them (a folder: those of their fold) and by the classifiers of their fold that second_reading.py
left in --second: all views of the real ones that come near a threshold by their first look, and of
every fifth generated one. The others of these keep their first look. Killed, it goes on.

With --detector: by the fine-tuned half of that detector, and by classifiers that went on from its
second reading.
"""

import argparse
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from second_reading import (
    QUALITIES,
    classifier_of,
    computed,
    from_lists,
    of_halves,
    opened,
    pictures,
    prepared,
    read,
    tuned_of,
    untouched_of,
)
from ship_clip import parts_of, summed

from ganscope.config import replacing
from ganscope.datasets.degradations import jpeg
from ganscope.detector.judging.views import cut_views
from ganscope.detector.model import SETTLED, Detector

NEAR = -0.5
"""Logit of a first look below which no real picture comes near the upper threshold."""
OF_FAKES = 5
"""Of so many generated pictures one is looked at: there are enough of them."""
COLUMNS = ["picture", "label", "source", "tuned", "second", "views"]


def main() -> None:
    args = _options()
    scores = pd.read_csv(args.scores, dtype={"picture": str})
    scores["tuned"] = (scores["native"] + scores["whole"]) / 2
    scores = summed(scores, *((1.0, 1.0) if args.detector else parts_of(scores, args.share)))
    scores = scores[scores["picture"].isin(pd.read_csv(args.of, dtype={"picture": str})["picture"])]
    lot = scores["picture"].map(lambda name: zlib.crc32(name.encode()) % OF_FAKES)
    scores = scores[(scores["label"] == 0) | (lot == 0)].assign(views=2)
    least = np.where(scores["label"] == 0, NEAR, SETTLED)
    asked = scores[scores["logit"] >= least]
    kept = args.out.with_suffix(".part.csv")
    rows = pd.read_csv(kept, dtype={"picture": str}).values.tolist() if kept.exists() else []
    done = {row[0] for row in rows}
    table = pictures(args).drop_duplicates("name")
    untouched = prepared(untouched_of(args), args)
    for fold, of_fold in asked.groupby("fold"):
        left = of_fold[~of_fold["picture"].isin(done)].set_index("picture")
        if left.empty:
            continue
        tuned = prepared(tuned_of(args, fold), args)
        second = classifier_of(args.second / f"second-fold{fold}.safetensors")
        wanted = table[table["name"].isin(left.index)]
        for number, (row, pixels) in enumerate(opened(wanted), start=1):
            found = _of_all(pixels, row.name, tuned, untouched, second)
            rows.append([row.name, *left.loc[row.name, ["label", "source"]], *found])
            if number % 20 == 0 or number == len(left):
                _write(rows, kept)
                print(f"fold {fold}: {number:,} of {len(left):,} pictures", flush=True)
    rest = scores[~scores["picture"].isin({row[0] for row in rows})]
    _write(rows + rest[COLUMNS].values.tolist(), args.out)
    kept.unlink(missing_ok=True)


def _write(rows: list[list[Any]], path: Path) -> None:
    with replacing(path) as part:
        pd.DataFrame(rows, columns=COLUMNS).to_csv(part, index=False, float_format="%.4f")


@torch.inference_mode()
def _of_all(
    pixels: np.ndarray, name: str, tuned: Detector, untouched: Detector, second: Any
) -> tuple[float, float, int]:
    """Logits of the fine-tuned network and of the second reading, and of how many views."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    views = cut_views(pixels, tuned.size, {"whole": 256})
    cut = np.stack([jpeg(one, int(rng.integers(*QUALITIES)), rng) for one in views.cut])
    weights = views.weights(len(cut))
    net: Any = tuned.net  # `BlockFeatures`, by `tuned_of`
    logits = net.classify(read(tuned, cut)).cpu().numpy()
    others = second(read(untouched, cut).cpu().float()).squeeze(-1).numpy()
    return float(logits @ weights), float(others @ weights), len(cut)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    from_lists(parser)
    for name in ("--of", "--scores", "--second", "--out"):
        parser.add_argument(name, type=Path, required=True)
    of_halves(parser, adapters=True)
    parser.add_argument("--share", type=float, default=0.6)
    computed(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
