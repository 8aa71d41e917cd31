"""The space of z that a generator starts from: walks between fakes, arithmetic, learned directions.

A fake's z follows from its seed and number alone, so both name it: 12 (of --seed), or 3:12.
"""

import filecmp
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice, pairwise
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score

from ganscope.config import (
    LatentApplySettings,
    LatentArithmeticSettings,
    LatentDirectionSettings,
    LatentSettings,
    LatentWalkSettings,
    next_free,
    read_json,
    replacing,
    write_json,
)
from ganscope.datasets.corpus import Corpus, open_corpus
from ganscope.datasets.writing import disk_errors
from ganscope.devices import one_thread, pick_device
from ganscope.errors import GanscopeError
from ganscope.files import damaged
from ganscope.generator.model import Generator, latent, load_generator
from ganscope.inputs import find_images
from ganscope.locks import PATIENCE, holding_file

ALPHAS = (-3, -2, -1, 0, 1, 2, 3)
"""Steps along a direction; along any unit vector z has standard deviation 1."""
ROWS = 6
"""Fakes that show what was learned."""
FRAME = 80
"""Milliseconds that a GIF shows each picture."""
GAP = 2
"""White pixels between pictures."""
FORMAT = {"kind": "latent direction", "format_version": 1}


def make_walk(settings: LatentWalkSettings) -> Path:
    """Draw the way from fake to fake, a row each, or as a GIF that goes there and back; returns
    its file.
    """
    fakes = [parse_fake(name, settings.seed) for name in settings.fakes]
    generator = open_latent(settings)
    z = [latent(*fake, generator.latent_dim) for fake in fakes]
    times = np.linspace(0, 1, settings.steps + 1)
    legs = np.stack([[slerp(a, b, t) for t in times] for a, b in pairwise(z)])
    pictures = _pixels(generator, legs)
    with _output(settings, "walk", ".png") as out:
        if out.suffix.lower() == ".png":
            return _write(out, [_tile(pictures)])
        film = [pictures[0][0], *(picture for leg in pictures for picture in leg[1:])]
        return _write(out, film + film[-2:0:-1])


def make_arithmetic(settings: LatentArithmeticSettings) -> Path:
    """Draw the averages of an expression's groups and what they come to; returns the file
    (Radford et al. 2016, arXiv:1511.06434).
    """
    parts = re.split("([+-])", settings.expression)
    if not all(part.strip() for part in parts):
        raise GanscopeError(
            f"{settings.expression!r}: groups of fakes stand between single + and -, as in 1,5 - 2"
        )
    groups = [[parse_fake(name, settings.seed) for name in p.split(",")] for p in parts[::2]]
    generator = open_latent(settings)
    z = [np.stack([latent(*fake, generator.latent_dim) for fake in group]) for group in groups]
    signs = [1, *(1 if sign == "+" else -1 for sign in parts[1::2])]
    # The sum is one of plain averages: rescaled before, a group's chance would count like its gist.
    total = sum(sign * group.mean(0) for sign, group in zip(signs, z, strict=True))
    shown = [group[0] if len(group) == 1 else to_shell(group.mean(0)) for group in z]
    first, *others = _pixels(generator, np.stack([*shown, to_shell(total)]))
    row = [first]
    for sign, picture in zip([*parts[1::2], "="], others, strict=True):
        row += [_sign(sign, generator.size), picture]
    with _output(settings, "arithmetic", ".png") as out:
        return _write(out, [np.hstack(row)])


@dataclass(frozen=True)
class Direction:
    """What was learned from two folders of fakes."""

    vector: np.ndarray
    """(latent_dim,) float32 of length 1, pointing to what the first folder shows."""
    accuracy: float
    """Cross-validated, both folders weighing alike; 0.5: chance, nothing was learned."""
    files: tuple[int, int]
    """Fakes with and without."""


def learn_direction(settings: LatentDirectionSettings) -> tuple[Path, Direction]:
    """Learn what tells the z of two folders of fakes apart; returns the file it was saved to.

    Beside it lies a picture of the same name: fakes that were not learned from, a row each, moved
    along the direction by `ALPHAS`.

    Raises `GanscopeError` for files that are no fakes of this corpus, a corpus of another
    generator or of other weights, and fewer than two files a folder.
    """
    generator = open_latent(settings)
    corpus = open_corpus(settings.corpus)
    fakes = _fakes_of(generator, corpus)
    sides = [_sorted_rows(folder, corpus, fakes) for folder in (settings.with_, settings.without)]
    both = sides[0].index.intersection(sides[1].index)
    if len(both):
        raise GanscopeError(f"{fakes.at[both[0], 'file_name']}: is in both folders; take one out")
    rows = pd.concat(sides)
    labels = np.repeat([1, 0], [len(side) for side in sides])
    vector, accuracy = fit_direction(latents_of(rows, generator.latent_dim), labels)
    direction = Direction(vector, accuracy, (len(sides[0]), len(sides[1])))
    record = {
        **FORMAT,
        "generator": generator.label,
        "weights": generator.weights,
        "accuracy": round(accuracy, 4),
        "files": direction.files,
        "vector": vector.tolist(),
    }
    known = set(zip(rows["seed"].astype(int), rows["index"].astype(int), strict=True))
    new = islice((i for i in count() if (settings.seed, i) not in known), ROWS)
    z = np.stack([latent(settings.seed, i, generator.latent_dim) for i in new])
    picture = _move(generator, z, vector)
    with _output(settings, "direction", ".json") as out:
        with disk_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            write_json(out, record)
        _write(out.with_suffix(".png"), [picture])
    return out, direction


