"""Tiny data sets in their native layouts."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from tests.support.native_layouts import palette_png, photograph, polygon


@pytest.fixture
def voc_root(tmp_path: Path) -> Path:
    """12 images, 48 x 64: image i holds class i + 1 in a square, class 20 below it and a line of ignored pixels."""
    root = tmp_path / "voc"
    names = [f"2007_{number:06d}" for number in range(12)]
    for number, name in enumerate(names):
        photograph(root / "JPEGImages" / f"{name}.jpg", seed=number)
        labels = np.zeros((48, 64), np.uint8)
        labels[4:14, 5:25] = number + 1
        labels[14, 5:25] = 255
        labels[20:40, 30:60] = 20
        palette_png(root / "SegmentationClass" / f"{name}.png", labels)
    (root / "list.txt").write_text("\n".join(names) + "\n")
    return root


@pytest.fixture
def sbd_root(tmp_path: Path) -> Path:
    """One image in SBD's layout."""
    root = tmp_path / "sbd"
    photograph(root / "img" / "2008_000001.jpg")
    labels = np.zeros((48, 64), np.uint8)
    labels[10:20, 10:30] = 7
    (root / "cls").mkdir()
    savemat(root / "cls" / "2008_000001.mat", {"GTcls": {"Segmentation": labels, "Boundaries": 0}})
    (root / "list.txt").write_text("2008_000001\n")
    return root


@pytest.fixture
def coco_document() -> dict:
    """One image with overlapping objects in an order that no painting of whole classes gives, and a crowd; one empty.

    Category 90 lies on category 3 and beneath it: a large 3, a middle 90 on it, a small 3 on that.
    """
    crowd = np.zeros((40, 60), np.uint8)
    crowd[20:40, 0:30] = 1  # the lower left quarter
    runs = np.flatnonzero(np.diff(np.concatenate([[0], crowd.ravel(order="F"), [0]])))
    counts = np.diff(np.concatenate([[0], runs, [crowd.size]])).tolist()

    def entry(number: int, category: int, segmentation, area: float, crowd: int = 0) -> dict:
        return {
            "id": number,
            "image_id": 5,
            "category_id": category,
            "segmentation": segmentation,
            "area": area,
            "bbox": [0, 0, 1, 1],
            "iscrowd": crowd,
        }

    return {
        "images": [
            {"id": 5, "file_name": "five.jpg", "height": 40, "width": 60},
            {"id": 6, "file_name": "six.jpg", "height": 40, "width": 60},
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
        "annotations": [
            entry(1, 3, polygon(20, 10, 24, 14), 16),
            entry(2, 3, polygon(0, 0, 40, 30), 1200),
            entry(3, 90, polygon(10, 5, 30, 25), 400),
            entry(4, 3, {"size": [40, 60], "counts": counts}, 600, crowd=1),
        ],
    }


@pytest.fixture
def coco_folder(tmp_path: Path, coco_document: dict) -> Path:
    """`coco_document` on disk, with its photographs."""
    folder = tmp_path / "coco"
    for record in coco_document["images"]:
        photograph(folder / "images" / record["file_name"], record["height"], record["width"])
    (folder / "instances.json").write_text(json.dumps(coco_document))
    return folder


@pytest.fixture
def fss_root(tmp_path: Path) -> Path:
    """Two classes; masks RGBA with soft edges, and RGB of 0 and 1."""
    root = tmp_path / "fss"
    soft = np.zeros((30, 30, 4), np.uint8)
    soft[..., 3] = 255
    soft[5:15, 5:15, :3] = 255
    soft[4, 5:15, :3] = 90  # below the threshold
    for number in (1, 2, 10):
        photograph(root / "zebra" / f"{number}.jpg", 30, 30, number)
        Image.fromarray(soft).save(root / "zebra" / f"{number}.png")
    hard = np.zeros((30, 30, 3), np.uint8)
    hard[8:12, 3:9] = 1
    photograph(root / "abacus" / "1.jpg", 30, 30)
    Image.fromarray(hard).save(root / "abacus" / "1.png")
    return root
