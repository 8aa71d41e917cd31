"""Corpora that `generate` writes: reproducible, resumable, and alike in everything but their
origin.
"""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from ganscope.config import AuditSettings, GenerateSettings
from ganscope.datasets.audit import audit_corpus
from ganscope.datasets.corpus import is_unfinished, open_corpus
from ganscope.datasets.layouts import MANIFEST
from ganscope.errors import GanscopeError
from ganscope.folders import shipped
from ganscope.generator import sampling
from ganscope.generator.model import Generator, load_generator
from ganscope.generator.sampling import generate_corpus, make_fake
from ganscope.images import open_image


def settings(out: Path, **changes: object) -> GenerateSettings:
    return GenerateSettings(**({"n": 70, "out": out, "device": "cpu"} | changes))  # type: ignore[arg-type]


def digest(root: Path) -> dict[str, str]:
    """File name -> hash, for everything that a corpus consists of."""
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


def test_generators_ship_within_their_size() -> None:
    folders = shipped("generators")
    assert {"photos", "photos-upsample", "faces", "faces-vae", "faces-style"} <= set(folders)
    assert sum((f / "model.safetensors").stat().st_size for f in folders.values()) <= 40e6


def test_same_seed_same_bytes_and_other_seed_other_fakes(tmp_path: Path) -> None:
    a = digest(generate_corpus(settings(tmp_path / "a")))
    b = digest(generate_corpus(settings(tmp_path / "b")))
    c = digest(generate_corpus(settings(tmp_path / "c", seed=1)))
    assert a == b
    assert not set(a.values()) & set(c.values())
    assert len(a) == 2 * 70 + 2  # images, manifest, request


def test_every_fake_can_be_made_again_from_its_row(tmp_path: Path) -> None:
    corpus = open_corpus(generate_corpus(settings(tmp_path / "corpus", seed=5, size=48)))
    generator = load_generator("photos")
    fakes = corpus.table[corpus.table["label"] == 1]
    assert len(fakes) == 70
    for _, row in fakes.iloc[[0, 17, 69]].iterrows():
        assert row["weights"] == generator.weights
        again = make_fake(generator, int(row["seed"]), int(row["index"]), size=48)
        assert np.array_equal(again, open_image(row["path"]).pixels)


def test_every_real_is_the_crop_that_its_row_says(tmp_path: Path) -> None:
    import skimage.data

    table = open_corpus(generate_corpus(settings(tmp_path / "corpus"))).table
    row = table[(table["label"] == 0) & (table["group"] == "astronaut")].iloc[0]
    x, y, side = (int(row[c]) for c in ("photo_x", "photo_y", "photo_side"))
    crop = skimage.data.astronaut()[y : y + side, x : x + side]
    expected = cv2.resize(crop, (64, 64), interpolation=cv2.INTER_AREA)
    assert np.array_equal(open_image(row["path"]).pixels, expected)


@pytest.mark.parametrize("stop_at", [64, 128])
def test_a_killed_run_is_continued_to_the_same_corpus(tmp_path: Path, stop_at: int) -> None:
    whole = digest(generate_corpus(settings(tmp_path / "whole", n=150)))

    class Killed(Exception):
        pass

    def kill(done: int) -> None:
        if done >= stop_at:
            raise Killed

    out = tmp_path / "parts"
    with pytest.raises(Killed):
        generate_corpus(settings(out, n=150), kill)
    assert not (out / MANIFEST).exists()
    with open(out / ".metadata.part-1-of-1.csv", "a") as file:
        file.write("0_real/half-a-r")  # a kill in the middle of a write
    assert digest(generate_corpus(settings(out, n=150))) == whole


def test_a_fake_without_its_real_is_made_again(tmp_path: Path) -> None:
    """A kill between the two rows of a pair leaves an odd number of whole rows."""
    whole = generate_corpus(settings(tmp_path / "corpus", n=6))
    before = digest(whole)
    rows = (whole / MANIFEST).read_text().splitlines(keepends=True)
    (whole / MANIFEST).unlink()
    (whole / ".metadata.part-1-of-1.csv").write_text("".join(rows[:6]))
    assert digest(generate_corpus(settings(whole, n=6))) == before


def test_shards_join_to_the_unsharded_corpus(tmp_path: Path) -> None:
    whole = digest(generate_corpus(settings(tmp_path / "whole")))
    for part in ("2/3", "3/3", "1/3"):
        out = generate_corpus(settings(tmp_path / "parts", shard=part))
        assert is_unfinished(out) == (part != "1/3")
    parts = digest(tmp_path / "parts")
    assert {k: v for k, v in parts.items() if k != "corpus.json"} == {
        k: v for k, v in whole.items() if k != "corpus.json"
    }