def apply_direction(settings: LatentApplySettings) -> Path:
    """Draw fakes, a row each, moved along a saved direction by `ALPHAS`; returns the file.

    Raises `GanscopeError` if the direction was learned for other weights.
    """
    fakes = [parse_fake(name, settings.seed) for name in settings.fakes]
    record = read_json(settings.direction)
    if {key: record.get(key) for key in FORMAT} != FORMAT:
        raise GanscopeError(
            f"{settings.direction}: not a direction that this ganscope can read; "
            "make one with ganscope latent direction"
        )
    generator = open_latent(settings)
    with damaged(settings.direction, "make it again with ganscope latent direction"):
        for key in ("weights", "generator"):
            record[key]
        vector = np.array(record["vector"], np.float32)
        if vector.ndim != 1 or not np.isfinite(vector).all():
            raise ValueError(f"a vector of shape {vector.shape}")
    if record["weights"] != generator.weights:
        raise GanscopeError(
            f"{settings.direction}: learned for the generator {record['generator']!r} with the "
            f"weights {record['weights']}; those of {generator.name!r} are {generator.weights}"
        )
    z = np.stack([latent(*fake, generator.latent_dim) for fake in fakes])
    with damaged(settings.direction, "make it again with ganscope latent direction"):
        picture = _move(generator, z, vector)
    with _output(settings, "apply", ".png") as out:
        return _write(out, [picture])


def parse_fake(name: str, seed: int) -> tuple[int, int]:
    """What a user calls a fake, 12 or 3:12 -> (seed, number)."""
    found = re.fullmatch(r"(?:([0-9]{1,10}):)?([0-9]{1,18})", name.strip())
    if not found:
        raise GanscopeError(
            f"{name.strip()!r} is no fake: name its number (12), or SEED:NUMBER (3:12)"
        )
    return int(found[1] or seed), int(found[2])


def latents_of(rows: pd.DataFrame, latent_dim: int) -> np.ndarray:
    """The z (N, latent_dim) float32 that fakes were made from, by `seed` and `index` of their
    manifest rows.
    """
    pairs = zip(rows["seed"], rows["index"], strict=True)
    return np.stack([latent(int(seed), int(index), latent_dim) for seed, index in pairs])


def slerp(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    """The point at `t` (0: a, 1: b) of the arc from z to z (White 2016, arXiv:1609.04468).

    On the straight line between them vectors are too short: see `to_shell`.
    """
    cosine = np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))
    angle = np.arccos(np.clip(float(cosine), -1, 1))
    if np.sin(angle) < 1e-6:  # no arc between a point and itself
        return a + np.float32(t) * (b - a)
    parts = np.sin((1 - t) * angle) * a + np.sin(t * angle) * b
    return (parts / np.sin(angle)).astype(np.float32)


def to_shell(z: np.ndarray) -> np.ndarray:
    """Rescale z to the length sqrt(latent_dim).

    Nearly all of a Gaussian in so many dimensions is that far from the middle. Averages are
    shorter, and there the generator was never trained.
    """
    length = float(np.linalg.norm(z))
    return z * np.float32(np.sqrt(len(z)) / length) if length else z


