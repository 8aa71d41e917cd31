"""The finetune recipe: what is cut, packed, drawn and changed on the device, and learned."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from commands import side_by_side
from test_training import KillAfter, Killed, make_corpus

from ganscope.config import TrainDetectorSettings
from ganscope.detector.model import Detector, load_detector
from ganscope.detector.networks.lora import adapters_of, apply_adapters, merge_adapters
from ganscope.detector.networks.transformer import BlockFeatures
from ganscope.detector.training import finetune
from ganscope.detector.training import pack as packing
from ganscope.detector.training.device_augmentation import (
    augment,
    blur,
    colour,
    cut_out,
    draw,
    jpeg,
    nothing,
)
from ganscope.detector.training.finetune import GroupSampler, prepare_adapters
from ganscope.detector.training.pack import (
    KINDS,
    PackViews,
    cut_views,
    read_pack,
    side_for,
    write_pack,
)
from ganscope.detector.training.recipes import train_detector
from ganscope.errors import GanscopeError, GanscopeWarning, ImageError

pytestmark = pytest.mark.filterwarnings("ignore:the backbone is random")


def settings(corpus: Path, out: Path, **changes: Any) -> TrainDetectorSettings:
    plain = TrainDetectorSettings(
        corpora=(corpus,),
        detector="vit:test_vit",
        recipe="finetune",
        out=out,
        size=32,
        steps=30,
        batch_size=16,
        rank=4,
        learning_rate=3e-3,
        degrade=0.0,
        device="cpu",
    )
    return replace(plain, **changes)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus") / "c"
    return make_corpus(root, {"real": 60, "a": 40, "b": 40}, trace=60.0)


# What is learned


def test_adapters_learn_a_planted_trace(corpus: Path, tmp_path: Path) -> None:
    with pytest.warns(GanscopeWarning, match="the backbone is random"):
        run = train_detector(settings(corpus, tmp_path / "run", steps=120))
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["val"]["overall"]["auroc"]["value"] > 0.95
    log = pd.read_csv(run / "losses.csv")
    assert log["epoch"].tolist() == [1, 2, 3, 4, 5]
    assert log["step"].tolist() == [24, 48, 72, 96, 120]
    assert log["loss"].iloc[-1] < log["loss"].iloc[0]
    assert (log["views_per_second"] > 0).all()
    trained = load_detector(str(run))
    assert trained.config["training"]["steps_run"] == 120
    assert "Adapters of rank 4" in trained.card
    torch.manual_seed(0)
    before = Detector.create("vit:test_vit", size=32).net.state_dict()
    after = trained.net.state_dict()
    assert set(before) == set(after)  # merged
    for name, moves in (("blocks.0.attn.qkv.weight", True), ("patch_embed.proj.weight", False)):
        same = torch.allclose(before[f"backbone.{name}"], after[f"backbone.{name}"], atol=1e-3)
        assert same != moves, name
    left = {path.name for path in run.iterdir()}
    assert left == {
        "README.md",
        "config.json",
        "learned.npz",
        "loss.png",
        "losses.csv",
        "metrics.json",
        "model.safetensors",
        "roc.png",
        "scores.csv",
        "settings.json",
    }


def test_a_soup_is_the_mean_of_its_fine_tunings(corpus: Path, tmp_path: Path) -> None:
    run = train_detector(settings(corpus, tmp_path / "run", steps=4, soup=2))
    parts = [load_detector(str(run / f"seed-{seed}")).net.state_dict() for seed in (0, 1)]
    soup = load_detector(str(run)).net.state_dict()
    moved = 0
    for name, value in soup.items():
        mean = (parts[0][name] + parts[1][name]) / 2
        torch.testing.assert_close(value, mean, atol=1e-3, rtol=1e-3)  # kept in half precision
        moved += not torch.equal(parts[0][name], parts[1][name])
    assert moved


def test_a_killed_run_ends_like_one_that_was_not(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = settings(corpus, tmp_path / "whole", degrade=1.0, hidden=8)
    whole = train_detector(wish)
    monkeypatch.setattr(finetune, "CHECKPOINT_SECONDS", 0.0)
    wish = replace(wish, out=tmp_path / "killed")
    with pytest.raises(Killed):
        train_detector(wish, KillAfter(3 + 17))  # type: ignore[arg-type]
    saved = torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)
    assert 0 < saved["step"] < 30
    with pytest.raises(GanscopeError, match="--rank"):
        train_detector(replace(wish, rank=8))
    killed = train_detector(wish)
    for name in ("model.safetensors", "scores.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    logs = [pd.read_csv(run / "losses.csv") for run in (whole, killed)]
    pd.testing.assert_frame_equal(*(log.drop(columns="views_per_second") for log in logs))


def test_two_processes_learn_what_one_does(corpus: Path, tmp_path: Path) -> None:
    """Two processes with half the batch each see the same views and average their gradients."""
    same = {"steps": 8, "degrade": 1.0, "precision": "fp32"}
    one = train_detector(settings(corpus, tmp_path / "one", **same))
    two = settings(corpus, tmp_path / "two", **same, batch_size=8)
    assert side_by_side(lambda: train_detector(two)) == [0, 0]
    logs = [pd.read_csv(run / "losses.csv") for run in (one, tmp_path / "two")]
    columns = ["epoch", "step", "loss", "val_loss"]
    pd.testing.assert_frame_equal(logs[0][columns], logs[1][columns], rtol=1e-3)


@pytest.mark.parametrize(
    ("told", "amx", "detector", "taken"),
    [
        ("auto", True, "vit:test_vit", "bf16"),
        ("auto", False, "vit:test_vit", "fp32"),
        ("fp32", True, "vit:test_vit", "fp32"),
        ("auto", True, "cnn", "fp32"),
    ],
)
def test_transformers_learn_in_bf16_where_a_cpu_is_made_for_it(
    monkeypatch: pytest.MonkeyPatch, told: str, amx: bool, detector: str, taken: str
) -> None:
    known = {"amx_bf16": amx}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    wish = TrainDetectorSettings(detector=detector, precision=told)
    assert finetune.precision_of(wish, torch.device("cpu")) == taken


def test_minutes_end_a_training(corpus: Path, tmp_path: Path) -> None:
    run = train_detector(settings(corpus, tmp_path / "run", steps=None, minutes=0.02))
    log = pd.read_csv(run / "losses.csv")
    assert 1 <= log["step"].iloc[-1] < 500
    assert log["epoch"].iloc[-1] == 5


def test_without_a_budget_epochs_count(corpus: Path, tmp_path: Path) -> None:
    run = train_detector(settings(corpus, tmp_path / "run", steps=None, epochs=1, batch_size=32))
    images = json.loads((run / "metrics.json").read_text())["images"]["train"]
    steps = load_detector(str(run)).config["training"]["steps_run"]
    assert steps == round(sum(images.values()) / 32)


def test_it_starts_from_a_detector_of_its_architecture(corpus: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    other = Detector.create("vit:test_vit", size=32)
    other.save(tmp_path / "other")
    for name in ("other", "other/model.safetensors"):
        wish = settings(corpus, tmp_path / "run", pretrained=str(tmp_path / name))
        started = finetune.create(wish).net.state_dict()
        for key, value in other.net.state_dict().items():
            torch.testing.assert_close(started[key], value, atol=1e-3, rtol=1e-3)
    cnn = Detector.create("cnn", size=32)
    cnn.save(tmp_path / "cnn")
    with pytest.raises(GanscopeError, match="a cnn detector, not a vit:test_vit"):
        train_detector(settings(corpus, tmp_path / "run", pretrained=str(tmp_path / "cnn")))
    with pytest.raises(GanscopeError, match="default: a clip detector, not a vit"):
        train_detector(settings(corpus, tmp_path / "run", pretrained="default"))


def test_what_does_not_go_with_it_is_said(corpus: Path, tmp_path: Path) -> None:
    for changes, said in (
        ({"detector": "cnn"}, "cnn is no transformer read at several blocks; take --detector clip"),
        ({"detector": "timm:test_vit"}, "timm:test_vit is no transformer"),
        ({"detector": "clpi"}, "did you mean 'clip'"),
        ({"last_blocks": 9}, "--last-blocks 9: vit:test_vit has"),
        ({"patience": 2}, "--patience: --recipe finetune has no use for it"),
        ({"pairs": 0.5}, "--pairs: --recipe finetune has no use for it"),
        ({"recipe": "full"}, "--rank: --recipe full has no use for it"),
        (
            {"recipe": "frozen-linear", "learning_rate": None},
            "--rank: --recipe frozen-linear has no use",
        ),
    ):
        with pytest.raises(GanscopeError, match=said):
            train_detector(settings(corpus, tmp_path / "run", **changes))
        assert not (tmp_path / "run").exists()
    for changes, said in (
        ({"steps": 3, "minutes": 1.0}, "name one budget"),
        ({"layer_decay": 1.5}, "--layer-decay must be at most 1"),
        ({"rank": 0}, "--rank must be at least 1"),
    ):
        with pytest.raises(GanscopeError, match=said):
            TrainDetectorSettings(recipe="finetune", **changes)


# What learns


def test_only_the_last_blocks_are_adapted_and_rates_fall_towards_the_input() -> None:
    net = Detector.create("vit:test_vit", size=32).net
    assert isinstance(net, BlockFeatures)
    depth = len(net.backbone.blocks)
    wish = TrainDetectorSettings(recipe="finetune", rank=2, last_blocks=2)
    prepare_adapters(net, wish)
    learns = [name for name, p in net.named_parameters() if p.requires_grad]
    blocks = {int(name.split(".")[2]) for name in learns if "blocks" in name}
    assert blocks == {depth - 2, depth - 1}
    assert all(name.endswith((".A", ".B")) or "norm" in name or "head" in name for name in learns)
    groups = finetune.parameter_groups(net, 1e-2, 0.5)
    rates = {(group["lr"], group["weight_decay"]) for group in groups}
    decayed = finetune.WEIGHT_DECAY
    assert rates == {(r, w) for r in (1e-3, 1e-2, 5e-3) for w in (0.0, decayed)}
    assert sum(len(group["params"]) for group in groups) == len(learns)


def test_checkpointing_changes_no_gradient() -> None:
    found, passes = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        net = Detector.create("vit:test_vit", size=32).net
        assert isinstance(net, BlockFeatures)
        passes.append(0)

        def count(*_: object) -> None:
            passes[-1] += 1

        net.backbone.blocks[0].norm1.register_forward_hook(count)
        prepare_adapters(net, TrainDetectorSettings(recipe="finetune", checkpointing=checkpointing))
        torch.manual_seed(1)
        net.train()(torch.randn(2, 3, 32, 32)).sum().backward()
        found.append([p.grad for p in net.parameters() if p.requires_grad])
    assert passes == [1, 2]  # once more on the way back
    assert all(a is not None for a in found[1])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_adapters_with_a_curved_head_survive_a_file() -> None:
    torch.manual_seed(0)
    plain = Detector.create("vit:test_vit", size=32, hidden=8).net
    assert isinstance(plain, BlockFeatures)
    state = {name: value.clone() for name, value in plain.state_dict().items()}
    prepare_adapters(plain, TrainDetectorSettings(recipe="finetune", rank=2))
    with torch.no_grad():
        for parameter in plain.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    saved = {name: value.clone() for name, value in adapters_of(plain).items()}
    merge_adapters(plain)
    other = Detector.create("vit:test_vit", size=32, hidden=8).net
    assert isinstance(other, BlockFeatures)
    other.load_state_dict(state)
    apply_adapters(other, saved, "adapters")
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(other.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-4)
    linear = Detector.create("vit:test_vit", size=32).net
    assert isinstance(linear, BlockFeatures)
    with pytest.raises(GanscopeError, match="curved classifier"):
        apply_adapters(linear, saved, "adapters")


# What is drawn


def test_groups_are_drawn_by_the_square_root_of_their_size() -> None:
    """Pictures: 16 and 4 fakes in two groups, 9 reals in one; some have more views."""
    picture = np.repeat(np.arange(29), [3] * 8 + [2] * 8 + [1] * 4 + [2] * 9)
    group = np.repeat([0, 1, 2], [16, 4, 9])[picture]
    label = (group < 2).astype(int)
    sampler = GroupSampler(label, group, picture, np.arange(len(picture)))
    share = [sampler.odds[group == g].sum() for g in range(3)]
    np.testing.assert_allclose(share, [0.5 * 4 / 6, 0.5 * 2 / 6, 0.5])
    each = np.bincount(picture, sampler.odds)
    np.testing.assert_allclose(each[:16], share[0] / 16)
    np.testing.assert_allclose(each[16:20], share[1] / 4)
    np.testing.assert_allclose(sampler.odds[:3], share[0] / 16 / 3)
    drawn = sampler.draw(20_000, np.random.default_rng(0))
    assert (label[drawn[::2]] == 1).all()
    assert (label[drawn[1::2]] == 0).all()
    found = np.bincount(group[drawn], minlength=3) / len(drawn)
    np.testing.assert_allclose(found, share, atol=0.01)
    some = GroupSampler(label, group, picture, np.flatnonzero(group != 1))
    assert some.odds[group == 1].sum() == 0
    assert some.odds[group == 0].sum() == pytest.approx(0.5)
    with pytest.raises(GanscopeError, match="both classes"):
        GroupSampler(label, group, picture, np.flatnonzero(group == 2))


# What happens to them on the device


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("quality", [45, 75, 90, 98])
def test_jpeg_is_that_of_opencv(astronaut: np.ndarray, quality: int, coarse: bool) -> None:
    sampling = (
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420 if coarse else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
    )
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    parts = [astronaut[y : y + 150, x : x + 140] for y, x in ((0, 150), (200, 60))]
    theirs = [
        cv2.imdecode(cv2.imencode(".jpg", part[..., ::-1], options)[1], 1)[..., ::-1]
        for part in parts
    ]
    batch = torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2).float()
    ours = jpeg(batch, np.full(2, quality), coarse=coarse).permute(0, 2, 3, 1).numpy()
    apart = np.abs(ours - np.stack(theirs).astype(float)).mean()
    lost = np.abs(np.stack(parts).astype(float) - np.stack(theirs)).mean()
    assert apart < 0.8
    assert apart < 0.6 * lost


def test_blocks_begin_where_they_are_told_and_qualities_are_each_views_own(
    astronaut: np.ndarray,
) -> None:
    part = astronaut[100:228, 100:228]
    batch = torch.from_numpy(part.copy()).permute(2, 0, 1)[None].float().expand(3, -1, -1, -1)
    offset = np.array([[0, 0], [3, 5], [0, 0]])
    found = jpeg(batch, np.array([50, 50, 95]), coarse=False, offset=offset)
    cut = jpeg(batch[:1, :, 5:, 3:], np.array([50]), coarse=False)  # blocks begin at (5, 3)
    inner = jpeg(batch[:1], np.array([50]), coarse=False, offset=np.array([[3, 5]]))[0, :, 5:, 3:]
    torch.testing.assert_close(inner[:, :112, :112], cut[0, :, :112, :112])
    torch.testing.assert_close(found[1, :, 5:, 3:], inner)
    errors = (found - batch).abs().mean((1, 2, 3))
    assert errors[2] < 0.6 * errors[0]
    torch.testing.assert_close(found[:1], jpeg(batch[:1], np.array([50]), coarse=False))


def test_each_change_does_what_it_says(astronaut: np.ndarray) -> None:
    part = np.ascontiguousarray(astronaut[:64, 200:264])
    pixels = torch.from_numpy(part).permute(2, 0, 1)[None]
    same = augment(pixels, nothing(1), 56)[0].permute(1, 2, 0).numpy() * 255
    np.testing.assert_allclose(same, part[4:60, 4:60], atol=1e-3)
    flipped = augment(pixels, replace(nothing(1), flip=np.array([True])), 56)[0] * 255
    np.testing.assert_allclose(flipped.permute(1, 2, 0), part[4:60, 4:60][:, ::-1], atol=1e-3)
    larger = augment(pixels, replace(nothing(1), factor=np.array([1.5])), 56)[0].permute(1, 2, 0)
    theirs = cv2.resize(part, (96, 96), interpolation=cv2.INTER_CUBIC)[20:76, 20:76]
    assert np.abs(larger.numpy() * 255 - theirs).mean() < 2
    x = pixels.float()
    theirs = cv2.GaussianBlur(part.astype(np.float32), (11, 11), 1.2)  # reflects, too
    np.testing.assert_allclose(blur(x, np.array([1.2]))[0].permute(1, 2, 0), theirs, atol=0.01)
    torch.testing.assert_close(colour(x, np.ones((1, 3))), x, rtol=0, atol=1e-3)
    grey = colour(x, np.array([[1.0, 1.0, 0.0]]))
    torch.testing.assert_close(grey[:, 0], grey[:, 2])
    holed = cut_out(x, np.array([[0.25, 0.5, 0.5, 0.75]]))
    assert (holed[..., 16:32, 32:48] == 128).all()
    assert torch.equal(holed[..., :16, :], x[..., :16, :])
    noisy = augment(pixels, replace(nothing(1), level=np.array([5.0])), 56) * 255
    assert 3.5 < (noisy[0].permute(1, 2, 0).numpy() - part[4:60, 4:60]).std() < 5.5


def test_a_view_is_changed_alike_whatever_is_beside_it(astronaut: np.ndarray) -> None:
    pixels = torch.from_numpy(np.stack([astronaut[:64, i : i + 64] for i in range(0, 320, 8)]))
    pixels = pixels.permute(0, 3, 1, 2)
    draws = draw(40, np.random.default_rng((1, 2)))
    whole = augment(pixels, draws, 48)
    assert whole.shape == (40, 3, 48, 48)
    assert whole.dtype == torch.float32
    assert 0 <= whole.min() < whole.max() <= 1
    assert torch.equal(whole, augment(pixels, draw(40, np.random.default_rng((1, 2))), 48))
    for where in (slice(0, 20), slice(20, 40)):
        part = augment(pixels[where], draws.part(where), 48)
        torch.testing.assert_close(part, whole[where], rtol=0, atol=1.1 / 255)
        assert (part != whole[where]).float().mean() < 0.001
    assert not torch.equal(whole, augment(pixels, draw(40, np.random.default_rng((1, 3))), 48))
    spared = draw(40, np.random.default_rng(0), 0.0)
    for field in fields(spared):
        if field.name not in ("flip", "corner", "seed"):
            plain = getattr(nothing(40), field.name)
            np.testing.assert_array_equal(getattr(spared, field.name), plain)


# How they are cut and packed


def shapes(pixels: np.ndarray) -> dict[str, np.ndarray]:
    return {
        KINDS[kind]: cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
        for kind, data in cut_views(pixels, "x", 64)
    }


def test_views_of_any_shape(astronaut: np.ndarray) -> None:
    large = cv2.resize(astronaut, (900, 700))
    views = shapes(large)
    assert list(views) == list(KINDS)  # 900 is longer than 640 / 4
    assert {view.shape for view in views.values()} == {(64, 64, 3)}
    whole = cv2.resize(large[:, 100:800], (64, 64), interpolation=cv2.INTER_AREA)
    assert np.abs(views["whole"].astype(float) - whole).mean() < 6
    for height, width in ((20, 400), (1, 1), (64, 64), (30, 30), (4000, 10)):
        for view in shapes(np.full((height, width, 3), 90, np.uint8)).values():
            assert view.shape == (64, 64, 3)
            assert np.abs(view.astype(int) - 90).max() <= 2
    assert list(shapes(astronaut[:100, :100])) == ["native", "whole"]
    assert side_for(224) == 256
    first, second, third = (
        dict(cut_views(large, name, 64, seed))[0].tobytes()
        for name, seed in (("x", 0), ("x", 0), ("x", 1))
    )
    assert first == second != third


def listed(n: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "name": [f"{i}.png" for i in range(n)],
            "label": np.arange(n) % 2,
            "source": "s",
            "generator": np.where(np.arange(n) % 2, "g", "real"),
        }
    )


def pixels_of(row: int) -> np.ndarray:
    rng = np.random.default_rng(row)
    return rng.integers(0, 256, (90 + row, 200, 3), dtype=np.uint8)


def pack(folder: Path, n: int = 12, **changes: Any) -> None:
    write_pack(folder, listed(n), changes.pop("pixels", pixels_of), side=64, **changes)


def test_a_pack_goes_round(tmp_path: Path) -> None:
    pack(tmp_path / "p", part_bytes=40_000)
    parts = sorted((tmp_path / "p").glob("*.safetensors"))
    assert len(parts) > 2
    assert all(part.stat().st_size < 50_000 for part in parts)
    found = read_pack(tmp_path / "p")
    assert len(found) == 12 * 3
    assert found.names == listed(12)["name"].tolist()
    assert found.groups == [(0, "s", "real"), (1, "s", "g")]
    np.testing.assert_array_equal(found.label, found.picture % 2)
    np.testing.assert_array_equal(found.group, found.label)
    keys = zip(found.picture.tolist(), found.kind.tolist(), strict=True)
    views = dict(zip(keys, found.jpegs, strict=True))
    for kind, data in cut_views(pixels_of(7), "7.png", 64):
        np.testing.assert_array_equal(views[7, kind], data)
    pack(tmp_path / "again", part_bytes=40_000)
    assert read_pack(tmp_path / "again").sums == found.sums
    for most in (0, None):
        shown = PackViews(found, torch.device("cpu"), most)
        assert (shown.kept is None) == (most == 0)
        rows = np.array([5, 0, 9])
        shown.prefetch(rows)
        decoded = np.stack([cv2.imdecode(found.jpegs[r], cv2.IMREAD_COLOR_RGB) for r in rows])
        assert shown.fetch(rows).shape == (3, 3, 64, 64)
        np.testing.assert_array_equal(shown.fetch(rows).permute(0, 2, 3, 1), decoded)


def test_a_killed_packing_goes_on(tmp_path: Path) -> None:
    opened: list[int] = []

    def pixels(row: int) -> np.ndarray:
        opened.append(row)
        if row == 9 and not (tmp_path / "p" / "pack-001.safetensors").exists():
            raise KeyboardInterrupt
        return pixels_of(row)

    packing_at_once = packing.AT_ONCE
    packing.AT_ONCE = 1
    try:
        with pytest.raises(KeyboardInterrupt):
            pack(tmp_path / "p", part_bytes=110_000, pixels=pixels)
        assert (tmp_path / "p" / "pack-000.safetensors").exists()
        with pytest.raises(GanscopeError, match="no whole pack"):
            read_pack(tmp_path / "p")
        opened.clear()
        pack(tmp_path / "p", part_bytes=110_000, pixels=lambda r: opened.append(r) or pixels_of(r))
    finally:
        packing.AT_ONCE = packing_at_once
    assert 0 not in opened
    pack(tmp_path / "whole", part_bytes=110_000)
    assert read_pack(tmp_path / "p").sums == read_pack(tmp_path / "whole").sums
    opened.clear()
    pack(tmp_path / "p", part_bytes=110_000, pixels=pixels)
    assert not opened
    with pytest.raises(GanscopeError, match="a pack of other pictures"):
        pack(tmp_path / "p", 11)


def test_a_damaged_or_missing_part_is_one_line(tmp_path: Path) -> None:
    pack(tmp_path / "p", part_bytes=110_000)
    part = tmp_path / "p" / "pack-001.safetensors"
    data = bytearray(part.read_bytes())
    data[-100] ^= 1
    part.write_bytes(data)
    with pytest.raises(GanscopeError, match=r"pack-001.safetensors: damaged, its checksum"):
        read_pack(tmp_path / "p")
    part.unlink()
    with pytest.raises(GanscopeError, match=r"pack-001.safetensors: this part .* is missing"):
        read_pack(tmp_path / "p")
    (tmp_path / "p" / "pack-000.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(GanscopeError, match=r"pack-000.safetensors: no part of a pack, or damaged"):
        pack(tmp_path / "p", part_bytes=110_000)


def test_pictures_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    def pixels(row: int) -> np.ndarray:
        if row == 4:
            raise ImageError("4.png", "truncated")
        return pixels_of(row)

    with pytest.raises(GanscopeError, match=r"4.png: truncated; restore it"):
        pack(tmp_path / "strict", pixels=pixels)
    pack(tmp_path / "p", pixels=pixels, drop=True)
    found = read_pack(tmp_path / "p")
    assert found.dropped == {"4.png": "truncated"}
    assert set(found.picture) == set(range(12)) - {4}
