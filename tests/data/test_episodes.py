"""Episodes: pure functions of seed and number, drawn by their policy."""

import pickle
import random
from collections import Counter
from typing import get_args

import numpy as np
import pytest

from fss.data.episodes import Episode, EpisodeConfig, EpisodeSource, Policy, evaluation_episodes, training_source
from fss.data.folds import Fold
from fss.datasets.base import Draw
from fss.errors import ConfigError
from shards.format import Manifest, ShardError
from tests.support.manifests import AREA, manifest

DRAWS = get_args(Draw)
# Class 1 is in nearly every image, class 3 in few; class 9 belongs to no source.
HELD = [
    {1} | ({2} if i % 3 == 0 else set()) | ({3} if i % 5 == 0 else set()) | ({9} if i % 7 == 0 else set())
    for i in range(30)
]
HELD[1] = {9}


def source(draw: Draw, shots: int = 2, seed: int = 0, held=HELD, classes=(1, 2, 3), **options) -> EpisodeSource:
    return EpisodeSource(manifest(held), classes, Policy(draw=draw, **options), shots, seed)


def drawn(source: EpisodeSource, count: int) -> list[Episode]:
    return [source.draw(number) for number in range(count)]


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("repeat", [False, True])
def test_supports_hold_the_class_and_are_not_the_query(draw, repeat):
    repeated = 0
    for number, episode in enumerate(drawn(source(draw, shots=4, repeat_supports=repeat), 300)):
        assert (episode.seed, episode.number) == (0, number)
        assert all(episode.class_id in HELD[index] for index in (episode.query, *episode.supports))
        assert episode.query not in episode.supports
        assert len(episode.supports) == 4
        repeated += len(set(episode.supports)) < 4
    assert (repeated > 0) == repeat


@pytest.mark.parametrize("draw", DRAWS)
def test_an_episode_is_a_function_of_seed_and_number(draw):
    there = {number: source(draw).draw(number) for number in reversed(range(100))}  # each from a source of its own
    sent = pickle.loads(pickle.dumps(source(draw)))
    assert drawn(source(draw), 100) == [there[number] for number in range(100)] == drawn(sent, 100)
    assert drawn(source(draw).reseeded(1), 100) == drawn(source(draw, seed=1), 100)
    other = [(e.class_id, e.query, e.supports) for e in drawn(source(draw, seed=1), 100)]
    assert other != [(e.class_id, e.query, e.supports) for e in there.values()][::-1]
    source(draw).draw(1 << 50)  # numbers have no end


@pytest.mark.parametrize("draw", DRAWS)
def test_an_episode_does_not_depend_on_how_the_set_was_packed(draw):
    one = manifest(HELD)
    other = Manifest(name="made", classes=one.classes, samples=random.Random(0).sample(one.samples, len(HELD)))
    policy = Policy(draw=draw)

    def named(packed: Manifest) -> list:
        episodes = drawn(EpisodeSource(packed, (3, 1, 2), policy, 2, 0), 60)
        return [(e.class_id, *(packed.samples[i].key for i in (e.query, *e.supports))) for e in episodes]

    assert named(one) == named(other)


def test_class_then_image():
    episodes = drawn(source("class_image"), 3000)
    classes = Counter(e.class_id for e in episodes)
    assert all(abs(classes[class_id] - 1000) < 100 for class_id in (1, 2, 3))  # 4 standard deviations
    queries = Counter(e.query for e in episodes if e.class_id == 3)
    assert len(queries) == 6 and all(abs(n - classes[3] / 6) < 50 for n in queries.values())


def test_image_then_class():
    images = source("image_class")
    assert len(images) == 29 and 1 not in images.images  # image 1 shows no class of ours
    passes = [[images.draw(29 * turn + i).query for i in range(29)] for turn in range(100)]
    assert all(sorted(queries) == images.images.tolist() for queries in passes)
    assert len(set(map(tuple, passes))) == 100
    classes = Counter(images.draw(number).class_id for number in range(2900) if images.draw(number).query == 15)
    assert set(classes) == {1, 2, 3} and all(20 < n < 50 for n in classes.values())  # of 100


def test_round_robin():
    episodes = drawn(source("round_robin"), 600)
    assert [e.class_id for e in episodes] == [1, 2, 3] * 200
    assert all(10 < n < 65 for n in Counter(e.query for e in episodes if e.class_id == 3).values())  # 200 over 6


def test_every_image_in_the_order_of_keys():
    images = source("every_image")
    episodes = drawn(images, 2 * len(images))
    assert [e.query for e in episodes] == [i for i in range(30) if i != 1] * 2
    assert {e.class_id for e in drawn(images, 29 * 60) if e.query == 0} == {1, 2, 3}


def test_every_pair_in_the_order_of_keys():
    pairs = [(image, class_id) for image, held in enumerate(HELD) for class_id in sorted(held - {9})]
    every = source("every_pair")
    assert len(every) == len(pairs)
    assert [(e.query, e.class_id) for e in drawn(every, 2 * len(pairs))] == pairs * 2


def test_supports_are_uniform():
    episodes = drawn(source("every_pair", shots=2, held=[{1}] * 5, classes=(1,)), 5000)
    supports = Counter((e.query, s) for e in episodes for s in e.supports)
    assert len(supports) == 20 and all(abs(n - 500) < 80 for n in supports.values())  # 5 deviations
    places = Counter(e.supports for e in episodes if e.query == 2)
    assert len(places) == 12 and all(40 < n < 130 for n in places.values())  # ordered pairs of the four others


