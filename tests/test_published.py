"""Published detectors: weights of their keys and shapes load, and what the networks see."""

import functools
import math
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from ganscope.detector.networks.convolutional import NPR, neighbouring_pixel_residual
from ganscope.detector.published import load_published, published, univfd
from ganscope.detector.published.freqnet import high_frequencies
from ganscope.detector.published.ladeda import LaDeDa, TinyLaDeDa
from ganscope.detector.published.safe import diagonal_details
from ganscope.errors import GanscopeError
from ganscope.folders import hash_files

Shapes = dict[str, tuple[int, ...]]
State = dict[str, Tensor]


def resnet50(**changes: tuple[int, ...]) -> Shapes:
    """Shapes of torchvision's ResNet-50 with one output; __ in the names of changes is a dot."""
    with torch.device("meta"):
        state = torchvision.models.resnet50(num_classes=1).state_dict()
    changed = {key.replace("__", "."): shape for key, shape in changes.items()}
    return {key: tuple(value.shape) for key, value in state.items()} | changed


def half(outputs: int, **changes: tuple[int, ...]) -> Shapes:
    first = ("conv1.", "bn1.", "layer1.", "layer2.")
    shapes = {k: v for k, v in resnet50(conv1__weight=(64, 3, 3, 3)).items() if k.startswith(first)}
    return shapes | {"fc1.weight": (outputs, 512), "fc1.bias": (outputs,)}


def ladeda() -> Shapes:
    shapes = resnet50(conv1__weight=(64, 3, 1, 1), conv2__weight=(64, 64, 3, 3))
    for key, shape in shapes.items():
        if ".conv2." in key and not key.startswith(("layer1.0.", "layer2.0.")):
            shapes[key] = (*shape[:2], 1, 1)
    return shapes


def norm(name: str, n: int) -> Shapes:
    four = {f"{name}.{part}": (n,) for part in ("weight", "bias", "running_mean", "running_var")}
    return four | {f"{name}.num_batches_tracked": ()}


def tiny_ladeda() -> Shapes:
    return {
        "conv1.weight": (8, 3, 1, 1),
        "conv2.weight": (8, 8, 3, 3),
        "layer1.0.conv1.weight": (8, 8, 1, 1),
        "layer1.0.conv2.weight": (8, 8, 3, 3),
        "fc.weight": (1, 8),
        "fc.bias": (1,),
        **norm("bn1", 8),
        **norm("layer1.0.bn1", 8),
        **norm("layer1.0.bn2", 8),
    }


def freqnet() -> Shapes:
    shapes = {k: v for k, v in half(1).items() if not k.startswith(("conv1.", "bn1."))}
    for i, (before, after) in {1: (3, 64), 2: (64, 64), 3: (256, 256), 4: (256, 256)}.items():
        shapes[f"weight{i}"], shapes[f"bias{i}"] = (after, before, 1, 1), (after,)
        shapes[f"realconv{i}.weight"] = shapes[f"imagconv{i}.weight"] = (after, after, 1, 1)
    return shapes


def clip(width: int = 1024, depth: int = 24, patch: int = 14) -> Shapes:
    """OpenAI's CLIP with a ViT for images, of which the text half is only hinted at."""
    block = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
    }
    return {
        "logit_scale": (),
        "transformer.resblocks.0.ln_1.weight": (768,),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": ((224 // patch) ** 2 + 1, width),
        "visual.proj": (width, 768),
        "visual.conv1.weight": (width, 3, patch, patch),
        **{f"visual.ln_{end}.{part}": (width,) for end in ("pre", "post") for part in PARTS},
        **{
            f"visual.transformer.resblocks.{i}.{k}": s
            for i in range(depth)
            for k, s in block.items()
        },
    }


PARTS = ("weight", "bias")
SMALL = {"width": 64, "depth": 2, "patch": 56}
KEYS: dict[str, Callable[[], Shapes]] = {
    "cnndetect": resnet50,
    "npr": lambda: half(1),
    "univfd": lambda: {"weight": (1, 768), "bias": (1,)},
    "ladeda": ladeda,
    "ladeda-wildrf": ladeda,
    "tiny-ladeda": tiny_ladeda,
    "safe": lambda: half(2),
    "freqnet": freqnet,
}
WRAPPED = {
    "cnndetect": lambda state: {"model": state, "optimizer": {"state": {}}, "total_steps": 7},
    "safe": lambda state: {"model": state, "epoch": "best", "args": Namespace(lr=1e-3, gpu=0)},
    "freqnet": lambda state: {"model": {f"module.{k}": v for k, v in state.items()}},
}


def weights_of(shapes: Shapes) -> State:
    """Random weights, the same with every version of numpy and torch."""
    random = np.random.RandomState(0)
    state = {}
    for key, shape in sorted(shapes.items()):
        value = torch.tensor(random.standard_normal(shape), dtype=torch.float32)
        if "num_batches" in key:
            value = torch.tensor(5)
        elif key.endswith("running_var"):
            value = value.abs() / 2 + 0.5
        elif len(shape) < 2:
            value = value / 10 + 0.7 * key.endswith("weight")
        elif not key.endswith(("embedding", "proj")):
            value = value * math.sqrt(2 / math.prod(shape[1:]))
        state[key] = value
    return state


def save(name: str, state: State, folder: Path) -> str:
    """Write weights in their published wrapper; what the user names (univfd: with a backbone)."""
    path = folder / f"{name}.pth"
    torch.save(WRAPPED.get(name, dict)(state), path)
    if name != "univfd":
        return str(path)
    save_file(weights_of(clip(**SMALL)), folder / "clip.safetensors")
    return f"{path},{folder / 'clip.safetensors'}"


