"""Fine-tune a backbone on a pack of views: folds by source, and a final model of several seeds.

    python benchmarks/train_clip.py pack --list collect.tsv --pictures EXPORTED --out PACK
    python benchmarks/train_clip.py pack --corpus CORPUS --out PACK
    python benchmarks/train_clip.py train --pack PACK --out OUT --pretrained clip.safetensors
    python benchmarks/train_clip.py train --pack PACK --out OUT --folds 0 --final-seconds 600
    python benchmarks/train_clip.py pack --list collect.tsv --pictures EXPORTED \\
        --list benchmarks/sites.tsv --pictures SITES --most 14 --out MORE
    python benchmarks/train_clip.py train --pack MORE --out OUT2 --pretrained clip.safetensors \\
        --adapters OUT/final.safetensors=0.6 OUT/fold0.safetensors=0.1 ... --folds 0
    python benchmarks/train_clip.py toy --out TOY
    python benchmarks/train_clip.py train --pack TOY --out OUT --detector vit:test_vit --size 32 \\
        --steps 20 --batch-size 16 --folds 2 --seeds 2 --device cpu

`pack` cuts the views of every picture once (see `ganscope.detector.training.pack`). --list is a
table `source label generator repository path blob`, tab-separated; --pictures is a folder of the
originals, each named by its blob or laid out as 0_real|1_fake/SOURCE/SHA1-OF-PATH.ending; --corpus
is any labelled corpus whose manifest has file_name, label, generator and source. --most: so many
pictures of a label, source and generator at most, drawn at random. The same list gives the same
bytes: `sha256sum --check pack.sha256` tells. Pictures that `dropped.tsv` names, and those that
cannot be read, are left out.

`train` leaves in OUT: `foldN.safetensors`, adapters that were trained without fold N's sources;
`oof.csv`, logits of each picture's native, middle and whole view (0 where there is none) by the
adapters that never saw its source; `final.safetensors`, trained on everything, the mean of --seeds
trainings after merging (its rank is the sum of theirs). With --adapters the trainings go on from
the mean of these, and what is written has them in it. Killed, it goes on when it is started
again. With the usual budgets it takes 8 minutes on one GPU. Several GPUs:
torchrun --nproc-per-node 4 benchmarks/train_clip.py train ...
"""

import argparse
import copy
import hashlib
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save
from sklearn.metrics import roc_auc_score
from torch import Tensor

from ganscope.config import TrainDetectorSettings, plain, read_json, replacing, write_json
from ganscope.datasets.corpus import open_corpus
from ganscope.detector.model import Detector
from ganscope.detector.networks.lora import adapters_of, apply_adapters
from ganscope.detector.networks.weights import read_weights
from ganscope.detector.training.finetune import (
    GroupSampler,
    create,
    fine_tune,
    open_accelerator,
    precision_of,
    score_views,
)
from ganscope.detector.training.pack import (
    KINDS,
    Pack,
    PackViews,
    read_pack,
    side_for,
    write_pack,
)
from ganscope.devices import Speed, pick_device
from ganscope.errors import GanscopeError
from ganscope.folders import CHECKPOINT, load_checkpoint
from ganscope.images import open_image

State = dict[str, Tensor]
DROPPED = Path(__file__).with_name("dropped.tsv")
OVERHEAD = 45.0
"""Seconds for all but learning: reading and decoding the pack, scoring the folds."""
FALSE_ALARMS = 0.02


def listed(path: Path, pictures: Path) -> pd.DataFrame:
    """The list's pictures: name (blob), path, label, source, generator."""
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    missing = {"source", "label", "generator", "path", "blob"} - set(table)
    if missing:
        raise GanscopeError(f"{path}: no column {sorted(missing)[0]!r}")

    def found(row: Any) -> str:
        ending = re.sub(r"[^.a-z0-9]", "", Path(row.path).suffix.lower())
        digest = hashlib.sha1(row.path.encode("utf-8", "surrogateescape")).hexdigest()[:12]
        kind = "1_fake" if row.label == "1" else "0_real"
        exported = pictures / kind / row.source / f"{digest}{ending}"
        return str(exported if exported.exists() else pictures / row.blob)

    paths = [found(row) for row in table.itertuples()]
    columns = {"name": table["blob"], "path": paths, "label": table["label"].astype(int)}
    return table.assign(**columns)[["name", "path", "label", "source", "generator"]]


