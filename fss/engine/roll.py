"""Who came how far: a roll that all ranks sign where they wait for each other, so that the missing can be named."""

import platform
from typing import Any


class Roll:
    """store: torch's key-value store of the job, which lives with rank 0; None where a rank is alone."""

    def __init__(self, store: Any, rank: int, world: int) -> None:
        self._store = store
        self._rank = rank
        self._world = world
        self._signed = 0

    def sign(self) -> None:
        """This rank has come to the next place where it waits for the others."""
        self._signed += 1
        if self._store is not None:
            self._store.set(f"roll/{self._rank}", f"{self._signed} {platform.node()}")

    def missing(self) -> list[str]:
        """The ranks that have come less far than this one, with their nodes."""
        try:
            entries = {rank: self._entry(rank) for rank in range(self._world)}
        except RuntimeError:
            return ["the node of rank 0"]
        return [f"rank {rank} on node {node}" for rank, (signed, node) in entries.items() if signed < self._signed]

    def _entry(self, rank: int) -> tuple[int, str]:
        key = f"roll/{rank}"
        if not self._store.check([key]):
            return 0, "unknown"
        signed, node = self._store.get(key).decode().split(" ", 1)
        return int(signed), node
