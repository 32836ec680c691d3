"""The scores that the papers print (configs/published.yaml), looked up by method, data and protocol."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from fss.compat import CELL, current_fields

PUBLISHED = Path(__file__).resolve().parents[2] / "configs" / "published.yaml"
METRICS = {"miou": "mIoU", "fb_iou": "FB-IoU"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Everything that a score must share with a published one to be compared with it."""

    method: str
    scheme: str
    """Fold scheme, see fss.data.folds."""
    fold: int
    shots: int
    backbone: str | None = None
    size: int | None = None
    """Side of the training crop, pixels."""
    ablation: str = ""
    """The options that make another system than the paper's main one, as `Method.ablation` gives them."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A row of a table in a paper; configs/published.yaml describes the fields. Scores in per cent."""

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
        """The score of one fold; None if the paper prints only the mean."""
        return self.folds[number] if number < len(self.folds) else None


@dataclass(frozen=True, kw_only=True)
class PublishedRecall:
    """Recall of region maps over thresholds, per cent."""

    source: str
    thresholds: tuple[float, ...]
    maps: dict[str, tuple[float, ...]]


def published(cell: Cell, metric: str) -> Published | None:
    """The paper's result for exactly this cell; None if it has none. metric: 'miou' or 'fb_iou'."""
    of_method = (row for row in neighbours(cell, metric) if row.method == cell.method)
    return next((row for row in of_method if (row.ablation or "") == cell.ablation), None)


def neighbours(cell: Cell, metric: str) -> list[Published]:
    """All published results with the data, backbone and shots of the cell, and with its size if the paper gives one.

    Those of the cell's own method come first; otherwise the order is that of the file.
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
    """The recall of QGNet's region maps (QGNet, Table VII)."""
    return _table()[1]


@cache
def _table() -> tuple[list[Published], PublishedRecall]:
    raw = yaml.safe_load(PUBLISHED.read_text())
    rows = [current_fields(row, CELL) for row in raw["cells"]]
    cells = [Published(**{**row, "folds": tuple(row.get("folds", ()))}) for row in rows]
    recall = raw["recall"]
    maps = {name: tuple(values) for name, values in recall["maps"].items()}
    return cells, PublishedRecall(source=recall["source"], thresholds=tuple(recall["thresholds"]), maps=maps)
