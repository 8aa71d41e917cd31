"""Image-to-image generators: shapes, what patches see, learning on toys, pairs, tiles."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ganscope.config import TrainGeneratorSettings
from ganscope.datasets.sources import open_source
from ganscope.errors import GanscopeError, GanscopeWarning
from ganscope.generator.kinds import translation
from ganscope.generator.kinds.architecture import Batch, Play
from ganscope.generator.kinds.architectures import architectures
from ganscope.generator.kinds.translation import (
    CycleGAN,
    ImagePool,
    InstanceNorm,
    PatchDiscriminator,
    Pix2Pix,
    ResNetTranslator,
    UNet,
    inputs,
    pair_folders,
    paired_crop,
    translate,
)
from ganscope.generator.training import _Food

CPU = torch.device("cpu")


def play_of(kind: Pix2Pix | CycleGAN, width: int, rate: float = 2e-3) -> Play:
    """The networks of a training at 32 pixels."""
    torch.manual_seed(0)
    settings = TrainGeneratorSettings(real="photographs", size=32, width=width)
    networks = {"generator": kind.generator(**kind.arguments(settings, []))}
    networks |= kind.opponents(settings, [])
    optimizers = {name: kind.optimizer(network, rate) for name, network in networks.items()}
    return Play(networks, optimizers, lambda loss: loss.backward(), settings, CPU, kind.latent_dim)


def toys(n: int, size: int, seed: int = 0) -> Tensor:
    """Smooth colourful pictures (n, 3, size, size) in [-1, 1]."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 4, 4, generator=draw) * 2 - 1
    return nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")


def pixels_of(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def save(path: Path, height: int = 20, width: int = 20) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), 90, np.uint8))


class Fixed(nn.Module):
    """A generator that says the same whatever it is given."""

    def __init__(self, images: Tensor):
        super().__init__()
        self.images = nn.Parameter(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.images + 0


@pytest.mark.parametrize("network", [UNet, ResNetTranslator])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 70), (1, 5), (100, 3)])
def test_any_size_goes_in_and_comes_out(network: type[nn.Module], height: int, width: int) -> None:
    made = network(size=32, width=4).eval()(torch.rand(2, 3, height, width) * 2 - 1)
    assert made.shape == (2, 3, height, width)
    assert made.abs().max() <= 1


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_a_unet_is_as_deep_as_its_size_halves(size: int) -> None:
    net = UNet(size=size, width=4)
    assert 2 ** len(net.down) == size
    bottom: list[tuple[int, ...]] = []
    net.down[-1].register_forward_hook(lambda *a: bottom.append(tuple(a[2].shape[2:])))
    net.eval()(torch.zeros(1, 3, size, size))
    assert bottom == [(1, 1)]


def test_odd_sizes_are_continued_by_reflection() -> None:
    torch.manual_seed(0)
    net = UNet(size=32, width=4).eval()
    image = torch.rand(1, 3, 40, 33)
    padded = np.pad(image.numpy(), ((0, 0), (0, 0), (0, 24), (0, 31)), mode="reflect")
    assert torch.equal(net(image), net(torch.from_numpy(padded))[..., :40, :33])


def test_every_level_of_a_unet_reaches_the_picture() -> None:
    torch.manual_seed(0)
    net = UNet(size=32, width=4).eval()
    image = torch.rand(1, 3, 32, 32)
    whole = net(image)
    for down in net.down:
        handle = down.register_forward_hook(lambda *a: a[2] * 0)
        assert not torch.equal(net(image), whole)
        handle.remove()


def test_dropout_is_for_training_only() -> None:
    torch.manual_seed(0)
    net, image = UNet(size=32, width=4), torch.rand(2, 3, 32, 32)
    assert not torch.equal(net(image), net(image))
    net.eval()
    assert torch.equal(net(image), net(image))


