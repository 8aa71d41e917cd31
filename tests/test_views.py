"""Views: what a detector with a backbone looks at, and how often."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ganscope.detector.judging.checking import check_image
from ganscope.detector.judging.scoring import score_images
from ganscope.detector.judging.views import cut_views
from ganscope.detector.model import Detector
from ganscope.errors import GanscopeError

PLAN = {"whole": 256, "settled": -2.0}


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_views_of_a_wide_picture() -> None:
    pixels = picture(400, 700)
    views = cut_views(pixels, 224, PLAN)
    assert views.cut.shape == (6, 224, 224, 3)
    assert views.first == 2
    places = [tuple(place) for place in views.positions]
    assert places == [(-1, -1), (88, 238), (0, 0), (176, 476), (-1, -1), (-1, -1)]
    for cut, (top, left) in zip(views.cut, places, strict=True):
        if top >= 0:
            np.testing.assert_array_equal(cut, pixels[top : top + 224, left : left + 224])


def test_the_whole_is_there_and_so_are_both_ends() -> None:
    """A picture that grows brighter from left to right, in grey."""
    ramp = np.linspace(0, 255, 900).astype(np.uint8)
    pixels = np.repeat(np.repeat(ramp[None, :, None], 300, 0), 3, 2)
    views = cut_views(pixels, 224, PLAN)
    whole, left, right = (views.cut[i].mean((0, 2)) for i in (0, 4, 5))
    share = 255 / 3 * 224 / 224  # of the brightness that a square of the short side spans
    assert left[0] < 2
    assert right[-1] > 253
    assert left[-1] == pytest.approx(share, abs=3)
    assert whole.mean() == pytest.approx(127.5, abs=1)
    assert whole[-1] - whole[0] == pytest.approx(share * 224 / 256, abs=3)


@pytest.mark.parametrize(
    ("height", "width", "count"), [(300, 310, 4), (250, 260, 2), (250, 400, 4), (90, 100, 2)]
)
def test_small_and_square_pictures_have_fewer(height: int, width: int, count: int) -> None:
    assert len(cut_views(picture(height, width), 224, PLAN).cut) == count


def test_what_is_native_weighs_as_much_as_all_else() -> None:
    views = cut_views(picture(400, 700), 224, PLAN)
    assert views.weights(1).tolist() == [1.0]
    assert views.weights(2).tolist() == [0.5, 0.5]
    assert views.weights(6) == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 6, 1 / 6, 1 / 6])
    views = cut_views(picture(400, 420), 224, PLAN)
    assert views.weights(4) == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6])


@pytest.mark.parametrize(("height", "width"), [(30, 900), (1, 20_000), (5_000, 2)])
def test_a_strip_takes_no_memory_to_speak_of(height: int, width: int) -> None:
    views = cut_views(picture(height, width), 224, PLAN)
    assert views.cut.shape[1:] == (224, 224, 3)
    assert len(views.cut) == 4


class Brightness(nn.Module):
    """The logit is ten times the mean of the view, less five; counts what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return 10 * x.mean((1, 2, 3)) - 5


@pytest.fixture
def detector() -> Detector:
    detector = Detector.create("vit:test_vit", size=32)
    detector.net = Brightness()
    detector.mean.zero_()
    detector.std.fill_(1)
    return detector


def test_only_what_the_first_look_leaves_open_is_looked_at_again(detector: Detector) -> None:
    grey, dark, bright = (np.full((60, 90, 3), value, np.uint8) for value in (128, 20, 240))
    found = list(score_images(detector, [dark, grey, bright], device="cpu"))
    assert [len(scored.tile_logits) for scored in found] == [2, 6, 6]
    assert detector.net.seen == 14
    for scored, value in zip(found, (20, 128, 240), strict=True):
        assert scored.logit == pytest.approx(10 * value / 255 - 5, abs=1e-4)
        assert len(scored.weights) == len(scored.tile_logits)


def test_a_first_look_may_settle_that_it_is_fake(detector: Detector) -> None:
    detector.config["input"]["views"] |= {"settled_fake": 4.0, "few": 0.5}
    images = [np.full((60, 90, 3), value, np.uint8) for value in (128, 20, 240)]
    found = list(score_images(detector, images, device="cpu"))
    assert [len(scored.tile_logits) for scored in found] == [6, 2, 2]
    assert detector.net.seen == 10
    assert found[2].weights.tolist() == [0.5, 0.5]  # not as little as one without more


def test_a_glance_at_the_whole_may_settle_what_it_is(detector: Detector) -> None:
    detector.config["input"]["views"] |= {"glance": -3.0, "glance_fake": 4.5, "settled_fake": 4.0}
    values = (20, 60, 128, 235, 255)  # -4.2, -2.6, 0.0, 4.2 and 5.0
    images = [np.full((60, 90, 3), value, np.uint8) for value in values]
    found = list(score_images(detector, images, device="cpu"))
    assert [len(scored.tile_logits) for scored in found] == [1, 2, 6, 2, 1]
    assert detector.net.seen == 12
    for scored, value in zip(found, values, strict=True):
        assert scored.logit == pytest.approx(10 * value / 255 - 5, abs=1e-4)
        assert scored.again is None
    assert [scored.positions[0, 0] for scored in found] == [-1] * 5


