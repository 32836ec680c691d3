"""Exports of annotation tools in COCO's form, brought to the form of the official files.

CVAT writes every mask as a crowd region. Roboflow writes a category that is only the parent of the others. Many tools
write annotations without an outline, area or box.
"""

from pathlib import Path

from shards.format import ShardError
from shards.sources.annotations import drawable


def tidy(document: dict, path: Path, crowd: str) -> list[str]:
    """Change the `document` read from `path` in place and return sentences about the changes.

    An annotation that cannot be drawn becomes a crowd region of its box, or is dropped if it has none. A category
    without an annotation that others name as their supercategory is dropped. crowd: 'object' makes objects of crowd
    regions.

    Raises ShardError if annotations mark no object, KeyError or TypeError if the document has another form.
    """
    annotations = document["annotations"]
    used = {annotation["category_id"] for annotation in annotations}
    roots = [category for category in document["categories"] if _is_root(category, document["categories"], used)]
    document["categories"] = [category for category in document["categories"] if category not in roots]
    for annotation in annotations:
        annotation["iscrowd"] = 0 if crowd == "object" else annotation.get("iscrowd", 0)
    undrawn = [annotation for annotation in annotations if not drawable(annotation.get("segmentation"))]
    nothing_marked = _nothing_marked(annotations, undrawn, path)  # counts crowds before there are more of them
    for annotation in undrawn:
        annotation.update(segmentation=_outline(annotation.get("bbox")), iscrowd=1)
    if annotations and all(annotation["iscrowd"] for annotation in annotations):
        raise nothing_marked
    document["annotations"] = [annotation for annotation in annotations if annotation["segmentation"]]

    certain = {annotation["category_id"] for annotation in annotations if not annotation["iscrowd"]}
    messages = [
        f"{root['name']} is left out: no annotation has it, and classes name it as their supercategory"
        for root in roots
    ]
    messages += [
        f"{category['name']} has no object, only regions that are ignored: crowds, which --crowd object takes as "
        "objects, or annotations without an outline"
        for category in document["categories"]
        if category["id"] in used - certain
    ]
    if undrawn:
        dropped = len(annotations) - len(document["annotations"])
        messages.append(
            f"{len(undrawn)} of {len(annotations)} annotations cannot be drawn, {undrawn[0].get('id')} for one: their "
            "boxes are ignored" + f", {dropped} without a box left out" * bool(dropped)
        )
    return messages


def _is_root(category: dict, categories: list[dict], used: set) -> bool:
    return category["id"] not in used and any(
        other.get("supercategory") == category["name"] and other["id"] != category["id"] for other in categories
    )


def _nothing_marked(annotations: list[dict], undrawn: list[dict], path: Path) -> ShardError:
    crowds = sum(bool(annotation["iscrowd"]) for annotation in annotations)
    return ShardError(
        f"none of the {len(annotations)} annotations of {path} marks an object: {crowds} are crowd regions (iscrowd 1; "
        f"give --crowd object if they mark objects, as masks from CVAT do), {len(undrawn)} have no outline (export "
        "polygons or masks, not boxes alone)"
    )


def _outline(box: object) -> list[list[float]]:
    """Return the polygon of x, y, width, height; empty if `box` is no such list."""
    if not (isinstance(box, list) and len(box) == 4 and all(isinstance(side, int | float) for side in box)):
        return []
    x, y, width, height = box
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]
