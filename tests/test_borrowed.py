"""Anybody's generators: functions, plug-ins, torch.hub, diffusers, and what is said of mistakes."""

from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from ganscope.cli.list import _generators
from ganscope.config import GenerateSettings
from ganscope.datasets.layouts import MANIFEST
from ganscope.errors import GanscopeError
from ganscope.generator.borrowed import diffusers, functions
from ganscope.generator.by_name import open_generator
from ganscope.generator.model import AnyGenerator
from ganscope.generator.sampling import generate_corpus
from ganscope.images import open_image

FILE = """
import numpy as np

def noise(n, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, 12, 12, 3), np.uint8)

def fails(n, seed):
    x = n - 16
    return n / x
"""
HUBCONF = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, flat, side, noisy):
        super().__init__()
        self.flat, self.side, self.noisy = flat, side, noisy
        self.layer = nn.Linear(5, 3 * side * side)

    def forward(self, z):
        assert z.dim() == (2 if self.flat else 4), "wrong shape of z"
        x = torch.tanh(self.layer(z.flatten(1))).unflatten(1, (3, self.side, self.side))
        return x + 0.1 * torch.randn_like(x) if self.noisy else x

def net(flat=True, side=8, noisy=False, told=False):
    torch.manual_seed(0)
    model = Net(flat, side, noisy)
    if told:
        model.nz = 5
    return model

class Zoo:
    def __init__(self):
        self.netG = net()

    def buildNoiseData(self, n):
        return torch.randn(n, 5), None

    def test(self, z):
        return self.netG(z)

def zoo():
    return Zoo()

def text():
    return "no network"
