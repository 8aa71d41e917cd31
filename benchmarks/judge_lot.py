"""What a detector says of a lot of pictures that it never met, each as a whole:

    python benchmarks/originals.py lot.tsv --out LOT
    python benchmarks/judge_lot.py --list lot.tsv --pictures LOT --out judged.csv

Each picture is judged twice, both classes alike: its middle of 640 pixels as JPEG 90 (`crop`), and
shrunk to a long side of 1,024 as JPEG 80 (`web`), by the views that `ganscope check` looks at, but
without faces and what `check` leaves *unsure* for being no photograph. --sources: beginnings of the
names of the sources that are meant; without, all of the list. It prints, for both and each: AUROC,
the real pictures called fake (with Clopper and Pearson's 95 % interval), the fakes found, what is
unsure, and how many views were looked at; and some of it by generator. --out is a row a file, with
the logit. Killed, it goes on.
"""

import argparse
import sys
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from second_reading import as_met, from_lists, opened, pictures
from sklearn.metrics import roc_auc_score

from ganscope.config import replacing
from ganscope.detector.exported.loading import load_judge
from ganscope.detector.judging.scoring import score_images
from ganscope.memory import keep_freed_memory

FORMS = ("crop", "web")
PART = 32
"""Files that are judged between two writes."""
ENOUGH = 15
"""Pictures of a generator from which it is told by itself."""
COLUMNS = ["picture", "label", "source", "generator", "as", "logit", "verdict", "views"]


def main() -> None:
    args = _options()
    keep_freed_memory()
    table = pictures(args).drop_duplicates("name")
    if args.sources:
        table = table[table["source"].str.startswith(tuple(args.sources))]
    if set(table["label"]) != {0, 1}:
        sys.exit("judge_lot: there have to be real pictures and fakes among those named")
    rows = _judged(args.out)
    done = {(row[0], row[4]) for row in rows}
    judge = load_judge(args.detector, args.runtime, args.device)
    files = _files(table, done)
    while part := list(islice(files, PART)):
        found = score_images(judge, [pixels for _, _, pixels in part], device=args.device)
        for (row, form, _), scored in zip(part, found, strict=True):
            if scored.score is None:
                print(f"left out: {row.name} ({scored.error})")
                continue
            said = (scored.logit, judge.verdict(scored.score), len(scored.tile_logits))
            rows.append([row.name, row.label, row.source, row.generator, form, *said])
        with replacing(args.out) as path:
            pd.DataFrame(rows, columns=COLUMNS).to_csv(path, index=False, float_format="%.4f")
        print(f"{len(rows):,} of {len(table) * len(FORMS):,} files", flush=True)
    told(pd.DataFrame(rows, columns=COLUMNS))


def _judged(path: Path) -> list[list[Any]]:
    """The rows that are there already."""
    if not path.exists():
        return []
    texts = {"picture": str, "source": str, "generator": str}
    table = pd.read_csv(path, dtype=texts, keep_default_na=False)
    if list(table) != COLUMNS:
        sys.exit(f"judge_lot: {path}: not a table of this script; name another --out")
    return table.values.tolist()


def _files(
    table: pd.DataFrame, done: set[tuple[str, str]]
) -> Iterator[tuple[Any, str, np.ndarray]]:
    """Rows, in what form, and the pixels, of what is not done."""
    wanted = [any((name, form) not in done for form in FORMS) for name in table["name"]]
    for row, pixels in opened(table[wanted]):
        rng = np.random.default_rng(zlib.crc32(row.name.encode()))
        for form in FORMS:
            met = as_met(pixels, form, rng)
            if (row.name, form) not in done:
                yield row, form, met


def told(found: pd.DataFrame) -> None:
    for form in (" and ".join(FORMS), *FORMS):
        part = found if form not in FORMS else found[found["as"] == form]
        print(f"{form}: {figures(part)}")
    real = found[found["label"] == 0]
    for name, made in found[found["label"] == 1].groupby("generator"):
        if made["picture"].nunique() >= ENOUGH:
            both = pd.concat([real, made])
            area = roc_auc_score(both["label"], both["logit"])
            share = (made["verdict"] == "fake").mean()
            print(f"{name}, {made['picture'].nunique()}: AUROC {area:.3f}, {share:.0%} found")


def figures(found: pd.DataFrame) -> str:
    """Of a table of files. Real pictures are counted, each as fake if any of its files is."""
    real, made = (found[found["label"] == label] for label in (0, 1))
    called = (real["verdict"] == "fake").groupby(real["picture"]).max()
    interval = binomtest(int(called.sum()), len(called)).proportion_ci()
    shares = {
        name: (part["verdict"] == "unsure").mean()
        for name, part in (("real", real), ("fake", made))
    }
    views = {name: part["views"].mean() for name, part in (("real", real), ("fake", made))}
    return (
        f"AUROC {roc_auc_score(found['label'], found['logit']):.4f}; "
        f"{called.sum()} of {len(called)} real pictures called fake, {called.mean():.1%} "
        f"({interval.low:.1%} to {interval.high:.1%}); "
        f"{(made['verdict'] == 'fake').mean():.1%} of {made['picture'].nunique()} found, "
        f"{(made['verdict'] == 'real').mean():.1%} called real; unsure {shares['real']:.1%} of the "
        f"real ones, {shares['fake']:.1%} of the fakes; {views['real']:.2f} and "
        f"{views['fake']:.2f} views"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    from_lists(parser)
    parser.add_argument("--sources", nargs="*", default=[], metavar="BEGINNING")
    parser.add_argument("--detector", default="default")
    parser.add_argument("--runtime", default="auto", choices=("auto", "torch", "onnx"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
