"""Published vision transformers: univfd, commfor, bfree."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from ganscope.detector.published import bfree, commfor, load_published, univfd
from ganscope.errors import GanscopeError
from ganscope.folders import hash_files

from .made_weights import (
    KEYS,
    PARTS,
    SMALL,
    Saved,
    State,
    clip,
    community,
    dino,
    normal,
    weights_of,
)


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
