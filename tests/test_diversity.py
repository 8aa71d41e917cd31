"""Diversity: figures with closed-form answers, agreement with the definitions, dropped modes
found.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import typer
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from ganscope.cli.diversity import diversity as diversity_command
from ganscope.config import DiversitySettings
from ganscope.errors import GanscopeError
from ganscope.generator import diversity, features
from ganscope.generator.diversity import (
    compare_neighbourhoods,
    diversity_warning,
    duplicate_share,
    entropy,
    frechet_distance,
    gaussian_distance,
    kernel_distance,
    measure_diversity,
)
from ganscope.generator.features import extract_features, open_extractor
from ganscope.generator.kinds.toys import ModeCount, Stack, Toy, count_modes, toys, train_toy


@pytest.mark.parametrize(("name", "modes"), [("ring", 8), ("grid", 25)])
def test_a_toy_covers_all_its_own_modes(name: str, modes: int) -> None:
    toy = toys[name]
    points = toy.draw(2500, np.random.default_rng(0))
    found = count_modes(points, toy)
    assert found.modes == len(toy.centres) == modes
    # Within 3 standard deviations in two dimensions: 1 - exp(-9/2).
    assert found.high_quality == pytest.approx(1 - np.exp(-4.5), abs=0.007)
    nearest = np.linalg.norm(points[:, None] - toy.centres, axis=2).argmin(1)
    assert (points - toy.centres[nearest]).std() == pytest.approx(toy.std, rel=0.05)


def test_the_toys_lie_where_the_papers_put_them() -> None:
    assert np.allclose(np.linalg.norm(toys["ring"].centres, axis=1), 1)
    ticks = (-4, -2, 0, 2, 4)
    assert {tuple(c) for c in toys["grid"].centres} == {(x, y) for x in ticks for y in ticks}


def test_a_mode_counts_from_its_first_good_sample() -> None:
    toy = Toy(np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]), 1.0)
    samples = np.array([[0.0, 2.9], [0.0, 3.1], [0.1, 0.0], [10.0, 0.0], [0.0, 6.0]])
    assert count_modes(samples, toy) == ModeCount(2, 3 / 5)


def test_gans_play_on_toys() -> None:
    """100 steps bring the fakes to the ring, from the middle where they began."""
    seen: list[int] = []
    points = train_toy("unrolled", "ring", seeds=2, steps=100, report=seen.append)
    assert points.shape == (2, 2500, 2)
    for one in points:
        assert 0.7 < np.median(np.linalg.norm(one, axis=1)) < 1.3
    assert not np.allclose(points[0].mean(0), points[1].mean(0))
    assert seen[-1] == 100
    with pytest.raises(GanscopeError, match="vae does not play on toys; those that do: dcgan"):
        train_toy("vae", "ring")


def test_networks_of_a_stack_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    stack, x = Stack(3, [2, 8, 1], 0.2, 1.0, 1.0), torch.randn(15, 2)
    before = stack(x)
    assert before.shape == (15,)
    with torch.no_grad():
        stack.weights[0][1].mul_(2)
    changed = stack(x) != before
    assert changed[5:10].any()
    assert not changed[:5].any()
    assert not changed[10:].any()


def by_definition(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, ...]:
    """Precision, recall, density and coverage, written down a sample at a time."""

    def radius(side: np.ndarray, i: int) -> float:
        return sorted(np.linalg.norm(side[i] - s) for j, s in enumerate(side) if j != i)[k - 1]

    reals, fakes = range(len(real)), range(len(fake))
    r, f = [radius(real, i) for i in reals], [radius(fake, j) for j in fakes]
    d = np.array([[np.linalg.norm(real[i] - fake[j]) for j in fakes] for i in reals])
    return (
        np.mean([any(d[i, j] <= r[i] for i in reals) for j in fakes]),
        np.mean([any(d[i, j] <= f[j] for j in fakes) for i in reals]),
        sum(d[i, j] < r[i] for i in reals for j in fakes) / (k * len(fake)),
        np.mean([min(d[i]) < r[i] for i in reals]),
    )


@pytest.mark.parametrize("k", [1, 3, 5])
def test_neighbourhoods_agree_with_their_definitions(
    k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(k)
    real, fake = rng.normal(size=(40, 3)), rng.normal(0.5, 1.2, size=(31, 3))
    expected = by_definition(real, fake, k)
    for block in (1, 130, 1 << 20):  # rows one by one, a few, and all at once
        monkeypatch.setattr(diversity, "_BLOCK", block)
        found = compare_neighbourhoods(real, fake, k)
        assert tuple(vars(found).values()) == pytest.approx(expected)
    assert 0 < expected[0] < 1
    assert diversity.precision(real, fake, k) == found.precision
    assert diversity.recall(real, fake, k) == found.recall
    assert diversity.density(real, fake, k) == found.density
    assert diversity.coverage(real, fake, k) == found.coverage


def test_identical_sets_score_one_and_disjoint_ones_nothing() -> None:
    real = np.random.default_rng(0).normal(size=(200, 6))
    same = compare_neighbourhoods(real, real.copy())
    assert tuple(vars(same).values()) == (1, 1, 1, 1)
    apart = compare_neighbourhoods(real, real + 100)
    assert tuple(vars(apart).values()) == (0, 0, 0, 0)


def test_dropped_modes_cost_recall_and_coverage_but_not_precision() -> None:
    rng = np.random.default_rng(0)
    real, whole = (toys["ring"].draw(800, rng) for _ in range(2))
    half = whole[whole[:, 1] > 0.1]  # three of the eight modes
    all_modes, few = compare_neighbourhoods(real, whole), compare_neighbourhoods(real, half)
    assert few.precision == pytest.approx(all_modes.precision, abs=0.03)
    assert few.precision > 0.9
    assert all_modes.recall > 0.9
    assert all_modes.coverage > 0.9
    assert few.recall == pytest.approx(3 / 8, abs=0.05)
    assert few.coverage == pytest.approx(3 / 8, abs=0.05)


def test_too_few_samples_are_named() -> None:
    with pytest.raises(GanscopeError, match="at least 6"):
        compare_neighbourhoods(np.zeros((5, 2)), np.zeros((50, 2)))


def test_distance_of_known_gaussians() -> None:
    zero, eye = np.zeros(3), np.eye(3)
    assert gaussian_distance(zero, eye, zero, eye) == pytest.approx(0, abs=1e-9)
    assert gaussian_distance(zero, eye, np.array([1.0, 2, 2]), eye) == pytest.approx(9)
    # Of independent coordinates, sum of (s - s')^2.
    found = gaussian_distance(zero, np.diag([1.0, 4, 9]), zero, np.diag([4.0, 4, 0]))
    assert found == pytest.approx((1 - 2) ** 2 + 0 + 3**2)
    # Covariances that do not commute; in 2-D tr(M^(1/2)) = sqrt(tr M + 2 sqrt(det M)).
    a, b = np.array([[2.0, 1], [1, 3]]), np.array([[1.0, -0.5], [-0.5, 4]])
    root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    expected = np.trace(a + b) - 2 * root
    assert gaussian_distance(zero[:2], a, zero[:2], b) == pytest.approx(expected)


def test_distances_of_samples() -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(size=(20_000, 2))
    fake = rng.normal(size=(20_000, 2)) * [2, 1] + [3, 0]
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(real, fake) == pytest.approx(9 + 1, rel=0.03)
    # k(x, y) = (x y + 1)^3 of the two points 0 and 1 beside two points 2: by hand.
    x, y = np.array([[0.0], [1.0]]), np.array([[2.0], [2.0]])
    assert kernel_distance(x, y) == pytest.approx(1 + 125 - 2 * (1 + 1 + 27 + 27) / 4)


def test_the_kernel_distance_is_unbiased() -> None:
    rng = np.random.default_rng(0)
    found = [kernel_distance(*rng.normal(size=(2, 30, 4))) for _ in range(400)]
    assert abs(np.mean(found)) < 3 * np.std(found) / 20
    assert min(found) < 0


def test_distances_agree_with_torch_fidelity() -> None:
    fid = pytest.importorskip("torch_fidelity.metric_fid")
    kid = pytest.importorskip("torch_fidelity.metric_kid")
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(90, 12)), rng.normal(0.3, 1.3, size=(90, 12))
    stats = [{"mu": f.mean(0), "sigma": np.cov(f, rowvar=False)} for f in (real, fake)]
    (theirs,) = fid.fid_statistics_to_metric(*stats, verbose=False).values()
    assert frechet_distance(real, fake) == pytest.approx(theirs)
    found = kid.kid_features_to_metric(
        torch.from_numpy(real),
        torch.from_numpy(fake),
        kid_subsets=1,
        kid_subset_size=90,
        verbose=False,
    )
    assert kernel_distance(real, fake) == pytest.approx(
        found["kernel_inception_distance_mean"], rel=1e-6
    )


def test_doubles() -> None:
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(2, 500, 5))
    assert duplicate_share(real, fake) < 0.04
    fake[:100] = fake[100:200] + 1e-6
    assert duplicate_share(real, fake) == pytest.approx(200 / 500, abs=0.03)
    assert duplicate_share(real, np.zeros((50, 5))) == 1


def test_entropy() -> None:
    assert entropy([5, 5, 5, 5]) == pytest.approx(2)
    assert entropy([7, 0]) == 0
    assert entropy([1, 3]) == pytest.approx(2 - 0.75 * np.log2(3))


def pictures(n: int, seed: int, kinds: int = 1000) -> np.ndarray:
    """Smooth pictures (n, 16, 16, 3) uint8 of `kinds` different colours, with some noise."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(20, 235, (kinds, 2, 2, 3))
    chosen = colours[rng.integers(kinds, size=n)].repeat(8, 1).repeat(8, 2)
    return np.clip(chosen + rng.integers(-9, 10, chosen.shape), 0, 255).astype(np.uint8)


