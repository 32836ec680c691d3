"""The papers' own figures (configs/published.yaml), looked up by what was trained and how it was evaluated."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

PUBLISHED = Path(__file__).resolve().parents[2] / "configs" / "published.yaml"
METRICS = {"miou": "mIoU", "fb_iou": "FB-IoU"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What decides which published figure a score may stand beside."""

    method: str
    scheme: str
    """Fold scheme, see fss.data.folds."""
    fold: int
    shots: int
    backbone: str | None = None
    size: int | None = None
    """Side of the training crop, pixels."""
    ablation: str = ""
    """The options that make it another system than the paper's main one, as Method.variant says them."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A row of a table in a paper; the fields are described in configs/published.yaml. Figures in per cent."""

    method: str
    data: str
    backbone: str
    shots: int
    metric: str
    mean: float
    source: str
    size: int | None = None
    folds: tuple[float, ...] = ()
    ablation: str | None = None

    def fold(self, number: int) -> float | None:
        """The figure of one fold, None where the paper prints the mean alone."""
        return self.folds[number] if number < len(self.folds) else None


@dataclass(frozen=True, kw_only=True)
class PublishedRecall:
    """Recall of region maps over thresholds, in per cent."""

    source: str
    thresholds: tuple[float, ...]
    maps: dict[str, tuple[float, ...]]


def published(cell: Cell, metric: str) -> Published | None:
    """The paper's result for exactly this cell, or None where it has none. metric: 'miou' or 'fb_iou'."""
    of_method = (row for row in neighbours(cell, metric) if row.method == cell.method)
    return next((row for row in of_method if (row.ablation or "") == cell.ablation), None)


def neighbours(cell: Cell, metric: str) -> list[Published]:
    """All that is published with the data, backbone and shots of the cell, and its size where the paper gives one.

    Figures of the cell's own method come first, then the order of the file.
    """
    rows = [
        row
        for row in _table()[0]
        if row.data == cell.scheme
        and row.backbone == (cell.backbone or "").removesuffix("_bn")
        and row.size in (None, cell.size)
        and (row.shots, row.metric) == (cell.shots, metric)
    ]
    return sorted(rows, key=lambda row: row.method != cell.method)


def published_recall() -> PublishedRecall:
    """Table VII of QGNet."""
    return _table()[1]


@cache
def _table() -> tuple[list[Published], PublishedRecall]:
    raw = yaml.safe_load(PUBLISHED.read_text())
    cells = [Published(**{**row, "folds": tuple(row.get("folds", ()))}) for row in raw["cells"]]
    recall = raw["recall"]
    maps = {name: tuple(values) for name, values in recall["maps"].items()}
    return cells, PublishedRecall(source=recall["source"], thresholds=tuple(recall["thresholds"]), maps=maps)
