"""The space of z: every fake's z is known again, walks keep to the shell, directions are found."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from ganscope.config import (
    GenerateSettings,
    LatentApplySettings,
    LatentArithmeticSettings,
    LatentDirectionSettings,
    LatentSettings,
    LatentWalkSettings,
)
from ganscope.datasets.corpus import open_corpus
from ganscope.errors import GanscopeError
from ganscope.generator.latent import (
    GAP,
    ROWS,
    apply_direction,
    fit_direction,
    latents_of,
    learn_direction,
    make_arithmetic,
    make_walk,
    open_latent,
    parse_fake,
    slerp,
    to_shell,
)
from ganscope.generator.model import Generator, latent, load_generator
from ganscope.generator.sampling import generate_corpus
from ganscope.images import open_image

SIZE = 64
"""Of the fakes of `faces`."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("latent") / "corpus"
    return generate_corpus(GenerateSettings(n=12, generator="faces", seed=5, out=out, device="cpu"))


@pytest.fixture(scope="module")
def faces() -> Generator:
    return load_generator("faces")


def cell(picture: np.ndarray, row: int, column: int) -> np.ndarray:
    """One of the images that a picture is tiled with."""
    y, x = row * (SIZE + GAP), column * (SIZE + GAP)
    return picture[y : y + SIZE, x : x + SIZE]


def sort_fakes(corpus: Path, folder: Path, numbers: range) -> Path:
    folder.mkdir()
    for number in numbers:
        shutil.copy(corpus / "1_fake" / "faces" / f"{number:06d}.png", folder)
    return folder


def test_a_fake_is_made_again_from_the_z_of_its_row(corpus: Path, faces: Generator) -> None:
    table = open_corpus(corpus).table
    rows = table[table["label"] == 1].iloc[[7, 2]]
    z = latents_of(rows, faces.latent_dim)
    assert z.shape == (2, faces.latent_dim)
    for again, path in zip(faces.pixels(z), rows["path"], strict=True):
        assert np.array_equal(again, open_image(path).pixels)


def test_fakes_are_named_by_number_or_by_seed_and_number() -> None:
    assert parse_fake("12", 4) == (4, 12)
    assert parse_fake(" 0:12", 4) == (0, 12)
    for name in ("", "-1", "1:2:3", "a", "1.5"):
        with pytest.raises(GanscopeError, match="is no fake"):
            parse_fake(name, 0)


def test_slerp_stays_on_the_sphere_at_an_even_pace() -> None:
    a, b = np.float32([2, 0, 0]), np.float32([0, 2, 0])
    way = np.stack([slerp(a, b, t) for t in (0, 1 / 3, 2 / 3, 1)])
    angles = np.deg2rad([0, 30, 60, 90])
    expected = 2 * np.stack([np.cos(angles), np.sin(angles), 0 * angles], 1)
    assert way.dtype == np.float32
    assert np.allclose(way, expected, atol=1e-6)
    z = [latent(0, i, 100) for i in range(2)]
    assert np.array_equal(slerp(*z, 0), z[0])
    assert np.array_equal(slerp(*z, 1), z[1])
    assert np.array_equal(slerp(z[0], z[0], 0.4), z[0])


def test_a_walk_begins_and_ends_with_the_fakes_themselves(
    corpus: Path, tmp_path: Path, faces: Generator
) -> None:
    fakes = ("3", "5:7", "1")
    settings = LatentWalkSettings(
        generator="faces", fakes=fakes, steps=2, seed=5, out=tmp_path / "w.png", device="cpu"
    )
    picture = open_image(make_walk(settings)).pixels
    assert picture.shape == (2 * SIZE + GAP, 3 * SIZE + 2 * GAP, 3)
    for number, row, column in ((3, 0, 0), (7, 0, 2), (7, 1, 0), (1, 1, 2)):
        fake = open_image(corpus / "1_fake" / "faces" / f"{number:06d}.png").pixels
        assert np.array_equal(cell(picture, row, column), fake)
    middle = slerp(*(latent(5, i, faces.latent_dim) for i in (3, 7)), 0.5)
    assert np.array_equal(cell(picture, 0, 1), faces.pixels(middle[None])[0])
    assert [p.name for p in tmp_path.iterdir()] == ["w.png"]


