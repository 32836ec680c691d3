"""A watchdog in every rank: it ends the process, with a message, if the job can make no more progress.

Our collectives have no time limit, since a rank may have to wait long for another that works: evaluations meet only at
their end. What counts is whether the ranks that are waited for still make progress. The watchdog of a rank that hangs
in its data, its device or a collective reports that itself. If a process cannot report anything (stopped, killed, cut
off), the watchdogs of the other ranks do.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fss.distributed.heartbeat import HeartbeatBoard

PERIOD = 10  # seconds between checks, at most
ABORTED = 2  # exit code, that of every error after which the same command may succeed
ABORT_STEP_SECONDS = 5  # that each action before the end may take
PACKAGE = str(Path(__file__).parents[1])
REMEDY = "run the same command again to resume; run.timeout_minutes is how long this may take"


class Watchdog:
    """The watchdog of one rank. timeout: seconds without progress after which the job is given up; inf for never.

    on_abort: called before the process ends. write_traces: called before that, if there are other ranks; it writes the
    last collectives into a folder, which the message names.
    """

    def __init__(self, board: HeartbeatBoard, timeout: float) -> None:
        self.on_abort: Callable[[], object] = lambda: None
        self.traces: Path | None = None
        self.write_traces: Callable[[Path], object] = lambda folder: None
        self._board = board
        self._timeout = timeout
        self._period = min(timeout / 30, PERIOD)
        self._last_change: dict[object, tuple[object, float]] = {}
        self._closed = threading.Event()
        self._launcher = os.getppid()
        # Two threads: a read from the store blocks while the network is down, and the other thread must notice that.
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._exchange, self._supervise)]

    def start(self) -> None:
        """Begin to exchange heartbeats and to check them."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop; waits a period at most."""
        self._closed.set()
        for thread in self._threads:
            thread.join(self._period)

    def stall_reason(self, now: float) -> str | None:
        """Return why the job can make no more progress, None while it can.

        To be called periodically; now: seconds of a monotonic clock.
        """
        board, heartbeats, own = self._board, self._board.heartbeats, self._board.own
        stuck = self._unchanged("own", own.progress_count, now) >= self._timeout
        quiet = [self._unchanged(("published", n), h.published, now) for n, h in enumerate(heartbeats)]
        still = [self._unchanged(("progress", n), h.progress_count, now) for n, h in enumerate(heartbeats)]
        silent = [rank for rank, seconds in enumerate(quiet) if seconds >= self._timeout]
        behind = [
            rank
            for rank, heartbeat in enumerate(heartbeats)
            if heartbeat.collectives_entered < own.collectives_entered and rank != board.rank
        ]
        hanging = [rank for rank in behind if still[rank] >= self._timeout]
        me, period = board.rank_name(board.rank), f"for {self._timeout:g} s"
        if board.rank in silent:  # this rank does not read back what it published itself
            return f"{me} has not reached {board.rank_name(0)} {period}: that node or the network in between is down"
        if silent:
            return f"{self._names(silent)} has sent no heartbeat {period}: dead, stopped, or cut off from the network"
        if any(seconds > 4 * self._period for seconds in quiet):
            return None  # this rank may have just fallen silent, and the others then are stuck because of it
        if stuck and hanging:
            activity = heartbeats[hanging[0]].activity
            return f"{me} waits for {self._names(hanging)}, which has made no progress {period}: it is {activity}"
        if stuck and not behind:
            return f"{me} has made no progress {period}: it is {own.activity} ({main_thread_position()})"
        return None  # the ranks that this one waits for make progress

    def _unchanged(self, key: object, value: object, now: float) -> float:
        """Seconds for which the value under `key` has been the same."""
        if key not in self._last_change or self._last_change[key][0] != value:
            self._last_change[key] = value, now
        return now - self._last_change[key][1]

    def _names(self, ranks: list[int]) -> str:
        more = f" (and {len(ranks) - 1} more)" if len(ranks) > 1 else ""
        return f"{self._board.rank_name(ranks[0])}{more}"

    def _exchange(self) -> None:
        try:
            while not self._closed.wait(self._period):
                self._board.publish()
                self._board.refresh()
        except RuntimeError:  # the store is gone; no heartbeat arrives any more, which the other thread notices
            pass

    def _supervise(self) -> None:
        awake, before = 0.0, time.monotonic()
        while not self._closed.wait(self._period):
            now = time.monotonic()
            awake += min(now - before, 2 * self._period)  # time in which this process was suspended does not count
            before = now
            reason = self.stall_reason(awake)
            if not self._board.single_process and os.getppid() != self._launcher:
                reason = f"the launcher of {self._board.rank_name(self._board.rank)} is gone"
            if reason:
                self._abort(reason)
                return

    def _abort(self, reason: str) -> None:
        """End the process, whose main thread may be blocked."""

        def report() -> None:
            where = f"; the last collectives of the ranks are in {traces}" if traces else ""
            print(f"error: {reason}; {REMEDY}{where}", file=sys.stderr, flush=True)

        traces = None if self._board.single_process else self.traces
        write = [lambda: self.write_traces(traces)] if traces else []
        for action in (report, *write, self.on_abort):  # each may fail or hang too: the file system may be the reason
            thread = threading.Thread(target=action, daemon=True)
            thread.start()
            thread.join(ABORT_STEP_SECONDS)
        os._exit(ABORTED)


def main_thread_position() -> str:
    """The functions of this package in which the main thread is, from the outermost to the innermost."""
    frame, calls = sys._current_frames().get(threading.main_thread().ident or 0), []
    while frame:
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE):
            calls.append(f"{Path(code.co_filename).stem}.{code.co_name}:{frame.f_lineno}")
        frame = frame.f_back
    return " > ".join(reversed(calls)) or "outside fss"
