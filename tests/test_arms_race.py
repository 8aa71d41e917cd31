"""The arms race: generators learn from a frozen critic, and what a race measures and survives."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from ganscope.cli.arms_race import arms_race
from ganscope.config import ArmsRaceSettings, TrainGeneratorSettings, read_json, write_json
from ganscope.datasets.corpus import open_corpus
from ganscope.detector.training import loop as detector_training
from ganscope.devices import Speed
from ganscope.errors import GanscopeError
from ganscope.folders import CHECKPOINT, load_checkpoint, weights_hash
from ganscope.generator import training as generator_training
from ganscope.generator.kinds.architecture import Play
from ganscope.generator.model import load_generator
from ganscope.generator.training import train_generator
from ganscope.together import arms_race as race


@pytest.fixture(autouse=True)
def one_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured to be fastest depends on the machine's mood, and the last bits on it."""
    for module in (generator_training, detector_training):
        monkeypatch.setattr(module, "fastest", lambda *_: Speed())


# A generator and its critic


def tiny(out: Path, **changes: Any) -> TrainGeneratorSettings:
    settings = TrainGeneratorSettings(
        real="photographs",
        generator="gan",
        out=out,
        size=16,
        steps=6,
        batch_size=8,
        width=4,
        sample_every=2,
        ema=0.0,
        device="cpu",
    )
    return replace(settings, **changes)


