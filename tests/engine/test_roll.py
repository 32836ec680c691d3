"""A rank that hangs or dies is named by those that wait for it, within the time that was set."""

import os
import time

import pytest
import torch

from fss.engine.dist import World
from fss.errors import RunError
from tests.ranks import on_ranks

SECONDS = 3


def waited(how: str) -> tuple[str, float]:
    world = World(promised=2, device="cpu", precision="float32", accumulate=1, timeout_minutes=SECONDS / 60)
    world.agree(False)
    began = time.monotonic()
    try:
        with world.naming_the_missing():
            if world.rank == 1 and how == "hangs":
                time.sleep(2 * SECONDS)
                return "slept", 0
            if world.rank == 1:
                torch.distributed.destroy_process_group()    # its sockets close, as the kernel does for the dead
                return "gone", 0
            world.agree(False)
    except RunError as error:
        return str(error), time.monotonic() - began
    return "nobody was missed", 0


@pytest.mark.parametrize("how", ["hangs", "dies"])
def test_the_missing_rank_is_named(how):
    text, seconds = on_ranks(2, waited, how)[0]
    assert text.startswith(f"rank 1 on node {os.uname().nodename} did not come to where rank 0 waits")
    assert "goes on from the last checkpoint" in text
    assert seconds < 2 * SECONDS


def own_failure() -> str:
    world = World(promised=2, device="cpu", precision="float32", accumulate=1, timeout_minutes=1)
    try:
        with world.naming_the_missing():
            raise RuntimeError("out of memory")
    except RuntimeError as error:
        return str(error)


def test_a_failure_of_its_own_is_left_as_it_is():
    assert on_ranks(2, own_failure) == ["out of memory"] * 2
