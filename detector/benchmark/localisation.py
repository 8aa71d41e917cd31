"""Whether heatmaps point at what was changed: pixels of masked images, against their masks.

Every image is one count of pixels by heat, changed and untouched, which is kept as scores are;
every figure is computed from these. The threshold above which a pixel counts as marked is chosen on
validation images, never on those that are measured.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ganscope.config import BenchmarkSettings
from ganscope.datasets.masks import read_mask
from ganscope.datasets.splits import assign_splits
from ganscope.detector.benchmark.cache import Cache, FileFacts, cache_file
from ganscope.detector.benchmark.contestants import Scorer
from ganscope.detector.benchmark.report.summary import ALL
from ganscope.detector.judging.heatmaps import heatmap
from ganscope.detector.judging.metrics import FEWEST, bootstrap_weights, units
from ganscope.errors import GanscopeError, ImageError
from ganscope.images import open_image

if TYPE_CHECKING:
    from rich.progress import Progress

LEVELS = 256
"""Of heat that are told apart."""
MOST = 500
"""Masked images of a generator, and photographs, that are looked at: a heatmap costs many looks."""
ASIDE = 0.2
"""Share of the masked images that the threshold is chosen on where there is no validation split."""
FEW = 5
"""Masked images or groups below which none can be set aside."""
NAMES = ("pixel_auroc", "iou", "f1")
COLUMNS = (
    *("detector", "method", "generator", "n_masked"),
    *(column for name in NAMES for column in (name, f"{name}_low", f"{name}_high")),
    *("threshold", "n_validation", "n_real", "real_marked", "real_marked_low", "real_marked_high"),
)
"""Of the table. real_marked: mean share of a photograph's pixels above the threshold."""


