"""How well a detector of faces finds swaps of people and places that it never met.

    python benchmarks/faces.py make PHOTOS SWAPS      # PHOTOS: a folder a source, none learned from
    python benchmarks/faces.py learn OTHER_PHOTOS HEAD
    python benchmarks/faces.py judge SWAPS default --head HEAD
    ganscope train-detector OTHER_PHOTOS --recipe faces --detector lite --out RUN
    python benchmarks/faces.py judge SWAPS RUN

`make` writes a corpus: each photograph with a face, and the same with its largest face swapped for
one of another source (`swap_face`), both saved as JPEG 75, with masks. `judge` finds the faces
anew, as `check` does, and prints face-level AUROC, the share of swaps and of real faces that are
called fake at the detector's own threshold, and how well the masks are found. A swapped face that
is not found counts as called real.

`learn` makes the part of a `clip` detector that tells swapped faces (`networks/face_head.py`): a
linear classifier on what its untouched backbone sees in faces blended onto themselves
(`self_blend`) and in the same faces as they were. Its threshold is that which 1 % of the real faces
reach when their sources are left out, a third of them at a time. What ships was made so; copied
into a detector's folder, it is that detector's.
"""

import argparse
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from PIL import Image
from rich.progress import track
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ganscope.config import write_json
from ganscope.datasets.blending import self_blend, swap_face
from ganscope.datasets.corpus import open_corpus
from ganscope.datasets.degradations import jpeg
from ganscope.datasets.masks import encode_mask, read_mask
from ganscope.detector.exported.loading import QuickJudge, load_judge
from ganscope.detector.judge import sigmoid
from ganscope.detector.judging.faces import around, least_of
from ganscope.detector.judging.metrics import evaluate_by_generator
from ganscope.detector.judging.views import whole_of
from ganscope.detector.model import Detector, load_detector
from ganscope.detector.networks.face_head import FaceHead
from ganscope.detector.networks.transformer import BlockFeatures
from ganscope.errors import GanscopeError, ImageError
from ganscope.faces import Face, open_finder
from ganscope.images import open_image
from ganscope.inputs import find_images

SURE, LEAST, LONGEST = 0.75, 64, 1280
"""Of faces that are swapped: confidence and pixels; long side of the pictures that are saved."""
QUALITY = 75
GRID = 64
"""Places a side, of the mean mask."""


BLOCK, MARGIN = 7, 1.4
"""Of the part that learns: where tokens are read, and the square that is looked at."""
ROOM, FINEST = 2.4, 640
"""What is kept of a photograph around a face, in its longer sides, and in pixels at most."""
VARIANTS = 2
"""Blendings of each face."""
SLACK = 3e-4
"""Of the classifier: scikit-learn's C."""
REACHED = 0.01
"""Share of left-out real faces at the threshold."""


