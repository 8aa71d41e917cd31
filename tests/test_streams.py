"""Streams: webdataset shards and Hugging Face data sets as training input."""

import functools
import http.server
import io
import json
import os
import tarfile
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from commands import side_by_side

from ganscope.config import TrainDetectorSettings
from ganscope.datasets.streams import Record, Stream, expand, is_held_out, label_of
from ganscope.detector.model import Detector
from ganscope.detector.training import streamed
from ganscope.detector.training.recipes import train_detector
from ganscope.detector.training.streamed import At, draw_records
from ganscope.errors import GanscopeError, GanscopeWarning


def picture(number: int, label: int) -> bytes:
    """Noise; fakes have a stripe pattern."""
    rng = np.random.default_rng(number)
    pixels = rng.normal(128, 30, (40, 40, 3))
    pixels[::2] += 40 * label
    done, data = cv2.imencode(".png", pixels.clip(0, 255).astype(np.uint8))
    assert done
    return data.tobytes()


def write_shards(folder: Path, shards: int = 3, each: int = 80, mode: str = "w") -> Path:
    """Shards of noise, whose key is its number; every third number is a fake's."""
    folder.mkdir(parents=True)
    for shard in range(shards):
        with tarfile.open(folder / f"s-{shard:03d}.tar", mode) as archive:
            for i in range(shard * each, (shard + 1) * each):
                label = int(i % 3 == 0)
                about = {"kind": ["real photo", "fake_gan"][label], "scene": f"g{i // 6}"}
                for ending, content in (
                    ("png", picture(i, label)),
                    ("cls", b"%d" % label),
                    ("json", json.dumps(about).encode()),
                ):
                    member = tarfile.TarInfo(f"x/{i:06d}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards") / "s")


def settings(data: str, out: Path, **changes: Any) -> TrainDetectorSettings:
    about: dict[str, Any] = {"data": (data,), "out": out, "size": 32, "steps": 20, "batch_size": 8}
    about |= {"degrade": 0.0, "device": "cpu", "precision": "fp32", "detector": "timm:test_vit"}
    return TrainDetectorSettings(**about | {"learning_rate": 3e-3} | changes)


def all_of(stream: Stream, place: tuple[int, int] = (0, 1), seed: int = 0) -> list[Record]:
    return list(stream.records(np.random.default_rng(seed), place))


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (0, 0),
        (1.0, 1),
        (True, 1),
        (b"false\n", 0),
        (" FAKE ", 1),
        ("0_real", 0),
        ("fake_stylegan", 1),
        ("AI-generated", 1),
        ("realistic vision", None),
        ("cat", None),
        ("real or fake", None),
        (2, None),
        (None, None),
    ],
)
def test_what_labels_are_called(value: Any, label: int | None) -> None:
    assert label_of(value) == label


def test_ranges_folders_and_what_is_not_there(shards: Path) -> None:
    assert expand(f"{shards}/s-{{000..002}}.tar") == [
        str(shards / f"s-00{i}.tar") for i in range(3)
    ]
    assert expand(str(shards)) == expand(f"{shards}/s-00{{0,1,2}}.tar")
    assert expand("s3://b/x-{8..11}.tar") == [f"s3://b/x-{i}.tar" for i in (8, 9, 10, 11)]
    with pytest.raises(GanscopeError, match="there is no"):
        expand(f"{shards}/s-{{000..003}}.tar")
    with pytest.raises(GanscopeError, match=r"no \.tar files"):
        expand(str(shards.parent))


@pytest.mark.parametrize(("shards_", "processes"), [(3, 2), (9, 2), (1, 3)])
def test_every_process_has_its_part_and_none_has_anothers(
    tmp_path: Path, shards_: int, processes: int
) -> None:
    stream = Stream([str(write_shards(tmp_path / "s", shards_, 10))])
    parts = [all_of(stream, (i, processes)) for i in range(processes)]
    keys = Counter(record.key for part in parts for record in part)
    assert sorted(keys) == [f"x/{i:06d}.png" for i in range(10 * shards_)]
    assert set(keys.values()) == {1}
    assert max(map(len, parts)) - min(map(len, parts)) <= 10
    for record in parts[0]:
        number = int(record.key[2:8])
        assert record.label == (number % 3 == 0)
        assert record.read() == picture(number, record.label)
        assert record.weight == 0  # on the disk until it is wanted
    assert [r.key for r in all_of(stream)] == [r.key for r in all_of(stream)]
    assert shards_ == 1 or [r.key for r in all_of(stream)] != [
        r.key for r in all_of(stream, seed=5)
    ]


def test_labels_and_groups_from_json_and_folders(shards: Path, tmp_path: Path) -> None:
    stream = Stream([str(shards)], "kind", "scene")
    assert {(r.label, r.group) for r in all_of(stream)} == {
        (int(i % 3 == 0), f"g{i // 6}") for i in range(240)
    }
    with pytest.raises(GanscopeError, match=r"'colour' is no column of .*cls, json, kind, scene"):
        all_of(Stream([str(shards)], "colour"))
    with pytest.raises(GanscopeError, match=r"label 'g\d+' \(column scene\) is neither"):
        all_of(Stream([str(shards)], "scene"))
    with pytest.raises(GanscopeError, match=r"label 'x' .*__key__"):
        all_of(Stream([str(shards)], "__key__"))