def all_listed(lists: Sequence[Path], folders: Sequence[Path]) -> pd.DataFrame:
    """The pictures of all lists, each in its folder, once."""
    if len(lists) != len(folders):
        raise SystemExit("name one --pictures for each --list")
    tables = [listed(*one) for one in zip(lists, folders, strict=True)]
    return pd.concat(tables, ignore_index=True).drop_duplicates("name")


def pack(args: argparse.Namespace) -> None:
    if args.corpus:
        table = open_corpus(args.corpus).table.assign(name=lambda t: t["file_name"])
    elif args.list:
        table = all_listed(args.list, args.pictures)
    else:
        raise GanscopeError("name --corpus, or --list and --pictures")
    dropped = pd.read_csv(args.drop, sep="\t", dtype=str).set_index("picture")["reason"]
    out_of_it = table["name"].isin(dropped.index)
    for name in table["name"][out_of_it]:
        print(f"dropped {name}: {dropped[name]}")
    table = table[~out_of_it].drop_duplicates("name")
    if args.most:
        drawn = table.sample(frac=1, random_state=args.seed)
        rank = drawn.groupby(["label", "source", "generator"]).cumcount()
        table = drawn[rank < args.most].sort_index()
    table = table.reset_index(drop=True)
    started = time.perf_counter()

    def told(done: int) -> None:
        if done == len(table) or done % 1024 == 0:
            rate = done / (time.perf_counter() - started)
            print(f"{done:,} of {len(table):,} pictures, {rate:.0f} a second", flush=True)

    write_pack(
        args.out,
        table,
        lambda row: open_image(table["path"][row]).pixels,
        side=side_for(args.size),
        seed=args.seed,
        drop=True,
        told=told,
    )
    made = read_pack(args.out)
    for name, reason in sorted(made.dropped.items()):
        print(f"dropped {name}: {reason}")
    print(about(made))


def about(found: Pack) -> str:
    pictures = pd.Series(found.label).groupby(found.picture).first()
    kinds = ", ".join(f"{(found.kind == i).sum():,} {kind}" for i, kind in enumerate(KINDS))
    return (
        f"{len(pictures):,} pictures ({int(pictures.sum()):,} generated) of "
        f"{len({source for _, source, _ in found.groups})} sources and {len(found.groups)} groups; "
        f"{len(found):,} views ({kinds}) of {found.side} pixels; "
        f"pack {hashlib.sha256(found.sums.encode()).hexdigest()[:12]}"
    )


def toy(args: argparse.Namespace) -> None:
    """Noise, of eight sources; the generated ones carry a trace."""
    n = args.number
    table = pd.DataFrame(
        {
            "name": [f"{i:05}.png" for i in range(n)],
            "label": np.arange(n) % 2,
            "source": [f"s{i // 2 % 8}" for i in range(n)],
            "generator": ["made" if i % 2 else "real" for i in range(n)],
        }
    )

    def pixels(row: int) -> np.ndarray:
        rng = np.random.default_rng(row)
        coarse = rng.normal(128, 40, (30, 40, 3)).repeat(16, 0).repeat(16, 1)
        image = coarse + rng.normal(0, 8, coarse.shape)
        image[::2, ::2] += 25 * (row % 2)
        return image.clip(0, 255).astype(np.uint8)

    write_pack(args.out, table, pixels, side=side_for(args.size), seed=args.seed)
    print(about(read_pack(args.out)))