def test_a_film_goes_there_and_back(tmp_path: Path) -> None:
    settings = LatentWalkSettings(
        generator="faces", fakes=("3", "7", "1"), steps=2, out=tmp_path / "w.gif", device="cpu"
    )
    with Image.open(make_walk(settings)) as film:
        frames = []
        for number in range(film.n_frames):  # type: ignore[attr-defined]
            film.seek(number)
            frames.append(np.asarray(film.convert("RGB")))
    assert len(frames) == 8  # 0 1 2 3 4 3 2 1
    assert np.array_equal(frames[1], frames[7])
    assert not np.array_equal(frames[0], frames[4])


def test_a_name_that_is_taken_is_numbered_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = LatentArithmeticSettings(generator="faces", expression="1", device="cpu")
    names = [make_arithmetic(settings).name for _ in range(2)]
    assert names == ["arithmetic.png", "arithmetic-2.png"]


def test_arithmetic_averages_adds_and_returns_to_the_shell(
    tmp_path: Path, faces: Generator
) -> None:
    settings = LatentArithmeticSettings(
        generator="faces", expression="1,5:2 - 3+4,6", out=tmp_path / "a.png", device="cpu"
    )
    picture = open_image(make_arithmetic(settings)).pixels
    a, b, c, d, e = (
        latent(seed, i, faces.latent_dim) for seed, i in ((0, 1), (5, 2), (0, 3), (0, 4), (0, 6))
    )
    first, result = to_shell((a + b) / 2), to_shell((a + b) / 2 - c + (d + e) / 2)
    assert np.linalg.norm(result) == pytest.approx(np.sqrt(faces.latent_dim), rel=1e-5)
    assert np.array_equal(picture[:, :SIZE], faces.pixels(first[None])[0])
    difference = picture[:, -SIZE:].astype(int) - faces.pixels(result[None])[0]
    assert abs(difference).max() <= 1  # the order of a sum is nobody's promise
    assert picture.shape[1] > 4 * SIZE


def test_a_planted_direction_is_found_and_noise_is_known_as_noise() -> None:
    rng = np.random.default_rng(0)
    z, true = rng.standard_normal((600, 20)), np.eye(20)[3]
    vector, accuracy = fit_direction(z, (z @ true > 0).astype(int))
    assert np.linalg.norm(vector) == pytest.approx(1)
    assert vector @ true > 0.95
    assert accuracy > 0.9
    _, accuracy = fit_direction(z, rng.integers(0, 2, 600))
    assert 0.4 < accuracy < 0.6
    # Where one fake in fifteen shows it, "never" would be right in 93 %; both sides weigh alike.
    rare = z @ true + rng.standard_normal(600) > 2.1
    _, accuracy = fit_direction(z, rare.astype(int))
    assert 0.7 < accuracy < 0.9


