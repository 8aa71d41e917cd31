"""What happens to pictures on their way to a detector, for whole batches, on the device.

Resizing, blur, noise, colour and JPEG as torch operations: a GPU that waited for processors to do
this would wait most of the time. Both classes go through the same. All that is random is drawn
beforehand (`draw`), a set of numbers a view, so that a step can be done again, and several
processes together do what one would do.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FLIP, RESIZE, BLUR, NOISE, COLOUR, GREY, CUTOUT = 0.5, 0.6, 0.2, 0.25, 0.3, 0.05, 0.2
"""Probability of each change of a view."""
JPEG, TWICE, COARSE = 0.8, 0.3, 0.7
"""Probability of a JPEG, that a second one follows, and that one halves the colours' resolution."""
FACTORS, QUALITIES = (0.9, 1.5), (45, 98)
"""Resize factors (log-uniform), and JPEG qualities (uniform, both ends included)."""
SIGMAS, LEVELS, SHIFT = (0.3, 1.6), (0.5, 6.0), 0.2
"""Sigma of the blur in pixels and of the noise in grey levels; how far brightness, contrast and
saturation go from 1."""
REACH = 5
"""Pixels that the blur looks at to each side."""
HOLES = (0.1, 0.4)
"""Sides of what is cut out, as shares of the view's."""

# The standard tables of the JPEG specification (ITU-T T.81, annex K), row by row.
LUMINANCE = """
16 11 10 16 24 40 51 61  12 12 14 19 26 58 60 55  14 13 16 24 40 57 69 56  14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77  24 35 55 64 81 104 113 92  49 64 78 87 103 121 120 101
72 92 95 98 112 100 103 99"""
CHROMINANCE = """
17 18 24 47 99 99 99 99  18 21 26 66 99 99 99 99  24 26 56 99 99 99 99 99  47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99"""


@dataclass(frozen=True)
class Draws:
    """What happens to each of N views; every array has a row a view."""

    flip: np.ndarray
    """(N,) bool."""
    factor: np.ndarray
    """(N,) resize factor, 1: the pixels stay as they are."""
    corner: np.ndarray
    """(N, 2) top and left of the crop, as shares 0 to 1 of the room that there is."""
    sigma: np.ndarray
    """(N,) of the blur, 0: none."""
    level: np.ndarray
    """(N,) sigma of the noise, in levels of 255, 0: none."""
    colour: np.ndarray
    """(N, 3) factors of brightness, contrast and saturation, 1: as it is."""
    grey: np.ndarray
    """(N,) bool."""
    quality: np.ndarray
    """(N, 2) of the first and second JPEG, 0: none."""
    offset: np.ndarray
    """(N, 2, 2) rows and columns, 0 to 15, by which each JPEG's blocks begin outside the view."""
    coarse: np.ndarray
    """(N, 2) bool: a JPEG with its colours at half resolution (4:2:0), else 4:4:4."""
    hole: np.ndarray
    """(N, 4) top, left, bottom, right of what is cut out, as shares of the side; all 0: nothing."""
    seed: np.ndarray
    """(N,) int64, of the noise."""

    def __len__(self) -> int:
        return len(self.flip)

    def part(self, where: slice) -> Self:
        return replace(self, **{f.name: getattr(self, f.name)[where] for f in fields(self)})


