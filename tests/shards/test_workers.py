import math
import os

import pytest

from shards import workers
from shards.workers import cores, cpu_quota, ordered_map


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not bind processes to cores")
def test_cores_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7})
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    for quota, expected in ((math.inf, 3), (2.5, 2), (0.5, 1)):
        monkeypatch.setattr(workers, "cpu_quota", lambda quota=quota: quota)
        assert cores() == expected


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "250000 100000"}, 2.5),
        ("0::/\n", {"cpu.max": "max 100000"}, math.inf),
        ("0::/job/step\n", {"job/cpu.max": "400000 100000", "job/step/cpu.max": "max 100000"}, 4),
        ("4:memory:/\n3:cpu,cpuacct:/job\n", {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "50000"}, 3),
        ("3:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ("4:memory:/\n0::/\n", {"memory/cpu.max": "100000 100000"}, math.inf),
        (None, {}, math.inf),
    ],
)
def test_quota_of_control_groups(tmp_path, membership, files, expected):
    if membership is not None:
        (tmp_path / "self").write_text(membership)
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    assert cpu_quota(tmp_path / "groups", tmp_path / "self") == expected


def test_workers_compute_on_one_thread_and_this_process_keeps_its_own(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    with ordered_map(os.getenv, ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "HOME"], 2) as found:
        assert list(found) == ["1", "1", os.environ["HOME"]]
    assert os.environ["OMP_NUM_THREADS"] == "7" and "OPENBLAS_NUM_THREADS" not in os.environ
