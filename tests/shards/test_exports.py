"""Annotations in COCO's form from annotation tools, unlike those in the official files."""

from collections.abc import Callable

import numpy as np
import pytest

from shards.format import ShardError
from shards.sources import Source
from shards.sources.coco import coco
from shards.write import pack
from tests.support.native_layouts import change_json, polygon, rectangle


@pytest.fixture
def read(coco_folder) -> Callable[..., Source]:
    """The set after a change of its JSON."""

    def changed(change: Callable[[dict], None] = lambda document: None, **options) -> Source:
        change_json(coco_folder / "instances.json", change)
        return coco(coco_folder / "images", coco_folder / "instances.json", **options)

    return changed


@pytest.mark.parametrize(
    "segmentation", [[], [[1, 2, 3, 4]], [polygon(0, 0, 9, 9)[0], [1, 2]], [1, 2, 3, 4, 5, 6], None]
)
def test_what_cannot_be_drawn_leaves_its_box_to_ignore(read, segmentation):
    def change(document: dict) -> None:
        document["annotations"][1] |= {"segmentation": segmentation, "bbox": [30, 0, 20, 12]}  # the large car

    source = read(change)
    sample = source.items[0].read()
    assert sample.masks[1].sum() == 16 and sample.masks[2].sum() == 400  # the other objects stay
    small = rectangle(20, 10, 24, 14)
    ignored = (rectangle(30, 0, 50, 12) | rectangle(0, 20, 30, 40)) & ~small
    assert np.array_equal(sample.ignore, ignored)
    assert sample.labels[0, 35] == 255 and sample.labels[12, 22] == 1
    assert source.messages == ["1 of 4 annotations cannot be drawn, 2 for one: their boxes are ignored"]


@pytest.mark.parametrize("box", [None, [1, 2], ["a", 0, 1, 1], {}])
def test_without_outline_and_box_an_annotation_is_left_out(read, box):
    source = read(lambda document: document["annotations"][2].update(segmentation=[], bbox=box))
    sample = source.items[0].read()
    assert list(sample.masks) == [1] and len(sample.instances) == 3
    assert source.messages[1].endswith("their boxes are ignored, 1 without a box left out")


def test_missing_areas_and_boxes_are_computed(read):
    before = read().items[0].read()

    def change(document: dict) -> None:
        for annotation in document["annotations"]:
            del annotation["area"], annotation["bbox"], annotation["iscrowd"]
        document["annotations"][3]["iscrowd"] = 1

    after = read(change).items[0].read()
    assert np.array_equal(after.labels, before.labels)
    boxes = {(instance["class"], *instance["box"]) for instance in after.instances}
    assert boxes == {(1, 0, 20, 30, 20), (1, 0, 0, 40, 30), (2, 10, 5, 20, 20), (1, 20, 10, 4, 4)}


def test_a_missing_outline_is_no_wrong_file(read):
    source = read(lambda document: document["annotations"][0].pop("segmentation"))
    assert source.items[0].read().masks.keys() == {1, 2}


def test_crowds_alone_are_an_error_that_names_the_option(read):
    def change(document: dict) -> None:
        for annotation in document["annotations"]:
            annotation["iscrowd"] = 1
        document["annotations"][0]["segmentation"] = []

    with pytest.raises(ShardError, match=r"marks an object: 4 are crowd .*--crowd object.*, 1 have no outline"):
        read(change)
    source = read(crowd="object")
    sample = source.items[0].read()
    assert sample.masks[1].sum() == 1200 + 20 * 30 - 10 * 30 and sample.masks[2].sum() == 400
    assert [instance["crowd"] for instance in sample.instances].count(True) == 1  # the one without an outline


def test_boxes_alone_are_an_error(read):
    def change(document: dict) -> None:
        document["annotations"] = [{**row, "segmentation": [], "iscrowd": 0} for row in document["annotations"]]

    with pytest.raises(ShardError, match=r"0 are crowd regions .*, 4 have no outline \(export polygons or masks"):
        read(change)


def test_a_class_of_crowds_is_reported(read):
    source = read(lambda document: document["annotations"][2].update(iscrowd=1))
    (note,) = source.messages
    assert note.startswith("toothbrush has no object") and "--crowd object" in note


def test_what_crowds_are_belongs_to_the_fingerprint(read, tmp_path):
    pack(read(), tmp_path)
    with pytest.raises(ShardError, match="holds shards of other arguments"):
        pack(read(crowd="object"), tmp_path)


def test_an_unused_supercategory_is_no_class(read):
    def change(document: dict) -> None:
        for category in document["categories"]:
            category["supercategory"] = "things"
        document["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})

    source = read(change)
    assert source.classes == {1: "car", 2: "toothbrush"}
    assert source.messages == ["things is left out: no annotation has it, and classes name it as their supercategory"]


@pytest.mark.parametrize(
    "categories",
    [
        [{"id": 3, "name": "car", "supercategory": "car"}, {"id": 90, "name": "toothbrush", "supercategory": "car"}],
        [{"id": 3, "name": "car"}, {"id": 90, "name": "toothbrush"}, {"id": 91, "name": "new", "supercategory": "new"}],
    ],
)
def test_other_categories_stay(read, categories):
    source = read(lambda document: document.update(categories=categories))
    assert list(source.classes.values()) == [category["name"] for category in categories] and source.messages == []
