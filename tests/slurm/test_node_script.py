"""slurm/node.sh without a cluster: staged shards, and what it starts."""

import subprocess
from pathlib import Path

from tests.support.places import ROOT


class NodeScript:
    """Runs slurm/node.sh with an `accelerate` that reports its words, and then waits for a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards = folder / "shards"
        self.shards.mkdir()
        (self.shards / "manifest.json").touch()
        commands = folder / "commands"
        commands.mkdir()
        for name, body in {
            "accelerate": 'echo "accelerate $@"; until [[ -e $GATE ]]; do sleep 0.05; done',
            "contain": 'echo "contained"; exec "$@"',
        }.items():
            (commands / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (commands / name).chmod(0o755)

    def start(self, gate: str, **settings: str) -> subprocess.Popen:
        names = {"SLURM_NODEID": "0", "SLURMD_NODENAME": "v1", "NODES": "1", "RANKS": "2", "NAME": "job", "PORT": "1"}
        names |= {"HEAD_ADDRESS": "v1", "STRATEGY": "ddp", "CONTAINER": "", "KEEP_STAGED": ""}
        names |= {"STAGE_TO": str(self.folder / "scratch"), "GATE": str(self.folder / gate)}
        started = subprocess.Popen(
            ["bash", "slurm/node.sh", "launch/job.py", "--data.shards", str(self.shards)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            env={"PATH": f"{self.folder / 'commands'}:/usr/bin:/bin"} | names | settings,
        )
        self.printed = [next(started.stdout)]
        while not self.printed[-1].startswith("accelerate"):
            self.printed.append(next(started.stdout))
        return started

    def copy(self) -> Path:
        return Path(self.printed[-1].split()[-1])


def test_staged_shards_are_removed_by_the_last_job_of_the_node(tmp_path):
    ranks = NodeScript(tmp_path)
    first, second = ranks.start("one"), ranks.start("two")
    copy = ranks.copy()
    assert copy.parent == tmp_path / "scratch" and (copy / "manifest.json").exists()
    (tmp_path / "one").touch()
    assert first.wait(60) == 0 and copy.exists()
    (tmp_path / "two").touch()
    assert second.wait(60) == 0 and not copy.exists()

    kept = ranks.start("two", KEEP_STAGED="yes")
    assert kept.wait(60) == 0 and ranks.copy() == copy and copy.exists()
    (ranks.shards / "manifest.json").write_text("packed again")
    assert ranks.start("two").wait(60) == 0 and ranks.copy() != copy


def test_a_container_is_put_before_the_ranks(tmp_path):
    (tmp_path / "gate").touch()
    ranks = NodeScript(tmp_path)
    assert ranks.start("gate", CONTAINER="contain", STAGE_TO="").wait(60) == 0
    assert ranks.printed[-2] == "contained\n" and "--num_processes 2 " in ranks.printed[-1]
