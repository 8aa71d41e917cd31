"""A second reading for a fine-tuned detector: what CLIP saw before it was fine-tuned.

    python benchmarks/second_reading.py unseen --list sites.tsv --pictures SITES \\
        --pretrained clip.safetensors --adapters final.safetensors=0.6 ... --out unseen.csv
    python benchmarks/second_reading.py features --list collect.tsv --pictures EXPORTED \\
        --list sites.tsv --pictures SITES --scores oof.csv unseen.csv \\
        --pretrained clip.safetensors --out FEATURES
    python benchmarks/second_reading.py fit --features FEATURES --scores oof.csv unseen.csv \\
        --out OUT
    python benchmarks/second_reading.py fit --features FEATURES --scores older.csv fresh.csv \\
        --detector default --fresh fresh.csv --out OUT
    python benchmarks/second_reading.py matrix --features FEATURES --scores oof.csv \\
        --list collect.tsv --pictures EXPORTED --pretrained clip.safetensors --adapters FOLDS \\
        --out MATRIX

`unseen` judges the first look at pictures of sources that none of the adapters saw, and deals their
sources to folds: what --scores are for those that some did see.

`features` reads the middle of each picture and the whole of it (the first look of `ganscope check`)
and two parts drawn at random through the untouched backbone, after a JPEG of a quality drawn anew
for each: --per-group pictures of each label, source and generator, or, of photographs with
--all-real, all. Killed, it goes on.

`fit` learns a curved classifier of these features, once for each fold of --scores without that
fold's sources, and prints how well it tells pictures of sources never seen, alone and beside the
fine-tuned logits of --scores. It writes OUT/second.safetensors, of all pictures, and
OUT/scores.csv: --scores with the column `second`, the logit of the first look by the classifier
that never saw the source. Both are for benchmarks/ship_clip.py; OUT/second-foldN.safetensors are
those classifiers.

With --detector, `unseen` reads by the fine-tuned half of a detector that has a second reading,
`features` by its untouched one, and `fit` goes on from its classifier: half of each batch are
pictures of the tables --fresh, which it has not learned from, the others keep it from forgetting.
OUT/scores.csv is of the fresh ones alone then, and the sum of both logits is as the detector makes
it; fresh tables are to be of `unseen --detector`. --way 0.5: the mean of what it was and became.

`matrix` tells what --number pictures of each fold and class, of small groups first, are worth clean
and degraded, by that fold's --adapters and classifiers. Killed, it goes on.
"""

import argparse
import copy
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import save
from ship_clip import average_of, parts_of, summed
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from train_clip import DROPPED, all_listed, shares_of

from ganscope.config import replacing
from ganscope.datasets.degradations import jpeg, parse_degradations, resize
from ganscope.detector.judging.views import cut_views, whole_of
from ganscope.detector.model import Detector
from ganscope.detector.networks.lora import apply_adapters
from ganscope.detector.networks.transformer import BlockFeatures
from ganscope.detector.networks.weights import read_weights
from ganscope.devices import DTYPES
from ganscope.errors import ImageError
from ganscope.images import open_image

CHUNK = 64
LOOK, FOLDS = 2, 4
"""Views of the first look, and folds that `unseen` deals sources to."""
ENLARGED, QUALITIES, WORSE = (0.9, 1.4), (60, 97), (50, 97)
"""How far parts are enlarged, and JPEG qualities of the first look and of these."""
PARTS, HIDDEN = 3, 64
"""Classifiers that are averaged, and the width of each."""
EPOCHS, BATCH, PEAK = 60, 256, 2e-3
ON_STEPS, ON_PEAK = 600, 5e-4
"""Steps and rate of going on from a classifier that has learned."""
DROPPED_OUT, DROPPED_INSIDE = 0.5, 0.3
"""Shares of the features, and of what the classifier makes of them, that are left out as it
learns."""
MARGIN = 1e-3
SHARES = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7)
ALARMS, ENOUGH = 0.01, 40
"""Share of false alarms, and pictures of a generator from which it is told by itself."""
DEGRADED = ("clean", "jpeg:50", "resize:0.5", "webp:60", "screenshot:0.75")
PART, WEB = 640, 1024
"""Pixels: side of a part as it is, and long side of a picture at web size."""
VARIANTS = ("untouched, linear", "untouched, curved", "fine-tuned", "both, as shipped")