def test_a_warning_when_fakes_are_all_alike() -> None:
    reals = pictures(32, 0)
    assert diversity_warning(pictures(64, 1), reals) is None
    said = diversity_warning(pictures(64, 1, kinds=1), reals)
    assert said is not None
    assert "collapsing" in said
    small = np.stack([i[:10, :8] for i in pictures(32, 3)])  # another shape is welcome
    assert diversity_warning(small, reals) is None
    assert diversity_warning(reals[:1], reals) is None


def write_corpus(root: Path, n: int = 40) -> Path:
    """Reals, a generator as varied as they are, and one that makes but two pictures."""
    sides = {
        "0_real": pictures(n, 0),
        "1_fake/varied": pictures(n, 1),
        "1_fake/collapsed": pictures(n, 2, kinds=2),
    }
    rows = ["file_name,label,generator,class"]
    for folder, images in sides.items():
        (root / folder).mkdir(parents=True)
        generator = folder.partition("/")[2] or "real"
        for i, pixels in enumerate(images):
            name = f"{folder}/{i}.png"
            Image.fromarray(pixels).save(root / name)
            kind = ("cat", "dog", "hen", "cow")[i % 4] if generator != "collapsed" else "cat"
            rows.append(f"{name},{int(generator != 'real')},{generator},{kind}")
    (root / "metadata.csv").write_text("\n".join(rows) + "\n")
    return root


