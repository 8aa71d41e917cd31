"""Corpora: the field's layouts read as one table, faulty ones refused, splits without twins."""

import os
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from ganscope.config import GenerateSettings
from ganscope.datasets.corpus import COLUMNS, newest_corpus, open_corpora, open_corpus
from ganscope.datasets.layouts import layouts
from ganscope.datasets.sources import open_source
from ganscope.datasets.splits import assign_splits, split_corpus
from ganscope.errors import GanscopeError, GanscopeWarning
from ganscope.generator.sampling import generate_corpus


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / name), np.zeros((4, 4, 3), np.uint8))
    return root


def read(root: Path) -> list[tuple]:
    table = open_corpus(root).table
    assert list(table.columns[: len(COLUMNS)]) == list(COLUMNS)
    assert all(Path(p).is_file() for p in table["path"])
    return sorted(zip(table["file_name"], table["label"], table["generator"], strict=True))


def test_layout_ganscope(tmp_path: Path) -> None:
    tree(tmp_path, "0_real/a.png", "1_fake/gan/b.png", "1_fake/loose.png")
    assert read(tmp_path) == [
        ("0_real/a.png", 0, "real"),
        ("1_fake/gan/b.png", 1, "gan"),
        ("1_fake/loose.png", 1, "fake"),
    ]


def test_layout_forensynths_with_and_without_classes(tmp_path: Path) -> None:
    tree(tmp_path, "progan/cat/0_real/a.png", "progan/cat/1_fake/b.png")
    tree(tmp_path, "biggan/0_real/c.png", "biggan/1_fake/d.png")
    assert read(tmp_path) == [
        ("biggan/0_real/c.png", 0, "real"),
        ("biggan/1_fake/d.png", 1, "biggan"),
        ("progan/cat/0_real/a.png", 0, "real"),
        ("progan/cat/1_fake/b.png", 1, "progan"),
    ]


def test_layout_genimage_keeps_its_split(tmp_path: Path) -> None:
    tree(tmp_path, "glide/train/nature/a.png", "glide/train/ai/b.png")
    tree(tmp_path, "glide/val/nature/c.png", "glide/val/ai/d.png")
    assert [row[1:] for row in read(tmp_path)] == [(1, "glide"), (0, "real")] * 2
    table = open_corpus(tmp_path).table.set_index("file_name")
    assert table["split"]["glide/val/ai/d.png"] == "val"


def test_layout_genimage_of_one_generator_is_named_by_its_folder(tmp_path: Path) -> None:
    tree(tmp_path, "sd/train/nature/a.png", "sd/train/ai/b.png")
    assert [row[1:] for row in read(tmp_path / "sd")] == [(1, "sd"), (0, "real")]
    assert open_corpus(tmp_path / "sd").table["split"].tolist() == ["train", "train"]


def test_layout_real_fake_pairs_names(tmp_path: Path) -> None:
    tree(tmp_path, "sd/real/x.jpg", "sd/fake/x.png", "sd/fake/alone.png")
    table = open_corpus(tmp_path).table.set_index("file_name")
    assert table["group"].to_dict() == {
        "sd/real/x.jpg": "x",
        "sd/fake/x.png": "x",
        "sd/fake/alone.png": "",
    }
    assert table["generator"]["sd/fake/x.png"] == "sd"
    tree(tmp_path / "flat", "real/a.png", "fake/b.png")
    assert read(tmp_path / "flat") == [("fake/b.png", 1, "fake"), ("real/a.png", 0, "real")]


