"""Every command on a GPU, beside the CPU and beside the bare work; `gpu_check.sh` calls it.

    python benchmarks/gpu_check.py --device cuda --out FOLDER

Trains each recipe (but `faces`, which needs portraits) and each kind of generator for some steps,
compares scores with the CPU's, and times generate, check, benchmark, and train-detector in fp32 and
bf16. Leaves `gpu_check.json` and `gpu_check.md` in FOLDER. With `--device cpu` everything is small:
it shows that the script runs.
"""

import argparse
import json
import platform
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch

from ganscope.config import (
    BenchmarkSettings,
    GenerateSettings,
    TrainDetectorSettings,
    TrainGeneratorSettings,
)
from ganscope.detector.benchmark.benchmark import benchmark_detectors
from ganscope.detector.judging.scoring import score_images
from ganscope.detector.model import Detector, load_detector
from ganscope.detector.training.recipes import train_detector
from ganscope.generator.kinds.architectures import architectures
from ganscope.generator.sampling import generate_corpus
from ganscope.generator.training import train_generator
from ganscope.images import open_image

RECIPES: dict[str, dict[str, Any]] = {
    "full cnn": {"detector": "cnn"},
    "full lite": {"detector": "lite"},
    "full patch": {"detector": "patch"},
    "aligned": {"detector": "cnn", "recipe": "aligned"},
    "cnndetect": {"detector": "cnn", "recipe": "cnndetect"},
    "npr": {"detector": "npr", "recipe": "npr"},
    "frozen-linear": {"detector": "timm:test_vit", "recipe": "frozen-linear"},
    "finetune": {"detector": "vit:test_vit", "recipe": "finetune", "steps": 20},
    "soup": {"detector": "cnn", "soup": 2},
    "fuse": {"detector": "cnn", "fuse": "patch"},
}
PAIRED = ("pix2pix", "cyclegan")


def write_corpus(folder: Path, number: int, side: int) -> Path:
    """Noise, striped in fakes, as JPEG."""
    rng, rows = np.random.default_rng(0), []
    for i in range(number):
        label = i % 2
        pixels = rng.normal(128, 40, (side, side, 3))
        pixels[::2] += 30 * label
        name = f"{('real', 'fake')[label]}/{i}.jpg"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), pixels.clip(0, 255).astype(np.uint8))
        rows.append((name, label))
    table = pd.DataFrame(rows, columns=["file_name", "label"])
    table.to_csv(folder / "metadata.csv", index=False)
    return folder


