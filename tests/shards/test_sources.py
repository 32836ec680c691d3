import errno
import json
import os

import numpy as np
import pytest
from PIL import Image

from shards.codec import flatten
from shards.format import ReadError, ShardError
from shards.sources import MAX_KEY, unique_keys
from shards.sources.coco import coco
from shards.sources.folder import folder
from shards.sources.fss1000 import fss1000
from shards.sources.voc import voc
from tests.support.native_layouts import palette_png, photograph, polygon


def test_keys_are_ascii_unique_and_independent_of_order():
    names = ["a/b", "a_b", "köln.v2", "x" * 300, "plain-1"]
    keys = unique_keys(names, names)
    assert len(set(keys)) == 5
    assert keys[4] == "plain-1"
    assert all(key.isascii() and "." not in key and "/" not in key and 0 < len(key) <= MAX_KEY for key in keys)
    assert unique_keys(names[::-1], names[::-1]) == keys[::-1]


# VOC


def test_voc_reads_palette_indices_and_leaves_255_to_ignore(voc_root):
    source = voc(voc_root, voc_root / "list.txt")
    assert [item.key for item in source.items] == [f"2007_{number:06d}" for number in range(12)]
    assert source.classes[1] == "aeroplane" and source.classes[20] == "tvmonitor"
    sample = source.items[3].read()
    assert {class_id: mask.sum() for class_id, mask in sample.masks.items()} == {4: 200, 20: 600}
    assert sample.ignore.sum() == 20 and sample.ignore[14, 5]
    assert sample.image == (voc_root / "JPEGImages/2007_000003.jpg").read_bytes()


@pytest.mark.parametrize(
    "line",
    [
        "2007_000003",
        "\ufeff2007_000003\n",
        "JPEGImages/2007_000003.jpg SegmentationClass/2007_000003.png",
        "/JPEGImages/2007_000003.jpg /SegmentationClass/2007_000003.png",
        "2007_000003__04\n2007_000003__20\n",
    ],
)
def test_voc_list_forms_name_the_same_image_once(voc_root, line):
    (voc_root / "other.txt").write_text(line, encoding="utf-8")
    (item,) = voc(voc_root, voc_root / "other.txt").items
    assert item.key == "2007_000003"
    assert sorted(item.read().masks) == [4, 20]


def test_voc_and_sbd_make_one_training_set(voc_root, sbd_root):
    """What PASCAL-5i trains on, from the official downloads: SBD's images are among VOC's, some in its val."""
    photograph(voc_root / "JPEGImages" / "2008_000001.jpg")
    (sbd_root / "train.txt").write_text("2008_000001\n2007_000003\n2007_000011\n")
    (voc_root / "train.txt").write_text("2007_000003\n2007_000005\n")
    (voc_root / "val.txt").write_text("2007_000011\n")
    lists = [voc_root / "train.txt", sbd_root / "train.txt"]
    items = voc(voc_root, lists, sbd=sbd_root, exclude=voc_root / "val.txt").items
    assert [item.key for item in items] == ["2007_000003", "2007_000005", "2008_000001"]
    assert [sorted(item.read().masks) for item in items] == [[4, 20], [6, 20], [7]]
    with pytest.raises(ShardError, match="--sbd is the folder of SBD that holds cls"):
        voc(voc_root, lists, sbd=voc_root)


def test_voc_prefers_the_augmented_masks_and_takes_a_named_folder(voc_root):
    palette_png(voc_root / "SegmentationClassAug" / "2007_000000.png", np.full((48, 64), 2))
    (voc_root / "list.txt").write_text("2007_000000")
    assert list(voc(voc_root, voc_root / "list.txt").items[0].read().masks) == [2]
    assert list(voc(voc_root, voc_root / "list.txt", "SegmentationClass").items[0].read().masks) == [1, 20]


def test_sbd_mat(sbd_root):
    (item,) = voc(sbd_root, sbd_root / "list.txt").items
    assert {class_id: mask.sum() for class_id, mask in item.read().masks.items()} == {7: 200}
    item.mask.write_bytes(item.mask.read_bytes()[:150])
    with pytest.raises(ShardError, match=r"GTcls\.Segmentation"):
        item.read()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), r"2007_000000\.png: No such file"),
        (lambda path: Image.new("RGB", (64, 48)).save(path), "mode RGB"),
        (lambda path: palette_png(path, np.full((48, 64), 77)), "index 77"),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "not a whole PNG"),
    ],
)
def test_voc_bad_masks(voc_root, change, message):
    change(voc_root / "SegmentationClass/2007_000000.png")
    with pytest.raises(ShardError, match=message):
        voc(voc_root, voc_root / "list.txt").items[0].read()


def test_voc_wrong_places(voc_root, tmp_path):
    with pytest.raises(ShardError, match="is not a folder"):
        voc(tmp_path / "nowhere", voc_root / "list.txt")
    with pytest.raises(ShardError, match="none of the folders JPEGImages, img"):
        voc(tmp_path, voc_root / "list.txt")
    with pytest.raises(ShardError, match=r"nolist\.txt: No such file"):
        voc(voc_root, tmp_path / "nolist.txt")
    (voc_root / "list.txt").write_text("2007_000000\na b c\n")
    with pytest.raises(ShardError, match="line 2 of"):
        voc(voc_root, voc_root / "list.txt")


# COCO


