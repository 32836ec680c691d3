"""Photographs of plain colours and their masks, as a user has them."""

from pathlib import Path

import numpy as np
from PIL import Image

RED, GREEN, BLUE = (255, 20, 0), (0, 230, 30), (10, 0, 200)
HEIGHT, WIDTH = 48, 64
LEFT, RIGHT = np.s_[0:32, 0:16], np.s_[16:48, 32:48]  # where objects lie: whole patches of the tiny GF-SAM


def scene(*objects: tuple[tuple[slice, slice], tuple[int, int, int]], ground=BLUE) -> np.ndarray:
    """A photograph of objects (place, colour) on blue, uint8 [H, W, 3]."""
    image = np.full((HEIGHT, WIDTH, 3), ground, np.uint8)
    for place, colour in objects:
        image[place] = colour
    return image


def marked(place: tuple[slice, slice], value: int = 255) -> np.ndarray:
    """uint8 [H, W]."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[place] = value
    return mask


def saved(path: Path, picture: np.ndarray, **options) -> str:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(picture).save(path, **options)
    return str(path)


def alike(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Up to the edges: the toy sees 33 pixels a side."""
    return (found & wanted).sum() / (found | wanted).sum() > 0.75
