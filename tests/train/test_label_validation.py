"""Validation of a base learner: which images are kept for it, its counts by hand, equal on any number of ranks."""

import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fss.distributed.context import DistributedContext
from fss.errors import ConfigError
from fss.report.example_figures import draw_examples
from fss.train.validation.label_validation import (
    LabelValidateConfig,
    LabelValidation,
    intersections_and_unions,
    kept_for_validation,
    validation_images,
)
from shards.format import ShardError
from shards.read import ShardSet
from tests.support.contexts import joined
from tests.support.labelled import COLOURS, rectangles
from tests.support.manifests import manifest
from tests.support.ranks import on_ranks

CLASSES = {2: "green", 4: "yellow"}
STD = torch.tensor([0.229, 0.224, 0.225])
MEAN = torch.tensor([0.485, 0.456, 0.406])


@dataclass
class ByColour:
    """Segments green and yellow by nearness of the colour; where an image is darker than both it is background."""

    trainable: nn.Module
    non_trainable: nn.Module

    def segment(self, image: Tensor) -> Tensor:
        assert image.shape == (1, 3, 33, 33)
        wanted = torch.tensor([(80, 80, 80), COLOURS[2], COLOURS[4]]) / 255  # [3 labels, 3]
        wanted = (wanted - MEAN) / STD
        return -(image - wanted[:, :, None, None]).square().sum(1)[None]  # [1, 3, 33, 33]


def by_colour() -> ByColour:
    return ByColour(nn.Module(), nn.Module())


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> ShardSet:
    return rectangles(tmp_path_factory.mktemp("set") / "rectangles", [1, 2, 3, 4] * 3)


def validation(shards: ShardSet, context: DistributedContext, images=range(12), classes=CLASSES) -> LabelValidation:
    return LabelValidation(shards, list(images), classes, shards.manifest, size=33, context=context)


def test_intersections_and_unions_pixel_by_pixel():
    rng = np.random.default_rng(0)
    prediction = rng.integers(0, 4, (20, 30)).astype(np.uint8)
    labels = rng.choice([0, 1, 2, 255], (20, 30)).astype(np.uint8)
    expected = np.zeros((2, 4), int)
    for p, t in zip(prediction.ravel(), labels.ravel(), strict=True):
        if t != 255:
            for label in range(4):
                expected[0, label] += p == t == label
                expected[1, label] += label in (p, t)
    np.testing.assert_array_equal(intersections_and_unions(prediction, labels, 3), expected)


def test_a_share_of_the_images_is_kept_by_key_alone():
    large = manifest([{1: 10}] * 2000)
    kept = kept_for_validation(large, 0.1)
    assert 150 < kept.sum() < 250
    few = manifest([{1: 10}] * 50)
    assert (kept_for_validation(few, 0.1) == kept[:50]).all()
    assert not kept_for_validation(large, 0).any()
    for sample in large.samples:
        sample.crop_of = sample.key[:-1]
    whole = kept_for_validation(large, 0.1).reshape(-1, 10)
    assert (whole.all(1) | ~whole.any(1)).all(), "crops of a photograph stay together"


def test_a_set_of_its_own_leaves_all_images_to_training(shards):
    config = LabelValidateConfig(shards=str(shards.folder))
    own, images = validation_images(config, shards, None)
    assert own is not shards and len(images) == 12
    some = LabelValidateConfig(shards=str(shards.folder), images=4)
    assert validation_images(some, shards, None)[1].tolist() == [0, 3, 6, 9]
    with pytest.raises(ConfigError, match="keeps none of the 12 images"):
        validation_images(LabelValidateConfig(fraction=1e-9), shards, None)
    with pytest.raises(ConfigError, match=r"validate\.fraction is 1"):
        LabelValidateConfig(fraction=1)


def test_the_score_is_that_of_the_pixels(shards, context):
    found = validation(shards, context)
    method = by_colour()
    scores = found(method)
    totals = np.zeros((2, 3), int)
    for index in range(12):
        image, labels = found.read(index)
        totals += intersections_and_unions(found.predict(method, image), labels, 2)
    green, yellow = totals[0, 1:] / totals[1, 1:]
    assert scores == pytest.approx({"val/miou": (green + yellow) / 2, "val/iou/green": green, "val/iou/yellow": yellow})
    assert scores["val/miou"] > 0.7, "colour tells the classes here"


def test_a_class_that_no_image_shows_is_not_in_the_mean(shards, context):
    images = [i for i in range(12) if 4 not in shards.manifest.samples[i].classes]
    scores = validation(shards, context, images)(by_colour())
    assert scores.keys() == {"val/miou", "val/iou/green"} and scores["val/miou"] == scores["val/iou/green"]
    with pytest.raises(ShardError, match="none of the 0 validation images"):
        validation(shards, context, [])


def _score(folder: Path) -> dict[str, float]:
    context = joined()
    try:
        return validation(ShardSet(folder), context)(by_colour())
    finally:
        context.close()


def test_two_ranks_find_what_one_does(shards, context):
    alone = validation(shards, context)(by_colour())
    assert on_ranks(2, _score, shards.folder) == [alone, alone]


def test_an_image_that_cannot_be_read_ends_it_on_every_rank(shards, context, monkeypatch):
    found = validation(shards, context)
    monkeypatch.setattr(ShardSet, "read", lambda self, index: {"json": b""})
    with pytest.raises(ShardError, match=re.escape(f"{shards.keys[0]}: ")):
        found(by_colour())


def test_sets_must_mean_the_same_by_a_class(shards, context):
    other = SimpleNamespace(**vars(shards.manifest) | {"classes": {**shards.manifest.classes, 4: "gold"}})
    with pytest.raises(ShardError, match="calls class 4 'yellow', the training shards call it 'gold'"):
        LabelValidation(shards, [0, 1], CLASSES, other, size=33, context=context)


def test_its_picture_is_drawn(shards, context, tmp_path):
    path = tmp_path / "validation" / "step_00000020.png"
    rows = draw_examples(validation(shards, context).examples(by_colour()), path)
    assert [list(row) for row in rows] == [["image", "truth", "prediction"]] * len(rows)
    assert all(row["truth"].shape == row["image"].shape for row in rows)
    assert path.stat().st_size > 10_000
