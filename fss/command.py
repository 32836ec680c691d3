"""The frame of every launcher. It imports little, as every data worker imports its launcher, too."""

import errno
import functools
import resource
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
    """Wrap a launcher's `main(argv)`: an error of the user is one line on stderr and exit code 2, not a traceback.

    So is a lack of memory or of space on a disk.
    """

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        raise_file_limit()
        try:
            return main(argv) or 0
        except (UserError, ShardError) as error:
            text = str(error)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            text = f"the disk is full ({error}): free some space and run the same command again"
        except (MemoryError, RuntimeError) as error:
            shortage = out_of_memory(error)
            if shortage is None:
                raise
            text = shortage
        print(f"error: {text}", file=sys.stderr, flush=True)
        return 2

    return wrapped


def raise_file_limit() -> None:
    """Raise the number of files that this process may have open to the most that the system allows it.

    Each data worker has shards and pipes open, and the usual limit of 1024 is that of a process.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def out_of_memory(error: BaseException) -> str | None:
    """Return the sentence for an error that means a lack of memory, on a GPU or the host; None for any other error."""
    first_line = str(error).partition("\n")[0]
    if type(error).__name__ == "OutOfMemoryError" or "CUDA error: out of memory" in first_line:
        torch = sys.modules["torch"]  # whose error it is; this file does not import it
        peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0
        return (
            f"the GPU is out of memory, at a peak of {peak:.1f} GiB ({first_line}): in a training lower data.batch, or "
            "raise optim.accumulate, which splits the same batch; in an evaluation lower eval.cache_gib; or choose "
            "smaller images or run.precision bf16"
        )
    if isinstance(error, MemoryError) or "can't allocate memory" in first_line:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
        return (
            f"this machine is out of memory, at a peak of {peak:.1f} GiB in this process"
            f"{f' ({first_line})' if first_line else ''}: lower data.batch, data.workers or data.prefetch"
        )
    return None
