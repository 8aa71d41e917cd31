"""Teach a transformer's patches to say where a picture is fake, from pictures that are so in parts.

    python benchmarks/locate.py CORPUS --autoencoder TAEF2 --detector RUN --out places.safetensors

CORPUS holds photographs and fakes with their sources, of which a quarter is left for
`heatmaps.py`. Of photographs that are changed in part (`edited.py`) two views each go through the
network once; a logistic regression on the patches of several blocks, of the fine-tuned backbone
and of its untouched twin, learns which are of the changed part. It becomes the layer `where`, from
which heatmaps are made; scores stay as they are. OUT holds nothing else: `ship_clip.py --places`
builds it in, `heatmaps.py --places` measures it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from edited import LEARNED, Edits
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from ganscope.detector.judging.heatmaps import SMOOTH
from ganscope.detector.model import Detector
from ganscope.detector.networks.transformer import BlockFeatures
from ganscope.files import replacing

SIDES = (400, 1000)
"""Pixels: the longer sides of the photographs."""
ASIDE = 6
"""One picture in so many tells how far to trust the sum."""
DROPOUT, DECAY, RATE = 0.8, 0.3, 1e-3
LEAST = 0.05
"""Added to the spread of a channel."""
MOST = 45_000
"""Patches of each class that are learned from."""
BATCH = 512
"""Patches a step."""


def main() -> None:
    options = _options()
    before = Detector.load(options.detector)
    if not isinstance(before.net, BlockFeatures):
        raise SystemExit(f"{options.detector}: no transformer that is read at several blocks")
    arguments: dict[str, Any] = {"where": options.blocks}
    if options.plain:
        arguments["where_plain"] = options.plain
    try:
        detector = asking_where(before, arguments)
    except ValueError as error:
        raise SystemExit(f"--blocks, --plain: {error}") from None
    edits = Edits(options.corpus, options.autoencoder, False, options.seed, SIDES)
    tokens, share = patches_of(detector, edits, options.n)
    net: Any = detector.net
    side = round(share.shape[1] ** 0.5)
    kept = np.arange(len(tokens)) // 2 % ASIDE == ASIDE - 1  # both views of a picture
    bias = learn(net.where, tokens[~kept], share[~kept], options.epochs, options.seed)
    with torch.inference_mode():
        flat = [net.where(one.float())[:, 0].view(side, side).numpy() for one in tokens[kept]]
    times, plus = scale_of(np.stack(flat) + bias, share[kept])
    with torch.no_grad():
        net.where.weight.mul_(times)
        net.where_bias.fill_(times * bias + plus)
    save_places(net, arguments, options.out)
    print(f"{share.size:,} patches, {(share > 0.5).mean():.0%} of them fake; scale {times:.2f}")


def asking_where(before: Detector, arguments: dict[str, Any]) -> Detector:
    """A detector with a layer `where` of other arguments, untrained; the rest is shared."""
    known = {k: v for k, v in before.config["arguments"].items() if not k.startswith("where")}
    detector = Detector({**before.config, "arguments": {**known, **arguments}}).eval()
    state = {k: v for k, v in before.state_dict().items() if not k.startswith("net.where")}
    detector.load_state_dict(state, strict=False)
    detector.card, detector.name = before.card, before.name
    return detector


def save_places(net: Any, arguments: dict[str, Any], path: Path) -> None:
    """Write a layer `where`, and the arguments that it was built by, atomically."""
    state = {k: v.contiguous() for k, v in net.state_dict().items() if k.startswith("where")}
    with replacing(path) as part:
        save_file(state, part, metadata={"arguments": json.dumps(arguments)})


def read_places(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The arguments and the tensors that `save_places` wrote."""
    with safe_open(path, "pt") as file:
        arguments = json.loads((file.metadata() or {}).get("arguments", "null"))
        if not isinstance(arguments, dict):
            raise SystemExit(f"{path}: not written by benchmarks/locate.py")
        return arguments, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def with_places(before: Detector, path: Path) -> Detector:
    """A detector whose layer `where` is that of a file."""
    arguments, state = read_places(path)
    detector = asking_where(before, arguments)
    detector.load_state_dict({f"net.{key}": value for key, value in state.items()}, strict=False)
    return detector