def test_packed_remote_and_damaged_shards(tmp_path: Path) -> None:
    import fsspec

    packed = write_shards(tmp_path / "packed", 1, 12, "w:gz") / "s-000.tar"
    plain = write_shards(tmp_path / "plain", 1, 12) / "s-000.tar"
    with fsspec.open("memory://s/s-000.tar", "wb") as file:
        file.write(plain.read_bytes())
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0),
        functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(plain.parent)),
    )
    server.RequestHandlerClass.log_message = lambda *_: None  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/s-000.tar"
    try:
        wanted = [(r.key, r.label, r.read()) for r in all_of(Stream([str(plain)]))]
        assert len(wanted) == 12
        for stream in (
            Stream([str(packed)]),
            Stream(["memory://s/s-000.tar"]),
            Stream([url], allow_private=True),
        ):
            assert [(r.key, r.label, r.read()) for r in all_of(stream)] == wanted
        with pytest.raises(GanscopeError, match="--allow-private"):
            all_of(Stream([url]))
    finally:
        server.shutdown()
    plain.write_bytes(plain.read_bytes()[:9000])
    with pytest.raises(GanscopeError, match=r"cannot be read .*write it again"):
        all_of(Stream([str(plain)]))


def test_the_hold_out_is_a_tenth_and_stays(shards: Path) -> None:
    groups = [f"group {i}" for i in range(5000)]
    held = {group for group in groups if is_held_out(group)}
    assert 400 < len(held) < 600
    assert held != {group for group in groups if is_held_out(group, 1)}
    assert [i for i in range(40) if is_held_out(f"g{i}")] == [
        8,
        9,
        13,
        15,
        17,
        22,
        24,
        29,
    ]
    stream = Stream([str(shards)], None, "scene")
    drawn = draw_records(stream, At(0, 0), (0, 1), 0, 0)
    learned = {next(drawn)[0].group for _ in range(400)}
    assert not {group for group in learned if is_held_out(group)}


def test_drawing_goes_on_where_it_stopped_with_both_classes_in_turn(shards: Path) -> None:
    stream = Stream([str(shards)])
    drawn = draw_records(stream, At(0, 0), (0, 1), 0, 0)
    whole = [next(drawn) for _ in range(400)]
    assert [record.label for record, _ in whole[:6]] == [1, 0, 1, 0, 1, 0]
    passes = Counter(at.pass_ for _, at in whole)
    assert len(passes) > 2
    first = [record.key for record, at in whole if at.pass_ == 0]
    assert len(set(first)) == len(first)  # nothing twice in a pass
    for i in (3, passes[0] - 1, passes[0], 300):
        again = draw_records(stream, whole[i][1], (0, 1), 0, 0)
        assert [next(again)[0].key for _ in range(5)] == [r.key for r, _ in whole[i + 1 : i + 6]]


