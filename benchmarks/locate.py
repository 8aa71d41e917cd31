"""Teach a transformer to say where a picture is fake, from pictures that are so in parts.

    python benchmarks/locate.py CORPUS --autoencoder TAEF2 --detector RUN --out places.safetensors

CORPUS holds photographs and fakes with their sources, of which a quarter is left for
`heatmaps.py`. Photographs are changed in part (`edited.py`), three crops of each are kept, and a
copy of the detector's untouched backbone (`plain`, else of its only one) learns by low-rank
adapters which patches are of the changed part. It becomes the backbone `local` with the layer
`where`, from which heatmaps are made; scores stay as they are. The crops, and every other minute
what is learned, are kept beside OUT, and the same command goes on from there. OUT holds nothing
else: `ship_clip.py --places` builds it in, `heatmaps.py --places` measures it.
"""

import argparse
import json
import math
import time
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

from ganscope.datasets.degradations import jpeg
from ganscope.detector.judging.heatmaps import SMOOTH
from ganscope.detector.model import Detector
from ganscope.detector.networks.lora import ALSO, add_adapters
from ganscope.detector.networks.transformer import BlockFeatures
from ganscope.devices import pick_device
from ganscope.files import replacing
from ganscope.named import STEPS, with_steps

SIDES = (400, 1000)
"""Pixels: the longer sides of the photographs."""
CROPS, ROOM = 3, 64
"""Crops of a picture, and by how many pixels they are larger than what is learned from them."""
ASIDE = 12
"""One picture in so many tells how far to trust the logits."""
BATCH, RANK, DECAY, CLIP, DROPOUT = 24, 8, 0.05, 1.0, 0.2
WARM_UP, AVERAGE, KEPT = 40, 0.99, 120.0
"""Steps, decay of the averaged weights, seconds between two checkpoints."""
CLEAR, UNCLEAR = (0.1, 0.9), 0.3
"""A patch of which a share between these is fake counts by as much."""


def main() -> None:
    options = _options()
    before = Detector.load(options.detector)
    if not isinstance(before.net, BlockFeatures):
        raise SystemExit(f"{options.detector}: no transformer that is read at several blocks")
    arguments: dict[str, Any] = {"where_own": options.blocks}
    try:
        detector = asking_where(before, arguments)
    except ValueError as error:
        raise SystemExit(f"--blocks: {error}") from None
    crops = options.out.with_suffix(f".crops-{options.n}-{options.seed}.npz")
    if not crops.exists():
        edits = Edits(options.corpus, options.autoencoder, False, options.seed, SIDES)
        pixels, masks = crops_of(edits, options.n, detector.size + ROOM)
        with replacing(crops) as part, part.open("wb") as file:
            np.savez(file, pixels=pixels, masks=masks)
    pixels, masks = (np.load(crops)[name] for name in ("pixels", "masks"))
    kept = np.arange(len(pixels)) // CROPS % ASIDE == ASIDE - 1  # all crops of a picture
    detector.to(pick_device(options.device))
    learn(detector, pixels[~kept], masks[~kept], options)
    calibrate(detector, pixels[kept], masks[kept])
    save_places(detector.cpu(), arguments, options.out)
    for one in (crops, checkpoint_of(options.out)):
        one.unlink(missing_ok=True)


def asking_where(before: Detector, arguments: dict[str, Any]) -> Detector:
    """A detector with a layer `where` of other arguments, untrained; the rest is shared."""
    known = {k: v for k, v in before.config["arguments"].items() if not k.startswith("where")}
    detector = Detector({**before.config, "arguments": {**known, **arguments}}).eval()
    new = ("net.where", "net.local.")
    state = {k: v for k, v in before.state_dict().items() if not k.startswith(new)}
    detector.load_state_dict(state, strict=False)
    net: Any = detector.net
    if net.local is not None:
        net.local.load_state_dict(twin_of(net).state_dict())
        part = "backbone" if net.plain is None else "plain"
        detector.config[STEPS] = detector.config.get(STEPS, {}) | {"net.local.": f"net.{part}."}
    nn.init.zeros_(net.where.weight)
    detector.card, detector.name = before.card, before.name
    return detector


def twin_of(net: Any) -> Any:
    """The backbone that `local` begins as."""
    return net.backbone if net.plain is None else net.plain


def checkpoint_of(out: Path) -> Path:
    return out.with_suffix(".checkpoint.pt")


def save_places(detector: Detector, arguments: dict[str, Any], path: Path) -> None:
    """Write what says where, and the arguments that it was built by, atomically."""
    state = {k: v for k, v in detector.state_dict().items() if k.startswith("net.where")}
    net: Any = detector.net
    if net.local is not None:
        state |= {f"net.local.{k}": v for k, v in learned_of(net.local).items()}
    state = {k: v.detach().half().contiguous() for k, v in state.items()}
    with replacing(path) as part:
        save_file(state, part, metadata={"arguments": json.dumps(arguments)})


