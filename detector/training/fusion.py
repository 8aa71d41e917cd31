"""Two detectors as one: a weighted sum of their logits.

Detectors of low-level traces and large frozen backbones fail on different fakes, and are better
together than alone on generators that neither has met.
"""

from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression

from ganscope.detector.model import Detector
from ganscope.detector.training.evaluation import score_table
from ganscope.detector.training.views import Views
from ganscope.prints import Prints


def fuse_detectors(
    parts: list[Detector], table: pd.DataFrame, views: Views, batch_size: int
) -> Detector:
    """Fuse detectors by a logistic regression on their logits of the val split's images.

    The first part's record of its training is kept. A part that would count against the others gets
    weight 0.
    """
    table = table[table["split"] == "val"]
    device = parts[0].mean.device
    found = [score_table(part.to(device), views, table, batch_size) for part in parts]
    both = found[0]["path"].isin(set.intersection(*(set(f["path"]) for f in found)))
    labels = found[0]["label"][both].to_numpy()
    logits = np.stack(
        [f.set_index("path")["logit"][found[0]["path"][both]].to_numpy() for f in found], 1
    )
    spread = logits.std(0) + 1e-6
    used = np.ones(len(parts), bool)
    while True:
        fit = LogisticRegression(class_weight="balanced")
        fit.fit(logits[:, used] / spread[used], labels)
        if (fit.coef_[0] >= 0).all() or used.sum() == 1:
            break
        used[np.flatnonzero(used)[fit.coef_[0].argmin()]] = False
    weights = np.zeros(len(parts))
    weights[used] = np.maximum(fit.coef_[0], 0) / spread[used]
    fused = Detector.create("fused", parts=[_about(part) for part in parts])
    with torch.no_grad():
        for network, part in zip(fused.net.networks, parts, strict=True):  # type: ignore[arg-type]
            network.load_state_dict(part.net.state_dict())
        fused.net.weights.copy_(torch.from_numpy(weights))  # type: ignore[operator]
        fused.net.bias.fill_(float(fit.intercept_[0]))  # type: ignore[operator]
    fused.config["training"] = {
        **parts[0].config["training"],
        "corpora": [c for part in parts for c in part.config["training"].get("corpora", [])],
    }
    fused.learned = Prints.nothing().and_of([part.learned for part in parts[1:]])
    return fused.to(device)


def _about(part: Detector) -> dict[str, Any]:
    """What a part is built from, and what its images must be like."""
    config = part.config
    return {
        "architecture": config["architecture"],
        "arguments": config["arguments"],
        "input": {name: config["input"][name] for name in ("size", "mean", "std")},
    }
