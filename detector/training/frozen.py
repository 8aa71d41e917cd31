"""The frozen-linear recipe: a large backbone as it is, and a linear classifier on its features.

Frozen features of large models carry over to new generators (UnivFD, Ojha et al. 2023,
arXiv:2302.10174). Each view goes through the backbone once; the features of each look at all images
are kept on disk until the run is finished, and the classifier is fitted in seconds.
"""

import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
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
from ganscope.detector.networks.backbones import TimmNet
from ganscope.detector.training.evaluation import finish_run
from ganscope.detector.training.fusion import fuse_detectors
from ganscope.detector.training.run import (
    LOSSES,
    OpenOther,
    fingerprint,
    open_run,
    open_views,
    reading_processes,
    split_table,
    tell_of_images,
)
from ganscope.detector.training.views import Key, Loader, Sampler, to_keys
from ganscope.devices import Speed, pick_device, processes
from ganscope.errors import GanscopeError, GanscopeWarning

if TYPE_CHECKING:
    from rich.progress import Progress

UNUSED = ("learning_rate", "hard_examples", "patience", "soup")
"""Settings of other recipes."""
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Inverse weights of the penalty on the classifier that are tried; validation chooses."""


def train_frozen(
    settings: TrainDetectorSettings, open_other: OpenOther, progress: "Progress | None" = None
) -> Path:
    """Train a linear classifier on a frozen backbone; `train_detector` describes the run folder.

    `epochs` says how often each training image is looked at, each time cropped and degraded anew.
    Raises `GanscopeError` as `train_detector` does, and for an architecture without a linear
    classifier or more than one process.
    """
    device = pick_device(settings.device)
    state = processes(device)
    if state.num_processes > 1:
        raise GanscopeError("--recipe frozen-linear runs in one process; start it without torchrun")
    for field in fields(settings):
        if field.name in UNUSED and getattr(settings, field.name) != field.default:
            flag = field.name.replace("_", "-")
            raise GanscopeError(f"--{flag}: frozen-linear has no use for it; leave it out")
    if not settings.pretrained:
        warnings.warn(
            "the backbone is random without --pretrained: its features say little",
            GanscopeWarning,
            stacklevel=2,
        )
    if not settings.corpora:
        settings = replace(settings, corpora=(newest_corpus(),))
    table = split_table(settings, progress)
    torch.manual_seed(settings.seed)
    detector = Detector.create(
        settings.detector, size=settings.size, pretrained=settings.pretrained
    )
    classifier_of(detector)
    run, _ = open_run(settings, state)
    tell_of_images(settings, run, table)
    other = open_other(settings, run, progress)

    train = table[table["split"] == "train"]
    views = open_views(settings, table, detector.size)
    sampler = Sampler(train, 0.0, views.twins[: len(train)], settings.pairs or 0.0)
    orders = {"val": to_keys(np.flatnonzero(table["split"] == "val"), 0, False)}
    for look in range(settings.epochs):
        rows = sampler.draw(len(train), np.random.default_rng((settings.seed, look)))
        orders[str(look)] = to_keys(rows, look, True, views.twins)

    half = "bf16" if device.type == "cuda" else "fp32"
    precision = half if settings.precision == "auto" else settings.precision
    begun, now = run / "features.json", {"images": fingerprint(table, 1), "precision": precision}
    if begun.exists() and read_json(begun) != now:
        raise GanscopeError(
            f"{run} was begun with other images or in another precision; restore them to continue "
            "it, or name another folder with --out"
        )
    write_json(begun, now)
    speed = Speed(precision, channels_last=device.type != "mps")
    detector = detector.to(device).eval().to(memory_format=speed.layout)
    total = sum(map(len, orders.values()))
    task = (
        None
        if progress is None
        else progress.add_task(f"features of {settings.detector}", total=total, note="")
    )
    with Loader(views, reading_processes(settings, device, 1)) as loader:
        for name, keys in orders.items():
            path = run / f"features-{name}.npy"
            if not path.exists():
                found = compute_features(detector, loader, keys, settings.batch_size, speed)
                with replacing(path) as part:
                    np.save(part, found)
            if progress and task is not None:
                progress.update(task, advance=len(keys))

    learned = [str(look) for look in range(settings.epochs)]
    x = np.concatenate([np.load(run / f"features-{name}.npy") for name in learned])
    y = np.array([views.labels[key.row] for name in learned for key in orders[name]])
    x_val = np.load(run / "features-val.npy")
    y_val = np.array([views.labels[key.row] for key in orders["val"]])
    fit, strength = _fit(x, y, x_val, y_val)
    layer = classifier_of(detector)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(fit[0])[None])
        layer.bias.fill_(fit[1])

    val_logits, logits = (part @ fit[0] + fit[1] for part in (x_val, x))
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
    for path in run.glob("features*"):
        path.unlink()
    return run


def classifier_of(detector: Detector) -> nn.Linear:
    """The linear layer that turns a backbone's features into the logit.

    Raises `GanscopeError` for an architecture that has none.
    """
    net = detector.net
    layer = net.backbone.get_classifier() if isinstance(net, TimmNet) else None
    if not isinstance(layer, nn.Linear):
        raise GanscopeError(
            f"--recipe frozen-linear: {detector.config['architecture']} has no linear classifier "
            "on features; take --detector timm:NAME"
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
            images = pixels.to(device).float().div_(255).contiguous(memory_format=speed.layout)
            with speed.autocast(device):
                detector(images)
    finally:
        hook.remove()
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


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
