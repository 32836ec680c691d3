"""Reading and drawing for annotation files in COCO's form (COCO, LVIS, PACO, PASCAL-Part)."""

import hashlib
import json
from pathlib import Path

import numpy as np
from pycocotools import mask as rle

from shards.format import ShardError
from shards.sources import read_file


def read_document(path: Path) -> tuple[dict, str]:
    """Return the JSON in `path` and the SHA-256 of its bytes. Raises ShardError if it is missing or damaged."""
    raw = read_file(path)
    try:
        return json.loads(raw), hashlib.sha256(raw).hexdigest()
    except ValueError as error:
        raise ShardError(f"{path} is not JSON ({error})") from None


def drawable(segmentation: list | dict | None) -> bool:
    """Return True if there is something to draw: an RLE, or polygons of at least three points."""
    if isinstance(segmentation, list):  # pycocotools would read four numbers as a box and crash on fewer
        return bool(segmentation) and all(isinstance(part, list) and len(part) >= 6 for part in segmentation)
    return isinstance(segmentation, dict)


def draw(segmentation: list | dict, size: tuple[int, int], name: str) -> np.ndarray:
    """Draw polygons or an RLE as bool [H, W].

    size: (height, width) of the image. name: its name in the error.
    Raises ShardError if it cannot be drawn.
    """
    try:
        if isinstance(segmentation, list):
            if not drawable(segmentation):
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
        raise ShardError(f"{name} cannot be drawn ({error})") from None


def union(masks: dict[int, np.ndarray], class_id: int, mask: np.ndarray) -> None:
    """Add the pixels of `mask`, bool [H, W], to those of its class, unless it has none."""
    if mask.any():
        masks[class_id] = masks[class_id] | mask if class_id in masks else mask
