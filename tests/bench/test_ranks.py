"""bench/ranks.py: new processes that know their ranks; one that fails ends the job."""

import os
import sys
import time

import pytest

from tests.support.places import ROOT

sys.path.insert(0, str(ROOT / "bench"))

from ranks import on_ranks


def place(factor: int) -> tuple[str, str, int]:
    return os.environ["RANK"], os.environ["WORLD_SIZE"], 2 * factor


def failing() -> None:
    if os.environ["RANK"] == "1":
        raise SystemExit(3)
    time.sleep(600)


def test_the_answer_is_that_of_rank_0():
    assert on_ranks(2, place, 21) == ("0", "2", 42)


def test_a_rank_that_fails_ends_the_job():
    with pytest.raises(RuntimeError, match="rank 1 ended with exit code 3"):
        on_ranks(2, failing)
