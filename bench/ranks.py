"""New processes that are the ranks of a job, as a launcher would start them."""

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
POLL = 0.05  # seconds


def on_ranks(world_size: int, work: Callable[..., T], *args) -> T:
    """The result of `work(*args)` on rank 0 of `world_size` ranks, all of which run it. `work` must be importable.

    Raises RuntimeError if a rank fails before rank 0 has a result; the others are then killed.
    """
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
    try:
        while answer.empty():
            if failed := [rank for rank, process in enumerate(ranks) if process.exitcode]:
                raise RuntimeError(f"rank {failed[0]} ended with exit code {ranks[failed[0]].exitcode}")
            time.sleep(POLL)
        found = answer.get()
    except BaseException:
        for process in ranks:
            process.kill()
        raise
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
