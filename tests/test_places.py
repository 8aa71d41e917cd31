"""Training with masks and on faces: what follows the pixels, what is learned, what is refused."""

import errno
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from ganscope.config import TrainDetectorSettings
from ganscope.datasets.blending import self_blend
from ganscope.detector.judging.checking import check_image
from ganscope.detector.judging.heatmaps import heatmap
from ganscope.detector.model import Detector, load_detector
from ganscope.detector.training import faces as faces_module
from ganscope.detector.training import run as run_module
from ganscope.detector.training.device_augmentation import crop, draw
from ganscope.detector.training.faces import MARGIN, KeptFace, keep_faces, make_pair
from ganscope.detector.training.masks import measure_places, places_loss
from ganscope.detector.training.pack import cut_views
from ganscope.detector.training.recipes import train_detector
from ganscope.detector.training.run import open_views, split_table
from ganscope.detector.training.views import Key
from ganscope.errors import GanscopeError, GanscopeWarning
from ganscope.faces import Face

SIDE = 48


def settings(corpus: Path, out: Path, **changes: Any) -> TrainDetectorSettings:
    usual: dict[str, Any] = {"size": 32, "epochs": 2, "batch_size": 8, "degrade": 0.0}
    usual |= {"device": "cpu", "precision": "fp32"}
    return TrainDetectorSettings(corpora=(corpus,), out=out, **usual | changes)


def make_masked(root: Path, count: int = 24, edited: int = 24, flaw: str = "") -> Path:
    """Smooth noise; "edit" has a speckled square, told by a mask, "whole" is speckled all over."""
    rng = np.random.default_rng(5)
    rows = []
    for generator, number in (("real", count), ("edit", edited), ("whole", 12)):
        (root / generator).mkdir(parents=True)
        (root / "masks").mkdir(exist_ok=True)
        for i in range(number):
            image = cv2.GaussianBlur(rng.normal(128, 60, (SIDE, SIDE, 3)), (0, 0), 1.5)
            mask = np.zeros((SIDE, SIDE), np.uint8)
            if generator == "edit":
                top, left = rng.integers(0, SIDE - 24, 2)
                mask[top : top + 24, left : left + 24] = 255
            changed = mask > 0 if generator == "edit" else np.full(mask.shape, generator == "whole")
            image[changed] += rng.normal(0, 50, (SIDE, SIDE, 1))[changed]
            cv2.imwrite(str(root / generator / f"{i}.png"), image.clip(0, 255).astype(np.uint8))
            named = ""
            if generator == "edit":
                named = f"masks/{i}.png"
                if flaw == "size" and i < 2:
                    mask = mask[:-1]
                cv2.imwrite(str(root / named), mask)
            rows.append((f"{generator}/{i}.png", int(generator != "real"), generator, named))
    table = pd.DataFrame(rows, columns=["file_name", "label", "generator", "mask"])
    order = np.arange(len(table)) % 3 == 0
    table["split"] = np.where(order, "val", "train")
    table.to_csv(root / "metadata.csv", index=False)
    return root


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_masked(tmp_path_factory.mktemp("masked") / "c")


def test_masks_follow_every_crop_and_mirror(masked: Path, tmp_path: Path) -> None:
    asked = settings(masked, tmp_path / "r", masks=True, size=40)
    table = split_table(asked)
    views = open_views(asked, table, 40)
    (row,) = table.index[table["file_name"] == "edit/1.png"]
    views._cache.clear()
    # The image itself is its mask: whatever happens to one must happen to the other.
    image = cv2.imread(str(masked / "masks/1.png"))
    opened = replace(views.open(row), pixels=image)
    seen = set()
    for turn in range(12):
        view = views.cut(opened, Key(0, turn, row, True))
        assert view.shape == (40, 40, 4)
        assert (view[..., 0] == view[..., 3]).all()
        seen.add(view.tobytes())
    assert len(seen) > 3
    whole = views.cut(
        views.open(int(table.index[table["generator"] == "whole"][0])), Key(0, 0, 0, False)
    )
    real = int(table.index[table["label"] == 0][0])
    assert (views.cut(views.open(real), Key(0, 0, real, True))[..., 3] == 0).all()
    assert whole.shape == (40, 40, 4)