def test_after_a_glance_the_other_views_count_as_without_one(detector: Detector) -> None:
    images = [picture(70 + 9 * i, 100 - 5 * i, i) // (1 + i % 3) for i in range(6)]
    images += [picture(36, 40), picture(36, 40) // 8]  # these have two views
    detector.config["input"]["views"] |= {"few": 0.5}
    before = list(score_images(detector, images, device="cpu"))
    detector.config["input"]["views"] |= {"glance": -4.0}
    after = list(score_images(detector, images, 3, device="cpu"))
    seen = [len(scored.tile_logits) for scored in after]
    assert seen[-2:] == [2, 1]
    for one, other, count in zip(before, after, seen, strict=True):
        if count > 1:
            assert other.logit == pytest.approx(one.logit, abs=1e-5)
    assert after[-1].weights.tolist() == [0.5]  # it, too, has no more views than the first look


def test_a_glance_is_at_the_whole(detector: Detector) -> None:
    detector.config["input"]["views"] |= {"glance": -3.0}
    middle_bright = np.full((200, 200, 3), 20, np.uint8)
    middle_bright[84:116, 84:116] = 255  # all of the middle, little of the whole
    (scored,) = score_images(detector, [middle_bright], device="cpu")
    assert len(scored.tile_logits) == 1
    assert scored.logit == pytest.approx(float(scored.tile_logits[0]))
    (scored,) = score_images(detector, [255 - middle_bright], device="cpu")
    assert len(scored.tile_logits) > 1


def test_a_glance_may_settle_a_small_fake_which_counts_less(detector: Detector) -> None:
    detector.config["input"]["views"] |= {"glance": -3.0, "glance_fake": 4.0, "few": 0.5}
    (scored,) = score_images(detector, [np.full((36, 40, 3), 250, np.uint8)], device="cpu")
    assert len(scored.tile_logits) == 1
    assert scored.logit == pytest.approx(0.5 * (10 * 250 / 255 - 5), abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_scores_do_not_depend_on_batches(detector: Detector, batch_size: int) -> None:
    images = [picture(40 + 9 * i, 60 + 5 * i, i) // (1 + i % 3) for i in range(7)]
    alone = [next(score_images(detector, [image], device="cpu")).logit for image in images]
    found = [s.logit for s in score_images(detector, images, batch_size, device="cpu")]
    assert found == pytest.approx(alone, abs=1e-5)


def test_the_logit_is_the_weighted_mean_of_the_views(detector: Detector) -> None:
    pixels = picture(70, 100)
    pixels[:, :40] //= 2
    views = cut_views(pixels, 32, detector.views or {})
    logits = 10 * views.cut.mean((1, 2, 3)) / 255 - 5
    (scored,) = score_images(detector, [pixels], device="cpu")
    assert scored.logit == pytest.approx(float(logits @ views.weights(len(logits))), abs=1e-4)


def test_strips_constant_and_small_pictures_get_no_verdict(
    detector: Detector, tmp_path: Path
) -> None:
    detector.config["input"]["smallest"] = 48
    shapes = {"strip": (60, 900), "small": (40, 90)}
    for name, (height, width) in shapes.items():
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture(height, width))
    cv2.imwrite(str(tmp_path / "solid.png"), np.full((300, 300, 3), 90, np.uint8))
    for name, why in {
        "strip": "more than 6 times",
        "small": "too small",
        "solid": "constant",
    }.items():
        check = check_image(tmp_path / f"{name}.png", detector, device="cpu")
        assert check.verdict == "unsure"
        assert why in check.warnings[-1]
        assert check.probability is None


@pytest.mark.parametrize(
    "views",
    [
        {"whole": 20, "settled": -2},
        {"whole": 256, "settled": "x"},
        {"whole": 256},
        5,
        PLAN | {"settled_fake": -3.0},
        PLAN | {"settled_fake": "no"},
        PLAN | {"glance": "no"},
        PLAN | {"glance": -3.0, "glance_fake": -4.0},
        PLAN | {"glance": -3.0, "glance_fake": "no"},
        PLAN | {"glance_fake": 4.0},
        PLAN | {"few": 0},
        PLAN | {"few": "half"},
    ],
)
def test_views_that_cannot_be_are_an_error(tmp_path: Path, views: object) -> None:
    detector = Detector.create("vit:test_vit", size=32)
    detector.config["input"]["views"] = views
    detector.save(tmp_path)
    with pytest.raises(GanscopeError, match=r"config\.json.*views"):
        Detector.load(tmp_path)


def test_weights_survive_a_load_of_their_kind(tmp_path: Path) -> None:
    """Large networks are built without weights before theirs are read."""
    torch.manual_seed(0)
    detector = Detector.create("vit:test_vit", size=32, hidden=8).eval()
    detector.save(tmp_path)
    again = Detector.load(tmp_path)
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(again(images), detector(images), atol=1e-2, rtol=1e-2)
    assert all(not p.is_meta and p.requires_grad for p in again.parameters())
