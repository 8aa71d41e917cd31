"""Teach a transformer's patches to say where a picture is fake, from pictures that are so in parts.

    python benchmarks/locate.py PAIRS --fakes CORPUS --detector RUN --out OUT

PAIRS is a corpus of photographs and fakes made from them (`ganscope generate --generator
reconstruct:... --from ...`). Into each photograph an ellipse of its fake is laid, and into another
copy one of any fake of CORPUS; both are saved as JPEG 80 to 96, and a view about the ellipse goes
through the network once. A logistic regression on the patches of one block becomes the layer
`where` of the detector's network, from which its heatmaps are made; scores stay as they are.
"""

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from heatmaps import ellipse
from sklearn.linear_model import LogisticRegression

from ganscope.datasets.corpus import open_corpus
from ganscope.datasets.degradations import jpeg
from ganscope.detector.model import Detector
from ganscope.detector.networks.transformer import BlockFeatures
from ganscope.detector.training.views import find_twins
from ganscope.errors import ImageError
from ganscope.images import open_image

PENALTY = 1e-3
"""Inverse weight of the penalty on the layer."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs")
    parser.add_argument("--fakes", help="corpus of whole fakes")
    parser.add_argument("--detector", required=True)
    parser.add_argument("--block", type=int, default=5, help="whose patches are asked, from 0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    before = Detector.load(options.detector)
    if not isinstance(before.net, BlockFeatures):
        parser.error(f"{options.detector}: no transformer that is read at several blocks")
    if not 0 <= options.block < len(before.net.backbone.blocks):
        parser.error(f"--block {options.block}: it has {len(before.net.backbone.blocks)} blocks")
    config = before.config
    config["arguments"] = {**config["arguments"], "where": options.block}
    detector = Detector(config).eval()
    detector.load_state_dict(before.state_dict(), strict=False)
    detector.card, detector.learned = before.card, before.learned
    net: Any = detector.net
    tokens, share = patches(detector, options)
    side = round(tokens.shape[1] ** 0.5)
    kept = np.arange(len(tokens)) % 6 >= 4  # for the scale: a third of the photographs
    weight, bias = fit_places(tokens[~kept], share[~kept])
    # Heatmaps are smoothed, which takes most of the spread away: it is given back here.
    flat = (tokens[kept] @ weight + bias).reshape(-1, side, side)
    smooth = np.stack([cv2.GaussianBlur(one, (0, 0), side / 6) for one in flat]).ravel()
    clear = ((share[kept] < 0.1) | (share[kept] > 0.9)).ravel()
    inside = share[kept].ravel() > 0.5
    scale = LogisticRegression(class_weight="balanced").fit(smooth[clear, None], inside[clear])
    times, plus = float(scale.coef_[0, 0]), float(scale.intercept_[0])
    with torch.no_grad():
        net.where.weight.copy_(torch.from_numpy((times * weight).astype(np.float32))[None])
        net.where_bias.copy_(torch.from_numpy((times * bias + plus).astype(np.float32)))
    detector.save(options.out)
    print(f"{share.size:,} patches, {(share > 0.5).mean():.0%} of them fake; scale {times:.2f}")


def fit_places(tokens: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (width,) and a bias a place (P,) that tell fake patches from others, from patches
    (N, P, width) and how much of each is fake (N, P).

    The middle of a view is fake more often here, and patches know where they are. So at each place
    fake ones and others weigh alike, and features are measured from the mean of the two.
    """
    clear, fake = (share < 0.1) | (share > 0.9), share > 0.5
    weight = np.where(fake, 0.5 / ((fake & clear).sum(0) + 1), 0.5 / ((~fake & clear).sum(0) + 1))
    weight = weight * clear
    weight *= clear.sum() / weight.sum()
    middle = (tokens * weight[..., None]).sum(0) / np.maximum(weight.sum(0), 1e-9)[:, None]
    centred = tokens - middle
    fit = LogisticRegression(C=PENALTY, max_iter=500)
    fit.fit(centred[clear], fake[clear], sample_weight=weight[clear])
    return fit.coef_[0], float(fit.intercept_[0]) - middle @ fit.coef_[0]


def patches(detector: Detector, options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """(N, P, width) patches of N views that are fake in parts, and (N, P) how much of each is."""
    rng = np.random.default_rng(options.seed)
    table = open_corpus(options.pairs).table
    twins = find_twins(table)
    others: list[str] = []
    if options.fakes:
        whole = open_corpus(options.fakes).table
        others = whole["path"][whole["label"] == 1].tolist()
    found: list[np.ndarray] = []
    shares: list[np.ndarray] = []
    for row in rng.permutation(np.flatnonzero(twins >= 0)):
        fake, photo = (open_image(table["path"][i]).pixels for i in (row, twins[row]))
        sources = [fake] if fake.shape == photo.shape else []
        if others:
            try:
                other = open_image(others[rng.integers(len(others))]).pixels
                sources.append(covering(other, photo.shape[:2]))
            except ImageError:
                pass
        if min(photo.shape[:2]) < detector.size:
            continue
        for source in sources:
            mask = ellipse(*photo.shape[:2], rng)
            mixed = photo + (source.astype(np.float32) - photo) * mask[..., None]
            pixels = jpeg(np.rint(mixed).astype(np.uint8), int(rng.integers(80, 97)), rng)
            view, mask = about(pixels, mask, detector.size, rng)
            with torch.inference_mode():
                image = torch.from_numpy(view).permute(2, 0, 1)[None].float().div_(255)
                _, local = detector.net.read(  # type: ignore[operator]
                    detector.normalised(image), options.block
                )
            found.append(local[0].numpy())
            side = round(local.shape[1] ** 0.5)
            shares.append(cv2.resize(mask, (side, side), interpolation=cv2.INTER_AREA).ravel())
    return np.stack(found), np.stack(shares)


def about(
    pixels: np.ndarray, mask: np.ndarray, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A view (size, size) of the pixels and of the mask, near the middle of what it covers."""
    corner = []
    for places, length in zip(np.nonzero(mask > 0.5), mask.shape, strict=True):
        near = int(places.mean()) - size // 2 + int(rng.integers(-90, 91))
        corner.append(int(np.clip(near, 0, length - size)))
    top, left = corner
    cut = np.s_[top : top + size, left : left + size]
    return pixels[cut].copy(), mask[cut]


def covering(pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A part (H, W, 3) of the pixels, enlarged if they are too small and halved if much larger."""
    share = max(n / m for n, m in zip(shape, pixels.shape[:2], strict=True))
    if share > 1 or share < 0.35:
        scale = share if share > 1 else 0.5
        size = [max(n, round(m * scale)) for n, m in zip(shape, pixels.shape[:2], strict=True)]
        pixels = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA)
    return pixels[: shape[0], : shape[1]]


if __name__ == "__main__":
    main()