Saved = Callable[[str], str]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    """Name of a detector -> what the user names; written once, for some are large."""
    folder = tmp_path_factory.mktemp("weights")
    yield functools.cache(lambda name: save(name, weights_of(KEYS[name]()), folder))
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def small_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    """CLIP's image tower in two narrow layers; all else of univfd is as it is."""
    create = timm.create_model

    def smaller(name: str, **options: Any) -> nn.Module:
        if name == univfd.TOWER:
            options |= {"embed_dim": 64, "depth": 2, "num_heads": 1, "patch_size": 56}
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", smaller)


@pytest.fixture
def photos(astronaut: np.ndarray) -> list[np.ndarray]:
    """Two photographs of one size, and a third of 40x30."""
    return [astronaut[:128, 150:300], astronaut[200:328, :150], astronaut[100:140, 200:230]]


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
    assert set(KEYS) == set(published)
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
    with pytest.raises(GanscopeError, match="npr:FILE"):
        load_published("npr", "")


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


def clip_features(state: State, images: Tensor) -> Tensor:
    """CLIP's image features as its paper and weights define them, of a tower with one head."""

    def normed(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *(state[f"visual.{name}.{part}"] for part in PARTS))

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, *(state[f"visual.{name}{part}"] for part in PARTS))

    weight = state["visual.conv1.weight"]
    x = F.conv2d(images, weight, stride=weight.shape[-1]).flatten(2).transpose(1, 2)
    token = state["visual.class_embedding"].expand(len(x), 1, -1)
    x = normed(torch.cat([token, x], 1) + state["visual.positional_embedding"], "ln_pre")
    for i in range(SMALL["depth"]):
        block = f"transformer.resblocks.{i}"
        q, k, v = linear(normed(x, f"{block}.ln_1"), f"{block}.attn.in_proj_").chunk(3, -1)
        attention = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1)
        x = x + linear(attention @ v, f"{block}.attn.out_proj.")
        hidden = linear(normed(x, f"{block}.ln_2"), f"{block}.mlp.c_fc.")
        x = x + linear(hidden * torch.sigmoid(1.702 * hidden), f"{block}.mlp.c_proj.")
    return normed(x[:, 0], "ln_post") @ state["visual.proj"]


def test_univfd_is_linear_in_clips_features(saved: Saved, photos: list[np.ndarray]) -> None:
    detector = load_published("univfd", saved("univfd"))
    head, images = weights_of(KEYS["univfd"]()), torch.stack(list(map(detector.prepare, photos)))
    features = clip_features(weights_of(clip(**SMALL)), images)
    expected = features @ head["weight"][0] + head["bias"]
    torch.testing.assert_close(detector.logits(images), expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 1e-2


def test_univfd_takes_the_backbone_in_timms_names_or_from_the_hub(
    saved: Saved, tmp_path: Path, photos: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = saved("univfd")
    detector = load_published("univfd", both)
    expected = detector.score_pixels(photos)
    tower = detector.net.tower
    save_file(tower.state_dict(), tmp_path / "timm.safetensors")  # type: ignore[union-attr, operator]
    head = both.split(",")[0]
    again = load_published("univfd", f"{head},{tmp_path / 'timm.safetensors'}")
    np.testing.assert_array_equal(again.score_pixels(photos), expected)

    def from_hub(name: str, pretrained: bool = False) -> Any:
        assert pretrained
        return tower

    monkeypatch.setattr(timm, "create_model", from_hub)
    fetched = load_published("univfd", head)
    np.testing.assert_array_equal(fetched.score_pixels(photos), expected)
    assert fetched.weights == hash_files(head)


def test_univfd_backbones_that_are_not_to_be_had_or_not_the_right_ones(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = saved("univfd").split(",")[0]
    with pytest.raises(GanscopeError, match=r"none\.safetensors: no such file"):
        load_published("univfd", f"{head},none.safetensors")
    save_file(weights_of(clip(**SMALL | {"patch": 28})), tmp_path / "other.safetensors")
    with pytest.raises(
        GanscopeError, match=r"other\.safetensors.*another shape: patch_embed\.proj\.weight, pos"
    ):
        load_published("univfd", f"{head},{tmp_path / 'other.safetensors'}")

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(GanscopeError, match=r"no network.*univfd:HEAD,BACKBONE"):
        load_published("univfd", head)


def test_univfds_tower_is_that_of_clip_vit_l_14(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with torch.device("meta"):
        tower = timm.create_model(univfd.TOWER)
        whole = {key: torch.empty(shape) for key, shape in clip().items()}
    renamed = univfd.in_timms_names(whole)
    found = {key: value.shape for key, value in renamed.items()}
    assert found == {key: value.shape for key, value in tower.state_dict().items()}


def test_large_images_go_a_few_at_a_time(saved: Saved, astronaut: np.ndarray) -> None:
    detector = load_published("npr", saved("npr"))
    sizes = []
    detector.net.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    detector.score_pixels([astronaut[:64, :64]] * 5 + [astronaut[:300, :300]] * 3, batch_size=4)
    assert sizes == [4, 1, 2, 1]
    detector.score_pixels([astronaut[:300, :300]] * 2, batch_size=1)
    assert sizes[4:] == [1, 1]
    assert detector.score_pixels([]).shape == (0,)


def test_npr_is_the_network_that_is_trained_here(saved: Saved) -> None:
    assert isinstance(load_published("npr", saved("npr")).net, NPR)