def fit_direction(z: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """The unit vector along which z (N, latent_dim) of label 1 differ from those of label 0, and
    its accuracy (see `Direction`).

    The normal of a linear boundary, as InterFaceGAN does it (Shen et al. 2020, arXiv:1907.10786).
    """
    boundary = LogisticRegression(class_weight="balanced")
    folds = StratifiedKFold(min(5, int(np.bincount(labels).min())), shuffle=True, random_state=0)
    scores = cross_val_score(boundary, z, labels, cv=folds, scoring="balanced_accuracy")
    normal = boundary.fit(z, labels).coef_[0]
    return (normal / np.linalg.norm(normal)).astype(np.float32), float(scores.mean())


def open_latent(settings: LatentSettings) -> Generator:
    """The generator that the settings name, told what to make; raises `GanscopeError` if it has no
    z.
    """
    prefix, colon, _ = settings.generator.partition(":")
    foreign = bool(colon) and len(prefix) > 1  # C:\\ is a folder
    generator = None if foreign else load_generator(settings.generator)
    if generator is None or generator.from_photos:
        raise GanscopeError(
            f"{settings.generator!r} makes no images out of noise; name a generator that does: "
            "photos, faces, or a run folder of train-generator"
        )
    if generator.classes and settings.class_ is None:
        raise GanscopeError(
            f"{settings.generator!r} must be told a class; name one with --class: "
            + ", ".join(generator.classes)
        )
    generator.choose(settings.class_, settings.truncation)
    return generator.to(pick_device(settings.device))


def _fakes_of(generator: Generator, corpus: Corpus) -> pd.DataFrame:
    """Rows of the fakes that these very weights made."""
    table = corpus.table[corpus.table["label"] == 1]
    weights = table["weights"] if "weights" in table else pd.Series("", table.index)
    ours = table[weights == generator.weights]
    if ours.empty:
        others = sorted({f"{g} ({w})" for g, w in zip(table["generator"], weights, strict=True)})
        raise GanscopeError(
            f"{corpus.root}: no fakes of {generator.name!r} with the weights {generator.weights}; "
            f"it has those of {', '.join(others) or 'no generator'}"
        )
    return ours


def _sorted_rows(folder: Path, corpus: Corpus, fakes: pd.DataFrame) -> pd.DataFrame:
    """The rows of the images that somebody copied or moved into a folder, each once."""
    known = {Path(name).name: number for number, name in fakes["file_name"].items()}
    found = set()
    for path in find_images(folder):
        number = known.get(Path(path).name)
        if number is None:
            raise GanscopeError(f"{path}: {corpus.root} lists no fake of this name")
        original = fakes.at[number, "path"]
        # Reals have the same names as fakes.
        if os.path.exists(original) and not filecmp.cmp(path, original, shallow=False):
            raise GanscopeError(f"{path}: differs from the fake of this name, {original}")
        found.add(number)
    if len(found) < 2:
        raise GanscopeError(f"{folder}: a direction needs at least 2 fakes a folder, better 100")
    return fakes.loc[sorted(found)]


def _pixels(generator: Generator, z: np.ndarray) -> np.ndarray:
    """z (..., latent_dim) -> (..., size, size, 3) uint8 RGB, the same bytes as in a corpus."""
    flat = z.reshape(-1, generator.latent_dim)
    labels = [generator.classes.index(generator.class_)] * len(flat) if generator.class_ else None
    with one_thread():
        pixels = generator.pixels(flat, labels)
    return pixels.reshape(*z.shape[:-1], *pixels.shape[1:])


def _move(generator: Generator, z: np.ndarray, vector: np.ndarray) -> np.ndarray:
    moves = np.array(ALPHAS, np.float32)[:, None] * vector
    return _tile(_pixels(generator, z[:, None] + moves))


def _tile(pictures: np.ndarray) -> np.ndarray:
    """(rows, columns, size, size, 3) -> one picture on white."""
    sides = ((0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0))
    rows = np.pad(pictures, sides, constant_values=255)
    return np.vstack([np.hstack(row) for row in rows])[:-GAP, :-GAP]


def _sign(sign: str, height: int) -> np.ndarray:
    """+, - or = on white, (height, 28, 3)."""
    page = np.full((height, 28, 3), 255, np.uint8)
    x, y, arm = 14, height // 2, 6
    for up in (-3, 3) if sign == "=" else (0,):
        cv2.line(page, (x - arm, y + up), (x + arm, y + up), (60, 60, 60), 2)
    if sign == "+":
        cv2.line(page, (x, y - arm), (x, y + arm), (60, 60, 60), 2)
    return page


def _free(name: str, suffix: str) -> Path:
    return next_free(Path(name), lambda p: p.with_suffix(suffix).exists()).with_suffix(suffix)


@contextmanager
def _output(settings: LatentSettings, name: str, suffix: str) -> Iterator[Path]:
    """Where to write, as told or the first free name; no other command writes there meanwhile."""
    told = settings.out
    with holding_file(told or Path(name + suffix), 0.0 if told else PATIENCE):
        yield told or _free(name, suffix)


def _write(path: Path, pictures: Sequence[np.ndarray]) -> Path:
    """Write one picture, or several as a GIF without end, atomically."""
    first, *others = map(Image.fromarray, pictures)
    film = {"save_all": True, "append_images": others, "duration": FRAME, "loop": 0}
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            first.save(part, path.suffix[1:].upper(), **(film if others else {}))
    return path
