"""A small packed set with masks: one rectangle of plain colour an image, its colour the class."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from shards.read import ShardSet
from shards.sources import Sample, Source
from shards.write import pack

COLOURS = {1: (220, 30, 30), 2: (30, 220, 30), 3: (30, 30, 220), 4: (220, 220, 30)}  # RGB
HEIGHT, WIDTH = 48, 64


@dataclass(frozen=True)
class Rectangle:
    """Make image `index` of class `label`; images of other classes have a small object of class 1 in the corner.

    ignored: whether the object continues to the right under pixels of unknown class.
    """

    index: int
    label: int
    ignored: bool = False

    @property
    def key(self) -> str:
        return f"r{self.index:04d}"

    @property
    def source(self) -> str:
        return f"{self.index}.png"

    def read(self) -> Sample:
        rng = np.random.default_rng(self.index)
        image = rng.integers(60, 100, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        top, left = rng.integers(8, 20), rng.integers(8, 30)
        masks = {label: np.zeros((HEIGHT, WIDTH), bool) for label in {1, self.label}}
        if self.label != 1:
            masks[1][:3, :3] = True
        masks[self.label][top : top + 16, left : left + 24] = True
        image[top : top + 16, left : left + 24] = COLOURS[self.label]
        ignore = None
        if self.ignored:
            ignore = np.zeros((HEIGHT, WIDTH), bool)
            ignore[top : top + 16, left + 24 : left + 32] = True
            image[ignore] = COLOURS[self.label]
        data = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
        return Sample(image=data, masks=masks, paint=sorted(masks), ignore=ignore)


def rectangles(folder: Path, labels: list[int], *, ignored: bool = False) -> ShardSet:
    """Pack image i of class labels[i], with SLIC superpixels. ignored: see `Rectangle`."""
    items = [Rectangle(index, label, ignored) for index, label in enumerate(labels)]
    names = {1: "red", 2: "green", 3: "blue", 4: "yellow"}
    pack(Source(name="rectangles", classes=names, items=items), folder, superpixels=("slic",), samples_per_shard=16)
    return ShardSet(folder)
