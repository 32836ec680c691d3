"""Heartbeats: each rank publishes its progress in the job's key-value store, so that a late rank can be named."""

import json
import platform
import threading
from dataclasses import astuple, dataclass
from typing import Protocol


class Store(Protocol):
    """The part of `torch.distributed.Store` that heartbeats use."""

    def set(self, key: str, value: str, /) -> None:
        """Set a value."""

    def multi_get(self, keys: list[str], /) -> list[bytes]:
        """Get several values; wait for those that nobody has set yet."""
        ...


@dataclass
class Heartbeat:
    """The progress of one rank."""

    collectives_entered: int = 0
    """Collectives that this rank has entered; ranks that wait for each other have the same number."""
    progress_count: int = 0
    """Signs of progress of any kind."""
    published: int = 0
    """Times that this record was published. It grows while the process lives, even if its work does not advance."""
    node: str = "unknown"
    activity: str = "starting"
    """What the rank does at present, to complete 'it is ...'."""


class HeartbeatBoard:
    """The heartbeats of all ranks, as seen by one of them.

    store: torch's key-value store of the job, which lives on the node of rank 0; None in a job of a single process.
    """

    def __init__(self, store: Store | None, rank: int, world_size: int) -> None:
        self._store = store
        self._keys = [f"heartbeat/{other}" for other in range(world_size)]
        self._announced = 0
        self._publishing = threading.Lock()  # the watchdog publishes too, and the newer record must be set later
        self.rank = rank
        self.own = Heartbeat(node=platform.node())
        self.heartbeats: list[Heartbeat] = []
        """Of all ranks, as last read; empty before the first `refresh` and in a job of a single process."""
        self.publish()

    @property
    def single_process(self) -> bool:
        """True if there are no other ranks."""
        return self._store is None

    def report_progress(self, activity: str) -> None:
        """Count a sign of progress of this rank, which now is `activity`."""
        self.own.progress_count += 1
        self.own.activity = activity

    def enter_collective(self) -> None:
        """Count a collective that this rank is about to enter."""
        self.own.collectives_entered += 1
        self.own.progress_count += 1

    def announce_collective(self) -> None:
        """Count a collective that this rank is about to enter, and publish it at once."""
        self.enter_collective()
        self._announced = self.own.collectives_entered
        self.publish()

    def publish(self) -> None:
        """Set this rank's record in the store."""
        if self._store is not None:
            with self._publishing:
                self.own.published += 1
                self._store.set(self._keys[self.rank], json.dumps(astuple(self.own)))

    def refresh(self) -> None:
        """Read the records of all ranks. Raises RuntimeError (torch's DistError) if the store is gone."""
        if self._store is not None:
            self.heartbeats = [Heartbeat(*json.loads(text)) for text in self._store.multi_get(self._keys)]

    def rank_name(self, rank: int) -> str:
        """A rank and its node, for messages."""
        heartbeat = self.own if rank == self.rank else self.heartbeats[rank] if self.heartbeats else Heartbeat()
        return f"rank {rank} on node {heartbeat.node}"

    def missing_ranks(self) -> list[str]:
        """The names of the ranks that have not entered the collective that this rank announced last."""
        try:
            self.refresh()
        except RuntimeError:
            return ["the node of rank 0"]
        late = [rank for rank, other in enumerate(self.heartbeats) if other.collectives_entered < self._announced]
        return [self.rank_name(rank) for rank in late]