class Checks:
    """What was tried: seconds, most memory on the device, and what went wrong."""

    def __init__(self, device: torch.device):
        self.device, self.rows = device, []  # type: ignore[var-annotated]

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def run(self, name: str, work: Callable[[], Any], per: float | None = None) -> Any:
        """per: pieces of work, for their number a second."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        begun, found, wrong = time.perf_counter(), None, None
        try:
            found = work()
            self.wait()
        except Exception as error:
            traceback.print_exc()
            wrong = f"{type(error).__name__}: {error}"
        seconds = time.perf_counter() - begun
        row: dict[str, Any] = {"name": name, "seconds": round(seconds, 2), "error": wrong}
        if per and wrong is None:
            row["a_second"] = round(per / seconds, 1)
        if self.device.type == "cuda":
            row["gigabytes"] = round(torch.cuda.max_memory_allocated(self.device) / 2**30, 2)
        self.rows.append(row)
        print(f"{name}: {row}", flush=True)
        return found


def bare_step(device: torch.device, architecture: str, batch: int, half: bool, steps: int) -> float:
    """Images a second of training steps on tensors that are there already."""
    net = Detector.create(architecture).to(device).train()
    optimizer = torch.optim.AdamW(net.parameters())
    images = torch.rand(batch, 3, net.size, net.size, device=device)
    begun = 0.0
    for step in range(steps + 3):
        if step == 3:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            begun = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = net(images).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return steps * batch / (time.perf_counter() - begun)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--device", default="cuda")
    options.add_argument("--out", type=Path, required=True)
    given = options.parse_args()
    warnings.simplefilter("ignore")
    device = torch.device(given.device)
    real = device.type == "cuda"
    out: Path = given.out
    out.mkdir(parents=True, exist_ok=True)
    checks = Checks(device)
    small = write_corpus(out / "small", 60, 48)
    many = write_corpus(out / "many", 8000 if real else 60, 64)
    paths = sorted(str(p) for p in many.rglob("*.jpg"))
    about: dict[str, Any] = {"device": given.device, "size": 32, "epochs": 1, "batch_size": 16}

    recipes = RECIPES if real else {n: RECIPES[n] for n in ("full cnn", "frozen-linear")}
    for name, change in recipes.items():
        plan = TrainDetectorSettings(
            corpora=(small,), out=out / "detectors" / name.replace(" ", "-"), **about | change
        )
        checks.run(f"train-detector {name}", lambda plan=plan: train_detector(plan))
    kinds = [kind for kind in sorted(architectures) if kind not in PAIRED]
    for kind in kinds if real else ["dcgan"]:
        wish = TrainGeneratorSettings(
            generator=kind,
            real="photographs",
            out=out / "generators" / kind,
            size=32,
            steps=20 if real else 2,
            width=8,
            device=given.device,
        )
        checks.run(f"train-generator {kind}", lambda wish=wish: train_generator(wish))

    differences = {}
    for run in sorted((out / "detectors").glob("*/config.json")):
        some = [
            [s.logit for s in score_images(load_detector(str(run.parent)), paths[:40], 32, where)]
            for where in ("cpu", given.device)
        ]
        differences[run.parent.name] = float(np.abs(np.subtract(*some)).max())

    n = 10_000 if real else 16
    asked = GenerateSettings(n=n, out=out / "made", device=given.device)
    checks.run("generate", lambda: generate_corpus(asked), n)

    def decode() -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda path: open_image(path).pixels.shape, paths))

    checks.run("bare decoding, all cores", decode, len(paths))
    for name in ("cnn", "timm:resnet50") if real else ("cnn",):
        detector = Detector.create(name)
        detector.prepare(given.device)
        batch = detector.batch()
        pixels = np.zeros((batch, detector.size, detector.size, 3), np.uint8)
        detector.logits(pixels)
        times = 20 if real else 1
        checks.run(
            f"bare forward {name}, batch {batch}",
            lambda d=detector, p=pixels, t=times: [d.logits(p) for _ in range(t)],
            times * batch,
        )
        checks.run(
            f"check {name}",
            lambda d=detector: list(score_images(d, paths, None, given.device)),
            len(paths),
        )
        for precision in ("fp32", "bf16"):
            size = 256 if real else 8
            bare = bare_step(device, name, size, precision == "bf16", 20 if real else 1)
            checks.rows.append(
                {"name": f"bare steps {name} {precision}", "a_second": round(bare, 1)}
            )
            plan = TrainDetectorSettings(
                corpora=(many,),
                out=out / f"speed-{name.replace(':', '-')}-{precision}",
                detector=name,
                epochs=1,
                batch_size=size,
                device=given.device,
                precision=precision,
            )
            run = checks.run(f"train {name} {precision}", lambda plan=plan: train_detector(plan))
            if run:
                log = pd.read_csv(run / "losses.csv")
                checks.rows[-1]["a_second"] = round(float(log["images_per_second"].iloc[-1]), 1)
    plan_ = BenchmarkSettings(
        corpora=(small,),
        detector=(str(out / "detectors" / "full-cnn"),),
        out=out / "benchmark",
        device=given.device,
        bootstrap=10,
    )
    checks.run("benchmark", lambda: benchmark_detectors(plan_), 60)

    card = torch.cuda.get_device_name(device) if real else platform.processor() or "CPU"
    failed = [row["name"] for row in checks.rows if row.get("error")]
    far = {name: round(value, 4) for name, value in differences.items() if value > 0.1}
    result = {
        "card": card,
        "torch": torch.__version__,
        "rows": checks.rows,
        "largest_difference_of_logits": differences,
        "failed": failed,
        "far_from_the_cpu": far,
    }
    (out / "gpu_check.json").write_text(json.dumps(result, indent=2))
    lines = [f"{card}, torch {torch.__version__}", "", "| what | seconds | a second | GiB |"]
    lines += ["|---|---|---|---|"]
    for row in checks.rows:
        cells = [str(row.get(key, "")) for key in ("name", "seconds", "a_second", "gigabytes")]
        lines.append(f"| {' | '.join(cells)} |{' FAILED' if row.get('error') else ''}")
    lines += ["", "| detector | largest difference of logits from the CPU's |", "|---|---|"]
    lines += [f"| {name} | {value:.5f} |" for name, value in differences.items()]
    (out / "gpu_check.md").write_text("\n".join(lines) + "\n")
    print(out / "gpu_check.md")
    if failed or far:
        sys.exit(f"failed: {failed}; far from the CPU: {far}")


if __name__ == "__main__":
    main()
