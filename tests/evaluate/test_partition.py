"""Episodes dealt to ranks: each once, in blocks of little work that share few images."""

from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np
import pytest

from fss.data.episodes import Episode
from fss.evaluate.partition import ENCODING, order_for_locality, partition, split_balanced


def drawn(episodes: int) -> list[Episode]:
    """Episodes of one shot, of 6 classes that share some of 300 images."""
    rng = np.random.default_rng(0)
    pools = [rng.choice(300, 80, replace=False) for _ in range(6)]
    found = []
    for number in range(episodes):
        class_id = int(rng.integers(6))
        query, support = rng.choice(pools[class_id], 2, replace=False).tolist()
        found.append(Episode(0, number, class_id, query, (support,)))
    return found


def images(episodes: Sequence[Episode]) -> int:
    """How many images the episodes show."""
    return len({image for episode in episodes for image in (episode.query, *episode.supports)})


@pytest.mark.parametrize("world_size", [1, 2, 4, 7])
def test_every_episode_is_dealt_once(world_size):
    episodes = drawn(40)
    blocks = partition(episodes, world_size)
    assert len(blocks) == world_size
    assert sorted((e.seed, e.number) for block in blocks for e in block) == [(e.seed, e.number) for e in episodes]


def test_more_ranks_than_episodes():
    assert sorted(map(len, partition(drawn(2), 5))) == [0, 0, 0, 1, 1]
    assert partition([], 3) == [[], [], []]


@pytest.mark.parametrize("world_size", [2, 3])
def test_no_other_cuts_leave_less_work_to_the_busiest_rank(world_size):
    rng = np.random.default_rng(0)
    images = [rng.choice(9, 2, replace=False).tolist() for _ in range(12)]

    def most(ends) -> int:
        return max(
            stop - start + ENCODING * len({i for need in images[start:stop] for i in need})
            for start, stop in pairwise(ends)
        )

    work, ends = split_balanced(images, world_size)
    assert most(ends) == work
    assert work == min(most((0, *inner, 12)) for inner in combinations(range(1, 12), world_size - 1))


def test_blocks_share_few_images():
    episodes = drawn(200)
    shared = sum(images(block) for block in partition(episodes, 4)) / images(episodes)
    as_drawn = sum(images(episodes[50 * rank : 50 * rank + 50]) for rank in range(4)) / images(episodes)
    assert shared <= 1.2 < 1.4 < as_drawn


def test_a_walk_finishes_with_an_image_before_it_takes_up_others():
    chains = [[0, 1], [10, 11], [1, 2], [11, 12], [2, 3], [12, 13]]
    order = order_for_locality(chains, [0] * len(chains))
    assert [chains[episode][0] // 10 for episode in order] in ([0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0])
