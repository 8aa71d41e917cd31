"""The record of the images that a detector learned from, and who of these is asked about again."""

from pathlib import Path

import numpy as np
import pandas as pd

from ganscope.config import TrainDetectorSettings
from ganscope.datasets.copies import Looked, look_at_table, name_some
from ganscope.prints import LEARNED, Prints, find_same


def learned_from(table: pd.DataFrame) -> Prints:
    """The prints of what a split table's training learns from, and chooses by."""
    looked = look_at_table(table[table["split"] != "test"])
    chosen = (looked.table["split"] == "val").to_numpy()
    return Prints(looked.prints.pixels, looked.prints.looks, looked.prints.labels, chosen)


def start_record(settings: TrainDetectorSettings) -> Prints | None:
    """What the weights that a training starts from have learned from, where that is known."""
    if not settings.pretrained or settings.pretrained == "hub":
        return None
    return Prints.load(Path(settings.pretrained).parent / LEARNED)


def count_known(looked: Looked, prints: Prints) -> str:
    """How many images of the validation split have been learned from; "" for none."""
    val = np.flatnonzero(looked.table["split"] == "val")
    learned = prints.take(np.flatnonzero(~prints.chosen))
    met = np.unique(find_same(looked.prints.take(val), learned)[:, 0])
    if not len(met):
        return ""
    names = looked.table["file_name"].to_numpy()[val[met]].tolist()
    return f"{len(met):,} of the {len(val):,} validation images ({name_some(names)})"
