"""PACO-Part from the official PACO-LVIS JSON: the parts of objects in COCO's photographs, one sample per object.

In the JSON ``obj_ann_id`` is the id of the object, in its own annotation and in those of its parts. Classes are
the part categories (``mug:handle``) with an annotation in the training file, in the order of their ids, 448 of 456:
PACO-Part divides these into folds, so validation needs the training file too.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from shards.format import ShardError
from shards.sources import Sample, Source, read_file, require_folder, unique_keys
from shards.sources.annotations import draw, read_document, union
from shards.sources.crops import Box, cut


@dataclass(frozen=True)
class PacoItem:
    """`Item`: an object and its parts."""

    key: str
    source: str
    image: Path
    size: tuple[int, int]
    """(height, width) in the JSON, at which polygons are drawn."""
    box: Box
    parts: tuple[dict, ...]
    """Annotations: id, segmentation, and the class id under "class"."""

    def read(self) -> Sample:
        masks: dict[int, np.ndarray] = {}
        for part in self.parts:
            union(masks, part["class"], draw(part["segmentation"], self.size, f"annotation {part['id']}"))
        return cut(read_file(self.image), masks, self.box, self.image.stem)


def paco(images: Path, annotations: Path, train: Path) -> Source:
    """PACO-Part: the folder `images` that holds train2017 and val2017, and the JSON `annotations`.

    train: the training file, which defines the classes. Keys are ``image_object``. Objects without a part of these
    classes are left out; crops follow the object's box, its sides truncated to whole pixels. Raises ShardError if a
    file is missing or has another form.
    """
    images = require_folder(images, "--images is the folder that holds train2017 and val2017")
    document, digest = read_document(annotations)
    training, train_digest = (document, digest) if train == annotations else read_document(train)
    try:
        classes = _classes(training)
    except (KeyError, TypeError) as error:
        raise _not_paco(train, error) from None
    try:
        items = _items(images, document, {category: class_id for class_id, (category, _) in classes.items()})
    except (KeyError, TypeError) as error:
        raise _not_paco(annotations, error) from None
    return Source(
        name="paco",
        classes={class_id: name for class_id, (_, name) in classes.items()},
        items=items,
        arguments={"images": str(images), "annotations": digest, "train": train_digest},
    )


def _classes(training: dict) -> dict[int, tuple[int, str]]:
    """Class id -> (category id, name) of every part category that is annotated."""
    annotated = {annotation["category_id"] for annotation in training["annotations"]}
    parts = sorted(
        (category["id"], category["name"])
        for category in training["categories"]
        if category["supercategory"] != "OBJECT" and category["id"] in annotated
    )
    return dict(enumerate(parts, start=1))


def _items(images: Path, document: dict, class_ids: dict[int, int]) -> list[PacoItem]:
    objects = {}
    parts = defaultdict(list)  # object's annotation id -> its parts
    for annotation in document["annotations"]:
        if annotation["id"] == annotation["obj_ann_id"]:
            objects[annotation["id"]] = annotation
        elif (class_id := class_ids.get(annotation["category_id"])) is not None:
            kept = {name: annotation[name] for name in ("id", "segmentation")}
            parts[annotation["obj_ann_id"]].append({**kept, "class": class_id})
    records = {record["id"]: record for record in document["images"]}
    crops = []
    for number in sorted(parts):
        record = records[objects[number]["image_id"]]
        file = "/".join(PurePosixPath(record["file_name"]).parts[-2:])
        left, top, width, height = objects[number]["bbox"]
        box = int(left), int(top), int(left + width), int(top + height)
        crops.append((number, file, (record["height"], record["width"]), box))
    sources = [f"{file}, object {number}" for number, file, _, _ in crops]
    keys = unique_keys([f"{Path(file).stem}_{number}" for number, file, _, _ in crops], sources)
    return [
        PacoItem(key, source, images / file, size, box, tuple(parts[number]))
        for key, source, (number, file, size, box) in zip(keys, sources, crops, strict=True)
    ]


def _not_paco(path: Path, error: Exception) -> ShardError:
    return ShardError(f"{path} is no PACO-LVIS file ({type(error).__name__}: {error}): give paco_lvis_v1_*.json")
