"""A packed set and a job small enough to run many times."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from fss.jobs import fit
from fss.train.validation.episode_validation import Validation
from fss.train.validation.label_validation import LabelValidation
from shards.synthetic import synthetic
from shards.write import pack
from tests.support.places import ROOT

LAUNCHER = ROOT / "launch" / "pretrain_prior.py"
PLACE = ["--run.device", "cpu", "--run.threads", "1", "--log.wandb", "off"]
SMALL = [
    *PLACE,
    "--data.batch",
    "6",
    "--data.workers",
    "1",
    "--data.window",
    "1",
    "--method.view_size",
    "32",
    "--method.patch_size",
    "32",
    "--method.queue",
    "40",
    "--method.local_queue",
    "40",
    "--run.check_every",
    "2",
    "--log.every",
    "1",
    "--probe.size",
    "32",
]


@pytest.fixture(scope="session")
def packed(tmp_path_factory) -> Path:
    """20 synthetic images in two shards, with both kinds of superpixels."""
    folder = tmp_path_factory.mktemp("packed") / "synthetic"
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


@pytest.fixture
def no_pictures(monkeypatch) -> None:
    """Without the pictures that a training in this process draws: they take longer than a few steps."""
    monkeypatch.setattr(fit, "report", lambda run, *_: run.report / "index.html")
    for validation in (Validation, LabelValidation):
        monkeypatch.setattr(validation, "picture", lambda *_: None)


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