def draw(n: int, rng: np.random.Generator, share: float = 1.0) -> Draws:
    """What is to happen to n views; all but `share` of them are only mirrored and cropped."""

    def some(share: float, values: np.ndarray, otherwise: float) -> np.ndarray:
        return np.where(rng.random(len(values)) < share, values, otherwise)

    low, high = map(math.log, FACTORS)
    first = some(JPEG, rng.integers(QUALITIES[0], QUALITIES[1] + 1, n), 0)
    second = some(TWICE, rng.integers(QUALITIES[0], QUALITIES[1] + 1, n), 0) * (first > 0)
    sides = rng.uniform(*HOLES, (n, 2))
    corner = rng.random((n, 2)) * (1 - sides)
    hole = np.concatenate([corner, corner + sides], 1) * (rng.random((n, 1)) < CUTOUT)
    shifts = rng.uniform(1 - SHIFT, 1 + SHIFT, (n, 3))
    found = Draws(
        flip=rng.random(n) < FLIP,
        factor=some(RESIZE, np.exp(rng.uniform(low, high, n)), 1.0),
        corner=rng.random((n, 2)),
        sigma=some(BLUR, rng.uniform(*SIGMAS, n), 0.0),
        level=some(NOISE, rng.uniform(*LEVELS, n), 0.0),
        colour=np.where(rng.random((n, 1)) < COLOUR, shifts, 1.0),
        grey=rng.random(n) < GREY,
        quality=np.stack([first, second], 1),
        offset=rng.integers(0, 16, (n, 2, 2)),
        coarse=rng.random((n, 2)) < COARSE,
        hole=hole,
        seed=rng.integers(0, 2**62, n),
    )
    spared = rng.random(n) >= share
    for name, plain in nothing(1).__dict__.items():
        if name not in ("flip", "corner", "seed"):
            getattr(found, name)[spared] = plain
    return found


def nothing(n: int) -> Draws:
    """Nothing but the crop about the centre."""
    zero, one = np.zeros(n), np.ones(n)
    return Draws(
        flip=zero > 0,
        factor=one,
        corner=np.full((n, 2), 0.5),
        sigma=zero,
        level=zero,
        colour=np.ones((n, 3)),
        grey=zero > 0,
        quality=np.zeros((n, 2)),
        offset=np.zeros((n, 2, 2), int),
        coarse=np.zeros((n, 2), bool),
        hole=np.zeros((n, 4)),
        seed=zero.astype(np.int64),
    )


@torch.no_grad()
def augment(pixels: Tensor, draws: Draws, size: int) -> Tensor:
    """(N, 3, H, W) uint8 -> (N, 3, size, size) float32 in [0, 1], as a file of them would hold.

    Not to be called under autocast: half precision has fewer levels than a picture.
    """
    x = crop(pixels, draws, size)
    x = _where(x, draws.sigma > 0, lambda part, rows: blur(part, draws.sigma[rows]))
    x = _where(
        x, np.any(draws.colour != 1, axis=1), lambda part, rows: colour(part, draws.colour[rows])
    )
    x = _where(x, draws.grey, lambda part, _: luma(part).expand_as(part))
    x = _where(x, draws.level > 0, lambda part, rows: _noisy(part, draws, rows))
    x = x.round_().clamp_(0, 255)
    for turn in range(draws.quality.shape[1]):
        for coarse in (False, True):
            wanted = np.logical_and(draws.quality[:, turn] > 0, draws.coarse[:, turn] == coarse)
            quality, offset = draws.quality[:, turn], draws.offset[:, turn]
            x = _where(x, wanted, partial(_saved, quality=quality, offset=offset, coarse=coarse))
    x = _where(x, np.any(draws.hole, axis=1), lambda part, rows: cut_out(part, draws.hole[rows]))
    return x.div_(255)


def _where(x: Tensor, wanted: np.ndarray, change: Callable[[Tensor, np.ndarray], Tensor]) -> Tensor:
    """x, with the rows that are wanted changed by change(rows of x, their numbers)."""
    rows = np.flatnonzero(wanted)
    if not len(rows):
        return x
    places = torch.from_numpy(rows).to(x.device)
    return x.index_copy(0, places, change(x[places], rows))


def _saved(
    x: Tensor, rows: np.ndarray, *, quality: np.ndarray, offset: np.ndarray, coarse: bool
) -> Tensor:
    return jpeg(x, quality[rows], coarse=coarse, offset=offset[rows])


def _column(values: np.ndarray, x: Tensor, dims: int = 3) -> Tensor:
    """(n,) numbers as (n, 1, 1, 1) on the device of x."""
    column = torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(x.device)
    return column.view(-1, *[1] * dims)