"""


def opened(name: str, **changes: Any) -> AnyGenerator:
    return open_generator(GenerateSettings(generator=name, device="cpu", **changes))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "hubconf.py").write_text(HUBCONF)
    return folder


def assert_depends_on_number_only(generator: AnyGenerator) -> None:
    together = generator.make(3, [0, 1, 16, 40])
    torch.rand(1)  # what others draw changes nothing
    for row, index in enumerate([0, 1, 16, 40]):
        assert np.array_equal(generator.make(3, [index])[0], together[row])
    for other in together[1:]:
        assert not np.array_equal(together[0], other)
    assert not np.array_equal(generator.make(4, [0])[0], together[0])


def test_a_function_of_ones_own(file: Path) -> None:
    generator = opened(f"python:{file}:noise")
    assert (generator.label, generator.size, len(generator.weights)) == ("mine-noise", 12, 12)
    assert_depends_on_number_only(generator)
    file.write_text(FILE.replace("(n, 12, 12, 3)", "(n, 10, 12, 3)"))
    other = opened(f"python:{file}:noise")
    assert other.size == 10
    assert other.weights != generator.weights


@pytest.mark.parametrize(
    "images",
    [
        lambda pixels: pixels.astype(np.float64) / 255,
        lambda pixels: torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255,
        lambda pixels: [Image.fromarray(p) for p in pixels],
    ],
)
def test_images_may_come_in_any_of_the_usual_shapes(images: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 9, 9, 3), np.uint8)
    generator = functions.FunctionGenerator("f", "f", lambda n, seed: images(pixels))
    assert np.array_equal(generator.make(0, range(16)), pixels)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, "a NoneType"),
        ([], "none"),
        (np.zeros((3, 8, 8, 3), np.uint8), "it returned 3;"),
        (np.zeros((16, 8, 8), np.uint8), r"the shape \(16, 8, 8\)"),
        (np.full((16, 8, 8, 3), 200.0), "floats from 200 to 200"),
        (np.full((16, 8, 8, 3), np.nan), "floats from nan"),
        (np.zeros((16, 8, 8, 3), int), "type int64"),
    ],
)
def test_what_is_no_batch_of_images_is_described(returned: Any, said: str) -> None:
    with pytest.raises(GanscopeError, match=said):
        functions.FunctionGenerator("f", "f", lambda n, seed: returned)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("python:FILE:nois", "did you mean 'noise'"),
        ("python:FILE", "write python:FILE.py:FUNCTION"),
        ("python:nowhere.py:f", "no such file: nowhere.py"),
        ("python:FILE:fails", r"ZeroDivisionError: .*line 9 of mine.py"),
        ("pyton:FILE:noise", "did you mean 'python'"),
        ("hub:nowhere:net", "no such folder: nowhere"),
        ("hub:REPO", "write hub:REPO:MODEL"),
        ("hub:REPO:nett?latent=5", "Cannot find callable nett"),
        ("hub:REPO:net", "Add .latent=NUMBER"),
        ("hub:REPO:net?latent=6", r"refuses z of the shape \(1, 6\)"),
        ("hub:REPO:net?latent=x", "latent must be a whole number"),
        ("hub:REPO:net?latent=5&depth=2", "unexpected keyword argument 'depth'"),
        ("hub:REPO:text", "gives a str, not a network"),
    ],
)
def test_mistakes_are_named(name: str, said: str, file: Path, repository: Path) -> None:
    with pytest.raises(GanscopeError, match=said):
        opened(name.replace("FILE", str(file)).replace("REPO", str(repository)))


def test_a_file_that_cannot_be_run_says_where(file: Path) -> None:
    for text, said in (("\nx = (", "SyntaxError.*line 2"), ("x = 1\ny = z", "NameError.*line 2")):
        file.write_text(text)
        with pytest.raises(GanscopeError, match=said):
            opened(f"python:{file}:noise")


@pytest.mark.parametrize(
    "choice", [{"prompts": Path("p.txt")}, {"class_": "cat"}, {"truncation": 0.5}]
)
def test_what_a_generator_knows_nothing_of_is_refused(file: Path, choice: dict[str, Any]) -> None:
    with pytest.raises(GanscopeError, match=f"--{next(iter(choice)).rstrip('_')}: .*leave it out"):
        opened(f"python:{file}:noise", **choice)


def test_installed_packages_offer_generators_by_name(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(file.parent)
    points = [
        EntryPoint("plugged", "mine:noise", functions.GROUP),
        EntryPoint("photos", "mine:noise", functions.GROUP),
        EntryPoint("broken", "mine:nothing", functions.GROUP),
    ]
    monkeypatch.setattr(functions, "entry_points", lambda group: points)
    generator = opened("plugged")
    assert (generator.label, generator.size) == ("plugged", 12)
    assert opened("photos").size == 64  # what is shipped cannot be hidden
    with pytest.raises(GanscopeError, match="broken: mine:nothing cannot be imported"):
        opened("broken")
    listed = {name: text for name, _, text in _generators()}
    assert "mine:noise" in listed["plugged"]
    assert "(n, seed) -> images" in listed["python:FILE.py:FUNCTION"]


@pytest.mark.parametrize(
    "model", ["net?latent=5", "net?told=True", "net?latent=5&flat=False", "zoo"]
)
def test_networks_of_a_local_torch_hub_repository(repository: Path, model: str) -> None:
    generator = opened(f"hub:{repository}:{model}").to(torch.device("cpu"))
    assert (generator.label, generator.size) == (f"repository-{model.partition('?')[0]}", 8)
    assert_depends_on_number_only(generator)
    mean = np.mean([p.mean() for p in generator.make(0, range(50))])
    assert 107 < mean < 147  # of what tanh gives, about zero


def test_hub_options_reach_the_function_and_noise_of_its_own_is_seeded(repository: Path) -> None:
    generator = opened(f"hub:{repository}:net?latent=5&side=6&noisy=True")
    assert generator.size == 6
    assert_depends_on_number_only(generator)


def test_a_repository_that_cannot_be_had_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load", offline)
    with pytest.raises(GanscopeError, match=r"no network.*clone it elsewhere: hub:FOLDER:DCGAN"):
        opened("hub:facebookresearch/pytorch_GAN_zoo:hub:DCGAN")


def test_an_unconditional_pipeline(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    sizes = {"sample_size": 8, "block_out_channels": (8, 8), "norm_num_groups": 4}
    unet = diffusers.UNet2DModel(**sizes, **kinds, layers_per_block=1)
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=10)
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "ddpm")
    generator = opened(f"diffusers:{tmp_path / 'ddpm'}?steps=2").to(torch.device("cpu"))
    assert (generator.label, generator.size, generator.columns(0)) == ("ddpm", 8, {})
    assert_depends_on_number_only(generator)
    (tmp_path / "prompts.txt").write_text("a cat")
    with pytest.raises(GanscopeError, match=r"--prompts: a DDPMPipeline takes none"):
        opened(f"diffusers:{tmp_path / 'ddpm'}", prompts=tmp_path / "prompts.txt")
    with pytest.raises(GanscopeError, match="one size only"):
        opened(f"diffusers:{tmp_path / 'ddpm'}?size=16")


class StubPipeline:
    """Text to image by brightness; its safety checker dislikes the first draw of "night"."""

    default_sample_size, vae_scale_factor = 4, 4
    refused: list[int] = []

    def set_progress_bar_config(self, disable: bool) -> None:
        pass

    def to(self, device: torch.device) -> None:
        pass

    def __call__(
        self,
        prompt: str,
        generator: torch.Generator,
        output_type: str,
        height: int = 16,
        width: int = 16,
    ) -> SimpleNamespace:
        seed = generator.initial_seed()
        black = prompt == "night" and len(self.refused) < 1
        if black:
            self.refused.append(seed)
        if prompt == "fail":
            raise RuntimeError("out of memory")
        noise = torch.randint(0, 99, (height, width, 3), generator=generator) + len(prompt)
        image = Image.fromarray(noise.to(torch.uint8).numpy())
        return SimpleNamespace(images=[image], nsfw_content_detected=[black])


def test_text_to_image_turns_through_its_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diffusers, "_open_pipeline", lambda *_: (StubPipeline(), "0" * 12))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\ufeffa cat, asleep\n\n a dog \n", encoding="utf-8")
    made = GenerateSettings(
        n=6, generator="diffusers:me/net", prompts=prompts, out=tmp_path / "corpus", device="cpu"
    )
    table = pd.read_csv(generate_corpus(made) / MANIFEST)
    fakes = table[table["label"] == 1]
    assert fakes["prompt"].tolist() == ["a cat, asleep", "a dog"] * 3
    assert fakes.groupby("prompt")["group"].nunique().tolist() == [1, 1]
    assert fakes.groupby("group")["split"].nunique().tolist() == [1, 1]
    assert set(fakes["generator"]) == {"me--net"}
    assert open_image(tmp_path / "corpus" / fakes["file_name"].iloc[0]).width == 16
    assert_depends_on_number_only(opened("diffusers:me/net?size=8", prompts=prompts))
    assert opened("diffusers:me/net?size=8", prompts=prompts).size == 8


def test_prompts_that_are_missing_empty_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diffusers, "_open_pipeline", lambda *_: (StubPipeline(), ""))
    prompts = tmp_path / "prompts.txt"
    with pytest.raises(GanscopeError, match="needs --prompts FILE"):
        opened("diffusers:me/net")
    with pytest.raises(GanscopeError, match="cannot be read"):
        opened("diffusers:me/net", prompts=prompts)
    prompts.write_text(" \n")
    with pytest.raises(GanscopeError, match="is empty"):
        opened("diffusers:me/net", prompts=prompts)
    prompts.write_text("night\nfail")
    generator = opened("diffusers:me/net", prompts=prompts)
    generator.make(0, [0])
    assert len(StubPipeline.refused) == 1  # drawn anew
    with pytest.raises(GanscopeError, match="out of memory"):
        generator.make(0, [1])
    monkeypatch.setattr(diffusers, "ATTEMPTS", 1)
    StubPipeline.refused.clear()
    with pytest.raises(GanscopeError, match=r"safety checker.*'night'"):
        generator.make(0, [0])


def test_a_pipeline_that_cannot_be_had_says_what_to_do_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("diffusers")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    for name, reason in ((tmp_path / "empty", "no file"), ("nobody/no-such-model", "cache")):
        said = rf"could not be loaded \(.*{reason}.*offline, download"
        with pytest.raises(GanscopeError, match=said):
            opened(f"diffusers:{name}")


def test_a_corpus_by_a_function(file: Path, tmp_path: Path) -> None:
    made = GenerateSettings(
        n=20, generator=f"python:{file}:noise", out=tmp_path / "corpus", device="cpu", seed=2
    )
    root = generate_corpus(made)
    table = pd.read_csv(root / MANIFEST)
    fakes = table[table["label"] == 1]
    assert fakes["file_name"].tolist() == [f"1_fake/mine-noise/{i:06d}.png" for i in range(20)]
    expected = opened(f"python:{file}:noise").make(2, range(20))
    for name, pixels in zip(fakes["file_name"], expected, strict=True):
        assert np.array_equal(open_image(root / name).pixels, pixels)
    assert (table["label"] == 0).sum() == 20
