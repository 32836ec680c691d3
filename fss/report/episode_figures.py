"""Figures of episodes: supports with their masks, query, truth, prediction, and maps."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fss.evaluate.examples import EpisodeExample
from fss.report import paint
from fss.report.figure_style import INK, save, show

# Of the palette of Okabe and Ito, chosen to differ in lightness, too.
HIT, MISS, FALSE_ALARM, UNCOUNTED = "#56B4E9", "#F0E442", "#D55E00", "#999999"
INCHES = 1.9  # width of a column


def draw(rows: Sequence[EpisodeExample], path: Path) -> None:
    """Draw one row an episode; colours mark hits, missed pixels and false alarms of the prediction."""
    names = list(dict.fromkeys(name for row in rows for name in row.maps))
    shots = max(len(row.supports) for row in rows)
    header = ["support" if shots == 1 else f"{shots} supports", "query", "truth", "prediction", *names]
    cells = [_cells(row, names) for row in rows]
    # In widths of a column; a portrait becomes narrower, not taller.
    widths = [1.0 if shots == 1 else 1.5, *[1.0] * (len(header) - 1)]
    heights = [
        min(max(c.shape[0] / c.shape[1] * width for c, width in zip(line, widths, strict=True)), 1) for line in cells
    ]
    figure = Figure(figsize=(INCHES * sum(widths), INCHES * sum(heights) + 0.3 * len(rows) + 0.45))
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03, wspace=0.01, hspace=0.01)
    grid = figure.subplots(len(rows), len(header), squeeze=False, width_ratios=widths, height_ratios=heights)
    for line, (row, pictures) in enumerate(zip(rows, cells, strict=True)):
        for axes, picture, title in zip(grid[line], pictures, header, strict=True):
            show(axes, picture)
            if line == 0:
                axes.set_title(title, fontsize=8.5, color=INK, pad=4)
        grid[line][0].set_xlabel(row.name, fontsize=8.5, color=INK, labelpad=3)
        grid[line][3].set_xlabel(row.score, fontsize=8.5, color=INK, labelpad=3)
    colours = {"hit": HIT, "missed": MISS, "false alarm": FALSE_ALARM}
    if any((row.truth == 255).any() for row in rows):
        colours["not counted"] = UNCOUNTED
    handles = [Patch(color=colour, label=label) for label, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower right", ncols=4, fontsize=8, frameon=False, labelcolor=INK)
    save(figure, path)


def row(example: EpisodeExample) -> dict[str, str | np.ndarray]:
    """The class, the score and the pictures, uint8 RGB [h, w, 3], of one episode by column, without its maps."""
    pictures = dict(zip(("supports", "query", "truth", "prediction"), _cells(example, []), strict=True))
    return {"class": example.name, "score": example.score, **pictures}


def _cells(row: EpisodeExample, names: Sequence[str]) -> list[np.ndarray]:
    """The pictures of a row, uint8 [h, w, 3] each; a map that the episode does not have is white."""
    query, truth, prediction = (
        paint.downsample(row.query),
        paint.downsample_mask(row.truth),
        paint.downsample_mask(row.prediction),
    )
    grey = np.repeat(cv2.cvtColor(query, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    unknown = truth == 255
    judged = paint.tint(
        grey,
        {
            HIT: (truth == 1) & (prediction == 1),
            MISS: (truth == 1) & (prediction == 0),
            FALSE_ALARM: (truth == 0) & (prediction == 1),
            UNCOUNTED: unknown,
        },
    )
    target = paint.outlined(paint.tint(grey, {HIT: truth == 1, UNCOUNTED: unknown}), truth == 1, "#ffffff")
    heat = [paint.heat(row.maps[name], truth == 1) if name in row.maps else np.full_like(query, 255) for name in names]
    return [paint.together([paint.support(*pair) for pair in row.supports]), query, target, judged, *heat]