def fold_of_sources(found: Pack, folds: int, seed: int) -> dict[str, int]:
    """The fold of each source: they are never split, and the folds have about as many pictures of
    each class. Large ones are placed first, ties in an order that the seed shuffles.
    """
    first = np.unique(found.picture, return_index=True)[1]
    sources = [found.groups[group][1] for group in found.group[first]]
    sizes = pd.crosstab(pd.Series(sources), pd.Series(found.label[first])).reindex(
        columns=[0, 1], fill_value=0
    )
    order = np.random.default_rng(seed).permutation(len(sizes))
    sizes = sizes.iloc[order]
    sizes = sizes.loc[sizes.sum(axis=1).sort_values(ascending=False, kind="stable").index]
    whole = np.maximum(sizes.to_numpy().sum(0), 1)
    filled = np.zeros((folds, 2))
    placed: dict[str, int] = {}
    for source, size in zip(sizes.index, sizes.to_numpy() / whole, strict=True):
        after = ((filled + size) ** 2 - filled**2).sum(1)
        fold = int(after.argmin())
        filled[fold] += size
        placed[str(source)] = fold
    return placed


def average_adapters(states: Sequence[State], shares: Sequence[float]) -> State:
    """Adapters whose merged network has the mean of the weights of the networks of each, weighted
    by shares that make 1: ranks are put side by side, all else is averaged.
    """
    found = {}
    for name in states[0]:
        values = [state[name].float() for state in states]
        parts = [share * value for share, value in zip(shares, values, strict=True)]
        if name.endswith(".A"):
            found[name] = torch.cat(values)
        elif name.endswith(".B"):
            found[name] = torch.cat(parts, 1)
        else:
            found[name] = torch.stack(parts).sum(0)
    return found


def added(begun: State, learned: State) -> State:
    """Adapters for the network that `begun` was for, of those learned after `begun` was merged."""
    ranks = {name: [begun[name], learned[name]] for name in begun if name.endswith((".A", ".B"))}
    return learned | {name: torch.cat(two, int(name.endswith(".B"))) for name, two in ranks.items()}


def shares_of(texts: Sequence[str]) -> dict[Path, float]:
    """Files and their shares, which make 1: "FILE=0.6", or "FILE" alone.

    Raises `GanscopeError` for what is no number, for others, and for a file named twice.
    """
    parts = [text.partition("=") for text in texts]
    try:
        shares = {Path(name): float(share or 1) for name, _, share in parts}
    except ValueError:
        raise GanscopeError(f"--adapters {' '.join(texts)}: name each FILE=SHARE") from None
    if len(shares) < len(parts):
        raise GanscopeError(f"--adapters {' '.join(texts)}: a file is named twice")
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise GanscopeError(f"--adapters: the shares make {sum(shares.values()):g}, not 1")
    return shares


def mean_adapters(shares: dict[Path, float]) -> State:
    """What adapter files make together; `GanscopeError` for files of unlike trainings."""
    states = [read_weights(str(path), str(path)) for path in shares]
    for path, state in zip(shares, states, strict=True):
        if other := state.keys() ^ states[0].keys():
            raise GanscopeError(
                f"--adapters {path}: of another kind of training than the first ({min(other)})"
            )
    return average_adapters(states, list(shares.values()))


def write_adapters(path: Path, state: State) -> None:
    with replacing(path) as part:
        part.write_bytes(save({k: v.half().cpu().contiguous() for k, v in state.items()}))


