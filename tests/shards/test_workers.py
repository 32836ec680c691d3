import os

import pytest

from shards.workers import cores, ordered_map


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not bind processes to cores")
def test_cores_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7})
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    assert cores() == 3


def test_workers_compute_on_one_thread_and_this_process_keeps_its_own(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    with ordered_map(os.getenv, ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "HOME"], 2) as found:
        assert list(found) == ["1", "1", os.environ["HOME"]]
    assert os.environ["OMP_NUM_THREADS"] == "7" and "OPENBLAS_NUM_THREADS" not in os.environ