class Brightness(nn.Module):
    """Takes what is bright for fake; with a layer that would learn from what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.slope = nn.Parameter(torch.tensor(20.0))

    def forward(self, images: Tensor) -> Tensor:
        return self.slope * (self.norm(images).mean((1, 2, 3)) - 0.3)


def brightness(run: Path) -> float:
    return float(np.mean(load_generator(str(run)).make(0, range(64))))


@pytest.mark.parametrize("name", ["gan", "wgan-gp", "stylegan"])
def test_a_generator_with_a_critic_fools_it_better(name: str, tmp_path: Path) -> None:
    wish = tiny(tmp_path / "with", generator=name, steps=12, learning_rate=3e-3, sample_every=12)
    seen: list[dict[str, Any]] = []
    run = train_generator(wish, seen.append, critic=Brightness(), critic_weight=5.0)
    without = train_generator(replace(wish, out=tmp_path / "without"))
    assert brightness(run) < brightness(without) - 2
    assert seen[-1]["critic_loss"] > 0
    assert "to be fooled, too (weight 5)" in (run / "README.md").read_text()
    assert "fooled" not in (without / "README.md").read_text()


def test_the_critic_stays_as_it_is(tmp_path: Path) -> None:
    critic = Brightness()
    before = {key: value.clone() for key, value in critic.state_dict().items()}
    train_generator(tiny(tmp_path / "run"), critic=critic)
    assert all(torch.equal(value, before[key]) for key, value in critic.state_dict().items())
    assert critic.training
    assert critic.slope.requires_grad
    assert critic.slope.grad is None


def test_the_critic_sees_images_from_0_to_1_and_its_loss_is_weighed() -> None:
    seen: list[Tensor] = []

    def critic(images: Tensor) -> Tensor:
        seen.append(images)
        return images.mean((1, 2, 3)) * 4

    settings = TrainGeneratorSettings(real="")
    rest: Any = ({}, {}, lambda loss: None, settings, torch.device("cpu"), 4, None)
    fakes = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 5, 5).requires_grad_()
    found = Play(*rest, critic, 3.0).criticism(fakes)
    assert seen[0].min() == 0
    assert seen[0].max() == 1
    expected = 3 * (np.log(2) + np.log1p(np.exp(4))) / 2
    assert found["critic_loss"].item() == pytest.approx(expected, rel=1e-5)
    found["critic_loss"].backward()
    assert fakes.grad is not None
    assert fakes.grad[1].min() > fakes.grad[0].max() > 0  # the surest fake learns most
    assert Play(*rest).criticism(fakes) == {}


def test_what_plays_against_nobody_takes_no_critic(tmp_path: Path) -> None:
    with pytest.raises(GanscopeError, match="plays against a discriminator"):
        train_generator(tiny(tmp_path / "run", generator="vae"), critic=Brightness())
    assert not (tmp_path / "run").exists()


class Killed(Exception):
    pass


def test_a_training_goes_on_after_another_and_survives_a_kill(tmp_path: Path) -> None:
    def kill(row: dict[str, Any]) -> None:
        if row["step"] == 5:
            raise Killed

    first = train_generator(tiny(tmp_path / "first"), keep_checkpoint=True)
    wish = tiny(tmp_path / "whole", seed=1)
    whole = train_generator(wish, after=first, keep_checkpoint=True)
    ended, begun = first / "samples" / "000006.png", whole / "samples" / "000000.png"
    assert np.array_equal(cv2.imread(str(ended)), cv2.imread(str(begun)))
    adam = load_checkpoint(whole)["discriminator optimizer"]["state"]  # type: ignore[index]
    assert {int(state["step"]) for state in adam.values()} == {12}
    wish = replace(wish, out=tmp_path / "broken")
    with pytest.raises(Killed):
        train_generator(wish, kill, after=first)
    broken = train_generator(wish, after=first)
    assert not (broken / CHECKPOINT).exists()
    assert "It went on from first." in (broken / "README.md").read_text()
    one, other = (load_file(run / "model.safetensors") for run in (whole, broken))
    assert all(torch.equal(one[key], other[key]) for key in one)
    with pytest.raises(GanscopeError, match="to go on from"):
        train_generator(tiny(tmp_path / "no"), after=broken)


# A race


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of pictures of smooth noise, more than a corpus has reals."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(240):
        image = cv2.GaussianBlur(rng.normal(128, 90, (24, 20, 3)), (0, 0), 1.5)
        cv2.imwrite(str(folder / f"{i:03}.png"), image.clip(0, 255).astype(np.uint8))
    return str(folder)


def tiny_race(photos: str, out: Path, **changes: Any) -> ArmsRaceSettings:
    settings = ArmsRaceSettings(
        real=photos,
        rounds=2,
        size=16,
        width=4,
        n=60,
        first_steps=4,
        steps=3,
        epochs=1,
        out=out,
        device="cpu",
    )
    return replace(settings, **changes)


class Calls:
    """Notes what a race asks of the two rooms, and ends it at a call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.seen: list[tuple[str, str, dict[str, Any]]] = []
        self.kill_at: tuple[str, str] | None = None
        for name in ("train_generator", "generate_corpus", "train_detector"):
            monkeypatch.setattr(race, name, self._spy(name, getattr(race, name)))

    def _spy(self, name: str, work: Any) -> Any:
        def call(settings: Any, *arguments: Any, **further: Any) -> Any:
            if (name, settings.out.name) == self.kill_at:
                raise Killed
            self.seen.append((name, settings.out.name, {"settings": settings, **further}))
            return work(settings, *arguments, **further)

        return call

    def of(self, name: str) -> list[dict[str, Any]]:
        return [about for kind, _, about in self.seen if kind == name]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    return Calls(monkeypatch)


