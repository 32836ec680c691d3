"""A rank that is gone is named by those that waited for it."""

import os

import torch

from fss.distributed.context import DistributedContext
from fss.distributed.heartbeat import HeartbeatBoard
from fss.errors import RunError
from tests.support.contexts import joined
from tests.support.ranks import on_ranks
from tests.support.stores import MemoryStore


def test_ranks_that_did_not_enter_the_announced_collective_are_missing():
    store = MemoryStore()
    one, two, three = (HeartbeatBoard(store, rank, 3) for rank in range(3))
    for board in (one, two, three, one, three):
        board.announce_collective()
    node = os.uname().nodename
    assert one.missing_ranks() == three.missing_ranks() == [f"rank 1 on node {node}"]
    assert two.missing_ranks() == []


def test_a_collective_that_was_entered_but_not_announced_makes_no_rank_missing():
    store = MemoryStore()
    one, two = (HeartbeatBoard(store, rank, 2) for rank in range(2))
    for board in (one, two):
        board.announce_collective()
    one.enter_collective()
    one.publish()
    assert one.missing_ranks() == two.missing_ranks() == []


def left_alone() -> str:
    try:
        with joined() as context:
            context.any_rank(False)
            if context.rank == 1:
                torch.distributed.destroy_process_group()  # its sockets close, as the kernel does for the dead
                return "gone"
            context.any_rank(False)
    except RunError as error:
        return str(error)
    return "no rank was missed"


def test_the_rank_that_died_is_named():
    text, _ = on_ranks(2, left_alone)
    assert text.startswith(f"rank 1 on node {os.uname().nodename} did not reach the collective in which rank 0 waits")
    assert "to resume from what was saved" in text


def own_failure() -> str:
    try:
        with joined():
            raise RuntimeError("out of memory")
    except RuntimeError as error:
        return str(error)


def test_a_failure_of_its_own_is_left_as_it_is():
    assert on_ranks(2, own_failure) == ["out of memory"] * 2


def not_all() -> str:
    """Rank 1 never joins."""
    if os.environ["RANK"] == "1":
        return "absent"
    try:
        DistributedContext(world_size=2, device="cpu", precision="float32", accumulate=1, timeout_minutes=2 / 60)
    except RunError as error:
        return str(error)
    return "connected"


def test_ranks_that_never_connect_are_not_waited_for():
    text, _ = on_ranks(2, not_all)
    assert text.startswith("the 2 ranks did not connect within 0.0333333 minutes")
