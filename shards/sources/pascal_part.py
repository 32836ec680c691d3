"""PASCAL-Part with merged part classes, in the layout of few-shot part segmentation, one sample per object.

Below VOC2010 lie JPEGImages, one JSON an image in Annotations_Part_json_merged_part_classes (objects with boxes, their
parts with RLE masks), and all_obj_part_to_image.json, which lists for every superclass, object and part the images of
each split. Classes are the parts with images in both splits, in the order of that file, named
``animals/dog+HEAD``; aeroplane+TAIL is left out, as by the authors of the task.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.format import ReadError, ShardError
from shards.sources import Sample, Source, read_file, require_folder, unique_keys
from shards.sources.annotations import draw, read_document, union
from shards.sources.crops import cut

SUPERCLASSES = ("animals", "indoor", "person", "vehicles")
ANNOTATIONS = "Annotations_Part_json_merged_part_classes"
LISTS = "all_obj_part_to_image.json"
LEFT_OUT = ("aeroplane", "TAIL")
Parts = dict[tuple[str, str], int]
"""(object, part) -> class id."""


@dataclass(frozen=True)
class PascalPartItem:
    """`Item`: an object and its parts."""

    key: str
    source: str
    image: Path
    annotation: Path
    number: int
    """Place of the object in the annotation, from 0."""
    class_ids: Parts

    def read(self) -> Sample:
        document, _ = read_document(self.annotation)
        masks: dict[int, np.ndarray] = {}
        try:
            thing = document["object"][self.number]
            for class_id, part in _parts(thing, self.class_ids):
                for rle in part["mask"]:
                    name = f"{part['name']} of object {self.number} in {self.annotation}"
                    union(masks, class_id, draw(rle, tuple(rle["size"]), name))
            left, top, right, bottom = (int(thing["bndbox"][side]) for side in ("xmin", "ymin", "xmax", "ymax"))
        except (KeyError, TypeError, IndexError) as error:
            raise ShardError(
                f"object {self.number} of {self.annotation} cannot be read ({type(error).__name__}: {error})"
            ) from None
        return cut(read_file(self.image), masks, (left, top, right, bottom), self.image.stem)


def pascal_part(root: Path, split: str) -> Source:
    """PASCAL-Part: the folder `root` (VOCdevkit/VOC2010, see the module's docstring) and the `split`, train or val.

    Keys are ``image_object``, objects counted from 0 as in the image's JSON; objects without a part are left out. The
    box is that of the task's authors, without its last row and column. Raises ShardError if a file is missing or has
    another form.
    """
    root = require_folder(root, f"--root is VOCdevkit/VOC2010, which holds JPEGImages, {ANNOTATIONS} and {LISTS}")
    annotations = require_folder(root / ANNOTATIONS, "--root is the folder that holds it")
    document, digest = read_document(root / LISTS)
    try:
        classes, names = _classes(document, split)
    except (KeyError, TypeError, AttributeError) as error:
        raise ShardError(
            f"{root / LISTS} does not list images by superclass, object, part and split "
            f"({type(error).__name__}: {error}): give the file of the few-shot part segmentation task"
        ) from None
    class_ids = {(thing, part): class_id for class_id, (_, thing, part) in classes.items()}
    objects = [(name, number) for name in names for number in _with_parts(annotations / f"{name}.json", class_ids)]
    sources = [f"JPEGImages/{name}.jpg, object {number}" for name, number in objects]
    keys = unique_keys([f"{name}_{number}" for name, number in objects], sources)
    return Source(
        name="pascal_part",
        classes={class_id: f"{group}/{thing}+{part}" for class_id, (group, thing, part) in classes.items()},
        items=[
            PascalPartItem(
                key, source, root / "JPEGImages" / f"{name}.jpg", annotations / f"{name}.json", number, class_ids
            )
            for key, source, (name, number) in zip(keys, sources, objects, strict=True)
        ],
        arguments={"root": str(root), "split": split, "lists": digest},
    )


def _classes(document: dict, split: str) -> tuple[dict[int, tuple[str, str, str]], list[str]]:
    """Return class id -> (superclass, object, part), and the images of these classes in a split."""
    listed = [
        ((group, thing, part), images)
        for group in SUPERCLASSES
        for thing, parts in document[group]["object"].items()
        for part, images in parts["part"].items()
        if images["train"] and images["val"] and (thing, part) != LEFT_OUT
    ]
    classes = dict(enumerate((names for names, _ in listed), start=1))
    return classes, sorted({name for _, images in listed for name in images[split]})


def _with_parts(annotation: Path, class_ids: Parts) -> list[int]:
    """Return the numbers of the objects of an image that have parts of our classes."""
    try:
        objects = read_document(annotation)[0]["object"]
        return [number for number, thing in enumerate(objects) if any(_parts(thing, class_ids))]
    except ReadError:
        raise
    except (ShardError, KeyError, TypeError):
        return [0]  # packing raises the error again and reports it with the other bad files


def _parts(thing: dict, class_ids: Parts) -> Iterator[tuple[int, dict]]:
    """Yield class id and annotation of each part of an object."""
    for part in thing["parts"]:
        if (class_id := class_ids.get((thing["name"], part["name"]))) is not None:
            yield class_id, part
