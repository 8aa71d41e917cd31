"""Image-to-image generators: pix2pix learns from pairs, CycleGAN from two unpaired heaps.

Both are fully convolutional: trained on small crops, they turn a photograph of any size into a fake
of the same size, large ones tile by tile. What pix2pix starts from may be made of the photographs
themselves: `inputs` names the ways.
"""

import math
import os
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ganscope.config import TrainGeneratorSettings
from ganscope.errors import GanscopeError, ImageError
from ganscope.generator.kinds.architecture import (
    DISCRIMINATOR,
    GENERATOR,
    Architecture,
    Batch,
    Play,
)
from ganscope.generator.kinds.losses import bce_discriminator, bce_generator
from ganscope.generator.kinds.networks import init_weights
from ganscope.generator.pixels import LARGE, in_tiles
from ganscope.images import open_image, read_facts
from ganscope.inputs import find_images
from ganscope.registry import Registry

BACKWARD, BACKWARD_DISCRIMINATOR = "backward", "backward_discriminator"
TILE, OVERLAP = 1280, 256
"""Sides in pixels. Tiles begin at multiples of their difference, which is a multiple of the deepest
U-Net's 2**depth: its strides must fall on the same pixels whatever the tile."""
NAMED = 5
"""An error about many files names so many of them."""


