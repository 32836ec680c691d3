"""Partition of episodes over ranks, and their order: chosen such that an image is encoded about once.

Episodes and images form a graph: an episode needs its images. An order that finishes the images in use before it
takes others has few features in use at any moment, and so also at the places where it is split into one block a rank.
"""

import heapq
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from fss.data.episodes import Episode

ENCODING = 5  # predictions that take as long as one pass of the encoder: about QGNet's on a ResNet-50


def partition(episodes: Sequence[Episode], world_size: int) -> list[list[Episode]]:
    """Partition episodes into `world_size` blocks of about equal work, each in the order of evaluation.

    Two orders are tried, one over all episodes and one class by class, and the one with less work in its largest block
    is taken. If images are in few episodes (a large set), blocks share hardly any. If every image is in many (5000
    episodes over 350 images), blocks of one class must share images, and few classes on a rank cost least.
    """
    images = [sorted({episode.query, *episode.supports}) for episode in episodes]
    orders = [
        order_for_locality(images, groups)
        for groups in ([0] * len(episodes), [episode.class_id for episode in episodes])
    ]
    splits = [split_balanced([images[episode] for episode in order], world_size) for order in orders]
    (_, ends), order = min(zip(splits, orders, strict=True))
    return [[episodes[episode] for episode in order[start:stop]] for start, stop in pairwise(ends)]


def split_balanced(images: Sequence[Sequence[int]], world_size: int) -> tuple[int, list[int]]:
    """Split episodes in order into `world_size` blocks so that the largest block is as little work as possible.

    images: for each episode the distinct images it needs. Returns the work of the largest block and the world_size + 1
    ends of the blocks.
    """
    least, most = 0, sum(1 + ENCODING * len(needed) for needed in images)
    while least < most:  # the smallest bound under which the blocks are few enough lies between
        bound = (least + most) // 2
        if len(_ends(images, bound)) <= world_size + 1:
            most = bound
        else:
            least = bound + 1
    ends = _ends(images, most)
    return most, ends + [len(images)] * (world_size + 1 - len(ends))


def _ends(images: Sequence[Sequence[int]], bound: int) -> list[int]:
    """The ends of blocks, each filled with episodes until the next would be work over `bound`."""
    ends, done = [0], 0
    encoded: set[int] = set()
    for episode, needed in enumerate(images):
        more = 1 + ENCODING * sum(image not in encoded for image in needed)
        if done and done + more > bound:
            ends.append(episode)
            encoded, done = set(), 0
            more = 1 + ENCODING * len(needed)
        encoded.update(needed)
        done += more
    return [*ends, len(images)]


def order_for_locality(images: Sequence[Sequence[int]], groups: Sequence[int]) -> list[int]:
    """Order the episodes, group after group, such that few images are in use at any moment.

    images: for each episode the distinct images it needs. The next episode is that with the fewest new images minus
    those that it is the last to need; of equals, the one whose images came into use first. The time is proportional to
    the uses of images, times a logarithm.
    """
    users = defaultdict(list)  # image -> the episodes that need it
    for episode, needed in enumerate(images):
        for image in needed:
            users[image].append(episode)
    waiting = {image: len(them) for image, them in users.items()}  # image -> its episodes still to come
    balance = [sum(1 - (waiting[image] == 1) for image in needed) for needed in images]  # new images less last uses
    touched = [len(images)] * len(images)  # the step at which the first of an episode's images was taken up

    def rank(episode: int) -> tuple[int, int, int, int]:
        return groups[episode], balance[episode], touched[episode], episode

    heap = [rank(episode) for episode in range(len(images))]
    heapq.heapify(heap)
    order: list[int] = []
    done = [False] * len(images)
    while heap:
        entry = heapq.heappop(heap)
        episode = entry[-1]
        if done[episode] or entry != rank(episode):  # a newer entry of the same episode counts
            continue
        done[episode] = True
        order.append(episode)
        for image in images[episode]:
            new = waiting[image] == len(users[image])
            waiting[image] -= 1
            last = waiting[image] == 1
            for other in users[image] if new or last else ():
                if not done[other]:
                    balance[other] -= new + last
                    touched[other] = min(touched[other], len(order))
                    heapq.heappush(heap, rank(other))
    return order
