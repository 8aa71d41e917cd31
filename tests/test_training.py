"""Training a detector: what is drawn and shown, what is learned, and what survives a kill."""

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import PartialState
from commands import side_by_side

from ganscope.config import TrainDetectorSettings
from ganscope.datasets.corpus import open_corpora, open_corpus
from ganscope.detector.judging.scoring import score_images
from ganscope.detector.model import Detector, load_detector
from ganscope.detector.training import loop
from ganscope.detector.training import run as run_module
from ganscope.detector.training import soup as soup_module
from ganscope.detector.training import views as views_module
from ganscope.detector.training.loop import train_once
from ganscope.detector.training.recipes import train_detector
from ganscope.detector.training.run import open_views, split_table
from ganscope.detector.training.views import (
    Key,
    Loader,
    Sampler,
    Views,
    find_twins,
    jpeg_qualities,
    mix_pair,
    pad,
    show_the_same,
)
from ganscope.devices import Speed
from ganscope.errors import GanscopeError, GanscopeWarning
from ganscope.images import open_image

SIDE = 40


def make_corpus(
    root: Path, counts: dict[str, int], trace: float = 14.0, suffix: dict[str, str] | None = None
) -> Path:
    """Smooth noise; every second pixel of each second row of a fake is `trace` levels brighter."""
    rng = np.random.default_rng(len(counts))
    rows = []
    for generator, count in counts.items():
        (root / generator).mkdir(parents=True)
        for i in range(count):
            image = cv2.GaussianBlur(rng.normal(128, 60, (SIDE, SIDE, 3)), (0, 0), 0.7)
            if generator != "real":
                image[::2, ::2] += trace
            name = f"{generator}/{i}{(suffix or {}).get(generator, '.png')}"
            cv2.imwrite(str(root / name), image.clip(0, 255).astype(np.uint8))
            rows.append((name, int(generator != "real"), generator))
    table = pd.DataFrame(rows, columns=["file_name", "label", "generator"])
    table.to_csv(root / "metadata.csv", index=False)
    return root


def settings(corpus: Path, out: Path, **changes: Any) -> TrainDetectorSettings:
    plain = TrainDetectorSettings(
        corpora=(corpus,),
        out=out,
        size=32,
        epochs=3,
        batch_size=8,
        degrade=0.0,
        device="cpu",
        precision="fp32",
    )
    return replace(plain, **changes)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "c", {"real": 60, "a": 50, "b": 40})


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks as small as these are slower in many threads, and much slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Killed(Exception):
    pass


class KillAfter:
    """Stands in for the progress bar and ends the training at a step."""

    def __init__(self, steps: int):
        self.left = steps

    def add_task(self, *_: Any, **__: Any) -> int:
        return 0

    def update(self, *_: Any, **__: Any) -> None:
        self.left -= 1
        if not self.left:
            raise Killed


# Which images are drawn


def table_of(counts: dict[str, int]) -> pd.DataFrame:
    names = [name for name, count in counts.items() for _ in range(count)]
    return pd.DataFrame({"generator": names, "label": [int(n != "real") for n in names]})


def test_classes_and_generators_are_drawn_alike() -> None:
    table = table_of({"real": 500, "many": 300, "few": 7})
    drawn = Sampler(table, 1.0).draw(400, np.random.default_rng(0))
    counts = table["generator"].iloc[drawn].value_counts().to_dict()
    assert counts == {"real": 200, "many": 100, "few": 100}
    each = table.iloc[drawn][table["generator"].iloc[drawn] == "few"].index.value_counts()
    assert set(each) <= {14, 15}
    assert len(each) == 7


def test_an_epoch_of_equal_counts_draws_each_image_once() -> None:
    drawn = Sampler(table_of({"real": 30, "a": 30}), 1.0).draw(60, np.random.default_rng(1))
    assert sorted(drawn) == list(range(60))
    assert list(drawn) != sorted(drawn)


def test_hard_images_are_drawn_more_often_and_upset_no_balance() -> None:
    table = table_of({"real": 10, "a": 10, "b": 10})
    sampler = Sampler(table, 1.0)
    even = sampler.weights()
    sampler.learn(np.arange(20), np.r_[np.full(19, 0.1), 0.9])
    odds = sampler.weights()
    assert odds[19] > 3 * odds[18]
    for rows, share in ((slice(10), 0.5), (slice(10, 20), 0.25), (slice(20, 30), 0.25)):
        assert odds[rows].sum() == pytest.approx(share)
    np.testing.assert_allclose(odds[20:], even[20:])  # nothing is known of b yet
    sampler.hard_examples = 0.0
    np.testing.assert_allclose(sampler.weights(), even)


