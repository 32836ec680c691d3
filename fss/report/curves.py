"""The curves of a run: every metric of metrics.jsonl over its steps, as a PNG."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from math import ceil, nan
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, ScalarFormatter

from fss.report.feature_figures import COLOURS, FAINT, INK, save, tidy

FEW = 25  # points that are drawn as such; more make a line
# Title, the metrics it holds (shell patterns on the names in metrics.jsonl), and how its axis goes: free, from zero, or
# from zero in per cent.
PANELS = (
    ("loss", ("loss", "loss/*"), "free"),
    ("positive pair ranked first", ("top1/*",), "share"),
    ("kNN top-1 on held-out crops", ("knn/top1",), "share"),
    ("validation", ("val/miou", "val/fb_iou"), "share"),
    ("IoU of training queries", ("iou",), "share"),
    ("training pixels that are right", ("accuracy",), "share"),
    ("cosine similarity of pairs", ("positive/*", "negative/*"), "free"),
    ("spread of embeddings (0: collapsed)", ("spread/*",), "zero"),
    ("gradient norm", ("grad_norm",), "zero"),
    ("learning rate", ("lr",), "zero"),
    ("{unit} / s, all ranks", ("speed/images_per_s",), "zero"),
    ("share of time waiting for data", ("speed/data_wait",), "share"),
)


def series(rows: Iterable[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of one metric over the rows of metrics.jsonl that hold it; 'speed/...' looks into 'speed'."""
    points = [(row["step"], value) for row in rows if (value := _flat(row).get(name)) is not None]
    steps, values = np.array(points, dtype=float).reshape(-1, 2).T
    return steps, values


def curves(
    rows: list[dict],
    path: Path,
    *,
    levels: Mapping[str, float] = {},
    guess: str = "chance",
    unit: str = "images",
    filling: int = 0,
) -> None:
    """Every known metric of a run over its steps: one panel a kind, the raw line thin, its running mean over it.

    Args:
        rows: lines of metrics.jsonl. Panels without a value are left out.
        levels: metric name -> what guessing gives, drawn dashed in the metric's colour.
        guess: what the dashed lines are called.
        unit: what a batch is counted in.
        filling: step up to which a queue still holds its random start; that span is shaded. 0 for none.
    """
    names = sorted({name for row in rows for name in _flat(row)})
    if any(name.startswith("loss/") for name in names):
        names.remove("loss")  # their sum, which would squeeze them into half the panel
    panels = [
        (title, [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)], scale)
        for title, patterns, scale in PANELS
    ]
    panels = [panel for panel in panels if panel[1]]
    columns = min(3, max(len(panels), 1))
    lines = max(ceil(len(panels) / columns), 1)
    figure = Figure(figsize=(4.1 * columns, 2.75 * lines), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    last = max((row["step"] for row in rows), default=1)
    for place, (title, found, scale) in enumerate(panels):
        axes = figure.add_subplot(lines, columns, place + 1)
        tidy(axes, title.format(unit=unit))
        for colour, name in zip(COLOURS, found, strict=False):
            label = name.removeprefix("speed/") if len(found) > 1 or name in levels else None
            _line(axes, *series(rows, name), colour, label)
        _levels(axes, rows, found, levels, guess)
        if filling and title == "loss":
            axes.axvspan(0, min(filling, last), color="#000000", alpha=0.06, lw=0, label="queue still filling")
        axes.set_xlim(0, last * 1.02 + 1)
        if scale != "free":
            axes.set_ylim(0, max(axes.get_ylim()[1], 1e-9))
        if scale == "share":
            top = min(axes.get_ylim()[1], 1.05)
            axes.set_ylim(0, top)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if top > 0.05 else 2))
        else:
            axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        if place >= len(panels) - columns:
            axes.set_xlabel("optimizer step", fontsize=8, color=INK)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=7, labelcolor=INK, handlelength=1.6, framealpha=0.85, edgecolor="none")
    save(figure, path)


def _flat(row: dict) -> dict[str, float]:
    """The numbers of a row, 'speed' unfolded."""
    values = {**row, **{f"speed/{name}": value for name, value in row.get("speed", {}).items()}}
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def _line(axes: Axes, steps: np.ndarray, values: np.ndarray, colour: str, label: str | None) -> None:
    """Few points as points on a line; many as a thin line under their running mean."""
    if len(steps) <= FEW:
        axes.plot(steps, values, color=colour, lw=1.4, marker="o", ms=3, label=label, clip_on=False)
        return
    axes.plot(steps, values, color=colour, lw=0.6, alpha=0.35)
    axes.plot(steps, _running_mean(values, max(len(values) // 25, 3)), color=colour, lw=1.6, label=label)


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Centred mean over `width` values, over fewer at both ends; values that are not finite are passed over."""
    finite = np.isfinite(values)
    window = np.ones(min(width, len(values)))
    count = np.convolve(finite, window, "same")
    return np.divide(
        np.convolve(np.where(finite, values, 0), window, "same"), count, where=count > 0, out=np.full(len(values), nan)
    )


def _levels(axes: Axes, rows: list[dict], found: list[str], levels: Mapping[str, float], guess: str) -> None:
    """What guessing gives: known for the metric, or logged beside it as 'knn/chance_level'."""
    levels = {name: levels[name] for name in found if name in levels}
    logged = series(rows, "knn/chance_level")[1]
    if "knn/top1" in found and len(logged):
        levels["knn/top1"] = logged[-1]
    for colour, name in zip(COLOURS, found, strict=False):
        if name in levels:
            axes.axhline(levels[name], color=colour, lw=1, ls=(0, (4, 3)))
    if levels:
        axes.plot([], [], color=FAINT, lw=1, ls=(0, (4, 3)), label=guess)