@dataclass
class Localised:
    """What was found, and what could not be had."""

    table: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=[*COLUMNS]))
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def localise(
    settings: BenchmarkSettings,
    root: Path,
    every: pd.DataFrame,
    images: pd.DataFrame,
    scorers: dict[str, Scorer],
    progress: "Progress | None" = None,
) -> Localised:
    """Compare heatmaps with the masks of a corpus: a row a detector and generator, `COLUMNS`.

    root: what masks are named from. every: all rows of the corpora, whose split `val` gives the
    threshold; without masked images there a fifth of those measured is set aside for it, by group.
    images: the rows that are measured. Figures are means over images, with 95 % intervals by
    resampling images, or groups where they have any. Detectors that make no heatmaps are passed
    over, with a note; an image or mask that cannot be read, or does not fit, is left out and named.
    """
    found = Localised()
    masked = every[every["mask"] != ""] if "mask" in every else every[:0]
    tested = masked[masked.index.isin(images.index) & (masked["label"] == 1)]
    if settings.localise == "none" or tested.empty:
        return found
    able = {name: s for name, s in scorers.items() if s.network is not None}
    if len(able) < len(scorers):
        others = ", ".join(name for name in scorers if name not in able)
        found.notes.append(f"{others}: no heatmaps, so nothing is said of where they look")
    validation, tested = _parted(masked, tested, settings, found)
    tested = _some(tested, settings.seed, found)
    reals = images[images["label"] == 0]
    reals = reals.sample(min(len(reals), len(tested), MOST), random_state=settings.seed)
    validation = validation.groupby("generator", sort=False).head(MOST // 5)
    asked = pd.concat([validation, tested, reals])
    task = None
    if progress and able:
        total = len(asked) * len(able)
        task = progress.add_task("comparing heatmaps with masks", total=total, note="")
    rows = []
    with closing(Cache(cache_file() if settings.cache else None)) as cache:
        paths = asked["path"].tolist()
        facts = dict(zip(asked.index, cache.facts(paths), strict=True))
        names = [str(root / m) if m else "" for m in asked.get("mask", [""] * len(asked))]
        masks = dict(zip(asked.index, names, strict=True))
        shapes = cache.facts([m for m in names if m])
        hashes = dict(zip([m for m in names if m], shapes, strict=True))
        for name, scorer in able.items():
            try:
                counts = _counts(
                    settings, scorer, asked, facts, masks, hashes, cache, found, task, progress
                )
            except GanscopeError as error:
                found.missing.append(f"{name}: {error}; its heatmaps are not compared with masks")
                continue
            rows += _figures(name, settings, counts, validation, tested, reals)
    found.table = pd.DataFrame(rows, columns=[*COLUMNS])
    return found


def _parted(
    masked: pd.DataFrame, tested: pd.DataFrame, settings: BenchmarkSettings, found: Localised
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Masked images that the threshold is chosen on, and those that are measured."""
    own = masked[(masked["split"] == "val") & (masked["label"] == 1)]
    if len(own) and settings.split != "val":
        rest = tested[~tested.index.isin(own.index)]
        together = set(rest["group"]) - {""}
        own = own[~own["group"].isin(together)]
        if len(own) and len(rest):
            found.notes.append(
                f"localisation: the threshold on heatmaps is chosen on the {len(own):,} masked "
                "images of the split val, which are not measured"
            )
            return own, rest
    unit = tested["group"].where(tested["group"] != "", tested["file_name"])
    names = sorted(set(unit))
    if len(names) < FEW:
        found.notes.append(
            f"localisation: {len(names)} masked images or groups are too few to set some aside for "
            "a threshold; only the pixel AUROC is known"
        )
        return tested[:0], tested
    where = assign_splits(names, {"val": ASIDE, "test": 1 - ASIDE}, settings.seed)
    aside = unit.map(where) == "val"
    found.notes.append(
        "localisation: no masked images are in a split val, so the threshold on heatmaps is "
        f"chosen on {int(aside.sum()):,} of {len(tested):,}, which are not measured"
    )
    return tested[aside], tested[~aside]


def _some(tested: pd.DataFrame, seed: int, found: Localised) -> pd.DataFrame:
    """At most `MOST` of each generator."""
    parts = [
        part.sample(min(len(part), MOST), random_state=seed).sort_index()
        for _, part in tested.groupby("generator")
    ]
    some = pd.concat(parts)
    if len(some) < len(tested):
        found.notes.append(
            f"localisation: {len(some):,} of {len(tested):,} masked images are measured, at most "
            f"{MOST} of a generator"
        )
    return some


def _counts(
    settings: BenchmarkSettings,
    scorer: Scorer,
    asked: pd.DataFrame,
    facts: dict[Any, FileFacts | ImageError],
    masks: dict[Any, str],
    hashes: dict[str, FileFacts | ImageError],
    cache: Cache,
    found: Localised,
    task: Any,
    progress: "Progress | None",
) -> dict[Any, np.ndarray]:
    """Row -> pixels by heat, untouched and changed (2, LEVELS), of what could be had."""
    assert scorer.network
    method = settings.localise
    kept = cache.counts(scorer.key, method) if scorer.key else {}
    counts = {}
    for i in asked.index:
        if progress and task is not None:
            progress.update(task, advance=1)
        about, mask = facts[i], hashes.get(masks[i])
        faults = [one for one in (about, mask) if isinstance(one, ImageError)]
        if faults:
            _tell(found, str(faults[0]))
            continue
        assert isinstance(about, FileFacts)
        key = f"{about.image} {mask.image if isinstance(mask, FileFacts) else ''}"
        if key not in kept:
            try:
                pixels = open_image(asked.at[i, "path"]).pixels
                changed = (
                    read_mask(masks[i], pixels.shape)
                    if masks[i]
                    else np.zeros(pixels.shape[:2], bool)
                )
            except ImageError as error:
                _tell(found, str(error))
                continue
            scorer.network.prepare(settings.device)
            kept[key] = count_heat(heatmap(scorer.network, pixels, method), changed)
            if scorer.key:
                cache.keep_counts(scorer.key, method, key, kept[key])
        counts[i] = kept[key]
    return counts


def _tell(found: Localised, said: str) -> None:
    said = f"{said}; not compared with its heatmap"
    if said not in found.missing:
        found.missing.append(said)


def count_heat(heat: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """Pixels by heat (H, W), in [0, 1]: (2, LEVELS) int64, untouched ones, then changed ones."""
    level = np.clip((heat * LEVELS).astype(int), 0, LEVELS - 1).ravel()
    both = np.bincount(level + LEVELS * changed.ravel(), minlength=2 * LEVELS)
    return both.reshape(2, LEVELS)


def pixel_auroc(counts: np.ndarray) -> float:
    """The chance that a changed pixel is hotter than an untouched one; NaN without both."""
    untouched, changed = counts.astype(float)
    pairs = untouched.sum() * changed.sum()
    if not pairs:
        return float("nan")
    below = np.cumsum(untouched) - untouched / 2
    return float((changed * below).sum() / pairs)


def overlaps(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IoU and F1 (LEVELS,) of the changed pixels and those of each level of heat or more."""
    false, hits = counts[:, ::-1].cumsum(1)[:, ::-1].astype(float)
    lost = counts[1].sum() - hits
    union = hits + false + lost
    iou = np.divide(hits, union, out=np.zeros(LEVELS), where=union > 0)
    return iou, 2 * iou / (1 + iou)


def choose_level(counts: Sequence[np.ndarray]) -> int:
    """The level of the highest mean F1 over images; of equal ones the middle."""
    mean = np.mean([overlaps(one)[1] for one in counts], axis=0)
    best = np.flatnonzero(mean >= mean.max() - 1e-12)
    return int(best[len(best) // 2])


def _figures(
    name: str,
    settings: BenchmarkSettings,
    counts: dict[Any, np.ndarray],
    validation: pd.DataFrame,
    tested: pd.DataFrame,
    reals: pd.DataFrame,
) -> list[dict[str, Any]]:
    """The rows of one detector."""
    chosen = [counts[i] for i in validation.index if i in counts]
    level = choose_level(chosen) if chosen else None
    fixed: dict[str, Any] = {
        "detector": name,
        "method": settings.localise,
        "threshold": float("nan") if level is None else level / LEVELS,
        "n_validation": len(chosen),
    }
    reals = reals[reals.index.isin(list(counts))]
    marked = [
        float("nan") if level is None else counts[i][0, level:].sum() / counts[i].sum()
        for i in reals.index
    ]
    fixed |= {"n_real": len(reals)} | _mean("real_marked", np.array(marked), reals, settings)
    tested = tested[tested.index.isin(list(counts))]
    parts = [(str(g), part) for g, part in tested.groupby("generator")]
    rows = []
    for generator, part in [(ALL, tested), *parts] if len(parts) > 1 else parts:
        row = fixed | {"generator": generator, "n_masked": len(part)}
        aurocs = np.array([pixel_auroc(counts[i]) for i in part.index])
        row |= _mean("pixel_auroc", aurocs, part, settings)
        for kind, metric in enumerate(("iou", "f1")):
            values = [
                float("nan") if level is None else overlaps(counts[i])[kind][level]
                for i in part.index
            ]
            row |= _mean(metric, np.array(values), part, settings)
        rows.append(row)
    return rows


def _mean(
    name: str, values: np.ndarray, rows: pd.DataFrame, settings: BenchmarkSettings
) -> dict[str, float]:
    """The mean over images with its interval by resampling images, or groups of them."""
    known = np.isfinite(values)
    values, groups = values[known], rows["group"].to_numpy(str)[known]
    nan = float("nan")
    if not len(values):
        return {name: nan, f"{name}_low": nan, f"{name}_high": nan}
    y = np.ones(len(values), int)
    low = high = nan
    if settings.bootstrap and len(np.unique(units(y, groups))) >= FEWEST:
        chunks = bootstrap_weights(y, groups, settings.bootstrap, settings.seed)
        drawn = np.concatenate([w @ values / w.sum(1) for w in chunks])
        low, high = (float(q) for q in np.quantile(drawn, [0.025, 0.975]))
    return {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
