"""Stopping on request: the signals for it, and the exit code that reports it."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

INTERRUPTED = 75  # exit code (EX_TEMPFAIL): saved after SIGTERM or SIGUSR1; the same command continues the run


def interrupted_exit_code() -> int:
    """The exit code of a rank that has saved and stops on request.

    Under a launcher that restarts ranks which fail (`--max_restarts`) it is 0: it would restart on any other code.
    """
    return 0 if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) else INTERRUPTED


class StopRequest:
    """Records whether SIGTERM or SIGUSR1 has asked this process to save and stop."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[Self]:
        """Handle the two signals while inside."""
        before = {s: signal.signal(s, self._record) for s in (signal.SIGTERM, signal.SIGUSR1)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _record(self, *_: object) -> None:
        self.asked = True
