"""Scoring and checking: tiles, batches, bad files, heatmaps that point at what was planted."""

import io
import json
import threading
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ganscope.config import CheckSettings
from ganscope.datasets.degradations import Degradation
from ganscope.detector.judging import scoring
from ganscope.detector.judging.checking import (
    FEW_COLOURS,
    FIELDS,
    check_image,
    check_images,
    explain_probability,
)
from ganscope.detector.judging.heatmaps import heatmap, heatmap_methods, overlay, write_overlay
from ganscope.detector.judging.scoring import (
    MAX_PIXELS,
    count_colours,
    flat_share,
    reencoded_tiles,
    score_images,
    tile_positions,
    tiles,
)
from ganscope.detector.model import Detector
from ganscope.devices import batch_for
from ganscope.errors import GanscopeError, GanscopeWarning, ImageError
from ganscope.images import NamedImage


def random_images(n: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*rng.integers(20, 200, 2), 3), dtype=np.uint8) for _ in range(n)]


@pytest.fixture(scope="module")
def cnn() -> Detector:
    torch.manual_seed(0)
    return Detector.create("cnn", width=8, depth=3).eval()


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (64, 64), (65, 64), (200, 333), (64, 2000), (2000, 10)]
)
def test_tiles_cover_every_pixel_and_stay_inside(height: int, width: int) -> None:
    positions = tile_positions(height, width, 64)
    seen = np.zeros((max(height, 64), max(width, 64)), bool)
    for y, x in positions:
        assert y + 64 <= seen.shape[0]
        assert x + 64 <= seen.shape[1]
        seen[y : y + 64, x : x + 64] = True
    assert seen.all()


def test_a_huge_image_gives_a_bounded_number_of_tiles_spread_over_it() -> None:
    positions = tile_positions(7700, 7800, 64)
    most = MAX_PIXELS // 64**2
    assert most / 2 < len(positions) <= most
    assert 8 < len(tile_positions(7700, 7800, 224)) <= 16
    assert positions.min() == 0
    assert positions.max(axis=0).tolist() == [7700 - 64, 7800 - 64]


def test_tiles_are_the_pixels_and_small_images_are_reflected() -> None:
    (image,) = random_images(1)
    cut, positions = tiles(image, 64)
    padded = np.pad(image, ((0, 64), (0, 64), (0, 0)), mode="symmetric")
    for tile, (y, x) in zip(cut, positions, strict=True):
        assert np.array_equal(tile, padded[y : y + 64, x : x + 64])


@pytest.mark.parametrize("architecture", ["cnn", "npr", "patch", "timm:resnet10t"])
def test_scores_do_not_depend_on_batch_size_or_company(architecture: str) -> None:
    torch.manual_seed(1)
    detector = Detector.create(architecture, size=64).eval()
    images = random_images(5)
    alone = [next(score_images(detector, [image], device="cpu")).logit for image in images]
    for batch_size in (1, 3, 64):
        found = [s.logit for s in score_images(detector, images, batch_size, "cpu")]
        assert found == pytest.approx(alone, abs=1e-4)


def test_the_logit_is_the_mean_of_the_tiles(cnn: Detector) -> None:
    (scored,) = score_images(cnn, random_images(1, seed=4), device="cpu")
    assert scored.logit == pytest.approx(scored.tile_logits.mean(), abs=1e-6)
    assert scored.score == pytest.approx(1 / (1 + np.exp(-scored.logit)))


def test_scoring_is_a_stream_with_bounded_reading_ahead(cnn: Detector) -> None:
    read = 0

    def endless() -> object:
        nonlocal read
        while True:
            read += 1
            yield np.zeros((64, 64, 3), np.uint8)

    stream = score_images(cnn, endless(), batch_size=4, device="cpu")  # type: ignore[arg-type]
    for _ in range(10):
        next(stream)
    assert read < 60


