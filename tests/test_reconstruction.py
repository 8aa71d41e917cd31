"""Fakes made from photographs: autoencoders, upscalers, style transfer, and corpora of them."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ganscope.config import GenerateSettings
from ganscope.datasets.degradations import estimate_quality
from ganscope.datasets.layouts import MANIFEST
from ganscope.errors import GanscopeError
from ganscope.generator.borrowed import reconstruction, style_transfer
from ganscope.generator.by_name import open_generator
from ganscope.generator.model import AnyGenerator
from ganscope.generator.pixels import from_pixels
from ganscope.generator.sampling import generate_corpus
from ganscope.images import open_image, read_facts


def opened(name: str) -> AnyGenerator:
    return open_generator(GenerateSettings(generator=name, device="cpu"))


def block(state: dict[str, Tensor], number: int, before: int, after: int, pool: bool) -> None:
    shapes = {"conv.0": (before, 3), "conv.2": (after, 3), "conv.4": (after, 3)}
    for name, (inputs, side) in shapes.items():
        state[f"{number}.{name}.weight"] = 0.2 * torch.randn(after, inputs, side, side)
        state[f"{number}.{name}.bias"] = torch.randn(after)
    if before != after:
        state[f"{number}.skip.weight"] = torch.randn(after, before, 1, 1)
    if pool:
        state[f"{number}.pool.0.weight"] = torch.randn(8, before, 1, 1)
        state[f"{number}.pool.1.weight"], state[f"{number}.pool.1.bias"] = torch.randn(2, 8)
        state[f"{number}.pool.3.weight"] = 0.1 * torch.randn(before, 8, 1, 1)


def convolution(state: dict[str, Tensor], number: int, before: int, after: int, bias: bool) -> None:
    state[f"{number}.weight"] = 0.2 * torch.randn(after, before, 3, 3)
    if bias:
        state[f"{number}.bias"] = torch.randn(after)


@pytest.fixture
def pair(tmp_path: Path) -> str:
    """PREFIX of random state dicts in TAESD's manner: 4 latent channels, factor 4."""
    torch.manual_seed(0)
    encoder: dict[str, Tensor] = {}
    convolution(encoder, 0, 3, 4, bias=True)
    block(encoder, 1, 4, 4, pool=False)
    convolution(encoder, 2, 4, 4, bias=False)
    convolution(encoder, 3, 4, 4, bias=False)
    block(encoder, 4, 4, 6, pool=True)
    convolution(encoder, 5, 6, 4, bias=True)
    decoder: dict[str, Tensor] = {}  # 0 is the clamp, 2 the ReLU, 4 and 6 double the size
    convolution(decoder, 1, 4, 4, bias=True)
    block(decoder, 3, 4, 4, pool=True)
    convolution(decoder, 5, 4, 4, bias=False)
    convolution(decoder, 7, 4, 3, bias=True)
    folder = tmp_path / "models"
    folder.mkdir()
    torch.save(encoder, folder / "tae_encoder.pth")
    torch.save(decoder, folder / "tae_decoder.pth")
    return str(folder / "tae")


