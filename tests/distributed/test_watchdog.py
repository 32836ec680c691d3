"""What a watch makes of the roll, and that it ends a process which cannot end itself."""

import io
import os
import sys
import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from fss.distributed import watchdog as watch
from fss.distributed.context import DistributedContext
from fss.distributed.heartbeat import HeartbeatBoard
from fss.distributed.watchdog import GIVEN_UP, Watchdog
from tests.support.ranks import on_ranks
from tests.support.stores import Together

LIMIT = 60.0
NODE = os.uname().nodename


class Job:
    """ProcessGroupCollectives of one process, their watches, and a clock."""

    def __init__(self, context: int) -> None:
        store = Together()
        self.rolls = [HeartbeatBoard(store if context > 1 else None, rank, context) for rank in range(context)]
        self.watches = [Watchdog(roll, LIMIT) for roll in self.rolls]
        self.now = 0.0

    def passes(self, seconds: float, *, silent: Sequence[int] = (), working: Sequence[int] = ()) -> list[str | None]:
        """Time passes, with a look a second; every watch's verdict at its end."""
        for _ in range(int(seconds)):
            self.now += 1
            for rank in working:
                self.rolls[rank].move("working")
            for rank, roll in enumerate(self.rolls):
                if rank not in silent:
                    roll.write()
            for rank, roll in enumerate(self.rolls):
                if rank not in silent:  # a link that is cut carries nothing in either direction
                    roll.read()
            verdicts = [watch.verdict(self.now) for watch in self.watches]
        return verdicts


def test_whoever_works_is_waited_for_however_long():
    job = Job(3)
    job.passes(1)
    job.rolls[0].sign()
    assert job.passes(10 * LIMIT, working=(1, 2)) == [None] * 3


def test_a_rank_that_hangs_is_named_by_itself_and_by_those_that_wait():
    job = Job(3)
    job.rolls[1].move("waiting for the data of step 7")
    job.passes(1)
    job.rolls[0].sign()
    job.rolls[2].sign()
    assert job.passes(LIMIT - 1) == [None] * 3
    first, second, third = job.passes(2)
    where = "it is waiting for the data of step 7"
    assert first == (
        f"rank 0 on node {NODE} waits for rank 1 on node {NODE}, which has come no further for 60 s: {where}"
    )
    assert second.startswith(f"rank 1 on node {NODE} has come no further for 60 s: {where} (")
    assert third.startswith(f"rank 2 on node {NODE} waits for rank 1")


def test_a_rank_that_is_not_heard_of_is_named_even_by_those_that_work():
    job = Job(3)
    job.passes(1)
    first, cut, third = job.passes(LIMIT + 1, silent=(1,), working=(0, 1, 2))
    told = f"rank 1 on node {NODE} has not been heard of for 60 s: dead, stopped, or cut off from the network"
    assert (first, third) == (told, told)
    assert cut.startswith(f"rank 1 on node {NODE} has not reached rank 0 on node {NODE} for 60 s")


def test_a_link_that_is_cut_inside_a_collective_is_blamed_on_no_rank_that_waits():
    job = Job(2)
    job.passes(1)
    for roll in job.rolls:
        roll.meet()
    job.passes(10)  # the last word of each comes after its last step
    verdicts = [job.passes(1, silent=(1,)) for _ in range(int(LIMIT) + 1)]
    first, second = zip(*verdicts, strict=True)
    assert [text for text in (*first[:-2], *second[:-2]) if text] == []
    assert "rank 1 on node" in first[-1] and "has not been heard of" in first[-1]
    assert "has not reached rank 0" in second[-1]


def test_many_that_are_silent_are_counted():
    job = Job(5)
    job.passes(1)
    assert "rank 2 on node" in (text := job.passes(LIMIT + 1, silent=(2, 3, 4))[0])
    assert "(and 2 more)" in text


def test_where_all_stand_in_the_same_place_each_says_so():
    job = Job(2)
    job.passes(1)
    for roll in job.rolls:
        roll.move("in step 3")
        roll.meet()
    assert all("has come no further for 60 s: it is in step 3" in text for text in job.passes(LIMIT + 1))


