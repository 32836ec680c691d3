"""A job over two nodes whose link is cut: it ends on both with a clear message, and resumes when the link is back.

A node is a network namespace of this machine, its link a pair of virtual devices; both see one run directory.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from launch.pretrain_prior import main
from tests.support.launching import LAUNCHER, LONG, assert_same, job
from tests.support.places import ROOT
from tests.support.ranks import on_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LIMIT = 60  # seconds: on a busy machine a step takes some of them
PORT = 29500  # of a namespace of its own
WORDS = [*LONG, "--data.workers", "0", "--run.world_size", "2"]


class Nodes:
    """Two namespaces, each with its end of one link."""

    def __init__(self) -> None:
        self.names = [f"fss-{os.getpid()}-{end}" for end in "ab"]
        for name in self.names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("link", "add", "wire", "netns", self.names[0], "type", "veth", "peer", "wire", "netns", self.names[1])
        for number, name in enumerate(self.names, start=1):
            ip("-n", name, "address", "add", f"10.0.0.{number}/30", "dev", "wire")
        self.link(up=True)

    def link(self, *, up: bool) -> None:
        """Bring the link of both nodes up, or that of the second one down."""
        for name in self.names if up else self.names[1:]:
            ip("-n", name, "link", "set", "wire", "up" if up else "down")

    def start(self, words: list[str]) -> list[subprocess.Popen]:
        """The shipped launcher on each node, one rank on each."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "ACCELERATE"))}
        environment |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "wire"}
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "2"]
        launch += ["--num_processes", "2", "--mixed_precision", "no", "--dynamo_backend", "no"]
        launch += ["--main_process_ip", "10.0.0.1", "--main_process_port", str(PORT)]
        return [
            subprocess.Popen(
                ["ip", "netns", "exec", name, *launch, "--machine_rank", str(number), str(LAUNCHER), *words],
                cwd=ROOT,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            for number, name in enumerate(self.names)
        ]

    def remove(self) -> None:
        for name in self.names:
            for pid in ip("netns", "pids", name).split():
                psutil.Process(int(pid)).kill()
            ip("netns", "delete", name)


def ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
    return done.stdout


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    if not shutil.which("ip"):
        pytest.skip("there is no command ip, which makes nodes of network namespaces: apt-get install iproute2")
    trial = subprocess.run(["ip", "netns", "add", f"fss-{os.getpid()}"], capture_output=True, text=True)
    if trial.returncode:
        pytest.skip(f"this user may not make network namespaces here: {trial.stderr.strip()}")
    ip("netns", "delete", f"fss-{os.getpid()}")
    two = Nodes()
    yield two
    two.remove()


def ends(processes: list[subprocess.Popen], timeout: float) -> list[tuple[int, str]]:
    """Exit code and output of each."""
    outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


def test_a_cut_link_ends_the_job_on_both_nodes_and_it_resumes_when_the_link_is_back(tmp_path, packed, nodes):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    started = nodes.start(job(WORDS, packed, cut, "--run.timeout_minutes", str(LIMIT / 60)))
    until_logged(cut, 3, started)
    nodes.link(up=False)
    (first, here), (second, there) = ends(started, timeout=10 * LIMIT)
    print(here, there)
    assert first and second
    node = os.uname().nodename
    assert f"error: rank 1 on node {node} has sent no heartbeat for {LIMIT} s" in here
    assert f"error: rank 1 on node {node} has not reached rank 0 on node {node} for {LIMIT} s" in there
    assert '"failed"' in (cut / "status.json").read_text()

    nodes.link(up=True)
    (first, here), (second, there) = ends(nodes.start(job(WORDS, packed, cut)), timeout=400)
    assert not first and not second, here + there
    assert "resumed at step" in here
    on_ranks(2, main, job(WORDS, packed, whole), timeout=400)
    assert_same(whole, cut)


def until_logged(folder: Path, step: int, started: list[subprocess.Popen]) -> None:
    log = folder / "metrics.jsonl"
    while not log.exists() or f'"step": {step},' not in log.read_text():
        assert all(process.poll() is None for process in started), ends(started, timeout=60)
        time.sleep(0.01)
