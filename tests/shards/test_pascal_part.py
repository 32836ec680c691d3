"""PASCAL-Part in its native layout."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from launch.pack import main
from shards.codec import decode_image
from shards.format import Manifest, ShardError
from shards.sources.pascal_part import ANNOTATIONS, LISTS, pascal_part
from shards.write import pack
from tests.support.native_layouts import SIZE, change_json, compressed, photograph, rectangle


@pytest.fixture
def part_root(tmp_path: Path) -> Path:
    """Two dogs and a cat in one image of the validation split, a plane in another."""
    root = tmp_path / "VOC2010"
    for name in ("2008_000001", "2008_000002"):
        photograph(root / f"JPEGImages/{name}.jpg", *SIZE)

    def thing(name: str, box: tuple, **parts: list) -> dict:
        corners = dict(zip(("xmin", "ymin", "xmax", "ymax"), map(str, box), strict=True))
        return {
            "name": name,
            "bndbox": corners,
            "parts": [
                {"name": part, "mask": [compressed(rectangle(*piece)) for piece in pieces]}
                for part, pieces in parts.items()
            ],
        }

    objects = {
        "2008_000001": [
            thing("dog", (10, 5, 30, 25), HEAD=[(8, 5, 15, 10)], LEG=[(12, 20, 14, 25), (20, 20, 22, 30)]),
            thing("dog", (0, 0, 5, 5)),
            thing("cat", (40, 10, 60, 40), HEAD=[(40, 10, 50, 20)], EYE=[(42, 12, 44, 14)]),
        ],
        "2008_000002": [thing("aeroplane", (0, 0, 20, 20), TAIL=[(0, 0, 5, 5)], BODY=[(5, 0, 20, 20)])],
    }
    (root / ANNOTATIONS).mkdir()
    for name, things in objects.items():
        (root / ANNOTATIONS / f"{name}.json").write_text(json.dumps({"object": things}))

    def listed(**images: list) -> dict:
        return {"part": {part: {"train": ["2008_000009"], "val": found} for part, found in images.items()}}

    lists = {
        "animals": {
            "object": {
                "cat": listed(HEAD=["2008_000001"], EYE=[]),
                "dog": listed(HEAD=["2008_000001"], LEG=["2008_000001"]),
            }
        },
        "indoor": {"object": {}},
        "person": {"object": {}},
        "vehicles": {"object": {"aeroplane": listed(TAIL=["2008_000002"], BODY=["2008_000002"])}},
    }
    (root / LISTS).write_text(json.dumps(lists))
    return root


def test_pascal_part_is_a_sample_an_object(part_root):
    source = pascal_part(part_root, "val")
    # No eye, which validation lacks, and no tail of aeroplanes.
    assert source.classes == {
        1: "animals/cat+HEAD",
        2: "animals/dog+HEAD",
        3: "animals/dog+LEG",
        4: "vehicles/aeroplane+BODY",
    }
    # The dog without a part is left out.
    assert [item.key for item in source.items] == ["2008_000001_0", "2008_000001_2", "2008_000002_0"]
    dog, cat, plane = (item.read() for item in source.items)
    rows, columns = slice(5, 25), slice(10, 30)
    whole = cv2.cvtColor(cv2.imread(str(part_root / "JPEGImages/2008_000001.jpg")), cv2.COLOR_BGR2RGB)
    assert np.array_equal(decode_image(dog.image), whole[rows, columns])
    legs = rectangle(12, 20, 14, 25) | rectangle(20, 20, 22, 30)
    assert {class_id: mask.sum() for class_id, mask in dog.masks.items()} == {2: 25, 3: legs[rows, columns].sum()}
    assert np.array_equal(dog.masks[3], legs[rows, columns])
    assert list(cat.masks) == [1] and list(plane.masks) == [4]
    assert dog.crop_of == cat.crop_of == "2008_000001"


def test_pascal_part_bad_input(part_root, tmp_path):
    path = part_root / ANNOTATIONS / "2008_000002.json"
    path.write_text("{")
    (part_root / "JPEGImages/2008_000001.jpg").unlink()
    with pytest.raises(ShardError, match="none of the 3 samples can be read"):
        pack(pascal_part(part_root, "val"), tmp_path / "out")
    photograph(part_root / "JPEGImages/2008_000001.jpg", *SIZE)
    manifest = pack(pascal_part(part_root, "val"), tmp_path / "again")
    (bad,) = manifest.bad
    assert len(manifest.samples) == 2 and bad["source"] == "JPEGImages/2008_000002.jpg, object 0"
    assert "2008_000002.json is not JSON" in bad["reason"]
    path.write_text(json.dumps({"object": [{"name": "aeroplane"}]}))
    with pytest.raises(ShardError, match=r"object 0 of .*2008_000002\.json cannot be read \(KeyError: 'parts'\)"):
        pascal_part(part_root, "val").items[2].read()
    change_json(part_root / LISTS, lambda document: document.pop("person"))
    with pytest.raises(ShardError, match=r"does not list images by superclass.*KeyError: 'person'"):
        pascal_part(part_root, "val")
    (part_root / LISTS).unlink()
    with pytest.raises(ShardError, match=rf"{LISTS}: No such file"):
        pascal_part(part_root, "val")
    with pytest.raises(ShardError, match="--root is VOCdevkit/VOC2010"):
        pascal_part(part_root / "nowhere", "val")


def test_the_command(part_root, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["pascal_part", "--root", str(part_root), "--out", str(out), "--processes", "1", "--superpixels"]) == 0
    assert "3 of 3 images" in capsys.readouterr().out
    assert Manifest.load(out).name == "pascal_part"
