"""A rank that is gone is named by those that waited for it."""

import os

import pytest
import torch

from fss.distributed.context import DistributedContext
from fss.distributed.heartbeat import HeartbeatBoard
from fss.errors import RunError
from tests.support.contexts import joined
from tests.support.ranks import on_ranks
from tests.support.stores import Together


def test_those_who_have_come_less_far_are_missing():
    store = Together()
    one, two, three = (HeartbeatBoard(store, rank, 3) for rank in range(3))
    for roll in (one, two, three, one, three):
        roll.sign()
    node = os.uname().nodename
    assert one.missing() == three.missing() == [f"rank 1 on node {node}"]
    assert two.missing() == []


def test_meeting_on_the_way_to_the_next_signature_accuses_nobody():
    store = Together()
    one, two = (HeartbeatBoard(store, rank, 2) for rank in range(2))
    for roll in (one, two):
        roll.sign()
    one.meet()
    one.write()
    assert one.missing() == two.missing() == []


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
    return "nobody was missed"


def test_the_rank_that_died_is_named():
    text, _ = on_ranks(2, left_alone)
    assert text.startswith(f"rank 1 on node {os.uname().nodename} did not come to where rank 0 waits")
    assert "goes on from what was saved" in text


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
        DistributedContext(promised=2, device="cpu", precision="float32", accumulate=1, timeout_minutes=2 / 60)
    except RunError as error:
        return str(error)
    return "came together"


@pytest.mark.parametrize("context", [2])
def test_ranks_that_never_come_are_not_waited_for(context):
    text, _ = on_ranks(context, not_all)
    assert text.startswith("the 2 ranks did not come together within 0.0333333 minutes")