def test_a_pair_of_state_dicts_makes_the_network_that_diffusers_makes(pair: str) -> None:
    """AutoencoderTiny takes the same layers under other names."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.AutoencoderTiny(
        latent_channels=4,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).eval()
    encoder = {k.removeprefix("layers."): v for k, v in theirs.encoder.state_dict().items()}
    # Its decoder counts without the clamp.
    named = [k.removeprefix("layers.").split(".", 1) for k in theirs.decoder.state_dict()]
    values = theirs.decoder.state_dict().values()
    decoder = {f"{int(n) + 1}.{k}": v for (n, k), v in zip(named, values, strict=True)}
    ours = reconstruction.TinyAutoencoder(encoder, decoder).eval()
    wrapped = reconstruction.DiffusersAutoencoder(theirs)
    images = torch.rand(1, 3, 16, 24)
    with torch.inference_mode():
        latents = ours.encode(images)
        assert (ours.factor, wrapped.factor, latents.shape) == (2, 2, (1, 4, 8, 12))
        assert torch.allclose(latents, wrapped.encode(images), atol=1e-5)
        latents = 4 * torch.randn(1, 4, 8, 12)  # where the clamp matters
        assert torch.allclose(ours.decode(latents), wrapped.decode(latents), atol=1e-5)


def test_blocks_look_at_their_wide_branch(pair: str) -> None:
    encoder, decoder = (torch.load(f"{pair}_{part}.pth") for part in ("encoder", "decoder"))
    images = torch.rand(1, 3, 16, 16)
    before = reconstruction.TinyAutoencoder(encoder, decoder).encode(images)
    encoder["4.pool.3.weight"] *= 0
    assert not torch.allclose(
        reconstruction.TinyAutoencoder(encoder, decoder).encode(images), before
    )


def test_a_photograph_of_any_size_comes_back_in_its_size(pair: str, astronaut: np.ndarray) -> None:
    generator = opened(f"reconstruct:{pair}")
    assert (generator.label, len(generator.weights)) == ("reconstruct-tae", 12)
    photos = [astronaut[:37, :50], astronaut[100:101, :9], astronaut[:32, :32]]
    fakes = generator.make(0, [0, 1, 2], photos)
    assert [f.shape for f in fakes] == [p.shape for p in photos]
    assert not np.array_equal(fakes[0], photos[0])
    assert np.array_equal(generator.make(5, [9], photos[2:])[0], fakes[2])
    assert opened(f"reconstruct:{Path(pair).parent}").weights == generator.weights


def test_options_of_a_reconstruction(pair: str, astronaut: np.ndarray) -> None:
    photo = astronaut[100:140, 200:260]

    def fake(options: str, seed: int = 0, index: int = 0) -> np.ndarray:
        return opened(f"reconstruct:{pair}{options}").make(seed, [index], [photo])[0]

    once = fake("")
    assert np.array_equal(fake("?times=2"), opened(f"reconstruct:{pair}").make(0, [0], [once])[0])
    assert np.array_equal(fake("?noise=0"), once)
    noisy = fake("?noise=0.5")
    assert not np.array_equal(noisy, once)
    assert not np.array_equal(noisy, fake("?noise=0.5", index=1))
    assert not np.array_equal(noisy, fake("?noise=0.5", seed=1))
    beside = opened(f"reconstruct:{pair}?noise=0.5").make(0, [4, 0], [astronaut[:8, :8], photo])
    assert np.array_equal(beside[1], noisy)
    assert np.array_equal(fake("?blend=1"), photo)
    half = fake("?blend=0.5").astype(float)
    assert np.abs(half - (once.astype(float) + photo) / 2).max() <= 0.5
    jittered = fake("?jitter=0.2")
    assert not np.array_equal(jittered, once)
    assert not np.array_equal(jittered, fake("?jitter=0.2", index=1))
    beside = opened(f"reconstruct:{pair}?jitter=0.2").make(0, [4, 0], [photo, photo])
    assert np.array_equal(beside[1], jittered)
    assert np.array_equal(fake("?smooth=0"), once)
    assert np.array_equal(fake("?upsample=nearest"), once)
    others = [fake(option) for option in ("?smooth=0.5", "?smooth=2", "?upsample=bicubic")]
    assert len({one.tobytes() for one in (once, *others)}) == 4
    assert opened(f"reconstruct:{pair}?smooth=2").make(0, [0], [photo[:3, :9]])[0].shape == (
        3,
        9,
        3,
    )
    assert (
        opened(f"reconstruct:{pair}?noise=0.5&times=2").label == "reconstruct-tae-noise=0.5-times=2"
    )


def test_large_photographs_go_in_tiles_without_seams(
    monkeypatch: pytest.MonkeyPatch, astronaut: np.ndarray
) -> None:
    """A network that looks 2 pixels far, and the noise of its latents, are the same in tiles."""
    torch.manual_seed(0)

    class Local(reconstruction.Autoencoder):
        factor = 2

        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(3, 4, 2, 2), nn.ConvTranspose2d(4, 3, 2, 2)

        def encode(self, images: Tensor) -> Tensor:
            return self.down(images)

        def decode(self, latents: Tensor) -> Tensor:
            return self.up(latents)

    generator = reconstruction.Reconstruction("r", "r", Local(), noise=0.5)
    photo = astronaut[:201, :333]
    (whole,) = generator.make(0, [7], [photo])
    monkeypatch.setattr(reconstruction, "LARGE", 1000)
    monkeypatch.setattr(reconstruction, "TILE", 75)
    monkeypatch.setattr(reconstruction, "OVERLAP", 9)
    (tiled,) = generator.make(0, [7], [photo])
    assert np.abs(tiled.astype(int) - whole).max() <= 1
    assert whole.std() > 5


def test_autoencoders_that_diffusers_saved(tmp_path: Path, astronaut: np.ndarray) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    kl = diffusers.AutoencoderKL(
        block_out_channels=(4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=2,
    )
    kl.save_pretrained(tmp_path / "pipeline" / "vae")
    kl.save_pretrained(tmp_path / "alone")
    photo = astronaut[:45, :34]
    fakes = [
        opened(f"reconstruct:{tmp_path / name}").make(seed, [0], [photo])[0]
        for seed, name in enumerate(("pipeline", "alone"))
    ]
    assert fakes[0].shape == photo.shape
    assert np.array_equal(*fakes)  # the mean of the latents, not a draw
    with pytest.raises(GanscopeError, match="nothing in it that upsample= could change"):
        opened(f"reconstruct:{tmp_path / 'alone'}?upsample=bicubic")
    unet = tmp_path / "unet"
    unet.mkdir()
    (unet / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(GanscopeError, match="is a UNet2DModel, not an AutoencoderTiny"):
        opened(f"reconstruct:{unet}")


def test_weights_that_cannot_be_had_or_read(
    pair: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(name: str, said: str) -> None:
        with pytest.raises(GanscopeError, match=said):
            opened(f"reconstruct:{name}")

    refused("nowhere", "no such folder; name taesd, a hub id")
    refused(f"{pair}?time=2", "did you mean 'times'")
    refused(f"{pair}?blend=2", "blend must be a number from 0 to 1, not '2'")
    encoder, decoder = Path(f"{pair}_encoder.pth"), Path(f"{pair}_decoder.pth")
    whole = decoder.read_bytes()
    decoder.write_bytes(whole[:500])
    refused(pair, "tae_decoder.pth cannot be read as a state dict")
    decoder.write_bytes(encoder.read_bytes())
    refused(pair, "no pair of state dicts")
    torch.save({"a": 1}, decoder)
    refused(pair, "holds no state dict")
    torch.save({"layer.weight": torch.zeros(3)}, decoder)
    refused(pair, "no pair of state dicts")
    decoder.unlink()
    refused(pair, "no such file: .*tae_decoder.pth")
    encoder.with_name("other_encoder.pth").write_bytes(b"")
    refused(str(encoder.parent), "there are several; name one of .*other, .*tae$")
    pytest.importorskip("diffusers")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    for name, reason in (("nobody/no-such-model", "not in the hub's cache"), ("empty", "no file")):
        monkeypatch.chdir(tmp_path)
        refused(name, rf"could not be loaded \(.*{reason}.*offline, download its folder")


class Nearest(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_upscalers(tmp_path: Path, astronaut: np.ndarray) -> None:
    torch.jit.script(Nearest()).save(tmp_path / "script.pt")
    dynamic = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    example = (torch.rand(1, 3, 16, 24),)
    program = torch.export.export(Nearest(), example, dynamic_shapes=(dynamic,))
    torch.export.save(program, tmp_path / "program.pt2")
    photo = np.ascontiguousarray(astronaut[100:141, 200:260])
    for name in ("script.pt", "program.pt2"):
        generator = opened(f"upscale:{tmp_path / name}")
        assert generator.label == f"upscale-{Path(name).stem}"
        (fake,) = generator.make(0, [0], [photo])
        assert fake.shape == photo.shape
        small = cv2.resize(photo[:40], (30, 20), interpolation=cv2.INTER_AREA)
        expected = small.repeat(2, axis=0).repeat(2, axis=1)
        assert np.abs(fake[:40].astype(int) - expected).max() <= 1


def test_what_is_no_upscaler(tmp_path: Path) -> None:
    torch.jit.script(nn.Conv2d(3, 3, 1)).save(tmp_path / "same.pt")
    torch.jit.script(nn.Linear(5, 5)).save(tmp_path / "linear.pt")
    (tmp_path / "text.pt").write_text("no network")
    for name, said in {
        "same.pt": "an upscaler enlarges",
        "linear.pt": "refuses an image of 48x32 pixels",
        "text.pt": "neither TorchScript",
        "nowhere.pt": "no such file",
    }.items():
        with pytest.raises(GanscopeError, match=said):
            opened(f"upscale:{tmp_path / name}")


@pytest.fixture
def painting(tmp_path: Path) -> Path:
    """Red and black stripes."""
    pixels = np.zeros((64, 80, 3), np.uint8)
    pixels[::4, :, 2] = 255
    cv2.imwrite(str(tmp_path / "stripes.png"), pixels)
    return tmp_path / "stripes.png"


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "resnet.safetensors")
    return tmp_path / "resnet.safetensors"


def test_style_transfer_brings_the_painting_s_grams_nearer(
    painting: Path, backbone: Path, astronaut: np.ndarray
) -> None:
    name = f"style:{painting}?features=timm:test_resnet&weights={backbone}&steps=12"
    photo = astronaut[:64, 100:171]
    generator = opened(name + "&strength=5")
    assert generator.label == "style-stripes-timm--test_resnet-steps=12-strength=5"
    assert isinstance(generator, style_transfer.StyleTransfer)
    (fake,) = generator.make(0, [0], [photo])
    assert fake.shape == photo.shape
    again = generator.make(1, [8, 9], [photo[:40], photo])
    assert np.array_equal(again[1], fake)

    def distance(pixels: np.ndarray) -> float:
        def grams(image: np.ndarray) -> list[Tensor]:
            seen = from_pixels(image, torch.device("cpu"))
            return [style_transfer._gram(f) for f in generator._look(seen)[0]]

        pairs = zip(grams(pixels), grams(generator.painting), strict=True)
        return float(sum(style_transfer._relative(a, b) for a, b in pairs))

    assert distance(fake) < 0.7 * distance(photo)
    (unchanged,) = opened(name + "&strength=0").make(0, [0], [photo])
    assert np.array_equal(unchanged, photo)


def test_vgg19_takes_torchvision_s_state_dict(
    painting: Path, tmp_path: Path, astronaut: np.ndarray
) -> None:
    torch.manual_seed(0)
    layers = style_transfer.vgg.make_layers(style_transfer.vgg.cfgs["E"])
    state = {f"features.{k}": v for k, v in layers.state_dict().items()}
    torch.save(state | {"classifier.0.bias": torch.zeros(3)}, tmp_path / "vgg19.pth")
    generator = opened(f"style:{painting}?weights={tmp_path / 'vgg19.pth'}&steps=1")
    (fake,) = generator.make(0, [0], [astronaut[:32, :40]])
    assert fake.shape == (32, 40, 3)
    assert isinstance(generator, style_transfer.StyleTransfer)
    styles, content = generator.features(torch.rand(1, 3, 32, 32))
    assert [f.shape[1:] for f in [*styles, content]] == [
        (64, 32, 32),
        (128, 16, 16),
        (256, 8, 8),
        (512, 4, 4),
        (512, 2, 2),
        (512, 4, 4),
    ]
    assert min(f.min() for f in styles) == 0  # behind the ReLU


def test_large_photographs_are_painted_small(
    painting: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch, astronaut: np.ndarray
) -> None:
    monkeypatch.setattr(style_transfer, "LARGE", 40 * 40)
    generator = opened(f"style:{painting}?features=timm:test_resnet&weights={backbone}&steps=1")
    (fake,) = generator.make(0, [0], [astronaut[:90, :81]])
    assert fake.shape == (90, 81, 3)


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("nowhere.png", "nowhere.png: no such file"),
        ("PAINTING?features=vgg", "features must be vgg19 or timm:NAME"),
        ("PAINTING?features=timm:resnet1", "features must be vgg19 or timm:NAME"),
        ("PAINTING?weights=nowhere.pth", "no such file: nowhere.pth"),
        ("PAINTING?weights=WEIGHTS", "does not fit vgg19"),
        ("PAINTING?features=timm:resnet18&weights=WEIGHTS", "does not fit timm:resnet18"),
        ("PAINTING?weights=PAINTING", "cannot be read as a state dict"),
        ("PAINTING", r"no network.*offline, .*weights=FILE"),
        ("PAINTING?features=timm:test_resnet", r"no network.*offline, .*weights=FILE"),
        ("PAINTING?steps=0", "steps must be a whole number"),
    ],
)
def test_mistakes_in_style_transfer(
    rest: str, said: str, painting: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*arguments: Any, pretrained: bool = True, **_: Any) -> nn.Module:
        if pretrained:
            raise OSError("no network")
        return create_model(*arguments, **_)

    create_model = timm.create_model
    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(style_transfer.VGG19_Weights, "get_state_dict", offline)
    rest = rest.replace("PAINTING", str(painting)).replace("WEIGHTS", str(backbone))
    with pytest.raises(GanscopeError, match=said):
        opened(f"style:{rest}")


def test_small_photographs_are_painted_too(painting: Path, backbone: Path) -> None:
    generator = opened(f"style:{painting}?features=timm:test_resnet&weights={backbone}&steps=1")
    photo = np.random.default_rng(0).integers(0, 256, (16, 40, 3), np.uint8)
    (made,) = generator.make(0, [0], [photo])
    assert made.shape == photo.shape


def test_grey_photographs_come_back_grey(pair: str) -> None:
    generator = opened(f"reconstruct:{pair}")
    photo = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    grey = np.ascontiguousarray(photo[..., :1].repeat(3, axis=2))
    coloured, plain = (generator.make(0, [0], [p])[0] for p in (photo, grey))
    assert (coloured != coloured[..., :1]).any()
    assert (plain == plain[..., :1]).all()


def test_a_corpus_of_crops_and_their_reconstructions(pair: str, tmp_path: Path) -> None:
    made = GenerateSettings(
        n=12, generator=f"reconstruct:{pair}", out=tmp_path / "corpus", size=40, device="cpu"
    )
    root = generate_corpus(made)
    table = pd.read_csv(root / MANIFEST)
    fakes, reals = (table[table["label"] == label].set_index("index") for label in (1, 0))
    assert set(fakes["generator"]) == {"reconstruct-tae"}
    for column in ("group", "split"):
        assert fakes[column].tolist() == reals[column].tolist()
    real, fake = (open_image(root / t["file_name"][3]).pixels for t in (reals, fakes))
    assert np.array_equal(opened(made.generator).make(0, [3], [real])[0], fake)


def test_a_corpus_of_whole_photographs_keeps_names_and_quality(
    pair: str, tmp_path: Path, astronaut: np.ndarray
) -> None:
    photos = tmp_path / "photos"
    (photos / "trip").mkdir(parents=True)
    crop = astronaut[:70, 150:245, ::-1]
    cv2.imwrite(str(photos / "trip" / "a.jpg"), crop, [cv2.IMWRITE_JPEG_QUALITY, 81])
    cv2.imwrite(str(photos / "b.png"), crop)
    made = GenerateSettings(
        generator=f"reconstruct:{pair}", from_=photos, out=tmp_path / "corpus", device="cpu"
    )
    root = generate_corpus(made)
    table = pd.read_csv(root / MANIFEST)
    assert set(table["file_name"]) == {
        f"{folder}/{name}"
        for folder in ("0_real", "1_fake/reconstruct-tae")
        for name in ("trip/a.jpg", "b.png")
    }
    assert set(table["group"]) == {"trip/a.jpg", "b.png"}
    assert (table.groupby("group")["split"].nunique() == 1).all()
    for name in table["file_name"]:
        facts = read_facts(root / name)
        assert (facts.stored_width, facts.stored_height) == (95, 70)
        if name.endswith(".jpg"):
            assert estimate_quality(facts.quantization) == 81
