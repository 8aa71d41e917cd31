"""`ganscope export`: a detector becomes one self-contained file or folder, and is held against
what it was made from before it takes its name.
"""

import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ganscope.config import ExportSettings
from ganscope.config.export import ENDINGS
from ganscope.detector.exported.loading import about, graph_of, kind_of_map, save_graph
from ganscope.detector.exported.running import (
    FOLDER_FILES,
    import_onnxruntime,
    import_openvino,
    open_exported,
    was_exported,
)
from ganscope.detector.judge import Judge, read_detector_config
from ganscope.detector.judging.scoring import score_images
from ganscope.detector.judging.views import whole_of
from ganscope.errors import GanscopeError, reason_of
from ganscope.files import replacing, write_json
from ganscope.inputs import find_images, refuse_missing
from ganscope.locks import holding_file
from ganscope.named import find_folder

Report = Callable[[str, int, int | None], None]
"""Is told what is done ("writing", "comparing"), how much of it, and of how much, where known."""


@dataclass(frozen=True, kw_only=True)
class Changed:
    """A picture of which the exported detector says something else."""

    picture: str
    score: float
    verdict: str
    exported_score: float
    exported_verdict: str


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A detector that was exported, and how it compares with what it was made from."""

    path: Path
    bytes: int
    images: int
    """Pictures that both judged."""
    largest: float
    mean: float
    """Differences in score."""
    changed: tuple[Changed, ...]
    """Those with another verdict."""
    left_out: tuple[str, ...]
    """Pictures of the sample that cannot be read, or hold nothing to be judged."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"path": str(self.path)}


def export_detector(settings: ExportSettings, report: Report | None = None) -> Exported:
    """Write a detector for another runtime, and verify it. report: is told how far it is.

    Raises `GanscopeError` if its network cannot be expressed there, if it gives scores that differ
    by more than is promised, or none where the detector does (nothing is kept then), if it cannot
    be written or something else has its name, if it was exported already, or if a package is
    missing.
    """
    report = report or (lambda *_: None)
    name = settings.detector
    out = settings.out or Path(f"{Path(name).name}{ENDINGS[settings.to]}")
    if out.is_dir() and not (settings.to == "openvino" and _is_ours(out)):
        raise GanscopeError(f"--out {out}: is a folder already; name another")
    if out.is_file() and (settings.to == "openvino" or not was_exported(out)):
        raise GanscopeError(
            f"--out {out}: is there already, and no detector that was exported so; name another"
        )
    if settings.to == "openvino":
        import_openvino("--to openvino")
    elif settings.to == "onnx":
        import_onnxruntime("--to onnx")
    if Path(name).exists() and was_exported(Path(name)):
        raise GanscopeError(f"{name}: is exported already; name the detector that it was made of")
    refuse_missing(settings.sample)
    read_detector_config(find_folder(name, "detectors"), name)  # before torch, which takes a while
    from ganscope.detector.model import load_detector

    detector = load_detector(name)
    held = out.with_name(f"{out.name}.folder") if out.is_dir() else out
    with holding_file(held), _placing(out, settings.to == "openvino") as part:
        report("writing", 0, None)
        try:
            _write(detector, settings, part)
        except OSError as error:
            said = error.strerror or reason_of(error)
            raise GanscopeError(f"--out {out}: cannot be written ({said})") from None
        exported = open_exported(part)
        assert exported is not None
        found = compare(detector, exported, settings, report)
        if not found["largest"] <= settings.promised:
            raise GanscopeError(
                f"{name} as {settings.to}: scores differ by up to {found['largest']:.3g}, "
                f"promised is {settings.promised:g}, so nothing was kept; take another form, "
                "or allow more by --tolerance"
            )
        size = sum(p.stat().st_size for p in [part, *part.rglob("*")] if p.is_file())
    return Exported(path=out, bytes=size, **found)


