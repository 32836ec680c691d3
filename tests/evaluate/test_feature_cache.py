"""What an evaluation keeps of images: what is needed soonest, within a bound."""

import torch

from fss.data.episodes import Episode
from fss.evaluate.feature_cache import AS_QUERY, FeatureCache, uses


def test_the_memory_keeps_what_is_needed_soonest():
    one = {"x": torch.zeros(256)}  # 1 KiB
    kept = FeatureCache(2048, {"a": [0, 9], "b": [1, 3], "c": [2, 4], "d": [5]})
    kept.put("a", one, 0)
    kept.put("b", one, 1)
    kept.put("c", one, 2)
    assert ("a" in kept, "b" in kept, "c" in kept) == (False, True, True)  # a is needed last
    assert kept.get("b", 3) is one and "b" not in kept  # and b never again
    kept.put("d", one, 5)
    assert kept.size == 1024


def test_uses_count_an_image_as_support_once_for_each_class():
    episodes = [Episode(0, 0, 1, 10, (20,)), Episode(0, 1, 1, 11, (20,)), Episode(0, 2, 2, 20, (10, 10))]
    assert uses(episodes) == {
        10: [0, 2],
        11: [1],
        20: [0, 2],
        (20, 1): [0, 1],
        (10, 2): [2],
        (10, AS_QUERY): [0],
        (11, AS_QUERY): [1],
        (20, AS_QUERY): [2],
    }