def test_a_rank_that_is_alone_has_a_watch_too():
    job = Job(1)
    assert job.passes(2 * LIMIT, working=(0,)) == [None]
    assert "has come no further" in job.passes(LIMIT + 1)[0]


SECONDS = 2


class Ended:
    """In place of the end of this process: what it would have said, with which exit code."""

    def __init__(self, launcher: int | None = None) -> None:
        self.exits: list[int] = []
        self._over = threading.Event()
        self._said = sys.stderr = io.StringIO()
        watch.os = SimpleNamespace(_exit=self._end, getppid=lambda: launcher or os.getppid())

    def _end(self, code: int) -> None:
        self.exits.append(code)
        self._over.set()

    def wait(self) -> str:
        assert self._over.wait(20 * SECONDS), "nothing ended this process"
        assert self.exits == [GIVEN_UP]
        return self._said.getvalue()


def joined() -> DistributedContext:
    return DistributedContext(
        promised=None, device="cpu", precision="float32", accumulate=1, timeout_minutes=SECONDS / 60
    )


def hanging(how: str) -> tuple[str, list[str]]:
    """Rank 1 never comes to where rank 0 waits."""
    ended, wills = Ended(), []
    context = joined()
    context.on_abort(lambda: wills.append("failed"))
    context.any_rank(False)
    if context.rank == 1:
        context.report_progress("waiting for the data of step 2")
        if how == "stops":  # what SIGSTOP or a cut link does: the process says nothing any more
            context._watch.close()
            time.sleep(2 * SECONDS)
            return "", []
        return ended.wait(), wills
    threading.Thread(target=context.any_rank, args=(False,), daemon=True).start()
    return ended.wait(), wills


@pytest.mark.parametrize("how", ["hangs", "stops"])
def test_processes_that_cannot_go_on_are_ended(how):
    (waiting, wills), (itself, _) = on_ranks(2, hanging, how)
    if how == "hangs":
        assert f"error: rank 1 on node {NODE} has come no further for 2 s: it is waiting for the data of" in itself
    else:
        assert f"error: rank 1 on node {NODE} has not been heard of for 2 s" in waiting
    assert "the same command goes on" in waiting
    assert wills == ["failed"]


class Broken(io.StringIO):
    """What is left of stderr where the terminal is gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(text)


class Full(io.StringIO):
    """A pipe that nobody empties."""

    def write(self, text: str) -> int:
        threading.Event().wait()


def speechless(stderr: io.StringIO) -> list[str]:
    watch.LAST_SECONDS = 0.2
    ended, wills = Ended(), []
    context = joined()
    context.on_abort(lambda: wills.append("failed"))
    sys.stderr = stderr
    context.report_progress("in step 1")
    ended.wait()
    return wills


@pytest.mark.parametrize("stderr", [Broken, Full])
def test_nobody_need_hear_why(stderr):
    assert on_ranks(1, speechless, stderr()) == [["failed"]]


def meeting_late() -> list[int]:
    """Rank 1 works on for longer than the limit while rank 0 waits for it, as at the end of an evaluation."""
    with joined() as context:
        if context.rank == 1:
            for episode in range(15):
                context.report_progress(f"in episode {episode}")
                time.sleep(SECONDS / 5)
        return context.gather_objects(context.rank)


def test_a_rank_that_works_is_waited_for_beyond_the_limit():
    assert on_ranks(2, meeting_late) == [[0, 1]] * 2


def orphaned() -> str:
    """The process that started this one dies, as a launcher might."""
    context = joined()
    ended = Ended(launcher=1)
    context.report_progress("in step 1")
    return ended.wait()


def test_ranks_do_not_outlive_their_launcher():
    assert all(f"the launcher of rank {rank} on node" in text for rank, text in enumerate(on_ranks(2, orphaned)))


def suspended() -> list[int]:
    """The whole process stops a few times for longer than the limit."""
    gap = 0.0
    watch.time = SimpleNamespace(monotonic=lambda: time.monotonic() + gap)
    ended = Ended()
    with joined():
        for _ in range(3):
            time.sleep(SECONDS / 10)
            gap += 10 * SECONDS
        time.sleep(SECONDS / 10)
    return ended.exits


def test_time_in_which_the_process_was_suspended_does_not_count():
    assert on_ranks(1, suspended) == [[]]