def test_bad_files_are_rows_with_reasons(cnn: Detector, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "half.jpg").write_bytes(photo.read_bytes()[:2000])
    paths = [photo, tmp_path / "text.jpg", tmp_path / "half.jpg", tmp_path / "gone.jpg", photo]
    found = list(score_images(cnn, paths, device="cpu"))
    assert [s.path for s in found] == [str(p) for p in paths]
    assert [s.error is None for s in found] == [True, False, False, False, True]
    assert found[0].logit == pytest.approx(found[4].logit, abs=1e-5)


def test_a_detector_that_gives_nan_is_an_error_not_a_score(cnn: Detector) -> None:
    class Broken(Detector):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * float("nan")

    broken = Broken(cnn.config)
    (scored,) = score_images(broken, random_images(1), device="cpu")
    assert scored.score is None
    assert "finite" in (scored.error or "")


def sure(cnn: Detector, tmp_path: Path) -> str:
    """A detector on disk that calls everything fake."""
    cnn.config["thresholds"] = {"fake": 0.0, "real": 0.0, "fpr_1": 0.0, "fpr_5": 0.0}
    cnn.save(tmp_path / "sure")
    return str(tmp_path / "sure")


@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 900), (256, 256)])
def test_tiny_and_constant_images_are_unsure(
    cnn: Detector, tmp_path: Path, height: int, width: int
) -> None:
    path = tmp_path / "blank.png"
    cv2.imwrite(str(path), np.full((height, width, 3), 90, np.uint8))
    settings = CheckSettings(
        paths=(str(path),),
        detector=sure(cnn, tmp_path),
        heatmap=tmp_path / "maps",
        device="cpu",
    )
    (check,) = check_images(settings)
    assert check.verdict == "unsure"
    assert check.probability is None
    assert len(check.warnings) == 1
    assert "nothing can be said" in (check.meaning or "")
    assert not (tmp_path / "maps" / "blank.png").exists()
    assert (check.width, check.height) == (width, height)


