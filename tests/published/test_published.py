"""All published detectors: weights of their keys and shapes load, and what the networks see."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from ganscope.cli.list import list_things
from ganscope.detector.published import load_published, published
from ganscope.detector.published.sources import SOURCES
from ganscope.errors import GanscopeError
from ganscope.folders import hash_files

from .made_weights import KEYS, TIMMS, Saved, save


@pytest.mark.parametrize("name", sorted(set(KEYS) - {"ladeda-wildrf"}))
def test_published_weights_load_and_score(
    name: str, saved: Saved, photos: list[np.ndarray]
) -> None:
    weights = saved(name)
    detector = load_published(name, weights)
    assert detector.name == name
    assert detector.weights == hash_files(*weights.split(","))
    assert not detector.net.training
    together = detector.score_pixels(photos, batch_size=3)
    assert together.shape == (3,)
    assert together.dtype == np.float32
    assert np.isfinite(together).all()
    assert len(set(together)) == 3
    alone = detector.score_pixels(photos, batch_size=1)
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    scores = detector.score(together)
    assert ((scores > detector.threshold) == (together > 0)).all()


def test_all_that_are_registered_are_tested_and_say_what_they_are() -> None:
    assert set(KEYS) | {"sieve"} == set(published) == set(SOURCES)
    assert all((load.__doc__ or "").strip() for load in published.values())


@pytest.mark.parametrize("name", sorted(KEYS))
def test_keys_that_do_not_fit_are_named(name: str, tmp_path: Path) -> None:
    # Tensors of one repeated number: the file stays small.
    state = {key: torch.zeros(()).expand(shape) for key, shape in KEYS[name]().items()}
    lost, *_, bent = (key for key in state if "num_batches" not in key)
    del state[lost]
    state["stranger"] = torch.zeros(1)
    state[bent] = torch.zeros(2, 3, 5)
    with pytest.raises(GanscopeError) as told:
        load_published(name, save(name, state, tmp_path))
    said = str(told.value)
    if name in TIMMS:
        lost, bent = TIMMS[name](dict.fromkeys((lost, bent), torch.zeros(1)))
    assert said.startswith(f"{name}:{tmp_path / name}.pth: ")
    assert f"missing: {lost};" in said
    assert "not in the network: stranger;" in said
    assert f"of another shape: {bent})" in said
    assert "\n" not in said


def test_mistakes_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "junk.pth").write_bytes(b"no weights at all")
    torch.save({"model": nn.Linear(1, 1)}, tmp_path / "code.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    for name, file, said in [
        ("npr", "absent.pth", "absent.pth: no such file"),
        ("univfd", "absent.pth,clip.safetensors", "absent.pth: no such file"),
        ("npr", "junk.pth", "junk.pth: not a file of plain weights"),
        ("npr", "code.pth", "code.pth: not a file of plain weights"),
        ("npr", "list.pth", "list.pth: the file holds no dictionary"),
        ("nrp", "any.pth", "unknown published detector 'nrp'; did you mean 'npr'"),
    ]:
        with pytest.raises(GanscopeError, match=said) as told:
            load_published(name, tmp_path / file)
        assert "\n" not in str(told.value)
    with pytest.raises(GanscopeError, match=r"ForenSynth_LaDeDa\.pth from https:.*ladeda:FILE"):
        load_published("ladeda")


def test_what_is_resized_and_what_is_cropped(saved: Saved, astronaut: np.ndarray) -> None:
    wide, little = astronaut[:300, ::-1], astronaut[:40, :30]
    for name in ("cnndetect", "npr"):
        assert load_published(name, saved(name)).prepare(wide).shape == (3, 300, 512)
    for name in ("ladeda", "ladeda-wildrf", "tiny-ladeda", "freqnet"):
        prepared = load_published(name, saved(name)).prepare(wide)
        smaller = torchvision.transforms.Resize((256, 256))(Image.fromarray(wide))
        expected = (np.asarray(smaller) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        np.testing.assert_allclose(prepared, expected.transpose(2, 0, 1), atol=1e-5)
    prepare = load_published("safe", saved("safe")).prepare
    np.testing.assert_allclose(
        prepare(wide), wide[22:278, 128:384].transpose(2, 0, 1) / 255, atol=1e-6
    )
    black = prepare(little)
    assert black.shape == (3, 256, 256)
    assert black.sum() == pytest.approx(little.sum() / 255, rel=1e-4)
    prepared = load_published("univfd", saved("univfd")).prepare(wide)
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    expected = (wide[38:262, 144:368] / 255 - mean) / std
    np.testing.assert_allclose(prepared, expected.transpose(2, 0, 1), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("npr", [0.37721, 0.51974]),
        ("ladeda", [6.07465, 6.50219]),
        ("tiny-ladeda", [0.44098, 0.41294]),
        ("safe", [-1.10281, -1.13674]),
        ("freqnet", [0.24622, 0.23610]),
    ],
)
def test_networks_compute_what_their_authors_do(
    name: str, expected: list[float], saved: Saved
) -> None:
    """The figures are those of the authors' forward passes, with these weights on these images."""
    images = torch.tensor(np.random.RandomState(1).standard_normal((2, 3, 64, 64))).float()
    logits = load_published(name, saved(name)).logits(images)
    torch.testing.assert_close(logits, torch.tensor(expected), rtol=1e-3, atol=2e-4)


def test_large_images_go_a_few_at_a_time(saved: Saved, astronaut: np.ndarray) -> None:
    detector = load_published("npr", saved("npr"))
    sizes = []
    detector.net.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    detector.score_pixels([astronaut[:64, :64]] * 5 + [astronaut[:300, :300]] * 3, batch_size=4)
    assert sizes == [4, 1, 2, 1]
    detector.score_pixels([astronaut[:300, :300]] * 2, batch_size=1)
    assert sizes[4:] == [1, 1]
    assert detector.score_pixels([]).shape == (0,)


def test_the_list_names_licences_and_downloads(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        list_things("detectors")
    lines = " ".join(capsys.readouterr().out.split())
    for said in [
        "commfor published A ViT-S/16 at 384x384",
        "licence: MIT; weights: 87 MB, downloaded when first used",
        "bfree published",
        "sieve published",
        "ladeda:FILE published",
    ]:
        assert said in lines
