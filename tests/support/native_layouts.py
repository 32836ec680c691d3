"""Generated files in the native layouts of data sets."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as rle

SIZE = (40, 60)  # height, width of the masks here


def photograph(path: Path, height: int = 48, width: int = 64, seed: int = 0) -> None:
    """Write a textured image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


def palette_png(path: Path, labels: np.ndarray) -> None:
    """Write an index map in VOC's form: a palette PNG whose colours are not its indices."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels.astype(np.uint8), "P")
    image.putpalette(np.random.default_rng(0).permutation(768).astype(np.uint8).tobytes())
    image.save(path)


def polygon(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    """Make a rectangle in COCO's form."""
    return [[left, top, right, top, right, bottom, left, bottom]]


def rectangle(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    """Make a mask of `SIZE`."""
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return mask


def compressed(mask: np.ndarray) -> dict:
    """Make an RLE in JSON's form."""
    encoded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def change_json(path: Path, change: Callable[[dict], None]) -> None:
    """Change a JSON file in place."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