def make(photos: Path, out: Path, seed: int) -> None:
    found = [(source, path, pixels, faces[0]) for source, path, pixels, faces in _portraits(photos)]
    sources = {source for source, *_ in found}
    if len(sources) < 2:
        raise GanscopeError(f"{photos}: faces of two sources (folders) are needed to swap")
    rng = np.random.default_rng(seed)
    rows = []
    for folder in ("0_real", "1_fake/faceswap", "masks"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for number, (source, _, pixels, face) in enumerate(track(found, "swapping")):
        others = [i for i, one in enumerate(found) if one[0] != source]
        giver = found[others[rng.integers(len(others))]]
        swapped, mask = swap_face(pixels, face, giver[2], giver[3], rng)
        stem = f"{number:05d}"
        about = {"source": source, "group": stem, "box": json.dumps(face.box)}
        for label, generator, image in ((0, "real", pixels), (1, "faceswap", swapped)):
            file_name = f"{'1_fake/faceswap' if label else '0_real'}/{stem}.jpg"
            Image.fromarray(image).save(out / file_name, quality=QUALITY)
            row = {"file_name": file_name, "label": label, "generator": generator, **about}
            rows.append({**row, "mask": f"masks/{stem}.png" if label else ""})
        (out / "masks" / f"{stem}.png").write_bytes(encode_mask(mask))
    pd.DataFrame(rows).to_csv(out / "metadata.csv", index=False)
    print(f"{len(found)} photographs of {len(sources)} sources, and as many swaps: {out}")


def _portraits(photos: Path) -> Iterator[tuple[str, Path, np.ndarray, list[Face]]]:
    """Source, path, pixels and faces, largest first, of photographs of people."""
    finder = open_finder()
    for name in track(sorted(find_images(photos)), "finding faces"):
        try:
            pixels = open_image(name).pixels
        except ImageError as error:
            print(f"{error}; left out", file=sys.stderr)
            continue
        scale = min(LONGEST / max(pixels.shape[:2]), 1.0)
        if scale < 1:
            pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        faces = [
            face
            for face in finder.find(pixels)
            if (face.confidence is None or face.confidence >= SURE)
            and min(face.width, face.height) >= LEAST
            and face.landmarks is not None
        ]
        if faces:
            path = Path(name)
            below = path.relative_to(photos).parts
            yield below[0] if len(below) > 1 else "", path, pixels, faces


def learn(photos: Path, out: Path, name: str, leave_out: list[str], seed: int) -> None:
    """Make a `FaceHead` for a detector out of real photographs, without those of some sources."""
    detector = load_detector(name)
    net = detector.net
    if not isinstance(net, BlockFeatures):
        raise GanscopeError(f"{name}: is no transformer that is read at several blocks")
    net.bfloat16()  # four times as quick where processors have it, and all the same here
    detector.prepare()
    sources, features = [], []
    for source, path, pixels, faces in _portraits(photos):
        if source in leave_out:
            continue
        for number, face in enumerate(faces):
            for variant in range(VARIANTS):
                rng = np.random.default_rng((seed, variant, number, zlib.crc32(path.name.encode())))
                pair = _pair(*_cut_out(pixels, face), detector.size, rng)
                features.append(_features(detector, net, pair))
                sources.append(source)
    if len(set(sources)) < 3:
        raise GanscopeError(f"{photos}: faces of three sources (folders) are needed to learn from")
    x, of = np.stack(features), np.array(sources)
    logits = np.zeros(x.shape[:2])
    third = {source: i % 3 for i, source in enumerate(pd.Series(of).value_counts().index)}
    part = np.array([third[source] for source in of])
    for left_out in range(3):
        mine = part == left_out
        weight, bias = _fit(x[~mine])
        logits[mine] = x[mine] @ weight + bias
    threshold = float(np.quantile(logits[:, 0], 1 - REACHED))
    labels = np.tile([0, 1], len(x))
    about = {
        "faces": len(x) // VARIANTS,
        "sources": len(third),
        "left out": {
            "auroc, self-blended": round(float(roc_auc_score(labels, logits.ravel())), 3),
            "reals": len(x),
            "reals called swapped": int((logits[:, 0] >= threshold).sum()),
        },
    }
    weight, bias = _fit(x)
    out.mkdir(parents=True, exist_ok=True)
    FaceHead(weight, bias, BLOCK, MARGIN, sigmoid(threshold), about).save(out)
    print(json.dumps(about, indent=2))


def _fit(x: np.ndarray) -> tuple[np.ndarray, float]:
    """Weight (D,) and bias of features (N, 2, D) of real faces and blended ones."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=SLACK, max_iter=300))
    model.fit(x.reshape(-1, x.shape[-1]), np.tile([0, 1], len(x)))
    weight = model[1].coef_[0] / model[0].scale_
    bias = float(model[1].intercept_[0] - weight @ model[0].mean_)
    return weight.astype(np.float32), bias


def _cut_out(pixels: np.ndarray, face: Face) -> tuple[np.ndarray, Face]:
    """A face with what surrounds it, of at most `FINEST` pixels a side, and where it is in it."""
    top, left, bottom, right = around(face, *pixels.shape[:2], ROOM)
    scale = min(FINEST / (bottom - top), 1.0)
    part = np.ascontiguousarray(pixels[top:bottom, left:right])
    part = cv2.resize(part, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return part, _placed(face, (left, top), scale)


def _placed(face: Face, corner: tuple[int, int], scale: float) -> Face:
    """A face in a part of its picture that was resized."""
    points = (face.landmarks - corner) * scale
    box = np.rint((np.array(face.box) - (*corner, *corner)) * scale).astype(int).tolist()
    return Face(tuple(box), face.confidence, points.astype(np.float32))


def _pair(real: np.ndarray, face: Face, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """A real face and itself blended, resized, compressed and cut out alike: (size, size, 3)."""
    fake, _ = self_blend(real, face, rng)
    scale = float(np.exp(rng.uniform(*np.log((0.5, 1.3))))) if rng.random() < 0.6 else 1.0
    quality = int(rng.integers(45, 99)) if rng.random() < 0.9 else 0
    kernel = int(rng.choice((cv2.INTER_AREA, cv2.INTER_CUBIC, cv2.INTER_LINEAR)))
    if scale < 1 and kernel == cv2.INTER_LINEAR:
        kernel = cv2.INTER_AREA
    y, x = rng.integers(0, 8, 2)  # blocks of JPEG begin anywhere
    moved, views = _placed(face, (x, y), scale), []
    for pixels in (real[y:, x:], fake[y:, x:]):
        if scale != 1:
            pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=kernel)
        if quality:
            pixels = jpeg(np.ascontiguousarray(pixels), quality, rng)
        top, left, bottom, right = around(moved, *pixels.shape[:2], MARGIN)
        views.append(whole_of(np.ascontiguousarray(pixels[top:bottom, left:right]), size))
    return views


@torch.inference_mode()
def _features(detector: Detector, net: BlockFeatures, views: list[np.ndarray]) -> np.ndarray:
    images = torch.from_numpy(np.stack(views)).to(detector.mean.device)
    x = detector.normalised(images.permute(0, 3, 1, 2).float() / 255).bfloat16()
    return net.face_features(x, BLOCK, MARGIN).cpu().numpy()


def judge(corpus: Path, run: str, head: Path | None, out: Path | None) -> None:
    detector, finder = load_judge(run), open_finder()
    if head is not None:
        if not isinstance(detector, QuickJudge):
            raise GanscopeError(f"--head: {run} is not judged by onnxruntime")
        detector.head = FaceHead.load(head)
    face_head = None if detector.faces_alone else detector.face_head
    if not detector.faces_alone and face_head is None:
        raise GanscopeError(f"{run}: tells no swapped faces; train one with --recipe faces")
    margin = detector.around_faces if face_head is None else face_head.margin
    detector.prepare("auto")
    table = open_corpus(corpus).table
    scores, overlaps, unfound = [], [], {0: 0, 1: 0}
    masks: list[tuple[np.ndarray, np.ndarray]] = []
    for row in track(list(table.itertuples()), "judging"):
        pixels = open_image(row.path).pixels
        face = _same(finder.find(pixels), json.loads(row.box))
        if face is None or min(face.width, face.height) < least_of(detector):
            unfound[row.label] += 1
            scores.append(0.0 if row.label else np.nan)
            continue
        top, left, bottom, right = around(face, *pixels.shape[:2], margin)
        square = whole_of(np.ascontiguousarray(pixels[top:bottom, left:right]), detector.size)
        view = square[None].copy()
        logits = detector.logits(view) if face_head is None else detector.face_logits(view)
        scores.append(float(detector.score(float(logits[0]))))
        if row.label and face_head is None and (detector.has_places or detector.has_map):
            local = detector.local_logits(view)[0][0]
            mask = read_mask(corpus / row.mask, pixels.shape)[top:bottom, left:right]
            said = cv2.resize(local, mask.shape[::-1], interpolation=cv2.INTER_LINEAR)
            overlaps.append(_overlap(said, mask))
            masks.append((cv2.resize(mask.astype(np.float32), (GRID, GRID)), mask))
    table = table.assign(score=scores)
    judged = table[table["score"].notna()]
    fake = detector.thresholds["fake"] if face_head is None else face_head.threshold
    real_scores = judged["score"][judged["label"] == 0]
    swap_scores = judged["score"][judged["label"] == 1]
    about = judged.assign(probability=judged["score"])  # only what follows from the order is used
    overall = evaluate_by_generator(about, fake).set_index("generator").loc["faceswap"]
    told = {
        "detector": run,
        "faces": {"real": len(real_scores), "faceswap": len(swap_scores)},
        "not found again": {"real": unfound[0], "faceswap": unfound[1]},
        "auroc": float(roc_auc_score(judged["label"], judged["score"])),
        "auroc, 95 %": [overall["auroc_low"], overall["auroc_high"]],
        "threshold": fake,
        "real called fake": float((real_scores >= fake).mean()),
        "swaps called fake": float((swap_scores >= fake).mean()),
    }
    if overlaps:
        found = pd.DataFrame(overlaps).mean()
        told |= {"mask iou": float(found["iou"]), "pixel auroc": float(found["pixel_auroc"])}
        blind = pd.DataFrame(_of_mean_mask(masks)).mean()
        told |= {
            "mean mask, unseen: iou": float(blind["iou"]),
            "mean mask, unseen: pixel auroc": float(blind["pixel_auroc"]),
        }
    print(json.dumps(told, indent=2))
    by = judged.groupby(["source", "label"])["score"]
    print(by.agg(faces="size", median="median", called=lambda s: (s >= fake).mean()).to_string())
    if out:
        write_json(out, told)


def _of_mean_mask(masks: list[tuple[np.ndarray, np.ndarray]]) -> list[dict[str, float]]:
    """What the mean of all masks has against each: what is gained by knowing that swaps cover the
    middle of a face, and by looking at none. masks: each in (GRID, GRID), and as it is.
    """
    mean = np.mean([small for small, _ in masks], axis=0) - 0.5
    return [_overlap(cv2.resize(mean, mask.shape[::-1]), mask) for _, mask in masks]


def _same(faces: list[Face], box: list[int]) -> Face | None:
    """The face whose middle lies in the box."""
    for face in faces:
        x, y = (face.box[0] + face.box[2]) / 2, (face.box[1] + face.box[3]) / 2
        if box[0] < x < box[2] and box[1] < y < box[3]:
            return face
    return None


def _overlap(logits: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    said = logits > 0
    both = mask.any() and not mask.all()
    return {
        "iou": float((said & mask).sum() / max((said | mask).sum(), 1)),
        "pixel_auroc": roc_auc_score(mask.ravel()[::7], logits.ravel()[::7]) if both else np.nan,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="what", required=True)
    making = parts.add_parser("make")
    making.add_argument("photos", type=Path)
    making.add_argument("out", type=Path)
    making.add_argument("--seed", type=int, default=0)
    learning = parts.add_parser("learn")
    learning.add_argument("photos", type=Path)
    learning.add_argument("out", type=Path)
    learning.add_argument("--detector", default="default")
    learning.add_argument("--leave-out", nargs="*", default=[], metavar="SOURCE")
    learning.add_argument("--seed", type=int, default=0)
    judging = parts.add_parser("judge")
    judging.add_argument("corpus", type=Path)
    judging.add_argument("run")
    judging.add_argument("--head", type=Path, help="A folder of `learn`, for the detector's own.")
    judging.add_argument("--out", type=Path, help="Write the figures as JSON.")
    given = parser.parse_args()
    try:
        if given.what == "make":
            make(given.photos, given.out, given.seed)
        elif given.what == "learn":
            learn(given.photos, given.out, given.detector, given.leave_out, given.seed)
        else:
            judge(given.corpus, given.run, given.head, given.out)
    except GanscopeError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
