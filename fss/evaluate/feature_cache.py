"""What an evaluation computes of images: once each, kept while there is room and a use ahead."""

import bisect
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from fss.data.episodes import Episode
from fss.methods.base import Features

AS_QUERY = "query"  # in the place of a class: what an image needs where it is the query


class FeatureCache:
    """Features by key within a bound of bytes.

    uses: key -> the times, ascending, at which it will be asked for. What is not asked for again is dropped at once;
    when room is needed, what is asked for last goes first (Belady's rule: no other keeps more of what is needed).
    """

    def __init__(self, bound: int, uses: dict[Hashable, list[int]]) -> None:
        self.bound = bound
        self.size = 0
        self._uses = uses
        self._kept: dict[Hashable, _Entry] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def get(self, key: Hashable, now: int) -> Features | None:
        """What was kept under `key`, if it still is, at time `now`."""
        entry = self._kept.get(key)
        if entry is None:
            return None
        entry.next = self._after(key, now)
        if entry.next is None:
            self._drop(key)
        return entry.features

    def put(self, key: Hashable, features: Features, now: int) -> None:
        """Keep `features`, computed at time `now`, unless others are needed sooner."""
        following = self._after(key, now)
        size = sum(tensor.untyped_storage().nbytes() for tensor in features.values())
        if following is None or size > self.bound:
            return
        self._drop(key)
        self._kept[key] = _Entry(features, size, following)
        self.size += size
        while self.size > self.bound:
            self._drop(max(self._kept, key=lambda key: self._kept[key].next))

    def _drop(self, key: Hashable) -> None:
        if entry := self._kept.pop(key, None):
            self.size -= entry.size

    def _after(self, key: Hashable, now: int) -> int | None:
        times = self._uses.get(key, ())
        place = bisect.bisect_right(times, now)
        return times[place] if place < len(times) else None


@dataclass
class _Entry:
    features: Features
    size: int
    next: int | None


def access_times(episodes: Sequence[Episode]) -> dict[Hashable, list[int]]:
    """When what is needed, in numbers of these episodes: image, (image, class) or (image, AS_QUERY) -> times.

    The features of an image are needed where it is the query, and where it is a support of a class for the first time;
    from then on its description, (image, class), stands for it. What a query needs besides is (image, AS_QUERY).
    """
    times: dict[Hashable, list[int]] = defaultdict(list)
    for now, episode in enumerate(episodes):
        for image in set(episode.supports):
            description = (image, episode.class_id)
            if description not in times:
                times[image].append(now)
            times[description].append(now)
        if times[episode.query][-1:] != [now]:
            times[episode.query].append(now)
        times[episode.query, AS_QUERY].append(now)
    return dict(times)
