"""A rank whose data stall, and one that stops in an evaluation: the job names it, ends, and can be resumed."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from shards.synthetic import synthetic
from shards.write import pack
from tests.support import evaluating
from tests.support.evaluating import EPISODES, SLOWLY, recorded
from tests.support.launching import LONG, Launched, job, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LIMIT = 60  # seconds: on a busy machine a step takes some of them
QUICK = ["--run.timeout_minutes", str(LIMIT / 60)]
NODE = os.uname().nodename


def status(folder: Path) -> str:
    return json.loads((folder / "status.json").read_text())["status"]


def test_stalled_data_are_distinguished_from_a_hanging_rank(tmp_path, packed):
    folder = tmp_path / "run"
    words = [*job(LONG, packed, folder), "--optim.steps", "12"]
    started = Launched(2, *words, *QUICK)
    log = folder / "metrics.jsonl"
    while not log.exists() or '"step": 2,' not in log.read_text():
        assert started.running, started.wait()[1]
        time.sleep(0.01)
    stopped = workers(started.ranks[1])
    for worker in stopped:  # as a read from a file system that does not answer would stop it
        worker.suspend()
    try:
        end = time.monotonic() + 10 * LIMIT
        while started.running:
            assert time.monotonic() < end
            time.sleep(0.1)
    finally:  # or they would outlive the job, and keep its output open
        for worker in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.resume()
    code, output = started.wait()
    assert code
    assert f"error: rank 1 on node {NODE} has made no progress for {LIMIT} s: it is waiting for the data of" in output
    assert status(folder) == "failed"
    assert "resumed at step" in run(2, *words)


def workers(rank: psutil.Process) -> list[psutil.Process]:
    """The processes that read data for a rank: children of its fork server."""
    found = [worker for child in rank.children() for worker in child.children()]
    assert found
    return found


def test_a_rank_that_stops_in_an_evaluation_is_named(tmp_path):
    shards, folder = tmp_path / "labelled", tmp_path / "run"
    pack(synthetic(60), shards, samples_per_shard=25)
    words = [*evaluating.job(shards, folder), *SLOWLY]
    started = Launched(2, *words, *QUICK, launcher=evaluating.LAUNCHER)
    while len(recorded(folder)) < 5:
        assert started.running, started.wait()[1]
        time.sleep(0.005)
    started.ranks[1].send_signal(signal.SIGSTOP)
    code, output = started.wait(timeout=10 * LIMIT)
    assert code
    assert f"error: rank 1 on node {NODE} has sent no heartbeat for {LIMIT} s" in output
    assert status(folder) == "failed"
    run(2, *words, launcher=evaluating.LAUNCHER)
    assert len(recorded(folder)) == EPISODES
