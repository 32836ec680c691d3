"""Under `--max_restarts` a run whose rank dies resumes by itself; one that was asked to stop stays stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from launch.pretrain_prior import main
from tests.support import launching
from tests.support.launching import LAUNCHER, LONG, assert_same
from tests.support.places import ROOT
from tests.support.ranks import free_port, on_ranks

pytestmark = pytest.mark.slow
job = partial(launching.job, LONG)


def start(*words: str) -> subprocess.Popen:
    """The job on two ranks under a launcher that starts them again."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    launch += ["--num_processes", "2", "--mixed_precision", "no", "--dynamo_backend", "no", "--max_restarts", "2"]
    launch += ["--rdzv_backend", "c10d", "--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port())]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "ACCELERATE"))}
    environment |= {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.Popen(
        [*launch, str(LAUNCHER), "--run.world_size", "2", *words],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def ranks_after(process: subprocess.Popen, folder: Path, step: int) -> list[psutil.Process]:
    """The ranks, once `step` is logged."""
    log = folder / "metrics.jsonl"
    while not log.exists() or f'"step": {step},' not in log.read_text():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    return psutil.Process(process.pid).children()


def test_a_rank_that_dies_brings_all_back_from_the_last_checkpoint(tmp_path, packed):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    on_ranks(2, main, job(packed, whole, "--run.world_size", "2", "--data.workers", "0"), timeout=240)
    process = start(*job(packed, cut))
    ranks_after(process, cut, 4)[-1].kill()
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert "resumed at step" in output
    assert_same(whole, cut)


def test_a_run_that_was_asked_to_stop_is_not_brought_back(tmp_path, packed):
    folder = tmp_path / "run"
    process = start(*job(packed, folder))
    for rank in ranks_after(process, folder, 3):
        rank.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert output.count("saved at step") == 1
    assert json.loads((folder / "status.json").read_text()) == {"status": "interrupted"}
