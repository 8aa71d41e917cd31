"""Published detectors: weights of their keys and shapes load, and what the networks see."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import math
import re
import shutil
import sys
import threading
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from ganscope.cli.list import list_things
from ganscope.config import BenchmarkSettings
from ganscope.detector.benchmark.benchmark import benchmark_detectors
from ganscope.detector.benchmark.contestants import open_scorer
from ganscope.detector.networks.convolutional import NPR, neighbouring_pixel_residual
from ganscope.detector.published import (
    bfree,
    commfor,
    cutting,
    deepfakebench,
    download,
    load_published,
    published,
    sbi,
    sieve,
    univfd,
)
from ganscope.detector.published.freqnet import high_frequencies
from ganscope.detector.published.ladeda import LaDeDa, TinyLaDeDa
from ganscope.detector.published.safe import diagonal_details
from ganscope.detector.published.sources import SOURCES
from ganscope.errors import GanscopeError, GanscopeWarning
from ganscope.faces import Face
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


def vit(width: int, depth: int, patch: int, side: int, dino: bool = False) -> Shapes:
    """A ViT of timm with one output; dino: with four registers and scaled layers, as DINOv2's."""
    block = {
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "norm2.weight": (width,),
        "norm2.bias": (width,),
        "mlp.fc1.weight": (4 * width, width),
        "mlp.fc1.bias": (4 * width,),
        "mlp.fc2.weight": (width, 4 * width),
        "mlp.fc2.bias": (width,),
    } | ({"ls1.gamma": (width,), "ls2.gamma": (width,)} if dino else {})
    return {
        "cls_token": (1, 1, width),
        **({"reg_token": (1, 4, width)} if dino else {}),
        "pos_embed": (1, (side // patch) ** 2 + (not dino), width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        **{f"blocks.{i}.{k}": s for i in range(depth) for k, s in block.items()},
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (1, width),
        "head.bias": (1,),
    }


def community(width: int = 384, depth: int = 12) -> Shapes:
    return {f"vit.{key}": shape for key, shape in vit(width, depth, 16, 384).items()}


def dino(width: int = 768, depth: int = 12) -> Shapes:
    return vit(width, depth, 14, 504, dino=True)


def efficientnet_b4() -> Shapes:
    """In the names of efficientnet_pytorch, with two outputs."""
    shapes = {"_conv_stem.weight": (48, 3, 3, 3), "_conv_head.weight": (1792, 448, 1, 1)}
    shapes |= norm("_bn0", 48) | norm("_bn1", 1792)
    stages = [
        (24, 2, 3),
        (32, 4, 3),
        (56, 4, 5),
        (112, 6, 3),
        (160, 6, 5),
        (272, 8, 5),
        (448, 2, 3),
    ]
    before, number = 48, 0
    for stage, (after, blocks, kernel) in enumerate(stages):
        for _ in range(blocks):
            inner = before * (6 if stage else 1)
            own: Shapes = norm("_bn1", inner) | norm("_bn2", after)
            if stage:
                own |= {"_expand_conv.weight": (inner, before, 1, 1)} | norm("_bn0", inner)
            own |= {
                "_depthwise_conv.weight": (inner, 1, kernel, kernel),
                "_se_reduce.weight": (before // 4, inner, 1, 1),
                "_se_reduce.bias": (before // 4,),
                "_se_expand.weight": (inner, before // 4, 1, 1),
                "_se_expand.bias": (inner,),
                "_project_conv.weight": (after, inner, 1, 1),
            }
            shapes |= {f"_blocks.{number}.{key}": shape for key, shape in own.items()}
            before, number = after, number + 1
    return shapes | {"_fc.weight": (2, 1792), "_fc.bias": (2,)}


def xception(channels: int = 3) -> Shapes:
    """In the names of DeepfakeBench, with the layer that it does not use."""

    def separable(name: str, before: int, after: int) -> Shapes:
        return {
            f"{name}.conv1.weight": (before, 1, 3, 3),
            f"{name}.pointwise.weight": (after, before, 1, 1),
        }

    shapes: Shapes = {"conv1.weight": (32, channels, 3, 3), "conv2.weight": (64, 32, 3, 3)}
    shapes |= norm("bn1", 32) | norm("bn2", 64) | norm("bn3", 1536) | norm("bn4", 2048)
    shapes |= separable("conv3", 1024, 1536) | separable("conv4", 1536, 2048)
    widths = [(64, 128, 128), (128, 256, 256), (256, 728, 728)]
    widths += [(728, 728, 728, 728)] * 8 + [(728, 728, 1024)]
    for block, steps in enumerate(widths, 1):
        for i, (before, after) in enumerate(itertools.pairwise(steps)):
            place = 3 * i + (block > 1)  # the first block begins without an activation
            shapes |= separable(f"block{block}.rep.{place}", before, after)
            shapes |= norm(f"block{block}.rep.{place + 1}", after)
        if steps[0] != steps[-1]:
            shapes[f"block{block}.skip.weight"] = (steps[-1], steps[0], 1, 1)
            shapes |= norm(f"block{block}.skipbn", steps[-1])
    last = "last_linear.1" if channels > 3 else "last_linear"
    shapes |= {"adjust_channel.0.weight": (512, 2048, 1, 1), "adjust_channel.0.bias": (512,)}
    shapes |= norm("adjust_channel.1", 512)
    shapes |= {f"{last}.weight": (2, 2048), f"{last}.bias": (2,)}
    return {f"backbone.{key}": shape for key, shape in shapes.items()}


def f3net() -> Shapes:
    names = ["_DCT_all", "_DCT_all_T"]
    names += [f"filters.{i}.{part}" for i in range(4) for part in ("base", "learnable")]
    return {f"FAD_head.{name}": (256, 256) for name in names} | xception(12)


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
    "commfor": lambda: community(64, 2),
    "bfree": lambda: dino(64, 2),
    "sbi": efficientnet_b4,
    "xception-faces": xception,
    "f3net": f3net,
}
TIMMS: dict[str, Callable[[State], State]] = {
    "sbi": sbi.in_timms_names,
    "xception-faces": deepfakebench.in_timms_names,
    "f3net": deepfakebench.in_timms_names,
}
"""Whose weights get timm's names before they are compared."""
WRAPPED = {
    "cnndetect": lambda state: {"model": state, "optimizer": {"state": {}}, "total_steps": 7},
    "safe": lambda state: {"model": state, "epoch": "best", "args": Namespace(lr=1e-3, gpu=0)},
    "freqnet": lambda state: {"model": {f"module.{k}": v for k, v in state.items()}},
    "bfree": lambda state: {"model": state},
    "sbi": lambda state: {"model": {f"net.{k}": v for k, v in state.items()}, "epoch": 7},
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
    """Vision transformers in two narrow layers; all else is as it is."""
    create = timm.create_model
    narrow = {"embed_dim": 64, "depth": 2, "num_heads": 1}

    def smaller(name: str, **options: Any) -> nn.Module:
        if name == univfd.TOWER:
            options |= narrow | {"patch_size": 56}
        if name in (commfor.VIT, bfree.VIT):
            options |= narrow
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


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sbi", [0.743308, 0.903188]),
        ("xception-faces", [-2501.787, -2480.502]),
        ("f3net", [123.6046, 123.7558]),
    ],
)
def test_face_networks_compute_what_their_authors_do(
    name: str, expected: list[float], saved: Saved
) -> None:
    """As above; of two outputs, the second less the first."""
    images = torch.tensor(np.random.RandomState(1).standard_normal((2, 3, 256, 256))).float()
    images = images[:, None] if name == "sbi" else images
    detector = load_published(name, saved(name))
    if name == "sbi":  # or nothing would be left of an image after so many layers
        for part in detector.net.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.data *= 1.3
    logits = detector.logits(images)
    torch.testing.assert_close(logits, torch.tensor(expected), rtol=1e-4, atol=2e-4)


class Planted:
    """Faces that are known; their landmarks are where `points` says."""

    name = "planted"

    def __init__(self, *boxes: tuple[int, int, int, int], points: np.ndarray | None = None):
        self.faces = [Face(box, 0.9, points) for box in boxes]

    def find(self, pixels: np.ndarray) -> list[Face]:
        return self.faces


def test_sbi_looks_at_all_large_faces_and_takes_the_worst(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.arange(200 * 300 * 3, dtype=np.uint32).reshape(200, 300, 3).astype(np.uint8)
    boxes = (100, 40, 180, 120), (0, 0, 64, 80), (250, 150, 260, 160)
    monkeypatch.setattr(cutting, "finder", lambda: Planted(*boxes))
    cut = cutting.boxed(pixels, sbi.MARGIN)
    assert [one.shape for one in cut] == [(101, 101, 3), (91, 73, 3)]  # the third is too small
    assert (cut[0] == pixels[30:131, 90:191]).all()
    detector = load_published("sbi", saved("sbi"))
    prepared = detector.prepare(pixels)
    assert prepared.shape == (2, 3, 380, 380)
    assert 0 <= prepared.min() <= prepared.max() <= 1
    both = [float(detector.logits(face[None, None])) for face in prepared]
    assert float(detector.logits(prepared[None])) == pytest.approx(max(both), rel=1e-4)
    monkeypatch.setattr(cutting, "finder", Planted)
    assert cutting.boxed(pixels, sbi.MARGIN)[0] is pixels


def test_faces_are_turned_upright(monkeypatch: pytest.MonkeyPatch) -> None:
    places = np.array(cutting.PLACES) * 2
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    points = places @ turn.T * 0.8 + [190, 20]
    matrix = cutting.similarity(points, places)
    np.testing.assert_allclose(points @ matrix[:, :2].T + matrix[:, 2], places, atol=1e-9)
    landmarks = np.zeros((68, 2), np.float32)
    landmarks[cutting.EYES_NOSE_MOUTH] = points
    pixels = np.zeros((240, 260, 3), np.uint8)
    for x, y in points.round().astype(int):
        pixels[y - 2 : y + 3, x - 2 : x + 3] = 255
    planted = Planted((40, 40, 160, 160), points=landmarks)
    monkeypatch.setattr(cutting, "finder", lambda: planted)
    face = cutting.aligned(pixels, 256)
    # A face of 112 pixels, 1.3 times as much of it, in 256.
    expected = (np.array(cutting.PLACES) - 56) * 256 / 112 / 1.3 + 128
    for x, y in expected.round().astype(int):
        assert face[y - 1 : y + 2, x - 1 : x + 2].min() > 200
    assert face.mean() < 5
    square = np.full((100, 100, 3), 77, np.uint8)  # a face already: as it is
    monkeypatch.setattr(cutting, "finder", lambda: Planted((20, 20, 80, 80), points=landmarks))
    assert (cutting.aligned(square, 256) == 77).all()


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


def vit_logits(state: State, patches: Tensor) -> Tensor:
    """Logits of timm's ViT with one head, from projected patches (N, n, width), by definition."""

    def normed(x: Tensor, name: str) -> Tensor:
        parts = [state[f"{name}.{part}"] for part in PARTS]
        return F.layer_norm(x, x.shape[-1:], *parts, eps=1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, *(state[f"{name}.{part}"] for part in PARTS))

    n, position = len(patches), state["pos_embed"]
    token = state["cls_token"].expand(n, 1, -1)
    if "reg_token" in state:  # without positions
        x = torch.cat([token, state["reg_token"].expand(n, -1, -1), patches + position], 1)
    else:
        x = torch.cat([token, patches], 1) + position
    for block in ("blocks.0", "blocks.1"):
        q, k, v = linear(normed(x, f"{block}.norm1"), f"{block}.attn.qkv").chunk(3, -1)
        attention = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        x = x + linear(attention, f"{block}.attn.proj") * state.get(f"{block}.ls1.gamma", 1)
        hidden = F.gelu(linear(normed(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
        x = x + linear(hidden, f"{block}.mlp.fc2") * state.get(f"{block}.ls2.gamma", 1)
    return linear(normed(x, "norm")[:, 0], "head")[:, 0]


def test_the_transformers_have_the_keys_of_the_published_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """How many tensors and numbers the published files hold is known."""
    monkeypatch.undo()
    with torch.device("meta"):
        nets = [commfor.CommFor(), timm.create_model(bfree.VIT, num_classes=1, img_size=504)]
    sizes = [(152, 21_811_969), (177, 86_526_721)]
    for net, shapes, size in zip(nets, (community(), dino()), sizes, strict=True):
        found = {key: tuple(value.shape) for key, value in net.state_dict().items()}
        assert found == shapes
        assert (len(found), sum(map(math.prod, found.values()))) == size


def normal(pixels: np.ndarray) -> np.ndarray:
    """(3, H, W), with ImageNet's mean and std."""
    scaled = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return scaled.transpose(2, 0, 1)


def test_commfor_resizes_to_440_and_crops(saved: Saved, astronaut: np.ndarray) -> None:
    detector = load_published("commfor", saved("commfor"))
    # 440 already: nothing is resized.
    as_it_is = detector.prepare(astronaut[:440])
    np.testing.assert_allclose(as_it_is, normal(astronaut[28:412, 64:448]), atol=1e-5)
    for shape in ((512, 337), (40, 30)):
        wide = astronaut[: shape[0], : shape[1]]
        tall = 440 * shape[0] // shape[1]
        bigger = np.asarray(Image.fromarray(wide).resize((440, tall), Image.Resampling.BILINEAR))
        top = round((tall - 384) / 2)
        expected = normal(bigger[top : top + 384, 28:412])
        np.testing.assert_allclose(detector.prepare(wide), expected, atol=1e-5)
    state = {k.removeprefix("vit."): v for k, v in weights_of(KEYS["commfor"]()).items()}
    weight, bias = (state[f"patch_embed.proj.{part}"] for part in PARTS)
    patches = F.conv2d(as_it_is[None], weight, bias, stride=16).flatten(2).transpose(1, 2)
    expected = vit_logits(state, patches)
    torch.testing.assert_close(detector.logits(as_it_is[None]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(512, 512), (560, 630), (300, 600)])
def test_bfree_averages_five_crops_of_the_grid_of_patches(
    shape: tuple[int, int], saved: Saved, astronaut: np.ndarray
) -> None:
    """The authors' way: the whole image projected, its patches repeated where they are too few."""
    pixels = np.tile(astronaut, (2, 2, 1))[: shape[0], : shape[1]]
    detector = load_published("bfree", saved("bfree"))
    prepared = detector.prepare(pixels)
    assert prepared.shape == (1 if shape == (512, 512) else 5, 3, 504, 504)
    state = weights_of(KEYS["bfree"]())
    weight, bias = (state[f"patch_embed.proj.{part}"] for part in PARTS)
    patches = F.conv2d(torch.tensor(normal(pixels)).float()[None], weight, bias, stride=14)
    patches = patches.repeat(1, 1, *(2 if n < 36 else 1 for n in patches.shape[2:]))
    down, right = (max(n // 14 - 36, 0) for n in shape)
    corners = [(0, 0), (0, right), (down, 0), (down, right)]
    logits = [
        vit_logits(state, patches[..., y : y + 36, x : x + 36].flatten(2).transpose(1, 2))
        for y, x in [(down // 2, right // 2), *corners]
    ]
    expected = torch.stack(logits).mean(0)
    torch.testing.assert_close(detector.logits(prepared[None]), expected, rtol=1e-4, atol=1e-4)


def test_bfree_repeats_what_is_small(astronaut: np.ndarray) -> None:
    # Four whole patches wide; lower than a patch, of which theirs makes nothing.
    repeated = np.tile(astronaut[:13, :56], (39, 9, 1))[:504, :504]
    np.testing.assert_allclose(
        bfree.prepare(astronaut[:13, :60]), normal(repeated)[None], atol=1e-5
    )


@pytest.fixture
def light(tmp_path: Path) -> str:
    """An ONNX file of sieve's shapes whose logit is the mean of what it gets, less 0.43."""
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["input", "axes"], ["mean"], keepdims=0),
            helper.make_node("Sub", ["mean", "bias"], ["logit"]),
        ],
        "light",
        [helper.make_tensor_value_info("input", 1, ["n", 3, 384, 384])],
        [helper.make_tensor_value_info("logit", 1, ["n"])],
        [
            helper.make_tensor("axes", 7, [3], [1, 2, 3]),
            helper.make_tensor("bias", 1, [], [sieve.BIAS]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(tmp_path / "light.onnx"))
    return str(tmp_path / "light.onnx")


def test_sieve_looks_twice_where_it_is_unsure(light: str, astronaut: np.ndarray) -> None:
    detector = load_published("sieve", light)
    assert (detector.name, detector.weights) == ("sieve", hash_files(light))
    assert (detector.threshold, detector.score(math.log(0.65 / 0.35))) == (
        0.65,
        pytest.approx(0.65),
    )
    wide = astronaut[:400, :501]
    resized, as_it_is = detector.prepare(wide)
    np.testing.assert_allclose(as_it_is, normal(wide[8:392, 58:442]), atol=1e-5)
    # 501 x 440 / 400 = 551.1; the crop begins at its middle, rounded down.
    larger = np.asarray(Image.fromarray(wide).resize((551, 440), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(resized, normal(larger[28:412, 83:467]), atol=1e-5)
    assert detector.prepare(astronaut[:100, :90]).shape == (1, 3, 384, 384)
    views = torch.zeros(4, 2, 3, 384, 384)
    for number, (first, second) in enumerate([(0.5, 0.7), (-1.0, 3.0), (2.0, 9.0), (-1.2, 9.0)]):
        views[number, 0], views[number, 1] = first, second
    # Scores of 0.62, 0.27, 0.88 and 0.23: the first two are unsure.
    expected = torch.tensor([0.6, 1.0, 2.0, -1.2])
    torch.testing.assert_close(detector.logits(views), expected, atol=2e-3, rtol=0)
    alone = detector.logits(views[:, :1])
    torch.testing.assert_close(alone, views[:, 0, 0, 0, 0], atol=2e-3, rtol=0)
    photos = [wide, astronaut[:100, :90], wide[::-1]]
    together = detector.score_pixels(photos)
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, detector.score_pixels(photos, batch_size=1), atol=1e-4)


def test_sieve_says_what_is_wrong_with_a_file(
    light: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"no graph")
    for name, said in [("absent", "no such file"), ("junk", "")]:
        with pytest.raises(GanscopeError, match=rf"^sieve:.*{name}\.onnx: {said}") as told:
            load_published("sieve", tmp_path / f"{name}.onnx")
        assert "\n" not in str(told.value)
    monkeypatch.setattr(sieve, "SIDE", 224)
    with pytest.raises(GanscopeError, match="takes images of 384 pixels, not of 224"):
        load_published("sieve", light)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(GanscopeError, match=r"need onnxruntime: pip install 'ganscope\[onnx\]'"):
        load_published("sieve", light)


class Host:
    """A web server of this machine: path -> bytes, and the paths that were asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.asked.append(self.path)
                body = host.files.get(self.path)
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.server.shutdown()
    host.server.server_close()


Published = Callable[..., bytes]


@pytest.fixture
def offered(host: Host, monkeypatch: pytest.MonkeyPatch) -> Published:
    """Put weights of a detector on that server, and its checksum and address among the sources."""

    def offer(name: str, body: bytes = b"", **changes: Any) -> bytes:
        if not body:
            kept = io.BytesIO()
            torch.save(WRAPPED.get(name, dict)(weights_of(KEYS[name]())), kept)
            body = kept.getvalue()
        host.files[f"/{name}"] = body
        said = {"web": f"{host.url}/{name}", "hub": "", "sha256": hashlib.sha256(body).hexdigest()}
        monkeypatch.setitem(SOURCES, name, dataclasses.replace(SOURCES[name], **(said | changes)))
        return body

    return offer


def kept_files(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}


def test_weights_are_downloaded_once_and_with_a_word_about_them(
    offered: Published, host: Host, tmp_path: Path, photos: list[np.ndarray]
) -> None:
    body = offered("tiny-ladeda")
    said = rf"tiny-ladeda: downloading WildRF.*\(12 kB; licence: research only\) from {host.url}"
    with pytest.warns(GanscopeWarning, match=said):
        detector = load_published("tiny-ladeda")
    assert detector.weights == hashlib.sha256(body).hexdigest()[:12]
    assert kept_files(tmp_path) == {"WildRF_Tiny_LaDeDa.pth"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load_published("tiny-ladeda")
    assert host.asked == ["/tiny-ladeda"]
    np.testing.assert_array_equal(again.score_pixels(photos), detector.score_pixels(photos))


def test_weights_in_an_archive_are_taken_out_of_it(
    offered: Published, host: Host, tmp_path: Path
) -> None:
    body = offered("bfree")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(SOURCES["bfree"].member, body)
        file.writestr("BFREE_dino2reg4/config.yaml", "arch: some")
    host.files["/bfree"] = archive.getvalue()
    with pytest.warns(GanscopeWarning, match="322 MB; licence: nonprofit use only"):
        detector = load_published("bfree")
    assert detector.weights == hashlib.sha256(body).hexdigest()[:12]
    assert kept_files(tmp_path) == {"model_epoch_best.pth"}


@pytest.mark.filterwarnings("ignore:.*downloading")
def test_another_file_than_the_pinned_one_is_refused_and_removed(
    offered: Published, host: Host, tmp_path: Path
) -> None:
    body = offered("tiny-ladeda")
    host.files["/tiny-ladeda"] = body + b"0"
    said = (
        r"tiny-ladeda: WildRF.* is damaged or was changed: its SHA-256, \w{64}, is not the pinned"
    )
    with pytest.raises(GanscopeError, match=said) as told:
        load_published("tiny-ladeda")
    assert "\n" not in str(told.value)
    assert kept_files(tmp_path) == set()
    host.files["/tiny-ladeda"] = body
    load_published("tiny-ladeda")
    kept = next((tmp_path / "cache").rglob("*.pth"))
    kept.write_bytes(b"spoilt on the disk")
    with pytest.raises(GanscopeError, match=said):
        load_published("tiny-ladeda")
    load_published("tiny-ladeda")
    assert kept.read_bytes() == body


@pytest.mark.filterwarnings("ignore:.*downloading")
def test_where_no_checksum_is_known_the_first_download_is_trusted(
    offered: Published, host: Host, tmp_path: Path
) -> None:
    body = offered("tiny-ladeda", sha256="")
    load_published("tiny-ladeda")
    recorded = next((tmp_path / "cache").rglob("WildRF_Tiny_LaDeDa.pth.sha256"))
    assert recorded.read_text().strip() == hashlib.sha256(body).hexdigest()
    recorded.with_suffix("").unlink()
    host.files["/tiny-ladeda"] = body + b"0"
    with pytest.raises(GanscopeError, match=f"not that of the first download, {recorded}"):
        load_published("tiny-ladeda")
    assert kept_files(tmp_path) == {recorded.name}
    host.files["/tiny-ladeda"] = body
    load_published("tiny-ladeda")


@pytest.mark.filterwarnings("ignore:.*downloading")
def test_offline_a_line_says_what_to_download_and_how_to_name_it(
    offered: Published, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered("npr", b"<!DOCTYPE html>")
    offered("bfree", b"no archive")
    offered("tiny-ladeda")
    host.files.pop("/tiny-ladeda")
    for name, reason, how in [
        ("npr", "a web page", "and"),
        ("bfree", "BadZipFile", "unzip BFREE_dino2reg4/model_epoch_best.pth and"),
        ("tiny-ladeda", "404", "and"),
    ]:
        said = rf"{name}: {SOURCES[name].file} is not to be had \(.*{reason}.*offline, download "
        said += rf"{host.url}/{name} elsewhere,? {how} name it, {name}:FILE$"
        with pytest.raises(GanscopeError, match=said) as told:
            load_published(name)
        assert "\n" not in str(told.value)
    host.server.shutdown()
    host.server.server_close()
    with pytest.raises(GanscopeError, match=r"URLError.*offline, download http.*tiny-ladeda:FILE"):
        load_published("tiny-ladeda")
    assert kept_files(tmp_path) == set()

    def offline(*_: Any, **__: Any) -> None:
        raise LocalEntryNotFoundError("cannot find the file, and outgoing traffic is disabled")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(download, "hf_hub_download", offline)
    url = "https://huggingface.co/OwensLab/commfor-model-384/resolve/6076002bf0d9"
    with pytest.raises(GanscopeError, match=rf"offline, download {url}.*name it, commfor:FILE"):
        load_published("commfor")


def test_files_of_the_hub_lie_in_its_cache_and_are_checked_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: list[np.ndarray]
) -> None:
    source = SOURCES["commfor"]
    root = tmp_path / "hub" / "models--OwensLab--commfor-model-384"
    blob = root / "blobs" / "b"
    link = root / "snapshots" / source.revision / source.file
    for folder in (blob.parent, link.parent):
        folder.mkdir(parents=True)

    def from_hub(repository: str, file: str, revision: str) -> str:
        assert (repository, file, revision) == (source.hub, source.file, source.revision)
        save_file(weights_of(KEYS["commfor"]()), blob)
        link.symlink_to(blob)
        return str(link)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(download, "hf_hub_download", from_hub)
    said = r"downloading model\.safetensors \(87 MB; licence: MIT\) from https://huggingface"
    with (
        pytest.warns(GanscopeWarning, match=said),
        pytest.raises(GanscopeError, match=r"commfor: model\.safetensors .*is not the pinned one"),
    ):
        load_published("commfor")
    assert not blob.exists()
    assert not link.is_symlink()
    from_hub(source.hub, source.file, source.revision)
    digest = hashlib.sha256(blob.read_bytes()).hexdigest()
    monkeypatch.setitem(SOURCES, "commfor", dataclasses.replace(source, sha256=digest))
    monkeypatch.delattr(download, "hf_hub_download")
    detector = load_published("commfor")
    assert detector.weights == digest[:12]
    assert np.isfinite(detector.score_pixels(photos)).all()


def test_univfd_alone_downloads_its_head(
    offered: Published, saved: Saved, photos: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand = load_published("univfd", saved("univfd"))
    offered("univfd")
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: by_hand.net.tower)
    with pytest.warns(GanscopeWarning, match="fc_weights"):
        detector = load_published("univfd")
    np.testing.assert_array_equal(detector.score_pixels(photos), by_hand.score_pixels(photos))


def test_addresses_name_a_revision_and_files_a_checksum() -> None:
    for name, source in SOURCES.items():
        assert source.licence
        assert source.page.startswith("https://")
        if not source.url:
            continue
        assert source.url.startswith("https://")
        trusted = ("cnndetect", "xception-faces", "f3net")  # on their first download
        assert bool(source.sha256) == (name not in trusted)
        assert re.fullmatch("([0-9a-f]{64})?", source.sha256)
        if name not in (*trusted, "bfree", "sieve"):
            assert re.search("/[0-9a-f]{40}/", source.url)


def test_a_name_alone_is_the_pinned_detector_unless_a_folder_is_called_so(
    offered: Published, tmp_path: Path, astronaut: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    offered("tiny-ladeda")
    corpus = tmp_path / "corpus"
    for label, flip in (("0_real", 1), ("1_fake", -1)):
        (corpus / label).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(astronaut[64 * i :][:64, : 64 * flip : flip]).save(
                corpus / label / f"{i}.png"
            )
    settings = BenchmarkSettings(
        corpora=(corpus,),
        detector=("tiny-ladeda",),
        out=tmp_path / "out",
        bootstrap=0,
        protocol="raw",
        device="cpu",
    )
    with pytest.warns(GanscopeWarning, match="downloading"):
        results = benchmark_detectors(settings)
    assert set(results["detector"]) == {"tiny-ladeda"}
    (tmp_path / "tiny-ladeda").mkdir()
    with pytest.raises(GanscopeError, match=r"tiny-ladeda: this folder holds no config\.json"):
        open_scorer("tiny-ladeda")
    with pytest.raises(GanscopeError, match="name a file behind tiny-ladeda:"):
        open_scorer("tiny-ladeda:")


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
