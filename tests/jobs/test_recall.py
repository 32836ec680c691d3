"""Recall of region maps against loops over pixels, on any number of ranks; and refusals."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from fss.data.episodes import Episode, Policy, evaluation_episodes
from fss.data.transforms import fit_image, read_labelled
from fss.errors import ConfigError
from fss.evaluate.scoring import Scoring
from fss.jobs.recall import THRESHOLDS, Recall, above, at_input, measure_recall, recall_table, write_recall
from fss.methods.base import Features
from shards.read import ShardSet
from tests.support.contexts import joined
from tests.support.episode_toy import Colour
from tests.support.labelled import rectangles
from tests.support.ranks import on_ranks

SCORING = Scoring(size=33)
LABELS = [1, 2, 3, 4] * 5


class Near(Colour):
    """A toy with a coarse map: how near each pixel's colour is to the supports'."""

    def maps(self, query: Features, supports: list[Features]) -> dict[str, Tensor]:
        colour = torch.stack([support["class"] for support in supports]).mean(0)
        distance = (query["colour"] - colour).square().sum(1)[0, ::8, ::8]  # [5, 5]
        return {"near": 1 - distance / distance.max()}


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    return rectangles(tmp_path_factory.mktemp("recall") / "set", LABELS).folder


def drawn(shards: ShardSet, shots: int = 1) -> list[Episode]:
    return evaluation_episodes(shards.manifest, (2, 3), Policy(draw="round_robin", min_area=0), shots, 6, (0, 1))


def measured(folder: Path, episodes: list[Episode]) -> Recall:
    torch.set_num_threads(1)
    context = joined()
    try:
        return measure_recall(Near(), ShardSet(folder), episodes, SCORING, context)
    finally:
        context.close()


def bilinear(found: Tensor, y: int, x: int) -> float:
    """The map [5, 5] at pixel (y, x) of 33 x 33, whose corners lie on each other: 8 pixels a cell."""
    top, left = min(y // 8, 3), min(x // 8, 3)
    down, right = y / 8 - top, x / 8 - left
    corners = found[top : top + 2, left : left + 2].tolist()
    upper, lower = (row[0] * (1 - right) + row[1] * right for row in corners)
    return upper * (1 - down) + lower * down


def by_hand(shards: ShardSet, episodes: list[Episode]) -> list[tuple[int, dict[str, list[int]]]]:
    """Object pixels of each episode, and how many of them each map covers at each threshold: loops over pixels."""
    method = Near()
    method.non_trainable.eval()
    rows = []
    for episode in episodes:
        described = []
        for support in episode.supports:
            image, mask = read_labelled(shards, support, episode.class_id, "own")
            fitted, frame = fit_image(image, 33, "exact")
            described.append(
                method.encode_support(method.encode(fitted[None]), torch.from_numpy(frame.mask(mask))[None])
            )
        image, mask = read_labelled(shards, episode.query, episode.class_id, "own")
        fitted, frame = fit_image(image, 33, "exact")
        (found,) = method.maps(method.encode(fitted[None]), described).values()
        truth, pixels = frame.mask(mask), 0
        hits = {"near": [0] * 9, "1 - near": [0] * 9}
        for y in range(33):
            for x in range(33):
                if truth[y, x] != 1:
                    continue
                pixels += 1
                value = bilinear(found, y, x)
                for place, threshold in enumerate(THRESHOLDS):
                    hits["near"][place] += value > threshold
                    hits["1 - near"][place] += 1 - value > threshold
        rows.append((pixels, hits))
    return rows


@pytest.mark.parametrize("shots", [1, 3])
def test_recall_equals_loops_over_pixels(packed, shots):
    shards = ShardSet(packed)
    episodes = drawn(shards, shots)
    recall = measured(packed, episodes)
    rows = by_hand(shards, episodes)
    assert recall.episodes == len(episodes) == 12 and recall.lost == 0
    assert set(recall.of_episodes) == {"near", "1 - near"}
    for name in recall.of_episodes:
        for place in range(9):
            mean = sum(hits[name][place] / pixels for pixels, hits in rows) / len(rows)
            pooled = sum(hits[name][place] for _, hits in rows) / sum(pixels for pixels, _ in rows)
            # a value within rounding of a threshold may fall on either side of it, in one pixel of an object
            assert recall.of_episodes[name][place] == pytest.approx(mean, abs=2e-3)
            assert recall.of_pixels[name][place] == pytest.approx(pooled, abs=2e-3)
    assert 0 < recall.of_episodes["1 - near"][1] < recall.of_episodes["near"][1]


def test_two_ranks_measure_what_one_does(packed):
    episodes = drawn(ShardSet(packed))
    assert on_ranks(2, measured, packed, episodes) == [measured(packed, episodes)] * 2


def test_a_map_between_pixels_is_read_with_corners_on_corners():
    found = torch.rand(5, 5)
    square = at_input(found, 33)
    for y, x in ((0, 0), (32, 32), (8, 16), (3, 29), (17, 32)):
        assert square[y, x] == pytest.approx(bilinear(found, y, x), abs=1e-6)


def test_a_pixel_at_the_threshold_is_not_above_it():
    values = np.array([0.25, 0.5, 0.5, 0.75])
    assert above(values, (0.0, 0.25, 0.5, 0.75)) == [4, 3, 1, 0]


def test_objects_too_small_for_the_input_are_left_out_and_counted(packed, context):
    shards = ShardSet(packed)
    corner = [Episode(0, n, 1, query, (0,)) for n, query in enumerate((1, 4))]  # class 1: 3 x 3 px in 1, large in 4

    class Tiny(Near):
        def encode(self, image: Tensor) -> Features:
            return {"colour": image}

        def maps(self, query, supports):
            return {"near": torch.ones(2, 2)}

    recall = measure_recall(Tiny(), shards, corner, Scoring(size=9), context)  # the first pixel shows (3, 3) of 48 x 64
    assert (recall.episodes, recall.lost) == (1, 1)
    assert recall.of_episodes["near"] == (1.0,) * 9 and recall.of_episodes["1 - near"] == (0.0,) * 9
    with pytest.raises(ConfigError, match="no object of the 1 episodes has a pixel at 9 pixels"):
        measure_recall(Tiny(), shards, corner[:1], Scoring(size=9), context)


def test_a_method_without_maps_is_refused_in_a_sentence(packed, context):
    shards = ShardSet(packed)
    with pytest.raises(ConfigError, match=r"Colour has no maps as it is configured.*qgnet"):
        measure_recall(Colour(), shards, drawn(shards), SCORING, context)


RECALL = Recall(
    thresholds=THRESHOLDS,
    of_episodes={"prior region map": tuple(1 - t for t in THRESHOLDS)},
    of_pixels={"prior region map": (0.5,) * 9},
    episodes=1000,
    lost=2,
)


def test_the_paper_stands_below_at_its_own_thresholds_only():
    table = recall_table(RECALL)
    assert [row[0] for row in table.rows] == ["prior region map", "guided region map, paper", "prior region map, paper"]
    assert table.rows[0][1:3] == ("90.0", "80.0") and table.rows[2][-1] == "6.6"
    assert "1,000 episodes (2 more lost" in table.note and "Table VII" in table.note
    others = replace(RECALL, thresholds=(0.5,), of_episodes={"m": (0.25,)})
    assert recall_table(others).rows == [("m", "25.0")]


def test_what_is_written_can_be_read(tmp_path):
    path = write_recall(tmp_path / "out", RECALL, {"scheme": "pascal"})
    assert "| prior region map | 90.0 |" in path.read_text() and "scheme: pascal" in path.read_text()
    record = json.loads((tmp_path / "out" / "recall.json").read_text())
    assert record["recall"]["of_pixels"]["prior region map"][0] == 0.5 and record["scheme"] == "pascal"
    assert cv2.imread(str(tmp_path / "out" / "recall.png")).std() > 5
