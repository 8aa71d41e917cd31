"""Learning where a picture is fake, from masks of what was made or changed in it.

The loss of places stands beside that of the image. Where a network has a layer of its own for
places, that layer alone learns them. Where its map is made of the parts of the image's logit, whose
mean is that logit, a picture that is fake in part would be asked for two things at once: a high
mean, and a map that is low where nothing was changed. There only the differences between the places
of one picture learn from its mask, and the image's loss says how high their mean is.
"""

import os
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from ganscope.datasets.masks import read_mask
from ganscope.detector.model import Detector
from ganscope.detector.networks.architectures import build, is_read_at_blocks
from ganscope.errors import GanscopeError, ImageError
from ganscope.images import open_image, read_facts

WEIGHT = 0.5
"""Of the loss of places beside that of the image."""


def find_masks(table: pd.DataFrame) -> list[str]:
    """For each row of a corpus' table the file of its mask, "" for none."""
    if "mask" not in table:
        return [""] * len(table)
    found = []
    for path, name, mask in zip(table["path"], table["file_name"], table["mask"], strict=True):
        root = path.removesuffix(name)  # a frame of a video has another path, and a whole mask
        found.append(os.path.join(root, mask) if mask else "")
    return found


def refuse_without_masks(table: pd.DataFrame, named: str) -> None:
    """Raise `GanscopeError` where no image of a corpus' table has a mask, or none of the masks'
    files is there. Nothing is opened: it is known before hours go into images.
    """
    masks = [mask for mask in find_masks(table) if mask]
    if not masks:
        raise GanscopeError(
            f"{named}: --masks: no image has a mask; corpora tell of them in a column `mask` of "
            "metadata.csv, as those made by ganscope generate --generator faceswap: or inpaint: do"
        )
    if not any(map(os.path.isfile, masks)):
        raise GanscopeError(
            f"{named}: --masks: none of the {len(masks):,} masks that it names is there, "
            f"{masks[0]} for one; restore them, or leave --masks out"
        )


def leave_out_misfits(table: pd.DataFrame, named: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The images of a table whose masks fit, and those that have none; and the others, with a
    column `reason`. Raises `GanscopeError` as `refuse_without_masks` does.
    """
    refuse_without_masks(table, named)
    masks = find_masks(table)
    reasons = [""] * len(table)
    for row, (path, mask) in enumerate(zip(table["path"], masks, strict=True)):
        if not mask:
            continue
        try:
            image, other = read_facts(path), read_facts(mask)
            size = (image.stored_width, image.stored_height)
            said = (other.stored_width, other.stored_height)
            if sorted(said) != sorted(size):
                reasons[row] = (
                    f"its mask has {said[0]}x{said[1]} pixels, the image {size[0]}x{size[1]}"
                )
            elif size[0] != size[1] and (image.has_exif or said != size):  # perhaps turned
                read_mask(mask, open_image(path).pixels.shape)
        except ImageError as error:
            reasons[row] = f"its mask: {error.reason}"
    fits = np.array([not reason for reason in reasons], bool)
    return table[fits], table[~fits].assign(reason=[reason for reason in reasons if reason])


def heads_for_places(detector: str) -> dict[str, Any]:
    """Arguments by which an architecture gets a layer of its own for places; none where its map is
    that of the logit's parts.
    """
    if is_read_at_blocks(detector):
        net, _ = build(detector)
        return {"where": net.map_block}
    return {"where": True} if detector == "lite" or detector.startswith("timm:") else {}


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
    height, width = local.shape[1:]
    target = F.adaptive_avg_pool2d(masks[:, None].float(), (height, width))[:, 0]
    if not own:
        share = target.mean((1, 2), keepdim=True)
        base = torch.logit(share.clamp(0.02, 0.98))
        differences = local - local.mean((1, 2), keepdim=True) + base
        local = torch.where((share > 0) & (share < 1), differences, local)
    return F.binary_cross_entropy_with_logits(local, target, reduction="none").mean((1, 2))


def best_shift(maps: list[np.ndarray], masks: list[np.ndarray]) -> float:
    """By how much to raise maps (h, w) of logits, so that what is above 0 meets the masks (H, W)
    best, by the mean intersection over union; 0 where no mask is of a part.

    Most places of most pictures are unchanged, so maps that were fitted to all of them are too low
    for those of a picture that is known to be fake.
    """
    shifts = np.linspace(-1, 5, 25)
    found = [measure_places([one + shift for one in maps], masks)["iou"] for shift in shifts]
    return 0.0 if np.isnan(found).any() else float(shifts[int(np.argmax(found))])


def measure_places(maps: list[np.ndarray], masks: list[np.ndarray]) -> dict[str, float]:
    """How well maps (h, w) of logits say where: `pixel_auroc` over all places of all pictures that
    were changed in part, and `iou`, the mean over these of the intersection of what was changed
    (mask above one half) and what is said to be (logit above 0) by their union.

    masks (H, W) in [0, 1]; maps are enlarged to their sizes. NaN where no mask is of a part.
    """
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