def pictures(args: argparse.Namespace) -> pd.DataFrame:
    """The pictures of all lists, without what `dropped.tsv` names."""
    table = all_listed(args.list, args.pictures)
    return table[~table["name"].isin(pd.read_csv(DROPPED, sep="\t", dtype=str)["picture"])]


def scored(args: argparse.Namespace) -> pd.DataFrame:
    """The rows of all --scores; `table`: the name of the one that each is from."""
    names = [one.stem for one in args.scores]
    if len(set(names)) < len(names):
        raise SystemExit("two tables of --scores have one name; rename one")
    tables = [pd.read_csv(one).assign(table=one.stem) for one in args.scores]
    return pd.concat(tables, ignore_index=True)


def unseen(args: argparse.Namespace) -> None:
    table = pictures(args).reset_index(drop=True)
    detector = prepared(tuned_of(args), args)
    assert isinstance(detector.net, BlockFeatures)
    rows = []
    for row, pixels in opened(table):
        rng = np.random.default_rng([args.seed, int(row.Index)])
        looks = first_look(pixels, detector.size, rng)
        with torch.inference_mode():
            whole, native = detector.net.classify(read(detector, looks)).cpu().numpy()
        known = (row.name, row.label, row.source, fold_of(str(row.source)))
        rows.append((*known, native, 0.0, whole))  # 0: no such view, as in oof.csv
        if len(rows) % CHUNK == 0:
            print(f"{len(rows):,} of {len(table):,} pictures", flush=True)
    columns = ["picture", "label", "source", "fold", "native", "middle", "whole"]
    found = pd.DataFrame(rows, columns=columns)
    told("adapters", found, ((found["native"] + found["whole"]) / 2).to_numpy())
    with replacing(args.out) as part:
        found.to_csv(part, index=False, float_format="%.4f")


def opened(rows: pd.DataFrame) -> Iterator[tuple[Any, np.ndarray]]:
    """Rows and their pixels, without those that cannot be read, which are named."""
    for row in rows.itertuples():
        try:
            yield row, open_image(row.path).pixels
        except ImageError as error:
            print(f"left out: {error}")


def fold_of(source: str) -> int:
    return int(hashlib.sha256(source.encode()).hexdigest(), 16) % FOLDS


def chosen(args: argparse.Namespace) -> pd.DataFrame:
    """The pictures whose features are wanted, those of small groups first."""
    table = pictures(args)
    table = table[table["name"].isin(scored(args)["picture"])]
    table = table.sample(frac=1, random_state=args.seed)
    rank = table.groupby(["label", "source", "generator"]).cumcount()
    few = table[rank < args.per_group].assign(rank=rank).sort_values("rank", kind="stable")
    rest = table[(rank >= args.per_group) & (table["label"] == 0)] if args.all_real else few[:0]
    return pd.concat([few.drop(columns="rank"), rest], ignore_index=True)


def features(args: argparse.Namespace) -> None:
    table = chosen(args)
    detector = prepared(untouched_of(args), args)
    args.out.mkdir(parents=True, exist_ok=True)
    for begin in range(0, len(table), CHUNK):
        path = args.out / f"{begin:06}.npz"
        if path.exists():
            continue
        names, makers, found = [], [], []
        for row, pixels in opened(table.iloc[begin : begin + CHUNK]):
            rng = np.random.default_rng([args.seed, int(row.Index)])
            names.append(row.name)
            makers.append(row.generator)
            found.append(read(detector, some_views(pixels, detector.size, rng)).cpu().numpy())
        with replacing(path) as part, part.open("wb") as file:
            np.savez(
                file,
                names=np.array(names),
                generators=np.array(makers),
                features=np.array(found, np.float16),
            )
        print(f"{min(begin + CHUNK, len(table)):,} of {len(table):,} pictures", flush=True)


