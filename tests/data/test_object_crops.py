"""Object crops: their list, that they show their object, and that the key alone decides which are held out."""

import numpy as np
import pytest

from fss.data.object_crops import ObjectCrops, is_held_out, square_around
from shards.format import ShardError
from tests.support.labelled import COLOURS, rectangles

LABELS = [1, 2, 3, 2, 3, 1, 2, 3, 1, 2, 3, 4] + [2, 3] * 6


def mask_of(top: int, left: int, height: int, width: int, size: tuple[int, int] = (100, 200)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = True
    return mask


@pytest.mark.parametrize(
    ("rectangle", "square"),
    [
        ((40, 90, 20, 10), (38, 83, 24, 24)),  # a tenth of 20 on every side, centred
        ((0, 0, 20, 10), (0, 0, 24, 24)),  # shifted in from the corner
        ((80, 190, 20, 10), (76, 176, 24, 24)),
        ((40, 20, 10, 160), (0, 50, 100, 100)),  # longer than the image is high: loses its ends
        ((7, 9, 1, 1), (7, 9, 1, 1)),
    ],
)
def test_square(rectangle, square):
    assert square_around(mask_of(*rectangle)) == square


def test_the_square_surrounds_every_pixel_of_the_class_however_scattered():
    mask = mask_of(30, 60, 2, 2) | mask_of(50, 40, 2, 2)
    box = square_around(mask)
    assert mask[box.top : box.top + box.height, box.left : box.left + box.width].sum() == mask.sum()


def test_crops_show_their_object_and_take_the_largest_class(tmp_path):
    crops = ObjectCrops(rectangles(tmp_path, LABELS), size=32, limit=1000)
    assert crops.usable
    assert crops.left_out == ["yellow"]
    assert crops.names == {1: "red", 2: "green", 3: "blue"}
    assert len(crops) == len(LABELS) - 1
    for index, row in enumerate(crops.rows):
        assert row.label == LABELS[int(row.key[1:])]  # never the small object in the corner
        picture = crops.load(index)
        assert picture.shape == (32, 32, 3) and picture.dtype == np.uint8
        assert np.abs(picture[16, 16].astype(int) - COLOURS[row.label]).max() <= 2


def test_the_half_of_a_sample_follows_from_its_key_alone(tmp_path):
    shards = rectangles(tmp_path, LABELS)
    halves = {row.key: row.held_out for row in ObjectCrops(shards, size=32, limit=1000).rows}
    some = {row.key: row.held_out for row in ObjectCrops(shards, size=32, limit=12).rows}
    assert some.items() <= halves.items()
    held_out = sum(is_held_out(f"2007_{i:06d}") for i in range(2000))
    assert 900 < held_out < 1100
    assert [is_held_out(f"k{i}") for i in range(8)] == [True, False, True, False, True, True, False, False]


def test_the_limit_is_spread_over_the_set(tmp_path):
    crops = ObjectCrops(rectangles(tmp_path, [1, 2] * 20), size=32, limit=10)
    assert [row.sample for row in crops.rows] == list(range(0, 40, 4))


def test_held_out_part(tmp_path):
    crops = ObjectCrops(rectangles(tmp_path, LABELS), size=32, limit=1000)
    part = crops.held_out(3)
    assert [row.key for row in part.rows] == [row.key for row in crops.rows if row.held_out][:3]
    assert len(crops) == len(LABELS) - 1


def test_unlabelled_and_too_small_sets_are_not_usable(tmp_path):
    assert not ObjectCrops(rectangles(tmp_path, [1, 2, 3, 4]), size=32, limit=1000).usable


@pytest.mark.parametrize("damage", ["missing", "empty", "size"])
def test_a_mask_that_does_not_fit_is_named(tmp_path, monkeypatch, damage):
    from shards.codec import encode_mask

    shards = rectangles(tmp_path, [2, 2, 2, 2])
    crops = ObjectCrops(shards, size=32, limit=1000)
    members = shards.read(crops.rows[0].sample)
    if damage == "missing":
        del members["mask.2.png"]
    else:
        members["mask.2.png"] = encode_mask(np.zeros((48, 64), bool) if damage == "empty" else np.ones((9, 9), bool))
    monkeypatch.setattr(shards, "read", lambda index: members)
    with pytest.raises(ShardError, match=rf"mask\.2\.png.*pack the set again|{crops.rows[0].key}"):
        crops.load(0)
