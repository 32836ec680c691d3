"""The distributed context that tests run in: of this process alone, or of the ranks that a test started."""

from fss.distributed.context import DistributedContext
from fss.distributed.runtime import RuntimeConfig


def joined(world_size: int | None = None, accumulate: int = 1) -> DistributedContext:
    """The context of this process on the CPU: of one rank, or of those that `tests.support.ranks.on_ranks` started."""
    runtime = RuntimeConfig(world_size=world_size, device="cpu", timeout_minutes=10)
    return DistributedContext.from_config(runtime, accumulate=accumulate)
