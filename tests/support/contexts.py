"""The distributed context that tests run in: of this process alone, or of the ranks that a test started."""

from fss.distributed.context import DistributedContext
from fss.distributed.runtime import RuntimeConfig


def joined(promised: int | None = None, accumulate: int = 1) -> DistributedContext:
    """The context of this process on the CPU: of one rank, or of those that `tests.support.ranks.on_ranks` started."""
    runtime = RuntimeConfig(world_size=promised, device="cpu", timeout_minutes=10)
    return DistributedContext.at(runtime, accumulate=accumulate)
