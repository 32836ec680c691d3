"""A cache of the features of images: an entry stays while there is room and a later episode needs it."""

import bisect
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from fss.data.episodes import Episode
from fss.methods.base import Features

AS_QUERY = "query"  # in place of a class: the features that an image needs only as the query


class FeatureCache:
    """Features by key, within a bound of bytes.

    access_times: key -> the ascending times at which it will be read. An entry is dropped after its last read; if room
    is needed, the entry that is read last is dropped first (Belady's rule, which is optimal).
    """

    def __init__(self, bound: int, access_times: dict[Hashable, list[int]]) -> None:
        self.bound = bound
        self.size = 0
        self._access_times = access_times
        self._entries: dict[Hashable, _Entry] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def get(self, key: Hashable, now: int) -> Features | None:
        """The features under `key` at time `now`; None if they are not cached."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        following = self._after(key, now)
        if following is None:
            self._drop(key)
        else:
            entry.next = following
        return entry.features

    def put(self, key: Hashable, features: Features, now: int) -> None:
        """Cache `features`, computed at time `now`, unless other entries are needed sooner."""
        following = self._after(key, now)
        size = sum(tensor.untyped_storage().nbytes() for tensor in features.values())
        if following is None or size > self.bound:
            return
        self._drop(key)
        self._entries[key] = _Entry(features, size, following)
        self.size += size
        while self.size > self.bound:
            self._drop(max(self._entries, key=lambda key: self._entries[key].next))

    def _drop(self, key: Hashable) -> None:
        if entry := self._entries.pop(key, None):
            self.size -= entry.size

    def _after(self, key: Hashable, now: int) -> int | None:
        times = self._access_times.get(key, ())
        place = bisect.bisect_right(times, now)
        return times[place] if place < len(times) else None


@dataclass
class _Entry:
    features: Features
    size: int
    next: int


def access_times(episodes: Sequence[Episode]) -> dict[Hashable, list[int]]:
    """The indices of the episodes that need an entry: image, (image, class) or (image, AS_QUERY) -> times.

    The features of an image are needed if it is the query, and the first time that it is a support of a class; from
    then on its description, (image, class), is enough. (image, AS_QUERY) are the features that only a query needs.
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
