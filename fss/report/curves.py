"""The curves of a training: the metrics of metrics.jsonl over its steps, as a PNG."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from math import ceil, nan
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, ScalarFormatter

from fss.report.figure_style import COLOURS, FAINT, INK, save, tidy
from fss.tracking.catalogue import panel_metrics

FEW = 25  # at most so many values are drawn as points


def series(rows: Iterable[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps [n] and values [n], float64, of one metric in the rows of metrics.jsonl that contain it.

    name: its key; 'speed/...' is looked up in the nested 'speed'.
    """
    points = [(row["step"], value) for row in rows if (value := _flat(row).get(name)) is not None]
    steps, values = np.array(points, dtype=float).reshape(-1, 2).T
    return steps, values


def curves(
    rows: Sequence[dict],
    path: Path,
    *,
    baselines: Mapping[str, float] = {},
    baseline_name: str = "guessing",
    unit: str = "images",
    filling: int = 0,
) -> None:
    """Draw the panels of the catalogue (`fss.tracking.catalogue`): each raw line thin, its running mean over it.

    Args:
        rows: lines of metrics.jsonl. Panels without a value are left out.
        baselines: key of a metric -> its value for a baseline, drawn dashed in the metric's colour.
        baseline_name: legend of the dashed lines.
        unit: the plural noun for the samples of a batch.
        filling: step up to which a queue still contains random keys; that span is shaded. 0 for none.
    """
    names = sorted({name for row in rows for name in _flat(row)})
    if any(name.startswith("loss/") for name in names):
        names.remove("loss")  # their sum, which would squeeze them into half the panel
    panels = [
        (title, [name for name in names if any(fnmatchcase(name, metric.key) for metric in metrics)], metrics[0].axis)
        for title, metrics in panel_metrics().items()
    ]
    panels = [panel for panel in panels if panel[1]]
    columns = min(3, max(len(panels), 1))
    lines = max(ceil(len(panels) / columns), 1)
    figure = Figure(figsize=(4.1 * columns, 2.75 * lines))
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    last = max((row["step"] for row in rows), default=1)
    for index, (title, keys, axis) in enumerate(panels):
        axes = figure.add_subplot(lines, columns, index + 1)
        tidy(axes, title.format(unit=unit))
        for colour, name in zip(COLOURS, keys, strict=False):
            label = name.removeprefix("speed/") if len(keys) > 1 or name in baselines else None
            _line(axes, *series(rows, name), colour, label)
        _baselines(axes, rows, keys, baselines, baseline_name)
        if filling and title == "loss":
            axes.axvspan(0, min(filling, last), color="#000000", alpha=0.06, lw=0, label="queue still filling")
        axes.set_xlim(0, last * 1.02 + 1)
        if axis != "free":
            axes.set_ylim(0, max(axes.get_ylim()[1], 1e-9))
        if axis == "fraction":
            top = min(axes.get_ylim()[1], 1.05)
            axes.set_ylim(0, top)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if top > 0.05 else 2))
        else:
            axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        if index >= len(panels) - columns:
            axes.set_xlabel("optimizer step", fontsize=8, color=INK)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=7, labelcolor=INK, handlelength=1.6, framealpha=0.85, edgecolor="none")
    save(figure, path)


def _flat(row: dict) -> dict[str, float]:
    """The numbers of a row by key, those of 'speed' under 'speed/...'."""
    values = {**row, **{f"speed/{name}": value for name, value in row.get("speed", {}).items()}}
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def _line(axes: Axes, steps: np.ndarray, values: np.ndarray, colour: str, label: str | None) -> None:
    """Draw few values as points on a line, and many as a thin line under their running mean."""
    if len(steps) <= FEW:
        axes.plot(steps, values, color=colour, lw=1.4, marker="o", ms=3, label=label, clip_on=False)
        return
    axes.plot(steps, values, color=colour, lw=0.6, alpha=0.35)
    axes.plot(steps, _running_mean(values, max(len(values) // 25, 3)), color=colour, lw=1.6, label=label)


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Centred mean [n] of values [n] over `width` of them, over fewer at both ends; only finite ones count."""
    finite = np.isfinite(values)
    window = np.ones(min(width, len(values)))
    count = np.convolve(finite, window, "same")
    return np.divide(
        np.convolve(np.where(finite, values, 0), window, "same"), count, where=count > 0, out=np.full(len(values), nan)
    )


def _baselines(
    axes: Axes, rows: Sequence[dict], keys: Sequence[str], baselines: Mapping[str, float], baseline_name: str
) -> None:
    """Draw the baselines of a panel: those given, and for 'knn/top1' the last logged 'knn/chance_level'."""
    values = {name: baselines[name] for name in keys if name in baselines}
    logged = series(rows, "knn/chance_level")[1]
    if "knn/top1" in keys and len(logged):
        values["knn/top1"] = logged[-1]
    for colour, name in zip(COLOURS, keys, strict=False):
        if name in values:
            axes.axhline(values[name], color=colour, lw=1, ls=(0, (4, 3)))
    if values:
        axes.plot([], [], color=FAINT, lw=1, ls=(0, (4, 3)), label=baseline_name)
