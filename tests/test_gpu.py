"""The same on a CUDA device as on a CPU; skipped where there is none."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from test_places import Told, draw_face, faces_settings, make_masked, settings
from test_training import make_corpus

from ganscope.config import (
    HEATMAP_METHODS,
    BenchmarkSettings,
    CheckSettings,
    GenerateSettings,
    TrainDetectorSettings,
    TrainGeneratorSettings,
)
from ganscope.detector.benchmark.benchmark import benchmark_detectors
from ganscope.detector.judging.checking import check_images
from ganscope.detector.judging.heatmaps import heatmap
from ganscope.detector.judging.scoring import score_images
from ganscope.detector.model import Detector, load_detector
from ganscope.detector.training import faces
from ganscope.detector.training.device_augmentation import augment, draw
from ganscope.detector.training.recipes import train_detector
from ganscope.devices import to_device
from ganscope.generator.kinds.architectures import architectures
from ganscope.generator.model import latent, load_generator
from ganscope.generator.sampling import generate_corpus
from ganscope.generator.training import train_generator

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_scores_and_heatmaps_agree_with_the_cpus(astronaut: np.ndarray) -> None:
    found = [
        next(score_images(load_detector("default"), [astronaut], device=device)).logit
        for device in ("cpu", "cuda")
    ]
    assert found[0] == pytest.approx(found[1], abs=0.05)
    on_cpu, on_cuda = load_detector("default"), load_detector("default").cuda()
    for method in HEATMAP_METHODS:
        difference = heatmap(on_cpu, astronaut, method) - heatmap(on_cuda, astronaut, method)
        assert np.abs(difference).mean() < 0.02


def test_fakes_agree_with_the_cpus() -> None:
    z = np.stack([latent(0, i, 100) for i in range(8)])
    on_cpu, on_cuda = load_generator().pixels(z), load_generator().cuda().pixels(z)
    assert np.abs(on_cpu.astype(int) - on_cuda).mean() < 1


def test_augmentation_agrees_with_the_cpus(astronaut: np.ndarray) -> None:
    parts = np.stack([astronaut[y : y + 256, x : x + 256] for y in (0, 99) for x in (0, 77, 200)])
    pixels = torch.from_numpy(parts).permute(0, 3, 1, 2)
    draws = draw(6, np.random.default_rng(0))
    draws = replace(draws, level=np.zeros(6))  # noise is another on each kind of device
    on_cpu, on_cuda = augment(pixels, draws, 224), augment(pixels.cuda(), draws, 224).cpu()
    assert (on_cpu - on_cuda).abs().mean() < 0.5 / 255
    twice = [augment(pixels.cuda(), draw(6, np.random.default_rng(1)), 224) for _ in range(2)]
    assert torch.equal(*twice)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_fine_tuning(tmp_path: Path, checkpointing: bool) -> None:
    corpus = make_corpus(tmp_path / "c", {"real": 60, "a": 60}, trace=60.0)
    wish = TrainDetectorSettings(
        corpora=(corpus,),
        detector="vit:test_vit",
        recipe="finetune",
        out=tmp_path / "run",
        size=32,
        steps=120,
        batch_size=32,
        learning_rate=3e-3,
        degrade=0.0,
        checkpointing=checkpointing,
        device="cuda",
    )
    run = train_detector(wish)
    trained = Detector.load(run)
    assert trained.config["training"]["precision"] == "bf16"
    scores = pd.read_csv(run / "scores.csv")
    fakes = scores["label"] == 1
    assert scores["logit"][fakes].mean() > scores["logit"][~fakes].mean() + 0.5


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp16"])
def test_the_whole_circle_in_every_precision(tmp_path: Path, precision: str) -> None:
    made = train_generator(
        TrainGeneratorSettings(
            real="photographs",
            out=tmp_path / "generator",
            size=32,
            steps=6,
            width=8,
            sample_every=3,
            device="cuda",
            precision=precision,
        )
    )
    corpus = generate_corpus(
        GenerateSettings(n=80, generator=str(made), out=tmp_path / "corpus", device="cuda")
    )
    run = train_detector(
        TrainDetectorSettings(
            corpora=(corpus,),
            out=tmp_path / "run",
            epochs=2,
            device="cuda",
            precision=precision,
            workers=1,
        )
    )
    assert Detector.load(run).thresholds["fake"] > 0


RECIPES = {
    "aligned": {"recipe": "aligned"},
    "cnndetect": {"recipe": "cnndetect"},
    "npr": {"recipe": "npr", "detector": "npr"},
    "patch": {"detector": "patch"},
    "lite": {"detector": "lite"},
    "frozen-linear": {"recipe": "frozen-linear", "detector": "timm:test_vit"},
    "soup": {"soup": 2},
    "fuse": {"fuse": "patch"},
}


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_every_recipe_trains_and_judges_as_on_the_cpu(recipe: str, tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "c", {"real": 60, "a": 60}, trace=60.0)
    about = {"corpora": (corpus,), "out": tmp_path / "run", "size": 32, "epochs": 1}
    run = train_detector(TrainDetectorSettings(**about | RECIPES[recipe], device="cuda"))
    paths = sorted(str(p) for p in corpus.rglob("*.png"))[:20]
    logits = [
        [s.logit for s in score_images(load_detector(str(run)), paths, device=device)]
        for device in ("cpu", "cuda")
    ]
    np.testing.assert_allclose(*logits, atol=0.05)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_places_are_learned(tmp_path: Path, precision: str) -> None:
    wish = settings(make_masked(tmp_path / "c"), tmp_path / "run", masks=True, size=40)
    trained = Detector.load(train_detector(replace(wish, device="cuda", precision=precision)))
    assert trained.config["training"]["precision"] == precision
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    maps = []
    for device in ("cpu", "cuda"):
        trained.prepare(device)
        maps.append(trained.local_logits(pixels)[0])
    np.testing.assert_allclose(*maps, atol=0.05)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_faces_are_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    monkeypatch.setattr(faces, "open_finder", Told)
    rng = np.random.default_rng(0)
    for i in range(36):
        path = tmp_path / "portraits" / "abcdef"[i % 6] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), draw_face(rng)[..., ::-1])
    wish = faces_settings(tmp_path / "portraits", tmp_path / "run")
    trained = Detector.load(train_detector(replace(wish, device="cuda", precision=precision)))
    assert trained.faces_alone
    assert trained.config["training"]["precision"] == precision


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["pix2pix", "cyclegan"])
def test_generators_that_start_from_pictures_train(
    kind: str, precision: str, tmp_path: Path
) -> None:
    about = {"generator": kind, "input": "grey", "size": 32, "width": 8, "steps": 3}
    wish = TrainGeneratorSettings(
        real="photographs", out=tmp_path / "g", device="cuda", precision=precision, **about
    )
    made = load_generator(str(train_generator(wish)))
    photos = [np.full((32, 32, 3), grey, np.uint8) for grey in (40, 200)]
    on_cpu = np.stack(made.make(0, [0, 1], photos))
    on_cuda = np.stack(made.cuda().make(0, [0, 1], photos))
    assert np.abs(on_cpu.astype(int) - on_cuda).mean() < 1


@pytest.mark.parametrize("kind", sorted(set(architectures) - {"pix2pix", "cyclegan"}))
def test_every_kind_of_generator_trains_and_generates(kind: str, tmp_path: Path) -> None:
    about = {"generator": kind, "real": "photographs", "size": 32, "width": 8, "steps": 3}
    made = train_generator(TrainGeneratorSettings(**about, out=tmp_path / "g", device="cuda"))
    wish = GenerateSettings(n=6, generator=str(made), out=tmp_path / "c", device="cuda")
    assert len(list(generate_corpus(wish).rglob("*.png"))) >= 6


def test_check_and_benchmark(tmp_path: Path, photo: Path) -> None:
    corpus = make_corpus(tmp_path / "c", {"real": 20, "a": 20})
    wish = CheckSettings(paths=(str(photo),), device="cuda", heatmap=tmp_path / "heat")
    (check,) = check_images(wish)
    assert check.error is None
    assert check.heatmap is not None
    benchmark_detectors(
        BenchmarkSettings(corpora=(corpus,), out=tmp_path / "b", device="cuda", bootstrap=10)
    )
    assert (tmp_path / "b").is_dir()


def test_the_batch_is_measured_and_changes_no_score(astronaut: np.ndarray) -> None:
    detector = Detector.create("cnn")
    detector.prepare("cuda")
    assert detector.batch() >= 32
    crops = [astronaut[y : y + 96, :96] for y in range(0, 400, 10)]
    few, many = (
        [s.logit for s in score_images(detector, crops, batch, "cuda")] for batch in (8, None)
    )
    np.testing.assert_allclose(few, many, atol=1e-3)


def test_what_travels_arrives() -> None:
    pixels = torch.arange(60, dtype=torch.uint8).view(3, 4, 5).permute(2, 0, 1)
    assert torch.equal(to_device(pixels, torch.device("cuda")).cpu(), pixels)
