"""Learning where a picture is fake, from masks of what was made or changed in it.

The loss of places stands beside that of the image. Where a network has a layer of its own for
places, that layer alone learns them. Where its map is made of the parts of the image's logit, whose
mean is that logit, a picture that is fake in part would be asked for two things at once: a high
mean, and a map that is low where nothing was changed. There only the differences between the places
of one picture learn from its mask, and the image's loss says how high their mean is.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from ganscope.detector.model import Detector
from ganscope.errors import GanscopeError

WEIGHT = 0.5
"""Of the loss of places beside that of the image."""


class WithPlaces(nn.Module):
    """A detector as it learns both: images (N, 3, H, W) in [0, 1] -> logits (N,), and logits of
    places (N, h, w).
    """

    def __init__(self, detector: Detector):
        super().__init__()
        self.detector = detector
        if not (detector.has_places or detector.has_map):
            raise GanscopeError(
                f"--masks: {detector.config['architecture']} has no map of logits to teach; take "
                "lite, cnn, npr, patch, clip, vit:NAME, or a timm:NAME of the kinds of ResNet"
            )

    @property
    def own(self) -> bool:
        """Whether places have a layer of their own."""
        return self.detector.has_places

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        net: Any = self.detector.net
        x = self.detector.normalised(images)
        if self.own:
            local, logits = net.where_logits(x)
        else:
            local = net.patch_logits(x)
            logits = local.mean((1, 2))
        return logits, local


def places_loss(local: Tensor, masks: Tensor, own: bool) -> Tensor:
    """The loss (N,) of places: local (N, h, w) logits, masks (N, H, W) in [0, 1].

    own: the map is of a layer of its own; else see the module.
    """
    target = F.adaptive_avg_pool2d(masks[:, None].float(), local.shape[1:])[:, 0]
    if not own:
        share = target.mean((1, 2), keepdim=True)
        base = torch.logit(share.clamp(0.02, 0.98))
        differences = local - local.mean((1, 2), keepdim=True) + base
        local = torch.where((share > 0) & (share < 1), differences, local)
    return F.binary_cross_entropy_with_logits(local, target, reduction="none").mean((1, 2))


def measure_places(maps: list[np.ndarray], masks: list[np.ndarray]) -> dict[str, float]:
    """How well maps (h, w) of logits say where: `pixel_auroc` over all places of all pictures that
    were changed in part, and `iou`, the mean over these of the intersection of what was changed
    (mask above one half) and what is said to be (logit above 0) by their union.

    masks (H, W) in [0, 1]; maps are enlarged to their sizes. NaN where no mask is of a part.
    """
    import cv2

    values, truths, found = [], [], []
    for local, mask in zip(maps, masks, strict=True):
        truth = mask > 0.5
        if truth.all() or not truth.any():
            continue
        size = (mask.shape[1], mask.shape[0])
        logits = cv2.resize(local.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
        said = logits > 0
        found.append((said & truth).sum() / max((said | truth).sum(), 1))
        every = max(round((truth.size / 4096) ** 0.5), 1)  # 64 x 64 points tell as much
        values.append(logits[::every, ::every].ravel())
        truths.append(truth[::every, ::every].ravel())
    if not found or len(np.unique(np.concatenate(truths))) < 2:
        return {"pixel_auroc": float("nan"), "iou": float("nan"), "masks": len(found)}
    auroc = roc_auc_score(np.concatenate(truths), np.concatenate(values))
    return {"pixel_auroc": float(auroc), "iou": float(np.mean(found)), "masks": len(found)}
