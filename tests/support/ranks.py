"""Real ranks for tests: n processes joined by gloo over loopback."""

import importlib
import multiprocessing
import os
import pickle
import queue
import signal
import socket
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache


def free_port() -> int:
    """A TCP port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def on_ranks(world_size: int, function: Callable, *args, timeout: float = 120, killed: tuple[int, ...] = ()) -> list:
    """Run `function(*args)` in `world_size` new processes with RANK and WORLD_SIZE set; returns their results by rank.

    `function` must be importable. An exception on a rank fails the test with that rank's traceback. killed: ranks that
    are to die of SIGKILL; their result is None.
    """
    job = _server().submit(forked, world_size, function, args, timeout, killed)
    return [pickle.loads(value) for value in job.result()]


@cache
def _server() -> ProcessPoolExecutor:
    """A process that forks ranks: each by itself would import torch, and what stands on it, for seconds."""
    return ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), initializer=importlib.import_module, initargs=("fss.jobs.fit",)
    )


def forked(
    world_size: int, function: Callable, args: tuple, timeout: float, killed: tuple[int, ...] = ()
) -> list[bytes]:
    """The same with ranks that begin as copies of the calling process, and what they return as pickles."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    port = free_port()
    ranks = [
        context.Process(target=_rank, args=(rank, world_size, port, function, args, results), daemon=True)
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    found = {rank: pickle.dumps(None) for rank in killed}
    try:
        for _ in range(world_size - len(killed)):
            rank, value, error = results.get(timeout=timeout)
            assert error is None, f"rank {rank}:\n{error}"
            found[rank] = value
        for process in ranks:
            process.join(timeout)
        died = tuple(rank for rank, process in enumerate(ranks) if process.exitcode == -signal.SIGKILL)
        assert died == killed, f"ranks {died} died of SIGKILL"
    except queue.Empty:
        raise AssertionError(f"only ranks {sorted(found)} of {world_size} returned within {timeout} s") from None
    finally:
        for process in ranks:
            process.kill()
    return [found[rank] for rank in range(world_size)]


def _rank(rank: int, world_size: int, port: int, function: Callable, args: tuple, results) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    import torch

    torch.set_num_threads(1)
    try:
        results.put((rank, pickle.dumps(function(*args)), None))  # as bytes: no memory is shared
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
