"""From pixels of any kind to 8-bit sRGB: depth, floating point, palettes, inks, colour profiles and
transparency. What is lost on the way, or had to be guessed, is said.
"""

import functools
import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms

INVISIBLE = 8
"""Of 255: what is less opaque than this, nobody sees."""
EDGE = 32
"""Levels by which neighbours differ at an edge, as in text."""
HIDDEN_EDGES = 50
"""So many edges where nothing is visible are content, not leftovers of an encoder."""
SAME_COLOUR = 2
"""Levels: a profile that moves no colour by more is taken for sRGB, and costs nothing."""
HIGHLIGHTS = 4.0
"""Floating point whose brightest hundredth begins below is in [0, 1], with highlights above."""
DARK = 64
"""Levels, of 256: if nothing in a 16-bit file is brighter, it holds 14 bits or fewer."""
LARGEST_PROFILE = 1 << 23
"""Bytes; those of printing inks have up to three million."""
_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab"}
"""Pillow mode -> the colour space of a profile for it."""


def to_rgb(
    image: Image.Image, deep: Callable[[], np.ndarray] | None = None
) -> tuple[Image.Image, list[str]]:
    """A decoded image of any mode as 8-bit sRGB, and what was lost.

    deep: gives the samples, (H, W), (H, W, 3) or (H, W, 4), of a file whose depth is lost in
    `image` or that Pillow cannot read at all (`image.info["samples"]`).
    """
    profile = image.info.get("icc_profile")
    image, said = _to_8_bits(image, deep)
    image, alpha = _without_alpha(image)
    rgb, notes = _to_srgb(image, profile)
    said += notes
    if alpha is None:
        return rgb, said
    if _has_hidden(rgb, alpha):
        said.append("content under the transparency, which no viewer shows, is left out")
        alpha = alpha.point([0 if level < INVISIBLE else level for level in range(256)])
    rgb = rgb.copy()
    rgb.putalpha(alpha)
    page = Image.new("RGBA", rgb.size, (255, 255, 255, 255))
    return Image.alpha_composite(page, rgb).convert("RGB"), ["transparency laid on white", *said]


# Depth


def _to_8_bits(
    image: Image.Image, deep: Callable[[], np.ndarray] | None
) -> tuple[Image.Image, list[str]]:
    samples, mode = image.info.get("samples"), image.mode
    if samples is None and (mode == "F" or mode.startswith("I")):
        samples = np.asarray(image)
    elif samples is None and deep is not None:
        if _brightest(image) >= DARK:
            return image, ["16-bit brought to 8-bit"]
        samples = deep()
    if samples is None:
        return image, []
    levels, note = to_levels(samples[..., :3] if samples.ndim == 3 else samples)
    found, clear = Image.fromarray(levels), image.info.get("transparency")
    if samples.ndim == 3 and samples.shape[2] == 4:
        full = 1.0 if samples.dtype.kind == "f" else np.iinfo(samples.dtype).max
        share = np.nan_to_num(samples[..., 3].astype(np.float32) / full)
        found.putalpha(Image.fromarray((share.clip(0, 1) * 255).round().astype(np.uint8)))
    elif isinstance(clear, int) and samples.ndim == 2:  # one grey is declared transparent
        found.putalpha(Image.fromarray(np.where(samples == clear, 0, 255).astype(np.uint8)))
    return found, [note] if note else []


def _brightest(image: Image.Image) -> float:
    extrema = image.getextrema()
    if isinstance(extrema[0], tuple):
        colours = extrema[:-1] if "A" in image.mode else extrema
        return max(high for _, high in colours)
    return extrema[1]


def to_levels(samples: np.ndarray) -> tuple[np.ndarray, str]:
    """Samples of any depth -> uint8 of the same shape, and what was done, or "".

    Integers count as so many bits as their brightest needs, of 8, 10, 12, 14, 16 and so on: what a
    camera's 12 bits leave of 16 is nearly black.
    """
    parts = _bands(samples)
    if samples.dtype.kind == "f":
        scale, note = _scale_of_floats(parts)
    else:
        stored, top = 8 * samples.dtype.itemsize, int(samples.max(initial=0))
        bits = next(n for n in (8, 10, 12, 14, 16, 20, 24, 32, 64) if top < 1 << n)
        scale = 255 / ((1 << bits) - 1)
        if bits == 8:
            note = "8 bits in a 16-bit file" if stored == 16 and top else ""
        elif bits == 16:
            note = "16-bit brought to 8-bit"
        else:
            note = f"{bits} bits in a {stored}-bit file, brought to 8-bit"
    levels = np.empty(samples.shape, np.uint8)
    for part, out in zip(parts, _bands(levels), strict=True):
        values = part.astype(np.float32)
        values *= scale
        np.nan_to_num(values, copy=False, nan=0.0, posinf=255, neginf=0.0)
        out[...] = np.clip(np.rint(values, out=values), 0, 255, out=values)
    return levels, note


