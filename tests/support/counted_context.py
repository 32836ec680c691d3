"""Jobs whose ranks compute on the counted device, although it is in no list of devices that a user may name."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fss.distributed.context import DistributedContext
from tests.support.counted_device import DEVICE


@contextmanager
def jobs_on_the_device() -> Iterator[None]:
    """While inside, every distributed context that asks for the CPU has the counted device.

    Nothing else of a job is replaced: its collectives, its launcher and all that it computes are those of a real one.
    """
    start = DistributedContext.__init__

    def started(self: DistributedContext, **options: Any) -> None:
        start(self, **options)
        self.accelerator.state.device = self.device = DEVICE

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistributedContext, "__init__", started)
        yield
