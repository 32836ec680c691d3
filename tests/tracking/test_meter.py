"""The meter: rates and shares of the time since the last reading, whose parts are counted once."""

import time

import pytest
import torch

from fss.tracking.meter import Meter


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time in seconds, which a test advances."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_a_reading_is_of_the_time_since_the_last_one_without_what_is_aside(clock):
    meter = Meter(torch.device("cpu"))
    for waited in (1.0, 0.0):
        with meter.waiting():
            clock[0] += waited
        with meter.aside():
            clock[0] += 50
        clock[0] += 3
        meter.step(16)
    clock[0] += 1
    reading = meter.read()
    assert reading.pop("peak_memory_mb") > 0
    assert reading == {"images_per_s": 4.0, "step_s": 4.0, "data_wait": 0.125}  # 8 s, 1 s of it waiting
    clock[0] += 2
    meter.step(4)
    reading = meter.read()
    assert reading["images_per_s"] == 2 and reading["data_wait"] == 0
