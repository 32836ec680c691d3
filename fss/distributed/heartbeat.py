"""Who came how far: a roll of all ranks in the job's store, so that those that keep the others waiting can be named."""

import json
import platform
import threading
from dataclasses import astuple, dataclass
from typing import Any


@dataclass
class Entry:
    """How far one rank has come."""

    met: int = 0
    """Places where all ranks wait for each other that it has reached; ranks that wait together have the same."""
    moves: int = 0
    """Signs of progress of any kind."""
    writes: int = 0
    """Times that it wrote this down: a process that lives goes on writing where it does not go on working."""
    node: str = "unknown"
    place: str = "starting"
    """What it is doing, to complete 'it is ...'."""


class HeartbeatBoard:
    """store: torch's key-value store of the job, on rank 0's node and in its launcher, if it has one; None where a rank
    is alone.
    """

    def __init__(self, store: Any, rank: int, world_size: int) -> None:
        self._store = store
        self._keys = [f"roll/{other}" for other in range(world_size)]
        self._signed = 0
        self._writing = threading.Lock()  # the watch writes too, and what is newer must land later
        self.rank = rank
        self.mine = Entry(node=platform.node())
        self.entries: list[Entry] = []
        """Of all ranks, as they were last read; empty until then, and where a rank is alone."""
        self.write()

    @property
    def alone(self) -> bool:
        return self._store is None

    def move(self, place: str) -> None:
        """This rank has come further, and is `place` now."""
        self.mine.moves += 1
        self.mine.place = place

    def meet(self) -> None:
        """This rank has come to the next place where it waits for the others."""
        self.mine.met += 1
        self.mine.moves += 1

    def sign(self) -> None:
        """`meet`, and let the others know at once."""
        self.meet()
        self._signed = self.mine.met
        self.write()

    def write(self) -> None:
        """Put down how far this rank is."""
        if not self.alone:
            with self._writing:
                self.mine.writes += 1
                self._store.set(self._keys[self.rank], json.dumps(astuple(self.mine)))

    def read(self) -> None:
        """See how far the others are."""
        if not self.alone:
            self.entries = [Entry(*json.loads(text)) for text in self._store.multi_get(self._keys)]

    def name(self, rank: int) -> str:
        """A rank and its node."""
        entry = self.mine if rank == self.rank else self.entries[rank] if self.entries else Entry()
        return f"rank {rank} on node {entry.node}"

    def missing(self) -> list[str]:
        """The ranks that have not come to where this one last signed, with their nodes."""
        try:
            self.read()
        except RuntimeError:
            return ["the node of rank 0"]
        return [self.name(rank) for rank, entry in enumerate(self.entries) if entry.met < self._signed]