def test_a_race_its_triangle_and_a_kill(photos: str, tmp_path: Path, calls: Calls) -> None:
    settings = tiny_race(photos, tmp_path / "race")
    calls.kill_at = ("train_detector", "round-2")
    with pytest.raises(Killed):
        race.arms_race(settings)
    assert read_json(tmp_path / "race" / "triangle.json")["rounds"] == 1
    before, calls.kill_at = len(calls.seen), None
    results = race.arms_race(settings)
    assert [call[:2] for call in calls.seen[before:]] == [("train_detector", "round-2")]
    out = tmp_path / "race"

    # A row a cell, each what its scores say.
    assert list(zip(results["detector"], results["generator"], strict=True)) == [
        (1, 1),
        (1, 2),
        (2, 1),
        (2, 2),
    ]
    assert set(results["n_real"]) == set(results["n_fake"]) == {30}
    scores = pd.read_csv(out / "scores.csv")
    for row in results.itertuples():
        here = (scores["detector"] == row.detector) & (scores["generator"] == row.generator)
        cell = scores[here]
        assert row.auroc == pytest.approx(roc_auc_score(cell["label"], cell["score"]))
        assert row.auroc_low <= row.auroc <= row.auroc_high
    written = pd.read_csv(out / "triangle.csv")
    assert np.allclose(written["auroc"], results["auroc"], atol=1e-5)
    found = read_json(out / "triangle.json")
    assert found["cells"] == results.to_dict("records")
    assert found["says"] == results.attrs["says"] == race.outcome(results)
    for picture in ("triangle.png", "fakes.png"):
        assert cv2.imread(str(out / picture)) is not None

    # Round 1 begins with nothing; round 2 where it ended, against its detector.
    one, two = calls.of("train_generator")
    assert "critic" not in one
    assert "after" not in one
    assert one["settings"].steps == 4
    assert two["settings"].steps == 3
    assert two["settings"].seed != one["settings"].seed
    assert two["critic"].weights == weights_hash(out / "detectors" / "round-1")
    assert two["after"] == out / "generators" / "round-1"
    assert two["critic_weight"] == settings.critic_weight
    learned = [call["settings"].corpora for call in calls.of("train_detector")]
    corpora = tuple(out / "corpora" / f"round-{i}" for i in (1, 2))
    assert learned == [corpora[:1], corpora]
    images = read_json(out / "detectors" / "round-2" / "metrics.json")["images"]
    for split in ("train", "val", "test"):  # no round is held out for validation as a whole
        assert images[split].keys() == {"real", "round-1", "round-2"}
    assert [(p / CHECKPOINT).exists() for p in sorted((out / "generators").iterdir())] == [
        False,
        True,
    ]

    # No training sees the photographs of the test, nor its fakes.
    tests = pd.concat(open_corpus(out / "tests" / f"round-{i}").table for i in (1, 2))
    asked = set(tests.loc[tests["label"] == 0, "group"])
    assert asked
    table = pd.concat(open_corpus(corpus).table for corpus in corpora)
    reals = table[(table["label"] == 0) & (table["split"] != "test")]
    assert not asked & set(reals["group"])
    for call in (one, two):
        assert not asked & set(call["source"].groups)
    assert set(tests["seed"]).isdisjoint(table["seed"])
    assert sorted(table.loc[table["label"] == 1, "generator"].unique()) == ["round-1", "round-2"]

    # A round more leaves the cells as they are.
    longer = race.arms_race(replace(settings, rounds=3))
    assert len(longer) == 9
    old = longer[(longer["detector"] < 3) & (longer["generator"] < 3)]
    assert np.array_equal(old["auroc"], results["auroc"])

    with pytest.raises(GanscopeError, match="finished arms race of 3 rounds"):
        race.arms_race(replace(settings, rounds=3))
    with pytest.raises(GanscopeError, match="other settings \\(--n, --critic-weight\\)"):
        race.arms_race(replace(settings, rounds=4, n=70, critic_weight=0.5))


def test_a_race_is_not_continued_with_other_photographs(
    photos: str, tmp_path: Path, calls: Calls
) -> None:
    """Divided anew, those kept for the test would be among those that were learned from."""
    few = tmp_path / "few"
    few.mkdir()
    for i in range(8):
        (few / f"{i}.png").write_bytes((Path(photos) / f"00{i}.png").read_bytes())
    settings = tiny_race(str(few), tmp_path / "race")
    calls.kill_at = ("train_generator", "round-1")
    with pytest.raises(Killed):
        race.arms_race(settings)
    (few / "8.png").write_bytes((few / "0.png").read_bytes())
    with pytest.raises(GanscopeError, match=r"other photographs in .*few; restore them"):
        race.arms_race(settings)
    (few / "8.png").unlink()
    with pytest.raises(Killed):
        race.arms_race(settings)


