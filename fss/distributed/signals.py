"""Stopping on request: the signals that ask for it, and the exit code that reports it."""

import os
import signal
from contextlib import contextmanager

INTERRUPTED = 75  # exit code (EX_TEMPFAIL): saved after SIGTERM or SIGUSR1; the same command continues the run


def interrupted() -> int:
    """The exit code of a rank that saved and left as asked.

    Under a launcher that starts ranks again when they fail (`--max_restarts`) it is 0: any other would bring them back.
    """
    return 0 if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) else INTERRUPTED


class StopRequest:
    """Whether SIGTERM or SIGUSR1 has asked this process to save and leave."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self):
        """Take the two signals while inside."""
        before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGUSR1)}
        try:
            yield self
        finally:
            for which, handler in before.items():
                signal.signal(which, handler)

    def _note(self, *_: object) -> None:
        self.asked = True
