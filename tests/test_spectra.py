"""Mean spectra: waves of known frequency, a lattice found, the picture drawn."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from ganscope.config import SpectraSettings
from ganscope.datasets.spectra import draw_spectra, mean_spectrum, radial_profile
from ganscope.errors import GanscopeError


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


def test_pictures_that_are_too_small(tmp_path: Path) -> None:
    with pytest.raises(GanscopeError, match="too small"):
        draw_spectra(SpectraSettings(corpora=(write(tmp_path / "c", 6),)))
