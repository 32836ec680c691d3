"""What a watchdog concludes from the heartbeats, and that it ends a process which cannot end itself."""

import io
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from fss.distributed import watchdog
from fss.distributed.context import DistributedContext
from fss.distributed.heartbeat import HeartbeatBoard
from fss.distributed.watchdog import Watchdog
from tests.support.ended import Ended
from tests.support.ranks import on_ranks
from tests.support.stores import MemoryStore

LIMIT = 60.0
NODE = os.uname().nodename


class Job:
    """Several ranks as objects of one process, their watchdogs, and a clock."""

    def __init__(self, world_size: int) -> None:
        store = MemoryStore()
        self.boards = [
            HeartbeatBoard(store if world_size > 1 else None, rank, world_size) for rank in range(world_size)
        ]
        self.watchdogs = [Watchdog(board, LIMIT) for board in self.boards]
        self.now = 0.0

    def passes(self, seconds: float, *, silent: Sequence[int] = (), working: Sequence[int] = ()) -> list[str | None]:
        """Let time pass, with a check a second; returns the conclusion of every watchdog at its end."""
        for _ in range(int(seconds)):
            self.now += 1
            for rank in working:
                self.boards[rank].report_progress("working")
            for rank, board in enumerate(self.boards):
                if rank not in silent:
                    board.publish()
            for rank, board in enumerate(self.boards):
                if rank not in silent:  # a link that is cut carries nothing in either direction
                    board.refresh()
            reasons = [watchdog.stall_reason(self.now) for watchdog in self.watchdogs]
        return reasons


def test_ranks_that_make_progress_are_waited_for_without_limit():
    job = Job(3)
    job.passes(1)
    job.boards[0].announce_collective()
    assert job.passes(10 * LIMIT, working=(1, 2)) == [None] * 3


def test_a_rank_that_hangs_is_named_by_itself_and_by_those_that_wait():
    job = Job(3)
    job.boards[1].report_progress("waiting for the data of step 7")
    job.passes(1)
    job.boards[0].announce_collective()
    job.boards[2].announce_collective()
    assert job.passes(LIMIT - 1) == [None] * 3
    first, second, third = job.passes(2)
    where = "it is waiting for the data of step 7"
    assert first == (
        f"rank 0 on node {NODE} waits for rank 1 on node {NODE}, which has made no progress for 60 s: {where}"
    )
    assert second.startswith(f"rank 1 on node {NODE} has made no progress for 60 s: {where} (")
    assert third.startswith(f"rank 2 on node {NODE} waits for rank 1")


def test_a_silent_rank_is_named_even_by_those_that_make_progress():
    job = Job(3)
    job.passes(1)
    first, cut, third = job.passes(LIMIT + 1, silent=(1,), working=(0, 1, 2))
    reason = f"rank 1 on node {NODE} has sent no heartbeat for 60 s: dead, stopped, or cut off from the network"
    assert (first, third) == (reason, reason)
    assert cut.startswith(f"rank 1 on node {NODE} has not reached rank 0 on node {NODE} for 60 s")


def test_after_a_cut_link_inside_a_collective_no_waiting_rank_is_named():
    job = Job(2)
    job.passes(1)
    for board in job.boards:
        board.enter_collective()
    job.passes(10)  # each publishes once more after its last progress
    reasons = [job.passes(1, silent=(1,)) for _ in range(int(LIMIT) + 1)]
    first, second = zip(*reasons, strict=True)
    assert [text for text in (*first[:-2], *second[:-2]) if text] == []
    assert "rank 1 on node" in first[-1] and "has sent no heartbeat" in first[-1]
    assert "has not reached rank 0" in second[-1]


def test_many_that_are_silent_are_counted():
    job = Job(5)
    job.passes(1)
    assert "rank 2 on node" in (text := job.passes(LIMIT + 1, silent=(2, 3, 4))[0])
    assert "(and 2 more)" in text


def test_if_all_hang_in_the_same_place_each_reports_it():
    job = Job(2)
    job.passes(1)
    for board in job.boards:
        board.report_progress("in step 3")
        board.enter_collective()
    assert all("has made no progress for 60 s: it is in step 3" in text for text in job.passes(LIMIT + 1))


def test_a_single_process_has_a_watchdog_too():
    job = Job(1)
    assert job.passes(2 * LIMIT, working=(0,)) == [None]
    assert "has made no progress" in job.passes(LIMIT + 1)[0]


SECONDS = 2


def joined() -> DistributedContext:
    return DistributedContext(
        world_size=None, device="cpu", precision="float32", accumulate=1, timeout_minutes=SECONDS / 60
    )


def hanging(how: str, traces: Path) -> tuple[str, list[str]]:
    """Rank 1 never enters the collective in which rank 0 waits."""
    ended, calls = Ended(), []
    context = joined()
    context.on_abort(lambda: calls.append("failed"), traces)
    context.any_rank(False)
    if context.rank == 1:
        context.report_progress("waiting for the data of step 2")
        if how == "stops":  # what SIGSTOP or a cut link does: the process sends nothing any more
            context._watchdog.close()
            time.sleep(2 * SECONDS)
            return "", []
        return ended.wait(), calls
    threading.Thread(target=context.any_rank, args=(False,), daemon=True).start()
    return ended.wait(), calls


@pytest.mark.parametrize("how", ["hangs", "stops"])
def test_processes_that_cannot_continue_are_ended(how, tmp_path):
    (waiting, calls), (itself, _) = on_ranks(2, hanging, how, tmp_path / "collectives")
    if how == "hangs":
        assert f"error: rank 1 on node {NODE} has made no progress for 2 s: it is waiting for the data of" in itself
    else:
        assert f"error: rank 1 on node {NODE} has sent no heartbeat for 2 s" in waiting
    assert "run the same command again to resume" in waiting
    assert f"the last collectives of the ranks are in {tmp_path / 'collectives'}" in waiting
    entries = json.loads((tmp_path / "collectives" / "rank_0.json").read_text())["entries"]
    assert entries[-1]["profiling_name"] == "gloo:all_reduce" and entries[-1]["state"] != "completed"
    assert calls == ["failed"]


class Broken(io.StringIO):
    """stderr after its terminal has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(text)


class Full(io.StringIO):
    """A pipe that nobody reads."""

    def write(self, text: str) -> int:
        threading.Event().wait()


def speechless(stderr: io.StringIO) -> list[str]:
    watchdog.ABORT_STEP_SECONDS = 0.2
    ended, calls = Ended(), []
    context = joined()
    context.on_abort(lambda: calls.append("failed"))
    sys.stderr = stderr
    context.report_progress("in step 1")
    ended.wait()
    return calls


@pytest.mark.parametrize("stderr", [Broken, Full])
def test_the_process_ends_even_if_its_message_cannot_be_written(stderr):
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
    watchdog.time = SimpleNamespace(monotonic=lambda: time.monotonic() + gap)
    ended = Ended()
    with joined():
        for _ in range(3):
            time.sleep(SECONDS / 10)
            gap += 10 * SECONDS
        time.sleep(SECONDS / 10)
    return ended.exits


def test_time_in_which_the_process_was_suspended_does_not_count():
    assert on_ranks(1, suspended) == [[]]
