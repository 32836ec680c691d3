"""The shipped launcher, killed or asked to stop and started again, ends where an undisturbed run ends, bit for bit."""

import json
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file

from launch.pretrain_prior import main
from tests.launch import conftest
from tests.launch.conftest import SMALL, Launched, rows, run
from tests.support.ranks import on_ranks

pytestmark = pytest.mark.timeout(900)  # a busy machine takes ten times as long as a quiet one
STEPS = 8


# 20 images in batches of 6: steps straddle epochs, and the queue of 40 wraps in the middle of a batch.
LONG = [*SMALL, "--optim.steps", str(STEPS), "--checkpoint.every", "2", "--checkpoint.keep_last", "2"]

job = partial(conftest.job, LONG)


def outcome(folder: Path) -> tuple[dict, list[dict]]:
    logged = [{key: value for key, value in row.items() if key != "speed"} for row in rows(folder)]
    return load_file(folder / "checkpoints" / f"step_{STEPS:08d}" / "state.safetensors"), logged


def assert_same(one: Path, other: Path) -> None:
    (expected, expected_rows), (found, found_rows) = outcome(one), outcome(other)
    assert expected.keys() == found.keys()
    kinds = {name.split("/")[0] for name in expected}
    assert kinds - {"replica"} == {"trained", "optimizer", "rng"}, "what the next step depends on"
    different = [name for name in expected if not expected[name].equal(found[name])]
    assert not different
    assert expected_rows == found_rows


def assert_same_run(one: Path, other: Path) -> None:
    """As `assert_same`, of a run that keeps its best weights."""
    assert_same(one, other)
    best, same = (load_file(folder / "best.safetensors") for folder in (one, other))
    assert all(best[name].equal(same[name]) for name in best)


def kill_inside_a_save(started: Launched, folder: Path) -> None:
    """Kill as soon as a half-written checkpoint is there."""
    while not any(folder.glob("checkpoints/.step_*.tmp/state.safetensors")):
        assert started.running, f"no save was seen: {started.wait()[1]}"
        time.sleep(0.002)
    started.kill()


@pytest.mark.parametrize("world_size", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_inside_a_save_and_resumed(tmp_path, packed, world_size):
    """Other moments and other jobs: test_kills.py."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    on_ranks(
        world_size, main, job(packed, whole, "--run.world_size", str(world_size), "--data.workers", "0"), timeout=240
    )
    kill_inside_a_save(Launched(world_size, *job(packed, cut)), cut)
    run(world_size, *job(packed, cut))
    assert any(name.startswith("replica/") for name in outcome(whole)[0]), "momentum encoders and queues"
    assert_same(whole, cut)


@pytest.mark.parametrize(
    ("which", "to_ranks"),
    [(signal.SIGUSR1, True), pytest.param(signal.SIGTERM, False, marks=pytest.mark.slow)],
)
def test_a_signal_saves_on_all_ranks_and_the_run_goes_on(tmp_path, packed, which, to_ranks):
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
