"""How close ganscope comes to the bare work, as ratios measured in one run: `make bench`.

Every ratio compares the real thing with the same work stripped of files, pipelines and bookkeeping
on the same machine within the same minute, both sides in turn, best of several rounds: a busy
machine slows both. Targets: start-up under 0.5 s; generate, scoring and benchmark >= 0.80; training
step >= 0.85.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch

from ganscope.config import BenchmarkSettings, GenerateSettings, TrainGeneratorSettings
from ganscope.detector.benchmark.benchmark import benchmark_detectors
from ganscope.detector.judging.checking import check_image
from ganscope.detector.judging.scoring import score_images
from ganscope.detector.model import Detector
from ganscope.detector.training.views import Key, Loader, Views
from ganscope.generator.kinds.architectures import architectures
from ganscope.generator.model import Generator, latent, load_generator
from ganscope.generator.sampling import generate_corpus
from ganscope.images import open_image
from ganscope.inputs import find_images
from ganscope.memory import keep_freed_memory


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def startup() -> dict[str, float]:
    """Wall seconds of `ganscope --help` and of a mistyped option."""
    found = {}
    for name, arguments in (
        ("help", ["--help"]),
        ("argument_error", ["check", "--no-such-option"]),
    ):
        command = [sys.executable, "-m", "ganscope", *arguments]
        found[name] = min(
            seconds(lambda c=command: subprocess.run(c, capture_output=True)) for _ in range(5)
        )
    return found


def generate(n: int, rounds: int, name: str = "photos") -> dict[str, float]:
    """`generate_corpus` (fakes, reals, PNG, manifest) against the generator's bare forward pass."""
    generator = load_generator(name)
    numbers = range(generator.batch)
    batch = torch.from_numpy(np.stack([latent(0, i, generator.latent_dim) for i in numbers]))
    labels = (
        torch.tensor([i % len(generator.classes) for i in numbers]) if generator.classes else None
    )

    def bare() -> None:
        with torch.inference_mode():
            for _ in range(0, n, len(batch)):
                generator(batch, labels)

    ratios, rates = [], []
    bare()
    with tempfile.TemporaryDirectory() as folder:  # emptied at the end only: ext4 is slow to make
        for round_ in range(rounds):  # new files for minutes after many were deleted
            settings = GenerateSettings(
                generator=name,
                n=n,
                out=Path(folder) / f"corpus-{round_}",
                seed=round_,
                device="cpu",
            )
            whole = seconds(lambda s=settings: generate_corpus(s))
            ratios.append(seconds(bare) / whole)
            rates.append(n / whole)
    return {"ratio": float(np.median(ratios)), "fakes_per_second": float(np.median(rates))}


def family(n: int, rounds: int, size: int = 64) -> dict[str, dict[str, float]]:
    """`generate` for every architecture that starts from noise, at its default width, untrained."""
    found = {}
    for name, architecture in architectures.items():
        if architecture.from_photos:
            continue
        wish = TrainGeneratorSettings(real="", generator=name, size=size)
        classes = ["a", "b"] if architecture.conditional else []
        arguments = architecture.arguments(wish, classes)
        with tempfile.TemporaryDirectory() as folder:
            generator = Generator({"architecture": name, "arguments": arguments})
            generator.save(Path(folder) / name)
            found[name] = generate(n, rounds, str(Path(folder) / name))
    return found


def scoring(n: int, rounds: int) -> dict[str, float]:
    """Scoring a folder against the slower of bare decoding and the bare forward pass."""
    detector = Detector.load("default")
    size = detector.config["input"]["size"]
    with tempfile.TemporaryDirectory() as folder:
        paths = _photographs(Path(folder), n)
        scored = list(score_images(detector, paths, device="cpu"))
        tiles = sum(len(s.tile_logits) for s in scored)
        batch = torch.rand(32, 3, size, size).to(memory_format=torch.channels_last)

        def forward() -> None:
            with torch.inference_mode():
                for _ in range(0, tiles, len(batch)):
                    detector(batch)

        def decode() -> None:
            for path in paths:
                open_image(path)

        ratios = []
        for _ in range(rounds):
            slower = max(seconds(decode), seconds(forward))
            ratios.append(
                slower / seconds(lambda: list(score_images(detector, paths, device="cpu")))
            )
    return {"ratio": float(np.median(ratios)), "tiles": tiles, "images": n}