@pytest.mark.parametrize(("size", "patch"), [(32, 16), (64, 34), (128, 70), (256, 70)])
def test_what_a_patch_sees(size: int, patch: int) -> None:
    discriminator = PatchDiscriminator(size, 4).eval()
    field = stride = 1
    for layer in discriminator.modules():
        if isinstance(layer, nn.Conv2d):
            field += (layer.kernel_size[0] - 1) * stride
            stride *= layer.stride[0]
    assert field == patch
    image = torch.rand(1, 3, 256, 256, requires_grad=True)
    logits = discriminator(image)
    (gradient,) = torch.autograd.grad(logits[0, 0, logits.shape[2] // 2, 9], image)
    rows = torch.nonzero(gradient.abs().sum((0, 1, 3)))
    assert rows.max() - rows.min() + 1 == patch


@pytest.mark.parametrize("network", [ResNetTranslator, lambda: PatchDiscriminator(norm="instance")])
def test_instance_norm_keeps_the_images_of_a_batch_apart(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net, images = network(), toys(3, 32)
    assert net.training
    with torch.no_grad():
        together = net(images * torch.tensor([1.0, 0.1, 0.5])[:, None, None, None])
        alone = net(images[1:2] * 0.1)
    assert torch.allclose(together[1:2], alone, atol=1e-5)


def test_instance_norm_brings_every_channel_to_mean_0_and_deviation_1() -> None:
    normed = InstanceNorm()(torch.rand(2, 3, 16, 16) * 7 + 5)
    assert torch.allclose(normed.mean((2, 3)), torch.zeros(2, 3), atol=1e-5)
    assert torch.allclose(normed.std((2, 3), correction=0), torch.ones(2, 3), atol=1e-3)


def test_pix2pix_learns_to_invert() -> None:
    play, kind = play_of(Pix2Pix(), width=8), Pix2Pix()
    losses = []
    for step in range(80):
        images = toys(8, 32, seed=step)
        losses.append(kind.step(play, [Batch(images, inputs=-images)]))
    assert all(not value.requires_grad for value in losses[-1].values())
    first, last = losses[0]["l1_loss"].item(), losses[-1]["l1_loss"].item()
    assert last < first / 2
    unseen = toys(8, 32, seed=1000)
    made = play.networks["generator"].eval()(-unseen)
    assert (made - unseen).abs().mean() < (-unseen - unseen).abs().mean() / 2


def test_pix2pix_judges_pairs() -> None:
    """Its discriminator learns whether a real picture belongs to the input."""
    play, kind = play_of(Pix2Pix(), width=8), Pix2Pix()
    for step in range(40):
        images = toys(8, 32, seed=step)
        # Fakes are real pictures, too, but of other scenes.
        play.networks["generator"] = Fixed(toys(8, 32, seed=step + 500))
        kind.step(play, [Batch(images, inputs=-images)])
    judge, images, others = play.networks["discriminator"], toys(8, 32, 2000), toys(8, 32, 2001)
    right, wrong = (judge(torch.cat([-images, shown], 1)).mean() for shown in (images, others))
    assert right > wrong + 1


def test_the_discriminators_opinion_moves_pix2pix() -> None:
    play, kind = play_of(Pix2Pix(), width=8), Pix2Pix()
    kind.distance_weight = 0.0
    play.optimizers["discriminator"].param_groups[0]["lr"] = 0.0
    images = toys(8, 32)
    losses = [kind.step(play, [Batch(images, inputs=-images)])["g_loss"] for _ in range(30)]
    assert losses[-1] < losses[0] - 0.05


def test_cyclegan_comes_back_to_where_it_started() -> None:
    play, kind = play_of(CycleGAN(), width=4), CycleGAN()
    losses = []
    for step in range(40):
        warm, cold = toys(2, 32, seed=2 * step), toys(2, 32, seed=2 * step + 1)
        losses.append(kind.step(play, [Batch(cold * 0.5 - 0.5, inputs=warm * 0.5 + 0.5)]))
    cycles = [loss["cycle_loss"].item() for loss in losses]
    told_apart = [(loss["d_real"] - loss["d_fake"]).item() for loss in losses]
    assert np.mean(cycles[-5:]) < cycles[0] / 2
    assert np.mean(told_apart[-10:]) > 0.1
    assert {"d_loss", "g_loss", "d_real", "d_fake"} <= losses[-1].keys()
    for name in ("discriminator", "backward_discriminator"):
        assert play.bare(name).pool.filled == 50


@pytest.mark.parametrize("kind", [Pix2Pix(), CycleGAN()])
def test_what_the_networks_and_optimizers_keep_is_all_there_is_to_resume(
    kind: Pix2Pix | CycleGAN,
) -> None:
    def steps(play: Play, numbers: range) -> None:
        for step in numbers:
            torch.manual_seed(step)
            kind.step(play, [Batch(toys(30, 32, seed=step), inputs=toys(30, 32, seed=step + 50))])

    whole, first, second = (play_of(kind, width=4) for _ in range(3))
    steps(whole, range(4))
    steps(first, range(2))
    for name in whole.networks:
        second.networks[name].load_state_dict(first.networks[name].state_dict())
        second.optimizers[name].load_state_dict(first.optimizers[name].state_dict())
    steps(second, range(2, 4))
    for name, network in whole.networks.items():
        for one, other in zip(
            network.state_dict().values(), second.networks[name].state_dict().values(), strict=True
        ):
            assert torch.equal(one, other), name


def test_a_cyclegan_step_moves_all_four_networks() -> None:
    play = play_of(CycleGAN(), width=4)
    before = {n: [p.clone() for p in net.parameters()] for n, net in play.networks.items()}
    CycleGAN().step(play, [Batch(toys(2, 32), inputs=toys(2, 32, seed=1))])
    for name, network in play.networks.items():
        for old, new in zip(before[name], network.parameters(), strict=True):
            assert new.requires_grad
            assert not torch.equal(old, new), name


def test_a_pool_gives_back_former_fakes_and_goes_on_from_its_state() -> None:
    torch.manual_seed(0)
    pool = ImagePool(size=2, slots=10)
    first = torch.arange(10.0)[:, None, None, None].expand(10, 3, 2, 2)
    assert torch.equal(pool.swap(first), first)
    later = first + 100
    twin = ImagePool(size=2, slots=10)
    twin.load_state_dict(pool.state_dict())
    torch.manual_seed(1)
    shown = pool.swap(later)
    torch.manual_seed(1)
    assert torch.equal(twin.swap(later), shown)
    old = shown[:, 0, 0, 0] < 100
    assert 1 <= old.sum() <= 9
    assert torch.equal(shown[~old], later[~old])
    kept = sorted(pool.images[:, 0, 0, 0].tolist() + shown[:, 0, 0, 0].tolist())
    assert kept == sorted([*range(10), *range(100, 110)])  # nothing is lost or doubled
    assert pool.swap(torch.rand(64, 3, 2, 2)).shape == (64, 3, 2, 2)  # more than it holds


def test_a_pool_fills_up_in_the_middle_of_a_batch() -> None:
    pool = ImagePool(size=2, slots=5)
    fakes = torch.rand(4, 3, 2, 2)
    pool.swap(fakes[:3])
    assert torch.equal(pool.swap(fakes)[:2], fakes[:2])
    assert pool.filled == 5


def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translation, "LARGE", 60 * 60)
    monkeypatch.setattr(translation, "TILE", 96)
    monkeypatch.setattr(translation, "OVERLAP", 32)


@pytest.mark.parametrize(("height", "width"), [(200, 170), (96, 97), (40, 300), (161, 225)])
def test_tiles_give_what_the_whole_gives(
    monkeypatch: pytest.MonkeyPatch, height: int, width: int
) -> None:
    """Exactly where a network looks no further than the overlap."""

    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Conv2d(3, 3, 5, padding=2, padding_mode="reflect")

        def forward(self, images: Tensor) -> Tensor:
            height, width = images.shape[2:]
            assert height * width <= 96 * 96 or not tiled
            return torch.tanh(self.layers(images))

    torch.manual_seed(0)
    net, pixels, tiled = Local().eval(), pixels_of(height, width), False
    whole = translate(net, pixels, CPU).astype(int)
    small_tiles(monkeypatch)
    tiled = True
    tiles = translate(net, pixels, CPU)
    assert tiles.shape == pixels.shape
    assert tiles.dtype == np.uint8
    assert np.abs(tiles - whole).max() <= 3  # the overlap's outermost two pixels see its edge
    assert np.abs(tiles - whole).mean() < 0.05


def trained(kind: Pix2Pix | CycleGAN, steps: int) -> nn.Module:
    play = play_of(kind, width=4)
    for step in range(steps):
        images = toys(4, 32, seed=step)
        kind.step(play, [Batch(images, inputs=images * 0.7)])
    return play.networks["generator"].eval()


@pytest.mark.parametrize(("kind", "steps", "limit"), [(Pix2Pix(), 40, 0.6), (CycleGAN(), 15, 8)])
def test_tiles_of_a_trained_network_do_not_show(
    monkeypatch: pytest.MonkeyPatch, kind: Pix2Pix | CycleGAN, steps: int, limit: float
) -> None:
    net, pixels = trained(kind, steps), pixels_of(200, 230)
    pixels[:100] //= 4  # a dark part: alone it would be normed to the brightness of the other
    whole = translate(net, pixels, CPU).astype(int)
    small_tiles(monkeypatch)
    tiles = translate(net, pixels, CPU)
    assert np.abs(tiles - whole).mean() < limit
    if isinstance(kind, CycleGAN):
        alone = translate(net, pixels[:60, :60], CPU)
        assert np.abs(alone - whole[:60, :60]).mean() > 2 * np.abs(tiles - whole).mean()


def test_a_translation_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net, photo = ResNetTranslator(size=32, width=4).eval(), pixels_of(40, 50)
    before = translate(net, photo, CPU)
    small_tiles(monkeypatch)
    translate(net, pixels_of(120, 150, seed=1), CPU)
    assert np.array_equal(translate(net, photo, CPU), before)
    assert photo.shape == before.shape


def test_a_photo_passes_unchanged_through_a_network_that_changes_nothing() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (30, 41, 3), np.uint8)
    assert np.array_equal(translate(nn.Identity(), photo, CPU), photo)


@pytest.mark.parametrize("name", sorted(inputs))
def test_inputs_have_the_photos_shape_and_leave_it_alone(name: str, astronaut: np.ndarray) -> None:
    photo = astronaut[:201, :101].copy()
    made = inputs[name](photo)
    assert made.shape == photo.shape
    assert made.dtype == np.uint8
    assert not np.array_equal(made, photo)
    assert np.array_equal(photo, astronaut[:201, :101])
    assert inputs[name](photo[:1, :2]).shape == (1, 2, 3)
    assert inputs[name].__doc__


def test_edges_are_black_lines_on_white_where_brightness_changes() -> None:
    photo = np.full((64, 64, 3), 40, np.uint8)
    photo[:, 32:] = 200
    drawing = inputs["edges"](photo)
    assert set(np.unique(drawing)) == {0, 255}
    black = np.nonzero((drawing == 0).all(2))[1]
    assert len(black) >= 60
    assert black.min() >= 30
    assert black.max() <= 33
    assert (inputs["edges"](np.full((64, 64, 3), 90, np.uint8)) == 255).all()


def test_grey_keeps_the_luminance_only(astronaut: np.ndarray) -> None:
    made = inputs["grey"](astronaut)
    assert (made[..., 0] == made[..., 1]).all()
    assert (made[..., 0] == made[..., 2]).all()
    luminance = astronaut @ np.array([0.299, 0.587, 0.114])
    assert np.abs(made[..., 0] - luminance).max() <= 1


def test_small_keeps_what_is_larger_than_four_pixels(astronaut: np.ndarray) -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::4] = stripes[:, 1::4] = 200
    assert (inputs["small"](stripes) == 100).all()
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, 32:] = 200
    assert (np.abs(inputs["small"](stripes).astype(int) - stripes).max((0, 2)) > 20).sum() <= 8
    made = inputs["small"](astronaut)
    assert abs(made.mean() - astronaut.mean()) < 0.5
    assert np.abs(made.astype(int) - astronaut).mean() < 20


