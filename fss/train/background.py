"""Work that a save leaves to the background: copies to the host, and a task on a thread."""

import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fss.nn.transfer import launched_so_far

POLL = 0.2  # seconds between two looks at the progress of a task that is waited for


class HostCopies:
    """Copies of tensors in memory of the host, which serves again at the next save: of CUDA pinned memory."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def start(self, tensors: Mapping[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
        """Start to copy tensors [...]; the function returned, for any thread, waits for the copies and returns them.

        They are contiguous, and stay as they are until the next start. On CUDA the host does not wait: the device
        copies before it carries out what is launched later.
        """
        copies = {}
        for name, tensor in tensors.items():
            copy = self._buffers.get(name)
            if copy is None or (copy.shape, copy.dtype) != (tensor.shape, tensor.dtype):
                copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
            copies[name] = copy.copy_(tensor.detach(), non_blocking=True)
        self._buffers = copies
        device = next(
            (tensor.device for tensor in tensors.values() if tensor.device.type == "cuda"), torch.device("cpu")
        )
        wait = launched_so_far(device)

        def finish() -> dict[str, Tensor]:
            wait()
            return copies

        return finish


class BackgroundTask:
    """A task on a thread of its own; there is one at a time."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._progress = 0

    def start(self, task: Callable[[], object]) -> None:
        """Run `task` in the background. Raises RuntimeError if the one before has not been waited for."""
        if self._thread is not None:
            raise RuntimeError("a task is running in the background: wait for it before the next one")
        self._thread = threading.Thread(target=self._run, args=(task,), name="background task", daemon=True)
        self._thread.start()

    def _run(self, task: Callable[[], object]) -> None:
        try:
            task()
        except BaseException as error:
            self._error = error

    def progressed(self) -> None:
        """Count a sign of progress; called by the task."""
        self._progress += 1

    def wait(self, report: Callable[[], object]) -> None:
        """Wait for the task, if there is one, and raise its error.

        report: called while waiting, in this thread, when the task has made progress. It is not called otherwise: a
        task that goes on must not hide that the thread which started it hangs.
        """
        if self._thread is None:
            return
        seen = self._progress
        while self._thread.is_alive():
            self._thread.join(POLL)
            if seen != self._progress:
                seen = self._progress
                report()
        self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
