"""Nobody waits for ever: a watch in every rank that ends the process where the job cannot go on, and says why.

Collectives of ours have no time limit, since a rank may have to wait long for one that works: evaluations meet
only at their end. What counts is whether the ranks waited for still come further. A rank that hangs in its data, its
device or a collective is told by its own watch; one that cannot tell (stopped, killed, cut off) by those of the others.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fss.distributed.heartbeat import HeartbeatBoard

PERIOD = 10  # seconds between looks, at most
GIVEN_UP = 2  # exit code, that of every error which the same command may mend
LAST_SECONDS = 5  # for each of the last words
OURS = str(Path(__file__).parents[1])
REMEDY = "the same command goes on from what was saved; run.timeout_minutes is how long this may take"


class Watchdog:
    """Over one rank. limit: seconds without a sign of progress that are too long.

    will: called before the process ends.
    """

    def __init__(self, roll: HeartbeatBoard, limit: float) -> None:
        self.will: Callable[[], object] = lambda: None
        self._roll = roll
        self._limit = limit
        self._period = min(limit / 30, PERIOD)
        self._stamps: dict[object, tuple[object, float]] = {}
        self._over = threading.Event()
        self._launcher = os.getppid()
        # Two threads: what asks the store gets no answer over a cut link, and must not keep the other from noticing.
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._exchange, self._judge)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(self._period)

    def verdict(self, now: float) -> str | None:
        """Why the job cannot go on, None while it can. To be asked again and again; now: seconds on any clock."""
        roll, entries = self._roll, self._roll.entries
        stuck = self._unchanged("mine", roll.mine.moves, now) >= self._limit
        quiet = [self._unchanged(("writes", n), e.writes, now) for n, e in enumerate(entries)]
        still = [self._unchanged(("moves", n), e.moves, now) for n, e in enumerate(entries)]
        silent = [rank for rank, seconds in enumerate(quiet) if seconds >= self._limit]
        behind = [rank for rank, entry in enumerate(entries) if entry.met < roll.mine.met and rank != roll.rank]
        hanging = [rank for rank in behind if still[rank] >= self._limit]
        me, long = roll.name(roll.rank), f"for {self._limit:g} s"
        if roll.rank in silent:  # what it wrote itself does not come back
            return f"{me} has not reached {roll.name(0)} {long}: that node or the network in between is down"
        if silent:
            return f"{self._names(silent)} has not been heard of {long}: dead, stopped, or cut off from the network"
        if any(seconds > 4 * self._period for seconds in quiet):
            return None  # it may be silent from now on, and then that is what the others are stuck in
        if stuck and hanging:
            where = entries[hanging[0]].place
            return f"{me} waits for {self._names(hanging)}, which has come no further {long}: it is {where}"
        if stuck and not behind:
            return f"{me} has come no further {long}: it is {roll.mine.place} ({position()})"
        return None  # those that this rank waits for are working

    def _unchanged(self, what: object, value: object, now: float) -> float:
        """For how long `what` has had this value."""
        if what not in self._stamps or self._stamps[what][0] != value:
            self._stamps[what] = value, now
        return now - self._stamps[what][1]

    def _names(self, ranks: list[int]) -> str:
        more = f" (and {len(ranks) - 1} more)" if len(ranks) > 1 else ""
        return f"{self._roll.name(ranks[0])}{more}"

    def _exchange(self) -> None:
        try:
            while not self._over.wait(self._period):
                self._roll.write()
                self._roll.read()
        except RuntimeError:  # the store is gone; from here on nothing new is heard, which the other thread notices
            pass

    def _judge(self) -> None:
        awake, before = 0.0, time.monotonic()
        while not self._over.wait(self._period):
            now = time.monotonic()
            awake += min(now - before, 2 * self._period)  # time in which this process was suspended blames nobody
            before = now
            reason = self.verdict(awake)
            if not self._roll.alone and os.getppid() != self._launcher:
                reason = f"the launcher of {self._roll.name(self._roll.rank)} is gone"
            if reason:
                self._give_up(reason)
                return

    def _give_up(self, reason: str) -> None:
        """End a process whose main thread cannot be reached."""

        def say() -> None:
            print(f"error: {reason}; {REMEDY}", file=sys.stderr, flush=True)

        for last in (say, self.will):  # each may fail, or hang itself: the file system may be the reason
            thread = threading.Thread(target=last, daemon=True)
            thread.start()
            thread.join(LAST_SECONDS)
        os._exit(GIVEN_UP)


def position() -> str:
    """Where in this package the main thread is, from the outermost function to the innermost."""
    frame, places = sys._current_frames()[threading.main_thread().ident], []
    while frame:
        code = frame.f_code
        if code.co_filename.startswith(OURS):
            places.append(f"{Path(code.co_filename).stem}.{code.co_name}:{frame.f_lineno}")
        frame = frame.f_back
    return " > ".join(reversed(places)) or "outside fss"
