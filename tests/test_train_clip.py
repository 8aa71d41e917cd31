"""The script that fine-tunes in folds and seeds: what it never splits, averages and does twice."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from PIL import Image
from safetensors.torch import load_file, save_file

from ganscope.detector.model import Detector
from ganscope.detector.networks.lora import apply_adapters
from ganscope.detector.training.pack import read_pack

SCRIPT = ROOT / "benchmarks" / "train_clip.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="no benchmarks folder here")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_clip", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["train_clip.py", *map(str, words)])
    script.main()


@pytest.fixture
def toy(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    run(script, monkeypatch, "toy", "--out", tmp_path / "toy", "--number", 48)
    return tmp_path / "toy"


def test_folds_and_final_go_on_where_they_were_killed(
    script: ModuleType,
    toy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    words = ("train", "--pack", toy, "--out", out, "--detector", "vit:test_vit", "--size", 32)
    words += ("--steps", 3, "--batch-size", 8, "--folds", 2, "--seeds", 2, "--rank", 2)
    words += ("--device", "cpu", "--learning-rate", 0.01)
    fine_tune, names = script.fine_tune, []

    def killed(*args: Any, **options: Any) -> Any:
        names.append(options["run"].name)
        if len(names) == 2:
            raise KeyboardInterrupt
        return fine_tune(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(script, "fine_tune", killed)
        with pytest.raises(KeyboardInterrupt):
            run(script, monkeypatch, *words)
        run(script, monkeypatch, *words)
    assert names == ["fold0", "fold1", "fold1", "seed0", "seed1"]
    assert "views/s" in capsys.readouterr().out
    left = {path.name for path in out.iterdir()}
    models = {f"{name}.safetensors" for name in ("fold0", "fold1", "seed0", "seed1", "final")}
    assert left == models | {"fold0.csv", "fold1.csv", "oof.csv", "settings.json"}

    scores = pd.read_csv(out / "oof.csv")
    columns = ["picture", "label", "source", "fold", "native", "middle", "whole"]
    assert scores.columns.tolist() == columns
    assert sorted(scores["picture"]) == read_pack(toy).names
    assert (scores.groupby("source")["fold"].nunique() == 1).all()
    assert scores.groupby("fold").size().tolist() == [24, 24]

    nets = []
    for name in ("seed0", "seed1", "final"):
        settings = script.TrainDetectorSettings(
            recipe="finetune", detector="vit:test_vit", size=32, device="cpu"
        )
        torch.manual_seed(0)
        net = script.net_of(script.create(settings))
        apply_adapters(net, load_file(out / f"{name}.safetensors"), name)
        nets.append(net.state_dict())
    for name, value in nets[2].items():
        torch.testing.assert_close(value, (nets[0][name] + nets[1][name]) / 2, atol=1e-3, rtol=1e-3)
    moved = "backbone.blocks.0.attn.qkv.weight"
    assert not torch.equal(nets[0][moved], nets[1][moved])
    with pytest.raises(SystemExit, match="begun with another rank"):
        run(script, monkeypatch, *words, "--rank", 4)


def test_a_training_goes_on_from_the_mean_of_adapters(
    script: ModuleType, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    Detector.create("vit:test_vit", size=32).save(base)
    words = ("train", "--pack", toy, "--detector", "vit:test_vit", "--size", 32, "--steps", 2)
    words += ("--batch-size", 8, "--folds", 0, "--seeds", 1, "--rank", 2, "--device", "cpu")
    words += ("--pretrained", base)
    for name in ("a", "b"):
        seed = ("--seed", ord(name), "--learning-rate", 0.05)
        run(script, monkeypatch, *words, *seed, "--out", tmp_path / name)
    files = [tmp_path / name / "final.safetensors" for name in ("a", "b")]
    shares = [f"{files[0]}=0.75", f"{files[1]}=0.25"]
    run(script, monkeypatch, *words, "--out", tmp_path / "c", "--adapters", *shares)

    def made(*states: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        net = script.net_of(Detector.create("vit:test_vit", size=32, pretrained=str(base)))
        for state in states:
            apply_adapters(net, state, "adapters")
        return net.state_dict()

    whole = load_file(tmp_path / "c" / "final.safetensors")
    learned = dict(whole)
    for name, value in whole.items():
        if name.endswith((".A", ".B")):
            ranks = value.split(2, int(name.endswith(".B")))
            assert len(ranks) == 3
            learned[name] = ranks[2]
    begun, goal = made(script.mean_adapters(script.shares_of(shares))), made(whole)
    in_turn = made(script.mean_adapters(script.shares_of(shares)), learned)
    for name, value in goal.items():
        torch.testing.assert_close(value, in_turn[name], atol=1e-3, rtol=1e-3)
    a, b = (made(load_file(path)) for path in files)
    for name, value in begun.items():
        torch.testing.assert_close(value, 0.75 * a[name] + 0.25 * b[name], atol=1e-3, rtol=1e-3)
    moved = "backbone.blocks.0.attn.qkv.weight"
    assert 0 < (goal[moved] - begun[moved]).norm() < (goal[moved] - a[moved]).norm()
    last = {name: value for name, value in load_file(files[0]).items() if "blocks.0" not in name}
    save_file(last, tmp_path / "last.safetensors")
    for wrong, said in (
        (files, "the shares make 2"),
        ([f"{files[0]}=half"], "name each FILE=SHARE"),
        ([f"{files[0]}=0.5", f"{files[0]}=0.5"], "a file is named twice"),
        ([shares[0], f"{tmp_path}/last.safetensors=0.25"], "of another kind of training"),
    ):
        with pytest.raises(SystemExit, match=said):
            run(script, monkeypatch, *words, "--out", tmp_path / "d", "--adapters", *wrong)


def test_the_folds_are_balanced(script: ModuleType, toy: Path) -> None:
    found = read_pack(toy)
    placed = script.fold_of_sources(found, 4, 0)
    assert set(placed) == {source for _, source, _ in found.groups}
    assert np.bincount(list(placed.values())).tolist() == [2, 2, 2, 2]
    assert placed == script.fold_of_sources(found, 4, 0)
    assert placed != script.fold_of_sources(found, 4, 1)


def test_a_list_finds_its_pictures_and_names_those_left_out(
    script: ModuleType,
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pictures = tmp_path / "pictures"
    exported = pictures / "1_fake" / "s" / "4cfd2b8c2a0e.jpg"  # the beginning of its path's SHA-1
    exported.parent.mkdir(parents=True)
    for path in (exported, pictures / "b1"):
        path.write_bytes(photo.read_bytes())
    rows = [("s", 1, "g", "o/r", "a/b.jpg", "b0"), ("s", 0, "real", "o/r", "c.jpg", "b1")]
    rows += [("s", 0, "real", "o/r", "d.jpg", "b2"), ("s", 0, "real", "o/r", "e.jpg", "b3")]
    columns = ["source", "label", "generator", "repository", "path", "blob"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "list.tsv", sep="\t", index=False)
    (tmp_path / "drop.tsv").write_text("picture\treason\nb3\ta drawing\n")
    words = ("pack", "--list", tmp_path / "list.tsv", "--pictures", pictures)
    run(script, monkeypatch, *words, "--out", tmp_path / "p", "--drop", tmp_path / "drop.tsv")
    said = capsys.readouterr().out
    assert "dropped b3: a drawing" in said
    assert "dropped b2: " in said
    assert "2 pictures (1 generated)" in said
    assert set(read_pack(tmp_path / "p").picture) == {0, 1}

    rows = [("s", 1, "g", "o/r", name, "b1") for name in "xy"]  # one of them twice
    pd.DataFrame([*rows, ("s", 1, "g", "o/r", "z", "b4")], columns=columns).to_csv(
        tmp_path / "more.tsv", sep="\t", index=False
    )
    (pictures / "b4").write_bytes(photo.read_bytes())
    words = (*words, "--list", tmp_path / "more.tsv", "--pictures", pictures, "--most", 1)
    run(script, monkeypatch, *words, "--out", tmp_path / "q", "--drop", tmp_path / "drop.tsv")
    assert len(read_pack(tmp_path / "q").names) == 2


@pytest.mark.skipif(shutil.which("git") is None, reason="no git here")
def test_originals_come_by_their_checksum_and_what_is_gone_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("originals", SCRIPT.with_name("originals.py"))
    assert spec is not None
    assert spec.loader is not None
    originals = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(originals)
    there = tmp_path / "somebody" / "site"
    there.mkdir(parents=True)
    (there / "a.png").write_bytes(b"a picture")
    for words in (["init", "-q"], ["add", "a.png"], ["commit", "-q", "-m", "a picture"]):
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", "-C", str(there), *who, *words], check=True)
    blob = originals.blob_of(b"a picture")
    rows = [("somebody/site", "a.png", blob), ("somebody/site", "b.png", "0" * 40)]
    rows.append(("nobody/site", "c.png", "1" * 40))
    listed = pd.DataFrame(rows, columns=["repository", "path", "blob"])
    listed.to_csv(tmp_path / "list.tsv", sep="\t", index=False)
    words = [tmp_path / "list.tsv", "--out", tmp_path / "out"]
    words += ["--from", f"{tmp_path}/{{repository}}"]
    monkeypatch.setattr(sys, "argv", ["originals.py", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        originals.main()
    assert end.value.code == 1
    assert [one.name for one in (tmp_path / "out").iterdir()] == [blob]
    assert (tmp_path / "out" / blob).read_bytes() == b"a picture"
    said = capsys.readouterr()
    assert "gone: somebody/site: b.png\n" in said.err
    assert "gone: nobody/site: c.png\n" in said.err
    assert "1 of 3 pictures" in said.out
    shutil.rmtree(there)  # what is there is not asked for again
    with pytest.raises(SystemExit):
        originals.main()
    assert "1 of 3 pictures" in capsys.readouterr().out


def test_pictures_of_several_lists_are_read_once_and_without_what_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    second_reading = importlib.import_module("second_reading")
    dropped = pd.read_csv(SCRIPT.with_name("dropped.tsv"), sep="\t")["picture"][0]
    columns = ["source", "label", "generator", "path", "blob"]
    first = [("a", 1, "g", "x.png", "1" * 40), ("b", 0, "real", "y.png", dropped)]
    second = [("c", 0, "real", "z.jpg", "2" * 40), ("a", 1, "g", "x.png", "1" * 40)]
    for name, rows in (("one", first), ("two", second)):
        table = pd.DataFrame(rows, columns=columns)
        table.to_csv(tmp_path / f"{name}.tsv", sep="\t", index=False)
    lists = [tmp_path / "one.tsv", tmp_path / "two.tsv"]
    folders = [tmp_path / "p", tmp_path / "q"]
    found = second_reading.pictures(SimpleNamespace(list=lists, pictures=folders))
    assert found["path"].tolist() == [str(tmp_path / "p" / ("1" * 40)), f"{folders[1]}/{'2' * 40}"]
    with pytest.raises(SystemExit, match="one --pictures for each --list"):
        second_reading.pictures(SimpleNamespace(list=lists, pictures=folders[:1]))


def test_a_source_that_no_adapters_saw_stays_in_one_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    fold_of = importlib.import_module("second_reading").fold_of
    folds = [fold_of(f"source {number}") for number in range(400)]
    assert folds == [fold_of(f"source {number}") for number in range(400)]
    assert min(folds.count(fold) for fold in range(4)) > 60
    assert set(folds) == {0, 1, 2, 3}


def test_thresholds_are_of_what_the_first_look_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    ship = importlib.import_module("ship_clip")
    first = pd.DataFrame({"picture": list("abc"), "logit": [4.5, 4.4, -3.0]})
    looks = pd.DataFrame({"picture": list("cab"), "logit": [-3.0, 1.0, 1.0]})
    assert ship.settled(looks, first)["logit"].tolist() == [-3.0, 4.5, 1.0]


def test_readings_are_added_by_their_shares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the share, the sum has the same spread, and the network computes it."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    ship = importlib.import_module("ship_clip")
    scores = pd.DataFrame({"tuned": [0.0, 4.0], "second": [1.0, 2.0]})
    assert ship.parts_of(scores, 0.4) == pytest.approx((1.0, 8 / 3))
    for share in (0.2, 0.6):
        tuned, second = ship.parts_of(scores, share)
        spreads = tuned * scores["tuned"].std(), second * scores["second"].std()
        assert spreads[1] / sum(spreads) == pytest.approx(share)
        assert sum(spreads) == pytest.approx(scores["tuned"].std() / ship.MEASURE)
        found = ship.summed(scores, tuned, second)["logit"]
        assert found.diff()[1] == pytest.approx(4 * tuned + second)
    detector = Detector.create("vit:test_vit", size=64, beside=8).eval()
    net: Any = detector.net
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    for weights in net.beside.parameters():  # which begin as nothing
        torch.nn.init.normal_(weights, std=0.05)
    save_file(net.beside.state_dict(), tmp_path / "second.safetensors")
    both = detector.logits(pixels)
    with torch.no_grad():
        beside = net.beside(
            net.read(detector.normalised(detector._images(pixels)), (), net.plain)[0]
        )
    ship.add_second(detector, tmp_path / "second.safetensors", 0.5, 3.0)
    second = beside.squeeze(1).numpy()
    np.testing.assert_allclose(
        detector.logits(pixels), 0.5 * (both - second) + 3 * second, atol=1e-4
    )


def test_all_views_are_looked_at_where_the_first_look_settles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real pictures near a threshold, and every fifth generated one; the others keep their first
    look. A killed run goes on, and each is judged by what belongs to its fold.
    """
    monkeypatch.syspath_prepend(SCRIPT.parent)
    more = importlib.import_module("more_views")
    names = [f"{number:040}" for number in range(12)]
    rows = [(name, n % 2, f"s{n}", n % 2, 4.0, 0.0, 4.0) for n, name in enumerate(names)]
    columns = ["picture", "label", "source", "fold", "native", "middle", "whole"]
    scores = pd.DataFrame(rows, columns=columns).assign(second=0.0)
    scores.loc[[0, 1], ["native", "whole"]] = -9.0  # settled
    scores.loc[2:, "second"] = 1.0
    scores.loc[8, ["native", "whole", "second"]] = [-1.5, -1.5, 0.0]  # not near, for a real one
    scores.to_csv(tmp_path / "scores.csv", index=False)
    scores[:10].to_csv(tmp_path / "of.csv", index=False)
    (tmp_path / "p").mkdir()
    for number, name in enumerate(names):
        pixels = np.full((240, 700 if number % 3 else 240, 3), number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "p" / name, "PNG")
    listed = scores.assign(generator="g", path="x", blob=scores["picture"])
    listed.to_csv(tmp_path / "list.tsv", sep="\t", index=False)
    seen: list[tuple[Any, int]] = []

    def network(base: str, shares: dict[Path, float], _: object) -> Any:
        (adapters,) = shares
        net = SimpleNamespace(classify=lambda found: found[:, 0])
        return SimpleNamespace(size=224, net=net, is_of=adapters.name)

    reading = importlib.import_module("second_reading")

    def read(detector: Any, views: np.ndarray) -> torch.Tensor:
        seen.append((getattr(detector, "is_of", "untouched"), len(views)))
        return torch.stack([torch.arange(len(views)), torch.ones(len(views))], 1).float()

    monkeypatch.setattr(reading, "average_of", network)
    monkeypatch.setattr(more, "prepared", lambda detector, args: detector)
    monkeypatch.setattr(reading.Detector, "create", lambda *_, **__: SimpleNamespace())
    monkeypatch.setattr(more, "read", read)
    monkeypatch.setattr(
        more, "classifier_of", lambda path: lambda x: x[:, 1:] * (5 if "1" in path.name else 3)
    )
    (tmp_path / "folds").mkdir()
    words = ["--list", "list.tsv", "--pictures", "p", "--of", "of.csv", "--scores", "scores.csv"]
    words += ["--second", "s", "--pretrained", "clip", "--adapters", "folds", "--out", "looks.csv"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["more_views.py", *words])
    more.main()
    found = pd.read_csv("looks.csv", dtype={"picture": str}).set_index("picture")
    kept = [n for n in range(1, 10, 2) if more.zlib.crc32(names[n].encode()) % more.OF_FAKES == 0]
    assert 0 < len(kept) < 5
    assert sorted(found.index) == sorted(names[n] for n in {0, 2, 4, 6, 8, *kept})
    assert found.loc[names[0], ["tuned", "second", "views"]].tolist() == [-9.0, 0.0, 2]
    assert found.loc[names[8], ["tuned", "second", "views"]].tolist() == [-1.5, 0.0, 2]
    # whole, middle and, of the wide ones, both ends: weighed half by the native one
    assert found.loc[names[6], ["tuned", "second", "views"]].tolist() == [0.5, 3.0, 2]
    assert found.loc[names[2], ["tuned", "second", "views"]].tolist() == [1.3333, 3.0, 4]
    assert {of for of, _ in seen} == {"fold0.safetensors", "fold1.safetensors", "untouched"}
    before = len(seen)
    found.reset_index().iloc[:2].to_csv("looks.part.csv", index=False)
    more.main()
    again = pd.read_csv("looks.csv", dtype={"picture": str}).set_index("picture")
    assert again.loc[found.index].equals(found)
    assert len(seen) - before == 2 * len([n for n in (2, 4, 6, *kept) if n > 1]) - 4

    # of a detector that went on
    halves = network("", {Path("ships"): 1.0}, None), SimpleNamespace()
    monkeypatch.setattr(reading, "halves_of", lambda name: halves)
    at = words.index("--pretrained")
    words[at : at + 4] = ["--detector", "d"]
    seen.clear()
    monkeypatch.setattr(sys, "argv", ["more_views.py", *words])
    more.main()
    went_on = pd.read_csv("looks.csv", dtype={"picture": str}).set_index("picture")
    assert {of for of, _ in seen} == {"ships", "untouched"}
    assert went_on.loc[names[0], ["second", "views"]].tolist() == [0.0, 2]
    assert went_on.loc[names[2], ["second", "views"]].tolist() == [3.0, 4]