@pytest.mark.parametrize(
    "layout",
    [
        "{numbered}/{split}/{name}.png",
        "{numbered}/{split}/{gen}/{name}.png",
        "{label}/{split}/{name}.png",
        "{split}/{label}/{name}.png",
        "{split}/{gen}/{label}/{name}.png",
        "{gen}/{split}/{label}/{name}.png",
        "{split}/{gen}/cat/{numbered}/{name}.png",
        "{split}/{numbered}/{name}.png",
        "{split}/{nature}/{name}.png",
    ],
)
@pytest.mark.parametrize("words", [("train", "val", "test"), ("Train", "validation", "TEST")])
def test_folders_of_splits_are_splits_and_no_generators(
    tmp_path: Path, layout: str, words: tuple[str, ...]
) -> None:
    """They were taken for generators, and the fakes of val were trained on."""
    for split in words:
        for number in range(4):
            for label in (0, 1):
                name = layout.format(
                    split=split,
                    gen="sd",
                    label=("real", "fake")[label],
                    numbered=("0_real", "1_fake")[label],
                    nature=("nature", "ai")[label],
                    name=number,  # the same names in each: no twins
                )
                tree(tmp_path / "mine", name)
    found = open_corpus(tmp_path / "mine").table
    assert found["split"].value_counts().to_dict() == {"train": 8, "val": 8, "test": 8}
    generators = set(found["generator"]) - {"real"}
    assert generators == {"sd" if "{gen}" in layout else "mine" if "nature" in layout else "fake"}
    split = split_corpus(found)
    assert len(split) == 24
    assert (split["split"] == found["split"]).all()
    assert (split["file_name"] == found["file_name"]).all()


def test_cifake_is_read(tmp_path: Path) -> None:
    """REAL and FAKE were no layout."""
    names = [
        f"{s}/{c}/000{i}.jpg" for s in ("train", "test") for c in ("REAL", "FAKE") for i in "12"
    ]
    tree(tmp_path, *names)
    table = open_corpus(tmp_path).table.set_index("file_name")
    assert table["label"].to_dict() == {n: int("FAKE" in n) for n in names}
    assert table["split"].to_dict() == {n: n.split("/")[0] for n in names}
    tree(tmp_path / "flat", "Real/a.png", "Fake/b.png")
    assert read(tmp_path / "flat") == [("Fake/b.png", 1, "fake"), ("Real/a.png", 0, "real")]
    assert len(open_source(str(tmp_path / "flat"))) == 1  # only the real one is a photograph


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_as_spreadsheets_write_them(tmp_path: Path, separator: str, encoding: str) -> None:
    rows = [("File Name", "LABEL", "Note"), ("ä.png", "True", "x"), ("b.png", "False", "1,5")]
    text = "\r\n".join(separator.join(f'"{c}"' if "," in c else c for c in r) for r in rows)
    (tmp_path / "list.csv").write_text(text, encoding=encoding)
    table = open_corpus(tmp_path / "list.csv").table
    assert table["file_name"].tolist() == ["ä.png", "b.png"]
    assert table["label"].tolist() == [1, 0]
    assert table["note"].tolist() == ["x", "1,5"]


@pytest.mark.parametrize(
    ("column", "words", "labels"),
    [
        ("label", ("real", "FAKE"), [0, 1]),
        ("is_fake", ("True", "false"), [1, 0]),
        ("Is Real", ("True", "false"), [0, 1]),
        ("fake", ("1", "0"), [1, 0]),
        ("label", ("TRUE", "FALSE"), [1, 0]),
    ],
)
def test_columns_of_truth_are_labels(
    tmp_path: Path, column: str, words: tuple[str, ...], labels: list[int]
) -> None:
    (tmp_path / "list.csv").write_text(f"path,{column}\na.png,{words[0]}\nb.png,{words[1]}\n")
    assert open_corpus(tmp_path / "list.csv").table["label"].tolist() == labels


def test_a_table_without_the_columns_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("bild;klasse\na.png;1\n")
    with pytest.raises(GanscopeError, match=r"no column 'file_name'.*it has 'bild;klasse'"):
        open_corpus(tmp_path / "list.csv")


@pytest.mark.skipif(os.name == "nt", reason="there they are the system's own")
def test_names_that_windows_wrote_are_found(tmp_path: Path) -> None:
    tree(tmp_path, "sub/a.png", "sub/b\\c.png")
    (tmp_path / "list.csv").write_text("path,label\nsub\\a.png,0\nsub/b\\c.png,1\n")
    table = open_corpus(tmp_path / "list.csv").table
    assert table["file_name"].tolist() == ["sub/a.png", "sub/b\\c.png"]
    assert all(Path(p).is_file() for p in table["path"])


