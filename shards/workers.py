"""Work divided among processes, with results in order."""

import math
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2

from shards.format import ShardError

_AHEAD = 16  # results of a process that may wait for their reader; bounds memory
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def cores() -> int:
    """Return the number of cores that this process may use; a batch system or a container may limit it."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min(bound, cpu_quota())))


def cpu_quota(groups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float:
    """Return the time of a CPU that the control groups of this process allow it, in cores; infinite without a limit.

    groups: where the control groups are mounted. membership: the file that lists those of the process.
    """
    quota = math.inf
    for line in membership.read_text().splitlines() if membership.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = groups / "cpu" if controllers else groups  # version 1, version 2
        folder = root / path.lstrip("/")  # in a container, this may be the path outside, and root its own group
        for group in (folder, *(parent for parent in folder.parents if parent.is_relative_to(root))):
            with suppress(OSError, ValueError):  # no such file, or "max"
                if controllers:
                    limit, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
                else:
                    limit, period = map(int, (group / "cpu.max").read_text().split())
                if limit > 0:
                    quota = min(quota, limit / period)
    return quota


@contextmanager
def ordered_map(function: Callable, jobs: Sequence, processes: int) -> Iterator[Iterator]:
    """Yield an iterator over ``function(job)`` in the order of `jobs`, computed ahead by `processes` processes.

    Raises ShardError if a worker process is killed.
    """
    if processes == 1 or not jobs:
        yield map(function, jobs)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process that has threads may hang
    pool = ProcessPoolExecutor(processes, context, initializer=_start_worker)
    try:
        with _environment(_ONE_THREAD):  # read when a worker starts, which it may do at any job
            yield _in_order(pool, function, jobs, ahead=processes * _AHEAD)
    except BrokenProcessPool:
        raise ShardError(
            "a packing process was killed, perhaps for memory: run the same command again with fewer --processes; "
            "finished shards stay"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the processes started inside, and restore those of this process."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _in_order(pool: ProcessPoolExecutor, function: Callable, jobs: Sequence, ahead: int) -> Iterator:
    waiting: deque[Future] = deque()
    for job in jobs:
        waiting.append(pool.submit(function, job))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _start_worker() -> None:
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    parent = multiprocessing.parent_process()
    assert parent is not None  # this function runs in workers alone

    def follow_parent() -> None:  # a killed parent cannot stop its workers
        parent.join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()
