"""The frozen-linear recipe: a large backbone as it is, and a linear classifier on its features.

Frozen features of large models carry over to new generators (UnivFD, Ojha et al. 2023,
arXiv:2302.10174). Each view goes through the backbone once; the features of each look at all images
are kept on disk until the run is finished, and the classifier is fitted in seconds.
"""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor, nn

from ganscope.config import (
    TrainDetectorSettings,
    plain,
    read_json,
    replacing,
    write_json,
    write_text,
)
from ganscope.datasets.corpus import newest_corpus
from ganscope.detector.model import Detector
from ganscope.detector.networks.architectures import is_read_at_blocks
from ganscope.detector.networks.backbones import TimmNet
from ganscope.detector.networks.transformer import BlockFeatures
from ganscope.detector.training.evaluation import finish_run
from ganscope.detector.training.fusion import fuse_detectors
from ganscope.detector.training.run import (
    FINE_TUNING,
    LOSSES,
    OpenOther,
    fingerprint,
    look_first,
    open_run,
    open_views,
    reading_processes,
    refuse_unused,
    split_table,
    tell_of_images,
    warn_of_random,
)
from ganscope.detector.training.views import Key, Loader, Sampler, Views, to_keys
from ganscope.devices import (
    Speed,
    asked_of_main,
    by_main_process,
    fastest,
    gathering,
    pick_device,
    processes,
    remembered,
    to_device,
)
from ganscope.errors import GanscopeError
from ganscope.files import damaged
from ganscope.folders import SPEED

if TYPE_CHECKING:
    from rich.progress import Progress