def crop(pixels: Tensor, draws: Draws, size: int) -> Tensor:
    """Resized, mirrored and cropped: (N, 3, H, W) uint8 -> (N, 3, size, size) float, 0 to 255.

    Where the factor leaves too little, it is raised to what the crop needs.
    """
    height, width = pixels.shape[-2:]
    factor = np.maximum(draws.factor, size / min(height, width))
    plain = factor == 1
    axes = []
    for side, share in ((height, draws.corner[:, 0]), (width, draws.corner[:, 1])):
        room = side * factor - size
        start = np.where(plain, np.floor(share * (room + 1)).clip(0, side - size), share * room)
        centres = (start[:, None] + np.arange(size) + 0.5) / factor[:, None]
        axes.append(centres * 2 / side - 1)
    axes[1] = np.where(draws.flip[:, None], axes[1][:, ::-1], axes[1])
    rows, columns = (
        torch.from_numpy(np.ascontiguousarray(axis, np.float32)).to(pixels.device) for axis in axes
    )
    n = len(factor)
    grid = torch.stack(
        [columns[:, None, :].expand(n, size, size), rows[:, :, None].expand(n, size, size)], -1
    )
    x = F.grid_sample(
        pixels.float(), grid, mode="bicubic", padding_mode="reflection", align_corners=False
    )
    return x.round_().clamp_(0, 255)


def blur(x: Tensor, sigma: np.ndarray) -> Tensor:
    """Gaussian blur, each of (n, C, H, W) with its own sigma (n,) in pixels."""
    n, channels = x.shape[:2]
    places = torch.arange(-REACH, REACH + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (places / _column(sigma, x, 1)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    flat = F.pad(x, [REACH] * 4, mode="reflect").flatten(0, 1)[None]
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=n * channels)
    return F.conv2d(flat, kernel[:, None, None, :], groups=n * channels).view_as(x)


def luma(x: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, 1, H, W): how bright each pixel is."""
    return (0.299 * x[:, :1] + 0.587 * x[:, 1:2]).add_(x[:, 2:], alpha=0.114)


def colour(x: Tensor, factors: np.ndarray) -> Tensor:
    """Brightness, contrast about the mean, and saturation of (n, 3, H, W) by factors (n, 3)."""
    brightness, contrast, saturation = (_column(factors[:, i], x) for i in range(3))
    x = (x * brightness).clamp(0, 255)
    mean = luma(x).mean((2, 3), keepdim=True)
    x = (mean + (x - mean) * contrast).clamp(0, 255)
    grey = luma(x)
    return (grey + (x - grey) * saturation).clamp(0, 255)


def _noisy(x: Tensor, draws: Draws, rows: np.ndarray) -> Tensor:
    """Gaussian noise; each view's comes from its own seed, whatever else is in the batch."""
    noise = torch.empty_like(x)
    generator = torch.Generator(x.device)
    for place, row in enumerate(rows):
        noise[place].normal_(generator=generator.manual_seed(int(draws.seed[row])))
    return x + noise * _column(draws.level[rows], x)


def cut_out(x: Tensor, holes: np.ndarray) -> Tensor:
    """A rectangle of each (n, 4) in middle grey."""
    size = x.shape[-1]
    places = (torch.arange(size, device=x.device) + 0.5) / size
    top, left, bottom, right = (_column(holes[:, i], x, 1) for i in range(4))
    rows = (places >= top) & (places < bottom)
    columns = (places >= left) & (places < right)
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 128.0)