def test_hardness_is_a_running_mean() -> None:
    sampler = Sampler(table_of({"real": 1, "a": 1}), 1.0)
    sampler.learn(np.array([1, 1]), np.array([1.0, 0.0]))
    assert sampler.losses[1] == pytest.approx(Sampler.MEMORY)
    assert np.isnan(sampler.losses[0])


def views_of(corpus: Path, **changes: Any) -> Views:
    table = open_corpus(corpus).table
    usual = {"size": 32, "degrade": 1.0, "qualities": jpeg_qualities(table), "seed": 3}
    return Views(table, **usual | {"twins": find_twins(table)} | changes)


def pairs_of(root: Path, count: int = 6) -> Path:
    """Photographs and copies of them that are called fakes, and two fakes of nothing."""
    make_corpus(root, {"real": count, "fake": count, "other": 2})
    for i in range(count):
        (root / "fake" / f"{i}.png").write_bytes((root / "real" / f"{i}.png").read_bytes())
    table = pd.read_csv(root / "metadata.csv")
    scene = "scene " + table["file_name"].str.extract(r"/(\d+)\.")[0]
    table.assign(group=scene.where(table["generator"] != "other", "")).to_csv(
        root / "metadata.csv", index=False
    )
    return root


def test_a_fake_is_drawn_with_the_photograph_it_was_made_from(tmp_path: Path) -> None:
    table = open_corpus(pairs_of(tmp_path / "pairs")).table
    twins = find_twins(table)
    assert twins.tolist() == [-1] * 6 + [0, 1, 2, 3, 4, 5] + [-1] * 2
    drawn = Sampler(table, 1.0, twins).draw(40, np.random.default_rng(0))
    fakes, beside = drawn[::2], drawn[1::2]
    assert (table["label"][fakes] == 1).all()
    assert (table["label"][beside] == 0).all()
    made = twins[fakes] >= 0
    assert made.sum() == 16  # the usual share
    assert (twins[fakes][made] == beside[made]).all()
    doubled = pd.concat([table, table.iloc[:1]], ignore_index=True)
    assert find_twins(doubled)[6] == -1  # two photographs of one name
    for name in ("a", "b"):
        pairs_of(tmp_path / name)
    both = open_corpora([tmp_path / "a", tmp_path / "b"]).table
    assert find_twins(both)[14 + 6 : 14 + 12].tolist() == [14, 15, 16, 17, 18, 19]


def test_photographs_that_no_fake_was_made_from_have_their_turn() -> None:
    table = table_of({"real": 100, "fake": 20})
    twins = np.r_[np.full(100, -1), np.arange(20)]
    sampler = Sampler(table, 1.0, twins)
    drawn = np.concatenate([sampler.draw(200, np.random.default_rng(i)) for i in range(20)])
    counts = np.bincount(drawn[drawn < 100], minlength=100)
    assert counts.min() > 5
    assert 0.8 < counts[:20].sum() / counts.sum() / (0.2 + 0.8 * 0.2) < 1.2


def test_pairs_have_the_share_that_is_asked_for() -> None:
    table = table_of({"real": 20, "made": 20, "other": 20, "another": 20})
    twins = np.r_[np.full(20, -1), np.arange(20), np.full(40, -1)]
    for share in (0.8, 0.0, 1.0):
        drawn = Sampler(table, 0.0, twins, share).draw(200, np.random.default_rng(0))
        counts = table["generator"][drawn].value_counts()
        assert counts["real"] == 100
        assert abs(counts.get("made", 0) / 100 - share) <= 0.02
        assert abs(counts.get("other", 0) - counts.get("another", 0)) <= 2
    alone = table[table["generator"].isin(["real", "made"])]
    drawn = Sampler(alone, 0.0, twins[:40], 0.5).draw(40, np.random.default_rng(0))
    assert (drawn >= 20).sum() == 20  # no others: half of the batch all the same


def test_twins_go_through_the_same(tmp_path: Path) -> None:
    views = views_of(pairs_of(tmp_path / "pairs"), mix=1.0)
    for draw in range(8):
        real, fake = (views[Key(2, draw, row, True)] for row in (3, 9))
        np.testing.assert_array_equal(real, fake)
        assert not np.array_equal(real, views[Key(2, draw + 1, 3, True)])


