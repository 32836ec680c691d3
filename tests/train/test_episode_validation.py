"""Validation: which classes it keeps from training, that it is the same every time, and leaves no trace in a run."""

import random

import numpy as np
import pytest
import torch

from fss.data.episodes import EpisodeConfig, training_source
from fss.data.folds import Fold, fold_of
from fss.distributed.context import DistributedContext
from fss.errors import ConfigError
from fss.report.example_figures import draw_examples
from fss.train.validation.episode_validation import EpisodeValidation, ValidateConfig, held_out_classes
from shards.format import Manifest, ShardError
from shards.read import ShardSet
from tests.support.episode_toy import Colour
from tests.support.labelled import rectangles

EPISODES = EpisodeConfig(min_area=50)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> ShardSet:
    """12 images, three of each of four classes; fold 0 of the interleaved scheme has class 1 novel."""
    return rectangles(tmp_path_factory.mktemp("set") / "rectangles", [1, 2, 3, 4] * 3)


def validation(training: ShardSet, context: DistributedContext, **options) -> EpisodeValidation:
    fold = fold_of("interleaved", 0, training.manifest)
    return EpisodeValidation(ValidateConfig(episodes=6, **options), fold, training, EPISODES, size=33, context=context)


def fold(base: int) -> Fold:
    return Fold("list", 0, novel=(99,), base=tuple(range(1, base + 1)))


@pytest.mark.parametrize(
    ("base", "options", "expected"),
    [
        (15, {}, (3, 8, 13)),
        (15, {"classes": 1}, (8,)),
        (60, {}, tuple(range(3, 60, 5))),
        (3, {}, (2,)),
        (15, {"split": "novel"}, ()),
        (15, {"split": "none"}, ()),
    ],
)
def test_a_fifth_of_the_base_classes_is_held_out_evenly(base, options, expected):
    assert held_out_classes(ValidateConfig(**options), fold(base)) == expected


def test_something_must_be_left_to_learn():
    with pytest.raises(ConfigError, match=r"validate\.classes is 3 but fold 0 has 3 base classes"):
        held_out_classes(ValidateConfig(classes=3), fold(3))


def test_training_never_meets_a_class_that_validates(shards, context):
    found = validation(shards, context)
    source = training_source(
        shards.manifest, fold_of("interleaved", 0, shards.manifest), EPISODES, 0, held_out=found.classes
    )
    assert {episode.class_id for episode in found.episodes} == set(found.classes) == {3}
    assert {source.draw(number).class_id for number in range(60)} == {2, 4}


def test_on_novel_it_scores_the_classes_of_the_test(shards, context):
    assert validation(shards, context, split="novel").classes == (1,)


def test_it_scores_alike_every_time_and_draws_from_no_generator(shards, context):
    found, method = validation(shards, context), Colour()
    method.non_trainable.train()
    torch.manual_seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first = found(method)
    torch.rand(3)
    assert found(method) == first
    names = {"val/miou", "val/fb_iou", "val/iou/blue"}
    assert set(first) == names and first["val/iou/blue"] == first["val/miou"] and 0 < first["val/miou"] <= 1
    torch.manual_seed(1)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert before[0].equal(after[0]) and before[1:] == after[1:]
    assert method.non_trainable.training


def test_a_plainly_coloured_object_is_found(shards, context):
    """Only a mix-up of queries, masks or classes could lower the score: the colour identifies the class here."""
    assert validation(shards, context)(Colour())["val/miou"] > 0.7


def test_its_picture_is_drawn(shards, context, tmp_path):
    path = tmp_path / "validation" / "step_00000020.png"
    rows = draw_examples(validation(shards, context).examples(Colour()), path)
    assert [row["class"] for row in rows] == ["blue"] * 4
    assert all(row[column].shape[2] == 3 for row in rows for column in ("supports", "query", "truth", "prediction"))
    assert path.stat().st_size > 5000


def test_shards_that_mean_another_class_are_refused(shards, context, tmp_path):
    other = rectangles(tmp_path / "other", [1, 2, 3, 4] * 2)
    manifest = Manifest.load(other.folder)
    manifest.classes[3] = "violet"
    manifest.save(other.folder)
    with pytest.raises(ShardError, match="calls class 3 'violet', the training shards call it 'blue'"):
        validation(shards, context, shards=str(other.folder))


@pytest.mark.parametrize("options", [{"every": 0}, {"episodes": 0}, {"classes": 0}, {"seed": -1}])
def test_impossible_values_are_refused(options):
    (key,) = options
    with pytest.raises(ConfigError, match=f"validate.{key}"):
        ValidateConfig(**options)
