"""How well a detector of faces finds swaps of people and places that it never met.

    python benchmarks/faces.py make PHOTOS SWAPS      # PHOTOS: a folder a source, none learned from
    ganscope train-detector OTHER_PHOTOS --recipe faces --detector lite --out RUN
    python benchmarks/faces.py judge SWAPS RUN

`make` writes a corpus: each photograph with a face, and the same with its largest face swapped for
one of another source (`swap_face`), both saved as JPEG 75, with masks. `judge` finds the faces
anew, as `check` does, and prints face-level AUROC, the share of swaps and of real faces that are
called fake at the detector's own threshold, and how well the masks are found. A swapped face that
is not found counts as called real.
"""

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image
from rich.progress import track
from sklearn.metrics import roc_auc_score

from ganscope.config import write_json
from ganscope.datasets.blending import swap_face
from ganscope.datasets.corpus import open_corpus
from ganscope.datasets.masks import encode_mask, read_mask
from ganscope.detector.judging.faces import around, least_of
from ganscope.detector.judging.metrics import evaluate_by_generator
from ganscope.detector.judging.views import whole_of
from ganscope.detector.model import load_detector
from ganscope.errors import GanscopeError, ImageError
from ganscope.faces import Face, open_finder
from ganscope.images import open_image
from ganscope.inputs import find_images

SURE, LEAST, LONGEST = 0.75, 64, 1280
"""Of faces that are swapped: confidence and pixels; long side of the pictures that are saved."""
QUALITY = 75
GRID = 64
"""Places a side, of the mean mask."""


def make(photos: Path, out: Path, seed: int) -> None:
    finder = open_finder()
    found: list[tuple[str, Path, np.ndarray, Face]] = []
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
            if face.confidence >= SURE
            and min(face.width, face.height) >= LEAST
            and face.landmarks is not None
        ]
        if faces:
            path = Path(name)
            below = path.relative_to(photos).parts
            found.append((below[0] if len(below) > 1 else "", path, pixels, faces[0]))
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


def judge(corpus: Path, run: str, out: Path | None) -> None:
    detector, finder = load_detector(run), open_finder()
    if not detector.faces_alone:
        raise GanscopeError(f"{run}: does not look at faces; train one with --recipe faces")
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
        top, left, bottom, right = around(face, *pixels.shape[:2], detector.around_faces)
        square = whole_of(np.ascontiguousarray(pixels[top:bottom, left:right]), detector.size)
        view = square[None].copy()
        scores.append(float(detector.score(float(detector.logits(view)[0]))))
        if row.label and (detector.has_places or detector.has_map):
            local = detector.local_logits(view)[0][0]
            mask = read_mask(corpus / row.mask, pixels.shape)[top:bottom, left:right]
            said = cv2.resize(local, mask.shape[::-1], interpolation=cv2.INTER_LINEAR)
            overlaps.append(_overlap(said, mask))
            masks.append((cv2.resize(mask.astype(np.float32), (GRID, GRID)), mask))
    table = table.assign(score=scores)
    judged = table[table["score"].notna()]
    fake = detector.thresholds["fake"]
    real_scores = judged["score"][judged["label"] == 0]
    swap_scores = judged["score"][judged["label"] == 1]
    about = judged.assign(probability=detector.probability(_logit(judged["score"])))
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


def _logit(scores: pd.Series) -> np.ndarray:
    inside = scores.clip(1e-9, 1 - 1e-9)
    return np.log(inside / (1 - inside)).to_numpy()


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
    judging = parts.add_parser("judge")
    judging.add_argument("corpus", type=Path)
    judging.add_argument("run")
    judging.add_argument("--out", type=Path, help="Write the figures as JSON.")
    given = parser.parse_args()
    try:
        if given.what == "make":
            make(given.photos, given.out, given.seed)
        else:
            judge(given.corpus, given.run, given.out)
    except GanscopeError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
