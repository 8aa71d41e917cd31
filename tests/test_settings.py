"""Settings as Python users and odd surroundings give them: lists, seeds, numbers, processes."""

import dataclasses
import os
import typing
import warnings
from pathlib import Path
from typing import Any

import pytest

from ganscope import config
from ganscope.cli import _what_now
from ganscope.datasets.sources import open_source
from ganscope.devices import pick_device, processes
from ganscope.errors import GanscopeError, GanscopeWarning
from ganscope.generator.latent import parse_fake
from ganscope.generator.sampling import _shard
from ganscope.launched import PLACES, place

NEEDED: dict[str, Any] = {
    "CheckSettings": {"paths": "x.jpg"},
    "InspectSettings": {"paths": "x.jpg"},
    "BenchmarkSettings": {"corpora": "c", "train": ("cnn",)},
    "LatentWalkSettings": {"generator": "faces", "fakes": ("1", "2")},
    "LatentApplySettings": {"generator": "faces", "fakes": "1", "direction": "d.json"},
    "SpectraSettings": {"corpora": "c"},
}
LISTS = [
    (name, field.name)
    for name in sorted(n for n in config.__all__ if n.endswith("Settings"))
    for field in dataclasses.fields(getattr(config, name))
    if typing.get_origin(field.type) is tuple
]


@pytest.mark.parametrize(("name", "field"), LISTS)
def test_one_thing_is_as_good_as_a_list_of_it(name: str, field: str) -> None:
    make = getattr(config, name)
    needed = NEEDED.get(name, {})
    if field == "detector":
        needed = {"corpora": "c"}
    if name == "ExportSettings":
        needed = {"detector": "default"}
    if field == "fakes" and name == "LatentWalkSettings":
        with pytest.raises(GanscopeError, match="at least two"):
            make(**needed | {"fakes": "12"})
        return
    one, many = (make(**needed | {field: value}) for value in ("abc", ["abc"]))
    assert one == many == make(**needed | {field: Path("abc")})
    assert len(getattr(one, field)) == 1
    with pytest.raises(GanscopeError, match=f"{field} must be a list of names, not 5"):
        make(**needed | {field: 5})


def test_there_are_lists_in_the_settings() -> None:
    assert len(LISTS) > 10


@pytest.mark.parametrize(
    "shard", ["²/³", "1/²", "\u0661/\u0662", "1/" + "9" * 5000, "0/2", "3/2", "1", "/"]
)
def test_odd_digits_are_no_shard(shard: str) -> None:
    with pytest.raises(GanscopeError, match="--shard must be i/n"):
        config.GenerateSettings(shard=shard)


@pytest.mark.parametrize("number", ["²", "٣", "9" * 5000, "1:²"])
def test_odd_digits_are_no_fake(number: str) -> None:
    with pytest.raises(GanscopeError, match="is no fake"):
        parse_fake(number, 0)


@pytest.mark.parametrize("device", ["cuda:²", "cuda:٣", "cuda:" + "9" * 30])
def test_odd_digits_are_no_device(device: str) -> None:
    with pytest.raises(GanscopeError, match="--device must be one of"):
        config.CheckSettings(paths=("x.jpg",), device=device)


def test_the_seeds_of_a_soup_are_counted_before_it_begins() -> None:
    for make in (config.TrainDetectorSettings, config.BenchmarkSettings):
        needed: Any = NEEDED.get(make.__name__, {})
        with pytest.raises(GanscopeError, match="--seed must be below 4294967294 with --soup 2"):
            make(**needed, seed=2**32 - 1, soup=2)
        make(**needed, seed=2**32 - 3, soup=2)
        make(**needed, seed=2**32 - 1)


@pytest.mark.parametrize(
    "left",
    [
        {"RANK": "1"},
        {"LOCAL_RANK": "0"},
        {"RANK": "1", "LOCAL_RANK": "1"},
        {"WORLD_SIZE": "2"},
        {"RANK": "x", "WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
    ],
)
def test_what_an_earlier_command_left_behind_is_forgotten(
    left: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    assert place() == (0, 1)
    with pytest.warns(GanscopeWarning, match="runs as one"):
        assert _shard(config.GenerateSettings()) == (1, 1)
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    with pytest.warns(GanscopeWarning, match="runs as one"):
        assert processes(pick_device("cpu")).num_processes == 1
    assert not set(PLACES) & set(os.environ)


def test_a_part_of_several_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _shard(config.GenerateSettings()) == (2, 4)


def test_a_folder_of_a_sources_name_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photographs").mkdir()
    with pytest.warns(GanscopeWarning, match="not the folder; for that write ./photographs"):
        open_source("photographs")


def test_a_stopped_command_says_what_becomes_of_it() -> None:
    assert "goes on" in _what_now(["train-detector", "c", "--epochs", "3"])
    assert "goes on" in _what_now(["benchmark", "c"])
    assert "goes on" in _what_now(["check", "x.jpg", "--csv", "v.csv"])
    for words in (
        ["check", "x.jpg"],
        ["benchmark", "c", "--no-cache"],
        ["audit"],
    ):
        assert "begins anew" in _what_now(words)


def test_a_setting_that_was_not_known_then_had_its_default() -> None:
    settings = config.TrainDetectorSettings(epochs=3)
    before = config.plain(settings)
    for name in ("data", "masks", "label_column"):
        del before[name]
    assert config.changed(settings, before) == []
    assert config.changed(dataclasses.replace(settings, masks=True, epochs=4), before) == [
        "--masks",
        "--epochs",
    ]
