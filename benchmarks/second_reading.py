"""A second reading for a fine-tuned detector: what CLIP saw before it was fine-tuned.

    python benchmarks/second_reading.py features --list collect.tsv --pictures EXPORTED \\
        --scores oof.csv --pretrained clip.safetensors --out FEATURES
    python benchmarks/second_reading.py fit --features FEATURES --scores oof.csv --out OUT

`features` reads the middle of each picture and the whole of it (the first look of `ganscope check`)
through the untouched backbone, after a JPEG of a quality drawn anew for each: --per-group pictures
of each label, source and generator, or, of photographs with --all-real, all. Killed, it goes on.

`fit` learns a curved classifier of these features, once for each fold of --scores without that
fold's sources, and prints how well it tells pictures of sources never seen, alone and beside the
fine-tuned logits of --scores. It writes OUT/second.safetensors, of all pictures, and
OUT/scores.csv: --scores with the column `second`, the logit by the classifier that never saw the
source. Both are for benchmarks/ship_clip.py.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import save
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from train_clip import listed

from ganscope.config import replacing
from ganscope.datasets.degradations import jpeg
from ganscope.detector.judging.views import cut_views
from ganscope.detector.model import Detector
from ganscope.detector.networks.transformer import BlockFeatures
from ganscope.errors import ImageError
from ganscope.images import open_image

CHUNK = 64
QUALITIES = (65, 96)
PARTS, HIDDEN = 3, 64
"""Classifiers that are averaged, and the width of each."""
EPOCHS, BATCH, PEAK = 12, 64, 1e-3
MARGIN = 1e-3
SHARES = (0.0, 0.2, 0.33, 0.5)


def chosen(args: argparse.Namespace) -> pd.DataFrame:
    """The pictures whose features are wanted, those of small groups first."""
    table = listed(args.list, args.pictures).drop_duplicates("name")
    table = table[table["name"].isin(pd.read_csv(args.scores)["picture"])]
    table = table.sample(frac=1, random_state=args.seed)
    rank = table.groupby(["label", "source", "generator"]).cumcount()
    few = table[rank < args.per_group].assign(rank=rank).sort_values("rank", kind="stable")
    rest = table[(rank >= args.per_group) & (table["label"] == 0)] if args.all_real else few[:0]
    return pd.concat([few.drop(columns="rank"), rest], ignore_index=True)


def features(args: argparse.Namespace) -> None:
    table = chosen(args)
    detector = Detector.create("clip", pretrained=args.pretrained)
    detector.prepare(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    for begin in range(0, len(table), CHUNK):
        path = args.out / f"{begin:06}.npz"
        if path.exists():
            continue
        names, found = [], []
        for row in table.iloc[begin : begin + CHUNK].itertuples():
            try:
                pixels = open_image(row.path).pixels
            except ImageError as error:
                print(f"left out: {error}")
                continue
            rng = np.random.default_rng([args.seed, int(row.Index)])
            views = cut_views(pixels, detector.size, {"whole": 256}).cut[:2]
            views = np.stack([jpeg(one, int(rng.integers(*QUALITIES)), rng) for one in views])
            names.append(row.name)
            found.append(read(detector, views))
        with replacing(path) as part, part.open("wb") as file:
            np.savez(file, names=np.array(names), features=np.array(found, np.float16))
        print(f"{min(begin + CHUNK, len(table)):,} of {len(table):,} pictures", flush=True)


@torch.inference_mode()
def read(detector: Detector, views: np.ndarray) -> np.ndarray:
    """(T, size, size, 3) uint8 -> (T, D)."""
    images = torch.from_numpy(views).to(detector.mean.device).permute(0, 3, 1, 2).float() / 255
    assert isinstance(detector.net, BlockFeatures)
    return detector.net.features(detector.normalised(images)).cpu().numpy()


def fit(args: argparse.Namespace) -> None:
    kept = [np.load(path) for path in sorted(args.features.glob("*.npz"))]
    names = np.concatenate([one["names"] for one in kept])
    x = torch.from_numpy(np.concatenate([one["features"] for one in kept]).astype(np.float32))
    scores = pd.read_csv(args.scores)
    about = scores.drop_duplicates("picture").set_index("picture").loc[names].reset_index()
    y = torch.tensor(about["label"].to_numpy(), dtype=torch.float32)
    tuned = ((about["native"] + about["whole"]) / 2).to_numpy()
    fold = about["fold"].to_numpy()
    second = np.zeros(len(about))
    print(f"{len(about):,} pictures of {about['source'].nunique()} sources")
    for one in sorted(set(fold)):
        learn = torch.from_numpy(fold != one)
        net = classifier(x[learn], y[learn], args.seed)
        with torch.inference_mode():
            second[fold == one] = net(x[~learn]).squeeze(-1).mean(1).numpy()
    ratio = tuned.std() / second.std()
    for share in SHARES:
        told(
            f"fine-tuned {1 - share:.2f}, second {share:.2f}",
            about,
            tuned + share / (1 - share) * ratio * second,
        )
    told("second alone", about, second)
    print(f"a logit of the fine-tuned spreads {ratio:.2f} times as far as one of the second")
    args.out.mkdir(parents=True, exist_ok=True)
    net = classifier(x, y, args.seed)
    with replacing(args.out / "second.safetensors") as part:
        part.write_bytes(save({key: value.contiguous() for key, value in net.state_dict().items()}))
    with replacing(args.out / "scores.csv") as part:
        whole = scores.merge(about[["picture"]].assign(second=second.round(4)), on="picture")
        whole.to_csv(part, index=False)


def told(name: str, about: pd.DataFrame, logit: np.ndarray) -> None:
    """Print how well logits tell the two, in all and within sources that have both."""
    y = about["label"].to_numpy()
    within = []
    for rows in about.groupby("source").indices.values():
        if min((y[rows] == 0).sum(), (y[rows] == 1).sum()) >= 3:
            within.append(roc_auc_score(y[rows], logit[rows]))
    found = [
        (logit[y == 1] >= np.quantile(logit[y == 0], 1 - share)).mean() for share in (0.02, 0.01)
    ]
    print(
        f"{name}: AUROC {roc_auc_score(y, logit):.4f}; found at 2 and 1 % false alarms "
        f"{found[0]:.3f}, {found[1]:.3f}; within {len(within)} sources of both "
        f"{np.mean(within):.4f}",
        flush=True,
    )


def classifier(x: Tensor, y: Tensor, seed: int) -> nn.Sequential:
    """features (N, T, D), labels (N,) -> the mean of `PARTS` classifiers, as one."""
    centre, spread = x.mean((0, 1)), x.std((0, 1)) + MARGIN
    parts = [learned((x - centre) / spread, y, seed + part) for part in range(PARTS)]
    first, last = nn.Linear(x.shape[-1], PARTS * HIDDEN), nn.Linear(PARTS * HIDDEN, 1)
    with torch.no_grad():
        first.weight.copy_(torch.cat([part[1].weight for part in parts]) / spread)
        first.bias.copy_(torch.cat([part[1].bias for part in parts]) - first.weight @ centre)
        last.weight.copy_(torch.cat([part[4].weight for part in parts], 1) / PARTS)
        last.bias.copy_(torch.stack([part[4].bias for part in parts]).mean(0))
    return nn.Sequential(first, nn.GELU(), last).eval()


def learned(x: Tensor, y: Tensor, seed: int) -> Any:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Dropout(0.5),
        nn.Linear(x.shape[-1], HIDDEN),
        nn.GELU(),
        nn.Dropout(0.3),
        nn.Linear(HIDDEN, 1),
    )
    steps = EPOCHS * len(y) // BATCH
    optimizer = torch.optim.AdamW(net.parameters(), lr=PEAK, weight_decay=0.1)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=steps + 1)
    balance = (y == 0).sum() / (y == 1).sum()
    for _ in range(steps):
        rows, view = torch.randint(len(y), (BATCH,)), torch.randint(x.shape[1], (BATCH,))
        logits = net(x[rows, view]).squeeze(1)
        target = y[rows] * 0.96 + 0.02
        loss = F.binary_cross_entropy_with_logits(logits, target, pos_weight=balance)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        plan.step()
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("features")
    one.add_argument("--list", type=Path, required=True)
    one.add_argument("--pictures", type=Path, required=True)
    one.add_argument("--scores", type=Path, required=True)
    one.add_argument("--pretrained", required=True)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--per-group", type=int, default=12)
    one.add_argument("--all-real", action="store_true")
    one.add_argument("--device", default="auto")
    one.add_argument("--seed", type=int, default=3)
    one.set_defaults(run=features)
    one = commands.add_parser("fit")
    one.add_argument("--features", type=Path, required=True)
    one.add_argument("--scores", type=Path, required=True)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--seed", type=int, default=0)
    one.set_defaults(run=fit)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
