"""Videos: the frames that are chosen, what they say together, and files that are none or broken.

Every clip is made here.
"""

import json
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from commands import run

from ganscope import videos
from ganscope.config import CheckSettings
from ganscope.detector.judging.checking import Check, VideoCheck, check_images
from ganscope.detector.judging.videos import FrameCheck, summarise
from ganscope.detector.model import Detector
from ganscope.errors import ImageError
from ganscope.images import open_image
from ganscope.inputs import Video
from ganscope.videos import open_film, read_frames

av = pytest.importorskip("av")
SCENES = [skimage.data.astronaut, skimage.data.coffee, skimage.data.chelsea]


def clip(
    path: Path,
    lengths: tuple[int, ...] = (30, 10, 20),
    times: list[int] | None = None,
    codec: str = "mpeg4",
    sound: bool = False,
    gop: int = 12,
) -> Path:
    """A video of photographs that move, 10 frames a second; times: of each frame, in ms."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        stream.bit_rate, stream.gop_size = 2_000_000, gop
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        tone = out.add_stream("aac", rate=44100) if sound else None
        number = 0
        for scene, length in enumerate(lengths):
            pixels = SCENES[scene % 3]()[:96, 100:228]
            for _ in range(length):
                moved = np.ascontiguousarray(np.roll(pixels, number, 1))
                frame = av.VideoFrame.from_ndarray(moved, format="rgb24")
                frame.pts = times[number] if times else number * 100
                frame.time_base = Fraction(1, 1000)
                out.mux(stream.encode(frame))
                number += 1
        out.mux(stream.encode())
        if tone:
            out.mux(tone.encode(silence()))
            out.mux(tone.encode())
    return path


def silence() -> Any:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
    frame.sample_rate = 44100
    return frame


@pytest.fixture
def sure(tmp_path: Path) -> str:
    """A detector on disk that calls everything fake."""
    torch.manual_seed(0)
    detector = Detector.create("cnn", width=8, depth=3).eval()
    detector.config["thresholds"] = {"fake": 0.0, "real": 0.0, "fpr_1": 0.0, "fpr_5": 0.0}
    detector.save(tmp_path / "sure")
    return str(tmp_path / "sure")


@pytest.mark.parametrize("most", [1, 2, 3, 8, 200])
def test_every_scene_is_seen_as_far_as_frames_go(tmp_path: Path, most: int) -> None:
    film = open_film(Video(str(clip(tmp_path / "a.mp4"))), most)
    frames = list(read_frames(film))
    assert (film.scenes, film.duration) == (3, pytest.approx(6.0, abs=0.05))
    assert len(frames) == min(most, 60)
    assert {f.scene for f in frames} == {1: {0}, 2: {0, 2}}.get(most, {0, 1, 2})
    assert [f.time for f in frames] == sorted(f.time for f in frames)
    bounds = [(0.0, 3.0), (3.0, 4.0), (4.0, film.duration)]
    for frame in frames:
        low, high = bounds[frame.scene]
        assert low - 1e-6 <= frame.since < frame.until <= high + 1e-6
        assert frame.since - 0.11 <= frame.time <= frame.until + 0.11
        want = SCENES[frame.scene]()[:96, 100:228]
        want = np.roll(want, round(frame.time * 10), 1)
        assert np.abs(frame.pixels.astype(float) - want).mean() < 12  # the very frame, compressed
    said = "of 3 scenes looked at" in " ".join(film.warnings)
    assert said is (most < 3)


def test_of_a_long_video_the_key_frames_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ganscope.videos.LONG", 5.0)
    film = open_film(Video(str(clip(tmp_path / "a.mp4", (60, 60), gop=2))), 5)
    assert film.key_frames_only
    frames = list(read_frames(film))
    assert len(frames) == 5
    assert {f.scene for f in frames} == {0, 1}
    for frame in frames:
        want = np.roll(SCENES[frame.scene]()[:96, 100:228], round(frame.time * 10), 1)
        assert np.abs(frame.pixels.astype(float) - want).mean() < 12


def test_times_are_those_of_the_file_where_the_rate_varies(tmp_path: Path) -> None:
    times = [0, 40, 80, 120, 2000, 5000, 5040, 5080]
    film = open_film(Video(str(clip(tmp_path / "a.mkv", (8,), times))), 8)
    assert [round(f.time * 1000) for f in read_frames(film)] == times


def test_one_frame_is_a_video_too(tmp_path: Path, sure: str) -> None:
    (check,) = check_images(
        CheckSettings(
            paths=(str(clip(tmp_path / "a.mp4", (1,))),),
            detector=sure,
            device="cpu",
            reencode=False,
        )
    )
    assert isinstance(check, VideoCheck)
    assert len(check.frames) == 1
    assert check.interval is None


def test_the_frames_of_one_video_are_shown(tmp_path: Path, sure: str) -> None:
    clip(tmp_path / "a.mp4")
    done = run("check", "a.mp4", "--detector", sure, "--frames", "5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "seconds" in done.stdout
    assert len([line for line in done.stdout.splitlines() if " fake " in f" {line} "]) >= 5


def test_what_is_no_video_or_broken_is_a_line(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=44100)
        out.mux(stream.encode(silence()))
        out.mux(stream.encode())
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n")
    for name, said in (
        ("sound", "sound only"),
        ("empty", "empty"),
        ("noise", "no video"),
        ("list", "no video"),
        ("gone", "No such file"),
    ):
        with pytest.raises(ImageError, match=said):
            open_film(Video(str(tmp_path / f"{name}.mp4")), 4)


def test_of_a_damaged_video_the_rest_is_looked_at(tmp_path: Path) -> None:
    whole = clip(tmp_path / "a.avi").read_bytes()
    for start, end in ((0.4, 0.5), (0.6, 1.0)):
        cut = bytearray(whole)
        if end == 1.0:
            del cut[int(start * len(whole)) :]
        else:
            a, b = int(start * len(whole)), int(end * len(whole))
            cut[a:b] = np.random.default_rng(0).bytes(b - a)
        (tmp_path / "half.avi").write_bytes(cut)
        film = open_film(Video(str(tmp_path / "half.avi")), 6)
        assert 1 <= len(list(read_frames(film))) <= 6


def test_damage_anywhere_in_a_video_is_no_traceback(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for kind in ("mkv", "mp4"):
        whole = clip(tmp_path / f"a.{kind}", (3,)).read_bytes()
        for _ in range(15):
            cut = bytearray(whole)
            for place in rng.integers(0, 600, 5):  # where it says what it holds
                cut[place] = int(rng.integers(256))
            with suppress(ImageError):
                list(read_frames(open_film(Video("a", bytes(cut)), 2)))


def test_a_codec_that_is_not_known_is_one_line(tmp_path: Path) -> None:
    whole = clip(tmp_path / "a.mkv", (3,), codec="ffv1").read_bytes()
    assert whole.count(b"V_FFV1") == 1
    with pytest.raises(ImageError, match="of a kind that can be decoded"):
        open_film(Video("a", whole.replace(b"V_FFV1", b"V_XXXX")), 2)


def test_damage_before_the_first_packet_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = clip(tmp_path / "a.mp4", (6,))
    opened = videos._opened

    class Damaged:
        def __init__(self, container: Any):
            self.container = container

        def demux(self, stream: Any) -> Any:
            packets = self.container.demux(stream)

            class Packets:
                told = False

                def __next__(self) -> Any:
                    if not self.told:
                        self.told = True
                        raise av.InvalidDataError(1, "damaged")
                    return next(packets)

            return Packets()

    @contextmanager
    def damaged(video: Video) -> Any:
        with opened(video) as (container, stream):
            yield Damaged(container), stream

    monkeypatch.setattr(videos, "_opened", damaged)
    monkeypatch.setattr(videos, "_duration", lambda *_: 0.6)
    film = open_film(Video(str(path)), 3)
    assert len(list(read_frames(film))) == 3
    assert "damaged from 0.0 s on" in film.warnings[0]


def test_a_video_that_is_turned_is_upright_and_has_the_size_that_is_seen(tmp_path: Path) -> None:
    whole = clip(tmp_path / "a.mp4", (3,)).read_bytes()
    ones = [n.to_bytes(4, "big") for n in (0x10000, 0, 0x40000000, 0xFFFF0000)]
    one, nothing, last, minus = ones
    flat = b"".join([one, nothing, nothing, nothing, one, nothing, nothing, nothing, last])
    turned = b"".join([nothing, one, nothing, minus, nothing, nothing, nothing, nothing, last])
    at = whole.rindex(flat)  # of the track: the film's own comes before
    (tmp_path / "b.mp4").write_bytes(whole[:at] + turned + whole[at + len(flat) :])
    (before,) = read_frames(open_film(Video(str(tmp_path / "a.mp4")), 1))
    film = open_film(Video(str(tmp_path / "b.mp4")), 1)
    (frame,) = read_frames(film)
    assert np.array_equal(frame.pixels, np.rot90(before.pixels, -1))  # a quarter clockwise
    assert (film.width, film.height) == (96, 128)


def test_a_video_in_memory_is_the_same(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", (6,))
    one = list(read_frames(open_film(Video(str(path)), 3)))
    two = list(read_frames(open_film(Video("-", path.read_bytes()), 3)))
    assert [f.time for f in one] == [f.time for f in two]
    assert all((a.pixels == b.pixels).all() for a, b in zip(one, two, strict=True))


def test_a_video_is_checked_between_pictures(photo: Path, sure: str, tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.mp4", sound=True)
    plan = CheckSettings(
        paths=(str(photo), str(path), str(photo)),
        detector=sure,
        csv=tmp_path / "v.csv",
        timeline=tmp_path / "lines",
        frames=6,
        device="cpu",
        reencode=False,
    )
    before, film, after = check_images(plan)
    assert before == after
    assert isinstance(film, VideoCheck)
    assert not isinstance(before, VideoCheck)
    assert (film.verdict, film.pixels_verdict) == ("fake", "fake")
    assert film.probability is None
    assert [f.scene for f in film.frames] == sorted(f.scene for f in film.frames)
    assert len(film.frames) == 6
    assert {f.verdict for f in film.frames} == {"fake"}
    assert film.seconds["fake"] == pytest.approx(6.0, abs=0.05)
    scores = np.array([f.score for f in film.frames])
    seconds = np.array([f.seconds for f in film.frames])
    assert film.score == pytest.approx(float((scores * seconds).sum() / seconds.sum()))
    assert film.interval is not None
    assert film.interval[0] <= (film.score or 0) <= film.interval[1]
    record = json.loads(json.dumps(film.as_dict(), allow_nan=False))
    assert Check.from_dict(record) == film
    assert len(record["frames"]) == 6
    drawn = open_image(film.timeline or "").pixels
    assert drawn.shape[1] > 1000
    assert len((tmp_path / "v.csv").read_text().splitlines()) == 4  # a row a file
    assert [p.name for p in (tmp_path / "lines").iterdir()] == ["clip.png"]


class Thresholds:
    faces_alone = False

    def verdict(self, score: float) -> str:
        return "fake" if score >= 0.8 else "real" if score < 0.3 else "unsure"


def frame(score: float | None, seconds: float = 1.0, scene: int = 0) -> FrameCheck:
    verdict = Thresholds().verdict(score) if score is not None else "unsure"
    return FrameCheck(
        time=0.0,
        since=0.0,
        until=seconds,
        scene=scene,
        score=score,
        verdict=verdict,
        probability=score,
        warnings=() if score is not None else ("almost constant", "so unsure"),
    )


def said(*frames: FrameCheck) -> Any:
    return summarise(frames, Thresholds())  # type: ignore[arg-type]


def test_a_video_is_fake_or_real_only_if_its_interval_is() -> None:
    assert said(*[frame(0.9)] * 8).verdict == "fake"
    assert said(*[frame(0.1)] * 8).verdict == "real"
    assert said(*[frame(0.99)] * 7, frame(0.0)).verdict == "unsure"
    mixed = said(frame(0.9, 3.0), frame(0.1, 1.0))
    assert mixed.score == pytest.approx(0.7)
    assert mixed.seconds == {"fake": 3.0, "real": 1.0, "unsure": 0.0}
    assert mixed.interval == pytest.approx((0.1, 0.9))


def test_frames_of_a_scene_count_as_one_where_there_are_scenes_enough() -> None:
    """Forty frames of ten scenes know no more than ten."""
    scores = np.random.default_rng(0).uniform(0, 1, 10)
    few = said(*[frame(s, scene=i) for i, s in enumerate(scores)])
    many = said(*[frame(s, 0.25, scene=i) for i, s in enumerate(scores) for _ in range(4)])
    assert many.score == pytest.approx(few.score)
    assert many.interval == pytest.approx(few.interval)


def test_black_frames_say_nothing() -> None:
    assert said(frame(None, 5.0), frame(0.9), frame(0.9)).score == pytest.approx(0.9)
    nothing = said(frame(None), frame(None))
    assert (nothing.verdict, nothing.score) == ("unsure", None)
    assert "almost constant" in nothing.meaning
