"""Figures of an evaluation as PNG: the scores of the classes, and recall over thresholds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import ceil
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fss.report.figure_style import COLOURS, INK, save, tidy

LINES = 60  # the most classes in a column of bars


@dataclass(frozen=True, kw_only=True)
class Bar:
    """The scores of one class."""

    name: str
    values: tuple[float, ...]
    """Intersection over union in per cent, one a seed."""
    episodes: int
    """Number over all seeds."""


def class_bars(bars: Sequence[Bar], path: Path, *, mean: float, unit: str = "episodes") -> None:
    """Draw the intersection over union by class, the best on top: a bar to the mean over seeds, a dot for every seed.

    mean: the mean over classes in per cent, drawn as a line. unit: what `Bar.episodes` counts. Many classes are split
    over several columns.
    """
    bars = sorted(bars, key=lambda bar: -float(np.mean(bar.values)))
    columns = max(ceil(len(bars) / LINES), 1)
    lines = ceil(len(bars) / columns)
    small = len(bars) > 30
    figure = Figure(figsize=(3.6 * columns if columns > 1 else 7, (0.17 if small else 0.3) * lines + 0.9))
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.08)
    for column in range(columns):
        axes = figure.add_subplot(1, columns, column + 1)
        part = bars[column * lines : (column + 1) * lines]
        tidy(axes, "")
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", lw=0.4, color="#dddddd")
        for row, bar in enumerate(part):
            average = float(np.mean(bar.values))
            axes.barh(row, average, height=0.72, color=COLOURS[5])
            if len(bar.values) > 1:
                axes.plot(bar.values, [row] * len(bar.values), ".", ms=3 if small else 5, color=COLOURS[0])
            text = f"{average:.1f}  ({bar.episodes})"
            axes.text(103, row, text, va="center", fontsize=5.5 if small else 7.5, color=INK)
        axes.axvline(mean, color=INK, lw=0.9, ls=(0, (4, 3)))
        axes.text(mean, -0.65, f"mIoU {mean:.1f}", ha="center", va="bottom", fontsize=6 if small else 7.5, color=INK)
        axes.set_yticks(range(len(part)), [_short(bar.name) for bar in part], fontsize=6 if small else 8)
        axes.set(ylim=(max(lines, 1) - 0.4, -0.6), xlim=(0, 100), xticks=range(0, 101, 20))
        axes.set_xlabel(f"IoU, % ({unit})", fontsize=8, color=INK)
    save(figure, path)


def class_dots(values: Mapping[str, Mapping[str, float]], labels: Sequence[str], path: Path) -> None:
    """Draw the intersection over union of every class, a dot for each of `labels`; the hardest class is at the bottom.

    values: class -> label -> per cent; a label may be missing.
    """
    names = sorted(values, key=lambda name: float(np.mean([*values[name].values()])))
    figure = Figure(figsize=(7, 0.28 * len(names) + 0.35 * len(labels) + 1), layout="constrained")
    axes = figure.add_subplot()
    tidy(axes, "")
    for label, colour, mark in zip(labels, cycle(COLOURS), cycle("osD^vPX*"), strict=False):
        rows = [row for row, name in enumerate(names) if label in values[name]]
        axes.plot(
            [values[names[row]][label] for row in rows],
            rows,
            ls="none",
            marker=mark,
            ms=5,
            color=colour,
            alpha=0.85,
            label=label,
        )
    axes.set_yticks(range(len(names)), [_short(name) for name in names], fontsize=8 if len(names) <= 30 else 6)
    axes.set(xlim=(0, 100), ylim=(-0.6, len(names) - 0.4))
    axes.set_xlabel("IoU, %", fontsize=8, color=INK)
    axes.legend(fontsize=7.5, labelcolor=INK, edgecolor="none", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    save(figure, path)


def recall_curves(
    thresholds: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    path: Path,
    *,
    papers: Mapping[str, Sequence[float]],
    paper_thresholds: Sequence[float],
) -> None:
    """Draw recall in per cent over the threshold, one line a map; the paper's line is dashed in the same colour.

    curves, papers: map -> recall at each of `thresholds`, of `paper_thresholds`.
    """
    figure = Figure(figsize=(6.6, 4.2), layout="constrained")
    axes = figure.add_subplot()
    tidy(axes, "")
    for name, colour, mark in zip(curves, COLOURS, "osD^vP", strict=False):
        axes.plot(thresholds, curves[name], color=colour, marker=mark, ms=4, lw=1.6, label=name)
        if name in papers:
            axes.plot(
                paper_thresholds,
                papers[name],
                color=colour,
                marker=mark,
                ms=4,
                mfc="white",
                lw=1,
                ls=(0, (4, 3)),
                label=f"{name}, paper",
            )
    axes.set(xlim=(0, 1), ylim=(-2, 102), xticks=np.linspace(0, 1, 11))
    axes.set_xlabel("threshold", fontsize=8, color=INK)
    axes.set_ylabel("recall, %", fontsize=8, color=INK)
    axes.legend(fontsize=7.5, labelcolor=INK, framealpha=0.9, edgecolor="none")
    save(figure, path)


def _short(name: str, length: int = 22) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}\N{HORIZONTAL ELLIPSIS}"