def test_a_mixed_fake_lies_between_it_and_its_photograph(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    real = cv2.GaussianBlur(rng.integers(60, 190, (64, 64, 3)).astype(np.uint8), (0, 0), 3)
    fake = real.copy()
    fake[::2, ::2] += 12  # a trace in the highest frequencies
    fake[..., 0] += 20  # and another colour
    assert show_the_same(fake, real)
    assert not show_the_same(fake, np.roll(real, 32, axis=1))
    kinds = set()
    for seed in range(30):
        mixed = mix_pair(fake, real, np.random.default_rng(seed)).astype(float)
        kept = np.abs(mixed[::2, ::2] - mixed[1::2, 1::2])[..., 1].mean()
        assert 5 < kept < 14
        colour = (mixed - real)[1::2, 1::2, 0].mean()
        kinds.add("low" if colour < 6 else "all")
        assert colour < 21
    assert kinds == {"low", "all"}


def test_an_epoch_of_a_run_draws_twins_side_by_side(tmp_path: Path) -> None:
    seen: list[Key] = []

    class Watched(Views):
        def cut(self, opened: Any, key: Key) -> np.ndarray:
            seen.append(key)
            return super().cut(opened, key)

    pairs_of(tmp_path / "pairs", 40)
    table = pd.read_csv(tmp_path / "pairs" / "metadata.csv")
    table[table["generator"] != "other"].to_csv(tmp_path / "pairs" / "metadata.csv", index=False)
    corpus = tmp_path / "pairs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "Views", Watched)
        run = train_detector(settings(corpus, tmp_path / "run", epochs=1))
    learned = [key for key in seen if key.learn]
    together = [k for a, b in pairwise(learned) if a.draw == b.draw for k in (a, b)]
    assert len(together) > len(learned) / 4
    assert (run / "model.safetensors").exists()


# How they are shown


def test_workers_change_no_pixel(corpus: Path) -> None:
    order = [[Key(e, d, (7 * d) % 100, True) for d in range(6)] for e in range(3)]
    batches = []
    for workers in (0, 2):
        loader = Loader(views_of(corpus), workers)
        with loader:
            batches.append(list(loader.batches(order)) + list(loader.batches(order[:1])))
    assert len(batches[0]) == 4
    assert batches[0][0].shape == (6, 3, 32, 32)
    for threads, processes in zip(*batches, strict=True):
        torch.testing.assert_close(threads, processes, rtol=0, atol=0)


def test_a_view_depends_on_its_key_alone(corpus: Path) -> None:
    views, again = views_of(corpus), views_of(corpus, cache_bytes=0)
    first = views[Key(0, 0, 5, True)]
    again[Key(1, 1, 1, True)]
    np.testing.assert_array_equal(first, again[Key(0, 0, 5, True)])
    assert not np.array_equal(first, views[Key(1, 0, 5, True)])
    assert not np.array_equal(first, views[Key(0, 1, 5, True)])


def test_clean_views_are_crops_of_the_file(corpus: Path) -> None:
    views = views_of(corpus)
    view = views[Key(0, 0, 5, False)]
    pixels = open_image(views.paths[5]).pixels
    crops = np.lib.stride_tricks.sliding_window_view(pixels, (32, 32, 3))[:, :, 0]
    assert (crops == view).all((2, 3, 4)).any()


def test_small_images_are_padded_by_reflection() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    padded = pad(pixels, 4)
    assert padded.shape == (4, 4, 3)
    rows = [[0, 3, 3, 0], [6, 9, 9, 6]]
    np.testing.assert_array_equal(padded[:, :, 0], rows + rows[::-1])


def test_lossless_fakes_get_the_compression_of_jpeg_reals(tmp_path: Path) -> None:
    counts = {"real": 6, "a": 6}
    mixed = make_corpus(tmp_path / "mixed", counts, suffix={"real": ".jpg"})
    assert jpeg_qualities(open_corpus(mixed).table) == {0: [95] * 6, 1: []}
    views = views_of(mixed, qualities={0: [30], 1: []})
    fake = views.labels.index(1)
    pixels = open_image(views.paths[fake]).pixels
    rng = np.random.default_rng(0)
    saved = cv2.imdecode(
        cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 30])[1], 1
    )
    np.testing.assert_array_equal(views.neutral(pixels, "PNG", fake, rng), saved[..., ::-1])
    real = views.labels.index(0)
    opened = open_image(views.paths[real]).pixels
    np.testing.assert_array_equal(views.neutral(opened, "JPEG", real, rng), opened)
    alike = make_corpus(tmp_path / "alike", counts)
    assert jpeg_qualities(open_corpus(alike).table) == {0: [], 1: []}


