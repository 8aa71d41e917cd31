"""Videos in a corpus: frames sampled once into ganscope's own cache, so that all else sees images.

A row whose file is a video becomes a row a frame; a mask that is a video is sampled at the same
frames. Frames lie as PNG files below the cache folder's `frames/`, a folder a video, found again by
the video's path, size and time; deleting them costs no more than another sampling.
"""

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd

from ganscope.datasets.masks import encode_mask
from ganscope.errors import GanscopeError, GanscopeWarning, ImageError
from ganscope.files import cache_folder
from ganscope.inputs import VIDEO_SUFFIXES, Video
from ganscope.videos import sample_frames

FRAMES = 8
"""Frames of a video, where nobody says how many."""
MARKED = 24
"""Of 255: how bright a mask's video is where something was changed; its compression leaves less."""
WORKERS = min(4, os.cpu_count() or 1)
TOLD = 20
"""From so many videos on that are to be sampled, it is told beforehand."""


class _Frame(NamedTuple):
    number: int
    path: str
    mask: str


def is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def with_frames(root: Path, rows: pd.DataFrame, most: int | None = None) -> pd.DataFrame:
    """Rows of a layout with every video replaced by its frames, and with a column `video`.

    root: what the file names are below. most: frames of a video; None: `FRAMES` of a video file and
    all those that lie in a folder. A frame's file name is the video's, `#` and its number; its
    `path` is in the cache. Videos that cannot be read are left out with a warning. Raises
    `GanscopeError` if none can, or the extra `video` is missing.
    """
    films = rows["file_name"].astype(str).map(is_video)
    if not films.any():
        return _thinned(rows, most)
    if find_spec("av") is None:
        raise GanscopeError(
            f"{root}: the corpus holds videos, and to sample their frames takes PyAV: "
            'pip install "ganscope[video]"'
        )
    rows = rows.copy()
    masks = rows["mask"].fillna("") if "mask" in rows else pd.Series("", rows.index)
    if "video" not in rows:
        rows["video"] = ""
    rows["video"] = rows["video"].fillna("").where(~films, rows["file_name"])
    if "group" not in rows:
        rows["group"] = ""
    alone = films & (rows["group"].fillna("") == "")
    rows.loc[alone, "group"] = rows.loc[alone, "video"]  # frames of one video show one scene
    found: list[dict] = []
    faults: list[str] = []
    for i, frames in _sampled(root, rows["file_name"][films], masks[films], most or FRAMES):
        if isinstance(frames, ImageError):
            faults.append(f"{frames.path}: {frames.reason}")
            continue
        row = rows.loc[i].to_dict()
        for frame in frames:
            name = f"{row['file_name']}#{frame.number:06}"
            found.append(row | {"file_name": name, "path": frame.path, "mask": frame.mask})
    if faults:
        if len(faults) == int(films.sum()):
            raise GanscopeError(f"{root}: none of its videos can be read; {faults[0]}")
        warnings.warn(
            f"{root}: {len(faults):,} of {int(films.sum()):,} videos cannot be read and are left "
            f"out, as if a download had stopped midway; the first is {faults[0]}",
            GanscopeWarning,
            stacklevel=4,
        )
    rest = _thinned(rows[~films], most).assign(mask=masks[~films])
    whole = pd.concat([rest, pd.DataFrame(found)], ignore_index=True)
    whole.attrs = rows.attrs
    return whole


def _thinned(rows: pd.DataFrame, most: int | None) -> pd.DataFrame:
    """At most so many frames of each video, at equal distances, of frames that lie in folders."""
    if most is None or "video" not in rows:
        return rows
    kept: list = []
    for video, part in rows.groupby("video", sort=False):
        places = np.unique(np.linspace(0, len(part) - 1, min(most, len(part))).round().astype(int))
        kept += list(part.index if not video else part.index[places])
    return rows.loc[sorted(kept)]


def _sampled(
    root: Path, names: pd.Series, masks: pd.Series, most: int
) -> Iterator[tuple[int, list[_Frame] | ImageError]]:
    """Index of a row -> its frames, or why there are none; new ones in threads."""
    missing = sum(
        not _folder(root / name, root / mask if mask else None, most).exists()
        for name, mask in zip(names, masks, strict=True)
    )
    if missing >= TOLD:
        warnings.warn(
            f"{root}: sampling {most} frames of each of {missing:,} videos, once; they are kept in "
            f"{cache_folder() / 'frames'}",
            GanscopeWarning,
            stacklevel=5,
        )

    def sample(name: str, mask: str) -> list[_Frame] | ImageError:
        try:
            return _frames(root / name, root / mask if mask else None, most)
        except ImageError as error:
            return error

    with ThreadPoolExecutor(WORKERS) as pool:
        yield from zip(names.index, pool.map(sample, names, masks), strict=True)


def _folder(video: Path, mask: Path | None, most: int) -> Path:
    """Where the frames of a video are kept; it is another one when the video changes."""
    key = [str(most)]
    for path in (video, mask):
        if path is not None:
            try:
                about = path.stat()
            except OSError:
                key.append(f"{path} missing")
                continue
            key.append(f"{os.path.abspath(path)} {about.st_size} {about.st_mtime_ns}")
    name = blake2b("\n".join(key).encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
    return Path(os.path.abspath(cache_folder())) / "frames" / name[:2] / name


def _frames(video: Path, mask: Path | None, most: int) -> list[_Frame]:
    folder = _folder(video, mask, most)
    if not folder.is_dir():
        _sample(folder, video, mask, most)
    frames = []
    for path in sorted(folder.glob("[0-9]*.png")):
        own = folder / f"mask-{path.name}"
        frames.append(_Frame(int(path.stem), str(path), str(own) if own.exists() else ""))
    return frames


def _sample(folder: Path, video: Path, mask: Path | None, most: int) -> None:
    """Write frames and masks; the folder is there as a whole or not at all."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as part:
            whole = Path(part) / "whole"
            whole.mkdir()
            shapes = {}
            for number, pixels in sample_frames(Video(str(video)), most):
                shapes[number] = pixels.shape
                _write(whole / f"{number:06}.png", pixels[..., ::-1])
            if not shapes:
                raise ImageError(str(video), "no frame of this video can be decoded")
            if mask is not None:
                for number, marks in sample_frames(Video(str(mask)), most, list(shapes)):
                    if marks.shape != shapes[number]:
                        raise ImageError(str(mask), f"not of the size of {video}, whose mask it is")
                    marked = encode_mask(np.any(marks >= MARKED, axis=-1))
                    (whole / f"mask-{number:06}.png").write_bytes(marked)
            try:
                os.rename(whole, folder)
            except OSError:
                if not folder.is_dir():  # else another process was quicker
                    raise
                shutil.rmtree(whole, ignore_errors=True)
    except OSError as error:
        raise GanscopeError(
            f"{folder}: frames cannot be kept there ({error.strerror}); free some space, or set "
            "GANSCOPE_CACHE to a folder of yours"
        ) from None


def _write(path: Path, pixels: np.ndarray) -> None:
    _, data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    path.write_bytes(data.tobytes())
