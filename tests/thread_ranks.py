"""Several ranks as threads of one process: the collectives of `Peers` with real waiting, without a process group."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


class _Table:
    """Where ranks lay down what they send, and pick up what the others did."""

    def __init__(self, world: int):
        self.barrier = threading.Barrier(world)
        self.slots: list = [None] * world

    def swap(self, rank: int, value):
        self.slots[rank] = value
        self.barrier.wait(timeout=60)
        everything = list(self.slots)
        self.barrier.wait(timeout=60)
        return everything


class ThreadPeers:
    """`fss.methods.base.Peers` for one thread."""

    def __init__(self, rank: int, world: int, table: _Table):
        self.rank, self.world, self.table = rank, world, table

    def gather(self, x: Tensor) -> Tensor:
        return torch.cat(self.table.swap(self.rank, x.detach().clone()))

    def exchange(self, x: Tensor, send: list[int], receive: list[int]) -> Tensor:
        assert sum(send) == len(x)
        parts = [rows[self.rank] for rows in self.table.swap(self.rank, x.detach().clone().split(send))]
        assert [len(part) for part in parts] == receive
        return torch.cat(parts)

    def sum(self, x: Tensor) -> Tensor:
        return torch.stack(self.table.swap(self.rank, x.detach().clone())).sum(0)

    def mean_(self, tensors: list[Tensor]) -> None:
        everyone = self.table.swap(self.rank, [t.detach().clone() for t in tensors])
        for tensor, values in zip(tensors, zip(*everyone, strict=True), strict=True):
            tensor.data.copy_(torch.stack(values).mean(0))

    def broadcast_(self, tensors: list[Tensor]) -> None:
        everyone = self.table.swap(self.rank, [t.detach().clone() for t in tensors])
        for tensor, value in zip(tensors, everyone[0], strict=True):
            tensor.data.copy_(value)


def run_ranks(world: int, work: Callable[[ThreadPeers], object]) -> list:
    """`work(peers)` on every rank at the same time; their results in rank order. The first error is raised."""
    table = _Table(world)
    with ThreadPoolExecutor(world) as pool:
        jobs = [pool.submit(_guarded, work, ThreadPeers(rank, world, table)) for rank in range(world)]
        errors = [job.exception() for job in jobs]
    for error in sorted((e for e in errors if e), key=lambda e: isinstance(e, threading.BrokenBarrierError)):
        raise error
    return [job.result() for job in jobs]


def _guarded(work: Callable[[ThreadPeers], object], peers: ThreadPeers):
    try:
        return work(peers)
    except BaseException:
        peers.table.barrier.abort()
        raise
