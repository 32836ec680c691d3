"""Figures of label maps: photographs, their labels and predictions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from fss.report.figure_style import INK, save, show
from fss.report.paint import TINT, downsample, downsample_mask
from shards.format import IGNORE_LABEL

if TYPE_CHECKING:
    from fss.train.validation.label_validation import LabelExample

INCHES = 2.2  # width of a column
GREY = (153, 153, 153)  # colour of unknown pixels
COLUMNS = 6  # columns of the legend
SHEET = 4  # pictures in a line of a contact sheet


def draw(rows: Sequence["LabelExample"], path: Path) -> None:
    """Draw one row an image: photograph, truth, prediction. The classes that occur are in the legend.

    Unknown pixels are grey.
    """
    from matplotlib.figure import Figure  # as below: takes long to import, and `fss.load` imports this module
    from matplotlib.patches import Patch

    names = rows[0].names
    figure = Figure(figsize=(3 * INCHES, INCHES * sum(_height(row.image) for row in rows) + 0.9))
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03, wspace=0.01, hspace=0.01)
    grid = figure.subplots(len(rows), 3, squeeze=False, height_ratios=[_height(row.image) for row in rows])
    occurring: set[int] = set()
    for line, row in zip(grid, rows, strict=True):
        maps = row.truth, np.where(row.truth == IGNORE_LABEL, IGNORE_LABEL, row.prediction)
        show(line[0], downsample(row.image))
        for axes, labels in zip(line[1:], maps, strict=True):
            show(axes, overlaid(row.image, labels, len(names)))
            occurring.update(np.unique(labels).tolist())
    for axes, title in zip(grid[0], ("image", "truth", "prediction"), strict=True):
        axes.set_title(title, fontsize=8.5, color=INK, pad=4)
    colours = label_colours(len(names)) / 255
    handles = [
        Patch(color=colours[label], label="unknown" if label == IGNORE_LABEL else names[label - 1])
        for label in sorted(occurring - {0})
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=COLUMNS, fontsize=7, frameon=False, labelcolor=INK)
    save(figure, path)


def row(example: "LabelExample") -> dict[str, np.ndarray]:
    """The pictures of one image by column, uint8 RGB [h, w, 3]."""
    maps = {"truth": example.truth, "prediction": example.prediction}
    pictures = {name: overlaid(example.image, labels, len(example.names)) for name, labels in maps.items()}
    return {"image": downsample(example.image), **pictures}


def contact_sheet(
    supports: Mapping[str, Sequence[np.ndarray]], queries: Sequence[tuple[str, np.ndarray]], path: Path
) -> None:
    """Draw the supports of every class in its colour, and below them every query with its prediction.

    supports: class -> pictures of its shots. queries: name and picture. Pictures are those of `overlaid`, uint8 RGB
    [h, w, 3].
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    named = [(name, picture) for name, pictures in supports.items() for picture in pictures]
    lines = [  # queries begin a line of their own
        ("" if start else kind, cells[start : start + SHEET])
        for kind, cells in (("supports", named), ("queries", queries))
        for start in range(0, len(cells), SHEET)
    ]
    heights = [max(_height(picture) for _, picture in cells) for _, cells in lines]
    figure = Figure(figsize=(SHEET * INCHES + 0.3, INCHES * sum(heights) + 0.24 * len(lines) + 0.35))
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.02, wspace=0.01, hspace=0.01)
    grid = figure.subplots(len(lines), SHEET, squeeze=False, height_ratios=heights)
    for line, (kind, cells) in zip(grid, lines, strict=True):
        for axes, (name, picture) in zip(line, cells, strict=False):
            show(axes, picture, title=name)
        for axes in line[len(cells) :]:
            axes.set_axis_off()
        line[0].set_ylabel(kind, fontsize=8.5, color=INK)
    colours = label_colours(len(supports)) / 255
    handles = [Patch(color=colours[label], label=name) for label, name in enumerate(supports, 1)]
    figure.legend(handles=handles, loc="outside lower left", ncols=COLUMNS, fontsize=8, frameon=False, labelcolor=INK)
    save(figure, path)


def _height(image: np.ndarray) -> float:
    """Height of a picture [H, W, 3] in widths of a column, at most 1: a portrait becomes narrower, not taller."""
    return min(image.shape[0] / image.shape[1], 1)


def label_colours(classes: int) -> np.ndarray:
    """RGB of every label, float [256, 3]; hues are a golden angle apart, so that few classes differ clearly."""
    from matplotlib.colors import hsv_to_rgb

    colours = np.zeros((256, 3))
    turns = np.arange(classes)
    hsv = np.stack([turns * 0.618 % 1, np.full(classes, 0.85), 1 - 0.3 * (turns % 2)], axis=1)  # [classes, 3]
    colours[1 : 1 + classes] = 255 * hsv_to_rgb(hsv)
    colours[IGNORE_LABEL] = GREY
    return colours


def overlaid(image: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """The downsampled photograph [H, W, 3] in grey with its labels [H, W] in colour, uint8 RGB [h, w, 3]."""
    return tinted(downsample(image), downsample_mask(labels), classes)


def tinted(image: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """The photograph uint8 RGB [H, W, 3] in grey with its labels uint8 [H, W] in colour, at full size."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]  # [H, W, 1]
    colour = (1 - TINT) * grey + TINT * label_colours(classes)[labels]
    return np.where(labels[..., None] > 0, colour, grey).astype(np.uint8)
