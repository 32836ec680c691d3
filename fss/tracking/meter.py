"""What the machine did: throughput, the share of time spent waiting for data, memory."""

import resource
import time
from contextlib import contextmanager

import torch


class Meter:
    """Accumulates over the steps since the last `read`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._reset()

    def _reset(self) -> None:
        self._start = time.perf_counter()
        self._waited = 0.0
        self._images = 0
        self._steps = 0

    @contextmanager
    def waiting(self):
        """Time spent in here is waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextmanager
    def aside(self):
        """Time spent in here counts nowhere."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def step(self, images: int) -> None:
        """An optimizer step over `images` images, all ranks together, is done."""
        self._images += images
        self._steps += 1

    def read(self) -> dict[str, float]:
        """images_per_s (all ranks), step_s, data_wait (share of time, this rank), peak_memory_mb (this rank)."""
        elapsed = time.perf_counter() - self._start
        reading = {
            "images_per_s": self._images / elapsed,
            "step_s": elapsed / max(self._steps, 1),
            "data_wait": self._waited / elapsed,
            "peak_memory_mb": peak_memory_mb(self._device),
        }
        self._reset()
        return {name: round(value, 4) for name, value in reading.items()}


def peak_memory_mb(device: torch.device) -> float:
    """The most MiB of the device, or of this process on a CPU, that were taken since the start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux counts in KiB
