"""Measurements of speed: throughput, the share of time in which a rank waits for data, memory."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Meter:
    """Accumulates over the steps since the last `read`. device: whose memory is measured."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._reset()

    def _reset(self) -> None:
        self._start = time.perf_counter()
        self._waited = 0.0
        self._gaps: list[tuple[torch.Event, torch.Event]] = []
        self._images = 0
        self._steps = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data; on a GPU only the part in which it has nothing left to compute."""
        if self._device.type == "cuda":
            idle = self._event()  # the device comes to it when all that was launched has ended
            yield
            self._gaps.append((idle, self._event()))
        else:
            start = time.perf_counter()
            yield
            self._waited += time.perf_counter() - start

    def _event(self) -> torch.Event:
        event = torch.Event(self._device, enable_timing=True)
        event.record()
        return event

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leave the time inside out of every measurement."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def step(self, images: int) -> None:
        """Count an optimizer step over `images` images of all ranks together."""
        self._images += images
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Return the measurements since the last call, and start anew.

        images_per_s (all ranks), step_s (seconds), data_wait (share of time, this rank), peak_memory_mb (MiB, this
        rank).
        """
        for idle, data in self._gaps:
            data.synchronize()
            self._waited += idle.elapsed_time(data) / 1e3
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
    """The peak of memory since the start, MiB: allocated on a GPU, or resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux counts in KiB
