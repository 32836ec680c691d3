"""The common style of all figures: palette, axes, pictures on axes, and the way to save them.

matplotlib is imported by those who make a figure, not by this module.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
# The palette of Okabe and Ito, which differ for every kind of colour vision, and in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
RIGHT, WRONG, INK, FAINT = "#009E73", "#D55E00", "#222222", "#8a8a8a"


def tidy(axes: "Axes", title: str) -> None:
    """Set a title and remove everything from axes that a reader does not need."""
    axes.set_title(title, fontsize=9, color=INK, loc="left")
    axes.tick_params(labelsize=7.5, colors=INK, length=2.5, width=0.6)
    axes.grid(axis="y", lw=0.4, color="#dddddd")
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set(color=FAINT, linewidth=0.6)


def show(axes: "Axes", picture: np.ndarray, *, title: str = "", frame: str | None = None) -> None:
    """Show a picture [H, W, 3] on axes without ticks, in a frame of the colour `frame`."""
    axes.imshow(picture, interpolation="antialiased")
    axes.set(xticks=[], yticks=[], anchor="N")
    if title:
        short = title if len(title) <= 18 else f"{title[:17]}\N{HORIZONTAL ELLIPSIS}"
        axes.set_title(short, fontsize=8, color=INK, pad=3)
    for spine in axes.spines.values():
        spine.set(visible=frame is not None, color=frame or INK, linewidth=2.4)


def save(figure: "Figure", path: Path) -> None:
    """Write the figure as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, facecolor="white")