def test_the_compression_is_that_of_training_images_only(tmp_path: Path) -> None:
    root = make_corpus(tmp_path / "c", {"real": 40, "a": 40}, suffix={"real": ".jpg"})
    table = split_table(settings(root, tmp_path / "run"))
    learned = (table["split"] == "train") & (table["label"] == 0)
    views = open_views(settings(root, tmp_path / "run"), table, 32)
    assert len(views.qualities[0]) == learned.sum() < 40


def test_photographs_for_validation_only(tmp_path: Path) -> None:
    root = make_corpus(tmp_path / "c", {"real": 40, "a": 40})
    table = pd.read_csv(root / "metadata.csv")
    table["source"] = np.where(table["label"] == 1, "a", np.where(table.index % 4, "near", "far"))
    table.to_csv(root / "metadata.csv", index=False)
    found = split_table(settings(root, tmp_path / "run", val_source=("far",)))
    assert set(found["split"][found["source"] == "far"]) == {"val"}
    assert "train" in set(found["split"][found["source"] == "near"])


# What is learned


def test_a_planted_trace_is_learned(corpus: Path, tmp_path: Path) -> None:
    run = train_detector(settings(corpus, tmp_path / "run", degrade=0.2, test_generator=("b",)))
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["test"]["overall"]["auroc"]["value"] > 0.95
    assert metrics["test"]["by_generator"]["b"]["auroc"]["value"] > 0.95
    assert set(metrics["images"]["train"]) == {"real", "a"}
    scores = pd.read_csv(run / "scores.csv")
    assert set(scores["split"]) == {"val", "test"}
    assert len(scores) == sum(sum(metrics["images"][s].values()) for s in ("val", "test"))
    fakes = scores["label"] == 1
    assert scores["score"][fakes].mean() > scores["score"][~fakes].mean() + 0.1
    losses = pd.read_csv(run / "losses.csv")
    assert losses["epoch"].tolist() == [1, 2, 3]
    detector = load_detector(str(run))
    assert detector.thresholds == metrics["thresholds"]
    assert "| test | b |" in detector.card
    assert "--test-generator b" in detector.card
    left = {path.name for path in run.iterdir()}
    texts = {
        "config.json",
        "README.md",
        "metrics.json",
        "scores.csv",
        "losses.csv",
        "settings.json",
    }
    assert left == texts | {"model.safetensors", "learned.npz", "loss.png", "roc.png"}
    with pytest.raises(GanscopeError, match="finished"):
        train_detector(settings(corpus, run, degrade=0.2, test_generator=("b",)))


def test_the_saved_detector_gives_the_scores_in_the_table(corpus: Path, tmp_path: Path) -> None:
    run = train_detector(settings(corpus, tmp_path / "run", epochs=1))
    table = pd.read_csv(run / "scores.csv").head(8)
    found = score_images(load_detector(str(run)), [str(corpus / f) for f in table["file_name"]])
    np.testing.assert_allclose([s.logit for s in found], table["logit"], atol=1e-4, rtol=1e-4)


def test_nothing_is_learned_where_there_is_nothing(tmp_path: Path) -> None:
    same = make_corpus(tmp_path / "same", {"real": 150, "a": 60, "b": 60, "c": 90}, trace=0.0)
    run = train_detector(settings(same, tmp_path / "run", epochs=2, test_generator=("c",)))
    metrics = json.loads((run / "metrics.json").read_text())
    assert abs(metrics["test"]["overall"]["auroc"]["value"] - 0.5) < 0.2


@pytest.mark.parametrize("detector", ["npr", "patch", "timm:test_vit"])
def test_every_kind_of_network_trains(corpus: Path, tmp_path: Path, detector: str) -> None:
    run = train_detector(settings(corpus, tmp_path / "run", detector=detector, epochs=1))
    assert load_detector(str(run)).config["architecture"] == detector