def test_classes_one_after_the_other_are_bounded_and_told_of(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sorted(Stream):
        def records(self, *_: Any) -> Iterator[Record]:
            for i in range(1000):
                label = int(i >= 500)
                yield Record(str(i), label, str(i), ".png", lambda: b"", 10)

    monkeypatch.setattr(streamed, "STOCK", 20)
    drawn = draw_records(Sorted([str(shards)]), At(0, 0), (0, 1), 0, 0)
    with pytest.warns(GanscopeWarning, match="passed over .* mix them"):
        found = [next(drawn)[0].label for _ in range(100)]
    assert abs(2 * sum(found) - len(found)) <= 4  # one a pass


class Killed(Exception):
    pass


class KillAfter:
    """A progress bar that fails after so many steps."""

    def __init__(self, steps: int):
        self.left = steps

    def add_task(self, name: str, **_: Any) -> int:
        return int(name.startswith("training"))

    def remove_task(self, _: int) -> None:
        pass

    def update(self, task: int, **_: Any) -> None:
        self.left -= task
        if self.left == 0:
            raise Killed


def test_a_detector_learns_from_shards_and_goes_on_to_the_same_bytes(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{shards}/s-{{000..002}}.tar"
    wish = settings(name, tmp_path / "whole", steps=60, label_column="cls")
    whole = train_detector(wish)
    scores = pd.read_csv(whole / "scores.csv")
    assert set(scores["split"]) == {"val"}
    assert all(is_held_out(f"x/{Path(key).stem}") for key in scores["key"])
    fakes = scores["label"] == 1
    assert scores["logit"][fakes].mean() > scores["logit"][~fakes].mean() + 1
    made = Detector.load(whole)
    assert not made.learned.complete
    counts = json.loads((whole / "metrics.json").read_text())["images"]["train"]
    assert counts == {"real": 240, "fake": 240}
    assert "--data" in (whole / "README.md").read_text()
    assert not list(whole.glob("held-out*"))

    monkeypatch.setattr(streamed, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(Killed):
        train_detector(settings(name, tmp_path / "k", steps=60, label_column="cls"), KillAfter(41))  # type: ignore[arg-type]
    taken: list[At] = []
    draw = streamed.draw_records

    def noted(stream: Stream, at: At, *rest: Any) -> Any:
        taken.append(at)
        return draw(stream, at, *rest)

    monkeypatch.setattr(streamed, "draw_records", noted)
    killed = train_detector(settings(name, tmp_path / "k", steps=60, label_column="cls"))
    assert taken[0] != At(0, 0)
    for file in ("model.safetensors", "scores.csv"):
        one, two = ((run / file).read_bytes() for run in (whole, killed))
        assert one.replace(b"/whole/", b"/k/") == two


def test_two_processes_learn_from_their_parts(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = settings(str(shards), tmp_path / "run", steps=8)
    draw = streamed.draw_records

    def noted(*arguments: Any) -> Iterator[tuple[Record, At]]:
        for record, at in draw(*arguments):
            with open(tmp_path / f"{os.environ['RANK']}.txt", "a") as file:
                file.write(f"{at.pass_}/{record.key}\n")
            yield record, at

    monkeypatch.setattr(streamed, "draw_records", noted)
    monkeypatch.setattr(streamed, "ASKED_EVERY", 2)
    monkeypatch.setattr(streamed, "CHECKPOINT_SECONDS", 0.0)
    assert side_by_side(lambda: train_detector(wish)) == [0, 0]
    drawn = [(tmp_path / f"{i}.txt").read_text().split() for i in (0, 1)]
    first = [[name for name in one if name.startswith("0/")] for one in drawn]
    assert min(map(len, first)) > 20
    assert not set(first[0]) & set(first[1])
    counts = json.loads((tmp_path / "run/metrics.json").read_text())["images"]["train"]
    assert counts == {"real": 64, "fake": 64}


def test_pictures_that_cannot_be_read_are_passed_over_and_told(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "s", 1, 240)
    with tarfile.open(folder / "bad.tar", "w") as archive:
        for i in range(900, 906):
            for ending, content in (("png", b"no picture"), ("cls", b"%d" % (i % 2))):
                member = tarfile.TarInfo(f"{i}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    with pytest.warns(GanscopeWarning, match="of the stream cannot be read"):
        train_detector(settings(str(folder), tmp_path / "run", steps=16))


def test_hugging_face_streams(tmp_path: Path) -> None:
    library = pytest.importorskip("datasets", reason="needs Hugging Face datasets")
    labels = [int(i % 2 == 0) for i in range(160)]
    rows = {
        "image": [{"bytes": picture(i, label), "path": None} for i, label in enumerate(labels)],
        # As some data sets have it: 0 is fake.
        "truth": [1 - label for label in labels],
        "scene": [f"s{i // 4}" for i in range(160)],
    }
    features = library.Features(
        image=library.Image(),
        truth=library.ClassLabel(names=["FAKE", "REAL"]),
        scene=library.Value("string"),
    )
    made = library.Dataset.from_dict(rows, features=features)
    made.save_to_disk(str(tmp_path / "disk"))
    (tmp_path / "parquet").mkdir()
    made.to_parquet(str(tmp_path / "parquet" / "train.parquet"))
    for name in ("disk", "parquet"):
        stream = Stream([f"hf:{tmp_path}/{name}"], "truth", "scene")
        parts = [all_of(stream, (i, 2)) for i in (0, 1)]
        found = {r.read(): r for part in parts for r in part}
        assert len(found) == sum(map(len, parts)) == 160
        for i, label in enumerate(labels):
            record = found[picture(i, label)]
            assert (record.label, record.group) == (label, f"s{i // 4}")
    with pytest.raises(GanscopeError, match=r"no column 'labl'.*image, truth, scene"):
        all_of(Stream([f"hf:{tmp_path}/disk"], "labl"))
    wish = settings(f"hf:{tmp_path}/parquet", tmp_path / "run", steps=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error", GanscopeWarning)
        run = train_detector(TrainDetectorSettings(**{**wish.__dict__, "label_column": "truth"}))
    assert Detector.load(run).config["training"]["steps_run"] == 20


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": None}, "say --steps"),
        ({"recipe": "frozen-linear"}, "--recipe frozen-linear needs a corpus"),
        ({"recipe": "finetune"}, "--recipe finetune needs a corpus"),
        ({"soup": 2}, "--soup: --data has no use for it"),
        ({"fuse": "patch"}, "--fuse: --data has no use for it"),
        ({"rank": 4}, "--rank: --recipe full has no use for it"),
        ({"corpora": ("x",)}, "streams or corpora, not both"),
        ({"data": (), "label_column": "x"}, "--label-column is of --data alone"),
    ],
)
def test_what_does_not_go_with_streams_is_said(
    changes: dict[str, Any], said: str, shards: Path, tmp_path: Path
) -> None:
    about = {"data": (str(shards),), "out": tmp_path / "run", "steps": 20, "device": "cpu"}
    with pytest.raises(GanscopeError, match=said):
        train_detector(TrainDetectorSettings(**about | changes))
    assert not (tmp_path / "run").exists()