def with_second_reading(folder: Path) -> Detector:
    """A small detector whose second reading says something, saved in a folder."""
    detector = Detector.create("vit:test_vit", size=64, beside=6, where_own=[0]).eval()
    net: Any = detector.net
    torch.manual_seed(1)
    for weights in (*net.beside.parameters(), *net.backbone.blocks[0].parameters()):
        torch.nn.init.normal_(weights, std=0.1)  # the backbone is no longer as it was
    detector.config["steps"] = {"net.backbone.": "net.plain.", "net.local.": "net.plain."}
    detector.save(folder)
    return Detector.load(folder)


def test_both_halves_of_a_detector_are_read_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    reading = importlib.import_module("second_reading")
    detector = with_second_reading(tmp_path / "d")
    views = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    args = SimpleNamespace(detector=str(tmp_path / "d"), adapters=[], device="cpu")
    args.precision = "fp32"
    tuned, untouched = (
        reading.prepared(one(args), args) for one in (reading.tuned_of, reading.untouched_of)
    )
    with torch.inference_mode():
        first = tuned.net.classify(reading.read(tuned, views))
        second = reading.second_of(str(tmp_path / "d"))(reading.read(untouched, views)).squeeze(1)
    assert second.std() > 0
    np.testing.assert_allclose((first + second).numpy(), detector.logits(views), atol=1e-4)
    Detector.create("vit:test_vit", size=64).save(tmp_path / "one")
    with pytest.raises(SystemExit, match="no second reading"):
        reading.halves_of(str(tmp_path / "one"))
    with pytest.raises(SystemExit, match="--adapters"):
        reading.tuned_of(SimpleNamespace(detector=None, pretrained="clip", adapters=[]))