def test_a_corpus_is_measured_a_generator_at_a_time(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    settings = DiversitySettings(what=corpus, features="pixels", device="cpu")
    seen = []
    found = measure_diversity(settings, lambda done, total: seen.append((done, total)))
    collapsed, varied = found.generators
    assert (collapsed.generator, varied.generator) == ("collapsed", "varied")
    assert (found.features, found.dimensions) == ("pixels 8x8", 192)
    assert seen[-1] == (120, 120)
    assert collapsed.recall < varied.recall
    assert collapsed.coverage < varied.coverage
    assert collapsed.frechet > varied.frechet
    assert collapsed.kernel > varied.kernel
    assert collapsed.duplicates == 1
    assert varied.duplicates < 0.4
    assert collapsed.classes == {"cat": 40}
    assert collapsed.class_entropy == 0
    assert varied.classes == {"cat": 10, "cow": 10, "dog": 10, "hen": 10}
    assert varied.class_entropy == pytest.approx(2)
    assert any("features" in remark for remark in found.remarks)
    assert measure_diversity(settings) == found


def test_as_many_reals_as_fakes_are_compared_and_damage_is_passed_over(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    (corpus / "1_fake/varied/3.png").write_bytes(b"not a picture")
    settings = DiversitySettings(what=corpus, features="pixels", device="cpu")
    found = measure_diversity(settings)
    assert found.unreadable == 1
    assert [one.n for one in found.generators] == [40, 39]
    few = measure_diversity(DiversitySettings(what=corpus, features="pixels", n=20))
    other = measure_diversity(DiversitySettings(what=corpus, features="pixels", n=20, seed=1))
    assert few.generators[0].n == 20
    assert few.generators[0].frechet != other.generators[0].frechet


def test_an_odd_picture_does_not_make_all_differ_in_size() -> None:
    square, tall = (64, 64), (65, 64)
    for real, fake, said in (
        ({square: 20}, {square: 20}, []),
        ({square: 20, tall: 9}, {square: 20, tall: 9}, []),
        ({square: 20}, {tall: 20}, ["reals and fakes differ in size"]),
        ({square: 20}, {square: 19, tall: 1}, ["1 of 40 images are not of 64x64 pixels"]),
    ):
        sizes = {"real": Counter(real), "gan": Counter(fake)}
        remarks = list(diversity._remark_on_sizes(sizes))
        assert len(remarks) == len(said)
        assert all(remark.startswith(one) for remark, one in zip(remarks, said, strict=True))


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", n=9)
    with pytest.raises(GanscopeError, match="at least 10"):
        measure_diversity(DiversitySettings(what=corpus, features="pixels"))
    with pytest.raises(GanscopeError, match="--n"):
        DiversitySettings(what=corpus, n=1)


def test_pixels_are_averaged_and_keep_their_order() -> None:
    image = np.zeros((16, 24, 3), np.uint8)
    image[:2, :3] = 255  # exactly the first of the 8x8 areas
    image[2:4, :3] = [[[255, 0, 0]]]
    found = extract_features([image, np.full((5, 5, 3), 51, np.uint8)], "pixels")
    first = found[0].reshape(8, 8, 3)
    assert first[0, 0] == pytest.approx([1, 1, 1])
    assert first[1, 0] == pytest.approx([1, 0, 0])
    assert first.sum() == pytest.approx(4)
    assert found[1] == pytest.approx(0.2)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of timm's smallest ResNet, untrained, with a classifier."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    return path


def test_a_backbone_of_timm_with_a_weights_file(backbone: Path) -> None:
    extractor = open_extractor("timm:test_resnet", backbone)
    images = [*pictures(21, 0), np.zeros((9, 30, 3), np.uint8)]
    together = extractor(images)
    assert together.shape[0] == 22
    assert together.dtype == np.float64
    assert extractor.name.startswith("timm:test_resnet (tiny.safetensors, ")
    alone = np.concatenate([extractor([i]) for i in images])
    assert np.allclose(together, alone, atol=1e-5)
    net = timm.create_model("test_resnet", num_classes=0, checkpoint_path="").eval()
    state = timm.models.load_state_dict(str(backbone))
    net.load_state_dict({k: v for k, v in state.items() if k in net.state_dict()})
    side = net.pretrained_cfg["input_size"][1:]
    pixels = np.full((*side, 3), 200, np.uint8)
    mean, std = (torch.tensor(net.pretrained_cfg[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    with torch.inference_mode():
        expected = net((torch.full((1, 3, *side), 200 / 255) - mean) / std)
    assert np.allclose(extractor([pixels]), expected.numpy(), atol=1e-5)


def test_inception_with_a_weights_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inception = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")

    class Tiny(torch.nn.Module):
        def __init__(self, name: str, layers: list[str], path: str):
            super().__init__()
            assert layers == ["2048"]
            self.scale = torch.load(path)["scale"]

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
            assert images.dtype == torch.uint8
            return (images.float().mean((2, 3)) * self.scale,)

    monkeypatch.setattr(inception, "FeatureExtractorInceptionV3", Tiny)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    cached = tmp_path / "checkpoints" / inception.URL_INCEPTION_V3.rsplit("/", 1)[1]
    cached.parent.mkdir()
    torch.save({"scale": torch.tensor(2.0)}, cached)
    extractor = open_extractor("auto")
    assert extractor.name == "inception"
    image = np.zeros((6, 6, 3), np.uint8)
    image[..., 1] = 10
    assert extractor([image]) == pytest.approx(np.array([[0, 20, 0]]))


def test_features_that_cannot_be_had_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: Path
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(GanscopeError, match="auto, inception, timm:NAME or pixels"):
        open_extractor("vgg")
    with pytest.raises(GanscopeError, match="did you mean 'test_resnet'"):
        open_extractor("timm:test_resnett")
    with pytest.raises(GanscopeError, match="--weights goes with"):
        open_extractor("pixels", backbone)
    with pytest.raises(GanscopeError, match="no such file"):
        open_extractor("timm:test_resnet", tmp_path / "none.pth")
    with pytest.raises(GanscopeError, match="not to be had"):
        open_extractor("timm:test_efficientnet", backbone)  # another network's weights
    monkeypatch.setattr(
        timm, "create_model", lambda *_, **__: (_ for _ in ()).throw(OSError("offline"))
    )
    with pytest.raises(GanscopeError, match=r"not to be had \(OSError: offline\).*--features"):
        open_extractor("timm:test_resnet")
    monkeypatch.setattr(features, "_inception", refuse)
    assert open_extractor("auto").name == "pixels 8x8"  # what is left


def refuse(*_: object) -> None:
    raise GanscopeError("offline")


def test_a_generator_makes_the_fakes_that_are_measured() -> None:
    settings = DiversitySettings(what="faces", features="pixels", n=32, device="cpu")
    seen: list[tuple[int, int]] = []
    found = measure_diversity(settings, lambda done, total: seen.append((done, total)))
    assert [(one.generator, one.n) for one in found.generators] == [("faces", 32)]
    assert seen[-1] == (64, 64)


def test_the_command(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    app = typer.Typer()
    app.command()(diversity_command)
    runner = CliRunner()
    done = runner.invoke(app, [str(corpus), "--features", "pixels"], env={"COLUMNS": "150"})
    assert done.exit_code == 0, done.output
    for word in ("Frechet", "recall", "varied", "collapsed", "pixels 8x8", "2.00 bits", "25.0%"):
        assert word in done.output
    done = runner.invoke(app, [str(corpus), "--features", "pixels", "--json"])
    told = json.loads(done.stdout)
    assert told["features"] == "pixels 8x8"
    assert [one["generator"] for one in told["generators"]] == ["collapsed", "varied"]