UNUSED = ("learning_rate", "hard_examples", "patience", "soup", *set(FINE_TUNING) - {"hidden"})
"""Settings of other recipes."""
ABOUT = "features.json"
"""What the features in a run folder are of."""
BEND_PASSES, BEND_BATCH, BEND_RATE, BEND_DECAY = 60, 64, 2e-3, 0.05
"""How the curved classifier is fitted, where there is one: AdamW; validation says when it was
best."""
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Inverse weights of the penalty on the classifier that are tried; validation chooses."""


def train_frozen(
    settings: TrainDetectorSettings, open_other: OpenOther, progress: "Progress | None" = None
) -> Path:
    """Train a linear classifier on a frozen backbone; `train_detector` describes the run folder.

    `epochs` says how often each training image is looked at, each time cropped and degraded anew.
    Several processes share the images; the main one gathers the features, which do not depend on
    how many they are, and fits. Raises `GanscopeError` as `train_detector` does, and for an
    architecture without a linear classifier.
    """
    device = pick_device(settings.device)
    state = processes(device)
    refuse_unused(settings, UNUSED)
    if not settings.corpora:
        settings = replace(settings, corpora=(newest_corpus(),))
    look_first(settings, progress)
    table = split_table(settings)
    torch.manual_seed(settings.seed)
    curved = is_read_at_blocks(settings.detector)
    if settings.hidden and not curved:
        raise GanscopeError(
            f"--hidden: {settings.detector} has no curved classifier; take --detector clip or "
            "vit:NAME, or leave it out"
        )
    detector = Detector.create(
        settings.detector,
        size=settings.size,
        pretrained=settings.pretrained,
        **({"hidden": settings.hidden} if settings.hidden else {}),
    )
    classifier_of(detector)
    warn_of_random(settings)
    run, _ = open_run(settings, state)
    by_main_process(lambda: tell_of_images(settings, run, table))
    other = open_other(settings, run, progress)
    state = processes(device)  # it may have been trained just now

    train = table[table["split"] == "train"]
    views = open_views(settings, table, detector.size)
    sampler = Sampler(train, 0.0, views.twins[: len(train)], settings.pairs or 0.0)
    orders = {"val": to_keys(np.flatnonzero(table["split"] == "val"), 0, False)}
    for look in range(settings.epochs):
        rows = sampler.draw(len(train), np.random.default_rng((settings.seed, look)))
        orders[str(look)] = to_keys(rows, look, True, views.twins)

    begun, now = run / ABOUT, {"images": fingerprint(table, 1)}
    remedy = "delete it and the files features-*.npz, and the same command computes them again"

    def begin() -> list[str]:
        if begun.exists() and read_json(begun, remedy) != now:
            raise GanscopeError(
                f"{run} was begun with other images; restore them to continue it, or name another "
                "folder with --out"
            )
        write_json(begun, now)
        return [name for name in orders if (run / f"features-{name}.npz").exists()]

    kept = asked_of_main(begin)
    detector = detector.to(state.device).eval()
    many = max(map(len, orders.values()))
    speed = remembered(run / SPEED, lambda: _choose_speed(settings, detector, many))
    detector = detector.to(memory_format=speed.layout)
    total = sum(map(len, orders.values()))
    task = (
        None
        if progress is None
        else progress.add_task(f"features of {settings.detector}", total=total, note="")
    )
    width, features = classifier_of(detector).in_features, {}
    rank, several = state.process_index, state.num_processes
    with (
        gathering() as gather,
        Loader(views, reading_processes(settings, device, several)) as loader,
    ):
        for name, keys in orders.items():
            path = run / f"features-{name}.npz"
            if name not in kept:
                own = keys[rank::several]  # all of them take as long, and none waits for another
                part_of = compute_features(detector, loader, own, settings.batch_size, speed)
                parts = gather(part_of)
                if state.is_main_process:
                    found = np.empty((len(keys), width), np.float32)
                    for i, part in enumerate(parts):
                        found[i::several] = part
                    with replacing(path) as file:
                        np.savez(file, features=found)  # a zip: with a checksum
                    features[name] = found
            elif state.is_main_process:
                features[name] = _read_features(path, (len(keys), width))
            if progress and task is not None:
                progress.update(task, advance=len(keys))
    by_main_process(
        lambda: _finish(
            settings, run, table, views, orders, features, detector, other, speed.precision
        )
    )
    return run


def _choose_speed(settings: TrainDetectorSettings, detector: Detector, images: int) -> Speed:
    """The precision and layout to read features in: as told, or the quickest for "auto"."""
    device = detector.mean.device
    # On a CPU a few images tell, and take no minute; a GPU shows with a whole batch.
    n = 2 if device.type == "cpu" else min(settings.batch_size, images)
    some = torch.rand(n, 3, detector.size, detector.size, device=device)

    def read(speed: Speed) -> None:
        detector.to(memory_format=speed.layout)
        with torch.inference_mode(), speed.autocast(device):
            detector(some.to(memory_format=speed.layout))

    return fastest(read, device, settings.precision)


def _finish(
    settings: TrainDetectorSettings,
    run: Path,
    table: pd.DataFrame,
    views: Views,
    orders: dict[str, list[Key]],
    features: dict[str, np.ndarray],
    detector: Detector,
    other: Detector | None,
    precision: str,
) -> None:
    """Fit the classifier to the features of each look, and evaluate the detector."""
    learned = [str(look) for look in range(settings.epochs)]
    x = np.concatenate([features[name] for name in learned])
    y = np.array([views.labels[key.row] for name in learned for key in orders[name]])
    x_val = features["val"]
    y_val = np.array([views.labels[key.row] for key in orders["val"]])
    fit, strength = _fit(x, y, x_val, y_val)
    layer = classifier_of(detector)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(fit[0])[None])
        layer.bias.fill_(fit[1])

    val_logits, logits = (part @ fit[0] + fit[1] for part in (x_val, x))
    if settings.hidden:
        curve: Any = detector.net.curve
        bend(curve, (x, y, logits), (x_val, y_val, val_logits), settings.seed)
        val_logits += _of_curve(curve, x_val)
        logits += _of_curve(curve, x)
    row = {
        "epoch": settings.epochs,
        "loss": log_loss(y, _sigmoid(logits)),
        "val_loss": log_loss(y_val, _sigmoid(val_logits)),
        "val_auroc": float(roc_auc_score(y_val, val_logits)),
    }
    detector.config["training"] = {
        **plain(settings),
        "penalty": strength,
        "precision": precision,
        "best_epoch": settings.epochs,
    }
    if other:
        detector = fuse_detectors([detector, other], table, views, settings.batch_size)
    write_text(run / LOSSES, pd.DataFrame([row]).to_csv(index=False, float_format="%.6g"))
    finish_run(run, settings, detector, views, table, [row])
    for path in (run / SPEED, *run.glob("features*")):
        path.unlink()


def _read_features(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Features (N, D) that an earlier try kept; raises `GanscopeError` if they are damaged."""
    with damaged(path, "delete it, and the same command computes it again"):
        with np.load(path, allow_pickle=False) as kept:
            found = kept["features"]
        if found.shape != shape or found.dtype != np.float32 or not np.isfinite(found).all():
            raise ValueError(f"{found.dtype} numbers of shape {found.shape}, not {shape}")
        return found


def classifier_of(detector: Detector) -> nn.Linear:
    """The linear layer that turns a backbone's features into the logit.

    Raises `GanscopeError` for an architecture that has none.
    """
    net = detector.net
    layer = net.backbone.get_classifier() if isinstance(net, TimmNet) else None
    if isinstance(net, BlockFeatures):
        layer = net.head
    if not isinstance(layer, nn.Linear):
        raise GanscopeError(
            f"--recipe frozen-linear: {detector.config['architecture']} has no linear classifier "
            "on features; take --detector timm:NAME, clip or vit:NAME"
        )
    return layer