def jpeg(
    x: Tensor, quality: np.ndarray, *, coarse: bool, offset: np.ndarray | None = None
) -> Tensor:
    """(n, 3, H, W) of whole levels 0 to 255, each through a JPEG of its own quality (n,), 1 to 100.

    The steps of libjpeg: YCbCr, with `coarse` the colours at half resolution (4:2:0), the cosine
    transform of 8x8 blocks, the standard tables scaled by the quality, and all of it back. offset
    (n, 2): rows and columns by which the blocks begin outside the picture.
    """
    n, _, height, width = x.shape
    unit = 16 if coarse else 8
    offset = np.zeros((n, 2), int) if offset is None else offset % unit
    places = [
        torch.from_numpy(
            (np.arange(_up(side + (unit - 1) * bool(offset.any()), unit)) - offset[:, [axis]]).clip(
                0, side - 1
            )
        ).to(x.device)
        for axis, side in enumerate((height, width))
    ]
    who = torch.arange(n, device=x.device)[:, None, None]
    rows, columns = places[0][:, :, None], places[1][:, None, :]
    framed = x.permute(0, 2, 3, 1)[who, rows, columns]  # the edge is repeated outwards
    to, back = _colours(x.device)
    shift = torch.tensor([0.0, 128.0, 128.0], device=x.device)
    ycc = (framed @ to.T + shift).round_().clamp_(0, 255).permute(0, 3, 1, 2)
    tables = _tables(quality, x.device)
    bright = _coded(ycc[:, :1], tables[:, :1])
    if coarse:
        tint = _coded(F.avg_pool2d(ycc[:, 1:], 2).round_(), tables[:, 1:])
        # What libjpeg calls fancy upsampling.
        tint = F.interpolate(tint, scale_factor=2, mode="bilinear", align_corners=False).round_()
    else:
        tint = _coded(ycc[:, 1:], tables[:, 1:])
    ycc = torch.cat([bright, tint], 1).permute(0, 2, 3, 1) - shift
    rgb = (ycc @ back.T).round_().clamp_(0, 255)
    top, left = (torch.from_numpy(offset[:, [axis]]).to(x.device) for axis in (0, 1))
    rows = (top + torch.arange(height, device=x.device))[:, :, None]
    columns = (left + torch.arange(width, device=x.device))[:, None, :]
    return rgb[who, rows, columns].permute(0, 3, 1, 2)


def _coded(planes: Tensor, tables: Tensor) -> Tensor:
    """Planes (n, c, H, W) of levels after their coefficients were rounded to multiples of
    tables (n, 1, 64).
    """
    n, c, height, width = planes.shape
    blocks = (planes - 128).view(n, c, height // 8, 8, width // 8, 8).transpose(3, 4)
    transform = _cosines(planes.device)
    found = blocks.reshape(n, -1, 64) @ transform.T
    found = (found / tables).round_() * tables @ transform
    blocks = found.view(n, c, height // 8, width // 8, 8, 8).transpose(3, 4)
    return (blocks.reshape(n, c, height, width) + 128).round_().clamp_(0, 255)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


@cache
def _cosines(device: torch.device) -> Tensor:
    """(64, 64): the cosine transform of an 8x8 block, as one orthogonal matrix."""
    k, i = np.mgrid[:8, :8]
    one = np.where(k == 0, 1 / math.sqrt(8), 0.5) * np.cos((2 * i + 1) * k * math.pi / 16)
    return torch.from_numpy(np.kron(one, one).astype(np.float32)).to(device)


@cache
def _colours(device: torch.device) -> tuple[Tensor, Tensor]:
    """(3, 3) each: RGB to YCbCr of JPEG, and back."""
    to = np.array(
        [
            [0.299, 0.587, 0.114],
            [-0.168735892, -0.331264108, 0.5],
            [0.5, -0.418687589, -0.081312411],
        ]
    )
    there, back = (torch.from_numpy(m.astype(np.float32)) for m in (to, np.linalg.inv(to)))
    return there.to(device), back.to(device)


def _tables(quality: np.ndarray, device: torch.device) -> Tensor:
    """(n, 2, 64) steps of brightness and of colour, scaled as libjpeg does."""
    q = np.asarray(quality, float).clip(1, 100)[:, None, None]
    percent = np.where(q < 50, np.floor(5000 / q), 200 - 2 * q)
    base = np.array([LUMINANCE.split(), CHROMINANCE.split()], float)
    steps = np.floor((base * percent + 50) / 100).clip(1, 255)
    return torch.from_numpy(steps.astype(np.float32)).to(device)