def test_a_direction_is_learned_from_two_folders_and_applied(
    corpus: Path, tmp_path: Path, faces: Generator
) -> None:
    settings = LatentDirectionSettings(
        generator="faces",
        with_=sort_fakes(corpus, tmp_path / "with", range(5)),
        without=sort_fakes(corpus, tmp_path / "without", range(5, 11)),
        corpus=corpus,
        out=tmp_path / "smile.json",
        seed=5,
        device="cpu",
    )
    path, direction = learn_direction(settings)
    assert direction.files == (5, 6)
    z = latents_of(pd.DataFrame({"seed": 5, "index": range(11)}), faces.latent_dim)
    on_line = z @ direction.vector
    assert on_line[:5].min() > on_line[5:].max()  # 11 points in so many dimensions come apart
    shown = open_image(path.with_suffix(".png")).pixels
    assert shown.shape[0] == ROWS * (SIZE + GAP) - GAP
    assert np.array_equal(  # the first fake that was not learned from, itself in the middle
        cell(shown, 0, 3), open_image(corpus / "1_fake" / "faces" / "000011.png").pixels
    )

    applied = LatentApplySettings(
        generator="faces", direction=path, fakes=("5:11",), out=tmp_path / "p.png", device="cpu"
    )
    picture = open_image(apply_direction(applied)).pixels
    assert np.array_equal(picture, shown[:SIZE])
    moved = latent(5, 11, faces.latent_dim) - 3 * direction.vector
    assert np.array_equal(picture[:, :SIZE], faces.pixels(moved[None])[0])

    other = LatentApplySettings(
        generator="photos", direction=path, fakes=("1",), out=tmp_path / "q.png", device="cpu"
    )
    with pytest.raises(GanscopeError, match="learned for the generator 'faces'"):
        apply_direction(other)


def test_files_that_cannot_be_learned_from_are_named(corpus: Path, tmp_path: Path) -> None:
    good = sort_fakes(corpus, tmp_path / "good", range(3))
    rest = sort_fakes(corpus, tmp_path / "rest", range(3, 6))
    one = sort_fakes(corpus, tmp_path / "one", range(6, 7))
    stranger = sort_fakes(corpus, tmp_path / "stranger", range(3))
    (stranger / "000001.png").rename(stranger / "holiday.png")
    real = sort_fakes(corpus, tmp_path / "real", range(3))
    shutil.copy(corpus / "0_real" / "000007.png", real)

    def learn(with_: Path, without: Path, generator: str = "faces") -> None:
        learn_direction(
            LatentDirectionSettings(
                generator=generator,
                with_=with_,
                without=without,
                corpus=corpus,
                out=tmp_path / "never.json",
                device="cpu",
            )
        )

    for with_, without, said in (
        (good, stranger, "holiday.png: .* lists no fake of this name"),
        (good, good, "is in both folders"),
        (good, one, "at least 2 fakes"),
        (rest, real, "000007.png: differs from the fake of this name"),
        (good, tmp_path / "nowhere", "no such file or folder"),
    ):
        with pytest.raises(GanscopeError, match=said):
            learn(with_, without)
    with pytest.raises(GanscopeError, match=r"no fakes of 'photos' .* it has those of faces"):
        learn(good, rest, "photos")
    assert not list(tmp_path.glob("never*"))


def test_only_generators_that_start_from_noise_have_a_z(tmp_path: Path) -> None:
    with pytest.raises(GanscopeError, match="makes no images out of noise"):
        open_latent(LatentSettings(generator="reconstruct:taesd", device="cpu"))
    pix2pix = {"architecture": "pix2pix", "arguments": {"size": 32, "width": 4}}
    Generator(pix2pix).save(tmp_path / "run")
    with pytest.raises(GanscopeError, match="makes no images out of noise"):
        open_latent(LatentSettings(generator=str(tmp_path / "run"), device="cpu"))


def test_class_and_truncation_are_heeded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    arguments = {"size": 8, "latent_dim": 100, "width": 8, "classes": ["a", "b"]}
    Generator({"architecture": "cgan", "arguments": arguments}).save(tmp_path / "cgan")
    with pytest.raises(GanscopeError, match="--class: a, b"):
        open_latent(LatentSettings(generator=str(tmp_path / "cgan"), device="cpu"))
    for class_, truncation in (("b", 1.0), ("b", 0.5), ("a", 1.0)):
        out = tmp_path / "w.png"
        settings = LatentWalkSettings(
            generator=str(tmp_path / "cgan"),
            fakes=("1", "2"),
            class_=class_,
            truncation=truncation,
            out=out,
            device="cpu",
        )
        generator = Generator.load(tmp_path / "cgan").choose(class_, truncation)
        picture = open_image(make_walk(settings)).pixels
        assert np.array_equal(picture[:, :8], generator.make(0, [1])[0])