def learn(layer: nn.Linear, tokens: Tensor, share: np.ndarray, epochs: int, seed: int) -> float:
    """Fit a layer to tokens (N, P, D) of which each is fake to a share (N, P), equally many of
    both, and return its bias; patches that are a little of both are left out.

    It learns of channels on one scale, most of which are left out of each step.
    """
    torch.manual_seed(seed)
    flat, x = torch.from_numpy(share).flatten(), tokens.flatten(0, 1)
    parts = [torch.nonzero(one)[:, 0] for one in (flat < 0.1, flat > 0.9)]
    n = min(MOST, *map(len, parts))
    rows = torch.cat([one[torch.randperm(len(one))[:n]] for one in parts])
    y = torch.arange(2 * n).ge(n).float()
    some = x[rows[::7]].float()
    mean, spread = some.mean(0), some.std(0) + LEAST
    nn.init.zeros_(layer.weight)
    bias = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.AdamW([layer.weight, bias], RATE, weight_decay=DECAY)
    steps = epochs * (2 * n // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(2 * n).split(BATCH)[: 2 * n // BATCH]:
            weight = F.dropout(torch.ones_like(spread), DROPOUT) / spread * layer.weight[0]
            found = (x[rows[batch]].float() - mean) @ weight + bias
            loss = F.binary_cross_entropy_with_logits(found, y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        layer.weight.div_(spread)
        return float(bias - layer.weight[0] @ mean)


def scale_of(flat: np.ndarray, share: np.ndarray) -> tuple[float, float]:
    """By how much to multiply logits (N, h, w), and what to add, so that smoothed as heatmaps are
    they are the log odds of a place to be fake, if both were alike frequent.
    """
    side = flat.shape[1]
    smooth = np.stack([cv2.GaussianBlur(one, (0, 0), side / SMOOTH) for one in flat]).ravel()
    clear = ((share < 0.1) | (share > 0.9)).ravel()
    fit = LogisticRegression(class_weight="balanced")
    fit.fit(smooth[clear, None], share.ravel()[clear] > 0.5)
    return float(fit.coef_[0, 0]), float(fit.intercept_[0])


def patches_of(detector: Detector, edits: Edits, n: int) -> tuple[Tensor, np.ndarray]:
    """(2 n, P, D) tokens of two views of each of n pictures, and how much of each patch is fake."""
    net: Any = detector.net
    size, rng = detector.size, edits.rng
    found, shares = [], []
    for one in edits.draw(LEARNED, n):
        for _ in range(2):
            view, mask = about(one.pixels, one.mask, size, rng)
            image = torch.from_numpy(view).permute(2, 0, 1)[None].float().div_(255)
            with torch.inference_mode():
                _, _, patches = net.patches(detector.normalised(image))
            found.append(patches[0].half())
            side = round(patches.shape[1] ** 0.5)
            shares.append(cv2.resize(mask, (side, side), interpolation=cv2.INTER_AREA).ravel())
    return torch.stack(found), np.stack(shares)


def about(
    pixels: np.ndarray, mask: np.ndarray, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A view (size, size) of the pixels and of the mask, which most often shows both parts."""
    for _ in range(30):
        top, left = (int(rng.integers(n - size + 1)) for n in mask.shape)
        cut = np.s_[top : top + size, left : left + size]
        if 0.05 < (mask[cut] > 0.5).mean() < 0.9 or rng.random() < 0.02:
            break
    return pixels[cut].copy(), mask[cut]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus")
    parser.add_argument("--autoencoder", required=True, help="as `reconstruct:` takes it")
    parser.add_argument("--detector", default="default")
    parser.add_argument("--blocks", type=int, nargs="+", default=[3, 5, 7], help="from 0")
    parser.add_argument("--plain", type=int, nargs="*", default=[1, 3, 5], help="of the twin")
    parser.add_argument("--n", type=int, default=960, help="pictures")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
