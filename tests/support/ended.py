"""The end of a process that the watchdog wants, in place of it."""

import io
import os
import sys
import threading
from types import SimpleNamespace

from fss.distributed import watchdog
from fss.distributed.watchdog import ABORTED

PATIENCE = 40  # seconds


class Ended:
    """In place of the end of this process: its last output, and its exit code."""

    def __init__(self, launcher: int | None = None) -> None:
        self.exits: list[int] = []
        self._over = threading.Event()
        self._stderr = sys.stderr = io.StringIO()
        watchdog.os = SimpleNamespace(_exit=self._end, getppid=lambda: launcher or os.getppid())

    def _end(self, code: int) -> None:
        self.exits.append(code)
        self._over.set()

    def wait(self) -> str:
        assert self._over.wait(PATIENCE), "nothing ended this process"
        assert self.exits == [ABORTED]
        return self._stderr.getvalue()
