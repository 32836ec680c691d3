"""Real photographs in their native layouts, packed and compared with the pictures and lists beside them."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.check import check
from shards.codec import decode_labels, decode_mask, flatten, split_members
from shards.format import Manifest, Meta
from shards.sources import Source
from shards.sources.coco import coco
from shards.sources.fss1000 import fss1000
from shards.sources.voc import voc
from shards.write import pack
from tests.support.places import shared

FEW = 24
AMOUNTS = [FEW, pytest.param(None, marks=pytest.mark.slow)]  # None: all


@pytest.fixture(scope="session")
def real() -> Path:
    return shared("data/realmini")


@pytest.fixture(scope="session")
def listed(real) -> dict[str, list[str]]:
    """File -> class names in the list that came with the photographs."""
    with open(real / "manifest.csv", newline="") as file:
        return {row["file"]: row["classes"].split(";") for row in csv.DictReader(file)}


def packed(source: Source, folder: Path, amount: int | None) -> list[tuple[Meta, dict[str, bytes], np.ndarray]]:
    """Pack `amount` samples and read them back: metadata, members and the flattened label map of each."""
    source.items = source.items[:amount]
    manifest = pack(source, folder, processes=2, samples_per_shard=64)
    assert manifest.bad == [] and len(manifest.samples) == len(source.items)
    assert check(folder) == []
    samples = []
    for row in Manifest.load(folder).samples:
        with open(folder / manifest.shards[row.shard].name, "rb") as file:
            file.seek(row.offset)
            members = split_members(file.read(row.length))
        meta = Meta.decode(members["json"])
        masks = {class_id: decode_mask(members[f"mask.{class_id}.png"]) for class_id in meta.classes}
        ignore = decode_mask(members["ignore.png"]) if "ignore.png" in members else None
        if "labels.png" in members:
            flat = decode_labels(members["labels.png"])
        else:
            flat = flatten(masks, meta.paint, ignore, (meta.height, meta.width))
        samples.append((meta, members, flat))
    return samples


@pytest.mark.parametrize("amount", AMOUNTS)
def test_voc(real, listed, tmp_path, amount):
    root = real / "voc20"
    source = voc(root, root / "ImageSets" / "Segmentation" / "all.txt")
    pairs = 0
    for meta, members, flat in packed(source, tmp_path, amount):
        name = Path(meta.source).stem
        assert members["jpg"] == (root / meta.source).read_bytes()
        assert np.array_equal(flat, np.array(Image.open(root / "SegmentationClass" / f"{name}.png")))
        assert {source.classes[c] for c in meta.classes} == set(listed[f"voc20/SegmentationClass/{name}.png"])
        pairs += len(meta.classes)
    if amount is None:
        assert len(source.items) == 924 and pairs == 1037


def test_voc_fold_lists(real):
    root = real / "voc20"
    for fold in range(4):
        names = (root / f"ImageSets/FewShot/fold{fold}.txt").read_text().split()
        items = voc(root, root / f"ImageSets/FewShot/fold{fold}.txt").items
        assert [item.key for item in items] == list(dict.fromkeys(name.split("__")[0] for name in names))


@pytest.mark.parametrize("amount", AMOUNTS)
def test_coco(real, listed, tmp_path, amount):
    root = real / "coco"
    source = coco(root / "images", root / "annotations" / "instances_realmini.json")
    assert len(source.classes) == 80 and source.classes[1] == "person" and source.classes[80] == "toothbrush"
    exact = objects = 0
    for meta, members, flat in packed(source, tmp_path, amount):
        name = Path(meta.source).stem
        assert members["jpg"] == (root / "images" / meta.source).read_bytes()
        assert np.array_equal(flat, np.array(Image.open(root / "masks" / f"{name}.png")))
        named = {source.classes[instance["class"]] for instance in meta.instances}
        assert named == {label for label in listed[f"coco/images/{meta.source}"] if label}
        exact += "labels.png" not in members
        objects += len(meta.instances)
    assert exact > 0.85 * len(source.items)  # the stored map is the exception
    if amount is None:
        assert len(source.items) == 158 and objects == 1389


def test_fss(real, tmp_path):
    samples = packed(fss1000(real / "fss"), tmp_path, None)
    assert len(samples) == 10
    for meta, _, flat in samples:
        png = np.array(Image.open((real / "fss" / meta.source).with_suffix(".png")))[..., :3].max(axis=2)
        threshold = 128 if meta.source.startswith("african_elephant") else 1  # RGBA 0..255, RGB 0/1
        assert np.array_equal(flat > 0, png >= threshold) and (flat > 0).any()
