"""The frame of every launcher. Light to import: data workers import their launcher, too."""

import errno
import functools
import sys
from collections.abc import Callable

from fss.errors import UserError
from shards.format import ShardError


def command(main: Callable[[list[str] | None], int | None]) -> Callable[[list[str] | None], int]:
    """Wrap a launcher's ``main(argv)``: a user's error is one line on stderr and exit code 2, not a traceback."""

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