def test_layout_table_and_manifest(tmp_path: Path) -> None:
    tree(tmp_path, "a.png", "b.png")
    (tmp_path / "list.csv").write_text("filename,label,prompt\na.png,real,\nb.png,fake,a dog\n")
    assert read(tmp_path / "list.csv") == [("a.png", 0, "real"), ("b.png", 1, "fake")]
    assert open_corpus(tmp_path / "list.csv").table["prompt"][1] == "a dog"
    (tmp_path / "metadata.csv").write_text("file_name,label,generator\na.png,0,real\nb.png,1,sd\n")
    assert read(tmp_path) == [("a.png", 0, "real"), ("b.png", 1, "sd")]


@pytest.mark.parametrize("other", ["path", "filename"])
def test_of_several_columns_of_names_file_name_counts(tmp_path: Path, other: str) -> None:
    (tmp_path / "metadata.csv").write_text(f"{other},label,file_name\n/lab/x.png,0,a.png\n")
    assert open_corpus(tmp_path).table["path"].tolist() == [str(tmp_path / "a.png")]


def test_names_that_look_like_numbers_or_like_nothing_stay_as_written(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text(
        "file_name,label,generator,group\n0001,0,,None\n0002,1,NA,007\n3.10,1,,\n"
    )
    table = open_corpus(tmp_path).table
    assert table["file_name"].tolist() == ["0001", "0002", "3.10"]
    assert table["generator"].tolist() == ["real", "NA", "fake"]
    assert table["group"].tolist() == ["None", "007", ""]


def test_absolute_names_in_a_table_stay_absolute(tmp_path: Path) -> None:
    image = tree(tmp_path, "elsewhere/a.png") / "elsewhere/a.png"
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "list.csv").write_text(f"path,label\n{image},1\n")
    assert open_corpus(tmp_path / "lists" / "list.csv").table["path"].tolist() == [str(image)]


def test_labels_are_read_as_words_and_numbers_in_any_case(tmp_path: Path) -> None:
    words = ["0", "Real", " nature ", "0.0", "1", "FAKE", "ai", "1.0"]
    rows = "".join(f"{i}.png,{word}\n" for i, word in enumerate(words))
    (tmp_path / "metadata.csv").write_text("file_name,label\n" + rows)
    assert open_corpus(tmp_path).table["label"].tolist() == [0] * 4 + [1] * 4


def test_validation_is_another_word_for_val(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text(
        "file_name,label,split\na.png,0,validation\nb.png,1,valid\nc.png,1,\n"
    )
    assert open_corpus(tmp_path).table["split"].tolist() == ["val", "val", ""]


def test_images_named_after_their_class_are_pairs_too(tmp_path: Path) -> None:
    tree(tmp_path, "real/fake.png", "fake/fake.png", "real/real.png")
    table = open_corpus(tmp_path).table.set_index("file_name")
    assert table["group"].to_dict() == {
        "real/fake.png": "fake",
        "fake/fake.png": "fake",
        "real/real.png": "",
    }


def test_every_layout_says_what_it_reads() -> None:
    for read_layout in layouts.values():
        assert (read_layout.__doc__ or "").split("\n")[0].endswith(".")


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("file_name,label\na.png,2\n", "neither 0"),
        ("file_name,label\na.png,\n", "neither 0"),
        ("file_name,label,generator\na.png,0,sd\n", "generator 'sd'"),
        ("file_name,label,generator\na.png,1,real\n", "generator 'real'"),
        ("file_name,label\na.png,0\na.png,0\n", "listed twice"),
        ("name,label\na.png,0\n", "no column 'file_name'"),
        ("file_name,label\n", "no images"),
        ("file_name,label\na.png,0\n,1\n", "row 2 names no file"),
        ("", "not a readable CSV"),
        ("file_name,label,split\na.png,0,exam\n", "unknown split 'exam'"),
    ],
)
def test_faulty_manifests_are_refused(tmp_path: Path, manifest: str, message: str) -> None:
    (tmp_path / "metadata.csv").write_text(manifest)
    with pytest.raises(GanscopeError, match=message):
        open_corpus(tmp_path)