def _bands(array: np.ndarray) -> list[np.ndarray]:
    """Views of some rows each: a copy of all in floating point might not fit into memory."""
    return np.array_split(array, max(min(array.size >> 22, len(array)), 1))


def _scale_of_floats(parts: list[np.ndarray]) -> tuple[float, str]:
    """What floating point, holes and infinities in it, is to be multiplied by."""
    top = low = 0.0
    some = []
    for part in parts:
        finite = part[np.isfinite(part)].ravel()
        top, low = max(top, float(finite.max(initial=0))), min(low, float(finite.min(initial=0)))
        some.append(finite[:: max(len(finite) * len(parts) // 1_000_000, 1)])
    few = np.concatenate(some)
    bright = float(np.quantile(few, 0.99)) if len(few) else 0.0
    dark = "; what is below 0 is black" if low < -0.01 * max(top, 1e-6) else ""
    if top <= 1.0:
        return 255.0, "floating point brought to 8-bit" + dark
    if bright <= HIGHLIGHTS:
        return 255.0, "floating point brought to 8-bit, what is above 1.0 as white" + dark
    for limit in (255, 65535):
        if top <= limit:
            return 255 / limit, f"floating point up to {limit:,} brought to 8-bit" + dark
    return 255 / bright, f"floating point up to {top:.3g} brought to 8-bit by its range" + dark


# Transparency


def _without_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """An image's colours, and its alpha (L) if anything is transparent."""
    if not ("A" in image.mode or "a" in image.mode or "transparency" in image.info):
        return image, None
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    alpha = rgba.getchannel("A")
    colours = image.getchannel("L") if image.mode == "LA" else rgba.convert("RGB")
    return colours, None if alpha.getextrema() == (255, 255) else alpha


def _has_hidden(rgb: Image.Image, alpha: Image.Image) -> bool:
    """Whether there are edges where nothing is visible."""
    edges = 0
    bands = zip(_bands(np.asarray(alpha)), _bands(np.asarray(rgb.convert("L"))), strict=True)
    for opacity, grey in bands:
        hidden = opacity < INVISIBLE
        both = hidden[:, 1:] & hidden[:, :-1]
        if both.any():
            steps = np.abs(np.diff(grey.astype(np.int16), axis=1)) > EDGE
            edges += int((both & steps).sum())
    return edges >= HIDDEN_EDGES


# Colour


def _to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, list[str]]:
    """To RGB as the image's profile says; by Pillow's own arithmetic where it has none."""
    if image.mode not in _SPACES:
        image = image.convert("L" if image.mode == "1" else "RGB")
    if not profile:
        said = ["CMYK without a colour profile: its colours are a guess"]
        return _plain(image), said if image.mode == "CMYK" else []
    if not isinstance(profile, bytes) or len(profile) > LARGEST_PROFILE:
        return _plain(image), ["its colour profile is too large and was passed over"]
    for mode in dict.fromkeys((image.mode, "RGB")):  # grey may have a profile for colours
        found = _transform(profile, mode)
        if isinstance(found, ImageCms.ImageCmsTransform):
            return found.apply(image if image.mode == mode else _plain(image)), []
        if found is None:
            return _plain(image), []
        if image.mode != "L":
            break
    return _plain(image), [f"its colour profile {found} and was passed over"]


def _plain(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


@functools.lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | str | None:
    """What brings colours of a mode to sRGB; None: they are sRGB; a string says what is wrong.

    Relative colorimetric with black point compensation, which is what browsers and editors show:
    colours that sRGB has stay as they are, white is white and black is black.
    """
    try:
        known = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = str(known.profile.xcolor_space).strip()
        if space != _SPACES[mode]:
            return f"is for {space or 'nothing'}, not for {_SPACES[mode]},"
        found = ImageCms.buildTransform(
            known,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode in ("L", "RGB"):
            side = 256 if mode == "L" else 6
            levels = np.linspace(0, 255, side).round().astype(np.uint8)
            grid = levels[None]
            if mode == "RGB":
                grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
            seen = np.asarray(found.apply(Image.fromarray(grid))).astype(int)
            same = np.abs(seen - grid.reshape(1, -1, 1 if mode == "L" else 3)).max()
            return None if same <= SAME_COLOUR else found
        return found
    except Exception:  # LittleCMS raises what it likes
        return "is broken"