def test_blur_spreads_a_line_over_two_pixels() -> None:
    photo = np.zeros((41, 41, 3), np.uint8)
    photo[:, 20] = 255
    line = inputs["blur"](photo)[20, :, 0].astype(float)
    assert line[22] / line[20] == pytest.approx(np.exp(-0.5), abs=0.02)


def test_pairs_are_found_by_stem_below_the_folder(tmp_path: Path) -> None:
    save(tmp_path / "a" / "day" / "2.png")
    save(tmp_path / "a" / "1.jpg")
    save(tmp_path / "b" / "day" / "2.jpg")
    save(tmp_path / "b" / "1.png")
    (tmp_path / "b" / "notes.txt").write_text("no image")
    assert pair_folders(tmp_path / "a", tmp_path / "b") == [
        (tmp_path / "a" / "1.jpg", tmp_path / "b" / "1.png"),
        (tmp_path / "a" / "day" / "2.png", tmp_path / "b" / "day" / "2.jpg"),
    ]


def test_images_without_a_partner_are_named(tmp_path: Path) -> None:
    for i in range(8):
        save(tmp_path / "a" / f"{i}.png")
    save(tmp_path / "b" / "7.png")
    with pytest.raises(
        GanscopeError, match=r"a: 7 images have no partner.*b \(0, 1, 2, 3, 4, \.\.\."
    ):
        pair_folders(tmp_path / "a", tmp_path / "b")
    with pytest.raises(GanscopeError, match=r"a: 7 images"):
        pair_folders(tmp_path / "b", tmp_path / "a")


