"""Pictures as they are shown: small, upright, made anew from pixels and never the file itself."""

import base64

import cv2
import numpy as np

SHOWN_SIDE, SHOWN_QUALITY = 1024, 88
"""Longest side in pixels and JPEG quality of a picture that is sent to be looked at."""
THUMBNAIL_SIDE, THUMBNAIL_QUALITY = 144, 70


def thumbnail(pixels: np.ndarray) -> str:
    """An image (H, W, 3) uint8 RGB, small, as a data URI."""
    return as_uri(shrunk(pixels, THUMBNAIL_SIDE), THUMBNAIL_QUALITY)


def shrunk(pixels: np.ndarray, side: int) -> np.ndarray:
    """An image (H, W, 3) with no side longer than `side`."""
    shrink = side / max(pixels.shape[:2])
    if shrink >= 1:
        return pixels
    width, height = (max(1, round(length * shrink)) for length in pixels.shape[1::-1])
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)


def as_jpeg(pixels: np.ndarray, quality: int = SHOWN_QUALITY) -> bytes:
    """(H, W, 3) uint8 RGB -> the bytes of a JPEG file."""
    done, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return data.tobytes() if done else b""


def as_uri(pixels: np.ndarray, quality: int) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(as_jpeg(pixels, quality)).decode()