def benchmarking(n: int, rounds: int, side: int = 96) -> dict[str, float | list[float]]:
    """A benchmark of one detector on n images, report and all, against bare decoding and the bare
    forward pass, done before and after it; the share of its own time that it spends in the network,
    which a machine that changes its speed meanwhile does not touch; and the seconds of the same
    again, when all scores are known.
    """
    detector = Detector.load("default").eval().to(memory_format=torch.channels_last)
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        generate_corpus(GenerateSettings(n=n // 2, size=side, format="jpeg", out=corpus))
        batch = torch.rand(32, 3, side, side).to(memory_format=torch.channels_last)

        def bare() -> None:
            for path in find_images(corpus):
                open_image(path)
            with torch.inference_mode():
                for _ in range(0, n, len(batch)):
                    detector(batch)

        def real(name: str) -> float:
            out = Path(folder) / name
            settings = BenchmarkSettings(corpora=(corpus,), protocol="raw", out=out)
            return seconds(lambda: benchmark_detectors(settings))

        forward, inside = Detector.forward, 0.0

        def timed(self: Detector, images: torch.Tensor) -> torch.Tensor:
            nonlocal inside
            start = time.perf_counter()
            found = forward(self, images)
            inside += time.perf_counter() - start
            return found

        ratios, shares, again = [], [], []
        before = seconds(bare)
        for round_ in range(rounds):
            inside = 0.0
            with (
                mock.patch.dict(os.environ, {"GANSCOPE_CACHE": f"{folder}/cache-{round_}"}),
                mock.patch.object(Detector, "forward", timed),
            ):
                whole = real(f"first-{round_}")
                shares.append(inside / whole)
                again.append(real(f"again-{round_}"))
            after = seconds(bare)
            ratios.append((before + after) / 2 / whole)
            before = after
        return {
            "ratio": float(np.median(ratios)),
            "ratios": ratios,
            "network_share": float(np.median(shares)),
            "again_seconds": float(np.median(again)),
        }


def one_photograph(rounds: int, side: int = 1000) -> dict[str, float]:
    """`check` of one photograph of a megapixel, the detector loaded, against the bare forward pass
    of the tiles that it looks at, the re-encoded ones included.
    """
    import cv2
    import skimage.data

    detector = Detector.load("default").eval().to(memory_format=torch.channels_last)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "photograph.jpg")
        photo = cv2.resize(skimage.data.astronaut()[..., ::-1], (side, side))
        cv2.imwrite(path, photo, [cv2.IMWRITE_JPEG_QUALITY, 92])
        (scored,) = score_images(detector, [path], device="cpu", reencode=True)
        batches = torch.rand(scored.expected, 3, detector.size, detector.size).split(32)

        def forward() -> None:
            with torch.inference_mode():
                for batch in batches:
                    detector(batch.to(memory_format=torch.channels_last))

        ratios, times = [], []
        for _ in range(rounds):
            bare = seconds(forward)
            times.append(seconds(lambda: check_image(path, detector, device="cpu")))
            ratios.append(bare / times[-1])
    return {
        "ratio": float(np.median(ratios)),
        "seconds": float(np.median(times)),
        "tiles": scored.expected,
    }


def training(architecture: str, rounds: int) -> dict[str, float]:
    """Training steps fed by the real input pipeline against the same steps on preloaded tensors."""
    torch.manual_seed(0)
    detector = Detector.create(architecture).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(detector.parameters(), 1e-4)
    batch, steps = 32, 3 if architecture == "lite" else 40  # train-detector's own batch

    def learn(pixels: torch.Tensor) -> None:
        images = pixels.float().div_(255).contiguous(memory_format=torch.channels_last)
        losses = detector(images).square().mean()
        losses.backward()
        optimizer.step()
        optimizer.zero_grad()

    with tempfile.TemporaryDirectory() as folder:
        paths = _photographs(Path(folder), 32)
        table = pd.DataFrame({"path": paths, "label": [i % 2 for i in range(len(paths))]})
        views = Views(table, size=detector.size, degrade=0.8, qualities={0: [92], 1: [92]}, seed=0)
        ratios = []
        with Loader(views, workers=0) as loader:

            def order(epoch: int) -> list[list[Key]]:
                keys = [Key(epoch, i, i % len(paths), True) for i in range(batch * steps)]
                return [keys[i : i + batch] for i in range(0, len(keys), batch)]

            ready = list(loader.batches(order(0)))  # also fills the cache, as an epoch does
            learn(ready[0])
            for round_ in range(rounds):
                bare = seconds(lambda: [learn(pixels) for pixels in ready])
                keys = order(round_ + 1)
                whole = seconds(lambda k=keys: [learn(pixels) for pixels in loader.batches(k)])
                ratios.append(bare / whole)
    return {"ratio": float(np.median(ratios)), "images_per_second": batch * steps / whole}


def _photographs(folder: Path, n: int) -> list[str]:
    import cv2
    import skimage.data

    photo = skimage.data.astronaut()
    paths = []
    for i in range(n):
        path = folder / f"{i}.jpg"
        shifted = np.roll(photo, 17 * i, axis=1)[..., ::-1]
        cv2.imwrite(str(path), shifted, [cv2.IMWRITE_JPEG_QUALITY, 92])
        paths.append(str(path))
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the size, one round")
    quick = parser.parse_args().quick
    keep_freed_memory()  # as the command line does
    rounds = 1 if quick else 3
    results = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "startup_seconds": startup(),
        "generate": generate(1_000 if quick else 10_000, rounds),
        "generate_by_architecture": family(200 if quick else 4_000, 1),
        "scoring": scoring(8 if quick else 32, rounds),
        "benchmark": benchmarking(1_000 if quick else 10_000, rounds),
        "one_photograph": one_photograph(2 * rounds + 1),
        "training": {name: training(name, rounds) for name in ("cnn", "lite")},
    }
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
