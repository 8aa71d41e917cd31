"""Masks: what was changed in an image, written and read."""

import numpy as np
import pytest

from ganscope.datasets.corpus import open_corpora
from ganscope.datasets.masks import encode_mask, read_mask
from ganscope.errors import ImageError


@pytest.fixture
def mask():
    drawn = np.zeros((20, 30), bool)
    drawn[3:9, 10:25] = True
    return drawn


def test_a_mask_comes_back_as_it_was(tmp_path, mask):
    (tmp_path / "m.png").write_bytes(encode_mask(mask))
    assert (read_mask(tmp_path / "m.png", (20, 30, 3)) == mask).all()


def test_whatever_a_soft_mask_touches_counts(tmp_path, mask):
    (tmp_path / "m.png").write_bytes(encode_mask(mask * 0.01))
    assert (read_mask(tmp_path / "m.png", (20, 30)) == mask).all()


def test_a_mask_of_another_size_is_refused_and_said(tmp_path, mask):
    (tmp_path / "m.png").write_bytes(encode_mask(mask))
    with pytest.raises(ImageError, match="30x20 pixels for an image of 20x30"):
        read_mask(tmp_path / "m.png", (30, 20))


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_refused(tmp_path, content):
    (tmp_path / "m.png").write_bytes(content)
    with pytest.raises(ImageError):
        read_mask(tmp_path / "m.png", (20, 30))
    with pytest.raises(ImageError):
        read_mask(tmp_path / "none.png", (20, 30))


def test_masks_of_several_corpora_are_found_below_their_own_roots(tmp_path, mask):
    from PIL import Image

    for name, column in (("a", ",mask"), ("b", "")):
        (tmp_path / name).mkdir()
        for file in ("real.png", "fake.png"):
            Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / name / file)
        text = f"file_name,label{column}\nreal.png,0{column and ','}\n"
        text += f"fake.png,1{column and ',001.png'}\n"
        (tmp_path / name / "metadata.csv").write_text(text)
    (tmp_path / "a" / "001.png").write_bytes(encode_mask(mask))
    corpus = open_corpora([tmp_path / "a", tmp_path / "b"])
    named = corpus.table["mask"].tolist()
    assert named[:1] + named[2:] == ["", "", ""]
    assert read_mask(corpus.root / named[1], (20, 30)).any()
