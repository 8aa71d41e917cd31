"""The audit: planted leaks are found and named, fair corpora are not accused."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ganscope.cli import app
from ganscope.config import AuditSettings
from ganscope.datasets.audit import Audit, audit_corpus
from ganscope.errors import GanscopeError

Save = Callable[[Image.Image, Path, np.random.Generator], None]


def audit(root: Path, real: Save, fake: Save, n: int = 60, **settings: object) -> Audit:
    """Audit a corpus of `n` images a class that show the same noise, saved by two functions."""
    for folder, save, seed in (("0_real", real, 0), ("1_fake/gan", fake, 1)):
        (root / folder).mkdir(parents=True)
        rng = np.random.default_rng(seed)
        for i in range(n):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            save(Image.fromarray(pixels), root / folder / str(i), rng)
    return audit_corpus(AuditSettings(corpus=root, **settings))  # type: ignore[arg-type]


def jpeg(**options: object) -> Save:
    return lambda image, path, rng: image.save(f"{path}.jpg", **({"quality": 90} | options))


def png(image: Image.Image, path: Path, rng: np.random.Generator) -> None:
    image.save(f"{path}.png")


def smaller(image: Image.Image, path: Path, rng: np.random.Generator) -> None:
    image.crop((0, 0, 30, 32)).save(f"{path}.jpg", quality=90)


def with_exif(image: Image.Image, path: Path, rng: np.random.Generator) -> None:
    exif = Image.Exif()
    exif[0x010F] = "camera"
    image.save(f"{path}.jpg", quality=90, exif=exif)


def any_quality(image: Image.Image, path: Path, rng: np.random.Generator) -> None:
    image.save(f"{path}.jpg", quality=int(rng.integers(60, 98)))


@pytest.mark.parametrize(
    ("fake", "clue"),
    [
        (png, "container"),
        (smaller, "dimensions"),
        (jpeg(quality=80), "quantisation tables"),
        (jpeg(subsampling="4:4:4"), "chroma subsampling"),
        (with_exif, "EXIF presence"),
    ],
)
def test_a_planted_leak_is_found_and_named(tmp_path: Path, fake: Save, clue: str) -> None:
    found = audit(tmp_path, jpeg(), fake)
    assert found.leaks
    assert found.auroc > 0.95
    assert found.clues[0][0] == clue
    assert found.clues[0][1] > 0.95
    assert [score for _, score in found.clues] == sorted(dict(found.clues).values(), reverse=True)
    assert found.by_generator["gan"] > 0.95


def with_more_behind(image: Image.Image, path: Path, rng: np.random.Generator) -> None:
    """As phones save: with a preview (MPO), a gain map (Ultra HDR), or a film behind it."""
    other = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    kind, file = rng.integers(3), Path(f"{path}.jpg")
    if kind == 0:
        image.save(file, "MPO", quality=90, save_all=True, append_images=[other])
        return
    words = 'hdrgm:Version="1.0"' if kind == 1 else 'GCamera:MotionPhoto="1"'
    image.save(file, quality=90, xmp=f"<x:xmpmeta><a {words}/></x:xmpmeta>".encode())
    behind = io.BytesIO()
    other.save(behind, "JPEG")
    film = b"\0\0\0\x18ftypmp42" + bytes(3000)
    file.write_bytes(file.read_bytes() + (behind.getvalue() if kind == 1 else film))


def test_pictures_behind_the_main_one_are_no_leak(tmp_path: Path) -> None:
    """No detector sees them: a phone's JPEG is a JPEG."""
    found = audit(tmp_path, with_more_behind, jpeg(), n=150)
    assert not found.leaks, found.clues
    assert 0.4 < found.auroc < 0.6


@pytest.mark.parametrize("save", [jpeg(), png, any_quality])
def test_a_fair_corpus_is_not_accused(tmp_path: Path, save: Save) -> None:
    found = audit(tmp_path, save, save, n=150)
    assert not found.leaks
    assert 0.4 < found.auroc < 0.6
    assert found.interval[0] <= found.auroc <= found.interval[1]


def test_a_copied_group_does_not_pass_for_a_clue(tmp_path: Path) -> None:
    """Odd sizes that belong to single scenes say nothing about a scene that was not seen."""
    rows = ["file_name,label,generator,group"]
    rng = np.random.default_rng(0)
    for i in range(120):
        scene, label = i // 6, (i // 6) % 2
        side = 32 + int(np.random.default_rng(scene).integers(64))
        Image.fromarray(rng.integers(0, 256, (side, 32, 3), dtype=np.uint8)).save(
            tmp_path / f"{i}.png"
        )
        rows.append(f"{i}.png,{label},{'gan' if label else 'real'},scene{scene}")
    (tmp_path / "metadata.csv").write_text("\n".join(rows) + "\n")
    assert audit_corpus(AuditSettings(corpus=tmp_path)).auroc < 0.9


def test_alignment_takes_the_leak_away(tmp_path: Path) -> None:
    assert audit(tmp_path / "raw", jpeg(), png).auroc > 0.95
    assert audit(tmp_path / "aligned", jpeg(), png, n=150, aligned=True).auroc < 0.6


def test_unreadable_files_are_counted_and_too_few_refused(tmp_path: Path) -> None:
    found = audit(tmp_path / "a", jpeg(), jpeg(), n=20)
    assert (found.n_real, found.n_fake, found.unreadable) == (20, 20, 0)
    (tmp_path / "a" / "0_real" / "3.jpg").write_bytes(b"")
    again = audit_corpus(AuditSettings(corpus=tmp_path / "a"))
    assert (again.n_real, again.unreadable) == (19, 1)
    with pytest.raises(GanscopeError, match="at least 10 of each"):
        audit(tmp_path / "b", jpeg(), jpeg(), n=4)


@pytest.mark.skipif(
    "GANSCOPE_SHARED_DATA" not in os.environ,
    reason="set GANSCOPE_SHARED_DATA to a real corpus whose classes differ in format",
)
def test_real_data_with_a_format_leak_cries_out() -> None:
    found = audit_corpus(AuditSettings(corpus=Path(os.environ["GANSCOPE_SHARED_DATA"])))
    assert found.auroc > 0.95


def test_copies_and_damaged_pixels_are_told_of(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = ["file_name,label,split"]
    for i in range(60):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{i % 2},{'test' if i < 30 else 'train'}")
    for i in (1, 3, 5, 7):
        Image.open(tmp_path / f"{i + 30}.png").save(tmp_path / f"{i}.png", optimize=True)
    Image.open(tmp_path / "50.png").save(tmp_path / "53.png")
    whole = (tmp_path / "12.png").read_bytes()
    (tmp_path / "12.png").write_bytes(whole[:-300])  # its header can be read
    (tmp_path / "metadata.csv").write_text("\n".join(rows) + "\n")
    found = audit_corpus(AuditSettings(corpus=tmp_path))
    assert found.unreadable == 1
    in_two, both = found.remarks
    assert "4 of the 29 images of the test split are in the train split" in in_two
    assert "1.png = 31.png" in in_two
    assert "1 fakes are there as reals, too, as they are or nearly so: 53.png = 50.png" in both
    done = CliRunner().invoke(app, ["audit", str(tmp_path), "--max-auroc", "1"])
    assert "left out: 1 images" in done.output
    assert "53.png = 50.png" in done.output