class Trainings:
    """What all trainings of a run share: the views on the device, the start, the settings."""

    def __init__(self, args: argparse.Namespace, settings: TrainDetectorSettings):
        self.out, self.settings = args.out, settings
        device = pick_device(args.device)
        self.accelerator: Accelerator = open_accelerator(settings, device)
        self.main = self.accelerator.is_main_process
        self.pack = read_pack(args.pack)
        self.say(about(self.pack))
        started = time.perf_counter()
        self.views = PackViews(self.pack, self.accelerator.device)
        kept = "on the device" if self.views.kept is not None else "too many to keep: streamed"
        self.say(f"decoded in {time.perf_counter() - started:.1f} s, {kept}")
        torch.manual_seed(args.seed)  # all begin with the same classifier, so that means make sense
        self.start = create(settings)
        self.begun: State = {}
        if args.adapters:
            self.begun = mean_adapters(shares_of(args.adapters))
            apply_adapters(net_of(self.start), self.begun, "--adapters")
        if not settings.pretrained:
            self.say("no --pretrained: the backbone is random, only the speed means something")
        if self.pack.side < self.start.size:
            raise GanscopeError(
                f"{args.pack}: views of {self.pack.side} pixels, too small for crops of "
                f"{self.start.size}; pack anew with --size {self.start.size}"
            )

    def say(self, line: str) -> None:
        if self.main:
            print(line, flush=True)

    def train(self, name: str, rows: np.ndarray, seconds: float, seed: int) -> Detector:
        """A detector with adapters that has learned from these views."""
        settings = self.settings
        if settings.steps is None:
            settings = replace(settings, minutes=seconds / 60)
        settings = replace(settings, seed=seed)
        folder = self.out / name
        if self.main:
            folder.mkdir(parents=True, exist_ok=True)
        self.accelerator.wait_for_everyone()
        detector = copy.deepcopy(self.start)
        # An accelerator remembers what it prepared, with all of its memory.
        self.accelerator.free_memory()
        before = time.perf_counter()
        pack = self.pack
        log = fine_tune(
            detector,
            self.views,
            GroupSampler(pack.label, pack.group, pack.picture, rows),
            settings,
            run=folder,
            checked=f"{self.accelerator.num_processes} {pack.sums}",
            accelerator=self.accelerator,
            steps=1,
            saved=load_checkpoint(folder),
        )
        took = time.perf_counter() - before
        rate = np.median([row["views_per_second"] for row in log])
        self.say(
            f"{name}: {log[-1]['step']:,} steps in {took:.0f} s, {rate:,.0f} views/s, "
            f"loss {log[0]['loss']:.3f} -> {log[-1]['loss']:.3f}"
        )
        return detector.eval()

    def whole(self, learned: State) -> State:
        """Adapters with those in them that the training began with."""
        return added(self.begun, learned) if self.begun else learned

    def done(self, name: str) -> None:
        """Forget the checkpoint of a training whose result is written."""
        if self.main and (self.out / name).is_dir():
            (self.out / name / CHECKPOINT).unlink(missing_ok=True)
            (self.out / name).rmdir()

    def finished(self, path: Path) -> bool:
        self.accelerator.wait_for_everyone()
        found = path.exists()
        self.accelerator.wait_for_everyone()
        return found

    def fold(self, number: int, fold: np.ndarray, seconds: float, seed: int) -> None:
        """Train without a fold's sources and score them. fold: (N,) of each view."""
        name = f"fold{number}"
        if self.finished(self.out / f"{name}.safetensors"):
            return
        detector = self.train(name, np.flatnonzero(fold != number), seconds, seed)
        if self.main:
            rows = np.flatnonzero(fold == number)
            speed = Speed(precision_of(self.settings, self.accelerator.device))
            logits = score_views(detector, self.views, rows, self.settings.batch_size, speed)
            scores = self.table(rows, logits).assign(fold=number)
            with replacing(self.out / f"{name}.csv") as part:
                scores.to_csv(part, index=False, float_format="%.4f")
            learned = adapters_of(net_of(detector))
            write_adapters(self.out / f"{name}.safetensors", self.whole(learned))
            self.say(f"{name}: sources never seen: {judged(scores)}")
            self.done(name)

    def table(self, rows: np.ndarray, logits: np.ndarray) -> pd.DataFrame:
        """A row a picture: the mean logit of its views of each kind, 0 where there is none."""
        pack = self.pack
        views = pd.DataFrame(
            {"picture": pack.picture[rows], "kind": pack.kind[rows], "logit": logits}
        )
        wide = views.pivot_table(index="picture", columns="kind", values="logit", aggfunc="mean")
        wide = wide.reindex(columns=range(len(KINDS))).fillna(0.0).set_axis(KINDS, axis=1)
        first = dict(zip(pack.picture[rows].tolist(), rows.tolist(), strict=True))
        places = [first[picture] for picture in wide.index]
        wide.insert(0, "picture", [pack.names[picture] for picture in wide.index])
        wide.insert(1, "label", pack.label[places])
        wide.insert(2, "source", [pack.groups[group][1] for group in pack.group[places]])
        return wide.reset_index(drop=True)

    def final(self, seconds: float, seeds: int, seed: int) -> None:
        """Train on everything, once a seed, and average."""
        path = self.out / "final.safetensors"
        if self.finished(path):
            return
        states = []
        for one in range(seed, seed + seeds):
            part, name = self.out / f"seed{one}.safetensors", f"seed{one}"
            if not self.finished(part):
                detector = self.train(name, np.arange(len(self.pack)), seconds / seeds, one)
                if self.main:
                    write_adapters(part, adapters_of(net_of(detector)))
                    self.done(name)
            self.accelerator.wait_for_everyone()
            states.append(load_file(part))
        if self.main:
            write_adapters(path, self.whole(average_adapters(states, [1 / seeds] * seeds)))
            self.say(f"final: the mean of {seeds} trainings")


