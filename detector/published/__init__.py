"""Detectors that others published, as contestants: their networks, weights and preprocessing.

The weights are theirs and do not ship; a user downloads a file and names it. Each file here says
where it is to be had and what its repository permits. To add one: write its network and a loader
(weights file -> `PublishedDetector`) in a file of its own and name it here.
"""

import os
from collections.abc import Callable
from pathlib import Path

from ganscope.detector.published import cnndetect, freqnet, ladeda, npr, safe, univfd
from ganscope.detector.published.detector import PublishedDetector
from ganscope.errors import GanscopeError
from ganscope.registry import Registry

published: Registry[Callable[[str], PublishedDetector]] = Registry("published detector")

published.register("cnndetect")(cnndetect.load)
published.register("npr")(npr.load)
published.register("univfd")(univfd.load)
published.register("ladeda")(ladeda.load)
published.register("ladeda-wildrf")(ladeda.load_wildrf)
published.register("tiny-ladeda")(ladeda.load_tiny)
published.register("safe")(safe.load)
published.register("freqnet")(freqnet.load)


def load_published(name: str, weights: str | Path) -> PublishedDetector:
    """Load a published detector by its name and its weights file, on the CPU.

    weights: as its authors publish them (univfd: `HEAD` or `HEAD,BACKBONE`). Raises `GanscopeError`
    for an unknown name, a file that is missing or holds no plain weights, and keys that do not fit.
    """
    load = published[name]
    if not os.fspath(weights):
        raise GanscopeError(f"{name}: name its weights file, {name}:FILE")
    return load(os.fspath(weights))
