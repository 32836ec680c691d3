"""The feature cache keeps what is needed soonest, within a bound of bytes."""

import torch

from fss.data.episodes import Episode
from fss.evaluate.feature_cache import AS_QUERY, FeatureCache, access_times


def test_the_cache_keeps_what_is_needed_soonest():
    one = {"x": torch.zeros(256)}  # 1 KiB
    cache = FeatureCache(2048, {"a": [0, 9], "b": [1, 3], "c": [2, 4], "d": [5]})
    cache.put("a", one, 0)
    cache.put("b", one, 1)
    cache.put("c", one, 2)
    assert ("a" in cache, "b" in cache, "c" in cache) == (False, True, True)  # a is needed last
    assert cache.get("b", 3) is one and "b" not in cache  # and b never again
    cache.put("d", one, 5)
    assert cache.size == 1024


def test_access_times_count_an_image_as_support_once_for_each_class():
    episodes = [Episode(0, 0, 1, 10, (20,)), Episode(0, 1, 1, 11, (20,)), Episode(0, 2, 2, 20, (10, 10))]
    assert access_times(episodes) == {
        10: [0, 2],
        11: [1],
        20: [0, 2],
        (20, 1): [0, 1],
        (10, 2): [2],
        (10, AS_QUERY): [0],
        (11, AS_QUERY): [1],
        (20, AS_QUERY): [2],
    }