@torch.inference_mode()
def compute_features(
    detector: Detector, loader: Loader, keys: list[Key], batch_size: int, speed: Speed
) -> np.ndarray:
    """Features (N, D) float32, as the classifier sees them, of the views that keys stand for."""
    device = detector.mean.device
    found: list[Tensor] = []
    hook = classifier_of(detector).register_forward_pre_hook(
        lambda _, inputs: found.append(inputs[0].float().cpu())
    )
    try:
        batches = [keys[i : i + batch_size] for i in range(0, len(keys), batch_size)]
        for pixels in loader.batches(batches):
            images = (
                to_device(pixels, device).float().div_(255).contiguous(memory_format=speed.layout)
            )
            with speed.autocast(device):
                detector(images)
    finally:
        hook.remove()
    if not found:
        return np.empty((0, classifier_of(detector).in_features), np.float32)
    features = torch.cat(found).numpy()
    if not np.isfinite(features).all():
        raise GanscopeError("the backbone gave no finite numbers; take --precision fp32")
    return features


def _fit(
    x: np.ndarray, y: np.ndarray, x_val: np.ndarray, y_val: np.ndarray
) -> tuple[tuple[np.ndarray, float], float]:
    """Weights (D,) and bias of the classifier with the best AUROC on val, and its penalty."""
    mean, spread = x.mean(0), x.std(0) + 1e-6
    best = -1.0
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000)
        model.fit((x - mean) / spread, y)
        weights = (model.coef_[0] / spread).astype(np.float32)
        bias = float(model.intercept_[0] - weights @ mean)
        auroc = roc_auc_score(y_val, x_val @ weights + bias)
        if auroc > best:
            best, chosen, penalty = auroc, (weights, bias), strength
    return chosen, penalty


def bend(
    curve: nn.Sequential,
    learned: tuple[np.ndarray, np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray, np.ndarray],
    seed: int,
) -> None:
    """Fit a curved classifier to what the linear one leaves; it stays 0 where that helps nothing.

    learned, val: features (N, D), labels (N,) and the linear classifier's logits (N,). The weights
    with the least loss on val are kept.
    """
    device = next(curve.parameters()).device
    mean, spread = learned[0].mean(0), learned[0].std(0) + 1e-6
    x, x_val = (
        torch.from_numpy(((part[0] - mean) / spread).astype(np.float32)).to(device)
        for part in (learned, val)
    )
    y, linear, y_val, linear_val = (
        torch.from_numpy(np.asarray(values, np.float32)).to(device)
        for values in (*learned[1:], *val[1:])
    )

    def loss(logits: Tensor, target: Tensor, share: Tensor) -> Tensor:
        weight = torch.where(target > 0, 0.5 / share, 0.5 / (1 - share))
        return F.binary_cross_entropy_with_logits(logits, target, weight)

    rng = np.random.default_rng(seed)
    best, least = None, float(loss(linear_val, y_val, y_val.mean()))
    curve.requires_grad_(True)
    optimizer = torch.optim.AdamW(curve.parameters(), BEND_RATE, weight_decay=BEND_DECAY)
    for _ in range(BEND_PASSES):
        for rows in np.array_split(rng.permutation(len(x)), math.ceil(len(x) / BEND_BATCH)):
            now = curve(x[rows])[:, 0] + linear[rows]
            optimizer.zero_grad()
            loss(now, y[rows], y.mean()).backward()
            optimizer.step()
        with torch.no_grad():
            found = float(loss(curve(x_val)[:, 0] + linear_val, y_val, y_val.mean()))
        if found < least:
            best, least = copy.deepcopy(curve.state_dict()), found
    with torch.no_grad():
        first: Any = curve[0]
        last: Any = curve[-1]
        if best is None:
            last.weight.zero_()
            last.bias.zero_()
        else:
            curve.load_state_dict(best)
        # Features come as they are: their mean and spread go into the first layer.
        first.weight /= torch.from_numpy(spread.astype(np.float32)).to(device)
        first.bias -= first.weight @ torch.from_numpy(mean.astype(np.float32)).to(device)


@torch.no_grad()
def _of_curve(curve: nn.Module, x: np.ndarray) -> np.ndarray:
    """What the curved classifier adds to the logits (N,) of features (N, D)."""
    device = next(curve.parameters()).device
    return curve(torch.from_numpy(x).to(device))[:, 0].cpu().numpy()


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