def test_what_cannot_be_a_race_is_said_before_anything_is_written(
    photos: str, tmp_path: Path
) -> None:
    out = tmp_path / "race"
    few = tmp_path / "few"
    few.mkdir()
    for i in range(5):
        (few / f"{i}.png").write_bytes((Path(photos) / f"00{i}.png").read_bytes())
    for changes, said in (
        ({"real": str(few)}, "5 photographs of different scenes are too few"),
        ({"size": 64}, "no photograph of at least 64x64"),
        ({"generator": "vae"}, "plays against a discriminator"),
        ({"generator": "dcgn"}, "did you mean 'dcgan'"),
        ({"detector": "cmn"}, "did you mean 'cnn'"),
        ({"size": 20}, "dcgan makes images of"),
    ):
        with pytest.raises(GanscopeError, match=said):
            race.arms_race(tiny_race(photos, out, **changes))
        assert not out.exists()
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(GanscopeError, match="is not an arms race"):
        race.arms_race(tiny_race(photos, out))
    with pytest.raises(GanscopeError, match="--rounds must be at least 2"):
        tiny_race(photos, out, rounds=1)


def table_of(triangle: list[list[float]]) -> pd.DataFrame:
    cells = [(d + 1, g + 1, x) for d, row in enumerate(triangle) for g, x in enumerate(row)]
    return pd.DataFrame(cells, columns=["detector", "generator", "auroc"])


def test_the_outcome_in_a_sentence() -> None:
    assert race.outcome(table_of([[0.99, 0.31], [0.97, 0.98]])) == (
        "the first detector finds the fakes of round 1 with AUROC 0.99, those of round 2 with "
        "0.31; the last one holds against all rounds: 0.97 at least"
    )
    three = race.outcome(table_of([[0.99, 0.31, 0.72], [0.97, 0.98, 0.4], [0.96, 0.95, 0.97]]))
    assert "round 2 with 0.31; the last one holds against all rounds: 0.95 at least" in three
    weak = race.outcome(table_of([[0.99, 0.31], [0.61, 0.98]]))
    assert weak.endswith("the last one does not hold against round 1: 0.61")


def test_one_json_object_on_screen(
    photos: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = table_of([[0.99, 0.31], [0.97, 0.98]])
    table.attrs = {"out": "runs/arms-race", "says": race.outcome(table)}
    monkeypatch.setattr(race, "arms_race", lambda settings, bar: table)
    arms_race(photos, json=True)
    found = json.loads(capsys.readouterr().out)
    assert found == {**table.attrs, "cells": table.to_dict("records")}
    arms_race(photos)
    assert "0.31" in capsys.readouterr().out


def test_an_arms_race_runs_in_one_process(
    photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(GanscopeError, match="in one process"):
        race.arms_race(tiny_race(photos, tmp_path / "race"))


def test_the_next_race_is_numbered_on(
    photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --out: a finished race is left alone, if it is not to be made longer; an unfinished
    one is gone on with, by its own settings.
    """
    monkeypatch.chdir(tmp_path)
    plan = replace(tiny_race(photos, tmp_path), out=None, rounds=3)
    first = race._choose(plan, "these")
    race._open(first, plan, "these")
    assert first == Path("runs/arms-race")
    write_json(first / "triangle.json", {"rounds": 3})
    longer = replace(plan, rounds=5)
    assert race._choose(longer, "these") == first
    assert race._open(first, longer, "these") == 3
    write_json(first / "triangle.json", {"rounds": 5})
    second = race._choose(plan, "these")
    assert second == Path("runs/arms-race-2")
    race._open(second, plan, "these")
    with pytest.raises(GanscopeError, match="arms-race-2 was begun with other photographs"):
        race._open(second, replace(plan, rounds=6), "others")
    with pytest.raises(GanscopeError, match=r"arms-race-2 holds .* \(--n\)"):
        race._open(second, replace(plan, rounds=6, n=90), "these")
