"""Invisible watermarks of open models: the bits that the reference programs of Stable Diffusion,
SDXL and FLUX hide in the pixels, by the package `invisible-watermark` where it is installed.

Only its one decoder without a network is loaded, by its file: the package itself would load torch.
"""

import functools
import importlib.util
from typing import Any

import numpy as np

from ganscope.detector.evidence.record import GENERATED, PATTERN, Finding, clean
from ganscope.errors import reason_of


def _bits(content: bytes) -> str:
    return "".join(f"{byte:08b}" for byte in content)


MARKS = {
    "Stable Diffusion 1": _bits(b"StableDiffusionV1"),
    "Stable Diffusion 2": _bits(b"SDV2"),
    "Stable Diffusion XL": f"{0b101100111110110010010000011110111011000110011110:b}",
    "FLUX": f"{0b001010101111111010000111100111001111010100101110:b}",
}
"""Models by the bits that they hide. FLUX's message has two zeros before it, which its program does
not hide."""
WRONG = 16
"""One bit in so many may be read wrongly."""
SMALLEST = 256 * 256
"""Pixels below which nothing is hidden."""
BLOCKS = 6_000
"""Blocks of 8 x 8 pixels that are read, the first ones: each bit 44 times or more."""


def watermarks_installed() -> bool:
    """Whether the package is there; it is not loaded."""
    return importlib.util.find_spec("imwatermark") is not None


def find_watermark(pixels: np.ndarray) -> Finding | None:
    """A known watermark in pixels (H, W, 3) uint8 RGB; None if there is none, or the package is not
    installed.
    """
    height, width = pixels.shape[:2]
    if height * width < SMALLEST or not watermarks_installed():
        return None
    rows = max(8, BLOCKS // max(width // 8, 1) * 8)  # in their order, so the first ones will do
    try:
        read = _read_blocks(pixels[: min(rows, height)])
    except Exception as error:  # of another version, or without one of the packages it needs
        reason = clean(reason_of(error), 160)
        return Finding(where="pixels", says=f"invisible-watermark cannot be used ({reason})")
    for model, bits in MARKS.items():
        wanted = np.array([bit == "1" for bit in bits])
        count = len(read) // len(bits) * len(bits)
        if not count:
            continue
        found = read[:count].reshape(-1, len(bits)).mean(0) > 127 / 255
        wrong = int((found != wanted).sum())
        if wrong <= len(bits) // WRONG:
            return Finding(
                where="pixels",
                says=f"the invisible watermark of {model}",
                declared=GENERATED,
                trust=PATTERN,
                by=model,
                model=model,
                details={"bits": f"{len(bits) - wrong} of {len(bits)} as {model} hides them"},
            )
    return None


def _read_blocks(pixels: np.ndarray) -> np.ndarray:
    """(N,) 0 or 1: the bit that each block of an image holds, row by row, if it holds any."""
    height, width = pixels.shape[:2]
    blocks = (height // 8) * (width // 8)
    # Every block's bit as if it were one of a message as long: any length is then read off it.
    decoder = _decoder()(watermarks=[], wmLen=blocks)
    scores: list[list[int]] = [[] for _ in range(blocks)]
    import cv2
    import pywt

    yuv = cv2.cvtColor(np.ascontiguousarray(pixels[..., ::-1]), cv2.COLOR_BGR2YUV)
    coarse, _ = pywt.dwt2(yuv[: height // 4 * 4, : width // 4 * 4, 1], "haar")
    scores = decoder.decode_frame(coarse, decoder._scales[1], scores)
    return np.array([score[0] for score in scores])


@functools.cache
def _decoder() -> Any:
    package = importlib.util.find_spec("imwatermark")
    assert package is not None
    assert package.submodule_search_locations is not None
    path = f"{package.submodule_search_locations[0]}/maxDct.py"
    spec = importlib.util.spec_from_file_location("ganscope_watermark_decoder", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EmbedMaxDct