def test_masks_follow_a_degraded_view(masked: Path, tmp_path: Path) -> None:
    asked = settings(masked, tmp_path / "r", masks=True, size=40, degrade=1.0)
    table = split_table(asked)
    views = open_views(asked, table, 40)
    (row,) = table.index[table["file_name"] == "edit/1.png"]
    opened = replace(views.open(row), pixels=cv2.imread(str(masked / "masks/1.png")))
    for turn in range(20):  # resized, blurred, noisy, compressed: the mask lies where it was
        view = views.cut(opened, Key(0, turn, row, True)).astype(float)
        sure = (view[..., 3] < 10) | (view[..., 3] > 245)
        assert np.abs(view[..., :3].mean(-1) - view[..., 3])[sure].mean() < 20


def test_places_of_an_image_learn_only_their_differences() -> None:
    masks = torch.zeros(1, 8, 8)
    masks[:, :, :4] = 1
    local = torch.where(masks[:, ::2, ::2] > 0, 3.0, -3.0)
    high = places_loss(local + 7.0, masks, own=False)
    assert torch.allclose(high, places_loss(local, masks, own=False))  # the mean is the image's
    assert places_loss(local + 7.0, masks, own=True) > places_loss(local, masks, own=True)
    assert places_loss(-local, masks, own=False) > high + 2
    # Where a picture is fake everywhere, or nowhere, the map says so itself.
    ones = torch.ones(1, 8, 8)
    expected = math.log1p(math.exp(-2.0))
    assert places_loss(torch.full((1, 4, 4), 2.0), ones, own=False).item() == pytest.approx(
        expected
    )


def test_places_are_measured_on_what_is_changed_in_part() -> None:
    mask = np.zeros((8, 8), np.float32)
    mask[:, :4] = 1
    right = np.where(mask > 0, 1.0, -1.0).astype(np.float32)
    assert measure_places([right], [mask]) == {"pixel_auroc": 1.0, "iou": 1.0, "masks": 1}
    assert measure_places([-right], [mask])["pixel_auroc"] == 0.0
    everything = np.ones((8, 8), np.float32)
    half = measure_places([right, everything, right], [mask, mask, np.zeros((8, 8))])
    assert half["masks"] == 2
    assert half["iou"] == pytest.approx(0.75)
    assert math.isnan(measure_places([right], [everything])["pixel_auroc"])


def test_a_training_with_masks_learns_where(masked: Path, tmp_path: Path) -> None:
    asked = settings(masked, tmp_path / "r", masks=True, epochs=8, learning_rate=3e-3, patience=0)
    run = train_detector(asked)
    measured = json.loads((run / "metrics.json").read_text())
    assert measured["places"]["pixel_auroc"] > 0.8
    assert "pixel AUROC" in (run / "README.md").read_text()
    assert "--masks" in (run / "README.md").read_text()
    assert {"val_pixel_auroc", "val_iou"} <= set(pd.read_csv(run / "losses.csv").columns)


