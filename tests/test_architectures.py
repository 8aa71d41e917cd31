"""The detectors' networks: shapes, what they see, and weights from files."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from ganscope.detector.networks.architectures import build, detectors, load_pretrained
from ganscope.detector.networks.convolutional import neighbouring_pixel_residual
from ganscope.errors import GanscopeError

SMALL = {"cnn": {"width": 8}, "patch": {"width": 8}, "timm:test_vit": {"size": 32}}


@pytest.mark.parametrize("name", ["cnn", "npr", "patch", "lite", "timm:resnet18", "timm:test_vit"])
def test_a_logit_an_image_whatever_the_batch(name: str) -> None:
    torch.manual_seed(0)
    net, defaults = build(name, **SMALL.get(name, {}))
    net.train()
    size = 32 if name != "npr" else 64
    with torch.no_grad():  # batch norm now knows something
        net(torch.randn(8, 3, size, size))
    net.eval()
    images = torch.randn(3, 3, size, size)
    with torch.inference_mode():
        logits = net(images)
        alone = torch.cat([net(image[None]) for image in images])
    assert logits.shape == (3,)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, alone, atol=1e-4, rtol=1e-4)
    assert len(defaults.mean) == len(defaults.std) == 3
    assert net.gradcam_layers()


def test_default_sizes() -> None:
    sizes = {name: build(name)[1].size for name in ("cnn", "npr", "patch", "lite", "timm:resnet18")}
    assert sizes == {"cnn": 64, "npr": 128, "patch": 128, "lite": 128, "timm:resnet18": 224}


@pytest.mark.parametrize("name", ["cnn", "npr", "patch", "lite", "timm:resnet10t"])
def test_the_logit_is_the_mean_of_the_map(name: str) -> None:
    net = build(name)[0].eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        logits, found = net(images), net.patch_logits(images)
    assert min(found.shape[1:]) > 1
    torch.testing.assert_close(logits, found.mean((1, 2)))


def test_the_map_of_fused_networks() -> None:
    about = {"size": 64, "mean": [0.5] * 3, "std": [0.5] * 3}
    parts = [
        {"architecture": "patch", "arguments": {"width": 8}, "input": about},
        {"architecture": "timm:resnet10t", "arguments": {}, "input": about},
    ]
    net: Any = build("fused", parts=parts)[0].eval()
    with torch.inference_mode():
        net.weights.copy_(torch.tensor([2.0, 0.5]))
        net.bias.fill_(-1)
        images = torch.rand(2, 3, 64, 64)
        logits, found = net(images), net.patch_logits(images)
        texture = net.networks[0].patch_logits(images * 2 - 1)
    assert found.shape == texture.shape
    torch.testing.assert_close(logits, found.mean((1, 2)))
    both = torch.stack([found.flatten(), texture.flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.5
    other = [parts[0], parts[1] | {"input": about | {"size": 32}}]
    assert not build("fused", parts=other)[0].has_map


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "test_convnext", "test_vit"])
def test_backbones_that_do_more_than_average_have_no_map(name: str) -> None:
    net = build(f"timm:{name}")[0].eval()
    assert not net.has_map
    assert net.patch_logits(torch.randn(1, 3, 64, 64)) is None


def test_patch_sees_nine_by_nine_pixels() -> None:
    torch.manual_seed(0)
    net = build("patch", width=8)[0].eval()
    image = torch.randn(1, 3, 41, 41, requires_grad=True)
    logits = net.patch_logits(image)
    logits[0, 2, 5].backward()
    assert image.grad is not None
    seen = image.grad.abs().sum((0, 1)).nonzero()
    low, high = seen.min(0).values.tolist(), seen.max(0).values.tolist()
    assert low >= [4 * 2, 4 * 5]
    assert high <= [4 * 2 + 8, 4 * 5 + 8]
    assert logits.shape == (1, 9, 9)
    assert 4 * 8 + 8 < 41  # the last position still lies inside


def test_residual_is_what_nearest_upsampling_leaves() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    expected = torch.tensor([[0.0, 1], [4, 5]]).repeat(2, 2)
    torch.testing.assert_close(neighbouring_pixel_residual(x)[0, 0], expected)
    doubled = torch.rand(1, 3, 5, 5).repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert neighbouring_pixel_residual(doubled).abs().max() == 0
    assert neighbouring_pixel_residual(torch.rand(1, 3, 7, 9)).shape == (1, 3, 6, 8)


def test_lite_keeps_the_full_resolution_in_its_stem() -> None:
    halved, whole = build("lite", stem_stride=2)[0], build("lite")[0]
    image = torch.randn(1, 3, 64, 64)
    assert halved.backbone.conv_stem(image).shape[-1] == 32
    assert whole.backbone.conv_stem(image).shape[-1] == 64


def test_a_transformer_is_built_for_the_size_asked_for() -> None:
    net, defaults = build("timm:test_vit", size=48)
    assert defaults.size == 48
    assert net.eval()(torch.randn(2, 3, 48, 48)).shape == (2,)


@pytest.mark.parametrize(
    ("name", "said"), [("pach", "'patch'"), ("timm:resnet5x", "'resnet50'"), ("resnet18", "timm:")]
)
def test_unknown_names_are_told_the_nearest(name: str, said: str) -> None:
    with pytest.raises(GanscopeError, match=said):
        build(name)
    with pytest.raises(GanscopeError, match="unexpected keyword"):
        build("cnn", widht=3)


def test_every_architecture_says_what_it_is() -> None:
    assert all((builder.__doc__ or "").strip() for builder in detectors.values())


def test_pretrained_weights_of_timm_without_their_classifier(tmp_path: Path) -> None:
    source = timm.create_model("resnet18", num_classes=10)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "w.pth")
    net = build("timm:resnet18")[0]
    head = net.backbone.fc.weight.clone()
    load_pretrained(net, str(tmp_path / "w.pth"))
    torch.testing.assert_close(net.backbone.conv1.weight, source.conv1.weight)
    torch.testing.assert_close(net.backbone.fc.weight, head)


def test_pretrained_weights_of_an_own_detector(tmp_path: Path) -> None:
    source, net = build("cnn", width=8)[0], build("cnn", width=8)[0]
    state = {f"net.{key}": value.half() for key, value in source.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    load_pretrained(net, str(tmp_path / "model.safetensors"))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(net.eval()(images), source.eval()(images), atol=1e-2, rtol=1e-2)


def test_pretrained_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    net = build("cnn", width=8)[0]
    state = net.state_dict()
    state["stranger.weight"] = torch.zeros(1)
    del state["features.2.weight"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(GanscopeError, match=r"missing: features\.2.*network: stranger\.weight"):
        load_pretrained(net, str(tmp_path / "w.safetensors"))
    save_file(build("cnn", width=4)[0].state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(GanscopeError, match=r"another shape: features\.0\.bias"):
        load_pretrained(net, str(tmp_path / "w.safetensors"))


def test_pretrained_mistakes_of_the_user(tmp_path: Path) -> None:
    net = build("cnn", width=8)[0]
    (tmp_path / "junk.pth").write_bytes(b"no weights at all")
    (tmp_path / "junk.safetensors").write_bytes(b"no weights at all")
    for weights, said in [
        ("hub", "no weights"),
        (str(tmp_path / "absent.pth"), "no such file"),
        (str(tmp_path / "junk.pth"), "junk.pth"),
        (str(tmp_path / "junk.safetensors"), "cannot be read"),
    ]:
        with pytest.raises(GanscopeError, match=said):
            load_pretrained(net, weights)


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    torch.save({"weight": torch.nn.Linear(1, 1)}, tmp_path / "w.pth")
    with pytest.raises(GanscopeError, match="plain weights"):
        load_pretrained(build("cnn", width=8)[0], str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    "name",
    ["lite", "timm:resnet10t", "timm:test_vit", "timm:test_convnext", "timm:test_efficientnet"],
)
def test_a_new_backbone_begins_undecided(name: str) -> None:
    """timm gives EfficientNets with one output a classifier whose logits begin at +-10."""
    torch.manual_seed(0)
    net = build(name)[0].eval()
    logits = net(torch.randn(8, 3, 64, 64) if "vit" not in name else torch.randn(8, 3, 160, 160))
    assert logits.abs().max() < 1.5
    assert logits.std() > 0
