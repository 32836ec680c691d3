"""LVIS and PACO-Part in their native layouts."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from launch.pack import main
from shards.check import check
from shards.codec import decode_image
from shards.format import Manifest, ShardError
from shards.sources.lvis import lvis
from shards.sources.paco import paco
from shards.write import pack
from tests.support.native_layouts import SIZE, change_json, photograph, polygon, rectangle

# LVIS


@pytest.fixture
def lvis_root(tmp_path: Path) -> Path:
    """Two photographs in two folders; two mugs apart, and a tray over one of them. Categories end past 255."""
    root = tmp_path / "lvis"
    for name in ("train2017/000000000009.jpg", "val2017/000000000139.jpg"):
        photograph(root / name, *SIZE)

    def entry(number: int, category: int, box: tuple[int, int, int, int]) -> dict:
        area = (box[2] - box[0]) * (box[3] - box[1])
        return {
            "id": number,
            "image_id": 139,
            "category_id": category,
            "segmentation": polygon(*box),
            "area": area,
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
        }

    document = {
        "images": [
            {"id": number, "height": SIZE[0], "width": SIZE[1], "coco_url": f"http://images/{folder}/{number:012d}.jpg"}
            for number, folder in ((139, "val2017"), (9, "train2017"))
        ],
        "categories": [
            {"id": number, "name": f"thing {number}", "frequency": "r", "synset": "x.n.01"} for number in range(1, 301)
        ],
        "annotations": [
            entry(1, 255, (0, 0, 10, 10)),
            entry(2, 255, (30, 0, 50, 20)),
            entry(3, 300, (5, 5, 40, 30)),
        ],
    }
    (root / "lvis_v1_val.json").write_text(json.dumps(document))
    return root


def test_lvis_classes_are_the_union_of_their_objects_and_keep_overlaps(lvis_root):
    source = lvis(lvis_root, lvis_root / "lvis_v1_val.json")
    assert [(item.key, item.source) for item in source.items] == [
        ("000000000009", "train2017/000000000009.jpg"),
        ("000000000139", "val2017/000000000139.jpg"),
    ]
    assert len(source.classes) == 300 and source.classes[255] == "thing 255"
    assert source.items[0].read().masks == {}
    sample = source.items[1].read()
    assert np.array_equal(sample.masks[255], rectangle(0, 0, 10, 10) | rectangle(30, 0, 50, 20))
    assert np.array_equal(sample.masks[300], rectangle(5, 5, 40, 30))
    # By falling area: the tray, the large mug, the small mug.
    assert [sample.labels[row, column] for row, column in ((1, 1), (6, 6), (15, 35), (25, 35), (35, 1))] == [
        255,
        255,
        255,
        300,
        0,
    ]
    assert sample.ignore is None and sample.paint == [300, 255]


def test_a_packed_lvis_is_whole(lvis_root, tmp_path):
    manifest = pack(lvis(lvis_root, lvis_root / "lvis_v1_val.json"), tmp_path / "out")
    assert check(tmp_path / "out") == [] and manifest.bad == []
    assert {sample.key: sample.classes for sample in manifest.samples} == {
        "000000000009": {},
        "000000000139": {255: 500, 300: 875},
    }


def test_lvis_bad_input(lvis_root, tmp_path):
    with pytest.raises(ShardError, match=r"lvis_v1_train\.json: No such file"):
        lvis(lvis_root, lvis_root / "lvis_v1_train.json")
    (lvis_root / "train2017/000000000009.jpg").unlink()
    photograph(lvis_root / "val2017/000000000139.jpg", 40, 50)
    with pytest.raises(ShardError, match="none of the 2 samples can be read"):
        pack(lvis(lvis_root, lvis_root / "lvis_v1_val.json"), tmp_path / "out")
    change_json(lvis_root / "lvis_v1_val.json", lambda document: document["images"][0].pop("coco_url"))
    with pytest.raises(ShardError, match=r"is no lvis_v1_\*\.json as LVIS has it \(KeyError: 'coco_url'\)"):
        lvis(lvis_root, lvis_root / "lvis_v1_val.json")


# PACO-Part

PACO_CATEGORIES = [
    {"id": number, "name": name, "supercategory": kind}
    for number, name, kind in (
        (7, "mug", "OBJECT"),
        (90, "mug:handle", "PART"),
        (60, "mug:rim", "PART"),
        (61, "mug:base", "PART"),
    )
]


@pytest.fixture
def paco_root(tmp_path: Path) -> Path:
    """A photograph with two mugs and one without parts. The training file knows rim and handle, no base."""
    root = tmp_path / "paco"
    photograph(root / "val2017/000000000139.jpg", *SIZE)

    def entry(number: int, thing: int, category: int, box: tuple) -> dict:
        left, top, right, bottom = box
        return {
            "id": number,
            "obj_ann_id": thing,
            "image_id": 5,
            "category_id": category,
            "segmentation": polygon(*box),
            "bbox": [left, top, right - left, bottom - top],
        }

    annotations = [
        entry(1, 1, 7, (10.6, 5.2, 30.9, 25.5)),
        entry(2, 1, 60, (10, 5, 20, 12)),
        entry(3, 1, 60, (24, 5, 40, 12)),  # the rim in two pieces, one sticks out
        entry(4, 1, 90, (12, 8, 20, 20)),
        entry(5, 1, 61, (10, 20, 30, 25)),
        entry(6, 6, 7, (40, 10, 60, 40)),
        entry(7, 6, 90, (40, 10, 60, 14)),
        entry(8, 8, 7, (0, 30, 10, 40)),
    ]
    images = [{"id": 5, "height": SIZE[0], "width": SIZE[1], "file_name": "coco/val2017/000000000139.jpg"}]
    val = {"images": images, "categories": PACO_CATEGORIES, "annotations": annotations}
    train = {
        "images": [],
        "categories": PACO_CATEGORIES,
        "annotations": [entry(1, 1, 7, (0, 0, 1, 1))]
        + [entry(number, 1, category, (0, 0, 1, 1)) for number, category in ((2, 90), (3, 60))],
    }
    (root / "val.json").write_text(json.dumps(val))
    (root / "train.json").write_text(json.dumps(train))
    return root


def test_paco_is_a_sample_an_object(paco_root):
    source = paco(paco_root, paco_root / "val.json", paco_root / "train.json")
    assert source.classes == {1: "mug:rim", 2: "mug:handle"}  # parts of the training file, by category id
    assert [(item.key, item.source) for item in source.items] == [
        ("000000000139_1", "val2017/000000000139.jpg, object 1"),
        ("000000000139_6", "val2017/000000000139.jpg, object 6"),
    ]
    sample = source.items[0].read()
    whole = cv2.cvtColor(cv2.imread(str(paco_root / "val2017/000000000139.jpg")), cv2.COLOR_BGR2RGB)
    rows, columns = slice(5, 25), slice(10, 30)  # sides truncated: 5.2 + 20.3, 10.6 + 20.3
    assert np.array_equal(decode_image(sample.image), whole[rows, columns])
    rim = rectangle(10, 5, 20, 12) | rectangle(24, 5, 40, 12)
    assert np.array_equal(sample.masks[1], rim[rows, columns])
    assert np.array_equal(sample.masks[2], rectangle(12, 8, 20, 20)[rows, columns])  # overlaps the rim, keeps all
    assert sample.crop_of == "000000000139" and sorted(sample.paint) == [1, 2]


def test_the_manifest_tells_which_crops_are_of_one_photograph(paco_root, tmp_path):
    pack(paco(paco_root, paco_root / "val.json", paco_root / "train.json"), tmp_path / "out", superpixels=["slic"])
    assert check(tmp_path / "out") == []
    manifest = Manifest.load(tmp_path / "out")
    assert {(sample.key, sample.crop_of) for sample in manifest.samples} == {
        ("000000000139_1", "000000000139"),
        ("000000000139_6", "000000000139"),
    }
    manifest.samples[0].crop_of = "another"
    manifest.save(tmp_path / "out")
    (problem,) = check(tmp_path / "out")
    assert "its metadata call it a crop of '000000000139', the manifest of 'another'" in problem


def test_paco_bad_input(paco_root, tmp_path):
    files = paco_root / "val.json", paco_root / "train.json"
    with pytest.raises(ShardError, match=r"nowhere\.json: No such file"):
        paco(paco_root, files[0], paco_root / "nowhere.json")
    change_json(files[0], lambda document: document["annotations"][5].update(bbox=[0, 0, 3, 3]))
    photograph(paco_root / "val2017/000000000139.jpg", 40, 50)
    first, second = paco(paco_root, *files).items
    with pytest.raises(ShardError, match=r"parts are drawn at \(40, 60\) \(height, width\), the image is \(40, 50\)"):
        first.read()
    photograph(paco_root / "val2017/000000000139.jpg", *SIZE)
    with pytest.raises(ShardError, match=r"none of its parts has a pixel in the box \(0, 0, 3, 3\)"):
        second.read()
    (paco_root / "val2017/000000000139.jpg").unlink()
    with pytest.raises(ShardError, match=r"000000000139\.jpg: No such file"):
        first.read()
    change_json(files[0], lambda document: document["annotations"][3].pop("obj_ann_id"))
    with pytest.raises(ShardError, match=r"val\.json is no PACO-LVIS file \(KeyError: 'obj_ann_id'\)"):
        paco(paco_root, *files)
    change_json(files[1], lambda document: document["categories"][0].pop("supercategory"))
    with pytest.raises(ShardError, match=r"train\.json is no PACO-LVIS file \(KeyError: 'supercategory'\)"):
        paco(paco_root, *files)


@pytest.mark.parametrize(
    "layout, options, samples",
    [
        ("lvis", "--images {lvis} --annotations {lvis}/lvis_v1_val.json", 2),
        ("paco", "--images {paco} --annotations {paco}/val.json --train {paco}/train.json", 2),
    ],
)
def test_the_command(layout, options, samples, lvis_root, paco_root, tmp_path, capsys):
    words = options.format(lvis=lvis_root, paco=paco_root).split()
    out = tmp_path / "out"
    assert main([layout, *words, "--out", str(out), "--processes", "1", "--superpixels"]) == 0
    assert f"{samples} of {samples} images" in capsys.readouterr().out
    assert Manifest.load(out).name == layout
