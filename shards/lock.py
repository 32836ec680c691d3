"""One packer at a time in a folder, and what killed ones left behind."""

import errno
import fcntl
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shards.format import HOST

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # of a network file system without them
_ABANDONED = 24 * 3600  # seconds without a write after which nobody works on a temporary file


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Make `folder` and hold it: a second process, another rank say, waits and then finds the work done.

    What a killed process left half written is removed. A file system without locks is taken as it is: temporary names
    keep packers of several machines apart, and all write the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", f"packs into {folder}"):
        for left in folder.glob(".*.tmp"):
            with suppress(FileNotFoundError):  # another machine was quicker
                if _abandoned(left):
                    left.unlink()
        yield


@contextmanager
def locked(path: Path, work: str) -> Iterator[None]:
    """Hold the lock file `path`, for as long as another process that `work` has it waiting; without where none can be
    had."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that {work}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield


def _abandoned(temporary: Path) -> bool:
    """Whether a file named by shards.format.temporary_name is a dead process's of this machine, or a day old."""
    named = re.fullmatch(r"\..+\.([^.]+)\.(\d+)\.tmp", temporary.name)
    if named and named[1] == HOST and not _lives(int(named[2])):
        return True
    return time.time() - temporary.stat().st_mtime > _ABANDONED


def _lives(process: int) -> bool:
    if process == os.getpid():  # a killed one had the same number: this one has not begun to write
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
