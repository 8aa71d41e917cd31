"""Transformers read at several blocks, their adapters, and matrices kept as bytes."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from ganscope.detector.exported.loading import load_judge
from ganscope.detector.judging.heatmaps import heatmap
from ganscope.detector.model import Detector
from ganscope.detector.networks.architectures import build, load_pretrained, load_weights
from ganscope.detector.networks.lora import (
    LowRank,
    adapters_of,
    add_adapters,
    apply_adapters,
    merge_adapters,
)
from ganscope.detector.networks.transformer import BlockFeatures, usual_reads
from ganscope.errors import GanscopeError, GanscopeWarning
from ganscope.folders import from_bytes, to_bytes


def small(**arguments: Any) -> Any:
    torch.manual_seed(0)
    return build("vit:test_vit", size=32, **arguments)[0].eval()


def test_clip_is_read_where_its_adapters_were_made_for() -> None:
    reads, map_block = usual_reads(12, True)
    assert reads == [(3, "cls"), (5, "cls"), (5, "mean"), (7, "cls"), (9, "cls"), (9, "mean")]
    assert map_block == 7


def test_a_transformer_without_class_token_is_read_by_its_patches() -> None:
    assert {what for _, what in usual_reads(12, False)[0]} == {"mean"}


def test_features_are_those_of_the_blocks() -> None:
    """By hand: token by token through the blocks, layer norm without weights, and the head."""
    net = small(reads=[(0, "cls"), (1, "mean")], map_block=0)
    images = torch.randn(2, 3, 32, 32)
    backbone = net.backbone
    with torch.inference_mode():
        x = backbone.norm_pre(backbone._pos_embed(backbone.patch_embed(images)))
        after = []
        for block in backbone.blocks:
            x = block(x)
            after.append(x)

        def normal(tokens: torch.Tensor) -> torch.Tensor:
            return F.layer_norm(tokens, tokens.shape[-1:])

        skip = backbone.num_prefix_tokens
        local = normal(after[0][:, skip:])
        parts = [normal(after[0][:, 0]), normal(after[1][:, skip:].mean(1)), local.mean(1)]
        torch.testing.assert_close(net.features(images), torch.cat(parts, 1))
        torch.testing.assert_close(net(images), net.head(torch.cat(parts, 1))[:, 0])


def test_the_logit_is_the_mean_of_the_map_with_a_curved_head_too() -> None:
    net = small(hidden=8)
    torch.nn.init.normal_(net.curve[-1].weight)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        found = net.patch_logits(images)
        assert found.shape[1] > 1
        assert found.std((1, 2)).min() > 0
        torch.testing.assert_close(found.mean((1, 2)), net(images))


def test_what_follows_the_last_block_is_cut_off() -> None:
    whole = timm.create_model("test_vit", num_classes=0, img_size=32)
    depth = len(whole.blocks)
    net = small(reads=[(0, "cls")], map_block=0)
    assert len(net.backbone.blocks) == 1 < depth
    assert not any(key.startswith("backbone.norm.") for key in net.state_dict())
    state = net.of_backbone(whole.state_dict())
    assert set(state) == {k for k in net.state_dict() if not k.startswith("head.")}


@pytest.mark.parametrize("reads", [[(99, "cls")], [(-1, "cls")]])
def test_blocks_that_are_not_there_are_refused(reads: list) -> None:
    with pytest.raises(GanscopeError, match="cannot be read at several blocks"):
        small(reads=reads)
    with pytest.raises(GanscopeError, match="vit:resnet18 cannot be read"):
        build("vit:resnet18")
    with pytest.raises(GanscopeError, match="did you mean"):
        build("vit:vit_base_patch16_clip_224x")


def test_weights_of_a_whole_transformer_and_of_a_detector_both_start_one(tmp_path: Path) -> None:
    whole = timm.create_model("test_vit", num_classes=10, img_size=32)
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    net = small(reads=[(0, "cls")], map_block=0)
    load_pretrained(net, str(tmp_path / "whole.safetensors"))
    weight = net.backbone.blocks[0].attn.qkv.weight
    torch.testing.assert_close(weight, whole.blocks[0].attn.qkv.weight)
    detector = Detector.create("vit:test_vit", size=32)
    detector.save(tmp_path / "run")
    again = Detector.create(
        "vit:test_vit", size=32, pretrained=str(tmp_path / "run/model.safetensors")
    )
    theirs = detector.net.backbone.pos_embed
    torch.testing.assert_close(again.net.backbone.pos_embed, theirs, atol=1e-3, rtol=1e-3)
    other = timm.create_model("test_vit2", num_classes=0)
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(GanscopeError, match="keys do not fit"):
        load_pretrained(net, str(tmp_path / "other.safetensors"))


def test_adapters_begin_as_nothing_and_end_in_the_weights(tmp_path: Path) -> None:
    net, images = small(), torch.randn(2, 3, 32, 32)
    before = net(images).detach()
    add_adapters(net, rank=3)
    torch.testing.assert_close(net(images), before)
    learning = [name for name, p in net.named_parameters() if p.requires_grad and "blocks" in name]
    assert not any("attn.qkv.layer" in name for name in learning)
    for module in net.modules():
        if isinstance(module, LowRank):
            torch.nn.init.normal_(module.B, std=0.1)
    changed = net(images).detach()
    assert (changed - before).abs().max() > 1e-3
    save_file({k: v.contiguous() for k, v in adapters_of(net).items()}, tmp_path / "a.safetensors")
    merge_adapters(net)
    assert not any(isinstance(module, LowRank) for module in net.modules())
    torch.testing.assert_close(net(images), changed, atol=1e-5, rtol=1e-4)
    fresh = small()
    apply_adapters(fresh, load_file(tmp_path / "a.safetensors"), "a.safetensors")
    torch.testing.assert_close(fresh(images), changed, atol=1e-5, rtol=1e-4)


def test_adapters_on_the_last_blocks_only() -> None:
    net = small()
    add_adapters(net, rank=2, blocks=1)
    adapted = {key.split(".")[1] for key in adapters_of(net) if key.endswith(".A")}
    assert adapted == {str(len(net.backbone.blocks) - 1)}


def test_adapters_of_another_network_are_refused() -> None:
    net = small()
    add_adapters(net, rank=2)
    state = adapters_of(net)
    fresh = small()
    for broken, why in (
        ({}, "holds no adapters"),
        ({**state, "blocks.77.attn.qkv.A": torch.zeros(2, 4)}, "unknown: blocks.77"),
        ({k: v for k, v in state.items() if k != "blocks.0.attn.qkv.B"}, "does not fit"),
        ({**state, "blocks.0.attn.qkv.A": torch.zeros(2, 5)}, "does not fit a matrix"),
        ({**state, "head.weight": torch.zeros(1, 7)}, "its classifier is for"),
    ):
        with pytest.raises(GanscopeError, match=f"mine: .*{why}"):
            apply_adapters(fresh, broken, "mine")


def test_bytes_and_back_within_half_a_step() -> None:
    torch.manual_seed(0)
    state = {"large": torch.randn(300, 400), "small": torch.randn(3, 4), "row": torch.randn(99999)}
    packed = to_bytes(state)
    assert set(packed) == {"large", "large.scale"}
    assert packed["large"].dtype == torch.int8
    back = from_bytes({**state, **packed}, "weights")
    step = state["large"].abs().amax(1, keepdim=True) / 127
    assert ((back["large"] - state["large"]).abs() <= step / 2 + 1e-7).all()
    assert set(back) == set(state)


@pytest.mark.parametrize("fault", ["missing", "short", "zero"])
def test_a_matrix_of_bytes_without_its_scales_is_an_error(tmp_path: Path, fault: str) -> None:
    detector = Detector.create("vit:vit_tiny_patch16_224", reads=[(0, "cls")], map_block=0)
    detector.config["storage"] = "int8"
    detector.save(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    (name, *_) = [key for key in state if key.endswith(".scale")]
    assert state[name.removesuffix(".scale")].dtype == torch.int8
    images = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        assert Detector.load(tmp_path)(images) == pytest.approx(
            detector.eval()(images).item(), abs=0.05
        )
    if fault == "missing":
        del state[name]
    else:
        state[name] = (
            state[name][:-1].clone() if fault == "short" else torch.zeros_like(state[name])
        )
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(GanscopeError, match=r"is damaged .* scales"):
        Detector.load(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["storage"] == "int8"


def test_where_a_picture_is_fake_moves_no_score() -> None:
    net = small(where=0)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        plain = net(images)
        _, patches = net.read(images, [0])
        net.where_bias.normal_()
        local, logits = net.where_logits(images)
        expected = (net.where(patches)[..., 0] + net.where_bias).view_as(local)
        torch.testing.assert_close(local, expected)
        torch.testing.assert_close(logits, plain)
        torch.testing.assert_close(net.patch_logits(images).mean((1, 2)), plain)


def test_a_heatmap_shows_the_places_that_the_layer_means() -> None:
    """A layer that tells bright patches from dark ones: the bright half is hot."""
    detector = Detector.create("vit:test_vit", size=32, where=0).eval()
    net: Any = detector.net
    with torch.no_grad():
        halves = torch.zeros(1, 3, 32, 32)
        halves[..., 16:] = 1
        _, patches = net.read(detector.normalised(halves), [0])
        grid = patches[0].unflatten(0, net._grid(halves))
        side = grid.shape[1] // 2
        net.where.weight[0] = 20 * (grid[:, side:].mean((0, 1)) - grid[:, :side].mean((0, 1)))
    pixels = np.zeros((48, 96, 3), np.uint8)
    pixels[:, 48:] = 255
    heat = heatmap(detector, pixels)
    assert heat.shape == (48, 96)
    assert heat[:, 64:].mean() > heat[:, :32].mean() + 0.1


def test_weights_of_another_image_size_are_resampled(tmp_path: Path) -> None:
    whole = timm.create_model("test_vit", num_classes=0, img_size=48)
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    net = small()
    load_pretrained(net, str(tmp_path / "whole.safetensors"))
    assert net(torch.randn(1, 3, 32, 32)).isfinite().all()


def second_reader(steps: dict[str, str] | None = None, **arguments: Any) -> Detector:
    """A detector whose backbone has moved from `plain` by adapters, with a trained classifier."""
    torch.manual_seed(1)
    detector = Detector.create("vit:test_vit", size=32, beside=8, **arguments).eval()
    detector.config |= {"steps": steps} if steps else {}
    net: Any = detector.net
    with torch.no_grad():
        net.plain.load_state_dict(net.backbone.state_dict())
        for block in net.backbone.blocks:
            rank_two = torch.randn(block.mlp.fc1.out_features, 2) @ torch.randn(2, net.width)
            block.mlp.fc1.weight += 0.02 * rank_two
            block.norm1.weight += 0.1
        net.beside[2].weight.normal_()
    return detector


def test_a_second_reading_sees_the_backbone_as_it_was() -> None:
    detector, images = second_reader(), torch.rand(3, 3, 32, 32)
    net: Any = detector.net
    with torch.inference_mode():
        x = detector.normalised(images)
        tuned, untouched = net.features(x), net.read(x, backbone=net.plain)[0]
        assert not torch.allclose(tuned, untouched, atol=1e-2)
        expected = net.classify(tuned) + net.beside(untouched).squeeze(1)
        torch.testing.assert_close(detector(images), expected)
        torch.testing.assert_close(net.patch_logits(x).mean((1, 2)), expected)


def test_blocks_of_both_backbones_say_where(tmp_path: Path) -> None:
    """The layer sees the patches after each block that it was told, in that order."""
    about = {"where": [1, 0], "where_plain": [1]}
    detector, images = second_reader(**about), torch.rand(2, 3, 32, 32)
    net: Any = detector.net
    with torch.inference_mode():
        x = detector.normalised(images)
        blocks = [(net.backbone, 1), (net.backbone, 0), (net.plain, 1)]
        seen = [net.read(x, [block], backbone)[1] for backbone, block in blocks]
        assert not any(torch.allclose(seen[0], other, atol=0.1) for other in seen[1:])
        net.where_bias.normal_()
        shares = net.where.weight[0].split(net.width)
        expected = sum(one @ part for one, part in zip(seen, shares, strict=True)) + net.where_bias
        local, logits = net.where_logits(x)
        torch.testing.assert_close(local, expected.view_as(local))
        torch.testing.assert_close(logits, detector(images))
        torch.testing.assert_close(net.read_places(x)[1], local)
    detector.save(tmp_path)
    again = Detector.load(tmp_path).local_logits(np.zeros((1, 32, 32, 3), np.uint8))[0]
    mine = detector.local_logits(np.zeros((1, 32, 32, 3), np.uint8))[0]
    np.testing.assert_allclose(again, mine, atol=0.02)


def test_a_backbone_of_its_own_says_where(tmp_path: Path) -> None:
    """It moves no score, begins as the untouched one, and is kept as the way from that."""
    detector, images = second_reader(where_own=[2, 0]), torch.rand(2, 3, 32, 32)
    net: Any = detector.net
    x = detector.normalised(images)
    with torch.inference_mode():
        for mine, its in zip(net.local.parameters(), net.plain.parameters(), strict=True):
            mine.copy_(its)
        before = detector(images)
        net.local.blocks[0].mlp.fc1.weight[3] += 1
        about = {"norm": False, "intermediates_only": True, "output_fmt": "NLC"}
        after = net.local.forward_intermediates(x, indices=[0, 2], **about)
        seen = [F.layer_norm(patches, (net.width,)) for patches in after]
        shares = net.where.weight[0].split(net.width)
        expected = sum(one @ part for one, part in zip(seen, shares, strict=True))
        local, logits = net.where_logits(x)
        torch.testing.assert_close(local, expected.view_as(local))
        torch.testing.assert_close(net.own_places(x), local)
        torch.testing.assert_close(logits, before)
    detector.config["steps"] = {f"net.{one}.": "net.plain." for one in ("backbone", "local")}
    detector.save(tmp_path)
    again: Any = Detector.load(tmp_path).net
    mine, its = (one.local.state_dict() for one in (net, again))
    for name in mine:
        torch.testing.assert_close(its[name], mine[name], atol=2e-3, rtol=2e-3)
    assert again.local.cls_token.data_ptr() == again.plain.cls_token.data_ptr()  # kept once


def test_a_backbone_of_its_own_begins_as_the_weights_that_were_named() -> None:
    whole = timm.create_model("test_vit", num_classes=0, img_size=32)
    net: Any = small(where_own=[1])
    load_weights(net, whole.state_dict(), "here")
    torch.testing.assert_close(net.local.state_dict(), net.backbone.state_dict())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"where_own": [9]}, "blocks"),
        ({"where": [0, 9], "beside": 8}, "blocks"),
        ({"where": [0], "where_plain": [0]}, "beside"),
        ({"where_plain": [0], "beside": 8}, "beside and where"),
    ],
)
def test_blocks_that_are_not_there_say_nothing_of_places(
    arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises((ValueError, GanscopeError), match=said):
        small(**arguments)


def test_a_second_reading_begins_as_nothing_and_with_the_same_weights(tmp_path: Path) -> None:
    first = small()
    path = tmp_path / "base.safetensors"
    save_file(
        {
            k.removeprefix("backbone."): v
            for k, v in first.state_dict().items()
            if k.startswith("backbone.")
        },
        path,
    )
    net: Any = build("vit:test_vit", size=32, beside=8)[0].eval()
    load_pretrained(net, str(path))
    for mine, theirs in zip(net.backbone.parameters(), net.plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(net(images), net.classify(net.features(images)))


def test_a_second_reading_that_is_left_out_is_told(tmp_path: Path) -> None:
    detector = second_reader()
    save_file(detector.net.state_dict(), tmp_path / "two.safetensors")
    with pytest.warns(GanscopeWarning, match="its second reading, .* is left out"):
        load_pretrained(small(), str(tmp_path / "two.safetensors"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = build("vit:test_vit", size=32, beside=8)[0]
        load_pretrained(net, str(tmp_path / "two.safetensors"))


def test_only_the_way_from_the_other_backbone_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ganscope.folders.LARGE", 2**12)
    detector = second_reader(steps={"net.backbone.": "net.plain."})
    with torch.no_grad():
        detector.net.backbone.blocks[1].attn.proj.weight += 1e-3 * torch.randn(64, 64)  # type: ignore[union-attr, index]
    detector.save(tmp_path / "run")
    kept = load_file(tmp_path / "run" / "model.safetensors")
    assert kept["net.backbone.blocks.0.mlp.fc1.weight.A"].shape == (2, 64)  # all that there is
    assert kept["net.backbone.blocks.1.attn.proj.weight.A"].shape == (32, 64)  # the most
    assert "net.backbone.blocks.0.norm1.weight" in kept
    assert "net.backbone.blocks.0.attn.qkv.weight" not in kept  # as it was
    images = torch.rand(2, 3, 32, 32)
    again = Detector.load(tmp_path / "run")
    with torch.inference_mode():
        torch.testing.assert_close(again(images), detector(images), atol=2e-2, rtol=0)
        changed = again.net.backbone.blocks[0].mlp.fc1.weight  # type: ignore[union-attr, index]
        plain = again.net.plain.blocks[0].mlp.fc1.weight  # type: ignore[union-attr, index]
        assert (changed - plain).abs().max() > 0.02


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda kept, name: kept.pop(f"{name}.A"), "half there"),
        (lambda kept, name: kept.update({f"{name}.A": torch.ones(31, 64)}), "do not fit"),
    ],
)
def test_steps_that_do_not_fit_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Any, said: str
) -> None:
    monkeypatch.setattr("ganscope.folders.LARGE", 2**12)
    second_reader(steps={"net.backbone.": "net.plain."}).save(tmp_path)
    kept = load_file(tmp_path / "model.safetensors")
    harm(kept, "net.backbone.blocks.0.mlp.fc1.weight")
    save_file(kept, tmp_path / "model.safetensors")
    with pytest.raises(GanscopeError, match=said):
        Detector.load(tmp_path)


def test_a_processor_made_for_bf16_judges_in_it_and_exactly_where_in_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = Detector.create(
        "vit:vit_tiny_patch16_224", reads=[(0, "cls"), (1, "mean")], map_block=1, beside=4
    )
    net = detector.net
    assert isinstance(net, BlockFeatures)
    with torch.no_grad():
        net.head.weight *= 100
        net.beside[2].weight.normal_()
    detector.save(tmp_path / "d")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    judges = []
    for amx in (True, False):
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda amx=amx: {"amx_bf16": amx}, raising=False
        )
        judge = load_judge(str(tmp_path / "d"), "torch", "cpu")
        judge.prepare("cpu")
        judges.append(judge)
    quick, plain = judges
    exact = Detector.load(tmp_path / "d").eval().logits(pixels)
    assert np.array_equal(plain.logits(pixels), exact)
    assert np.array_equal(quick.exact_logits(pixels), exact)
    assert quick.logits(pixels) == pytest.approx(exact, abs=0.3)
    assert not np.array_equal(quick.logits(pixels), exact)
    assert (quick.margin > 0, plain.margin) == (True, 0)
    assert np.array_equal(quick.local_logits(pixels)[1], plain.local_logits(pixels)[1])
    assert list(quick.state_dict()) == list(plain.state_dict())
    assert all(one.dtype == torch.float32 for one in quick.state_dict().values())
