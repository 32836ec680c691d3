"""The frame of every launcher. It imports little, as every data worker imports its launcher, too."""

import errno
import functools
import sys
from collections.abc import Callable
from typing import Protocol

from fss.errors import UserError
from shards.format import ShardError


class Launcher(Protocol):
    """The main function of a launcher."""

    def __call__(self, argv: list[str] | None = None) -> int:
        """Run on the words of a command line, those of the process if None; returns the exit code."""
        ...


def command(main: Callable[[list[str] | None], int | None]) -> Launcher:
    """Wrap a launcher's `main(argv)`: an error of the user is one line on stderr and exit code 2, not a traceback."""

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        try:
            return main(argv) or 0
        except (UserError, ShardError) as error:
            text = str(error)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            text = f"the disk is full ({error}): free some space and run the same command again"
        print(f"error: {text}", file=sys.stderr, flush=True)
        return 2

    return wrapped