def test_a_second_reading_goes_on_with_fresh_pictures_and_forgets_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it knew tells older fakes alone; fresh ones lack it and have another trace. Each fold's
    classifier has not met the fold, and those that ship learned from all.
    """
    monkeypatch.syspath_prepend(SCRIPT.parent)
    reading = importlib.import_module("second_reading")
    ship = importlib.import_module("ship_clip")
    detector = with_second_reading(tmp_path / "d")
    net: Any = detector.net
    start = net.beside
    with torch.no_grad():
        for weights in start.parameters():
            weights.zero_()
        start[0].weight[:, 0], start[2].weight[0] = 1.0, 0.5
    detector.save(tmp_path / "d")
    rng = np.random.default_rng(0)
    rows, found = [], []
    for number in range(320):
        fresh, label = number >= 160, number % 2
        x = rng.normal(0, 1, (4, start[0].in_features)).astype(np.float16)
        x[:, :2] += label * np.array([-4, 9] if fresh else [6, 0], np.float16)
        rows.append((f"p{number:039}", label, f"s{number // 8}", number // 8 % 4, 0.1, 0.0, -0.1))
        found.append(x)
    columns = ["picture", "label", "source", "fold", "native", "middle", "whole"]
    scores = pd.DataFrame(rows, columns=columns)
    scores[:160].to_csv(tmp_path / "older.csv", index=False)
    scores[160:].to_csv(tmp_path / "fresh.csv", index=False)
    (tmp_path / "f").mkdir()
    about = {"names": scores["picture"].to_numpy(str), "generators": np.array(["g"] * 320)}
    np.savez(tmp_path / "f" / "0.npz", features=np.array(found), **about)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reading, "ON_STEPS", 300)
    monkeypatch.setattr(reading, "ON_PEAK", 1e-2)
    words = ["second_reading.py", "fit", "--features", "f", "--scores", "older.csv", "fresh.csv"]
    words += ["--detector", "d", "--out", "out"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match="--fresh"):
        reading.main()
    monkeypatch.setattr(sys, "argv", [*words, "--fresh", "fresh.csv"])
    reading.main()
    said = re.findall(r"^(.*): AUROC (\d\.\d+);", capsys.readouterr().out, re.MULTILINE)
    auroc = {name: float(value) for name, value in said}
    assert auroc["fresh, second before"] < 0.6
    assert auroc["fresh, second gone on, sources left out"] > 0.95
    assert auroc["older, second gone on, sources left out"] > 0.95
    left = pd.read_csv("out/scores.csv")
    assert left["picture"].tolist() == scores["picture"][160:].tolist()
    x = torch.from_numpy(np.array(found))
    for fold in range(4):
        of_fold = reading.classifier_of(Path("out") / f"second-fold{fold}.safetensors")
        here = (scores["fold"] == fold).to_numpy()
        expected = reading.of_first_look(of_fold, x[here & (np.arange(320) >= 160)])
        np.testing.assert_allclose(left.loc[left["fold"] == fold, "second"], expected, atol=1e-4)

    words[words.index("out")] = "half"
    monkeypatch.setattr(sys, "argv", [*words, "--fresh", "fresh.csv", "--way", "0.5"])
    reading.main()
    half, whole = (
        reading.classifier_of(Path(name) / "second.safetensors") for name in ("half", "out")
    )
    ends = zip(whole.parameters(), reading.second_of("d").parameters(), strict=True)
    for one, (after, first) in zip(half.parameters(), ends, strict=True):
        torch.testing.assert_close(one, (after + first) / 2)
        assert not torch.equal(after, first)

    looks = left.assign(tuned=(left["native"] + left["whole"]) / 2, views=2)
    looks.to_csv("looks.csv", index=False)
    words = ["ship_clip.py", "--detector", "d", "--second", "out/second.safetensors"]
    words += ["--scores", "out/scores.csv", "--looks", "looks.csv", "--out", "shipped"]
    monkeypatch.setattr(sys, "argv", words)
    ship.main()
    shipped = Detector.load("shipped")
    kept, before = (load_file(f"{name}/model.safetensors") for name in ("shipped", "d"))
    changed = {name for name in kept if not torch.equal(kept[name], before[name])}
    assert changed == {name for name in kept if name.startswith("net.beside.")}
    assert shipped.views == detector.views
    assert shipped.thresholds == detector.thresholds
    assert shipped.config["calibration"] == detector.config["calibration"]
    of_all = reading.classifier_of(Path("out/second.safetensors"))
    for one, other in zip(shipped.net.beside.parameters(), of_all.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_a_lot_is_judged_in_two_forms_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bright pictures are called fake; a killed run judges just what is left."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    lot = importlib.import_module("judge_lot")
    detector = Detector.create("vit:test_vit", size=32)
    seen: list[int] = []

    def logits(pixels: np.ndarray) -> np.ndarray:
        seen.append(len(pixels))
        return (10 * pixels.mean((1, 2, 3)) / 255 - 5).astype(np.float32)

    monkeypatch.setattr(detector, "logits", logits)
    detector.config["input"]["views"] |= {"settled": -1.0, "settled_fake": 1.0}
    monkeypatch.setattr(lot, "load_judge", lambda *_: detector)
    (tmp_path / "p").mkdir()
    rows = []
    for number, value in enumerate((20, 30, 250, 240, 20, 250)):
        source = "n-a" if number < 4 else "n-b"
        name = f"{number:040}"
        pixels = np.full((60, 60, 3), value, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "p" / name, "PNG")
        rows.append((source, int(number in (1, 2)), "g", f"{number}.png", name))
    table = pd.DataFrame(rows, columns=["source", "label", "generator", "path", "blob"])
    table.to_csv(tmp_path / "list.tsv", sep="\t", index=False)
    monkeypatch.chdir(tmp_path)
    words = ["judge_lot.py", "--list", "list.tsv", "--pictures", "p", "--out", "judged.csv"]
    monkeypatch.setattr(sys, "argv", [*words, "--sources", "n-a"])
    lot.main()
    said = capsys.readouterr().out
    assert "crop and web: AUROC 0.7500; 1 of 2 real pictures called fake, 50.0%" in said
    assert "50.0% of 2 found, 50.0% called real" in said
    found = pd.read_csv("judged.csv", dtype={"picture": str})
    assert list(found["as"]) == ["crop", "web"] * 4
    assert set(found["source"]) == {"n-a"}
    found[:3].to_csv("judged.csv", index=False)
    before = sum(seen)
    lot.main()
    assert sum(seen) - before == 2 * 5  # of each file two views
    again = pd.read_csv("judged.csv", dtype={"picture": str})
    assert again.equals(found)
    monkeypatch.setattr(sys, "argv", [*words, "--sources", "n-b"])
    with pytest.raises(SystemExit, match="real pictures and fakes"):
        lot.main()
    (tmp_path / "judged.csv").write_text("picture,label\n")
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match="name another --out"):
        lot.main()
