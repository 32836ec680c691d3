"""The check before step 1: ranks that differ are refused, equal ranks are listed by node."""

import pytest
from rich.console import Console

from fss.distributed.startup import bandwidth, check_ranks, free_gib
from fss.errors import RunError
from tests.support.contexts import joined
from tests.support.ranks import on_ranks


def checked(folder, config: list[str], manifest: list[str]) -> tuple[str, float]:
    context = joined(2)
    try:
        rank = context.rank
        messages = check_ranks(context, folder, config=config[rank], manifest=manifest[rank], workers=7 + rank)
        console = Console(width=120)
        with console.capture() as screen:
            console.print(*messages, sep="\n")
        return screen.get(), bandwidth(context)
    except RunError as error:
        return str(error), 0
    finally:
        context.close()


def test_equal_ranks_are_listed_by_node(tmp_path):
    for text, rate in on_ranks(2, checked, tmp_path / "new" / "run", ["c1", "c1"], ["m1", "m1"]):
        assert "0-1" in text and "2 x cpu" in text and "2 x 7" in text and "GiB" in text
        assert "equal on all 2 ranks: configuration c1, shards m1" in text
        assert 0 < rate < 1000


@pytest.mark.parametrize("odd", ["configuration", "shard manifest"])
def test_ranks_that_differ_are_refused(tmp_path, odd):
    values = {"configuration": ["x", "x"], "shard manifest": ["x", "x"]}
    values[odd] = ["x", "y"]
    for text, _ in on_ranks(2, checked, tmp_path, *values.values()):
        assert f"the {odd} differs between ranks: rank 0 has x, rank 1 has y" in text


def test_free_space_of_a_folder_that_is_not_there_yet(tmp_path):
    assert free_gib(tmp_path / "a" / "b") == pytest.approx(free_gib(tmp_path), abs=0.5)