def compare(
    detector: Judge, exported: Judge, settings: ExportSettings, report: Report
) -> dict[str, Any]:
    """How the verdicts of two judges differ: what `Exported` says of it.

    Without a sample, detectors of faces alone are shown made pictures as if these were faces.
    Raises `GanscopeError` if the detector can judge none of the pictures, and if the exported one
    gives no number where the detector does.
    """
    pictures = [path for one in settings.sample for path in islice(find_images(one), settings.most)]
    sample: list[Any] = list(pictures[: settings.most] or made_pictures(detector.size))
    names = pictures or [f"made picture {number}" for number in range(1, len(sample) + 1)]
    scores: list[list[float | None]] = []
    for judge in (detector, exported):
        if judge.faces_alone and not pictures:
            judge.prepare("cpu")
            views = np.stack([whole_of(pixels, judge.size) for pixels in sample])
            scores.append(list(map(float, judge.score(judge.logits(views)))))
            continue
        scores.append([])
        for scored in score_images(judge, sample, device="cpu"):
            scores[-1].append(scored.score)
            report("comparing", sum(map(len, scores)) // 2, len(sample))
    both: list[tuple[str, float, float]] = []
    left_out: list[str] = []
    for name, one, other in zip(names, *scores, strict=False):
        if one is None:
            left_out.append(name)
            continue
        if other is None or not np.isfinite(other):
            raise GanscopeError(
                f"{settings.detector} as {settings.to}: gives no number for {name}, so nothing was "
                "kept; take another form"
            )
        both.append((name, one, other))
    if not both:
        if detector.faces_alone:
            raise GanscopeError(
                "--sample: this detector looks at faces, and none are found there that are large "
                "enough; name pictures with faces"
            )
        raise GanscopeError("--sample: none of these pictures can be read")
    differ = [abs(one - other) for _, one, other in both]
    changed = (
        Changed(
            picture=name,
            score=one,
            verdict=detector.verdict(one),
            exported_score=other,
            exported_verdict=exported.verdict(other),
        )
        for name, one, other in both
        if detector.verdict(one) != exported.verdict(other)
    )
    return {
        "images": len(both),
        "largest": max(differ),
        "mean": float(np.mean(differ)),
        "changed": tuple(changed),
        "left_out": tuple(left_out),
    }


def made_pictures(size: int, count: int = 8) -> Iterator[np.ndarray]:
    """Pictures (H, W, 3) uint8 to compare judges on where there are no others: noise of all sizes
    of grain over colours that run into each other, and edges, as pictures have them.
    """
    rng = np.random.default_rng(0)
    for number in range(count):
        height, width = (int(size * rng.uniform(1.1, 2.2)) for _ in range(2))
        picture = np.zeros((height, width, 3), np.float32)
        for grain in (2, 8, 32, 128):
            shape = (max(height // grain, 1), max(width // grain, 1), 3)
            coarse = rng.normal(size=shape).astype(np.float32)
            picture += cv2.resize(coarse, (width, height)) * grain ** (0.2 + 0.1 * number)
        picture = picture / picture.std() * 50 + 120
        for _ in range(number):
            one, other = rng.integers(0, (width, height), (2, 2)).tolist()
            colour = rng.integers(0, 256, 3).tolist()
            cv2.rectangle(picture, one, other, colour, -1 if number % 2 else 3)
        yield np.clip(picture, 0, 255).astype(np.uint8)


def _write(detector: Any, settings: ExportSettings, part: Path) -> None:
    name = settings.detector
    folder = find_folder(name, "detectors")
    config = read_detector_config(folder, name)
    form = "int8" if settings.int8 else "half" if settings.half else "float"
    what = about(config, name, kind_of_map(detector) if settings.map else None, form)
    if settings.to == "torchscript":
        from ganscope.detector.exported.tracing import save_script  # needs torch

        save_script(detector, part, what, settings.half, settings.map)
        return
    if settings.to == "onnx":
        save_graph(graph_of(name, folder, config, part, form, mapped=settings.map), part)
        return
    openvino = import_openvino("--to openvino")
    file = part / "graph.onnx"
    model = graph_of(name, folder, config, file, form, portable=True, mapped=settings.map)
    save_graph(model, file)
    openvino.save_model(
        openvino.convert_model(file), part / FOLDER_FILES[0], compress_to_fp16=settings.half
    )
    file.unlink()
    write_json(part / FOLDER_FILES[2], what)


@contextmanager
def _placing(out: Path, folder: bool) -> Iterator[Path]:
    """A name for a file, or a new folder, that takes the place of `out` at the end of the block."""
    if not folder:
        with replacing(out) as part:
            yield part
        return
    part = out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")
    part.mkdir(parents=True)
    try:
        yield part
        if out.is_dir():
            shutil.rmtree(out)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _is_ours(folder: Path) -> bool:
    """Whether a folder was exported for OpenVINO, and nothing else is in it."""
    return {path.name for path in folder.iterdir()} <= {*FOLDER_FILES}
