"""The metrics of a few-shot evaluation: exact intersections and unions, and the scores computed from them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from shards.format import IGNORE_LABEL


@dataclass(frozen=True)
class Scores:
    """The scores of some episodes, as fractions."""

    miou: float
    """Mean over the classes of the intersection over union of the class, each summed over its episodes."""
    fb_iou: float
    """Mean of `bg_iou` and `fg_iou`."""
    bg_iou: float
    """Intersection over union of the background, summed over all episodes of all classes."""
    fg_iou: float
    """The same of the foreground, whatever its class."""
    per_class: dict[int, float]
    """Class id -> its intersection over union."""


def counts(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Count pixels of one episode, int64 [2, 2]: [[background intersection, union], [foreground intersection, union]].

    prediction: uint8 [h, w] of 0 and 1. truth: uint8 [h, w] of 0, 1 and 255; a pixel of 255 is not counted.
    """
    assert prediction.shape == truth.shape, f"{prediction.shape} against {truth.shape}"
    background, foreground = truth == 0, truth == 1
    hits = np.count_nonzero(foreground & (prediction == 1))
    rejections = np.count_nonzero(background & (prediction == 0))
    misses = np.count_nonzero(foreground) - hits
    false_alarms = np.count_nonzero(background) - rejections
    wrong = misses + false_alarms  # in the union of both, as there are but two labels
    return np.array([[rejections, rejections + wrong], [hits, hits + wrong]], np.int64)


def ignored_as_background(truth: np.ndarray) -> np.ndarray:
    """Set 255 to 0 in a truth uint8 [h, w], for protocols that score ignored pixels as background."""
    return np.where(truth == IGNORE_LABEL, np.uint8(0), truth)


def total(rows: Iterable[tuple[int, ArrayLike]], classes: Sequence[int]) -> dict[int, np.ndarray]:
    """Sum counts [2, 2] by class: class id -> int64 [2, 2], zeros for a class of `classes` without a row."""
    sums = {class_id: np.zeros((2, 2), np.int64) for class_id in classes}
    for class_id, row in rows:
        sums[class_id] += np.asarray(row, np.int64)
    return sums


def scores(totals: Mapping[int, np.ndarray]) -> Scores:
    """Compute the scores of summed counts, class id -> int64 [2, 2]. A class without an episode is in the mean, with 0.

    The reference implementations do the same: HSNet divides by max(union, 1), PFENet by union + 1e-10, which is the
    same number to ten digits.
    """
    background, foreground = (ratio(row) for row in np.sum([*totals.values()], axis=0))
    per_class = {class_id: ratio(table[1]) for class_id, table in totals.items()}
    return Scores(
        miou=math.fsum(per_class.values()) / len(per_class),
        fb_iou=(background + foreground) / 2,
        bg_iou=background,
        fg_iou=foreground,
        per_class=per_class,
    )


def ratio(row: np.ndarray) -> float:
    """Intersection over union of [intersection, union]; 0 if the union is empty."""
    intersection, union = row.tolist()
    return intersection / max(union, 1)
