"""Jobs that are small enough to run many times, started by their launchers, and comparisons of what they leave."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from fss.config import CONFIGS
from shards.synthetic import synthetic
from shards.write import pack
from tests.support.places import ROOT

LAUNCHER = ROOT / "launch" / "pretrain_prior.py"
META_LAUNCHER = ROOT / "launch" / "meta_train.py"
BASE_LAUNCHER = ROOT / "launch" / "train_base.py"

PLACE = "--run.device cpu --run.threads 1 --run.report false --log.wandb off".split()
"""Options of every job. The page takes longer than a few steps: tests of it ask for it."""
SMALL = [
    *PLACE,
    *"--data.batch 6 --data.workers 1 --data.window 1 --method.view_size 32 --method.patch_size 32".split(),
    *"--method.queue 40 --method.local_queue 40 --run.check_every 2 --log.every 1 --probe.size 32".split(),
]
"""Options of a pretraining."""
STEPS = 8
LONG = [*SMALL, "--optim.steps", str(STEPS), *"--checkpoint.every 2 --checkpoint.keep_last 2".split()]
"""Options of a pretraining on the 20 images of `pack_unlabelled`: in batches of 6, steps straddle epochs, and the queue
of 40 wraps in the middle of a batch."""
META = [
    *PLACE,
    "--config",
    str(CONFIGS / "meta" / "embedded.yaml"),
    *"--data.workers 0 --method.size 33 --method.dim 8 --episodes.min_area 50 --optim.steps 4 --log.every 1".split(),
    *"--run.check_every 2 --validate.episodes 4".split(),
]
"""Options of a meta-training."""
BASE = [
    *PLACE,
    "--config",
    str(CONFIGS / "base" / "embedded.yaml"),
    *"--data.workers 0 --data.batch 4 --method.size 33 --optim.steps 4 --log.every 1 --run.check_every 2".split(),
    *"--validate.fraction 0.3".split(),
]
"""Options of a training of the base learner."""


def pack_unlabelled(folder: Path) -> Path:
    """Pack 20 synthetic images into two shards, with both kinds of superpixels."""
    pack(synthetic(20), folder, superpixels=("slic", "felzenszwalb"), samples_per_shard=12)
    return folder


def job(options: list[str], shards: Path, folder: Path, *words: str) -> list[str]:
    """The words of a job on packed shards whose run directory is `folder`; of an option given twice the last counts."""
    return [*options, "--data.shards", str(shards), "--run.dir", str(folder), *words]


def rows(folder: Path) -> list[dict]:
    """What a run logged, line by line."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


Tolerance = tuple[float, float]  # relative, absolute


def assert_trained_alike(one: Path, two: Path, export: str, *, logged: Tolerance, weights: Tolerance) -> None:
    """Two runs differ by rounding only, in what they logged and in the weights that they export."""
    for alone, together in zip(rows(one), rows(two), strict=True):
        for row in (alone, together):
            row.pop("speed", None)
        assert alone == pytest.approx(together, *logged)
    expected, found = (load_file(folder / export) for folder in (one, two))
    for name in expected:
        assert expected[name].float().allclose(found[name].float(), *weights), name


def final_state(folder: Path) -> tuple[dict, list[dict]]:
    """The tensors of the last checkpoint, and what was logged without the speeds."""
    logged = [{key: value for key, value in row.items() if key != "speed"} for row in rows(folder)]
    return load_file(folder / "checkpoints" / f"step_{STEPS:08d}" / "state.safetensors"), logged


def assert_same(one: Path, other: Path) -> None:
    """Two runs of LONG end with the same checkpoint and the same log, bit for bit."""
    (expected, expected_rows), (found, found_rows) = final_state(one), final_state(other)
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


class Launched:
    """A job started as a user starts it, in a process group of its own."""

    def __init__(self, world_size: int, *words: str, launcher: Path = LAUNCHER, config: str = "cpu2") -> None:
        launch = [sys.executable, "-m", "accelerate.commands.launch"]
        if world_size > 1:
            file = ROOT / "configs" / "accelerate" / f"{config}.yaml"
            launch += ["--config_file", str(file), "--num_processes", str(world_size)]
        command = [*launch, str(launcher), "--run.world_size", str(world_size), *words]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "ACCELERATE"))}
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment | {"OMP_NUM_THREADS": "1"},
            text=True,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def ranks(self) -> list[psutil.Process]:
        """Rank 0 first."""
        children = psutil.Process(self._process.pid).children()
        return sorted(children, key=lambda child: int(child.environ()["RANK"]))

    def kill(self) -> None:
        """kill -9 of the launcher and all its ranks and workers."""
        launcher = psutil.Process(self._process.pid)
        for process in [launcher, *launcher.children(recursive=True)]:  # ranks lead process groups of their own
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.communicate()

    def kill_one(self, which: int) -> None:
        """kill -9 of one rank, or of the launcher alone where `which` is as large as the number of ranks."""
        [*self.ranks, self._process][which].kill()

    def send(self, which: signal.Signals, *, to_ranks: bool) -> None:
        """Signal every rank, or the launcher alone."""
        launcher = psutil.Process(self._process.pid)
        for process in launcher.children() if to_ranks else [launcher]:
            process.send_signal(which)

    def wait(self, timeout: float = 240) -> tuple[int, str]:
        """Exit code and output."""
        try:
            output, _ = self._process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return self._process.returncode, output


def run(world_size: int, *words: str, launcher: Path = LAUNCHER, config: str = "cpu2") -> str:
    """The output of a job that must succeed."""
    code, output = Launched(world_size, *words, launcher=launcher, config=config).wait()
    assert code == 0, output
    return output


def called(main: Callable[[list[str]], int], capsys, *argv: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a launcher's `main(argv)` in this process."""
    capsys.readouterr()
    code = main(list(argv))
    out, err = capsys.readouterr()
    return code, out, err


def refusal(main: Callable[[list[str]], int], capsys, *argv: str) -> str:
    """The one sentence with which a launcher refuses."""
    code, _, err = called(main, capsys, *argv)
    assert code == 2, err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    return lines[0]


def kill_inside_a_save(started: Launched, folder: Path) -> None:
    """Kill as soon as a half-written checkpoint is there."""
    while not any(folder.glob("checkpoints/.step_*.tmp/state.safetensors")):
        assert started.running, f"no save was seen: {started.wait()[1]}"
        time.sleep(0.002)
    started.kill()