def test_what_is_no_corpus_is_told_what_would_be(tmp_path: Path) -> None:
    tree(tmp_path, "holiday/a.png")
    with pytest.raises(GanscopeError, match=r"no layout that ganscope reads.*0_real"):
        open_corpus(tmp_path)
    with pytest.raises(GanscopeError, match="no such corpus"):
        open_corpus(tmp_path / "gone")
    (tmp_path / ".metadata.part.csv").write_text("")
    with pytest.raises(GanscopeError, match="unfinished"):
        open_corpus(tmp_path)


def test_several_corpora_make_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tree(tmp_path / name, "0_real/x.png", "1_fake/gan/y.png")
    both = open_corpora([tmp_path / "a", tmp_path / "b"])
    assert len(both) == 4
    assert both.table["file_name"].is_unique
    with pytest.raises(GanscopeError, match="two of the corpora"):
        open_corpora([tmp_path / "a", tmp_path / "a"])


def test_files_of_the_same_name_in_two_corpora_are_no_pairs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tree(tmp_path / name, "real/0.png", "fake/0.png")
    alone = open_corpus(tmp_path / "a").table["group"]
    assert set(alone) == {"0"}  # wherever the corpus lies
    groups = open_corpora([tmp_path / "a", tmp_path / "b"]).table["group"]
    assert groups.value_counts().to_dict() == {f"{tmp_path}/a/0": 2, f"{tmp_path}/b/0": 2}


