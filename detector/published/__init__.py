"""Detectors that others published, as contestants: their networks, weights and preprocessing.

The weights are theirs and do not ship. `sources.py` says where they are to be had, of which
revision, with which checksum, and what their authors permit; what is pinned there, `download.py`
fetches when it is first asked for. A user may name a file of his own instead. To add a detector:
write its network and a loader (weights file -> `PublishedDetector`) in a file of its own, name it
here, and its weights in `sources.py`.
"""

import os
from collections.abc import Callable
from pathlib import Path

from ganscope.detector.published import (
    bfree,
    cnndetect,
    commfor,
    deepfakebench,
    freqnet,
    ladeda,
    npr,
    safe,
    sbi,
    sieve,
    univfd,
)
from ganscope.detector.published.detector import PublishedDetector
from ganscope.detector.published.download import fetch
from ganscope.detector.published.sources import SOURCES
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
published.register("commfor")(commfor.load)
published.register("sieve")(sieve.load)
published.register("bfree")(bfree.load)
published.register("sbi")(sbi.load)
published.register("xception-faces")(deepfakebench.load_xception)
published.register("f3net")(deepfakebench.load_f3net)


def load_published(name: str, weights: str | Path = "") -> PublishedDetector:
    """Load a published detector by its name and its weights file, on the CPU.

    weights: as its authors publish them (univfd: `HEAD` or `HEAD,BACKBONE`); "": those that are
    pinned, downloaded the first time. Raises `GanscopeError` for an unknown name, a file that is
    missing, not to be had or holds no plain weights, and keys that do not fit.
    """
    load = published[name]
    return load(os.fspath(weights) or fetch(name))


def describe_published() -> list[tuple[str, str]]:
    """What to type and what it is, of every published detector; with licence and download."""
    found = []
    for name, load in sorted(published.items()):
        source = SOURCES[name]
        what = (load.__doc__ or "").strip().split("\n")[0].removesuffix(".")
        how = "downloaded when first used" if source.url else source.page
        how = f"{source.size}, {how}" if source.size else how
        typed = name if source.url else f"{name}:FILE"
        found.append((typed, f"{what}; licence: {source.licence}; weights: {how}"))
    return found
