"""The record of the images that a detector learned from, and who of these is asked about again."""

from pathlib import Path

import numpy as np
import pandas as pd

from ganscope.config import TrainDetectorSettings
from ganscope.datasets.copies import Looked, look_at_table, name_some
from ganscope.folders import CONFIG, shipped
from ganscope.prints import LEARNED, Prints, find_same

STREAMED = "streamed"
"""What a table's `attrs` hold where it lists the held-out pictures alone: generator -> how many
others were learned from.
"""


def learned_from(table: pd.DataFrame) -> Prints:
    """The prints of what a split table's training learns from, and chooses by."""
    looked = look_at_table(table[table["split"] != "test"])
    chosen = (looked.table["split"] == "val").to_numpy()
    found = looked.prints
    whole = not len(looked.unreadable) and STREAMED not in table.attrs
    return Prints(found.pixels, found.looks, found.labels, chosen, whole)


def start_record(settings: TrainDetectorSettings) -> Prints | None:
    """What the weights that a training starts from have learned from, where that is known."""
    folder = _start(settings)
    return Prints.load(folder / LEARNED) if folder else None


def starts_from_a_detector(settings: TrainDetectorSettings) -> bool:
    """Whether the weights that a training starts from are those of a detector of ours, which may
    have learned from images that matter here.
    """
    folder = _start(settings)
    return folder is not None and (folder / CONFIG).is_file()


def _start(settings: TrainDetectorSettings) -> Path | None:
    """The folder of the weights that a training starts from."""
    if not settings.pretrained or settings.pretrained == "hub":
        return None
    start = Path(settings.pretrained)
    if not start.exists() and settings.pretrained in shipped("detectors"):
        return shipped("detectors")[settings.pretrained]
    return start if start.is_dir() else start.parent


def count_known(looked: Looked, prints: Prints) -> str:
    """How many images of the validation split have been learned from; "" for none."""
    val = np.flatnonzero(looked.table["split"] == "val")
    learned = prints.take(np.flatnonzero(~prints.chosen))
    met = np.unique(find_same(looked.prints.take(val), learned)[:, 0])
    if not len(met):
        return ""
    names = looked.table["file_name"].to_numpy()[val[met]].tolist()
    return f"{len(met):,} of the {len(val):,} validation images ({name_some(names)})"