def test_a_training_with_masks_goes_on(
    masked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ganscope.detector.training import loop

    whole = train_detector(settings(masked, tmp_path / "whole", masks=True, patience=0))
    keep = loop.save_checkpoint

    def killed(run: Path, state: dict[str, Any]) -> None:
        keep(run, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        train_detector(settings(masked, tmp_path / "part", masks=True, patience=0))
    monkeypatch.setattr(loop, "save_checkpoint", keep)
    part = train_detector(settings(masked, tmp_path / "part", masks=True, patience=0))
    assert (whole / "model.safetensors").read_bytes() == (part / "model.safetensors").read_bytes()


def test_a_mask_of_another_size_leaves_its_image_out(tmp_path: Path) -> None:
    corpus = make_masked(tmp_path / "c", flaw="size")
    with pytest.warns(GanscopeWarning, match=r"2 of .* left out.*its mask has 48x47 pixels"):
        run = train_detector(settings(corpus, tmp_path / "r", masks=True, epochs=1))
    assert json.loads((run / "metrics.json").read_text())["unreadable"] == 2


def test_masks_are_asked_for_where_there_are_none(
    masked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pd.read_csv(masked / "metadata.csv").drop(columns="mask")
    bare = tmp_path / "bare.csv"
    table["file_name"] = [str(masked / name) for name in table["file_name"]]
    table.to_csv(bare, index=False)
    monkeypatch.setattr(run_module, "leave_out_unreadable", None)  # told before any is opened
    with pytest.raises(GanscopeError, match="no image has a mask"):
        train_detector(settings(bare, tmp_path / "r", masks=True))
    lost = pd.read_csv(masked / "metadata.csv", keep_default_na=False)
    lost["file_name"] = [str(masked / name) for name in lost["file_name"]]
    lost["mask"] = [name and f"lost/{name}" for name in lost["mask"]]
    lost.to_csv(bare, index=False)
    with pytest.raises(GanscopeError, match="none of the 24 masks that it names is there"):
        train_detector(settings(bare, tmp_path / "r", masks=True))
    with pytest.raises(GanscopeError, match=r"--masks: not with --soup"):
        train_detector(settings(masked, tmp_path / "r", masks=True, soup=2))


def test_masks_of_a_pack_are_cut_as_its_views(masked: Path) -> None:
    mask = np.repeat(cv2.resize(cv2.imread(str(masked / "masks/1.png")), (700, 900)), 1, 2)
    kinds = [kind for kind, _ in cut_views(mask, "a.png", 64, seed=3)]
    assert kinds == [0, 1, 2]
    for (_, view), (_, other) in zip(
        cut_views(mask, "a.png", 64, seed=3),
        cut_views(255 - mask, "a.png", 64, seed=3),
        strict=True,
    ):
        one, two = (cv2.imdecode(data, 1).astype(int) for data in (view, other))
        assert np.abs(one + two - 255).mean() < 4  # the same part of a picture of other content
    draws = draw(6, np.random.default_rng(0))
    views = torch.from_numpy(np.stack([mask[:64, :64].transpose(2, 0, 1)] * 6))
    views[:, :, :20] = 255
    both = [crop(pixels, draws, 40) for pixels in (views, 255 - views)]
    assert (both[0] + both[1] - 255).abs().max() <= 2


def test_finetune_learns_where_by_a_layer_of_its_own(masked: Path, tmp_path: Path) -> None:
    asked = settings(
        masked, tmp_path / "r", masks=True, recipe="finetune", detector="vit:test_vit", steps=5
    )
    with pytest.warns(GanscopeWarning, match="the backbone is random"):
        run = train_detector(asked)
    detector = load_detector(str(run))
    assert detector.has_places
    assert detector.net.where_bias.abs().max() > 1e-4  # it began at 0
    measured = json.loads((run / "metrics.json").read_text())
    assert 0 < measured["places"]["pixel_auroc"] < 1
    assert {"val_pixel_auroc", "val_iou"} <= set(pd.read_csv(run / "losses.csv").columns)
    assert not (run / "masks").exists()


class Told:
    """A finder that says where a face was drawn."""

    name = "told"
    calls = 0

    def find(self, pixels: np.ndarray) -> list[Face]:
        type(self).calls += 1
        if min(pixels.shape[:2]) < 100 or pixels.std() < 12:  # a picture of nothing
            return []
        height, width = pixels.shape[:2]
        box = (width // 4, height // 4, width * 3 // 4, height * 3 // 4)
        return [Face(box, 0.9, _points(box))]


def _points(box: tuple[int, int, int, int]) -> np.ndarray:
    from ganscope.faces import _MEAN_FACE

    low, high = _MEAN_FACE.min(0), _MEAN_FACE.max(0)
    share = (_MEAN_FACE - low) / (high - low)
    corner, size = np.array(box[:2]), np.array(box[2:]) - np.array(box[:2])
    return (share * size + corner).astype(np.float32)


def draw_face(rng: np.random.Generator) -> np.ndarray:
    """(160, 160, 3) uint8: an oval with eyes and a mouth on a blurred ground, in a grain."""
    image = cv2.GaussianBlur(rng.normal(120, 90, (160, 160, 3)), (0, 0), 12)
    image = (image - image.mean()) * 3 + rng.uniform(80, 160)
    image = np.ascontiguousarray(image.clip(0, 255).astype(np.uint8))
    skin = [int(v) for v in rng.uniform((150, 100, 80), (240, 190, 170))]
    cv2.ellipse(image, (80, 80), (38, 46), 0, 0, 360, skin, -1, cv2.LINE_AA)
    for x in (64, 96):
        cv2.circle(image, (x, 72), 6, (40, 30, 20), -1, cv2.LINE_AA)
    cv2.ellipse(image, (80, 104), (14, 6), 0, 0, 360, (150, 60, 60), -1, cv2.LINE_AA)
    grain = rng.normal(0, 6, image.shape)
    return (image + grain).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def portraits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("portraits")
    rng = np.random.default_rng(0)
    for source in ("a", "b", "c", "d", "e", "f"):
        (root / source).mkdir()
        for i in range(6):
            cv2.imwrite(str(root / source / f"{i}.png"), draw_face(rng)[..., ::-1])
    cv2.imwrite(str(root / "a" / "grey.png"), np.full((160, 160, 3), 90, np.uint8))
    return root


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> type[Told]:
    monkeypatch.setattr(faces_module, "open_finder", Told)
    for module in ("scoring", "heatmaps", "checking"):
        monkeypatch.setattr(f"ganscope.detector.judging.{module}.open_finder", Told)
    Told.calls = 0
    return Told


def faces_settings(portraits: Path, out: Path, **changes: Any) -> TrainDetectorSettings:
    return settings(portraits, out, **{"recipe": "faces", "degrade": 0.5, "steps": 6, **changes})


def test_a_pair_is_cut_and_changed_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    cv2.imwrite(str(tmp_path / "x.png"), draw_face(rng)[..., ::-1])
    box = (40, 40, 120, 120)
    kept = KeptFace(tmp_path / "x.png", 0, Face(box, 1.0, _points(box)))
    for seed in range(6):
        pair, mask = make_pair(kept, 64, 0.0, np.random.default_rng(seed))
        assert pair.shape == (2, 64, 64, 3)
        assert mask.shape == (64, 64)
        difference = np.abs(pair[0].astype(int) - pair[1]).mean(-1)
        assert 0 < mask.mean() < 0.9
        far = cv2.dilate(mask, np.ones((5, 5))) == 0
        assert (difference[far] > 3).mean() < 0.01  # what was not blended is the same pixels
        assert difference[mask > 0.9].mean() > difference[far].mean()
    one, two = (make_pair(kept, 64, 1.0, np.random.default_rng(9))[0] for _ in range(2))
    assert (one == two).all()


def test_faces_are_found_once_and_a_search_goes_on(portraits: Path, tmp_path: Path) -> None:
    table = pd.DataFrame({"path": sorted(map(str, portraits.glob("*/*.png")))})
    Told.calls = 0
    kept = keep_faces(tmp_path / "k", table, 64, Told)
    assert len(kept) == 36
    assert Told.calls == 37
    whole = kept[5]
    assert cv2.imread(str(whole.path)) is not None
    assert keep_faces(tmp_path / "k", table, 64, Told)[5].path == whole.path
    assert Told.calls == 37
    lines = (tmp_path / "k" / "found.jsonl").read_text().split("\n")
    (tmp_path / "k" / "found.jsonl").write_text("\n".join(lines[:20]) + "\n" + lines[20][:9])
    again = keep_faces(tmp_path / "k", table, 64, Told)
    assert Told.calls == 37 + 18  # 19 photographs had been written down whole
    assert [one.face.box for one in again] == [one.face.box for one in kept]


def test_a_full_disk_costs_no_face(
    portraits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pd.DataFrame({"path": sorted(map(str, portraits.glob("a/*.png")))})
    write = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if self.name.startswith("0000003"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        keep_faces(tmp_path / "k", table, 64, Told)
    monkeypatch.setattr(Path, "write_bytes", write)
    kept = keep_faces(tmp_path / "k", table, 64, Told)
    assert len(kept) == 6
    assert all(cv2.imread(str(one.path)) is not None for one in kept)


def test_a_detector_of_faces_learns_from_photographs_alone(
    portraits: Path, tmp_path: Path, told: type[Told]
) -> None:
    run = train_detector(
        faces_settings(portraits, tmp_path / "r", steps=60, learning_rate=3e-3, batch_size=16)
    )
    detector = load_detector(str(run))
    about = detector.config["input"]
    assert (about["looks_at"], about["margin"], about["size"]) == ("faces", MARGIN, 32)
    measured = json.loads((run / "metrics.json").read_text())
    assert measured["places"]["pixel_auroc"] > 0.55
    scores = pd.read_csv(run / "scores.csv")
    learned = set(pd.read_csv(run / "scores.csv")["source"])
    assert len(scores) == 2 * measured["images"]["val"]["real"]
    assert 1 <= len(learned) <= 2  # whole sources
    assert "blended onto itself" in (run / "README.md").read_text()
    assert not (run / "faces").exists()
    assert not (run / "checkpoint.pt").exists()

    checked = check_image(portraits / "a" / "0.png", detector, device="cpu")
    assert checked.faces is not None
    assert len(checked.faces) == 1
    assert checked.score == checked.faces[0].score
    assert checked.decided_by == "face"
    nobody = check_image(portraits / "a" / "grey.png", detector, device="cpu")
    assert (nobody.score, nobody.verdict, nobody.probability) == (None, "unsure", None)
    assert nobody.meaning
    assert "looks at faces alone, and it found none" in nobody.meaning
    pixels = cv2.imread(str(portraits / "a" / "0.png"))
    heat = heatmap(detector, pixels)
    assert heat.shape == (160, 160)
    assert heat[:10].max() == 0 < heat[60:100, 60:100].min()


def test_a_training_on_faces_goes_on(
    portraits: Path, tmp_path: Path, told: type[Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_detector(faces_settings(portraits, tmp_path / "whole"))
    keep, times = faces_module.save_checkpoint, []

    def killed(run: Path, state: dict[str, Any]) -> None:
        keep(run, state)
        times.append(state["step"])
        if len(times) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(faces_module, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        train_detector(faces_settings(portraits, tmp_path / "part"))
    calls = told.calls
    part = train_detector(faces_settings(portraits, tmp_path / "part"))
    assert told.calls == calls  # faces had been kept
    assert times[2] < 6
    assert (whole / "model.safetensors").read_bytes() == (part / "model.safetensors").read_bytes()


def test_a_detector_of_timm_gets_a_head_for_places(
    portraits: Path, tmp_path: Path, told: type[Told]
) -> None:
    run = train_detector(
        faces_settings(portraits, tmp_path / "r", detector="timm:test_efficientnet", steps=2)
    )
    detector = load_detector(str(run))
    assert detector.has_places
    maps, logits = detector.local_logits(np.zeros((2, 32, 32, 3), np.uint8))
    assert maps.shape == (2, 4, 4)
    assert logits == pytest.approx(detector.logits(np.zeros((2, 32, 32, 3), np.uint8)), abs=1e-4)


def test_few_faces_and_settings_of_others_are_told(
    portraits: Path, tmp_path: Path, told: type[Told]
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for i in range(3):
        (few / f"{i}.png").write_bytes((portraits / "b" / f"{i}.png").read_bytes())
    with pytest.raises(GanscopeError, match="3 faces of 32 pixels or more found in 3 photographs"):
        train_detector(faces_settings(few, tmp_path / "r"))
    for change in ({"masks": True}, {"rank": 4}, {"fuse": "cnn"}, {"test_generator": ("x",)}):
        with pytest.raises(GanscopeError, match="--recipe faces has no use for it"):
            train_detector(faces_settings(portraits, tmp_path / "r", **change))
    with pytest.raises(GanscopeError, match="looks at a whole picture in several views"):
        train_detector(faces_settings(portraits, tmp_path / "r", detector="vit:test_vit"))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(GanscopeError):
        train_detector(faces_settings(empty, tmp_path / "r"))


def test_corpora_at_fault_are_not_taken_for_folders_of_photographs(
    portraits: Path, tmp_path: Path
) -> None:
    corpus = tmp_path / "c"
    for folder in ("0_real", "1_fake"):
        (corpus / folder).mkdir(parents=True)
        (corpus / folder / "0.png").write_bytes((portraits / "b" / "0.png").read_bytes())
    (corpus / "metadata.csv").write_text("file_name,label\n0_real/0.png,0\n1_fake/0.png,maybe\n")
    with pytest.raises(GanscopeError, match="neither 0"):
        faces_module.open_photographs(faces_settings(corpus, tmp_path / "r"))


def test_who_is_not_named_is_nobody_else(portraits: Path, tmp_path: Path) -> None:
    named = tmp_path / "named"
    named.mkdir()
    rows = []
    for i in range(6):
        (named / f"{i}.png").write_bytes((portraits / "b" / f"{i}.png").read_bytes())
        rows.append((f"{i}.png", 0, f"person {i // 3}", "s"))
    pd.DataFrame(rows, columns=["file_name", "label", "identity", "source"]).to_csv(
        named / "metadata.csv", index=False
    )
    asked = replace(faces_settings(named, tmp_path / "r"), corpora=(named, portraits))
    table = faces_module.open_photographs(asked)
    assert set(table["identity"]) == {"person 0", "person 1", ""}
    kept = [KeptFace(Path(), row, Face((0, 0, 9, 9), 1.0)) for row in range(len(table))]
    table = faces_module.split_faces(table, kept, asked)
    assert table.attrs["dropped"] == 0
    assert set(table["split"]) == {"train", "val"}
    assert table.groupby("source")["split"].nunique().max() == 1


def test_declared_and_unreadable_photographs_are_left_out(
    portraits: Path, tmp_path: Path, told: type[Told]
) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for i in range(6):
        (mixed / f"{i}.png").write_bytes((portraits / "b" / f"{i}.png").read_bytes())
    said = PngInfo()
    said.add_text("parameters", "a face\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1")
    Image.open(mixed / "0.png").save(mixed / "0.png", pnginfo=said)
    (mixed / "1.png").write_bytes(b"no picture")
    asked = replace(faces_settings(mixed, tmp_path / "r", drop_declared=True))
    names = faces_module.open_photographs(asked)["file_name"]
    assert sorted(names) == [f"{i}.png" for i in range(2, 6)]
    with (
        pytest.warns(GanscopeWarning, match=r"1 of 6 photographs .* left out: 1.png"),
        pytest.raises(GanscopeError, match="at least 20 are needed"),
    ):
        train_detector(replace(asked, drop_declared=False))


def test_a_turned_mask_leaves_its_image_out(tmp_path: Path) -> None:
    from PIL import Image

    from ganscope.datasets.corpus import open_corpus
    from ganscope.detector.training.masks import leave_out_misfits

    corpus = make_masked(tmp_path / "c", count=2, edited=3)
    turned = Image.Exif()
    turned[0x0112] = 6
    for i, size in enumerate(((40, 48), (48, 40))):  # of one the mask lies, of one the image
        Image.new("RGB", (48, 40)).save(corpus / f"edit/{i}.png", exif=turned if i else None)
        Image.new("L", size).save(corpus / f"masks/{i}.png")
    kept, out = leave_out_misfits(open_corpus(corpus).table, "c")
    assert sorted(out["file_name"]) == ["edit/0.png", "edit/1.png"]
    assert out["reason"].str.contains("a mask has its image's size").all()
    assert len(kept) + len(out) == 2 + 3 + 12


def test_a_head_for_places_makes_the_heatmap_of_any_backbone() -> None:
    detector = Detector.create("timm:test_convnext", size=64, where=True).eval()
    assert not detector.net.has_map
    assert detector.has_map
    pixels = np.random.default_rng(0).integers(0, 255, (96, 80, 3), np.uint8)
    assert (heatmap(detector, pixels) == heatmap(detector, pixels, "patches")).all()


def test_self_blending_leaves_the_rest_alone() -> None:
    pixels = draw_face(np.random.default_rng(3))
    box = (40, 40, 120, 120)
    changed, mask = self_blend(pixels, Face(box, 1.0, _points(box)), np.random.default_rng(0))
    assert (changed[mask == 0] == pixels[mask == 0]).all()
