"""Frames of a video: a few, chosen so that every scene is seen, as upright 8-bit RGB.

A video is gone through twice: small and grey to find its scenes (of a long one the key frames
only), then to decode those frames that were chosen. PyAV, which brings FFmpeg, is an extra.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ganscope.errors import ImageError, reason_of
from ganscope.images import MAX_PIXELS
from ganscope.inputs import Video

FORMATS = "mov,mp4,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,flv,ogg"
"""Demuxers that may open a file: playlists, which lead to other files and addresses, are none."""
SMALL = 32
"""Side of the pictures by which scenes are told."""
CUT = 0.12
"""Mean difference, of 1, between two small pictures from which on a new scene begins."""
LONG, KEY_FRAMES = 60.0, 4
"""In a video of more seconds only key frames are looked at, if there are so many times as many of
them as frames wanted."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One frame, and the time that it stands for, in seconds from the video's beginning."""

    time: float
    since: float
    until: float
    scene: int
    pixels: np.ndarray
    """(H, W, 3) uint8 RGB, upright."""


@dataclass(kw_only=True)
class Film:
    """A video that was looked through."""

    video: Video
    duration: float
    width: int
    height: int
    """As stored; once frames are read, as they are shown."""
    scenes: int
    wanted: dict[int, tuple[float, float, float, int]]
    """Number of a frame in decoding order -> its time, since, until, scene."""
    key_frames_only: bool
    warnings: list[str] = field(default_factory=list)


def open_film(video: Video, most: int) -> Film:
    """Look through a video and choose `most` frames at most.

    Raises `ImageError` if it is missing, damaged from its beginning, or holds no moving pictures,
    and where PyAV is not installed.
    """
    with _damage(video.name):
        return _looked_through(video, most)


def _looked_through(video: Video, most: int) -> Film:
    with _opened(video) as (container, stream):
        if stream.codec_context is None:
            raise ImageError(video.name, "no video of a kind that can be decoded")
        duration = _duration(container, stream)
        width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MAX_PIXELS:
        raise ImageError(video.name, f"{width}x{height} pixels, more than {MAX_PIXELS:,}")
    damage: list[str] = []
    seen = _look_through(video, True, damage) if duration > LONG else []
    keys = len(seen) >= KEY_FRAMES * most
    if not keys:
        damage.clear()
        seen = _look_through(video, False, damage)
    if not seen:
        raise ImageError(video.name, "no frame of this video can be decoded")
    times = np.array([time for time, _ in seen])
    end = max(duration, times[-1] + (np.diff(times).mean() if len(times) > 1 else 0.0))
    starts = _scenes([change for _, change in seen])
    film = Film(
        video=video,
        duration=float(end),
        width=width,
        height=height,
        scenes=len(starts),
        wanted=_choose(times, starts, float(end), most),
        key_frames_only=keys,
        warnings=sorted(set(damage)),
    )
    looked = len({scene for *_, scene in film.wanted.values()})
    if looked < film.scenes:
        film.warnings.append(f"{looked} of {film.scenes:,} scenes looked at, the longest")
    return film


def read_frames(film: Film) -> Iterator[Frame]:
    """Decode the chosen frames, in order. Those that cannot be are left out.

    Raises `ImageError` if the video is gone, or of a kind that cannot be shown.
    """
    with _damage(film.video.name):
        yield from _chosen_frames(film)


def _chosen_frames(film: Film) -> Iterator[Frame]:
    left = set(film.wanted)
    for number, _, frame in _decoded(film.video, film.key_frames_only, []):
        if number not in left:
            continue
        left.remove(number)
        time, since, until, scene = film.wanted[number]
        turned = _upright(frame)
        if int(getattr(frame, "color_trc", 0) or 0) in (16, 18):
            _once(film.warnings, "HDR video brought to 8-bit without its curve")
        film.height, film.width = turned.shape[:2]  # as it is shown: the codec's are as stored
        yield Frame(
            time=time,
            since=since,
            until=until,
            scene=scene,
            pixels=turned,
        )
        if not left:
            return


def sample_frames(
    video: Video, most: int, numbers: Sequence[int] = ()
) -> Iterator[tuple[int, np.ndarray]]:
    """(number, pixels (H, W, 3) uint8 RGB, upright) of `most` frames at equal distances, the first
    and the last among them, as the field's data sets are sampled; or of those of `numbers`.

    Fewer where there are fewer, or where some are damaged. Raises `ImageError` as `open_film`.
    """
    with _damage(video.name):
        if not numbers:
            count = _count_frames(video)
            numbers = np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()
        left = {int(number) for number in numbers}
        for number, _, frame in _decoded(video, False, []):
            if number in left:
                left.remove(number)
                yield number, _upright(frame)
            if not left:
                return


def _count_frames(video: Video) -> int:
    """How many frames a video says that it has, or how many packets there are."""
    with _opened(video) as (container, stream):
        if stream.codec_context is None:
            raise ImageError(video.name, "no video of a kind that can be decoded")
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > MAX_PIXELS:
            raise ImageError(video.name, f"{width}x{height} pixels, more than {MAX_PIXELS:,}")
        count = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
    if not count:
        raise ImageError(video.name, "no frame of this video can be decoded")
    return count


