"""Published detectors of low-level traces: residuals, wavelets, spectra."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image

from ganscope.detector.networks.convolutional import NPR, neighbouring_pixel_residual
from ganscope.detector.published import load_published
from ganscope.detector.published.freqnet import high_frequencies
from ganscope.detector.published.ladeda import LaDeDa, TinyLaDeDa
from ganscope.detector.published.safe import diagonal_details

from .made_weights import Saved, ladeda, resnet50, tiny_ladeda, weights_of


def test_cnndetect_is_a_resnet50_on_the_whole_image(saved: Saved, photos: list[np.ndarray]) -> None:
    detector = load_published("cnndetect", saved("cnndetect"))
    theirs = torchvision.models.resnet50(num_classes=1).eval()
    theirs.load_state_dict(weights_of(resnet50()))
    usual = torchvision.transforms.Compose(
        [
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    prepared = usual(Image.fromarray(photos[0]))
    torch.testing.assert_close(detector.prepare(photos[0]), prepared)
    with torch.inference_mode():
        expected = theirs(prepared[None]).numpy()[0]
    np.testing.assert_allclose(detector.score_pixels(photos[:1]), expected, rtol=1e-4, atol=1e-5)


def test_npr_is_the_network_that_is_trained_here(saved: Saved) -> None:
    assert isinstance(load_published("npr", saved("npr")).net, NPR)


@pytest.mark.parametrize(("name", "scale"), [("npr", 2), ("ladeda", 2), ("ladeda-wildrf", 3)])
def test_residuals_are_scaled(name: str, scale: int, saved: Saved) -> None:
    detector = load_published(name, saved(name))
    seen = []
    detector.net.conv1.register_forward_pre_hook(lambda _, given: seen.append(given[0]))  # type: ignore[union-attr]
    image = torch.rand(1, 3, 32, 32)
    detector.logits(image)
    torch.testing.assert_close(seen[0], neighbouring_pixel_residual(image) * scale / 3)


@pytest.mark.parametrize(
    ("net", "side", "step"), [(LaDeDa(), 9, 8), (TinyLaDeDa(), 7, 2)], ids=["ladeda", "tiny"]
)
def test_a_position_of_the_map_sees_a_patch(net: Any, side: int, step: int) -> None:
    net.load_state_dict(weights_of(ladeda() if side == 9 else tiny_ladeda()))
    image = torch.randn(1, 3, 64, 64, requires_grad=True)
    logits = net.eval().patch_logits(image)
    torch.testing.assert_close(net(image), logits.mean((1, 2)))
    logits[0, 2, 5].backward()
    assert image.grad is not None
    seen = image.grad.abs().sum((0, 1)).nonzero()
    margin = 0 if side == 9 else 1  # of the gradients, which are padded
    first = torch.tensor([2 * step - margin, 5 * step - margin])
    assert (seen.min(0).values == first).all()
    assert (seen.max(0).values == first + side - 1).all()


def test_tiny_ladeda_looks_at_diagonal_gradients() -> None:
    seen = []
    net = TinyLaDeDa().eval()
    net.conv1.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    ramp = torch.arange(16.0).expand(16, 16)
    net(torch.stack([ramp, ramp.T, ramp - ramp.T])[None])
    inside = seen[0][0, :, 1:-1, 1:-1]
    # The kernel's columns sum to -3, 0, 3, and so do its rows.
    torch.testing.assert_close(inside.mean((1, 2)), torch.tensor([6.0, 6.0, 0.0]))
    assert inside.std((1, 2)).max() < 1e-5


@pytest.mark.parametrize("shape", [(16, 16), (15, 16), (17, 13)])
def test_wavelet_details_are_those_of_bior13(shape: tuple[int, int]) -> None:
    """The definition: a decomposition step by the wavelet's six taps, mirrored at the borders."""
    taps = np.array([0, 0, -math.sqrt(0.5), math.sqrt(0.5), 0, 0])

    def details(x: np.ndarray) -> np.ndarray:
        """Coefficients along the last axis: every second value of the convolution."""
        mirrored = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(5, 5)], mode="symmetric")
        whole = np.apply_along_axis(np.convolve, -1, mirrored, taps, "valid")
        return whole[..., 1::2]

    x = np.random.default_rng(0).random((2, 3, *shape))
    band = details(details(x).swapaxes(-1, -2)).swapaxes(-1, -2)
    assert band.shape[2:] == tuple((n + 5) // 2 for n in shape)
    expected = torchvision.transforms.Resize(shape)(torch.from_numpy(band))
    torch.testing.assert_close(diagonal_details(torch.from_numpy(x)), expected)


def test_wavelet_details_of_a_constant_are_nothing() -> None:
    assert diagonal_details(torch.full((1, 3, 256, 256), 0.7)).abs().max() == 0


@pytest.mark.parametrize("shape", [(12, 16), (13, 10)])
def test_high_frequencies_are_what_lies_around_the_centre_of_the_shifted_spectrum(
    shape: tuple[int, int],
) -> None:
    x = torch.randn(2, 8, *shape)
    spectrum = torch.fft.fftshift(torch.fft.fft2(x), dim=(-2, -1))
    (top, left), (high, wide) = [n // 2 for n in shape], [n // 4 for n in shape]
    spectrum[..., top - high : top + high, left - wide : left + wide] = 0
    expected = torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1))).real
    torch.testing.assert_close(high_frequencies(x, (-2, -1)), F.relu(expected))
    spectrum = torch.fft.fftshift(torch.fft.fft(x, dim=1), dim=1)
    spectrum[:, 2:6] = 0
    expected = torch.fft.ifft(torch.fft.ifftshift(spectrum, dim=1), dim=1).real
    torch.testing.assert_close(high_frequencies(x, (1,)), F.relu(expected))


def test_high_frequencies_leave_out_a_constant_and_keep_a_chequerboard() -> None:
    board = torch.ones(1, 1, 16, 16)
    board[..., ::2, ::2] = board[..., 1::2, 1::2] = -1
    assert high_frequencies(torch.full((1, 3, 16, 16), 5.0), (-2, -1)).abs().max() < 1e-5
    torch.testing.assert_close(high_frequencies(board + 5, (-2, -1)), F.relu(board))
