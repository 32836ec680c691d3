"""The shipped launcher, killed or asked to stop and started again, ends where an undisturbed run ends, bit for bit."""

import json
import signal
import time
from functools import partial

import pytest

from launch.pretrain_prior import main
from tests.support import launching
from tests.support.launching import LONG, Launched, assert_same, final_state, kill_inside_a_save, run
from tests.support.ranks import on_ranks

pytestmark = pytest.mark.timeout(900)  # a busy machine takes ten times as long as a quiet one
job = partial(launching.job, LONG)


@pytest.mark.parametrize("world_size", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_inside_a_save_and_resumed(tmp_path, packed, world_size):
    """Other moments and other jobs: test_kills.py."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    on_ranks(
        world_size, main, job(packed, whole, "--run.world_size", str(world_size), "--data.workers", "0"), timeout=240
    )
    kill_inside_a_save(Launched(world_size, *job(packed, cut)), cut)
    run(world_size, *job(packed, cut))
    assert any(name.startswith("replica/") for name in final_state(whole)[0]), "momentum encoders and queues"
    assert_same(whole, cut)


@pytest.mark.parametrize(
    ("which", "to_ranks"),
    [(signal.SIGUSR1, True), pytest.param(signal.SIGTERM, False, marks=pytest.mark.slow)],
)
def test_a_signal_saves_on_all_ranks_and_the_run_resumes(tmp_path, packed, which, to_ranks):
    folder = tmp_path / "run"
    words = job(packed, folder, "--data.workers", "0")
    started = Launched(2, *words, "--checkpoint.every", "1000")
    while not (folder / "metrics.jsonl").exists() or '"step": 3,' not in (folder / "metrics.jsonl").read_text():
        assert started.running, started.wait()[1]
        time.sleep(0.01)
    started.send(which, to_ranks=to_ranks)
    code, output = started.wait()
    assert code != 0
    assert "saved at step" in output
    assert json.loads((folder / "status.json").read_text())["status"] == "interrupted"
    assert "resumed at step" in run(2, *words)
    assert json.loads((folder / "status.json").read_text())["status"] == "finished"