def learned_of(local: Any) -> dict[str, nn.Parameter]:
    """What a backbone with adapters learns: `<matrix>.weight.A` and `.B`, and its norms."""
    found = {}
    for name, value in local.named_parameters():
        if name.endswith((".A", ".B")):
            found[f"{name[:-2]}.weight{name[-2:]}"] = value
        elif any(f".{norm}" in f".{name}" for norm in ALSO):
            found[name] = value
    return found


def read_places(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The arguments and the tensors that `save_places` wrote."""
    with safe_open(path, "pt") as file:
        arguments = json.loads((file.metadata() or {}).get("arguments", "null"))
        if not isinstance(arguments, dict):
            raise SystemExit(f"{path}: not written by benchmarks/locate.py")
        return arguments, {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118


def with_places(before: Detector, path: Path) -> Detector:
    """A detector which says where as a file tells it."""
    arguments, learned = read_places(path)
    detector = asking_where(before, arguments)
    own = {k: v for k, v in detector.state_dict().items() if not k.startswith("net.local.")}
    detector.load_state_dict(with_steps(own | learned, detector.config, str(path)))
    return detector


def crops_of(edits: Edits, n: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """(3 n, side, side, 3) uint8 crops of n pictures, and (3 n, side, side) uint8 masks."""
    pixels = np.empty((CROPS * n, side, side, 3), np.uint8)
    masks = np.empty((CROPS * n, side, side), np.uint8)
    for number, one in enumerate(edits.draw(LEARNED, n)):
        room = [(0, max(side - length, 0)) for length in one.mask.shape]
        picture = np.pad(one.pixels, [*room, (0, 0)], mode="symmetric")
        mask = np.pad(one.mask, room, mode="symmetric")
        for row in range(CROPS * number, CROPS * (number + 1)):
            view, fake = about(picture, mask, side, edits.rng)
            pixels[row], masks[row] = view, np.rint(fake * 255)
        if (number + 1) % 100 == 0:
            print(f"{number + 1:,} of {n:,} pictures changed in part", flush=True)
    return pixels, masks


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


def learn(
    detector: Detector, pixels: np.ndarray, masks: np.ndarray, options: argparse.Namespace
) -> None:
    """Fit `local`, by adapters, and `where` to crops (N, H, W, 3) and masks (N, H, W), uint8, and
    leave the average of their last weights.
    """
    net: Any = detector.net
    torch.manual_seed(options.seed)
    detector.requires_grad_(False)
    add_adapters(net, options.rank, backbone="local")
    detector.to(device := detector.mean.device)
    body, layer = list(learned_of(net.local).values()), [net.where.weight, net.where_bias]
    learned = [one.requires_grad_(True) for one in (*body, *layer)]
    groups = [{"params": body, "times": 1.0}, {"params": layer, "times": 2.0}]
    optimizer = torch.optim.AdamW(groups, options.learning_rate, weight_decay=DECAY)
    average = [one.detach().clone() for one in learned]
    state, step, before = checkpoint_of(options.out), 0, 0.0
    if state.exists():
        saved = torch.load(state, map_location=device, weights_only=True)
        optimizer.load_state_dict(saved["optimizer"])
        with torch.no_grad():
            for mine, its in zip(learned, saved["learned"], strict=True):
                mine.copy_(its)
        average, step, before = saved["average"], saved["step"], saved["seconds"]
    order = np.random.default_rng(options.seed).permutation(len(pixels))
    started = kept = time.perf_counter()
    losses: list[float] = []
    while (spent := before + time.perf_counter() - started) < 60 * options.minutes:
        rng = np.random.default_rng((options.seed, step))
        rows = order[(np.arange(BATCH) + step * BATCH) % len(order)]
        views, fake = _views(pixels, masks, rows, detector.size, rng)
        with torch.autocast(device.type, torch.bfloat16):
            images = views.to(device).permute(0, 3, 1, 2).float().div_(255)
            local = net.own_places(detector.normalised(images), DROPOUT)
        share = F.avg_pool2d(fake.to(device), detector.size // local.shape[1])
        loss = places_loss(local.float(), share)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learned, CLIP)
        now = spent / (60 * options.minutes)
        rate = options.learning_rate * min(1, (step + 1) / WARM_UP)
        for group in optimizer.param_groups:
            group["lr"] = group["times"] * rate * (1 + math.cos(math.pi * now)) / 2
        optimizer.step()
        step += 1
        with torch.no_grad():
            torch._foreach_lerp_(average, learned, 1 - min(AVERAGE, step / (step + 20)))
        losses.append(loss.item())
        if step % 20 == 0:
            print(f"{now:.0%}, step {step:,}, loss {np.mean(losses[-50:]):.3f}", flush=True)
        if time.perf_counter() - kept > KEPT:
            kept = time.perf_counter()
            told = {"optimizer": optimizer.state_dict(), "average": average, "step": step}
            told |= {"learned": [one.detach() for one in learned], "seconds": spent}
            with replacing(state) as part:
                torch.save(told, part)
    with torch.no_grad():
        for mine, its in zip(learned, average, strict=True):
            mine.copy_(its)


def _views(
    pixels: np.ndarray, masks: np.ndarray, rows: np.ndarray, size: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """(N, size, size, 3) uint8, and the masks in [0, 1], from anywhere in crops; half mirrored,
    and changed by `_relit`.
    """
    views, fake = [], []
    for row in rows:
        y, x = rng.integers(pixels.shape[1] - size + 1, size=2)
        turn = rng.choice((-1, 1))
        view = np.ascontiguousarray(pixels[row, y : y + size, x : x + size][:, ::turn])
        views.append(_relit(view, rng))
        fake.append(masks[row, y : y + size, x : x + size][:, ::turn])
    return torch.from_numpy(np.stack(views)), torch.from_numpy(np.stack(fake) / np.float32(255))


def _relit(view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A view, now and then in other light, without colours or with others, or saved once more:
    what is fake in it stays so.
    """
    if rng.random() < 0.5:
        light = 255 * (np.arange(256) / 255) ** rng.uniform(0.7, 1.35)
        light = light * rng.uniform(0.85, 1.12) + rng.uniform(-12, 12)
        view = light.clip(0, 255).astype(np.uint8)[view]
    if rng.random() < 0.15:
        view = cv2.cvtColor(view, cv2.COLOR_RGB2GRAY)[..., None].repeat(3, 2)
    elif rng.random() < 0.2:
        view = np.ascontiguousarray(view[..., rng.permutation(3)])
    return jpeg(view, int(rng.integers(80, 99)), rng) if rng.random() < 0.35 else view


def places_loss(local: Tensor, share: Tensor) -> Tensor:
    """Cross entropy of logits (N, h, w), of which each is fake to a share; both parts count alike,
    and patches that are a little of both less.
    """
    weight = torch.where((share > CLEAR[0]) & (share < CLEAR[1]), UNCLEAR, 1.0)
    fake = share > 0.5
    part = fake.float().mean()
    weight = weight * torch.where(fake, 0.5 / part.clamp_min(0.1), 0.5 / (1 - part).clamp_min(0.1))
    found = F.binary_cross_entropy_with_logits(local, share * 0.96 + 0.02, reduction="none")
    return (found * weight).sum() / weight.sum()


@torch.no_grad()
def calibrate(detector: Detector, pixels: np.ndarray, masks: np.ndarray) -> None:
    """Scale the layer `where`, so that its logits, smoothed as heatmaps are, are the log odds of a
    place to be fake, if both were alike frequent.
    """
    net: Any = detector.net
    room = (pixels.shape[1] - detector.size) // 2
    cut = np.s_[:, room : room + detector.size, room : room + detector.size]
    pixels, masks = np.ascontiguousarray(pixels[cut]), masks[cut]
    flat = np.concatenate(
        [detector.local_logits(pixels[i : i + 16])[0] for i in range(0, len(pixels), 16)]
    )
    side = flat.shape[1]
    share = np.stack(
        [
            cv2.resize(one / np.float32(255), (side, side), interpolation=cv2.INTER_AREA)
            for one in masks
        ]
    )
    smooth = np.stack([cv2.GaussianBlur(one, (0, 0), side / SMOOTH) for one in flat]).ravel()
    share = share.ravel()
    clear = (share < CLEAR[0]) | (share > CLEAR[1])
    fit = LogisticRegression(class_weight="balanced")
    fit.fit(smooth[clear, None], share[clear] > 0.5)
    times, plus = float(fit.coef_[0, 0]), float(fit.intercept_[0])
    net.where.weight.mul_(times)
    net.where_bias.mul_(times).add_(plus)
    print(f"{share.size:,} patches kept apart, {(share > 0.5).mean():.0%} fake; scale {times:.2f}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus")
    parser.add_argument("--autoencoder", required=True, help="as `reconstruct:` takes it")
    parser.add_argument("--detector", default="default")
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 3, 5, 7], help="from 0")
    parser.add_argument("--rank", type=int, default=RANK)
    parser.add_argument("--n", type=int, default=3000, help="pictures")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