def test_default_folders_are_numbered_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wish = replace(settings(corpus, tmp_path), out=None, epochs=1, detector="timm:test_vit")
    assert [str(train_detector(wish)) for _ in range(2)] == [
        "runs/timm-test_vit",
        "runs/timm-test_vit-2",
    ]


# What survives a kill


def test_a_killed_run_ends_like_one_that_was_not(corpus: Path, tmp_path: Path) -> None:
    whole = train_detector(settings(corpus, tmp_path / "whole", degrade=0.5))
    wish = settings(corpus, tmp_path / "killed", degrade=0.5)
    steps = round(len(pd.read_csv(corpus / "metadata.csv")) / 8)
    with pytest.raises(Killed):
        train_detector(wish, KillAfter(steps + 3))  # type: ignore[arg-type]
    assert (tmp_path / "killed" / loop.CHECKPOINT).exists()
    assert not (tmp_path / "killed" / "config.json").exists()
    with pytest.raises(GanscopeError, match=r"--epochs, --seed"):
        train_detector(replace(wish, epochs=5, seed=1))
    killed = train_detector(replace(wish, workers=1))
    for name in ("model.safetensors", "scores.csv", "metrics.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    logs = [pd.read_csv(run / "losses.csv") for run in (whole, killed)]
    columns = ["epoch", "loss", "val_loss", "val_auroc"]
    pd.testing.assert_frame_equal(logs[0][columns], logs[1][columns])


def test_a_run_is_not_continued_on_other_images(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "c", {"real": 30, "a": 30})
    wish = settings(corpus, tmp_path / "run")
    with pytest.raises(Killed):
        train_detector(wish, KillAfter(8))  # type: ignore[arg-type]
    table = pd.read_csv(corpus / "metadata.csv")
    table.iloc[:-1].to_csv(corpus / "metadata.csv", index=False)
    with pytest.raises(GanscopeError, match="other images"):
        train_detector(wish)


def test_two_processes_learn_what_one_does(corpus: Path, tmp_path: Path) -> None:
    """Two processes with half the batch each see the same images and average their gradients."""
    # A network without batch norm, whose statistics are each process' own.
    wish = settings(corpus, tmp_path / "one", detector="timm:test_vit", learning_rate=3e-3)
    wish = replace(wish, epochs=2, batch_size=8)
    one = train_detector(wish)
    two = replace(wish, out=tmp_path / "two", batch_size=4)
    assert side_by_side(lambda: train_detector(two)) == [0, 0]
    assert (tmp_path / "two" / "config.json").exists()
    logs = [pd.read_csv(run / "losses.csv") for run in (one, tmp_path / "two")]
    columns = ["epoch", "loss", "val_loss"]
    pd.testing.assert_frame_equal(logs[0][columns], logs[1][columns], rtol=1e-3)


def test_a_batch_larger_than_all_images_holds_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus(tmp_path / "c", {"real": 30, "a": 30})
    drawn = []
    draw = Sampler.draw
    monkeypatch.setattr(Sampler, "draw", lambda self, n, rng: drawn.append(n) or draw(self, n, rng))
    wish = settings(corpus, tmp_path / "run", epochs=1, batch_size=10**7, precision="auto")
    images = (split_table(wish)["split"] == "train").sum()
    run = train_detector(wish)
    assert drawn == [images]
    assert load_detector(str(run)).config["training"]["batch_size"] == 10**7


# What is refused


def test_corpora_that_cannot_be_learned_from(tmp_path: Path) -> None:
    reals = make_corpus(tmp_path / "reals", {"real": 10})
    few = make_corpus(tmp_path / "few", {"real": 6, "a": 6})
    with pytest.raises(GanscopeError, match="no fake"):
        train_detector(settings(reals, tmp_path / "run"))
    with pytest.raises(GanscopeError, match="too few images"):
        train_detector(settings(few, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_mistakes_leave_no_folder_behind(corpus: Path, tmp_path: Path) -> None:
    for changes, said in [
        ({"detector": "cmn"}, "'cnn'"),
        ({"val_generator": ("aa",)}, "'a'"),
        ({"pretrained": "hub"}, "no weights"),
    ]:
        with pytest.raises(GanscopeError, match=said):
            train_detector(settings(corpus, tmp_path / "run", **changes))
        assert not (tmp_path / "run").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(GanscopeError, match="not a run"):
        train_detector(settings(corpus, tmp_path / "other"))


def test_damaged_images_are_named_at_once_and_left_out(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "c", {"real": 30, "a": 30})
    for number in (3, 7):
        path = corpus / "real" / f"{number}.png"
        path.write_bytes(path.read_bytes()[:-200])  # its header can be read
    (corpus / "a" / "5.png").write_bytes(b"")
    with pytest.warns(GanscopeWarning, match="3 of 60 images cannot be read") as told:
        run = train_detector(settings(corpus, tmp_path / "run", epochs=1))
    (said,) = [str(w.message) for w in told if "cannot be read" in str(w.message)]
    for name in ("real/3.png", "real/7.png", "a/5.png"):
        assert name in said
    assert set(pd.read_csv(run / "unreadable.csv")["file_name"]) == {
        "real/3.png",
        "real/7.png",
        "a/5.png",
    }
    assert json.loads((run / "metrics.json").read_text())["unreadable"] == 3
    scores = pd.read_csv(run / "scores.csv")
    assert scores["error"].notna().sum() == 3
    assert scores["logit"][scores["error"].isna()].notna().all()
    assert "3 images could not be read" in (run / "README.md").read_text()


@pytest.mark.parametrize("recipe", ["once", "soup", "frozen"])
def test_a_run_goes_on_when_named_bad_files_are_gone(tmp_path: Path, recipe: str) -> None:
    corpus = make_corpus(tmp_path / "c", {"real": 30, "a": 30})
    for name in ("real/3.png", "a/5.png"):
        (corpus / name).write_bytes(b"no image")
    changes = {
        "once": {},
        "soup": {"soup": 2},
        "frozen": {"recipe": "frozen-linear", "detector": "timm:test_vit", "hard_examples": None},
    }[recipe]
    wish = settings(corpus, tmp_path / "run", **changes)
    with pytest.warns(GanscopeWarning, match="cannot be read"), pytest.raises(Killed):
        train_detector(wish, KillAfter(2 if recipe == "frozen" else 8))  # type: ignore[arg-type]
    begun = (tmp_path / "run" / "unreadable.csv").read_text()
    table = pd.read_csv(corpus / "metadata.csv")
    mended = table["file_name"] == "a/5.png"  # mended: it stays out of this run
    cv2.imwrite(str(corpus / "a/5.png"), np.zeros((SIDE, SIDE, 3), np.uint8))
    table[(table["file_name"] != "real/3.png") | mended].to_csv(corpus / "metadata.csv")
    (corpus / "real/3.png").unlink()
    train_detector(wish)
    assert "a/5.png" in begun
    assert "a/5.png" not in set(
        pd.read_csv(tmp_path / "run" / "scores.csv").query("error.isna()")["file_name"]
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_damaged_while_it_trains_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    corpus = make_corpus(tmp_path / "c", {"real": 30, "a": 30})
    tell = loop.tell_of_images

    def damage(*arguments: Any) -> None:
        tell(*arguments)
        for path in (corpus / "real").iterdir():
            path.write_bytes(path.read_bytes()[:200])

    monkeypatch.setattr(loop, "tell_of_images", damage)
    with pytest.raises(GanscopeError, match=r"real/\d+\.png: .*restore it"):
        train_detector(settings(corpus, tmp_path / "run", workers=workers))


def test_images_that_are_all_damaged_are_refused(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "c", {"real": 30, "a": 30})
    for path in (corpus / "real").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(GanscopeError, match="none of the real images can be read: real/"):
        train_detector(settings(corpus, tmp_path / "run"))


# What is in a corpus twice, and what is kept of it


def test_copies_in_two_splits_and_under_both_labels_are_told_of(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "c", {"real": 30, "a": 30})
    table = pd.read_csv(corpus / "metadata.csv")
    table["split"] = np.where(table.index % 3 == 0, "val", "train")
    for number in range(5):  # saved anew under another name
        image = cv2.imread(str(corpus / f"real/{3 * number + 1}.png"))
        cv2.imwrite(str(corpus / f"real/{3 * number}.png"), image)
    cv2.imwrite(str(corpus / "a/1.png"), cv2.imread(str(corpus / "real/2.png")))
    table.to_csv(corpus / "metadata.csv", index=False)
    with pytest.warns(GanscopeWarning) as told:
        train_detector(settings(corpus, tmp_path / "run", epochs=1))
    said = " ".join(str(w.message) for w in told)
    assert "5 of the 20 images of the val split are in the train split, too" in said
    assert "real/0.png = real/1.png" in said
    assert "1 fakes are there as reals, too, as they are or nearly so: a/1.png = real/2.png" in said


def test_what_was_learned_from_is_kept(corpus: Path, tmp_path: Path) -> None:
    wish = settings(corpus, tmp_path / "one", epochs=1, test_generator=("b",))
    run = train_detector(wish)
    learned = load_detector(str(run)).learned
    assert learned is not None
    counts = split_table(wish)["split"].value_counts()
    assert (~learned.chosen).sum() == counts["train"]
    assert learned.chosen.sum() == counts["val"]
    # It goes with the detector, to the hub, too.
    load_detector(str(run)).save_pretrained(tmp_path / "hub")
    assert len(load_detector(str(tmp_path / "hub")).learned or []) == len(learned)
    (tmp_path / "hub" / "learned.npz").write_bytes(b"PK damaged")
    assert load_detector(str(tmp_path / "hub")).learned is None


def test_weights_to_start_from_that_know_the_validation_are_told_of(
    corpus: Path, tmp_path: Path
) -> None:
    one = train_detector(settings(corpus, tmp_path / "one", epochs=1))
    weights = str(one / "model.safetensors")
    moved = tmp_path / "moved"
    shutil.copytree(corpus, moved)
    with pytest.warns(GanscopeWarning, match=r"learned from \d+ of the \d+ validation images"):
        other = train_detector(
            settings(moved, tmp_path / "two", epochs=1, pretrained=weights, val_generator=("a",))
        )
    learned = load_detector(str(other)).learned
    assert learned is not None
    assert learned.chosen.sum() < (split_table(settings(corpus, one)) == "val").sum().sum()


# The small things


def test_the_learning_rate_warms_up_and_falls() -> None:
    rates = [loop._schedule(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == 1.0
    assert rates.index(1.0) in (9, 10)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.01
    assert all(math.isfinite(loop._schedule(0, n)) for n in (1, 2, 3))


def test_patience_and_the_best_epoch() -> None:
    log = [
        {"epoch": i + 1, "val_auroc": auroc, "val_loss": loss}
        for i, (auroc, loss) in enumerate([(0.6, 0.6), (0.9, 0.5), (0.9, 0.4), (0.8, 0.3)])
    ]
    assert loop._best_epoch(log) == 3
    assert loop._stale(log, patience=2)
    assert not loop._stale(log, patience=3)
    assert not loop._stale(log, patience=0)
    assert not loop._stale([], patience=1)


def test_a_named_precision_is_obeyed() -> None:
    wish = TrainDetectorSettings(precision="bf16")
    detector = Detector.create("cnn", size=32, width=8)
    device = torch.device("cpu")
    assert loop._choose_speed(wish, detector, device, 8).precision == "bf16"
    auto = loop._choose_speed(replace(wish, precision="auto"), detector, device, 8)
    assert auto.precision in ("fp32", "bf16")


# Soups


def test_a_soup_is_the_mean_of_trainings_that_split_alike(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(5)
    start = tmp_path / "start.pth"
    torch.save(Detector.create("cnn").net.state_dict(), start)
    asked = settings(corpus, tmp_path / "run", epochs=1, soup=2, seed=3, pretrained=str(start))
    run = train_detector(asked)
    soup, *parts = (load_detector(str(p)) for p in (run, run / "seed-3", run / "seed-4"))
    names = [
        pd.read_csv(p / "scores.csv")["file_name"] for p in (run, run / "seed-3", run / "seed-4")
    ]
    assert names[0].tolist() == names[1].tolist() == names[2].tolist()
    for name, value in soup.state_dict().items():
        one, other = (part.state_dict()[name] for part in parts)
        if name.endswith("features.0.weight"):
            assert not torch.equal(one, other)
        if value.is_floating_point() and "running" not in name:
            torch.testing.assert_close(value, (one + other) / 2, atol=1e-3, rtol=1e-3)
    assert "mean of 2 trainings" in (run / "README.md").read_text()
    assert "--soup 2" in (run / "README.md").read_text()

    # Killed while it was finished: the parts are not trained again.
    (run / "config.json").unlink()
    monkeypatch.setattr(soup_module, "train_once", None)
    with monkeypatch.context() as patch:
        patch.setattr(soup_module, "fingerprint", lambda *_: "others")
        with pytest.raises(GanscopeError, match="begun with other images"):
            train_detector(asked)
    train_detector(asked)
    again = load_detector(str(run)).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in soup.state_dict().items())


def test_batch_norm_of_a_soup_knows_the_mean_weights(corpus: Path, tmp_path: Path) -> None:
    """Statistics are of the images that the averaged network sees, not a mean of statistics."""
    start = tmp_path / "start.pth"
    torch.save(Detector.create("cnn").net.state_dict(), start)
    run = train_detector(
        settings(corpus, tmp_path / "run", epochs=1, soup=2, pretrained=str(start))
    )
    soup, *parts = (load_detector(str(p)) for p in (run, run / "seed-0", run / "seed-1"))
    name = "net.features.3.running_mean"
    mean = sum(part.state_dict()[name] for part in parts) / 2
    assert not torch.allclose(soup.state_dict()[name], mean, atol=1e-3)


def test_a_soup_without_weights_to_start_from_trains_its_start(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def note(asked: TrainDetectorSettings, *others: Any) -> Path:
        begun.append((asked.seed, asked.split_seed, asked.pretrained, asked.soup, asked.fuse))
        return train_once(asked, *others)

    monkeypatch.setattr(soup_module, "train_once", note)
    run = train_detector(settings(corpus, tmp_path / "run", epochs=1, soup=2, fuse="patch"))
    expected = []
    for folder in (run / "fused", run):  # what it is fused with is a soup as well
        start = str(folder / "start" / "model.safetensors")
        expected += [(2, 0, None, 1, None), (0, 0, start, 1, None), (1, 0, start, 1, None)]
    assert begun == expected
    assert load_detector(str(run)).config["architecture"] == "fused"
    with pytest.raises(GanscopeError, match="--soup must be at least 1"):
        settings(corpus, tmp_path / "other", soup=0)


# Validation


def test_few_fakes_are_looked_at_more_often_than_many_reals() -> None:
    seen: list[Any] = []

    class Recording:
        def batches(self, order: list[Any]) -> Iterator[torch.Tensor]:
            for keys in order:
                seen.extend(keys)
                yield torch.zeros(len(keys), 3, 32, 32, dtype=torch.uint8)

    state = PartialState(cpu=True)
    labels = torch.cat([torch.zeros(700), torch.ones(60)])
    accelerator: Any = SimpleNamespace(
        process_index=0, num_processes=state.num_processes, device=torch.device("cpu")
    )
    plain = TrainDetectorSettings(batch_size=64)
    average = Detector.create("cnn").eval()
    loop._validate(
        average,
        np.arange(760),
        labels,
        Recording(),
        plain,
        accelerator,
        Speed(),  # type: ignore[arg-type]
    )
    times = pd.Series([key.row for key in seen]).value_counts()
    assert set(times[:700].index) | set(times[700:].index) == set(range(760))
    assert {int(times[row]) for row in range(700)} == {1}
    assert {int(times[row]) for row in range(700, 760)} == {8}
    assert len({(key.row, key.draw) for key in seen}) == len(seen)  # other crops each time


def test_a_recipe_fills_in_what_is_left_open() -> None:
    plain = TrainDetectorSettings()
    assert (plain.degrade, plain.mix, plain.pairs, plain.hard_examples) == (0.8, 0.4, 0.8, 1.0)
    npr = TrainDetectorSettings(recipe="npr", mix=0.2)
    assert (npr.degrade, npr.mix, npr.hard_examples) == (0.0, 0.2, 0.0)
    with pytest.raises(GanscopeError, match="--recipe must be one of full, frozen-linear, aligned"):
        TrainDetectorSettings(recipe="wang")


@pytest.mark.parametrize(("recipe", "level"), [("full", 9), ("cnndetect", 7)])
def test_each_recipe_has_its_degradations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, level: int
) -> None:
    monkeypatch.setattr(views_module, "random_degradation", lambda p, *_: np.full_like(p, 9))
    monkeypatch.setattr(views_module, "blur_and_jpeg", lambda p, *_: np.full_like(p, 7))
    table = open_corpus(make_corpus(tmp_path / "c", {"real": 2, "a": 2})).table
    views = Views(table, size=16, degrade=1.0, qualities={0: [], 1: []}, seed=0, recipe=recipe)
    assert (views[Key(0, 0, 0, True)] == level).all()
    assert len(np.unique(views[Key(0, 0, 0, False)])) > 1
