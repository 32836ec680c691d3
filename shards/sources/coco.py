"""COCO 2014 and 2017 straight from the official instances JSON.

Class ids are contiguous: 1..80 in the order of the official category ids (1..90 with gaps), names kept. Both fold
conventions of COCO-20i count in these ids.

By default crowd regions are no objects. They become the ignore mask, except on pixels of a non-crowd object of the same
class, where the object is certain. The box of an annotation without an outline is also ignored.

The flattened label map paints objects by descending area (the annotation's ``area``, or its pixels), so that small
objects lie on large ones, over the crowd regions. That is an order of objects. The nearest order of whole classes is
stored as paint order. If it does not give the same map (about one image in twelve), the map itself is stored too.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from shards.format import IGNORE_LABEL, ShardError
from shards.sources import Sample, Source, read_file, require_folder, unique_keys
from shards.sources.annotations import draw, read_document, union
from shards.sources.exports import tidy


@dataclass(frozen=True)
class CocoItem:
    """`Item`: a photograph and its annotations."""

    key: str
    source: str
    image: Path
    size: tuple[int, int]
    """(height, width) in the JSON, at which polygons are drawn."""
    objects: tuple[dict, ...]
    """Annotations as in the JSON, area and bbox None if missing, with the contiguous class id under "class"."""

    def read(self) -> Sample:
        masks: dict[int, np.ndarray] = {}
        crowds: dict[int, np.ndarray] = {}
        labels = np.zeros(self.size, np.uint16)  # [H, W]
        instances = []
        # Crowds first, then descending area; sorting is stable, so equal areas keep the order of the file.
        for annotation in sorted(self.objects, key=lambda a: (not a["iscrowd"], -self._area(a))):
            class_id, is_crowd = annotation["class"], bool(annotation["iscrowd"])
            mask = self._draw(annotation)
            labels[mask] = IGNORE_LABEL if is_crowd else class_id
            box = _box(mask) if annotation["bbox"] is None else annotation["bbox"]
            instances.append({"class": class_id, "box": box, "crowd": is_crowd})
            union(crowds if is_crowd else masks, class_id, mask)
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

    def _draw(self, annotation: dict) -> np.ndarray:
        return draw(annotation["segmentation"], self.size, f"annotation {annotation['id']}")

    def _area(self, annotation: dict) -> float:
        return int(np.count_nonzero(self._draw(annotation))) if annotation["area"] is None else annotation["area"]


def coco(images: Path, annotations: Path, crowd: Literal["ignore", "object"] = "ignore") -> Source:
    """COCO: the folder `images` of photographs and the instances JSON `annotations`.

    Images without an object are packed too, for pretraining. A category without an annotation that is only the
    supercategory of others is left out. crowd: meaning of crowd regions. See the module's docstring for class ids,
    crowd regions and painting order. Raises ShardError if a file is missing or not in COCO's form.
    """
    images = require_folder(images, "--images is the folder that holds the photographs")
    return photographs("coco", images, annotations, lambda record: record["file_name"], "instances_*.json", crowd)


def photographs(
    name: str, images: Path, annotations: Path, file_of: Callable[[dict], str], official: str, crowd: str = "ignore"
) -> Source:
    """Return every photograph of a JSON in COCO's form.

    file_of: record of an image -> its path below `images`. official: the name of the official file, for errors. crowd:
    as for :func:`coco`. Raises ShardError if the file has another form or no annotation marks an object.
    """
    document, digest = read_document(annotations)
    try:
        messages = tidy(document, annotations, crowd)
        classes, items = _items(images, document, file_of)
    except (KeyError, TypeError) as error:
        raise ShardError(
            f"{annotations} is no {official} as {name.upper()} has it ({type(error).__name__}: {error}): give the "
            "official file"
        ) from None
    arguments = {"images": str(images), "annotations": digest} | ({} if crowd == "ignore" else {"crowd": crowd})
    return Source(name=name, classes=classes, items=items, arguments=arguments, messages=messages)


def _items(images: Path, document: dict, file_of: Callable[[dict], str]) -> tuple[dict[int, str], list[CocoItem]]:
    categories = sorted(document["categories"], key=lambda category: category["id"])
    class_ids = {category["id"]: class_id for class_id, category in enumerate(categories, start=1)}
    objects = defaultdict(list)
    for annotation in document["annotations"]:
        kept = {name: annotation.get(name) for name in ("id", "segmentation", "area", "bbox", "iscrowd")}
        objects[annotation["image_id"]].append({**kept, "class": class_ids[annotation["category_id"]]})
    records = sorted(document["images"], key=lambda record: record["id"])
    files = [file_of(record) for record in records]
    keys = unique_keys([Path(file).stem for file in files], files)
    items = [
        CocoItem(key, file, images / file, (record["height"], record["width"]), tuple(objects[record["id"]]))
        for key, file, record in zip(keys, files, records, strict=True)
    ]
    return {class_ids[category["id"]]: category["name"] for category in categories}, items


def _paint_order(masks: dict[int, np.ndarray], labels: np.ndarray) -> list[int]:
    """Return the order of whole classes that is nearest to `labels` [H, W], from the lowest class to the highest."""
    visible = {  # b -> pixels of b's mask on which class a is visible, by a
        b: np.bincount(labels[mask], minlength=max(masks) + 1).tolist() for b, mask in masks.items()
    }
    order, left = [], sorted(masks)
    while left:
        lowest = min(left, key=lambda a: sum(visible[b][a] - visible[a][b] for b in left if b != a))
        order.append(lowest)
        left.remove(lowest)
    return order


def _box(mask: np.ndarray) -> list[int]:
    """Return x, y, width, height of the pixels set in a mask [H, W]; zeros if none is."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return [0, 0, 0, 0]
    return [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
