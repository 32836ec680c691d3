"""New processes that are the ranks of a job, as a launcher would start them."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def on_ranks(world_size: int, work: Callable[..., T], *args) -> T:
    """The result of `work(*args)` on rank 0 of `world_size` ranks, all of which run it. `work` must be importable."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    ranks = [
        context.Process(target=_rank, args=(rank, world_size, port, answer, work, args)) for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    found = answer.get()
    for process in ranks:
        process.join()
    return found


def _rank(rank: int, world_size: int, port: int, answer, work: Callable[..., T], args: tuple) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    values = (rank, rank, world_size, world_size, "127.0.0.1", port)
    os.environ.update(zip(names, map(str, values), strict=True))
    found = work(*args)
    if rank == 0:
        answer.put(found)
