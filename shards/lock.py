"""Lock of a folder for one packer at a time, and removal of the temporary files of killed packers.

The kernel's flock ends with its process. The package filelock is not used here: on a file system without flock it
creates a lock file instead, which a killed process leaves behind.
"""

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

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # of network file systems without locks
_ABANDONED = 24 * 3600  # seconds without a write after which a temporary file counts as abandoned


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Create `folder` and lock it: a second process, such as another rank, waits and then finds the work done.

    Unfinished files of killed processes are removed. A file system without locks is used without: temporary names keep
    the files of several packers separate, and all packers write the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", f"packs into {folder}"):
        for temporary in folder.glob(".*.tmp"):
            with suppress(FileNotFoundError):  # another machine may remove it first
                if _abandoned(temporary):
                    temporary.unlink()
        yield


@contextmanager
def locked(path: Path, work: str) -> Iterator[None]:
    """Lock the file `path`, after waiting for a process that has the lock; without a lock if the file system has none.

    work: the work of that process, for the message about waiting.
    """
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
    """Return True if a file of shards.format.temporary_name is a dead process's of this machine, or a day old."""
    match = re.fullmatch(r"\..+\.([^.]+)\.(\d+)\.tmp", temporary.name)
    if match and match[1] == HOST and not _is_running(int(match[2])):
        return True
    return time.time() - temporary.stat().st_mtime > _ABANDONED


def _is_running(process: int) -> bool:
    if process == os.getpid():  # an earlier process had the same number: this one has not begun to write
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