def test_small_objects_do_not_count():
    held = [{1: AREA, 2: 99}, {1: 100, 2: 100}, {1: 101}, {2: 4000}, {1: 99}]
    every = source("every_pair", shots=1, held=held, classes=(1, 2), min_area=100)
    assert every.images.tolist() == [0, 1, 2, 3]
    assert {(e.query, e.class_id) for e in drawn(every, 20)} == {(0, 1), (1, 1), (1, 2), (2, 1), (3, 2)}
    assert {s for e in drawn(every, 200) for s in e.supports if e.class_id == 2} == {1, 3}


FOLD = Fold("list", 0, novel=(9,), base=(1, 2, 3))


@pytest.mark.parametrize(
    "policy, held_out, images",
    [
        ("background", (), [i for i in range(30) if i != 1]),
        ("drop", (), [i for i in range(30) if 9 not in HELD[i]]),
        ("background", (3,), [i for i in range(30) if i != 1]),
        ("drop", (3,), [i for i in range(30) if not {9, 3} & HELD[i]]),
    ],
)
def test_images_with_novel_classes_in_training(policy, held_out, images):
    config = EpisodeConfig(novel_in_training=policy)
    training = training_source(manifest(HELD), FOLD, config, seed=0, held_out=held_out)
    assert training.images.tolist() == images
    episodes = drawn(training, 500)
    assert {e.class_id for e in episodes} == {1, 2, 3} - set(held_out)
    assert {i for e in episodes for i in (e.query, *e.supports)} == set(images)


def test_training_on_some_images_of_each_class():
    config = EpisodeConfig(images_per_class=8, draw="every_pair")
    some = training_source(manifest(HELD), FOLD, config, seed=0)
    pairs = {(e.query, e.class_id) for e in drawn(some, len(some))}
    assert Counter(class_id for _, class_id in pairs) == {1: 8, 2: 8, 3: 6}  # class 3 has no more
    used = {(i, e.class_id) for e in drawn(some, 500) for i in e.supports}
    assert used == pairs
    other = training_source(manifest(HELD), FOLD, config, seed=1)
    assert {(e.query, e.class_id) for e in drawn(other, len(other))} != pairs


@pytest.mark.parametrize(
    "shots, options, message",
    [
        (6, {}, r"6-shot episodes need 7 images a class .* in set made class 3 has 6 of its 6 images: lower"),
        (12, {}, r"need 13 .*class 2 has 10 of its 10 images, class 3 has 6 of its 6 images"),
        (1, {"min_area": AREA + 1}, "need 2 .* min_area = 5001 pixels .*class 1 has 0 of its 29 images"),
        (6, {"repeat_supports": True}, None),
    ],
)
def test_too_few_images_are_an_error_at_once(shots, options, message):
    if message is None:
        assert len(source("class_image", shots=shots, **options).draw(0).supports) == shots
        return
    with pytest.raises(ShardError, match=message):
        source("class_image", shots=shots, **options)


def test_classes_that_dropping_leaves_short():
    config = EpisodeConfig(novel_in_training="drop", shots=5)
    message = (
        r"none of another class, as novel_in_training drop requires; .* class 3 has 5 of its 6 images: .* novel_in_"
    )
    with pytest.raises(ShardError, match=message):
        training_source(manifest(HELD), FOLD, config, seed=0)


def test_many_short_classes_are_counted():
    with pytest.raises(ShardError, match=r"class 4 has 1 of its 1 images, 3 more classes fall short"):
        source("class_image", held=[{i} for i in range(8)], classes=range(8))


def test_no_class_left():
    with pytest.raises(ShardError, match="no class of set made is left"):
        training_source(manifest(HELD), FOLD, EpisodeConfig(), seed=0, held_out=(1, 2, 3))


def test_evaluation_draws_each_seed_alike():
    policy = Policy(draw="every_image")
    episodes = evaluation_episodes(manifest(HELD), (1, 2), policy, 1, 40, seeds=(3, 5))
    assert [(e.seed, e.number) for e in episodes] == [(seed, number) for seed in (3, 5) for number in range(40)]
    alone = EpisodeSource(manifest(HELD), (1, 2), policy, 1, seed=5)
    assert episodes[40:] == drawn(alone, 40)
    assert len(evaluation_episodes(manifest(HELD), (1, 2), policy, 1, 40, (0,), passes=1)) == 29
    assert len(evaluation_episodes(manifest(HELD), (1, 2), policy, 1, 40, (0,), passes=2)) == 40


def test_a_source_of_one_class_and_two_images():
    pair = source("image_class", shots=1, held=[{1}, {1}], classes=(1,))
    assert {(e.query, e.supports) for e in drawn(pair, 20)} == {(0, (1,)), (1, (0,))}
    assert all(isinstance(value, int) for value in (pair.draw(0).class_id, pair.draw(0).query, *pair.draw(0).supports))


@pytest.mark.parametrize("wrong", [{"fold": -1}, {"shots": 0}, {"min_area": -1}, {"images_per_class": 1}])
def test_options_out_of_bounds(wrong):
    with pytest.raises(ConfigError, match=f"episodes.{next(iter(wrong))} is"):
        EpisodeConfig(**wrong)


def test_a_large_set_keeps_its_classes_apart():
    rng = np.random.default_rng(0)
    held = [set((rng.choice(80, rng.integers(0, 6), replace=False) + 1).tolist()) for _ in range(3000)]
    novel = range(1, 81, 4)
    every = source("every_pair", held=held, classes=novel)
    for episode in drawn(every, len(every)):
        assert all(episode.class_id in held[i] for i in (episode.query, *episode.supports))