def _reflect(images: Tensor, multiple: int, least: int = 1) -> Tensor:
    """Continue images (N, C, H, W) by reflection to the right and below, until their sides are
    multiples of `multiple` and at least `least`.
    """
    for axis in (2, 3):
        side = images.shape[axis]
        wanted = max(-(-side // multiple) * multiple, least)
        if wanted != side:  # by index: torch's own padding cannot reflect more than once
            turn = max(2 * side - 2, 1)
            index = torch.arange(wanted, device=images.device) % turn
            images = images.index_select(axis, torch.minimum(index, turn - index))
    return images


_statistics: ContextVar[dict[nn.Module, tuple[Tensor, Tensor]] | None] = ContextVar(
    "statistics", default=None
)
"""While a photograph is translated in tiles: the variance and mean that each norm uses for all of
them. Kept in the context, not in the norms, because several threads may share a network."""


class InstanceNorm(nn.Module):
    """Every channel of every image brought to mean 0 and deviation 1 (arXiv:1607.08022)."""

    def forward(self, images: Tensor) -> Tensor:
        shared = _statistics.get()
        if shared is None:
            return functional.instance_norm(images)
        if self not in shared:
            variance, mean = torch.var_mean(images, (0, 2, 3), correction=0, keepdim=True)
            shared[self] = variance, mean
        variance, mean = shared[self]
        return (images - mean) * torch.rsqrt(variance + 1e-5)


class UNet(nn.Module):
    """images (N, 3, H, W) in [-1, 1] -> the same shape and range (Isola et al. 2017).

    Strided convolutions down to a single pixel of a `size` x `size` image, transposed ones back up,
    each joined by what its level looked like on the way down. `width` is the number of channels of
    the first layer, doubled at every level up to 8 times. Other H and W are continued by reflection
    to multiples of 2**depth and cut back.
    """

    def __init__(self, size: int = 64, width: int = 64):
        super().__init__()
        self.depth = int(math.log2(size))
        dropped = max(self.depth - 5, 1)  # the paper's three at 256 pixels
        channels = [3] + [width * min(2**level, 8) for level in range(self.depth)]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level in range(self.depth):
            # The single pixel at the bottom has no spread that a norm could measure.
            normed = 0 < level < self.depth - 1
            before, after = channels[level], channels[level + 1]
            down: list[nn.Module] = [nn.LeakyReLU(0.2)] if level else []
            down.append(nn.Conv2d(before, after, 4, 2, 1, bias=not normed))
            if normed:
                down.append(nn.BatchNorm2d(after))
            self.down.append(nn.Sequential(*down))
        for level in reversed(range(self.depth)):
            before = channels[level + 1] * (1 if level == self.depth - 1 else 2)
            after = channels[level]
            up: list[nn.Module] = [
                nn.ReLU(),
                nn.ConvTranspose2d(before, after, 4, 2, 1, bias=level == 0),
            ]
            if level:
                up.append(nn.BatchNorm2d(after))
            if level >= self.depth - dropped:
                up.append(nn.Dropout(0.5))
            self.up.append(nn.Sequential(*up))
        self.apply(init_weights)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        x = _reflect(images, 2**self.depth)
        levels: list[Tensor] = []
        for down in self.down:
            x = down(x)
            levels.append(x)
        levels.pop()
        for up in self.up:
            x = up(x)
            if levels:
                x = torch.cat([x, levels.pop()], 1)
        return torch.tanh(x)[..., :height, :width]


class ResNetTranslator(nn.Module):
    """images (N, 3, H, W) in [-1, 1] -> the same shape and range (Johnson et al. 2016,
    arXiv:1603.08155, as Zhu et al. 2017 use it).

    Two halvings, 6 residual blocks (9 for more than 128 pixels), two doublings; instance norm.
    `width` is the number of channels at full resolution. Any H and W will do, as with `UNet`.
    """

    def __init__(self, size: int = 64, width: int = 64):
        super().__init__()
        layers = [*_reflecting(3, width, 7), nn.ReLU(True)]
        for before in (width, 2 * width):
            layers += [
                nn.Conv2d(before, 2 * before, 3, 2, 1, bias=False),
                InstanceNorm(),
                nn.ReLU(True),
            ]
        layers += [_Residual(4 * width) for _ in range(6 if size <= 128 else 9)]
        for before in (4 * width, 2 * width):
            layers += [
                nn.ConvTranspose2d(before, before // 2, 3, 2, 1, 1, bias=False),
                InstanceNorm(),
                nn.ReLU(True),
            ]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh()]
        self.layers = nn.Sequential(*layers).apply(init_weights)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        # The blocks reflect by one pixel at a quarter of the size, and that takes two.
        return self.layers(_reflect(images, 4, least=8))[..., :height, :width]


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            *_reflecting(width, width, 3), nn.ReLU(True), *_reflecting(width, width, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _reflecting(before: int, after: int, kernel: int) -> list[nn.Module]:
    return [
        nn.ReflectionPad2d(kernel // 2),
        nn.Conv2d(before, after, kernel, bias=False),
        InstanceNorm(),
    ]


class PatchDiscriminator(nn.Module):
    """images (N, channels, H, W) in [-1, 1] -> logits (N, 1, h, w), one a patch, higher = more
    real.

    Three halvings see patches of 70x70 pixels (Isola et al. 2017). Below 128 pixels patches stay
    about half as wide as the image: two halvings see 34x34 at size 64, one sees 16x16 at 32. `norm`
    is "batch" (pix2pix) or "instance" (CycleGAN).
    """

    def __init__(self, size: int = 64, width: int = 64, channels: int = 3, norm: str = "batch"):
        super().__init__()
        halvings = min(max(int(math.log2(size)) - 4, 1), 3)
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2, True)]
        for i in range(1, halvings + 1):
            after = width * 2**i
            layers += [
                nn.Conv2d(after // 2, after, 4, 2 if i < halvings else 1, 1, bias=False),
                nn.BatchNorm2d(after) if norm == "batch" else InstanceNorm(),
                nn.LeakyReLU(0.2, True),
            ]
        layers.append(nn.Conv2d(width * 2**halvings, 1, 4, 1, 1))
        self.layers = nn.Sequential(*layers).apply(init_weights)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class ImagePool(nn.Module):
    """Former fakes, some of which a discriminator is shown instead of new ones (arXiv:1612.07828).

    They are buffers, so that a checkpoint holds them. Each of several processes has its own; when a
    run is continued, all go on with the one that was saved.
    """

    images: Tensor
    filled: Tensor

    def __init__(self, size: int, slots: int = 50):
        super().__init__()
        self.register_buffer("images", torch.zeros(slots, 3, size, size))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def swap(self, fakes: Tensor) -> Tensor:
        """Images (N, 3, size, size) to show: until the pool is full the fakes themselves, then with
        probability 1/2 each a stored one, whose place the fake takes. Torch's CPU generator draws.
        """
        slots, filled = len(self.images), int(self.filled)
        new = min(len(fakes), slots - filled)
        self.images[filled : filled + new] = fakes[:new]
        self.filled += new
        drawn = new + torch.nonzero(torch.rand(len(fakes) - new) < 0.5)[:slots, 0]
        places = torch.randperm(slots)[: len(drawn)].to(fakes.device)
        drawn = drawn.to(fakes.device)
        shown = fakes.detach().clone()
        shown[drawn] = self.images[places]
        self.images[places] = fakes[drawn]
        return shown


class PooledDiscriminator(PatchDiscriminator):
    """CycleGAN's discriminator with the pool of fakes that it is shown.

    The pool lives inside: as a network of its own it would have no weights for an optimizer.
    """

    def __init__(self, size: int = 64, width: int = 64):
        super().__init__(size, width, norm="instance")
        self.pool = ImagePool(size)


class Translation(Architecture):
    """A generator that starts from photographs of any size."""

    sizes = (32, 64, 128, 256)
    from_photos = True

    def arguments(self, settings: TrainGeneratorSettings, classes: list[str]) -> dict[str, Any]:
        return {"size": settings.size, "width": settings.width}

    def shown(self, network: nn.Module, batch: Batch) -> list[Tensor]:
        inputs, images = _both(batch)
        return [inputs, network(inputs), *([images] if self.paired else [])]


class Pix2Pix(Translation):
    """Isola et al. 2017: from a batch's `inputs` to its `images`, which show the same scenes.

    The paper leaves dropout on while generating; here the same photograph gives the same fake.
    """

    summary = "U-Net against a PatchGAN that sees input and output, BCE + 100 L1; needs pairs"
    paper = "Isola et al. 2017, arXiv:1611.07004"
    paired = True
    distance_weight = 100.0

    def generator(self, **arguments: Any) -> nn.Module:
        return UNet(**arguments)

    def opponents(
        self, settings: TrainGeneratorSettings, classes: list[str]
    ) -> dict[str, nn.Module]:
        width = settings.discriminator_width or settings.width
        return {DISCRIMINATOR: PatchDiscriminator(settings.size, width, channels=6)}

    def step(self, play: Play, batches: list[Batch]) -> dict[str, Tensor]:
        inputs, images = _both(batches[0])
        fake = play.networks[GENERATOR](inputs).float()
        discriminator = play.networks[DISCRIMINATOR]
        on_real = discriminator(torch.cat([inputs, images], 1)).float()
        on_fake = discriminator(torch.cat([inputs, fake.detach()], 1)).float()
        # Halved, as in the paper: the discriminator is to learn the more slowly of the two.
        d_loss = bce_discriminator(on_real, on_fake) / 2
        play.update(DISCRIMINATOR, d_loss)
        with play.frozen(DISCRIMINATOR):
            opinion = play.bare(DISCRIMINATOR)(torch.cat([inputs, fake], 1)).float()
            distance = functional.l1_loss(fake, images)
            g_loss = bce_generator(opinion) + self.distance_weight * distance
            play.update(GENERATOR, g_loss)
        return _detached(
            d_loss=d_loss,
            g_loss=g_loss,
            d_real=on_real.mean(),
            d_fake=on_fake.mean(),
            l1_loss=distance,
        )


class CycleGAN(Translation):
    """Zhu et al. 2017: from photographs such as a batch's `inputs` to such as its `images`; no
    pairs.

    The generator goes there and "backward" comes back; "discriminator" judges what should look like
    `images`, "backward_discriminator" what should look like `inputs`.
    """

    summary = "two ResNets, there and back, two PatchGANs, least squares; needs no pairs"
    paper = "Zhu et al. 2017, arXiv:1703.10593"
    cycle_weight = 10.0
    identity_weight = 0.5
    """A share of `cycle_weight`."""

    def generator(self, **arguments: Any) -> nn.Module:
        return ResNetTranslator(**arguments)

    def opponents(
        self, settings: TrainGeneratorSettings, classes: list[str]
    ) -> dict[str, nn.Module]:
        width = settings.discriminator_width or settings.width
        return {
            BACKWARD: ResNetTranslator(settings.size, settings.width),
            DISCRIMINATOR: PooledDiscriminator(settings.size, width),
            BACKWARD_DISCRIMINATOR: PooledDiscriminator(settings.size, width),
        }

    def step(self, play: Play, batches: list[Batch]) -> dict[str, Tensor]:
        inputs, images = _both(batches[0])
        there, back = play.networks[GENERATOR], play.networks[BACKWARD]
        # What to translate and what to leave as it is, in one pass: instance norm keeps the images
        # of a batch apart.
        fake_images, same_images = (
            there(torch.cat([inputs, images])).float().tensor_split([len(inputs)])
        )
        fake_inputs, same_inputs = (
            back(torch.cat([images, inputs])).float().tensor_split([len(images)])
        )
        cycle = functional.l1_loss(back(fake_images).float(), inputs)
        cycle = cycle + functional.l1_loss(there(fake_inputs).float(), images)
        identity = functional.l1_loss(same_images, images)
        identity = identity + functional.l1_loss(same_inputs, inputs)
        with play.frozen(DISCRIMINATOR, BACKWARD_DISCRIMINATOR):
            g_loss = (
                _squares(play.bare(DISCRIMINATOR)(fake_images), 1)
                + _squares(play.bare(BACKWARD_DISCRIMINATOR)(fake_inputs), 1)
                + self.cycle_weight * (cycle + self.identity_weight * identity)
            )
            play.update((GENERATOR, BACKWARD), g_loss)
        d_loss, d_real, d_fake = _judge(play, DISCRIMINATOR, images, fake_images)
        back_loss, _, _ = _judge(play, BACKWARD_DISCRIMINATOR, inputs, fake_inputs)
        return _detached(
            d_loss=d_loss + back_loss,
            g_loss=g_loss,
            d_real=d_real,
            d_fake=d_fake,
            cycle_loss=cycle,
            identity_loss=identity,
        )


def _judge(play: Play, name: str, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Update one of CycleGAN's discriminators; returns its loss and its mean logits on real and
    fake.
    """
    pool = play.bare(name).pool
    assert isinstance(pool, ImagePool)
    on_real = play.networks[name](real)
    on_fake = play.networks[name](pool.swap(fake))
    loss = (_squares(on_real, 1) + _squares(on_fake, 0)) / 2
    play.update(name, loss)
    return loss, on_real.mean(), on_fake.mean()


def _both(batch: Batch) -> tuple[Tensor, Tensor]:
    assert batch.inputs is not None  # kinds that start from photographs are given them
    return batch.inputs, batch.images


def _squares(logits: Tensor, wanted: float) -> Tensor:
    """Least squares in place of cross entropy (Mao et al. 2017, arXiv:1611.04076)."""
    return (logits.float() - wanted).square().mean()


def _detached(**scalars: Tensor) -> dict[str, Tensor]:
    return {name: scalar.detach() for name, scalar in scalars.items()}


inputs: Registry[Callable[[np.ndarray], np.ndarray]] = Registry("input")
"""Ways to make what pix2pix starts from out of a photograph: (H, W, 3) uint8 RGB to the same."""


@inputs.register("edges")
def edges(pixels: np.ndarray) -> np.ndarray:
    """Black outlines on white (Canny): the fake fills in a drawing."""
    soft = cv2.GaussianBlur(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (0, 0), 1.0)
    return cv2.cvtColor(255 - cv2.Canny(soft, 60, 120), cv2.COLOR_GRAY2RGB)


@inputs.register("grey")
def grey(pixels: np.ndarray) -> np.ndarray:
    """Without colours: the fake is coloured in."""
    return cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


@inputs.register("small")
def small(pixels: np.ndarray) -> np.ndarray:
    """Shrunk to a quarter of its sides and enlarged again: the fake is super-resolved."""
    height, width = pixels.shape[:2]
    quarter = (max(width // 4, 1), max(height // 4, 1))
    shrunk = cv2.resize(pixels, quarter, interpolation=cv2.INTER_AREA)
    return cv2.resize(shrunk, (width, height), interpolation=cv2.INTER_CUBIC)


@inputs.register("blur")
def blur(pixels: np.ndarray) -> np.ndarray:
    """Blurred by a Gaussian of 2 pixels: the fake is sharpened."""
    return cv2.GaussianBlur(pixels, (0, 0), 2.0)


def pair_folders(inputs: Path, targets: Path) -> list[tuple[Path, Path]]:
    """The images of two folders in pairs (input, target), by their paths below the folder without
    the ending: day/001.jpg belongs to day/001.png.

    Pairs of which a file cannot be read stay in: whoever opens them leaves them out. Raises
    `GanscopeError` if there are no images, one has no partner or a double, or a pair differs in
    width or height.
    """
    left, right = _by_stem(inputs), _by_stem(targets)
    for folder, other, lonely in (
        (inputs, targets, sorted(left.keys() - right.keys())),
        (targets, inputs, sorted(right.keys() - left.keys())),
    ):
        if lonely:
            raise GanscopeError(
                f"{folder}: {len(lonely)} images have no partner of the same name in {other} "
                f"({_some(lonely)}); add the partners or remove the images"
            )
    stems = sorted(left)
    if not stems:
        raise GanscopeError(f"{inputs}: no images found; name a folder with photographs")
    unlike = [stem for stem in stems if not _same_size(left[stem], right[stem])]
    if unlike:
        raise GanscopeError(
            f"{inputs} and {targets}: {len(unlike)} pairs differ in width or height "
            f"({_some(unlike)}); resize or remove them"
        )
    return [(left[stem], right[stem]) for stem in stems]


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in map(Path, find_images(folder)):
        stem = Path(os.path.relpath(path, folder)).with_suffix("").as_posix()
        if stem in found:
            raise GanscopeError(
                f"{folder}: {found[stem].name} and {path.name} differ in their ending only; "
                "remove one of them"
            )
        found[stem] = path
    return found


def _same_size(one: Path, other: Path) -> bool:
    try:
        a, b = read_facts(one), read_facts(other)
    except ImageError:
        return True
    if (a.stored_width, a.stored_height) == (b.stored_width, b.stored_height):
        return True
    # The camera may have lain on its side for one and been turned upright in the other.
    turned = (a.stored_width, a.stored_height) == (b.stored_height, b.stored_width)
    return turned and open_image(one).pixels.shape == open_image(other).pixels.shape


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def paired_crop(
    input_pixels: np.ndarray,
    target_pixels: np.ndarray,
    size: int,
    rng: np.random.Generator,
    zoom: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Cut the same random square out of both of a pair and shrink it to (size, size, 3), as
    `random_crop` does with one photograph.

    Raises `GanscopeError` if the two differ in size or are smaller than `size`.
    """
    height, width = target_pixels.shape[:2]
    if input_pixels.shape != target_pixels.shape:
        raise GanscopeError(
            f"an input of {input_pixels.shape[1]}x{input_pixels.shape[0]} pixels has a target of "
            f"{width}x{height}; resize one of them"
        )
    if min(height, width) < size:
        raise GanscopeError(
            f"a pair of {width}x{height} pixels is smaller than {size}x{size}; use a smaller "
            "--size or other photographs"
        )
    side = min(round(size * float(zoom ** rng.random())), height, width)
    x = int(rng.integers(width - side + 1))
    y = int(rng.integers(height - side + 1))

    def cut(pixels: np.ndarray) -> np.ndarray:
        piece = pixels[y : y + side, x : x + side]
        if side != size:
            piece = cv2.resize(piece, (size, size), interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(piece)

    return cut(input_pixels), cut(target_pixels)


@torch.inference_mode()
def translate(net: nn.Module, pixels: np.ndarray, device: torch.device) -> np.ndarray:
    """Turn a photograph (H, W, 3) uint8 RGB of any size into a fake of the same size.

    `net` is a trained generator, on `device` and in evaluation mode. More than `LARGE` pixels are
    translated in overlapping tiles that are blended: memory beyond the two images grows with the
    photograph's width only.
    """
    height, width = pixels.shape[:2]
    if height * width <= LARGE:
        return np.rint(_run(net, pixels[None], device)[0]).astype(np.uint8)
    before = _statistics.set({})  # else every tile would be normed to a brightness of its own
    try:
        if any(isinstance(module, InstanceNorm) for module in net.modules()):
            _run(net, _samples(pixels), device)
        return in_tiles(
            pixels, lambda piece, y, x: _run(net, piece[None], device)[0], TILE, OVERLAP
        )
    finally:
        _statistics.reset(before)


def _run(net: nn.Module, pixels: np.ndarray, device: torch.device) -> np.ndarray:
    """(N, H, W, 3) uint8 -> (N, H, W, 3) float32 from 0 to 255."""
    images = torch.from_numpy(np.array(pixels)).to(device).permute(0, 3, 1, 2)
    made = net(images.float() / 127.5 - 1).float()
    return ((made + 1) * 127.5).clamp_(0, 255).permute(0, 2, 3, 1).cpu().numpy()


def _samples(pixels: np.ndarray) -> np.ndarray:
    """(9, h, w, 3): native crops spread evenly over a photograph, at most `LARGE` pixels in all,
    for the norms to take their statistics from.
    """
    side = math.isqrt(LARGE // 9)
    height, width = (min(side, full) for full in pixels.shape[:2])
    tops = np.linspace(0, pixels.shape[0] - height, 3).astype(int)
    lefts = np.linspace(0, pixels.shape[1] - width, 3).astype(int)
    return np.stack([pixels[y : y + height, x : x + width] for y in tops for x in lefts])