def test_checks_are_json_and_csv(cnn: Detector, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    settings = CheckSettings(
        paths=(str(photo), str(tmp_path / "bad.png")),
        detector=sure(cnn, tmp_path),
        csv=tmp_path / "out" / "verdicts.csv",
        heatmap=tmp_path / "maps",
        device="cpu",
    )
    good, bad = check_images(settings)
    for check in (good, bad):
        record = json.loads(json.dumps(check.as_dict(), allow_nan=False))
        assert tuple(record) == FIELDS
    assert good.verdict == "fake"
    assert bad.verdict is None
    assert "empty" in (bad.error or "")
    lines = (tmp_path / "out" / "verdicts.csv").read_text().splitlines()
    assert lines[0].startswith("path,score,verdict,probability")
    assert len(lines) == 3
    assert [p.name for p in (tmp_path / "maps").iterdir()] == ["photo.png"]


def test_a_stopped_check_keeps_its_rows_under_another_name(
    cnn: Detector, photo: Path, tmp_path: Path
) -> None:
    settings = CheckSettings(
        paths=(str(photo), str(photo)),
        detector=sure(cnn, tmp_path),
        csv=tmp_path / "verdicts.csv",
        device="cpu",
    )
    stream = check_images(settings)
    next(stream)
    with pytest.warns(GanscopeWarning, match="1 images that were judged are in"):
        stream.close()  # type: ignore[attr-defined]
    assert {path.name for path in tmp_path.glob("*verdicts*")} == {
        "verdicts.part.csv",
        ".verdicts.csv.journal",
    }


def test_pictures_of_one_name_get_heatmaps_of_their_own(
    cnn: Detector, photo: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo.jpg").write_bytes(photo.read_bytes())
    settings = CheckSettings(
        paths=(str(photo), str(tmp_path / "other")),
        detector=sure(cnn, tmp_path),
        heatmap=tmp_path / "maps",
        device="cpu",
    )
    maps = tmp_path / "maps"
    drawn = [check.as_dict()["heatmap"] for check in check_images(settings)]
    assert drawn == [str(maps / "photo.png"), str(maps / "photo-2.png")]
    # Nor does a later run take the place of an earlier one's.
    (check,) = check_images(replace(settings, paths=(str(photo),)))
    assert check.heatmap == str(maps / "photo-3.png")
    assert len(list(maps.iterdir())) == 3


def test_a_table_takes_no_pictures_place(cnn: Detector, photo: Path, tmp_path: Path) -> None:
    before = photo.read_bytes()
    settings = CheckSettings(paths=(str(photo),), detector=sure(cnn, tmp_path), csv=photo)
    with pytest.raises(GanscopeError, match=r"the name of an image; name a .csv file"):
        list(check_images(settings))
    assert photo.read_bytes() == before


def test_mistaken_paths_are_said_at_once(cnn: Detector, tmp_path: Path) -> None:
    with pytest.raises(GanscopeError, match="no such"):
        list(check_images(CheckSettings(paths=("gone.jpg",), detector=sure(cnn, tmp_path))))
    (tmp_path / "empty").mkdir()
    with pytest.raises(GanscopeError, match="no images"):
        list(check_images(CheckSettings(paths=(str(tmp_path / "empty"),))))
    with pytest.raises(ImageError):
        check_image(tmp_path / "gone.jpg", cnn)


class Checkerboard(nn.Module):
    """Hand-made: its features and logits are high where pixels alternate, low where they do not."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 1, 4, 2, 1, bias=False)
        sign = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(2, 2)
        self.features.weight.data = (sign / 4).expand(1, 3, 4, 4).clone()

    def patch_logits(self, x: Tensor) -> Tensor:
        return self.features(x).square().sum(1) * 40 - 4

    def forward(self, x: Tensor) -> Tensor:
        return self.patch_logits(x).mean((1, 2)) * 4

    def gradcam_layers(self) -> list[nn.Module]:
        return [self.features]


def planted() -> tuple[np.ndarray, np.ndarray]:
    """A smooth image with a faint checkerboard in one quarter, and the mask of that quarter."""
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(60, 190, (8, 8, 3)).astype(np.uint8), (192, 192))
    mask = np.zeros((192, 192), bool)
    mask[100:180, 20:110] = True
    board = np.where(np.indices(mask.shape).sum(0) % 2, 12, -12)
    image = np.clip(image + (board * mask)[..., None], 0, 255).astype(np.uint8)
    return image, mask


@pytest.fixture
def board_detector(cnn: Detector) -> Detector:
    detector = Detector(cnn.config)
    detector.net = Checkerboard()
    return detector.eval()


def test_reencoded_tiles_are_those_of_a_file_that_is_saved_again() -> None:
    """Blocks of a JPEG do not see each other, but for the smoothing of their colours."""
    image = cv2.resize(random_images(1)[0], (230, 190), interpolation=cv2.INTER_CUBIC)
    positions = tile_positions(190, 230, 64)
    found = reencoded_tiles(image, 64, positions)
    assert found.shape == (2 * len(positions), 64, 64, 3)
    data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    saved = cv2.imdecode(data, 1)[..., ::-1].astype(int)
    for tile, (y, x) in zip(found, positions, strict=False):
        expected = saved[y : y + 64, x : x + 64]
        assert np.abs(tile - expected).mean() < 0.05
        assert np.abs(image[y : y + 64, x : x + 64] - expected).mean() > 1
    # 64 pixels are made of 86, around the tile where there is room.
    shrunk = found[len(positions) :][0]
    assert np.array_equal(
        shrunk, cv2.resize(image[:86, :86], (64, 64), interpolation=cv2.INTER_AREA)
    )
    tiny = reencoded_tiles(image[:20, :30], 64, np.zeros((1, 2), int))
    assert tiny.shape == (2, 64, 64, 3)


def test_a_verdict_that_reencoding_flips_is_unsure(
    board_detector: Detector, tmp_path: Path
) -> None:
    """A board of single pixels makes the image fake, and a resize wipes it out."""
    board = np.where(np.indices((256, 256)).sum(0) % 2, 40, -40)[..., None]
    smooth = cv2.resize(
        np.random.default_rng(0).integers(60, 190, (8, 8, 3)).astype(np.uint8), (256, 256)
    )
    cv2.imwrite(str(tmp_path / "board.png"), np.clip(smooth + board, 0, 255).astype(np.uint8))
    board_detector.config["thresholds"] = {"fake": 0.5, "real": 0.5, "fpr_1": 0.5, "fpr_5": 0.5}
    check = check_image(tmp_path / "board.png", board_detector, "cpu")
    assert check.verdict == "unsure"
    assert any("after shrinking it to three quarters" in s for s in check.warnings)
    assert (
        check_image(tmp_path / "board.png", board_detector, "cpu", reencode=False).verdict == "fake"
    )
    cv2.imwrite(str(tmp_path / "smooth.png"), smooth)
    assert check_image(tmp_path / "smooth.png", board_detector, "cpu").verdict == "real"


def test_what_changes_nothing_leaves_the_score_of_the_whole_image(
    cnn: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only some tiles are encoded anew, and they alone may score otherwise than all."""
    monkeypatch.setattr(scoring, "REENCODED", (Degradation("crop", 1.0),))
    image = random_images(1, seed=3)[0]
    image = np.tile(image, (6, 6, 1))
    image[: len(image) // 2] //= 4
    (scored,) = score_images(cnn, [image], device="cpu", reencode=True)
    some = scored.tile_logits[scoring._some_tiles(len(scored.positions))].mean()
    assert abs(some - scored.logit) > 1e-4
    assert scored.reencoded == {"crop:1": pytest.approx(scored.score)}


def test_reencoded_scores_do_not_depend_on_batch_size_or_company(cnn: Detector) -> None:
    images = random_images(4, seed=2)
    alone = [next(score_images(cnn, [i], device="cpu", reencode=True)) for i in images]
    for batch_size in (1, 7, 64):
        found = list(score_images(cnn, images, batch_size, "cpu", reencode=True))
        for one, other in zip(found, alone, strict=True):
            assert one.reencoded == pytest.approx(other.reencoded, abs=1e-5)
            assert one.logit == pytest.approx(other.logit, abs=1e-4)
            assert len(one.tile_logits) == len(one.positions)
    assert next(score_images(cnn, images, device="cpu")).reencoded == {}


def test_flat_areas_are_those_without_noise() -> None:
    noise = random_images(1)[0]
    assert flat_share(noise) < 0.01
    assert flat_share(np.full_like(noise, 7)) == 1
    stripes = np.zeros((10, 12, 3), np.uint8)
    stripes[:, 4:, 2] = 1  # one change in eleven pairs, of one channel by one level
    assert flat_share(stripes) == pytest.approx(10 / 11)


@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (64, 64), (65, 33)], ids=str)
def test_quick_ways_count_as_plain_ones(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 40, (2, *shape, 3), dtype=np.uint8)
    small = pixels[..., ::2, ::2, :].reshape(-1, 3).astype(int) >> 4
    counts = np.unique(small, axis=0, return_counts=True)[1]
    share = counts / counts.sum()
    assert count_colours(pixels) == float(np.exp(-(share * np.log(share)).sum()))
    symmetric = [(0, max(86 - side, 0)) for side in shape]
    expected = np.pad(pixels[0], (*symmetric, (0, 0)), mode="symmetric")
    assert np.array_equal(scoring._filled(pixels[0], 86), expected)


def test_a_process_with_one_core_opens_without_threads(
    cnn: Detector, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{n}.png" for n in range(5)]
    for path, pixels in zip(paths, random_images(5), strict=True):
        cv2.imwrite(str(path), pixels)
    by, whole = set(), scoring.open_image

    def opened(image: object) -> object:
        by.add(threading.get_ident())
        return whole(image)  # type: ignore[arg-type]

    monkeypatch.setattr(scoring, "open_image", opened)
    found = [list(score_images(cnn, paths, device="cpu", threads=t)) for t in (True, False)]
    assert threading.get_ident() in by
    assert len(by) > 1
    assert [s.logit for s in found[0]] == [s.logit for s in found[1]]
    by.clear()
    list(score_images(cnn, paths, device="cpu", threads=False))
    assert by == {threading.get_ident()}


def test_drawings_of_many_colours_are_unsure_too(cnn: Detector, tmp_path: Path) -> None:
    drawing = np.zeros((128, 128, 3), np.uint8)
    for i, colour in enumerate(np.random.default_rng(0).integers(0, 256, (16, 3))):
        drawing[i // 4 * 32 :, i % 4 * 32 :] = colour
    path = tmp_path / "drawing.png"
    cv2.imwrite(str(path), drawing)
    assert count_colours(drawing) > FEW_COLOURS
    check = check_image(path, sure(cnn, tmp_path), device="cpu", reencode=False)
    assert check.verdict == "unsure"
    assert any("drawings and screenshots" in warning for warning in check.warnings)


def test_colours_are_counted_by_their_entropy() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    assert count_colours(pixels) == pytest.approx(1)
    pixels[:32] = 255
    assert count_colours(pixels) == pytest.approx(2)
    every = np.arange(4096)
    colours = np.stack([every >> 8, every >> 4 & 15, every & 15], -1).astype(np.uint8) * 16
    assert count_colours(colours.reshape(64, 64, 3).repeat(2, 0).repeat(2, 1)) == pytest.approx(
        4096
    )


def test_a_page_of_text_is_never_judged(board_detector: Detector, tmp_path: Path) -> None:
    page = np.full((300, 400, 3), 255, np.uint8)
    for row in range(20, 300, 20):
        cv2.putText(page, "The quick brown fox jumps", (10, row), 0, 0.6, (0, 0, 0), 1)
    cv2.imwrite(str(tmp_path / "page.jpg"), page, [cv2.IMWRITE_JPEG_QUALITY, 30])
    board_detector.config["thresholds"] = dict.fromkeys(("fake", "real", "fpr_1", "fpr_5"), 0.0)
    check = check_image(tmp_path / "page.jpg", board_detector, "cpu")
    assert check.verdict == "unsure"
    assert any("as in text and drawings" in said for said in check.warnings)
    assert (check.meaning or "").startswith("nothing can be said")
    assert any("JPEG quality 30" in said for said in check.warnings)


def test_a_probability_in_words() -> None:
    assert explain_probability(0.8349).startswith("of 100 images with this score about 83 are")
    assert " hardly any " in explain_probability(0.001)
    assert " nearly all " in explain_probability(0.9999)


@pytest.mark.parametrize("method", sorted(heatmap_methods))
def test_every_heatmap_method_points_at_the_planted_artefact(
    board_detector: Detector, method: str
) -> None:
    from sklearn.metrics import roc_auc_score

    image, mask = planted()
    heat = heatmap(board_detector, image, method)
    assert heat.shape == mask.shape
    assert heat.dtype == np.float32
    assert heat.min() >= 0
    assert heat.max() <= 1
    coarse = method != "gradcam"  # evidence of about a tile's area
    assert roc_auc_score(mask.ravel(), heat.ravel()) > (0.85 if coarse else 0.95)
    near = cv2.dilate(mask.astype(np.uint8), np.ones((65, 65))) > 0 if coarse else mask
    assert near[np.unravel_index(heat.argmax(), heat.shape)]


def test_heatmaps_leave_the_detector_as_it_was(board_detector: Detector) -> None:
    board_detector.requires_grad_(False)
    heatmap(board_detector, planted()[0], "gradcam")
    assert not any(p.requires_grad for p in board_detector.parameters())
    assert not board_detector.net.gradcam_layers()[0]._forward_hooks


@pytest.mark.parametrize(
    "architecture", ["timm:resnet10t", "timm:vit_tiny_patch16_224", "timm:test_convnext"]
)
def test_gradcam_works_for_cnns_and_vision_transformers(architecture: str) -> None:
    torch.manual_seed(0)
    detector = Detector.create(architecture, size=64).eval()
    heat = heatmap(detector, random_images(1)[0], "gradcam")
    assert np.isfinite(heat).all()
    assert heat.max() in (0, pytest.approx(1))


def test_a_method_that_does_not_fit_says_what_does() -> None:
    detector = Detector.create("timm:test_convnext", size=64).eval()
    with pytest.raises(GanscopeError, match="use tiles or gradcam"):
        heatmap(detector, random_images(1)[0], "patches")
    with pytest.raises(GanscopeError, match="unknown heatmap method"):
        heatmap(detector, random_images(1)[0], "gradcan")


@pytest.mark.parametrize("shape", [(1, 1), (40, 300), (3000, 2000)])
def test_overlays_are_pictures_of_a_readable_size(shape: tuple[int, int], tmp_path: Path) -> None:
    image = np.full((*shape, 3), 120, np.uint8)
    picture = overlay(image, np.zeros(shape, np.float32))
    assert picture.dtype == np.uint8
    assert max(picture.shape) <= 1600 + 64
    write_overlay(tmp_path / "maps" / "x.png", image, np.zeros(shape, np.float32))
    assert cv2.imread(str(tmp_path / "maps" / "x.png")).shape == picture.shape


def test_hot_is_red_and_cold_is_blue() -> None:
    image = np.full((300, 300, 3), 128, np.uint8)
    hot, cold = (
        overlay(image, np.full((300, 300), v, np.float32))[150, 150].astype(int) for v in (1, 0)
    )
    assert hot[0] - hot[2] > 20
    assert cold[2] - cold[0] > 0


def test_whatever_holds_an_image_is_judged_as_its_file_is(cnn: Detector, photo: Path) -> None:
    content = photo.read_bytes()
    decoded = np.asarray(Image.open(photo))
    file = check_image(photo, cnn, "cpu", reencode=False)
    for source in (
        content,
        io.BytesIO(content),
        Image.open(photo),
        decoded,
        NamedImage("inbox.zip/photo.jpg", content),
    ):
        check = check_image(source, cnn, "cpu", reencode=False)
        assert (check.score, check.width, check.error) == (file.score, file.width, None)
    assert check.path == "inbox.zip/photo.jpg"
    with pytest.raises(ImageError, match=r"<bytes>: not an image"):
        check_image(b"no picture", cnn, "cpu")
    mixed = list(score_images(cnn, [content, b"no picture", Image.open(photo)], device="cpu"))
    assert [one.error is None for one in mixed] == [True, False, True]
    assert mixed[0].score == pytest.approx(mixed[2].score, abs=1e-6)  # other tiles beside it
    with pytest.raises(TypeError, match="not as int"):
        list(score_images(cnn, [7], device="cpu"))  # type: ignore[list-item]


def test_the_batch_goes_by_free_memory_and_what_a_picture_takes() -> None:
    assert batch_for(80e9, 10e6) == 1024
    assert batch_for(1e9, 10e6) == 32  # 40 fit: a power of two
    assert batch_for(2e9, 10e6) == 64
    assert batch_for(1e6, 10e6) == 32  # no less than on a CPU


def test_beside_a_gpu_more_images_wait_but_no_more_bytes(
    monkeypatch: pytest.MonkeyPatch, astronaut: np.ndarray
) -> None:
    small, large = np.zeros((1, 64, 64, 3), np.uint8), np.zeros((16, 1024, 1024, 3), np.uint8)
    known, more = scoring.Scored("p"), scoring.Scored("p", again=large)
    assert scoring._room(known, small, 16 * 16) == 16 * 16
    assert scoring._room(known, large, 16 * 16) == 2**30 // large.nbytes
    assert scoring._room(more, small, 16 * 16) == 2**30 // (large.nbytes + small.nbytes)
    assert scoring._room(known, None, 16) == 16
    detector = Detector.create("cnn", size=64)
    crops = [astronaut[y : y + 96, :96] for y in range(0, 400, 10)]
    wanted = [scored.logit for scored in score_images(detector, crops, 32, "cpu")]
    monkeypatch.setattr(Detector, "on_cpu", False)
    found = [scored.logit for scored in score_images(detector, crops, 128, "cpu")]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