def first_look(pixels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """(LOOK, size, size, 3): the whole, and the middle as it is, each through a JPEG."""
    first = cut_views(pixels, size, {"whole": 256}).cut[:LOOK]
    return np.stack([jpeg(one, int(rng.integers(*QUALITIES)), rng) for one in first])


def some_views(pixels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """(LOOK + 2, size, size, 3): the first look, and two parts of any place, one of nearly native
    resolution, one of any side up to the picture's; each through a JPEG.
    """
    found = list(first_look(pixels, size, rng))
    short = max(min(pixels.shape[:2]), size + 1)
    for low, high in ((size / ENLARGED[1], size / ENLARGED[0]), (size, short)):
        side = min(int(np.exp(rng.uniform(np.log(low), np.log(high)))), *pixels.shape[:2])
        top, left = (int(rng.integers(0, whole - side + 1)) for whole in pixels.shape[:2])
        part = whole_of(pixels[top : top + side, left : left + side], size)
        found.append(jpeg(part, int(rng.integers(*WORSE)), rng))
    return np.stack(found)


def halves_of(name: str) -> tuple[Detector, Detector]:
    """What a detector with a second reading was fine-tuned to, and what its backbone was before;
    `classify` is of the former alone.
    """
    tuned = Detector.load(name)
    net = tuned.net
    if not isinstance(net, BlockFeatures) or net.beside is None:
        raise SystemExit(f"{name} has no second reading; name a detector that has one")
    return tuned, _replaced(tuned, "net", _replaced(net, "backbone", net.plain))


def _replaced(module: Any, name: str, part: nn.Module) -> Any:
    """A module that is as another, but for one part; the other stays as it is."""
    twin = copy.copy(module)
    twin._modules = {**module._modules, name: part}
    return twin


def second_of(name: str) -> nn.Sequential:
    """The classifier of a detector's second reading."""
    net: Any = halves_of(name)[0].net
    return net.beside.eval()


def tuned_of(args: argparse.Namespace, fold: int | None = None) -> Detector:
    """--detector, or what --adapters make of --pretrained: one file of a folder, by the fold, or
    the mean of several.
    """
    if args.detector:
        return halves_of(args.detector)[0]
    if not args.adapters:
        raise SystemExit("--pretrained takes --adapters with it")
    folder = Path(args.adapters[0])
    shares = {folder / f"fold{fold}.safetensors": 1.0} if folder.is_dir() else None
    return average_of(args.pretrained, shares or shares_of(args.adapters), {})


def untouched_of(args: argparse.Namespace) -> Detector:
    if args.detector:
        return halves_of(args.detector)[1]
    return Detector.create("clip", pretrained=args.pretrained)


def prepared(detector: Detector, args: argparse.Namespace) -> Detector:
    """On its device, its blocks in the precision that is asked for."""
    detector.prepare(args.device)
    assert isinstance(detector.net, BlockFeatures)
    detector.net.backbone.to(DTYPES[args.precision])
    return detector


@torch.inference_mode()
def read(detector: Detector, views: np.ndarray) -> Tensor:
    """(T, size, size, 3) uint8 -> (T, D)."""
    net = detector.net
    assert isinstance(net, BlockFeatures)
    kind = next(net.backbone.parameters())
    images = torch.from_numpy(views).to(kind.device).permute(0, 3, 1, 2).float() / 255
    return net.features(detector.normalised(images).to(kind.dtype))


def kept_features(folder: Path, scores: pd.DataFrame) -> tuple[pd.DataFrame, Tensor]:
    """What `features` left: a row of `scores` and the generator of each picture, and (N, T, D)."""
    kept = [np.load(path) for path in sorted(folder.glob("*.npz"))]
    names, generators = (np.concatenate([one[k] for one in kept]) for k in ("names", "generators"))
    about = scores.drop_duplicates("picture").set_index("picture").loc[names].reset_index()
    x = torch.from_numpy(np.concatenate([one["features"] for one in kept]))
    return about.assign(generator=generators), x


def fit(args: argparse.Namespace) -> None:
    scores = scored(args)
    about, x = kept_features(args.features, scores)
    about = about.assign(tuned=(about["native"] + about["whole"]) / 2)
    start = second_of(args.detector) if args.detector else None
    if not {one.resolve() for one in args.fresh} <= {one.resolve() for one in args.scores}:
        raise SystemExit("--fresh names a table that is not among --scores")
    fresh = about["table"].isin([one.stem for one in args.fresh]).to_numpy()
    if start is not None and (fresh.all() or not fresh.any()):
        raise SystemExit("going on takes --fresh, and other tables of --scores beside it")

    def fitted(rows: np.ndarray) -> nn.Sequential:
        if start is None:
            return classifier(x[rows], about[rows], args.seed)
        return gone_on(start, x[rows], about[rows], fresh[rows], args.seed, args.way)

    fold = about["fold"].to_numpy()
    second = np.zeros(len(about))
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"{len(about):,} pictures of {about['source'].nunique()} sources")
    for one in sorted(set(fold)):
        net = fitted(fold != one)
        keep(net, args.out / f"second-fold{one}.safetensors")
        second[fold == one] = of_first_look(net, x[fold == one])
    found = about.assign(second=second)
    if start is None:
        tell_shares(found, args.share)
    else:
        found = tell_gone_on(found.assign(before=of_first_look(start, x)), fresh)
    keep(fitted(np.full(len(x), True)), args.out / "second.safetensors")
    with replacing(args.out / "scores.csv") as part:
        whole = scores.merge(found[["picture", "second"]].round(4), on="picture")
        whole.drop(columns="table").to_csv(part, index=False)


@torch.inference_mode()
def of_first_look(net: nn.Module, x: Tensor) -> np.ndarray:
    """features (N, T, D) -> logits (N,)"""
    return net(x[:, :LOOK].float()).squeeze(-1).mean(1).numpy()


def tell_shares(about: pd.DataFrame, shipped: float) -> None:
    for share in SHARES:
        both = summed(about, *parts_of(about, share))["logit"].to_numpy()
        told(f"fine-tuned {1 - share:.2f}, second {share:.2f}", about, both)
    told("second alone", about, about["second"].to_numpy())
    about = summed(about, *parts_of(about, shipped))
    for table, part in about.groupby("table"):
        told(f"{table}, {len(part):,} pictures: fine-tuned", part, part["tuned"].to_numpy())
        told(f"{table}: share {shipped:g}", part, part["logit"].to_numpy())
    tell_folds(about, about["logit"].to_numpy())


def tell_gone_on(about: pd.DataFrame, fresh: np.ndarray) -> pd.DataFrame:
    """The fresh pictures, of which most is told: the second reading has learned from the older ones
    before, and just its going on was without those of the fold.
    """
    older, about = about[~fresh], about[fresh].reset_index(drop=True)
    for name, column in (("before", "before"), ("gone on, sources left out", "second")):
        told(f"older, second {name}", older, older[column].to_numpy())
        told(f"fresh, second {name}", about, about[column].to_numpy())
        told(f"fresh, both {name}", about, (about["tuned"] + about[column]).to_numpy())
    tell_folds(about, (about["tuned"] + about["second"]).to_numpy())
    return about


def keep(net: nn.Module, path: Path) -> None:
    with replacing(path) as part:
        part.write_bytes(save({key: value.contiguous() for key, value in net.state_dict().items()}))


def classifier_of(path: Path) -> nn.Sequential:
    """A curved classifier that `fit` kept."""
    state = read_weights(str(path), str(path))
    width, features = state["0.weight"].shape
    net = nn.Sequential(nn.Linear(features, width), nn.GELU(), nn.Linear(width, 1))
    net.load_state_dict(state)
    return net.eval()


def tell_folds(about: pd.DataFrame, logit: np.ndarray) -> None:
    """Print what logits are worth by fold, at the threshold that the other folds give for 1 %
    false alarms, and by generator, against all that is real, at that of all folds.
    """
    fake, fold = about["label"].to_numpy() == 1, about["fold"].to_numpy()
    for one in sorted(set(fold)):
        here = fold == one
        bar = np.quantile(logit[~fake & ~here], 1 - ALARMS)
        alarms, found = (logit[mask & here] >= bar for mask in (~fake, fake))
        print(
            f"fold {one}: {len(found):,} fake, {len(alarms):,} real, AUROC "
            f"{roc_auc_score(fake[here], logit[here]):.3f}; at the threshold of the others "
            f"{alarms.mean():.2%} false alarms, {found.mean():.0%} found"
        )
    bar = np.quantile(logit[~fake], 1 - ALARMS)
    for name, rows in sorted(about[fake].groupby("generator"), key=lambda one: -len(one[1])):
        if len(rows) >= ENOUGH:
            mine = logit[rows.index]
            auroc = roc_auc_score(
                np.r_[np.ones(len(mine)), np.zeros((~fake).sum())], np.r_[mine, logit[~fake]]
            )
            print(f"{name}, {len(mine)}: AUROC {auroc:.3f}, {(mine >= bar).mean():.0%} found")


def matrix(args: argparse.Namespace) -> None:
    """Degraded pictures of sources that neither the adapters nor the classifiers of a fold saw."""
    scores = scored(args).drop_duplicates("picture").set_index("picture")
    table = pictures(args)
    table = table[table["name"].isin(scores.index)].sample(frac=1, random_state=args.seed)
    rank = table.groupby(["label", "source", "generator"]).cumcount()
    table = table.assign(rank=rank, fold=scores.loc[table["name"], "fold"].to_numpy())
    table = table.sort_values("rank", kind="stable").groupby(["fold", "label"]).head(args.number)
    untouched = prepared(Detector.create("clip", pretrained=args.pretrained), args)
    for fold, of_fold in table.groupby("fold"):
        adapters = str(args.adapters / f"fold{fold}.safetensors")
        tuned = Detector.create("clip", pretrained=args.pretrained)
        assert isinstance(tuned.net, BlockFeatures)
        apply_adapters(tuned.net, read_weights(adapters, adapters), adapters)
        prepared(tuned, args)
        for begin in range(0, len(of_fold), CHUNK):
            path = args.out / f"{fold}-{begin:05}.npz"
            if path.exists():
                continue
            found: dict[str, list[Any]] = {"names": [], "plain": [], "tuned": []}
            for row in of_fold.iloc[begin : begin + CHUNK].itertuples():
                views = degraded_views(row, untouched.size, args.seed)
                if views is None:
                    continue
                found["names"].append(row.name)
                found["plain"].append(read(untouched, views).cpu().numpy().astype(np.float16))
                with torch.inference_mode():
                    logits = tuned.net.classify(read(tuned, views))
                found["tuned"].append(logits.cpu().numpy())
            args.out.mkdir(parents=True, exist_ok=True)
            with replacing(path) as part, part.open("wb") as file:
                np.savez(file, **{key: np.array(value) for key, value in found.items()})
            print(f"fold {fold}: {begin + len(found['names']):,} of {len(of_fold):,}", flush=True)
    tell_matrix(args, scores)


def as_met(pixels: np.ndarray, form: str, rng: np.random.Generator) -> np.ndarray:
    """A picture as people meet it: "crop", its middle of 640 pixels at JPEG 90, or "web", shrunk to
    a long side of 1,024 at JPEG 80.
    """
    if form == "crop":
        top, left = (max(side - PART, 0) // 2 for side in pixels.shape[:2])
        part = pixels[top : top + PART, left : left + PART]
        return jpeg(np.ascontiguousarray(part), 90, rng)
    factor = min(WEB / max(pixels.shape[:2]), 1.0)
    return jpeg(resize(pixels, factor, rng), 80, rng)


def degraded_views(row: Any, size: int, seed: int) -> np.ndarray | None:
    """(2 * len(DEGRADED), size, size, 3): the first look at one picture, clean and degraded. Clean
    is what is met: a part of it at JPEG 90, or all of it at web size and JPEG 80.
    """
    try:
        pixels = open_image(row.path).pixels
    except ImageError as error:
        print(f"left out: {error}")
        return None
    rng = np.random.default_rng([seed, int(row.Index)])
    pixels = as_met(pixels, "crop" if rng.random() < 0.5 else "web", rng)
    changed = [one(pixels, rng) for one in parse_degradations(DEGRADED)]
    return np.concatenate([cut_views(one, size, {"whole": 256}).cut[:LOOK] for one in changed])


def tell_matrix(args: argparse.Namespace, scores: pd.DataFrame) -> None:
    about, x = kept_features(args.features, scores.reset_index())
    tables = []
    for fold in sorted(set(about["fold"])):
        learn = about["fold"].to_numpy() != fold
        linear = classifier(x[learn], about[learn], args.seed, hidden=0)
        curved = classifier(x[learn], about[learn], args.seed)
        for path in sorted(args.out.glob(f"{fold}-*.npz")):
            one = np.load(path)
            seen = torch.from_numpy(one["plain"].astype(np.float32))
            with torch.inference_mode():
                logits = [net(seen).squeeze(-1).numpy() for net in (linear, curved)]
            for place, degradation in enumerate(DEGRADED):
                views = slice(2 * place, 2 * place + 2)
                three = [*logits, one["tuned"]]
                columns = zip(VARIANTS, (part[:, views].mean(1) for part in three), strict=False)
                tables.append(
                    pd.DataFrame(dict(columns)).assign(name=one["names"], degradation=degradation)
                )
    found = pd.concat(tables, ignore_index=True)
    clean = found[found["degradation"] == DEGRADED[0]]
    readings = pd.DataFrame({"tuned": clean[VARIANTS[2]], "second": clean[VARIANTS[1]]})
    tuned, second = parts_of(readings, args.share)
    found[VARIANTS[3]] = tuned * found[VARIANTS[2]] + second * found[VARIANTS[1]]
    found["label"] = scores.loc[found["name"], "label"].to_numpy()
    print(f"{len(clean):,} pictures, {int(scores.loc[clean['name'], 'label'].sum()):,} generated")
    for of in ("AUROC", "found at 2 % false alarms"):
        rows = {}
        for name in VARIANTS:
            rows[name] = [
                judged(part["label"], part[name])[of != "AUROC"]
                for _, part in found.groupby("degradation", sort=False)
            ]
        print(of)
        print(pd.DataFrame(rows, index=list(DEGRADED)).T.round(3).to_string())


def judged(label: pd.Series, logit: pd.Series) -> tuple[float, float]:
    """AUROC, and the share of the fakes found at 2 % false alarms."""
    return roc_auc_score(label, logit), (
        logit[label == 1] >= logit[label == 0].quantile(0.98)
    ).mean()


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
        f"{np.mean(within) if within else math.nan:.4f}",
        flush=True,
    )


def classifier(
    x: Tensor, about: pd.DataFrame, seed: int, hidden: int = HIDDEN
) -> nn.Sequential | nn.Linear:
    """features (N, T, D) -> the mean of `PARTS` classifiers, as one; hidden 0: linear ones.

    Both classes are drawn alike, groups (label, source, generator) by the square root of their
    size.
    """
    y, odds = labels_of(about), odds_of(about)
    centre, spread = x.mean((0, 1), dtype=torch.float32), x.float().std((0, 1)) + MARGIN
    x = (x - centre.half()) / spread.half()
    parts = [learned(x, y, odds, seed + part, hidden) for part in range(PARTS)]
    layers = [[layer for layer in part if isinstance(layer, nn.Linear)] for part in parts]
    first = nn.Linear(x.shape[-1], PARTS * max(hidden, 1))
    with torch.no_grad():
        first.weight.copy_(torch.cat([one[0].weight for one in layers]) / spread)
        first.bias.copy_(torch.cat([one[0].bias for one in layers]) - first.weight @ centre)
        if hidden:
            last = nn.Linear(PARTS * hidden, 1)
            last.weight.copy_(torch.cat([one[1].weight for one in layers], 1) / PARTS)
            last.bias.copy_(torch.stack([one[1].bias for one in layers]).mean(0))
            return nn.Sequential(first, nn.GELU(), last).eval()
        last = nn.Linear(x.shape[-1], 1)
        last.weight.copy_(first.weight.mean(0, keepdim=True))
        last.bias.copy_(first.bias.mean(0, keepdim=True))
    return last.eval()


def labels_of(about: pd.DataFrame) -> Tensor:
    return torch.tensor(about["label"].to_numpy(), dtype=torch.float32)


def odds_of(about: pd.DataFrame) -> Tensor:
    """How often each picture is drawn."""
    sizes = about.groupby(["label", "source", "generator"])["label"].transform("size")
    odds, y = torch.tensor(1 / np.sqrt(sizes.to_numpy()), dtype=torch.float32), labels_of(about)
    for value in (0, 1):
        odds[y == value] /= odds[y == value].sum()
    return odds


def learn(logits: Tensor, y: Tensor, optimizer: Any, plan: Any) -> None:
    """One step of an optimizer, by labels that are smoothed, and of the plan of its rate."""
    loss = F.binary_cross_entropy_with_logits(logits, y * 0.96 + 0.02)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    plan.step()


def gone_on(
    start: nn.Sequential,
    x: Tensor,
    about: pd.DataFrame,
    fresh: np.ndarray,
    seed: int,
    way: float = 1.0,
) -> nn.Sequential:
    """What a classifier becomes by `ON_STEPS` steps more, half of each batch fresh pictures; or so
    much of the way there.
    """
    torch.manual_seed(seed)
    net, y = copy.deepcopy(start), labels_of(about)
    inside = (net[0], net[1], nn.Dropout(DROPPED_INSIDE), net[2])
    learning = nn.Sequential(nn.Dropout(DROPPED_OUT), *inside)
    groups = [np.flatnonzero(part) for part in (fresh, ~fresh)]
    drawn = [(torch.from_numpy(rows), odds_of(about.iloc[rows])) for rows in groups]
    optimizer = torch.optim.AdamW(net.parameters(), lr=ON_PEAK, weight_decay=0.01, fused=True)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, ON_STEPS)
    for _ in range(ON_STEPS):
        half = [rows[torch.multinomial(odds, BATCH // 2, True)] for rows, odds in drawn]
        rows = torch.cat(half)
        logits = learning(x[rows, torch.randint(x.shape[1], (BATCH,))].float()).squeeze(1)
        learn(logits, y[rows], optimizer, plan)
    with torch.no_grad():
        for weights, before in zip(net.parameters(), start.parameters(), strict=True):
            weights.copy_(way * weights + (1 - way) * before)
    return net.eval()


def learned(x: Tensor, y: Tensor, odds: Tensor, seed: int, hidden: int) -> Any:
    """x (N, T, D) float16, normalised."""
    torch.manual_seed(seed)
    inside: list[nn.Module] = []
    if hidden:
        inside = [nn.Linear(x.shape[-1], hidden), nn.GELU(), nn.Dropout(DROPPED_INSIDE)]
    last = nn.Linear(hidden or x.shape[-1], 1)
    net = nn.Sequential(nn.Dropout(DROPPED_OUT), *inside, last)
    steps = EPOCHS * len(y) // BATCH
    optimizer = torch.optim.AdamW(net.parameters(), lr=PEAK, weight_decay=0.1, fused=True)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=steps + 1)
    for _ in range(steps):
        rows = torch.multinomial(odds, BATCH, replacement=True)
        view = torch.randint(x.shape[1], (BATCH,))
        logits = net(x[rows, view].float()).squeeze(1)
        learn(logits, y[rows], optimizer, plan)
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("unseen")
    from_lists(one)
    of_halves(one, adapters=True)
    one.add_argument("--out", type=Path, required=True)
    computed(one)
    one.set_defaults(run=unseen)
    one = commands.add_parser("features")
    from_lists(one)
    one.add_argument("--scores", type=Path, nargs="+", required=True)
    of_halves(one)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--per-group", type=int, default=25)
    one.add_argument("--all-real", action="store_true")
    computed(one)
    one.set_defaults(run=features)
    one = commands.add_parser("fit")
    one.add_argument("--features", type=Path, required=True)
    one.add_argument("--scores", type=Path, nargs="+", required=True)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--share", type=float, default=0.6)
    one.add_argument("--detector", help="Go on from its second reading.")
    one.add_argument("--fresh", type=Path, nargs="+", default=[], help="Of --scores.")
    one.add_argument("--way", type=float, default=1.0, help="How much of the way on is taken.")
    one.add_argument("--seed", type=int, default=0)
    one.set_defaults(run=fit)
    one = commands.add_parser("matrix")
    from_lists(one)
    one.add_argument("--scores", type=Path, nargs="+", required=True)
    for name in ("--features", "--adapters", "--out"):
        one.add_argument(name, type=Path, required=True)
    one.add_argument("--pretrained", required=True)
    one.add_argument("--number", type=int, default=75)
    one.add_argument("--share", type=float, default=0.6)
    computed(one)
    one.set_defaults(run=matrix)
    args = parser.parse_args()
    args.run(args)


def from_lists(parser: argparse.ArgumentParser) -> None:
    """Lists of pictures and, in the same order, the folders that hold them."""
    parser.add_argument("--list", type=Path, action="append", required=True)
    parser.add_argument("--pictures", type=Path, action="append", required=True)


def of_halves(parser: argparse.ArgumentParser, adapters: bool = False) -> None:
    """A detector with a second reading, or what it would be made of."""
    one = parser.add_mutually_exclusive_group(required=True)
    one.add_argument("--detector", metavar="NAME", help="A detector that has a second reading.")
    one.add_argument("--pretrained", metavar="CLIP")
    if adapters:
        parser.add_argument("--adapters", nargs="+", default=[], metavar="FILE=SHARE")


def computed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--seed", type=int, default=3)


if __name__ == "__main__":
    main()
