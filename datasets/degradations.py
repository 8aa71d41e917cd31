"""What happens to pictures on their way: compression, resizing, blur, noise, cropping.

Each degradation is a function `(pixels, value, rng) -> pixels` on (H, W, 3) uint8 RGB. Training
draws from `random_degradation`, for both classes alike; the benchmark applies a named one,
`jpeg:75`. To add one, register it: the docstring's first line is what `ganscope list degradations`
shows.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from ganscope.errors import GanscopeError
from ganscope.registry import Registry

Rng = np.random.Generator
degradations: Registry[Callable[[np.ndarray, float, Rng], np.ndarray]] = Registry("degradation")
KERNELS = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
    "area": cv2.INTER_AREA,
}


@degradations.register("jpeg")
def jpeg(pixels: np.ndarray, quality: float, rng: Rng) -> np.ndarray:
    """Saved as JPEG of quality 1-100 and opened again."""
    return _through(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, round(quality)])


@degradations.register("webp")
def webp(pixels: np.ndarray, quality: float, rng: Rng) -> np.ndarray:
    """Saved as WebP of quality 1-100 and opened again."""
    return _through(".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, round(quality)])


def _through(suffix: str, pixels: np.ndarray, options: list[int]) -> np.ndarray:
    try:
        held, data = cv2.imencode(suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR) if held else None
    except cv2.error:  # some versions raise it, some do not
        decoded = None
    if decoded is None:
        height, width = pixels.shape[:2]
        raise GanscopeError(
            f"{suffix[1:]} cannot hold an image of {width}x{height} pixels; leave it out"
        )
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


@degradations.register("resize")
def resize(pixels: np.ndarray, factor: float, rng: Rng) -> np.ndarray:
    """Resized by a factor with a kernel drawn at random (area, bilinear, bicubic, lanczos)."""
    # Shrinking without averaging aliases, as careless software does; it is a part of the mix.
    names = ["area", "area", "bilinear", "bicubic", "lanczos"] if factor < 1 else list(KERNELS)[1:4]
    return _resize(pixels, factor, KERNELS[names[rng.integers(len(names))]])


def _resize(pixels: np.ndarray, factor: float, kernel: int) -> np.ndarray:
    height, width = (max(1, round(side * factor)) for side in pixels.shape[:2])
    return cv2.resize(pixels, (width, height), interpolation=kernel)


def _fixed_kernel(name: str) -> Callable[[np.ndarray, float, Rng], np.ndarray]:
    def resize_with(pixels: np.ndarray, factor: float, rng: Rng) -> np.ndarray:
        return _resize(pixels, factor, KERNELS[name])

    resize_with.__doc__ = f"Resized by a factor with the {name} kernel."
    return resize_with


for _name in KERNELS:
    degradations.register(f"resize-{_name}")(_fixed_kernel(_name))


@degradations.register("blur")
def blur(pixels: np.ndarray, sigma: float, rng: Rng) -> np.ndarray:
    """Blurred by a Gaussian of this standard deviation in pixels."""
    return cv2.GaussianBlur(pixels, (0, 0), sigma) if sigma > 0 else pixels


@degradations.register("noise")
def noise(pixels: np.ndarray, sigma: float, rng: Rng) -> np.ndarray:
    """Gaussian noise of this standard deviation in 8-bit levels added."""
    drawn = rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(sigma)
    return np.clip(np.rint(pixels + drawn), 0, 255).astype(np.uint8)


@degradations.register("crop")
def crop(pixels: np.ndarray, share: float, rng: Rng) -> np.ndarray:
    """Cut to the central share of each side, 0-1."""
    height, width = (max(1, round(side * share)) for side in pixels.shape[:2])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])


@degradations.register("screenshot")
def screenshot(pixels: np.ndarray, factor: float, rng: Rng) -> np.ndarray:
    """Shown on a screen at this factor of its size, captured, and sent on as JPEG 85."""
    return jpeg(_resize(pixels, factor, cv2.INTER_LINEAR), 85, rng)


NETWORK_SIDE = 1080
"""Pixels: the longer side of what social networks show."""


@degradations.register("social")
def social(pixels: np.ndarray, quality: float, rng: Rng) -> np.ndarray:
    """Shared twice: shrunk to 1080 pixels at most, sharpened, JPEG of this quality, JPEG again."""
    factor = NETWORK_SIDE / max(pixels.shape[:2])
    if factor < 1:
        pixels = _resize(pixels, factor, cv2.INTER_AREA)
    soft = cv2.GaussianBlur(pixels, (0, 0), 1.0)
    pixels = jpeg(cv2.addWeighted(pixels, 1.3, soft, -0.3, 0), quality, rng)
    return jpeg(pixels, max(1, quality - 5), rng)


RANGES = {
    "jpeg": (1, 100),
    "webp": (1, 100),
    "social": (1, 100),
    "blur": (0, 20),
    "noise": (0, 100),
    "crop": (0.05, 1),
}
"""Values that each degradation takes; `resize`, its kernels and `screenshot`: 0.05 to 8."""
STANDARD = (
    *("jpeg:95", "jpeg:90", "jpeg:75", "jpeg:50", "jpeg:30", "webp:80", "webp:50"),
    *("resize-area:0.5", "resize-lanczos:0.5", "resize-bicubic:0.75", "resize-bicubic:1.5"),
    *("blur:1", "noise:4", "crop:0.5", "screenshot:0.75", "social:75"),
)
"""What `--degrade standard` stands for."""


@dataclass(frozen=True)
class Degradation:
    """A named degradation with its value, such as jpeg:75; "clean" leaves the pixels alone."""

    name: str
    value: float = 0.0

    @property
    def label(self) -> str:
        return self.name if self.name == "clean" else f"{self.name}:{self.value:g}"

    def __call__(self, pixels: np.ndarray, rng: Rng) -> np.ndarray:
        return pixels if self.name == "clean" else degradations[self.name](pixels, self.value, rng)


CLEAN = Degradation("clean")


def parse_degradation(text: str) -> Degradation:
    """ "jpeg:75" -> Degradation; raises `GanscopeError` for unknown names and values out of
    range.
    """
    name, _, number = text.partition(":")
    if text == "clean":
        return CLEAN
    degradations[name]
    try:
        value = float(number)
    except ValueError:
        raise GanscopeError(f"--degrade {text}: write NAME:VALUE, for example jpeg:75") from None
    low, high = RANGES.get(name, (0.05, 8))
    if not low <= value <= high:
        raise GanscopeError(f"--degrade {text}: the value must be between {low:g} and {high:g}")
    return Degradation(name, value)


def parse_degradations(texts: Iterable[str]) -> list[Degradation]:
    """Several degradations; the word "standard" stands for all of `STANDARD`."""
    words = [word for text in texts for word in (STANDARD if text == "standard" else (text,))]
    return [parse_degradation(word) for word in words]


WORST_QUALITY = 40
"""JPEG and WebP quality below which no training sees images."""


def random_factor(rng: Rng) -> float:
    """The resize of `random_degradation`: 0.4 to 1.6 (p .4), else 1."""
    return float(np.exp(rng.uniform(np.log(0.4), np.log(1.6)))) if rng.random() < 0.4 else 1.0


def random_degradation(pixels: np.ndarray, rng: Rng, factor: float | None = None) -> np.ndarray:
    """The mix that training sees: resize, blur, noise, then JPEG or WebP, each by chance.

    After CNNDetection (arXiv:1912.11035) and the aligned training sets that followed it: resize by
    0.4 to 1.6 (p .4), blur of sigma up to 2 (p .15), noise up to 8 levels (p .15), JPEG (p
    .7) or WebP (p .1: it is rarer in the wild and as slow as five JPEGs) of `WORST_QUALITY` to 98.
    `factor`: the resize, where the caller drew it beforehand to cut out enough pixels.
    """
    factor = random_factor(rng) if factor is None else factor
    if factor != 1:
        pixels = resize(pixels, factor, rng)
    if rng.random() < 0.15:
        pixels = blur(pixels, rng.uniform(0.2, 2.0), rng)
    if rng.random() < 0.15:
        pixels = noise(pixels, rng.uniform(1, 8), rng)
    choice = rng.random()
    if choice < 0.7:
        pixels = jpeg(pixels, int(rng.integers(WORST_QUALITY, 99)), rng)
    elif choice < 0.8:
        pixels = webp(pixels, int(rng.integers(WORST_QUALITY, 99)), rng)
    return pixels


def blur_and_jpeg(pixels: np.ndarray, rng: Rng, factor: float = 1.0) -> np.ndarray:
    """The mix of CNNDetection (Wang et al. 2020, arXiv:1912.11035): blur of sigma up to 3 (p .5),
    JPEG 30-100 (p .5).
    """
    if rng.random() < 0.5:
        pixels = blur(pixels, rng.uniform(0, 3), rng)
    if rng.random() < 0.5:
        pixels = jpeg(pixels, int(rng.integers(30, 101)), rng)
    return pixels


_LUMINANCE_MEAN = 57.625
"""Mean of the luminance table in the JPEG standard's annex K, which nearly all encoders scale by
quality.
"""


def estimate_quality(quantization: tuple[tuple[int, ...], ...]) -> int:
    """The JPEG quality (1-100, libjpeg's scale) that a file's first quantisation table stands
    for.
    """
    if not quantization:
        return 100
    # The mean does not mind whether the 64 entries stand in zigzag or natural order.
    scale = sum(quantization[0]) / len(quantization[0]) / _LUMINANCE_MEAN * 100
    quality = (200 - scale) / 2 if scale <= 100 else 5000 / scale
    return min(max(round(quality), 1), 100)


def lossy_history(pixels: np.ndarray, qualities: list[int], rng: Rng) -> np.ndarray:
    """Give pixels from a lossless file the compression that the corpus' lossy files have behind
    them.

    `qualities` are those files' own JPEG qualities. Without this step "never compressed" would mean
    "fake" in the many corpora whose reals are JPEG and fakes PNG.
    """
    return jpeg(pixels, qualities[rng.integers(len(qualities))], rng) if qualities else pixels
