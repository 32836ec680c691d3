"""Counts and scores against loops over pixels and over episodes."""

import numpy as np
import pytest

from fss.evaluate.metrics import counts, ignored_as_background, scores, total


def plain_counts(prediction: np.ndarray, truth: np.ndarray) -> list[list[int]]:
    table = [[0, 0], [0, 0]]
    for p, t in zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True):
        if t == 255:
            continue
        for label in (0, 1):
            table[label][0] += p == label and t == label
            table[label][1] += p == label or t == label
    return table


def maps(seed: int, shape=(13, 17)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2, shape, dtype=np.uint8), rng.choice(np.array([0, 1, 255], np.uint8), shape)


@pytest.mark.parametrize("seed", range(4))
def test_counts_pixel_by_pixel(seed):
    prediction, truth = maps(seed)
    assert counts(prediction, truth).tolist() == plain_counts(prediction, truth)


@pytest.mark.parametrize(("p", "t"), [(0, 0), (0, 1), (1, 0), (1, 1), (1, 255)])
def test_counts_of_maps_with_one_label(p, t):
    prediction, truth = np.full((5, 4), p, np.uint8), np.full((5, 4), t, np.uint8)
    assert counts(prediction, truth).tolist() == plain_counts(prediction, truth)


def test_a_large_map_does_not_overflow():
    ones = np.ones((5000, 5000), np.uint8)
    assert counts(ones, ones).tolist() == [[0, 0], [25_000_000, 25_000_000]]


def test_ignored_pixels_may_count_as_background():
    assert ignored_as_background(np.array([[0, 1, 255]], np.uint8)).tolist() == [[0, 1, 0]]


def test_scores_by_hand():
    rows = [
        (3, [[5, 8], [2, 5]]),
        (7, [[1, 4], [3, 6]]),
        (3, [[4, 4], [0, 0]]),
    ]
    found = scores(total(rows, classes=(3, 7)))
    assert found.per_class == {3: 2 / 5, 7: 3 / 6}
    assert found.miou == pytest.approx((2 / 5 + 3 / 6) / 2)
    assert (found.bg_iou, found.fg_iou) == (10 / 16, 5 / 11)
    assert found.fb_iou == pytest.approx((10 / 16 + 5 / 11) / 2)


def test_a_class_without_episodes_counts_as_0():
    found = scores(total([(3, [[5, 8], [2, 4]])], classes=(3, 9)))
    assert found.per_class == {3: 0.5, 9: 0}
    assert found.miou == 0.25


def test_the_order_of_the_episodes_changes_nothing():
    rows = [(seed % 3, counts(*maps(seed))) for seed in range(30)]
    assert scores(total(rows, range(3))) == scores(total(reversed(rows), range(3)))