def test_a_corpus_named_twice_is_found_out_under_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the same file would be learned from and asked about."""
    tree(tmp_path / "a", "0_real/x.png", "1_fake/gan/y.png")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    for other in (tmp_path / "a", "link", "a/../a"):
        with pytest.raises(GanscopeError, match="two of the corpora"):
            open_corpora(["a", other])


def test_an_only_corpus_keeps_its_names(tmp_path: Path) -> None:
    tree(tmp_path, "0_real/x.png", "1_fake/gan/y.png")
    alone = open_corpora([tmp_path])
    assert sorted(alone.table["file_name"]) == ["0_real/x.png", "1_fake/gan/y.png"]
    assert alone.root == tmp_path


def test_rows_that_a_finished_corpus_lost_are_told(tmp_path: Path) -> None:
    corpus = generate_corpus(GenerateSettings(n=4, out=tmp_path / "c", size=16, device="cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_corpus(corpus)
    manifest = corpus / "metadata.csv"
    manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[:6]))
    with pytest.warns(GanscopeWarning, match="lists 5 of the 8 images that were made"):
        assert len(open_corpus(corpus)) == 5
    (corpus / "corpus.json").write_text("[]")  # not ours
    open_corpus(corpus)


def test_the_newest_corpus_is_found(tmp_path: Path) -> None:
    with pytest.raises(GanscopeError, match="ganscope generate"):
        newest_corpus(tmp_path)
    for age, name in ((300, "old"), (100, "deep/new"), (200, "middle")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metadata.csv").write_text("")
        os.utime(tmp_path / name / "metadata.csv", (1e9 - age, 1e9 - age))
    assert newest_corpus(tmp_path) == tmp_path / "deep/new"


def table(**fakes: int) -> pd.DataFrame:
    """100 reals of two sources, and so many fakes of each generator; no groups."""
    rows = [("real", 0, f"s{i % 2}") for i in range(100)]
    rows += [(name, 1, "lab") for name, count in fakes.items() for _ in range(count)]
    found = pd.DataFrame(rows, columns=["generator", "label", "source"])
    return found.assign(
        path="", file_name=[f"{i}.png" for i in range(len(found))], group="", split=""
    )


def splits_of(found: pd.DataFrame) -> dict[str, set[str]]:
    return {str(g): set(rows["split"]) for g, rows in found.groupby("generator")}


def test_whole_generators_are_held_out() -> None:
    found = split_corpus(table(a=30, b=20, c=10), test_generator=("a",), val_generator=("b",))
    assert splits_of(found) == {
        "a": {"test"},
        "b": {"val"},
        "c": {"train"},
        "real": {"train", "val", "test"},
    }
    reals = found[found["label"] == 0]
    assert reals.groupby("source")["split"].nunique().tolist() == [3, 3]


def test_with_two_generators_the_smaller_validates() -> None:
    assert splits_of(split_corpus(table(a=30, b=20))) == {
        "a": {"train"},
        "b": {"val"},
        "real": {"train", "val"},
    }


def test_one_generator_is_split_by_group() -> None:
    rows = table(a=60)
    fakes = rows["label"] == 1
    rows.loc[fakes, "group"] = [f"prompt {i // 3}" for i in range(60)]
    found = split_corpus(rows)
    assert splits_of(found)["a"] == {"train", "val", "test"}
    assert found[found["group"] != ""].groupby("group")["split"].nunique().max() == 1


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_ever_in_two_splits(seed: int) -> None:
    """Three generators share their prompts, as in many sets made for comparison."""
    rows = table(a=40, b=40, c=40)
    fakes = rows["label"] == 1
    rows.loc[fakes, "group"] = [f"prompt {i % 40}" for i in range(120)]
    for named in ({}, {"test_generator": ("a",)}, {"val_generator": ("c",)}):
        found = split_corpus(rows, seed=seed, **named)  # type: ignore[arg-type]
        grouped = found[found["group"] != ""]
        assert grouped.groupby("group")["split"].nunique().max() == 1
        assert found.attrs["dropped"] == len(rows) - len(found)
        if not named:
            assert {"train", "val"} <= set(grouped["split"])


def test_a_manifests_own_split_is_kept_unless_generators_are_named() -> None:
    rows = table(a=30, b=30)
    rows["split"] = ["train", "val", "test"] * (len(rows) // 3) + ["train"] * (len(rows) % 3)
    assert split_corpus(rows)["split"].tolist() == rows["split"].tolist()
    assert splits_of(split_corpus(rows, test_generator=("a",)))["a"] == {"test"}


def test_splits_depend_on_the_seed_only() -> None:
    one, again, other = (split_corpus(table(a=90), seed=s)["split"].tolist() for s in (1, 1, 2))
    assert one == again != other


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"test_generator": ("stylegan",)}, "did you mean 'stylegan2'"),
        ({"test_generator": ("stylegan2",)}, "no generator is left"),
    ],
)
def test_mistaken_generators_are_named(named: dict, message: str) -> None:
    with pytest.raises(GanscopeError, match=message):
        split_corpus(table(stylegan2=10), **named)


def test_one_class_is_refused() -> None:
    with pytest.raises(GanscopeError, match="no fakes"):
        split_corpus(table())


def test_shares_are_kept_and_every_split_gets_a_group() -> None:
    shares = {"train": 0.7, "val": 0.15, "test": 0.15}
    many = pd.Series(assign_splits([str(i) for i in range(1000)], shares)).value_counts()
    assert many.to_dict() == {"train": 700, "val": 150, "test": 150}
    assert set(assign_splits(["a", "b", "c"], shares).values()) == set(shares)
    assert list(assign_splits(["a"], shares).values()) == ["train"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    for folder in ("0_real", "1_fake"):
        (tmp_path / folder).mkdir()
    (tmp_path / "0_real" / os.fsdecode(b"\xff.png")).write_bytes(b"")
    with pytest.raises(GanscopeError, match="this name is no UTF-8; rename the file"):
        open_corpus(tmp_path)
    (tmp_path / os.fsdecode(b"\xff")).mkdir()
    with pytest.raises(GanscopeError, match=r"udcff': this name is no UTF-8"):
        open_corpus(tmp_path / os.fsdecode(b"\xff"))