def test_a_finished_shard_is_not_begun_again_and_counts_must_agree(tmp_path: Path) -> None:
    generate_corpus(settings(tmp_path / "parts", n=6, shard="1/2"))
    before = digest(tmp_path / "parts")
    generate_corpus(settings(tmp_path / "parts", n=6, shard="1/2"))  # nothing is left to do
    assert digest(tmp_path / "parts") == before
    with pytest.raises(GanscopeError, match="another shard"):
        generate_corpus(settings(tmp_path / "parts", n=6, shard="1/3"))
    with pytest.raises(GanscopeError, match="unfinished"):
        open_corpus(tmp_path / "parts")


def test_two_processes_under_torchrun_write_one_corpus(tmp_path: Path) -> None:
    whole = digest(generate_corpus(settings(tmp_path / "whole", n=40)))
    arguments = ["generate", "--n", "40", "--device", "cpu", "--out", str(tmp_path / "both")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command = [*torchrun, "--standalone", "-m", "--", "ganscope", *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    both = digest(tmp_path / "both")
    assert both.pop("corpus.json") != whole.pop("corpus.json")
    assert both == whole


def test_a_conditional_generator_makes_its_classes(tmp_path: Path) -> None:
    """A generator whose network shows the label as brightness."""
    torch.manual_seed(0)
    model = Generator(
        {
            "architecture": "cgan",
            "arguments": {"size": 8, "latent_dim": 4, "width": 4, "classes": ["dark", "light"]},
        }
    )
    model.save(tmp_path / "run")

    def rows(**changes: object) -> pd.DataFrame:
        out = tmp_path / f"corpus-{len(list(tmp_path.iterdir()))}"
        made = settings(out, n=10, generator=str(tmp_path / "run"), **changes)
        table = pd.read_csv(generate_corpus(made) / MANIFEST)
        return table[table["label"] == 1]

    assert rows()["class"].tolist() == ["dark", "light"] * 5
    assert set(rows(class_="light")["class"]) == {"light"}
    assert set(rows(truncation=0.5)["truncation"]) == {0.5}
    with pytest.raises(GanscopeError, match="did you mean 'light'"):
        rows(class_="lihgt")
    with pytest.raises(GanscopeError, match="knows no classes"):
        generate_corpus(settings(tmp_path / "c", class_="light"))
    dark, light = (model.choose(name).make(0, [3])[0] for name in ("dark", "light"))
    assert not np.array_equal(dark, light)


def test_truncation_brings_fakes_nearer_to_each_other() -> None:
    generator = load_generator("faces")
    spread = [
        np.asarray(generator.choose(truncation=psi).make(0, range(16))).std(axis=0).mean()
        for psi in (1.0, 0.5, 0.0)
    ]
    assert spread[0] > 1.3 * spread[1]
    assert spread[2] == 0


def test_the_reals_of_a_class_are_of_that_class(tmp_path: Path) -> None:
    arguments = {"size": 8, "latent_dim": 4, "width": 4, "classes": ["6", "7"]}
    Generator({"architecture": "cgan", "arguments": arguments}).save(tmp_path / "run")
    wish = {"generator": str(tmp_path / "run"), "real": "digits", "n": 20}
    one = pd.read_csv(generate_corpus(settings(tmp_path / "one", class_="7", **wish)) / MANIFEST)
    assert set(one["class"].astype(str)) == {"7"}
    both = pd.read_csv(generate_corpus(settings(tmp_path / "both", **wish)) / MANIFEST)
    assert len(set(both.loc[both["label"] == 0, "class"])) > 3


def test_a_corpus_killed_while_it_was_joined_is_finished_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = digest(generate_corpus(settings(tmp_path / "whole", n=20)))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full)
        with pytest.raises(GanscopeError, match="run the same command again"):
            generate_corpus(settings(tmp_path / "parts", n=20))
    assert digest(generate_corpus(settings(tmp_path / "parts", n=20))) == whole
    # Killed between the last two words: nothing but a left-over table.
    (tmp_path / "parts" / ".metadata.done-1-of-1.csv").write_text("file_name\n")
    with pytest.raises(GanscopeError, match="holds a finished corpus"):
        generate_corpus(settings(tmp_path / "parts", n=20))
    assert digest(open_corpus(tmp_path / "parts").root) == whole


def test_whole_photographs_stay_what_and_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if names collide, and none is taken that lies elsewhere."""
    monkeypatch.setattr(sampling, "DEFAULT_N", 2)
    torch.manual_seed(0)
    pix2pix = {"architecture": "pix2pix", "arguments": {"size": 32, "width": 4}}
    Generator(pix2pix).save(tmp_path / "run")
    wish = {"generator": str(tmp_path / "run"), "n": None, "format": "png"}
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    for name in ("a.jpg", "a.png", "a.jpg.png", "deep/b.jpg"):
        (tmp_path / "photographs" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "photographs" / name), pixels)
    monkeypatch.chdir(tmp_path)  # a folder by a source's name
    table = open_corpus(
        generate_corpus(settings(tmp_path / "c", from_=Path("photographs"), **wish))
    ).table
    reals = table[table["label"] == 0]["file_name"]
    assert len(set(reals)) == 4
    assert "0_real/deep/b.png" in set(reals)

    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "metadata.csv").write_text(
        "file_name,label\n../photographs/a.jpg,0\n../photographs/a.png,1\n"
    )
    before = digest(tmp_path / "photographs")
    for chosen, said in (
        ("lists", "lists images elsewhere"),
        ("lists/metadata.csv", "name a folder"),
        ("nowhere", "name a folder"),
    ):
        with pytest.raises(GanscopeError, match=said):
            generate_corpus(settings(tmp_path / "d", from_=Path(chosen), **wish))
    assert not (tmp_path / "d").exists()
    assert digest(tmp_path / "photographs") == before


def test_a_folder_of_a_shipped_name_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_generator("photos").size == 64


def test_splits_keep_a_photograph_together_and_all_have_both_classes(tmp_path: Path) -> None:
    table = open_corpus(generate_corpus(settings(tmp_path / "corpus", n=300))).table
    reals = table[table["label"] == 0]
    assert reals.groupby("group")["split"].nunique().max() == 1
    assert set(map(tuple, table[["label", "split"]].drop_duplicates().to_numpy())) == {
        (label, split) for label in (0, 1) for split in ("train", "val", "test")
    }


def test_few_reals_of_many_photographs_are_in_every_split(tmp_path: Path) -> None:
    """Photographs come in another order than they are split in: else the first are test and val."""
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(240):
        photo = rng.integers(256, size=(16, 16, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "photos" / f"{i:03}.png"), photo)
    wish = settings(tmp_path / "corpus", real=str(tmp_path / "photos"), size=16)
    table = open_corpus(generate_corpus(wish)).table
    splits = table["split"][table["label"] == 0].value_counts(normalize=True)
    assert splits["train"] > 0.5
    assert splits["val"] > 0
    assert splits["test"] > 0


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_the_files_alone_do_not_tell(tmp_path: Path, format: str) -> None:
    root = generate_corpus(settings(tmp_path / "corpus", n=400, format=format))
    audit = audit_corpus(AuditSettings(corpus=root))
    assert audit.auroc < 0.6, audit.clues


def test_a_folder_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    out = generate_corpus(settings(tmp_path / "corpus", n=3))
    before = digest(out)
    with pytest.raises(GanscopeError, match=r"finished corpus.*--out"):
        generate_corpus(settings(out, n=3))
    assert digest(out) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("precious")
    with pytest.raises(GanscopeError, match="not empty"):
        generate_corpus(settings(tmp_path / "mine", n=3))


def test_an_unfinished_corpus_is_not_continued_by_another_request(tmp_path: Path) -> None:
    def kill(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_corpus(settings(tmp_path / "corpus"), kill)
    with pytest.raises(GanscopeError, match="another seed"):
        generate_corpus(settings(tmp_path / "corpus", seed=9))


def test_a_full_disk_says_so_loses_nothing_and_can_be_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = digest(generate_corpus(settings(tmp_path / "whole")))
    replace, written = os.replace, 0

    def full(source: str, target: str) -> None:
        nonlocal written
        written += str(target).endswith(".png")
        if written > 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(GanscopeError, match=r"corpus: .* free some space .*continues"):
        generate_corpus(settings(tmp_path / "corpus"))
    monkeypatch.setattr(os, "replace", replace)
    assert not list((tmp_path / "corpus").rglob("*.png.part"))
    assert digest(generate_corpus(settings(tmp_path / "corpus"))) == whole


def test_hugging_face_reads_the_manifest(tmp_path: Path) -> None:
    """imagefolder wants `metadata.csv` with `file_name`; every named file must be there, once."""
    root = generate_corpus(settings(tmp_path / "corpus", n=5))
    table = pd.read_csv(root / MANIFEST)
    assert table["file_name"].is_unique
    assert {str(p.relative_to(root)) for p in root.rglob("*.png")} == set(table["file_name"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generator": "fotos"}, "did you mean 'photos'"),
        ({"real": "nowhere"}, "unknown source"),
        ({"generator": "no-such/hub-id"}, "offline"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(
    tmp_path: Path, change: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(GanscopeError, match=message):
        generate_corpus(settings(tmp_path / "corpus", **change))
    assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize(
    ("change", "flag"),
    [({"n": 0}, "--n"), ({"format": "bmp"}, "--format"), ({"quality": 101}, "--quality")],
)
def test_settings_are_checked_and_name_the_flag(change: dict, flag: str) -> None:
    with pytest.raises(GanscopeError, match=flag):
        GenerateSettings(**change)
