import cv2
import numpy as np
import pytest

from shards.codec import decode_labels, encode_labels
from shards.superpixels import label_map, main, picture
from tests.support.native_layouts import photograph


def blocks(side: int) -> np.ndarray:
    """Random colours in squares of about `side` pixels: RGB uint8 [241, 321, 3], odd sizes."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (240 // side, 320 // side, 3), dtype=np.uint8)
    return cv2.resize(coarse, (321, 241), interpolation=cv2.INTER_NEAREST)


@pytest.mark.parametrize("algorithm", ["slic", "felzenszwalb"])
def test_maps_are_half_size_with_contiguous_ids(algorithm):
    labels, fallback = label_map(blocks(20), algorithm)
    assert labels.shape == (121, 161) and not fallback
    assert np.array_equal(np.unique(labels), np.arange(labels.max() + 1))


def test_felzenszwalb_is_finer_goes_beyond_255_and_survives_encoding():
    image = blocks(10)
    coarse, _ = label_map(image, "slic")
    fine, _ = label_map(image, "felzenszwalb")
    assert coarse.max() < 255 < fine.max()
    assert np.array_equal(decode_labels(encode_labels(fine)), fine)


# Felzenszwalb merges what is flat; SLIC's connectivity step merges what is finer than its segments.
@pytest.mark.parametrize(
    ("algorithm", "image"),
    [
        ("felzenszwalb", np.full((241, 321, 3), 128, np.uint8)),
        ("slic", blocks(4)),
    ],
)
def test_collapsed_map_becomes_a_grid(algorithm, image):
    labels, fallback = label_map(image, algorithm)
    assert fallback
    assert np.unique(labels, return_counts=True)[1].tolist() == pytest.approx([121 * 161 / 64] * 64, rel=0.15)


def test_grid_of_a_tiny_image_is_contiguous():
    labels, fallback = label_map(np.zeros((6, 40, 3), np.uint8), "felzenszwalb")
    assert fallback and np.array_equal(np.unique(labels), np.arange(3 * 8))


def test_picture_shows_three_panels_and_boundaries():
    image = blocks(20)
    drawn = picture([image, image], width=100)
    assert drawn.shape == (2 * 75, 300, 3)
    yellow = (drawn == (255, 255, 0)).all(axis=2)
    assert not yellow[:, :100].any() and yellow[:, 100:200].mean() > yellow[:, 200:].mean() > 0.02


def test_main_writes_a_picture_and_names_what_is_missing(tmp_path, capsys):
    photograph(tmp_path / "a.jpg")
    assert main([str(tmp_path / "out.png"), str(tmp_path / "a.jpg")]) == 0
    assert cv2.imread(str(tmp_path / "out.png")).shape == (240, 960, 3)
    assert main([str(tmp_path / "out.png"), str(tmp_path / "b.jpg")]) == 2
    assert "b.jpg: No such file" in capsys.readouterr().err
