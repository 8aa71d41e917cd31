"""`ganscope demo`: the whole circle in a few minutes, with pictures. The one command above all
rooms.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from ganscope.cli.console import Device, Seed, err, out, progress
from ganscope.config import (
    AuditSettings,
    BenchmarkSettings,
    CheckSettings,
    GenerateSettings,
    TrainDetectorSettings,
    next_free,
)

N = 600
"""Fakes that the demo makes."""


def demo(
    out_: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for everything. [default: demo, demo-2, ...]"),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Make fakes, train a detector on them, benchmark it and check photos with it; offline.

    Example:

      ganscope demo --out demo
    """
    from ganscope.locks import holding

    folder = out_ or next_free(Path("demo"), lambda p: p.exists())
    with holding(folder):
        _whole_circle(folder, seed, device)


def _whole_circle(folder: Path, seed: int, device: str) -> None:
    import cv2
    import numpy as np

    from ganscope.cli.benchmark import show_results
    from ganscope.cli.check import show_checks
    from ganscope.datasets.audit import audit_corpus
    from ganscope.datasets.corpus import open_corpus
    from ganscope.datasets.sources import open_source
    from ganscope.datasets.writing import disk_errors
    from ganscope.detector.benchmark.benchmark import benchmark_detectors
    from ganscope.detector.judging.checking import check_images
    from ganscope.detector.training.recipes import train_detector
    from ganscope.files import replacing
    from ganscope.generator.sampling import generate_corpus
    from ganscope.images import open_image

    pictures = folder / "pictures"
    with disk_errors(folder):
        pictures.mkdir(parents=True, exist_ok=True)

    err.rule("1. make fakes")
    corpus = generate_corpus(GenerateSettings(n=N, out=folder / "corpus", seed=seed, device=device))
    table = open_corpus(corpus).table
    sheet = [
        _sheet([open_image(p).pixels for p in table[table["label"] == label]["path"][:48]])
        for label in (0, 1)
    ]
    gap = np.full((sheet[0].shape[0], 24, 3), 255, np.uint8)
    with replacing(pictures / "reals-left-fakes-right.png") as part:
        cv2.imwrite(str(part), np.hstack([sheet[0], gap, sheet[1]])[..., ::-1])
    audit = audit_corpus(AuditSettings(corpus=corpus))
    out.print(
        f"{N} fakes and {N} reals; their files alone tell them apart with AUROC "
        f"{audit.auroc:.2f} (0.5: not at all)"
    )

    err.rule("2. train a detector")
    with progress() as bar:
        run = train_detector(
            TrainDetectorSettings(
                corpora=(corpus,),
                detector="cnn",
                out=folder / "detector",
                epochs=6,
                seed=seed,
                device=device,
            ),
            bar,
        )

    err.rule("3. benchmark it on images it has not seen")
    results = benchmark_detectors(
        BenchmarkSettings(
            corpora=(corpus,),
            detector=(str(run),),  # crops of 64 pixels are too small for the one that ships
            degrade=("jpeg:75", "resize:0.75"),
            split="test",
            out=folder / "benchmark",
            bootstrap=200,
            seed=seed,
            device=device,
        )
    )
    show_results(results)

    err.rule("4. check photos")
    test = table[table["split"] == "test"]
    photographs = open_source("photographs")
    number = photographs.groups.index(test[test["label"] == 0]["group"].iloc[0])
    photo = folder / "photo.jpg"  # a whole photograph of which the training saw nothing
    pixels = photographs.photo(number)
    with replacing(photo) as part:
        cv2.imwrite(str(part), pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    fakes = test[test["label"] == 1]["path"][:3]
    for detector, paths in ((str(run), (str(photo), *fakes)), ("default", (str(photo),))):
        settings = CheckSettings(
            paths=paths,
            detector=detector,
            heatmap=pictures / f"heatmaps-{Path(detector).name}",
            device=device,
        )
        out.print(f"by the detector {detector}:", highlight=False)
        show_checks(list(check_images(settings)))
    for name in ("roc.png", "matrix.png"):
        with replacing(pictures / name) as part:
            part.write_bytes((folder / "benchmark" / name).read_bytes())
    err.rule()
    out.print(f"pictures are in {pictures}", highlight=False)


def _sheet(images: list[Any]) -> Any:
    """The first images in rows of eight, as one picture."""
    import numpy as np

    rows = [np.hstack(images[i : i + 8]) for i in range(0, len(images) - 7, 8)]
    return np.vstack(rows)