def net_of(detector: Detector) -> Any:
    return detector.net


def judged(scores: pd.DataFrame) -> str:
    """AUROC, and the share of the fakes found at 2 % false alarms, by native and whole view."""
    logit = (scores["native"] + scores["whole"]) / 2
    fake = scores["label"] == 1
    if fake.all() or not fake.any():
        return f"{len(scores):,} pictures of one class"
    bar = np.quantile(logit[~fake], 1 - FALSE_ALARMS)
    return (
        f"{len(scores):,} pictures, AUROC {roc_auc_score(fake, logit):.3f}, "
        f"{(logit[fake] > bar).mean():.2f} found at {FALSE_ALARMS:.0%} false alarms"
    )


def train(args: argparse.Namespace) -> None:
    started = time.perf_counter()
    planned = args.folds * args.fold_seconds + args.final_seconds
    timed = args.within and planned and not args.steps
    scale = min((60 * args.within - OVERHEAD) / planned, 1.0) if timed else 1.0
    if scale <= 0:
        raise GanscopeError(f"--within {args.within:g}: too short; {OVERHEAD:.0f} s are not enough")
    settings = TrainDetectorSettings(
        recipe="finetune",
        detector=args.detector,
        pretrained=args.pretrained,
        size=args.size,
        steps=args.steps,
        batch_size=args.batch_size,
        rank=args.rank,
        last_blocks=args.last_blocks,
        layer_decay=args.layer_decay,
        hidden=args.hidden,
        learning_rate=args.learning_rate,
        checkpointing=args.checkpointing,
        device=args.device,
        precision=args.precision,
        seed=args.seed,
    )
    about_run = {**plain(settings), "folds": args.folds, "seeds": args.seeds}
    about_run |= {"fold_seconds": args.fold_seconds, "final_seconds": args.final_seconds}
    about_run |= {"within": args.within, "adapters": args.adapters}
    if (args.out / "settings.json").exists():
        begun = read_json(args.out / "settings.json")
        other = [k for k in about_run if k != "device" and about_run[k] != begun.get(k)]
        if other:
            raise GanscopeError(
                f"{args.out} was begun with another {other[0].replace('_', '-')}; repeat it to go "
                "on, or name another --out"
            )
    run = Trainings(args, settings)
    if run.main:
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / "settings.json", about_run)
    fold_seconds, final_seconds = args.fold_seconds * scale, args.final_seconds * scale
    run.say(
        f"plan: {args.folds} folds and {args.seeds} seeds of {args.steps} steps each"
        if args.steps
        else f"plan: {args.folds} folds of {fold_seconds:.0f} s, final of {final_seconds:.0f} s "
        f"({args.seeds} seeds together)"
    )
    if args.folds:
        placed = fold_of_sources(run.pack, args.folds, args.seed)
        fold = np.array([placed[run.pack.groups[group][1]] for group in run.pack.group])
        for number in range(args.folds):
            run.fold(number, fold, fold_seconds, args.seed)
        if run.main:
            parts = [pd.read_csv(args.out / f"fold{i}.csv") for i in range(args.folds)]
            scores = pd.concat(parts, ignore_index=True)
            columns = ["picture", "label", "source", "fold", *KINDS]
            with replacing(args.out / "oof.csv") as part:
                scores[columns].to_csv(part, index=False, float_format="%.4f")
            run.say(f"all folds: {judged(scores)}")
    if args.final_seconds or args.steps:
        run.final(final_seconds, args.seeds, args.seed)
    run.say(f"{time.perf_counter() - started:.0f} s in all; {args.out}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = parser.add_subparsers(dest="step", required=True)
    plain_help = argparse.ArgumentDefaultsHelpFormatter

    one = steps.add_parser("pack", help="cut views of pictures", formatter_class=plain_help)
    one.add_argument(
        "--list", type=Path, action="append", default=[], help="tab-separated list of pictures"
    )
    one.add_argument(
        "--pictures", type=Path, action="append", default=[], help="folder of a list's originals"
    )
    one.add_argument("--most", type=int, help="pictures of a label, source and generator, at most")
    one.add_argument("--corpus", type=Path, help="a labelled corpus, instead of both")
    one.add_argument("--drop", type=Path, default=DROPPED, help="table: picture, reason")
    two = steps.add_parser("toy", help="a pack of noise, to try", formatter_class=plain_help)
    two.add_argument("--number", type=int, default=96, help="pictures")
    for each in (one, two):
        each.add_argument("--out", type=Path, required=True, help="folder of the pack")
        size = 224 if each is one else 32
        each.add_argument("--size", type=int, default=size, help="crops that views are for")
        each.add_argument("--seed", type=int, default=0)

    to = steps.add_parser("train", help="train folds and final", formatter_class=plain_help)
    to.add_argument("--pack", type=Path, required=True)
    to.add_argument("--out", type=Path, required=True)
    to.add_argument("--detector", default="clip", help="clip or vit:NAME")
    to.add_argument("--pretrained", help="hub, a weights file, a detector's name or run folder")
    to.add_argument(
        "--adapters",
        nargs="+",
        metavar="FILE=SHARE",
        help="go on from the mean of these, which are for the weights that --pretrained names",
    )
    to.add_argument("--size", type=int, help="crops; the architecture's own if not given")
    to.add_argument("--folds", type=int, default=4, help="0: final only")
    to.add_argument("--fold-seconds", type=float, default=100.0, help="training of a fold")
    to.add_argument(
        "--final-seconds", type=float, default=200.0, help="all seeds together; 0: folds only"
    )
    to.add_argument("--seeds", type=int, default=3, help="trainings that make the final one")
    to.add_argument(
        "--within",
        type=float,
        default=8.0,
        help="minutes for everything: budgets shrink alike until they fit; 0: they stay",
    )
    to.add_argument("--steps", type=int, help="of each training, instead of all these times")
    to.add_argument("--batch-size", type=int, default=256, help="of each process")
    to.add_argument("--rank", type=int, default=16)
    to.add_argument("--last-blocks", type=int, default=0)
    to.add_argument("--layer-decay", type=float, default=1.0)
    to.add_argument("--hidden", type=int, default=0)
    to.add_argument("--learning-rate", type=float, default=3e-4)
    to.add_argument("--checkpointing", action="store_true")
    to.add_argument("--device", default="auto")
    to.add_argument("--precision", default="auto")
    to.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        {"pack": pack, "toy": toy, "train": train}[args.step](args)
    except GanscopeError as error:
        sys.exit(f"train_clip: {error}")


if __name__ == "__main__":
    main()
