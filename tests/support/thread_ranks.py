"""Several ranks as threads of one process: `Collectives` with real waiting, without a process group."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor


class _Table:
    """Where ranks lay down what they send, and pick up what the others did."""

    def __init__(self, world_size: int):
        self.barrier = threading.Barrier(world_size)
        self.slots: list = [None] * world_size

    def swap(self, rank: int, value):
        self.slots[rank] = value
        self.barrier.wait(timeout=60)
        everything = list(self.slots)
        self.barrier.wait(timeout=60)
        return everything


class ThreadCollectives:
    """`fss.collectives.Collectives` for one thread."""

    def __init__(self, rank: int, world_size: int, table: _Table, ranks_per_node: int | None = None):
        self.rank, self.world_size, self.table = rank, world_size, table
        self.ranks_per_node = ranks_per_node or world_size

    def all_gather(self, x: Tensor) -> Tensor:
        return torch.cat(self.table.swap(self.rank, x.detach().clone()))

    def start_all_gather(self, x: Tensor) -> Callable[[], Tensor]:
        return partial(self.all_gather, x)

    def all_to_all(self, x: Tensor, send: list[int], receive: list[int]) -> Tensor:
        assert sum(send) == len(x)
        parts = [rows[self.rank] for rows in self.table.swap(self.rank, x.detach().clone().split(send))]
        assert [len(part) for part in parts] == receive
        return torch.cat(parts)

    def start_all_to_all(self, x: Tensor, send: list[int], receive: list[int]) -> Callable[[], Tensor]:
        return partial(self.all_to_all, x, send, receive)

    def all_reduce(self, x: Tensor) -> Tensor:
        return torch.stack(self.table.swap(self.rank, x.detach().clone())).sum(0)

    def all_gather_coalesced(self, tensors: list[Tensor]) -> list[Tensor]:
        return [self.all_gather(x) for x in tensors]

    def all_reduce_coalesced(self, tensors: list[Tensor]) -> list[Tensor]:
        return [self.all_reduce(x) for x in tensors]

    def mean_(self, tensors: list[Tensor]) -> None:
        everyone = self.table.swap(self.rank, [t.detach().clone() for t in tensors])
        for tensor, values in zip(tensors, zip(*everyone, strict=True), strict=True):
            tensor.data.copy_(torch.stack(values).mean(0))

    def broadcast_(self, tensors: list[Tensor]) -> None:
        everyone = self.table.swap(self.rank, [t.detach().clone() for t in tensors])
        for tensor, value in zip(tensors, everyone[0], strict=True):
            tensor.data.copy_(value)


def run_ranks(world_size: int, work: Callable[[ThreadCollectives], object], ranks_per_node: int | None = None) -> list:
    """`work(collectives)` on every rank at the same time; their results in rank order. The first error is raised."""
    table = _Table(world_size)
    with ThreadPoolExecutor(world_size) as pool:
        ranks = [ThreadCollectives(rank, world_size, table, ranks_per_node) for rank in range(world_size)]
        jobs = [pool.submit(_guarded, work, collectives) for collectives in ranks]
        errors = [job.exception() for job in jobs]
    for error in sorted((e for e in errors if e), key=lambda e: isinstance(e, threading.BrokenBarrierError)):
        raise error
    return [job.result() for job in jobs]


def _guarded(work: Callable[[ThreadCollectives], object], collectives: ThreadCollectives):
    try:
        return work(collectives)
    except BaseException:
        collectives.table.barrier.abort()
        raise