def test_pairs_of_unlike_size_are_named(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.png", 20, 30)
    save(tmp_path / "b" / "1.png", 30, 20)
    with pytest.raises(GanscopeError, match=r"1 pairs differ in width or height \(1\)"):
        pair_folders(tmp_path / "a", tmp_path / "b")


def test_pairs_that_are_damaged_or_small_are_left_out_and_counted(tmp_path: Path) -> None:
    for name, side in (("good", 40), ("small", 8), ("cut", 40)):
        save(tmp_path / "a" / f"{name}.png", side, side)
        save(tmp_path / "b" / f"{name}.png", side, side)
    (tmp_path / "a" / "cut.png").write_bytes(b"no image")
    plan = TrainGeneratorSettings(
        real=str(tmp_path / "b"),
        input=str(tmp_path / "a"),
        generator="pix2pix",
        size=32,
        batch_size=4,
    )
    food = _Food(plan, architectures["pix2pix"], open_source(plan.real))
    for number in range(6):
        assert food.batch(number).images.shape[0] == 4
    (used,) = food.sources
    with pytest.warns(GanscopeWarning, match="left out: 2 of 3 photographs: ") as told:
        used.tell_unusable()
    assert "a pair of 8x8 pixels is smaller than 32x32" in str(told[0].message)
    for name in ("good", "cut"):
        (tmp_path / "b" / f"{name}.png").write_bytes(b"no image")
    food = _Food(plan, architectures["pix2pix"], open_source(plan.real))
    with pytest.raises(GanscopeError, match="no pair can be used, for example"):
        food.batch(0)


def test_a_photo_stored_on_its_side_fits_its_upright_partner(tmp_path: Path) -> None:
    from PIL import Image

    save(tmp_path / "a" / "1.png", 30, 20)
    (tmp_path / "b").mkdir()
    lying = Image.new("RGB", (30, 20))
    exif = lying.getexif()
    exif[0x0112] = 6
    lying.save(tmp_path / "b" / "1.jpg", exif=exif)
    assert len(pair_folders(tmp_path / "a", tmp_path / "b")) == 1


def test_two_files_of_one_name_and_no_files_are_errors(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(GanscopeError, match="no images"):
        pair_folders(tmp_path / "empty", tmp_path / "empty")
    save(tmp_path / "a" / "1.png")
    save(tmp_path / "a" / "1.jpg")
    with pytest.raises(GanscopeError, match=r"1\.jpg and 1\.png differ in their ending only"):
        pair_folders(tmp_path / "a", tmp_path / "a")
    with pytest.raises(GanscopeError, match="no such file or folder"):
        pair_folders(tmp_path / "nowhere", tmp_path / "a")


def test_both_of_a_pair_are_cut_at_the_same_place() -> None:
    y, x = np.mgrid[:90, :120].astype(np.uint8)
    photo = np.stack([y, x, x // 2], -1)
    places = set()
    for seed in range(20):
        left, right = paired_crop(photo, 255 - photo, 32, np.random.default_rng(seed), zoom=4)
        assert left.shape == right.shape == (32, 32, 3)
        assert np.abs(255 - right.astype(int) - left).max() <= 1  # rounding, where shrunk
        places.add(tuple(left[0, 0]))
    assert len(places) > 10
    native, _ = paired_crop(photo, photo, 32, np.random.default_rng(0))
    top, left_edge = int(native[0, 0, 0]), int(native[0, 0, 1])
    assert np.array_equal(native, photo[top : top + 32, left_edge : left_edge + 32])


def test_pairs_that_do_not_fit_cannot_be_cut() -> None:
    photo, rng = np.zeros((40, 50, 3), np.uint8), np.random.default_rng(0)
    with pytest.raises(GanscopeError, match="50x40 pixels has a target of 40x50"):
        paired_crop(photo, photo.transpose(1, 0, 2), 32, rng)
    with pytest.raises(GanscopeError, match="50x40 pixels is smaller than 64x64"):
        paired_crop(photo, photo, 64, rng)
