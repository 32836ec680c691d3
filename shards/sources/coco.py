"""COCO 2014 and 2017 straight from the official instances JSON.

Class ids are contiguous: 1..80 in the order of the official category ids (1..90 with gaps), names kept. Both fold
conventions of COCO-20i count in these ids.

Crowd regions are never objects. They become the ignore mask, except where a non-crowd object of the same class
lies: there the object is certain.

The flattened label map paints objects by falling area (the annotation's ``area``), so that small objects lie on large
ones, over the crowd regions. That is an order of objects; the nearest order of whole classes is stored as paint
order, and where it does not give the same map (about one image in twelve) the map itself is stored as well.
"""

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools import mask as rle

from shards.format import IGNORE_LABEL, ShardError
from shards.sources import Sample, Source, read_file, require_folder, unique_keys


@dataclass(frozen=True)
class CocoItem:
    """A photograph and its annotations."""

    key: str
    source: str
    image: Path
    size: tuple[int, int]
    """(height, width) in the JSON, at which polygons are drawn."""
    objects: tuple[dict, ...]
    """Annotations as in the JSON, with the contiguous class id under "class"."""

    def read(self) -> Sample:
        sizes = {}    # class id -> annotated area of its largest object
        masks: dict[int, np.ndarray] = {}
        crowds: dict[int, np.ndarray] = {}
        labels = np.zeros(self.size, np.uint8)    # [H, W]
        instances = []
        # Crowds first and then falling area; sorting is stable, so equal areas keep the order of the file.
        for annotation in sorted(self.objects, key=lambda a: (not a.get("iscrowd"), -a["area"])):
            class_id, crowd = annotation["class"], bool(annotation.get("iscrowd"))
            mask = _decode(annotation, self.size)
            labels[mask] = IGNORE_LABEL if crowd else class_id
            instances.append({"class": class_id, "box": annotation["bbox"], "crowd": crowd})
            if mask.any():
                group = crowds if crowd else masks
                group[class_id] = group[class_id] | mask if class_id in group else mask
                sizes[class_id] = max(sizes.get(class_id, 0), annotation["area"])
        ignore = np.zeros(self.size, bool)
        for class_id, crowd in crowds.items():
            ignore |= crowd & ~masks[class_id] if class_id in masks else crowd
        return Sample(
            image=read_file(self.image),
            masks=masks,
            paint=_paint_order(masks, labels),
            ignore=ignore if ignore.any() else None,
            labels=labels,
            instances=instances,
        )


def coco(images: Path, annotations: Path) -> Source:
    """COCO: the folder `images` of photographs and the instances JSON `annotations`.

    Images without an object are packed too: pretraining wants them. See the module's docstring for class ids, crowd
    regions and painting order.
    """
    images = require_folder(images, "--images is the folder that holds the photographs")
    raw = read_file(annotations)
    try:
        document = json.loads(raw)
    except ValueError as error:
        raise ShardError(f"{annotations} is not JSON ({error})") from None
    try:
        classes, items = _items(images, document)
    except (KeyError, TypeError) as error:
        raise ShardError(
            f"{annotations} is no COCO instances file ({type(error).__name__}: {error}): give instances_*.json"
        ) from None
    return Source(
        name="coco",
        classes=classes,
        items=items,
        arguments={"images": str(images), "annotations": hashlib.sha256(raw).hexdigest()},
    )


def _items(images: Path, document: dict) -> tuple[dict[int, str], list[CocoItem]]:
    categories = sorted(document["categories"], key=lambda category: category["id"])
    class_ids = {category["id"]: class_id for class_id, category in enumerate(categories, start=1)}
    objects = defaultdict(list)
    for annotation in document["annotations"]:
        kept = {name: annotation[name] for name in ("id", "segmentation", "area", "bbox")}
        kept |= {"iscrowd": annotation.get("iscrowd", 0), "class": class_ids[annotation["category_id"]]}
        objects[annotation["image_id"]].append(kept)
    records = sorted(document["images"], key=lambda record: record["id"])
    names = [record["file_name"] for record in records]
    keys = unique_keys([Path(name).stem for name in names], names)
    items = [
        CocoItem(
            key,
            record["file_name"],
            images / record["file_name"],
            (record["height"], record["width"]),
            tuple(objects[record["id"]]),
        )
        for key, record in zip(keys, records, strict=True)
    ]
    return {class_ids[category["id"]]: category["name"] for category in categories}, items


def _decode(annotation: dict, size: tuple[int, int]) -> np.ndarray:
    """Draw one annotation, polygons or RLE, as bool [H, W]."""
    segmentation = annotation["segmentation"]
    try:
        if isinstance(segmentation, list):
            # pycocotools would read four numbers as a box and crash on fewer.
            if not segmentation or min(map(len, segmentation)) < 6:
                raise ValueError("a polygon needs at least 6 numbers")
            encoded = rle.merge(rle.frPyObjects(segmentation, *size))
        elif tuple(segmentation["size"]) != size:
            raise ValueError(f"RLE of size {segmentation['size']} for an image of {list(size)}")
        elif isinstance(segmentation["counts"], list):
            encoded = rle.frPyObjects(segmentation, *size)
        else:
            encoded = segmentation
        return rle.decode(encoded).astype(bool)
    except (ValueError, TypeError, KeyError) as error:
        raise ShardError(f"annotation {annotation['id']} cannot be drawn ({error})") from None


def _paint_order(masks: dict[int, np.ndarray], labels: np.ndarray) -> list[int]:
    """The order of whole classes that comes nearest to `labels`: the class that lies most beneath the others first."""
    covered = {    # (a, b) -> pixels where both are and a is seen
        (a, b): np.count_nonzero(masks[b] & (labels == a)) for a in masks for b in masks if a != b
    }
    order, left = [], sorted(masks)
    while left:
        lowest = min(left, key=lambda a: sum(covered[a, b] - covered[b, a] for b in left if b != a))
        order.append(lowest)
        left.remove(lowest)
    return order
