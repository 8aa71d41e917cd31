"""Weights on disk, towers made small, and photographs, for the tests of published detectors."""

import functools
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import timm
from torch import nn

from ganscope.detector.published import bfree, commfor, univfd

from .made_weights import KEYS, Saved, save, weights_of


@pytest.fixture(scope="package")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    """Name of a detector -> what the user names; written once, for some are large."""
    folder = tmp_path_factory.mktemp("weights")
    yield functools.cache(lambda name: save(name, weights_of(KEYS[name]()), folder))
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def small_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vision transformers in two narrow layers; all else is as it is."""
    create = timm.create_model
    narrow = {"embed_dim": 64, "depth": 2, "num_heads": 1}

    def smaller(name: str, **options: Any) -> nn.Module:
        if name == univfd.TOWER:
            options |= narrow | {"patch_size": 56}
        if name in (commfor.VIT, bfree.VIT):
            options |= narrow
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", smaller)


@pytest.fixture
def photos(astronaut: np.ndarray) -> list[np.ndarray]:
    """Two photographs of one size, and a third of 40x30."""
    return [astronaut[:128, 150:300], astronaut[200:328, :150], astronaut[100:140, 200:230]]
