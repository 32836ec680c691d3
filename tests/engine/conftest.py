"""The ranks that tests of the engine run on."""

from collections.abc import Iterator

import pytest

from fss.engine.dist import World
from fss.engine.run import PlaceConfig


def joined(promised: int | None = None, accumulate: int = 1) -> World:
    """The world of this process on the CPU: of one rank, or of those that `tests.ranks.on_ranks` started."""
    return World.at(PlaceConfig(world=promised, device="cpu", timeout_minutes=10), accumulate=accumulate)


@pytest.fixture
def world() -> Iterator[World]:
    """One process by itself."""
    one = joined()
    yield one
    one.close()
