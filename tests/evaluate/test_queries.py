"""What a method computes of queries alone: once an image, whatever else the image is needed for."""

from collections import Counter

import numpy as np
import pytest

from fss.data.episodes import Episode, Policy, evaluation_episodes
from fss.evaluate.measure import measure, predictor_for
from fss.evaluate.scoring import Scoring
from fss.methods.gfsam import NO_POINT
from shards.read import ShardSet
from shards.sources import Source
from shards.write import pack
from tests.support.manifests import Listed
from tests.support.tiny_gfsam import SIZE, tiny

IMAGES, CLASSES, EPISODES = 300, 6, 1000
SCORING = Scoring(size=SIZE, resize="squash", resolution=SIZE)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> ShardSet:
    """300 images, each of two classes."""
    folder = tmp_path_factory.mktemp("packed") / "made"
    items = [
        Listed(f"s{i:03d}", f"s{i:03d}", (1 + i % CLASSES, 1 + (i + 1 + i // CLASSES % 5) % CLASSES))
        for i in range(IMAGES)
    ]
    classes = {i: f"class {i}" for i in range(1, CLASSES + 1)}
    pack(Source(name="made", classes=classes, items=items), folder, samples_per_shard=100)
    return ShardSet(folder)


@pytest.fixture(scope="module")
def episodes(shards) -> list[Episode]:
    policy = Policy(draw="class_image", min_area=1)
    return evaluation_episodes(shards.manifest, tuple(range(1, CLASSES + 1)), policy, 1, EPISODES, (0,))


def test_both_encoders_see_an_image_once(shards, episodes, context):
    method = tiny()
    results = measure(predictor_for(method, SCORING, context), shards, episodes, SCORING, context)
    images = {image for episode in episodes for image in (episode.query, *episode.supports)}
    queries = {episode.query for episode in episodes}
    assert len(results) == EPISODES and len(images) > 0.95 * IMAGES
    assert method.non_trainable["dino"].calls == len(images) == sum(result.encoded for result in results)
    assert method.non_trainable["sam"].calls == len(queries)
    support_only = images - queries
    assert support_only or len(queries) == IMAGES


def test_memory_and_readers_change_no_count(shards, episodes, context):
    some = episodes[:60]
    expected = measure(predictor_for(tiny(), SCORING, context), shards, some, SCORING, context)
    assert len({result.counts for result in expected}) > 30
    small = tiny()
    found = measure(predictor_for(small, SCORING, context), shards, some, SCORING, context, cache=0, readers=0)
    assert found == expected
    assert small.non_trainable["sam"].calls == len(some) > len({episode.query for episode in some})


def test_flags_come_with_the_result(shards, episodes, context, monkeypatch):
    method = tiny()
    expected = Counter()
    predict = method.predict

    def counted(query, supports):
        prediction = predict(query, supports)
        expected.update(prediction.flags)
        return prediction

    monkeypatch.setattr(method, "predict", counted)
    method.non_trainable["dino"].forward = lambda image, real=method.non_trainable["dino"].forward: real(image).round()
    results = measure(predictor_for(method, SCORING, context), shards, episodes[:200], SCORING, context)
    assert Counter(flag for result in results for flag in result.flags) == expected
    assert expected[NO_POINT] == sum(
        not np.array(result.counts)[1, 0] for result in results if NO_POINT in result.flags
    )
