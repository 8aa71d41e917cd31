"""Make the detector that ships out of CLIP's weights, adapters, and scores of unseen pictures.

    python benchmarks/ship_clip.py --base clip.safetensors --adapters final.safetensors=0.6 \\
        fold0.safetensors=0.1 ... --scores oof.csv --out DIR
    python benchmarks/ship_clip.py ... --second OUT/second.safetensors --scores OUT/scores.csv \\
        --looks looks-oof.csv ...
    python benchmarks/ship_clip.py --detector default --second OUT/second.safetensors \\
        --scores OUT/scores.csv --looks looks.csv --out DIR

base: OpenAI's ViT-B/16 in timm's names, or "hub". adapters: files that benchmarks/train_clip.py
wrote; the weights of several are averaged by the numbers after the "=". scores: a table with
`label`, `source` and the logits `native` and `whole` of pictures of sources that were left out
of the training: calibration and thresholds come from them alone. second: a classifier of what the
untouched backbone sees (benchmarks/second_reading.py), whose logits the table has as `second`;
--share is its part in the sum, after both are brought to one spread. looks: what more_views.py
wrote of the pictures of that table: calibration and thresholds come from the logits that all their
views came to, then, or the first look where that settles that they are fake, and what has no views
but the first look counts by as much less (`Judge.few`) as the threshold is below that of first
looks.

With --detector that one is taken as it is, but for its second reading, which went on from there
(`second_reading.py fit --detector`). Its thresholds and calibration are of more pictures than
--looks tells of, and stay; what they make of these is printed.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from locate import with_places
from safetensors.torch import load_file, save
from sklearn.metrics import roc_auc_score
from torch import nn
from train_clip import mean_adapters, shares_of

import ganscope
from ganscope.detector.judge import sigmoid
from ganscope.detector.judging.calibration import calibrate, count_called
from ganscope.detector.judging.checking import LEFT_OUT
from ganscope.detector.model import Detector
from ganscope.detector.networks.lora import apply_adapters
from ganscope.detector.networks.transformer import BlockFeatures
from ganscope.detector.networks.weights import read_weights
from ganscope.files import read_json, replacing, write_json
from ganscope.folders import to_bytes
from ganscope.named import CARD, CONFIG, SAVED_WITH, STEPS, WEIGHTS, weights_hash

MISSES = 0.10
"""Share of the unseen fakes that may be called real."""
FALSE_ALARMS = 0.01
"""Share of the unseen photographs that may be called fake."""
SETTLED, SETTLED_FAKE = -1.25, 4.5
"""Logits of a first look, of two views, that settle that a picture is real, or fake. No unseen fake
below the former came to a threshold by all its views; 56 % of the fakes reach the latter, and of
5,244 real pictures two that all their views would have spared."""
GLANCE, GLANCE_FAKE = -3.0, 5.5
"""Logits of the whole alone that settle it. They were chosen by 828 pictures that no weights had
learned from, so that each keeps the verdict of all its views: 69 % of the real ones and 3 % of the
fakes lie below, 35 % of the fakes and one real one (fake by all its views, too) above. Thresholds
are of what decides without a glance."""
SMALLEST = 128
"""Pixels: nothing smaller was judged."""
DRAWS = 2000
VERDICTS = ("fake", "real", "unsure")
HIDDEN = 192
"""Width of the second reading's classifier."""
MEASURE = 0.6
"""The part of the fine-tuned reading that it counts once at: whatever the parts are, the sum keeps
the spread that `SETTLED` was measured by."""


def main() -> None:
    options = _options()
    scores = pd.read_csv(options.scores)
    scores["tuned"] = (scores["native"] + scores["whole"]) / 2
    config = go_on(options, scores) if options.detector else make(options, scores)
    Detector.load(options.out)  # says what is wrong with it, if anything is
    for name in ("thresholds", "calibration", "false_alarms"):
        print(name, config.get(name))


