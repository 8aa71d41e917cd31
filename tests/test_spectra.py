"""Mean spectra: waves of known frequency, a lattice found, the picture drawn."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from ganscope.config import SpectraSettings
from ganscope.datasets import spectra
from ganscope.datasets.spectra import draw_spectra, mean_spectrum, radial_profile
from ganscope.errors import GanscopeError, GanscopeWarning


def noise(n: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(90, 166, (n, size, size), np.uint8)


def test_a_checkerboard_shines_in_the_corner() -> None:
    images = noise(8)
    images[:, ::2, ::2] += 40
    spectrum = mean_spectrum(images)
    # Every other pixel: half a wave a pixel in x, in y and in both.
    peaks = {divmod(int(i), 32) for i in spectrum.ravel().argsort()[-3:]}
    assert peaks == {(0, 0), (0, 16), (16, 0)}
    assert mean_spectrum(noise(8))[0, 16] < spectrum[0, 16] / 5


def test_a_wave_has_its_frequency() -> None:
    x = np.arange(64)
    wave = np.broadcast_to(128 + 60 * np.sin(2 * np.pi * x * 20 / 64), (1, 64, 64))
    profile = radial_profile(mean_spectrum(wave.round().astype(np.uint8)))
    assert len(profile) == 33
    assert profile.argmax() == 20


def write(root: Path, size: int = 32) -> Path:
    for folder, images in (("0_real", noise(4, size)), ("1_fake/gan", noise(4, size) // 2)):
        (root / folder).mkdir(parents=True)
        for i, image in enumerate(images):
            cv2.imwrite(str(root / folder / f"{i}.png"), image)
    return root


def test_the_picture(tmp_path: Path) -> None:
    corpus = write(tmp_path / "corpus")
    seen = []
    path = draw_spectra(
        SpectraSettings(corpora=(corpus,), out=tmp_path / "s.png"), lambda *now: seen.append(now)
    )
    assert cv2.imread(str(path)).shape[1] > 300
    assert seen[-1] == (8, 8)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus", "s.png"]


def test_pictures_that_are_all_too_small(tmp_path: Path) -> None:
    with (
        pytest.raises(GanscopeError, match=r"large enough, for example .*\.png \(6 pixels\)"),
        pytest.warns(GanscopeWarning, match="8 of 8 images are too small"),
    ):
        draw_spectra(SpectraSettings(corpora=(write(tmp_path / "c", 6),)))


def test_small_and_damaged_pictures_are_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = {}
    monkeypatch.setattr(spectra, "_draw", lambda out, found, counts: drawn.update(found, n=counts))
    corpus = write(tmp_path / "c")
    for name, size in (("speck", 3), ("thumb", 14)):
        cv2.imwrite(str(corpus / f"0_real/{name}.png"), noise(1, size)[0])
    (corpus / "1_fake/gan/0.png").write_bytes(b"no image")
    with pytest.warns(GanscopeWarning) as told:
        draw_spectra(SpectraSettings(corpora=(corpus,), out=tmp_path / "s.png"))
    said = sorted(str(w.message) for w in told)
    assert "1 of 10 images cannot be read" in said[0]
    assert "gan/0.png" in said[0]
    assert "2 of 10 images are too small" in said[1]
    assert "speck.png (2 pixels)" in said[1]
    assert drawn["n"] == {"real": 4, "gan": 3}
    assert drawn["real"].shape == (32, 32)


def test_a_generator_of_small_pictures_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = {}
    monkeypatch.setattr(spectra, "_draw", lambda out, found, counts: drawn.update(found))
    corpus = write(tmp_path / "c")
    for name, size in (("tiny", 16), ("specks", 4)):
        (corpus / "1_fake" / name).mkdir()
        for i, image in enumerate(noise(3, size)):
            cv2.imwrite(str(corpus / "1_fake" / name / f"{i}.png"), image)
    with pytest.warns(GanscopeWarning) as told:
        draw_spectra(SpectraSettings(corpora=(corpus,), out=tmp_path / "s.png"))
    said = " ".join(str(w.message) for w in told)
    assert "the middle 16 pixels a side, as images of tiny are no larger" in said
    assert "no image of specks is left" in said
    assert drawn["real"].shape == (16, 16)
    assert "specks" not in drawn