def test_coco_ids_masks_crowd_and_order(coco_folder):
    source = coco(coco_folder / "images", coco_folder / "instances.json")
    assert source.classes == {1: "car", 2: "toothbrush"}  # sorted by category id, gaps closed
    sample = source.items[0].read()
    car, brush = sample.masks[1], sample.masks[2]
    assert car.sum() == 1200 and brush.sum() == 400  # overlapping classes keep all their pixels
    # The car's pixels are certain, the crowd's other pixels are not.
    crowd = np.zeros((40, 60), bool)
    crowd[20:, :30] = True
    assert np.array_equal(sample.ignore, crowd & ~car)
    # Falling area: large car, brush, small car on top; the crowd beneath all.
    assert [sample.labels[row, column] for row, column in ((1, 1), (6, 12), (12, 22), (35, 2), (35, 50))] == [
        1,
        2,
        1,
        255,
        0,
    ]
    assert sample.paint == [1, 2]
    painted = flatten(sample.masks, sample.paint, sample.ignore, (40, 60))
    assert np.count_nonzero(painted != sample.labels) == 16  # the small car; why the map itself is stored too
    assert [instance["crowd"] for instance in sample.instances].count(True) == 1


def test_coco_keeps_images_without_objects(coco_folder):
    sample = coco(coco_folder / "images", coco_folder / "instances.json").items[1].read()
    assert sample.masks == {} and sample.paint == [] and sample.ignore is None


def test_coco_rle_and_polygon_draw_the_same(coco_folder, coco_document):
    from pycocotools import mask

    (compressed,) = mask.frPyObjects(polygon(0, 0, 40, 30), 40, 60)
    compressed["counts"] = compressed["counts"].decode()
    before = coco(coco_folder / "images", coco_folder / "instances.json").items[0].read()
    coco_document["annotations"][1]["segmentation"] = compressed
    (coco_folder / "instances.json").write_text(json.dumps(coco_document))
    after = coco(coco_folder / "images", coco_folder / "instances.json").items[0].read()
    assert np.array_equal(before.masks[1], after.masks[1])


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [10, 10], "counts": [100]},
        {"size": [40, 60]},
        [["a", 1, 2, 3, 4, 5]],
    ],
)
def test_coco_bad_annotation_is_named(coco_folder, coco_document, segmentation):
    coco_document["annotations"][1]["segmentation"] = segmentation
    (coco_folder / "instances.json").write_text(json.dumps(coco_document))
    with pytest.raises(ShardError, match="annotation 2 cannot be drawn"):
        coco(coco_folder / "images", coco_folder / "instances.json").items[0].read()


@pytest.mark.parametrize("text", ["{", "[]", '{"images": []}', '{"images": [], "categories": [], "annotations": [3]}'])
def test_coco_wrong_json(coco_folder, text):
    (coco_folder / "instances.json").write_text(text)
    with pytest.raises(ShardError, match=r"instances\.json is no"):
        coco(coco_folder / "images", coco_folder / "instances.json")


# FSS-1000 and plain folders


def test_fss_mask_encodings_and_class_ids(fss_root):
    source = fss1000(fss_root)
    assert source.classes == {1: "abacus", 2: "zebra"}
    assert [item.key for item in source.items] == ["abacus_1", "zebra_1", "zebra_2", "zebra_10"]
    assert source.items[0].read().masks[1].sum() == 24
    assert source.items[1].read().masks[2].sum() == 100


def test_fss_reports_partners_that_are_missing(fss_root):
    (fss_root / "zebra/2.png").unlink()
    (fss_root / "zebra/1.jpg").unlink()
    Image.new("L", (30, 30)).save(fss_root / "zebra/10.png")
    _, one, two, ten = fss1000(fss_root).items
    for item, message in ((one, r"1\.jpg: No such"), (two, r"2\.png: No such"), (ten, "marks no pixel")):
        with pytest.raises(ShardError, match=message):
            item.read()


def test_folder_is_recursive_and_takes_images_only(tmp_path):
    for name in ("b.png", "a/c.JPG", "a/d.jpeg", "a_c.jpg"):
        photograph(tmp_path / name)
    (tmp_path / "readme.txt").write_text("no image")
    source = folder(tmp_path)
    assert [item.source for item in source.items] == ["a/c.JPG", "a/d.jpeg", "a_c.jpg", "b.png"]
    assert len({item.key for item in source.items}) == 4
    assert source.items[0].read().masks == {}


def test_folder_follows_links_once_and_leaves_hidden_folders_out(tmp_path):
    for name in ("in/z/b.png", "in/.thumbnails/b.png", "elsewhere/c.png", "elsewhere/deep/d.png"):
        photograph(tmp_path / name)
    (tmp_path / "in/a").symlink_to(tmp_path / "in/z")  # z counts by its own path
    (tmp_path / "in/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/z/again").symlink_to(tmp_path / "elsewhere/deep")
    (tmp_path / "elsewhere/deep/round").symlink_to(tmp_path / "in")
    (tmp_path / "in/gone").symlink_to(tmp_path / "nowhere")
    assert [item.source for item in folder(tmp_path / "in").items] == ["more/c.png", "more/deep/d.png", "z/b.png"]


def test_folder_that_cannot_be_listed_is_no_empty_one(tmp_path, monkeypatch):
    photograph(tmp_path / "in/b.png")
    (tmp_path / "in/locked").mkdir()
    plain = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return plain(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ReadError, match=r"locked cannot be listed \(Permission denied\)"):
        folder(tmp_path / "in")


def test_empty_folders_are_refused(tmp_path):
    for reader in (folder, fss1000):
        with pytest.raises(ShardError, match=f"below {tmp_path}"):
            reader(tmp_path)