def go_on(options: argparse.Namespace, scores: pd.DataFrame) -> dict[str, Any]:
    """Write a detector whose other weights are those of --detector, byte for byte (what
    `Detector.save` takes off whole weights comes out otherwise each time), and return its
    configuration.
    """
    detector = Detector.load(options.detector)
    looks = pd.concat([pd.read_csv(one) for one in options.looks], ignore_index=True)
    scores, looks = (summed(one, 1.0, 1.0) for one in (scores, looks))
    judged_by(settled(looks, scores), detector.thresholds)
    shutil.copytree(detector.folder, options.out, dirs_exist_ok=True)
    found = read_weights(str(options.second), str(options.second)).items()
    second = {f"net.beside.{name}": weights for name, weights in found}
    kept = load_file(detector.folder / WEIGHTS) | {name: w.half() for name, w in second.items()}
    with replacing(options.out / WEIGHTS) as part:
        part.write_bytes(save(kept | to_bytes(second), metadata={"format": "pt"}))
    if options.card:
        shutil.copyfile(options.card, options.out / CARD)
    config = read_json(options.out / CONFIG) | {SAVED_WITH: weights_hash(options.out)}
    write_json(options.out / CONFIG, config)
    return config


def make(options: argparse.Namespace, scores: pd.DataFrame) -> dict[str, Any]:
    """Make a detector, write it, and return its configuration."""
    shares = shares_of(options.adapters)
    arguments: dict[str, Any] = {"beside": HIDDEN} if options.second else {}
    detector = average_of(options.base, shares, arguments)
    parts = (1.0, 0.0)
    if options.second:
        parts = parts_of(scores, options.share)
        add_second(detector, options.second, *parts)
    if options.places:
        detector = with_places(detector, options.places)
    scores = summed(scores, *parts)
    if options.looks:
        first, scores = scores, pd.concat([pd.read_csv(one) for one in options.looks])
        scores = settled(summed(scores.reset_index(drop=True), *parts), first)
        views = detector.config["input"]["views"]
        views |= {"settled": SETTLED, "settled_fake": SETTLED_FAKE}
        views |= {"glance": GLANCE, "glance_fake": GLANCE_FAKE}
        bars = [
            one.loc[one["label"] == 0, "logit"].quantile(1 - FALSE_ALARMS)
            for one in (scores, first)
        ]
        views["few"] = round(min(bars[0] / bars[1], 1.0), 3)
    detector.config |= judged_by(scores)
    detector.config["storage"] = "int8"
    detector.config["input"]["smallest"] = SMALLEST
    detector.config["training"] = {
        "recipe": "finetune",
        "adapters": {path.name: share for path, share in shares.items()},
        "images": {
            "calibration": {
                "real": int((scores["label"] == 0).sum()),
                "fake": int((scores["label"] == 1).sum()),
            }
        },
        "corpora": [],
    }
    detector.config["versions"] = {
        "ganscope": ganscope.__version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
    }
    detector.card = options.card.read_text(encoding="utf-8") if options.card else ""
    detector.save(options.out)
    return detector.config


def parts_of(scores: pd.DataFrame, share: float) -> tuple[float, float]:
    """What the logits `tuned` and `second` are multiplied by, for the latter to be `share` of their
    sum.
    """
    alike = scores["tuned"].std() / scores["second"].std()
    return (1 - share) / MEASURE, float(share / MEASURE * alike)


def summed(scores: pd.DataFrame, tuned: float, second: float) -> pd.DataFrame:
    """With the column `logit`, of both readings where there are two."""
    beside = second * scores["second"] if second else 0.0
    return scores.assign(logit=tuned * scores["tuned"] + beside)


def settled(scores: pd.DataFrame, first: pd.DataFrame) -> pd.DataFrame:
    """With the logit of the first look where that settles that a picture is fake."""
    look = scores["picture"].map(first.set_index("picture")["logit"])
    return scores.assign(logit=scores["logit"].where(~(look >= SETTLED_FAKE), look))


@torch.no_grad()
def add_second(detector: Detector, path: Path, tuned: float, second: float) -> None:
    """Give a detector the classifier beside; the logits of both are multiplied by these numbers."""
    net = detector.net
    state = read_weights(str(path), str(path))
    assert isinstance(net, BlockFeatures)
    assert isinstance(net.beside, nn.Sequential)
    net.beside.load_state_dict(state)
    last = net.beside[2]
    assert isinstance(last, nn.Linear)
    for layer, part in ((net.head, tuned), (last, second)):
        layer.weight *= part
        layer.bias *= part
    detector.config[STEPS] = {"net.backbone.": "net.plain."}