def _upright(frame: Any) -> np.ndarray:
    pixels = frame.to_ndarray(format="rgb24")
    turned = np.rot90(pixels, round(getattr(frame, "rotation", 0) / 90) % 4)
    return np.ascontiguousarray(turned)


def _once(warnings: list[str], said: str) -> None:
    if said not in warnings:
        warnings.append(said)


@contextmanager
def _damage(name: str) -> Iterator[None]:
    """Turn whatever a damaged or hostile video makes PyAV raise into an `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(name, "too large for the memory of this machine") from None
    except Exception as error:
        raise ImageError(name, f"damaged ({reason_of(error)})") from None


@contextmanager
def _opened(video: Video) -> Iterator[tuple[Any, Any]]:
    """A video's container and its stream of moving pictures."""
    try:
        import av
    except ImportError:
        raise ImageError(
            video.name, 'looking at videos takes PyAV: pip install "ganscope[video]"'
        ) from None
    av.logging.set_level(av.logging.PANIC)  # what is wrong is said in our own line
    try:
        content = video.content
        file = open(video.name, "rb") if content is None else io.BytesIO(content)  # noqa: SIM115
    except OSError as error:
        raise ImageError(video.name, error.strerror or "cannot be read") from None
    with file:
        try:
            options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
            container = av.open(file, options=options, metadata_errors="replace")
        except (av.FFmpegError, ValueError, OSError) as error:
            said = "the file is empty" if not file.seek(0, 2) else f"no video ({reason_of(error)})"
            raise ImageError(video.name, said) from None
        with container:
            covers = av.stream.Disposition.attached_pic
            moving = [s for s in container.streams.video if not s.disposition & covers]
            if not moving:
                said = "sound only" if container.streams.audio else "no moving pictures"
                raise ImageError(video.name, f"no video: it holds {said}")
            moving[0].thread_type = "AUTO"
            yield container, moving[0]


def _duration(container: Any, stream: Any) -> float:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return float(container.duration or 0) / 1e6


def _decoded(video: Video, keys: bool, damage: list[str]) -> Iterator[tuple[int, float, Any]]:
    """(number, seconds from the beginning, frame); what is damaged is passed over, and said."""
    import av

    with _opened(video) as (container, stream):
        if keys:
            stream.codec_context.skip_frame = "NONKEY"
        start = float((stream.start_time or 0) * (stream.time_base or 0))
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        number, time, packets = 0, 0.0, container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                frames = packet.decode()
            except av.FFmpegError:
                damage.append(f"damaged from {time:.1f} s on: what can be decoded is looked at")
                if len(damage) > 1000:
                    return
                continue
            for frame in frames:
                time = number / rate if frame.time is None else max(frame.time - start, 0.0)
                yield number, time, frame
                number += 1


def _look_through(video: Video, keys: bool, damage: list[str]) -> list[tuple[float, float]]:
    """(seconds, how much it differs from the one before, of 1) of each frame; the frames
    themselves are not kept, for a day of video has millions.
    """
    found: list[tuple[float, float]] = []
    first: list[str] = []
    before = None
    for _, time, frame in _decoded(video, keys, first):
        grey = frame.to_ndarray(format="gray", width=SMALL, height=SMALL)
        small = grey[:SMALL, :SMALL].astype(np.float32) / 255
        found.append((time, 0.0 if before is None else float(np.abs(small - before).mean())))
        before = small
    damage += first[:1]
    return found


def _scenes(changes: list[float]) -> list[int]:
    """Numbers of the frames that scenes begin with."""
    return [0, *(i for i, change in enumerate(changes) if i and change > CUT)]


def _choose(
    times: np.ndarray, starts: list[int], end: float, most: int
) -> dict[int, tuple[float, float, float, int]]:
    """Frames spread over the scenes: one in each, or in the longest; further ones where they stand
    for most time. Each stands for an equal part of its scene.
    """
    edges = [*(float(times[s]) for s in starts), end]
    lengths = np.maximum(np.diff(edges), 1e-6)
    chosen = sorted(np.argsort(-lengths, kind="stable")[:most].tolist())
    counts = dict.fromkeys(chosen, 1)
    sizes = {s: (starts[s + 1] if s + 1 < len(starts) else len(times)) - starts[s] for s in chosen}
    for _ in range(most - len(chosen)):
        open_ = [s for s in chosen if counts[s] < sizes[s]]
        if not open_:
            break
        counts[max(open_, key=lambda s: lengths[s] / counts[s])] += 1
    found: dict[int, tuple[float, float, float, int]] = {}
    for scene in chosen:
        first, last = starts[scene], starts[scene] + sizes[scene]
        for part in range(counts[scene]):
            since = edges[scene] + lengths[scene] * part / counts[scene]
            until = edges[scene] + lengths[scene] * (part + 1) / counts[scene]
            free = range(first, last - (counts[scene] - part - 1))  # those after it want one, too
            number = min(free, key=lambda i: abs(times[i] - (since + until) / 2))
            found[number] = (float(times[number]), float(since), float(until), scene)
            first = number + 1
    return dict(sorted(found.items()))
