"""Local edits with masks: faces blended and swapped, regions spliced and inpainted."""

import hashlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from skimage import data

from ganscope.config import AuditSettings, GenerateSettings
from ganscope.datasets.audit import audit_corpus
from ganscope.datasets.blending import poisson, self_blend, swap_face, toned_like
from ganscope.datasets.corpus import open_corpus
from ganscope.datasets.layouts import MANIFEST
from ganscope.datasets.masks import read_mask
from ganscope.datasets.sources import Source
from ganscope.errors import GanscopeError, GanscopeWarning
from ganscope.faces import Face, open_finder
from ganscope.generator.borrowed.editor import Editor
from ganscope.generator.borrowed.edits import draw_region, splice_generator
from ganscope.generator.borrowed.faces import FaceSwap
from ganscope.generator.by_name import open_generator
from ganscope.generator.sampling import generate_corpus
from ganscope.images import open_image
from ganscope.inputs import find_images

FACES = ("faceswap:?finder=cascades", "selfblend:?finder=cascades")
ANY = (*FACES, "splice:")


@pytest.fixture(scope="module")
def portraits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people, of whom one is the other mirrored and tanned, and a cup of coffee."""
    folder = tmp_path_factory.mktemp("portraits")
    one = cv2.cvtColor(data.astronaut()[:220, 110:350], cv2.COLOR_RGB2BGR)
    other = cv2.resize(one[:, ::-1], None, None, 1.5, 1.5) * (0.85, 0.9, 1)
    cup = cv2.cvtColor(data.coffee()[:240, :260], cv2.COLOR_RGB2BGR)
    for name, pixels in (("one", one), ("other", other), ("cup", cup)):
        cv2.imwrite(str(folder / f"{name}.png"), pixels.astype(np.uint8))
    return folder


@pytest.fixture(scope="module")
def one(portraits: Path) -> tuple[np.ndarray, Face]:
    pixels = open_image(portraits / "one.png").pixels
    (face,) = open_finder("cascades").find(pixels)[:1]
    return pixels, face


@pytest.fixture(scope="module")
def other(portraits: Path) -> tuple[np.ndarray, Face]:
    pixels = open_image(portraits / "other.png").pixels
    (face,) = open_finder("cascades").find(pixels)[:1]
    return pixels, face


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights of diffusers' AutoencoderKL."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    network = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        mid_block_add_attention=False,
    )
    folder = tmp_path_factory.mktemp("autoencoder")
    network.save_pretrained(folder)
    return str(folder)


def wanted(generator: str, out: Path, **changes: Any) -> GenerateSettings:
    return GenerateSettings(**{"generator": generator, "out": out, "device": "cpu"} | changes)


def digest(root: Path) -> dict[str, str]:
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


def assert_masks_tell_what_changed(root: Path, pairs: int) -> None:
    table = open_corpus(root).table
    fakes, reals = (table[table["label"] == label].set_index("index") for label in (1, 0))
    assert len(fakes) == len(reals) == pairs
    assert (reals["mask"] == "").all()
    for index, row in fakes.iterrows():
        fake = open_image(row["path"]).pixels
        real = open_image(reals.loc[index, "path"]).pixels
        mask = read_mask(root / row["mask"], fake.shape)
        assert 0.0005 < mask.mean() < 0.95
        assert (fake[~mask] == real[~mask]).all()
        assert (fake[mask] != real[mask]).any(-1).mean() > 0.3


# --- blending ---


def test_blending_changes_nothing_outside_its_mask_and_is_drawn_by_its_rng(one, other) -> None:
    pixels, face = one
    for make in (
        lambda rng: self_blend(pixels, face, rng),
        lambda rng: swap_face(pixels, face, *other, rng),
    ):
        made, mask = make(np.random.default_rng(1))
        again, _ = make(np.random.default_rng(1))
        different, _ = make(np.random.default_rng(2))
        assert (made == again).all()
        assert (made != different).any()
        assert mask.dtype == np.float32
        assert mask.shape == pixels.shape[:2]
        assert 0 < mask.max() <= 1
        assert (made[mask == 0] == pixels[mask == 0]).all()
        left, top, right, bottom = face.box
        inside = mask[top:bottom, left:right].sum() / mask.sum()
        assert inside > 0.8


def test_a_swapped_face_is_the_donors_and_has_the_targets_colours(one, other) -> None:
    """One person's face is the other's mirrored: swapped, the light comes from the other side."""
    pixels, face = one
    made, mask = swap_face(pixels, face, *other, np.random.default_rng(0))
    inside = mask > 0.9
    before, after = pixels[inside].astype(float), made[inside].astype(float)
    assert np.abs(after.mean(0) - before.mean(0)).max() < 25
    changed = np.abs(after - before).mean()
    same, _ = swap_face(pixels, face, pixels, face, np.random.default_rng(0))
    assert np.abs(same[inside].astype(float) - before).mean() < 6 < changed


def test_grey_pictures_stay_grey(one, other) -> None:
    pixels, face = one
    grey = np.repeat(pixels.mean(-1, keepdims=True).astype(np.uint8), 3, -1)
    for seed in range(4):
        for made, _ in (
            self_blend(grey, face, np.random.default_rng(seed)),
            swap_face(grey, face, *other, np.random.default_rng(seed)),
        ):
            assert (made == made[..., :1]).all()


@pytest.mark.parametrize("shift", [(-60, -30), (130, 150), (0, 0)], ids=["left", "right", "tiny"])
def test_faces_at_the_border_and_tiny_ones(shift, one, other) -> None:
    pixels, face = one
    scale = 0.2 if shift == (0, 0) else 1.0
    moved = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    seen = cv2.warpAffine(pixels, moved, (240, 220))
    points = (face.landmarks * scale + shift).astype(np.float32)
    box = [int(v * scale + s) for v, s in zip(face.box, (*shift, *shift), strict=True)]
    clipped = (max(box[0], 0), max(box[1], 0), min(box[2], 240), min(box[3], 220))
    here = Face(clipped, 1.0, points)
    for made, mask in (
        self_blend(seen, here, np.random.default_rng(0)),
        swap_face(seen, here, *other, np.random.default_rng(0)),
        swap_face(*other, seen, here, np.random.default_rng(0)),
    ):
        assert made.dtype == np.uint8
        assert made.shape[:2] == mask.shape


def test_a_face_without_landmarks(one, other) -> None:
    pixels, face = one
    bare = Face(face.box, 1.0)
    made, mask = self_blend(pixels, bare, np.random.default_rng(0))
    assert (made != pixels).any()
    assert mask[0, 0] == 0
    with pytest.raises(ValueError, match="landmarks"):
        swap_face(pixels, bare, *other, np.random.default_rng(0))


def test_poisson_keeps_the_copys_detail_and_takes_the_colours_around() -> None:
    target = np.full((60, 60, 3), 180, np.uint8)
    copy = np.full((60, 60, 3), 60, np.uint8)
    copy[25:35, 25:35] = 100
    inside = np.zeros((60, 60), bool)
    inside[10:50, 10:50] = True
    made = poisson(target, copy, inside)
    assert abs(int(made[15, 15, 0]) - 180) < 6
    assert abs(int(made[30, 30, 0]) - 220) < 8


def test_colours_are_taken_over() -> None:
    rng = np.random.default_rng(0)
    copy = rng.integers(0, 90, (40, 40, 3)).astype(np.uint8)
    target = rng.integers(120, 200, (40, 40, 3)).astype(np.uint8)
    made = toned_like(copy, target, np.ones((40, 40), bool))
    assert np.abs(made.mean((0, 1)) - target.mean((0, 1))).max() < 8


@pytest.mark.parametrize("kind", ["ellipse", "polygon", "any"])
def test_regions_have_about_the_size_that_was_asked_for(kind: str) -> None:
    found = []
    for seed in range(30):
        mask = draw_region((120, 200), np.random.default_rng(seed), kind, 0.1)
        assert mask.shape == (120, 200)
        found.append(mask.mean())
    assert 0.05 < np.mean(found) < 0.13
    assert min(found) > 0.02


# --- corpora ---


@pytest.mark.parametrize("generator", ANY)
def test_a_corpus_of_whole_photographs(generator: str, portraits: Path, tmp_path: Path) -> None:
    face = generator in FACES
    if face:
        with pytest.warns(GanscopeWarning, match=r"left out: 1 of 3 .*cup.png \(no face of at"):
            root = generate_corpus(wanted(generator, tmp_path / "c", from_=portraits))
    else:
        root = generate_corpus(wanted(generator, tmp_path / "c", from_=portraits))
    assert_masks_tell_what_changed(root, 2 if face else 3)
    fakes = open_corpus(root).table.query("label == 1")
    label = generator.partition(":")[0]
    assert all(m.startswith(f"masks/{label}") for m in fakes["mask"])
    if label != "selfblend":
        assert (fakes["donor"] != fakes["group"]).all()
        assert set(fakes["donor"]) <= {"one.png", "other.png", "cup.png"}


def test_a_corpus_of_inpainted_regions(autoencoder: str, portraits: Path, tmp_path: Path) -> None:
    root = generate_corpus(wanted(f"inpaint:{autoencoder}", tmp_path / "c", from_=portraits))
    assert_masks_tell_what_changed(root, 3)
    faces = f"inpaint:{autoencoder}?region=face&finder=cascades&edge=hard&noise=0.5"
    with pytest.warns(GanscopeWarning, match="left out: 1 of 3"):
        root = generate_corpus(wanted(faces, tmp_path / "d", real=str(portraits), n=4, size=96))
    assert_masks_tell_what_changed(root, 4)


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize("generator", ANY)
def test_crops_are_reproducible_resumable_and_may_be_made_in_parts(
    generator: str, portraits: Path, tmp_path: Path
) -> None:
    wish = {"real": str(portraits), "n": 6, "size": 64}
    whole = generate_corpus(wanted(generator, tmp_path / "whole", **wish))
    assert_masks_tell_what_changed(whole, 6)
    expected = digest(whole)
    other = digest(generate_corpus(wanted(generator, tmp_path / "other", seed=1, **wish)))
    assert not {h for n, h in expected.items() if "1_fake" in n} & set(other.values())

    def kill(done: int) -> None:
        if done >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_corpus(wanted(generator, tmp_path / "killed", **wish), kill)
    next((tmp_path / "killed" / "masks").rglob("000001.png")).write_bytes(b"")
    with pytest.warns(GanscopeWarning, match="made anew"):
        again = generate_corpus(wanted(generator, tmp_path / "killed", **wish))
    assert digest(again) == expected

    for part in ("2/2", "1/2"):
        parts = generate_corpus(wanted(generator, tmp_path / "parts", shard=part, **wish))
    made = digest(parts)
    assert {n: h for n, h in made.items() if n != "corpus.json"} == {
        n: h for n, h in expected.items() if n != "corpus.json"
    }


def test_labels_have_the_options_in_short() -> None:
    assert splice_generator("?region=polygon&edge=soft&area=0.1").label == (
        "splice-area=0.1-soft-polygon"
    )
    assert splice_generator("").label == "splice"


@pytest.mark.filterwarnings("ignore:.*left out")
def test_nobody_takes_masks_for_images(portraits: Path, tmp_path: Path) -> None:
    wish = {"real": str(portraits), "n": 16, "size": 64, "format": "jpeg"}
    root = generate_corpus(wanted(FACES[1], tmp_path / "c", **wish))
    assert len(list(find_images(root))) == 32
    audit = audit_corpus(AuditSettings(corpus=root))
    assert (audit.n_real, audit.n_fake, audit.unreadable) == (16, 16, 0)
    (root / MANIFEST).unlink()
    assert len(open_corpus(root)) == 32  # by the names of its folders


def test_without_faces_nothing_is_written_and_it_is_said(portraits: Path, tmp_path: Path) -> None:
    (tmp_path / "cups").mkdir()
    (tmp_path / "cups" / "cup.png").write_bytes((portraits / "cup.png").read_bytes())
    for generator in FACES:
        with pytest.raises(GanscopeError, match="none of 1 photographs has a face"):
            generate_corpus(wanted(generator, tmp_path / "c", from_=tmp_path / "cups"))
    with pytest.raises(GanscopeError, match="photographs of two scenes"):
        generate_corpus(wanted("splice:", tmp_path / "c", from_=tmp_path / "cups"))
    (tmp_path / "cups" / "one.png").write_bytes((portraits / "one.png").read_bytes())
    with pytest.raises(GanscopeError, match="faces of two scenes"):
        generate_corpus(wanted(FACES[0], tmp_path / "c", from_=tmp_path / "cups"))
    with pytest.raises(GanscopeError, match="use a smaller --size"):
        generate_corpus(wanted(FACES[1], tmp_path / "c", real=str(portraits), size=400))
    assert not (tmp_path / "c").exists()


def test_donors_are_of_another_scene_and_of_the_same_split_first() -> None:
    groups = ["a", "a", "b", "c", "d"]
    source = Source("s", groups, lambda i: np.zeros((8, 8, 3), np.uint8))
    editor = Editor("x:", "x")
    editor.told(source, {"a": "train", "b": "test", "c": "train", "d": "train"})
    for seed in range(8):
        order = list(editor._donors(0, np.random.default_rng(seed)))
        assert set(order[:2]) == {3, 4}
        assert order[2:] == [2]


def test_a_donor_of_another_split_is_taken_only_where_there_is_no_other(other) -> None:
    face = other[1]
    groups = ["a", "b", "c", "d", "e"]
    source = Source("s", groups, lambda i: np.zeros((8, 8, 3), np.uint8))
    swap = FaceSwap("faceswap:", "faceswap", "cascades")
    turned = Face(face.box, 1.0, face.landmarks[:, ::-1])  # looks much less like the target
    swap._faces = {0: [face], 1: [turned], 2: [face], 3: [face], 4: [face]}
    splits = dict.fromkeys("cde", "test")
    for seed in range(8):
        swap.told(source, {**splits, "a": "train", "b": "train"})
        assert swap._donor(0, face, np.random.default_rng(seed)) == 1
        swap.told(source, {**splits, "a": "train", "b": "test"})
        assert swap._donor(0, face, np.random.default_rng(seed)) in (2, 3, 4)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("faceswap", "write faceswap: with a colon"),
        ("faceswap:me", "nothing goes between the colon"),
        ("selfblend:?finder=eyes", "finder must be one of"),
        ("splice:?area=2", "area must be a number from"),
        ("splice:?region=square", "region must be one of"),
        ("splice:?colr=match", "option"),
        ("inpaint:", "say what after the colon"),
        ("inpaint:no/such/folder", "no such folder"),
        ("inpaint:nowhere?area=x", "area must be a number"),
    ],
)
def test_mistakes_are_named(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(GanscopeError, match=said):
        open_generator(wanted(name, tmp_path / "c"))


def test_prompts_are_for_pipelines(autoencoder: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat")
    with pytest.raises(GanscopeError, match="is an autoencoder, which takes none"):
        open_generator(
            wanted(f"inpaint:{autoencoder}", tmp_path / "c", prompts=tmp_path / "prompts.txt")
        )


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion for inpainting with small random weights, as diffusers saves it."""
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pipeline")
    words = ["<|startoftext|>", "<|endoftext|>", *(f"{c}{e}" for c in "act" for e in ("", "</w>"))]
    (folder / "vocab.json").write_text(str({w: i for i, w in enumerate(words)}).replace("'", '"'))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8
    )
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    text = transformers.CLIPTextConfig(
        vocab_size=len(words), num_attention_heads=2, max_position_embeddings=8, **sizes
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        in_channels=9,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=2,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    diffusers.StableDiffusionInpaintPipeline(
        vae=vae,
        text_encoder=transformers.CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=diffusers.DDIMScheduler(num_train_timesteps=10, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "inpaint")
    return folder / "inpaint"


def test_a_pipeline_of_diffusers_fills_regions(
    pipeline: Path, portraits: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\nat\n")
    name = f"inpaint:{pipeline}?steps=2&strength=1&edge=soft"
    wish = {"real": str(portraits), "n": 3, "size": 64, "prompts": tmp_path / "prompts.txt"}
    root = generate_corpus(wanted(name, tmp_path / "a", **wish))
    assert_masks_tell_what_changed(root, 3)
    fakes = open_corpus(root).table.query("label == 1")
    assert fakes["prompt"].tolist() == ["a cat", "at", "a cat"]
    again = generate_corpus(wanted(name, tmp_path / "b", **wish))
    assert digest(root) == digest(again)