def average_of(base: str, shares: dict[Path, float], arguments: dict[str, Any]) -> Detector:
    """The weighted mean of the networks that adapters make out of one backbone; arguments: of the
    network.
    """
    found = Detector.create("clip", pretrained=base, **arguments)
    assert isinstance(found.net, BlockFeatures)
    apply_adapters(found.net, mean_adapters(shares), "--adapters")
    return found.eval()


def judged_by(scores: pd.DataFrame, thresholds: dict[str, float] | None = None) -> dict[str, Any]:
    """Calibration, thresholds, unless given, and false alarms (`Detector`) from logits of unseen
    pictures.
    """
    logit, label = scores["logit"].to_numpy(), scores["label"].to_numpy()
    reals, fakes = np.sort(logit[label == 0]), np.sort(logit[label == 1])

    def above(share: float) -> float:
        return float(sigmoid(np.quantile(reals, 1 - share)))

    thresholds = thresholds or {
        "fake": above(FALSE_ALARMS),
        "real": min(above(FALSE_ALARMS), float(sigmoid(np.quantile(fakes, MISSES)))),
        "fpr_1": above(0.01),
        "fpr_5": above(0.05),
    }
    called = sigmoid(logit) >= thresholds["fake"]
    real = label == 0
    alarms = count_called(called[real], np.arange(int(real.sum())))
    alarms["at_most"] = round(bound_by_source(called[real], scores["source"][real]), 4)
    verdicts = np.select([called, sigmoid(logit) < thresholds["real"]], VERDICTS[:2], VERDICTS[2])
    print(f"AUROC {roc_auc_score(label, logit):.3f}")
    for name, of in (("real", real), ("generated", ~real)):
        shares = ", ".join(f"{one} {(verdicts[of] == one).mean():.3f}" for one in VERDICTS)
        print(f"{of.sum():,} {name} pictures are called {shares}")
    return {
        "calibration": calibrate(logit, label),
        "thresholds": thresholds,
        "false_alarms": {**alarms, "split": LEFT_OUT, "by_source": {}},
        "validation": {
            name: np.histogram(sigmoid(found), 20, (0, 1))[0].tolist()
            for name, found in (("real", reals), ("fake", fakes))
        },
    }


def bound_by_source(called: np.ndarray, sources: pd.Series) -> float:
    """The share called fake that is not exceeded with 95 % confidence, whole sources drawn anew
    (a photographer's pictures are no independent witnesses).
    """
    groups = [called[rows] for rows in sources.groupby(sources.to_numpy()).indices.values()]
    rng = np.random.default_rng(0)
    found = []
    for _ in range(DRAWS):
        drawn = [groups[i] for i in rng.integers(len(groups), size=len(groups))]
        found.append(np.concatenate(drawn).mean())
    return float(np.quantile(found, 0.95))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    one = parser.add_mutually_exclusive_group(required=True)
    one.add_argument("--base")
    one.add_argument("--detector", metavar="NAME", help="Keep it, but for its second reading.")
    parser.add_argument("--adapters", nargs="+", default=[], metavar="FILE=SHARE")
    parser.add_argument("--scores", required=True)
    parser.add_argument("--second", type=Path)
    parser.add_argument("--looks", type=Path, nargs="+", help="Tables of more_views.py.")
    parser.add_argument("--places", type=Path, help="Layer that says where, of locate.py.")
    parser.add_argument("--share", type=float, default=0.6)
    parser.add_argument("--card", type=Path, help="Markdown of the model card.")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.base and not options.adapters:
        parser.error("--base takes --adapters with it")
    if options.detector and not (options.second and options.looks):
        parser.error("--detector takes --second and --looks with it")
    if options.detector and (options.adapters or options.places):
        parser.error("--detector keeps its adapters and places; name neither")
    return options


if __name__ == "__main__":
    main()
