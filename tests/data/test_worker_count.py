"""The default number of data workers: what the cores of a node leave for each of its ranks."""

import pytest

from fss.data import worker_count as counting
from fss.data.dataset import DataConfig
from fss.data.worker_count import MOST, worker_count


@pytest.mark.parametrize(
    ("cores", "ranks", "threads", "expected"),
    [
        (8, None, 1, 7),  # without a launcher
        (64, "8", 1, 7),
        (2, "2", 1, 1),
        (1, "1", 1, 1),
        (16, "2", 8, 1),  # the ranks compute on the cores themselves
        (16, "2", 2, 6),
        (256, "1", 1, MOST),
    ],
)
def test_cores_are_shared_by_the_ranks_of_the_node(monkeypatch, cores, ranks, threads, expected):
    monkeypatch.setattr(counting, "cores", lambda: cores)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if ranks:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert worker_count(DataConfig(), threads) == expected


@pytest.mark.parametrize("workers", [0, 4, 99])
def test_a_number_is_taken_as_it_is(monkeypatch, workers):
    monkeypatch.setattr(counting, "cores", lambda: 8)
    assert worker_count(DataConfig(workers=workers), 1) == workers
