"""Layouts of face forgery corpora, frames of their videos, and splits that no person crosses."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from ganscope.datasets import frames
from ganscope.datasets.corpus import open_corpora, open_corpus
from ganscope.datasets.face_layouts import groups, identities
from ganscope.datasets.masks import read_mask
from ganscope.datasets.splits import split_corpus
from ganscope.detector.training.masks import find_masks
from ganscope.errors import GanscopeError, GanscopeWarning
from ganscope.images import open_image


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GANSCOPE_CACHE", str(tmp_path / "kept"))


def picture(path: Path, value: int = 0, side: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((side, side, 3), value, np.uint8))
    return path


def video(path: Path, values: list[int], box: bool = False) -> Path:
    """A frame of each grey value, or black ones whose left half is white."""
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for value in values:
            pixels = np.full((48, 64, 3), 0 if box else value, np.uint8)
            if box:
                pixels[:, :32] = 255
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def pairs(root: Path, **splits: list[list[str]]) -> None:
    for name, ids in splits.items():
        (root / f"{name}.json").write_text(json.dumps(ids))


def faceforensics(root: Path) -> Path:
    """Six people in three pairs, two frames of each video, one method, two compressions."""
    people = [("000", "003"), ("001", "870"), ("002", "006")]
    for compression in ("c23", "c40"):
        for one, two in people:
            for who in (one, two):
                for n in range(2):
                    real = root / f"original_sequences/youtube/{compression}/frames/{who}"
                    picture(real / f"{n:03}.png")
            for n in range(2):
                method = root / "manipulated_sequences/Deepfakes"
                picture(method / f"{compression}/frames/{one}_{two}/{n:03}.png")
                picture(method / f"c23/masks/{one}_{two}/{n:03}.png", 255)
    pairs(root, train=[["000", "003"]], val=[["001", "870"]], test=[["002", "006"]])
    return root


def test_faceforensics_of_frames(tmp_path: Path) -> None:
    table = open_corpus(faceforensics(tmp_path / "ff")).table
    assert len(table) == 2 * (6 * 2 + 3 * 2)
    fakes = table[table["label"] == 1].set_index("file_name")
    row = fakes.loc["manipulated_sequences/Deepfakes/c40/frames/000_003/001.png"]
    assert (row["generator"], row["split"], row["compression"]) == ("Deepfakes", "train", "c40")
    assert row["mask"] == "manipulated_sequences/Deepfakes/c23/masks/000_003/001.png"
    assert row["identity"] == "ff++ 000 + ff++ 003"
    assert row["video"] == "manipulated_sequences/Deepfakes/c40/frames/000_003"
    reals = table[table["label"] == 0]
    assert set(reals["generator"]) == {"real"}
    assert set(reals["mask"]) == {""}
    by_group = table.groupby("group")
    assert set(by_group.groups) == {"ff++ 000", "ff++ 001", "ff++ 002"}
    assert (by_group["split"].nunique() == 1).all()
    split = split_corpus(table)
    assert split.attrs["dropped"] == 0
    assert set(split["split"]) == {"train", "val", "test"}


def test_a_compression_and_frames_are_chosen_behind_the_path(tmp_path: Path) -> None:
    root = faceforensics(tmp_path / "ff")
    table = open_corpus(f"{root}@c40@1").table
    assert set(table["compression"]) == {"c40"}
    assert len(table) == 6 + 3
    with pytest.raises(GanscopeError, match="no compression 'c0' in this corpus; it has c23, c40"):
        open_corpus(f"{root}@c0")


def test_faceforensics_of_videos_with_masks(tmp_path: Path) -> None:
    root = tmp_path / "ff"
    shades = [20 * n for n in range(10)]
    for who in ("000", "003"):
        video(root / f"original_sequences/youtube/c23/videos/{who}.mp4", shades)
    method = root / "manipulated_sequences/FaceSwap"
    video(method / "c23/videos/000_003.mp4", shades)
    video(method / "masks/videos/000_003.mp4", shades, box=True)
    pairs(root, train=[["000", "003"]], val=[], test=[])
    table = open_corpus(f"{root}@4").table
    assert len(table) == 3 * 4
    fakes = table[table["label"] == 1]
    assert list(fakes["file_name"].str.rpartition("#")[2]) == [
        "000000",
        "000003",
        "000006",
        "000009",
    ]
    assert set(fakes["video"]) == {"manipulated_sequences/FaceSwap/c23/videos/000_003.mp4"}
    for (_, row), shade in zip(fakes.iterrows(), (0, 60, 120, 180), strict=True):
        pixels = open_image(row["path"]).pixels
        assert abs(pixels.mean() - shade) < 4
        mask = read_mask(root / row["mask"], pixels.shape)
        assert mask[:, :30].all()
        assert not mask[:, 34:].any()
    assert set(table[table["label"] == 0]["mask"]) == {""}


def test_frames_are_sampled_once_and_anew_when_a_video_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "c"
    video(root / "a.mp4", [0] * 5)
    video(root / "b.mp4", [200] * 5)
    (root / "metadata.csv").write_text("file_name,label\na.mp4,0\nb.mp4,1\n")
    first = open_corpus(root).table
    assert len(first) == 10
    assert list(first["group"].unique()) == ["a.mp4", "b.mp4"]

    def never(*_: object) -> None:
        raise AssertionError("sampled again")

    with monkeypatch.context() as patched:
        patched.setattr(frames, "sample_frames", never)
        assert open_corpus(root).table["path"].tolist() == first["path"].tolist()
    video(root / "a.mp4", [90] * 7)
    again = open_corpus(root).table
    assert len(again) == 12
    assert abs(open_image(again["path"][again["video"] == "a.mp4"].iloc[0]).pixels.mean() - 90) < 4


def test_broken_videos_are_left_out_with_a_line(tmp_path: Path) -> None:
    root = tmp_path / "c"
    whole = video(root / "a.mp4", [0] * 5).read_bytes()
    (root / "b.mp4").write_bytes(whole[: len(whole) // 3])
    (root / "metadata.csv").write_text("file_name,label\na.mp4,0\nb.mp4,1\n")
    with pytest.warns(GanscopeWarning, match=r"1 of 2 videos cannot be read and are left out"):
        table = open_corpus(root).table
    assert set(table["video"]) == {"a.mp4"}
    (root / "a.mp4").write_bytes(b"")
    with pytest.raises(GanscopeError, match="none of its videos can be read"):
        open_corpus(root)


def test_videos_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "c"
    root.mkdir()
    (root / "metadata.csv").write_text("file_name,label\na.mp4,0\n")
    monkeypatch.setattr(frames, "find_spec", lambda _: None)
    with pytest.raises(GanscopeError, match=r'PyAV: pip install "ganscope\[video\]"'):
        open_corpus(root)


def test_a_missing_split_and_a_bare_tree_are_told(tmp_path: Path) -> None:
    root = faceforensics(tmp_path / "ff")
    (root / "val.json").unlink()
    with pytest.warns(GanscopeWarning, match=r"val\.json of FaceForensics\+\+ missing"):
        table = open_corpus(root).table
    assert set(table["split"]) == {""}
    (root / "train.json").write_text("[[1, 2")
    with pytest.raises(GanscopeError, match=r"train\.json: not a readable JSON file"):
        open_corpus(root)
    bare = tmp_path / "bare"
    (bare / "original_sequences/youtube/c23").mkdir(parents=True)
    pairs(bare, train=[], val=[], test=[])
    with pytest.raises(GanscopeError, match="finish the download"):
        open_corpus(bare)


def test_celeb_df(tmp_path: Path) -> None:
    root = tmp_path / "celeb"
    for name in ("Celeb-real/id0_0000", "Celeb-real/id1_0000", "YouTube-real/00170"):
        picture(root / f"{name}/0.png")
    for name in ("id0_id1_0000", "id1_id0_0000", "id2_id3_0001"):
        picture(root / f"Celeb-synthesis/{name}/0.png")
    (root / "List_of_testing_videos.txt").write_text(
        "1 YouTube-real/00170.mp4\n0 Celeb-synthesis/id2_id3_0001.mp4\n1 Celeb-real/id9_0000.mp4\n"
    )
    with pytest.warns(GanscopeWarning, match="1 of the 3 videos that List_of_testing_videos.txt"):
        table = open_corpus(root).table.set_index("file_name")
    assert table["label"].tolist().count(1) == 3
    assert table.loc["YouTube-real/00170/0.png", "split"] == "test"
    assert table.loc["Celeb-synthesis/id2_id3_0001/0.png", "split"] == "test"
    assert table.loc["Celeb-synthesis/id0_id1_0000/0.png", "group"] == "celeb-df id0"
    assert table.loc["Celeb-real/id1_0000/0.png", "group"] == "celeb-df id0"


def test_dfdc(tmp_path: Path) -> None:
    part = tmp_path / "all" / "dfdc_train_part_0"
    for name in ("aa", "bb", "cc"):
        picture(part / f"frames/{name}/0.png")
    about = {
        "aa.mp4": {"label": "REAL", "split": "train"},
        "bb.mp4": {"label": "FAKE", "split": "train", "original": "aa.mp4"},
        "cc.mp4": {"label": "FAKE", "split": "train", "original": "zz.mp4"},
        "dd.mp4": {"label": "REAL", "split": "train"},
    }
    (part / "metadata.json").write_text(json.dumps(about))
    with pytest.warns(GanscopeWarning, match="1 of the 4 videos that metadata.json lists"):
        table = open_corpus(tmp_path / "all").table
    rows = dict(
        zip(table["video"].str[-2:], zip(table["label"], table["group"], strict=True), strict=True)
    )
    assert rows == {"aa": (0, "dfdc aa"), "bb": (1, "dfdc aa"), "cc": (1, "dfdc zz")}
    assert len(open_corpus(part.parent).table) == 3
    about["bb.mp4"]["label"] = "PERHAPS"
    (part / "metadata.json").write_text(json.dumps(about))
    with pytest.raises(GanscopeError, match="'perhaps', neither REAL nor FAKE"):
        open_corpus(part)


def test_deepfakebench(tmp_path: Path) -> None:
    rgb = tmp_path / "datasets/rgb"
    below = "FaceForensics++/manipulated_sequences/Deepfakes/c23"
    real = "FaceForensics++/original_sequences/youtube/c23/frames/000"
    for name in (
        f"{below}/frames/000_003/000.png",
        f"{below}/masks/000_003/000.png",
        f"{real}/000.png",
    ):
        picture(rgb / name)
    fake = {
        "label": "FF-DF",
        "frames": [f"{below}/frames/000_003/000.png".replace("/", "\\")],
        "masks": [f"{below}/masks/000_003/000.png"],
    }
    content = {
        "FaceForensics++": {
            "FF-real": {
                "train": {"c23": {"000": {"label": "FF-real", "frames": [f"{real}/000.png"]}}},
                "val": {},
                "test": {},
            },
            "FF-DF": {
                "train": {},
                "val": {"c23": {"000_003": fake}},
                "test": {"c23": {"000_003": fake}},
            },
        }
    }
    path = tmp_path / "datasets" / "FF-DF.json"
    path.write_text(json.dumps(content))
    table = open_corpus(path).table
    assert table["file_name"].tolist() == [
        f"rgb/{real}/000.png",
        f"rgb/{below}/frames/000_003/000.png",
    ]
    assert all(Path(p).is_file() for p in table["path"])
    assert table["split"].tolist() == ["train", "test"]
    assert table["mask"].tolist() == ["", f"rgb/{below}/masks/000_003/000.png"]
    assert set(table["group"]) == {"ff++ 000"}
    assert set(table["compression"]) == {"c23"}
    path.write_text(json.dumps({"X": {"X_real": {"train": {"a": {"frames": ["no/a.png"]}}}}}))
    with pytest.raises(GanscopeError, match="none of its frames is there"):
        open_corpus(path)


def test_several_corpora_keep_masks_that_can_be_opened(tmp_path: Path) -> None:
    one, two = faceforensics(tmp_path / "one"), faceforensics(tmp_path / "two")
    corpus = open_corpora([one, two])
    masks = [m for m in corpus.table["mask"] if m]
    assert masks
    assert all((corpus.root / m).is_file() for m in masks)


@pytest.mark.parametrize("kept", ["kept", None], ids=["relative", "whole"])
def test_a_training_finds_the_masks_of_frames(
    kept: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if kept:
        monkeypatch.setenv("GANSCOPE_CACHE", kept)
    for name in ("one", "two"):
        video(tmp_path / name / "fake.mp4", [50] * 4)
        video(tmp_path / name / "mask.avi", [50] * 4, box=True)
        picture(tmp_path / name / "real.png")
        (tmp_path / name / "metadata.csv").write_text(
            "file_name,label,mask\nfake.mp4,1,mask.avi\nreal.png,0,\n"
        )
    for corpora in (["one"], ["one", "two"]):
        corpus = open_corpora(corpora)
        masks = find_masks(corpus.table)
        assert [bool(m) for m in masks] == (corpus.table["label"] == 1).tolist()
        assert all(read_mask(m, (48, 64)).any() for m in masks if m)
        assert all((corpus.root / m).is_file() for m in corpus.table["mask"] if m)


def test_people_and_groups() -> None:
    assert identities("id0_id16_0003") == ("celeb-df id0", "celeb-df id16")
    assert identities("01_02__outside_talking_pan__YVGY8LOK") == ("dfd 01", "dfd 02")
    assert identities("033_097") == ("ff++ 033", "ff++ 097")
    assert identities("aqrtyvbn") == ()
    assert groups([["c", "b"], ["d"], ["b", "a"], []]) == ["a", "d", "a", ""]


def test_people_who_are_all_linked_are_divided() -> None:
    rng = np.random.default_rng(0)
    rows = [{"identity": f"id{i}", "label": 0} for i in range(20) for _ in range(4)]
    for i in range(20):
        for j in {*rng.choice(20, 8).tolist(), (i + 1) % 20} - {i}:
            rows.append({"identity": f"id{i} + id{j}", "label": 1})
    table = pd.DataFrame(rows).assign(group="id0", split="", source="")
    table["generator"] = np.where(table["label"] == 1, "swap", "real")
    table["file_name"] = [f"{i}.png" for i in range(len(table))]
    split = split_corpus(table)
    where: dict[str, set[str]] = {}
    for people, name in zip(split["identity"], split["split"], strict=True):
        for person in people.split(" + "):
            where.setdefault(person, set()).add(name)
    assert all(len(splits) == 1 for splits in where.values())
    assert {(s, y) for s, y in zip(split["split"], split["label"], strict=True)} >= {
        ("train", 0),
        ("train", 1),
        ("val", 0),
        ("test", 0),
    }
    assert split.attrs["dropped"] == len(table) - len(split) > 0
    # With a test split of its own: its people teach nothing.
    table.loc[table["identity"].str.split(" + ").map(lambda p: "id3" in p), "split"] = "test"
    split = split_corpus(table)
    tested = {p for ids in split["identity"][split["split"] == "test"] for p in ids.split(" + ")}
    taught = {p for ids in split["identity"][split["split"] == "train"] for p in ids.split(" + ")}
    assert "id3" in tested
    assert taught
    assert not tested & taught
