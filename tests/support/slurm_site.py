"""A checkout on the SLURM of the tests, from which jobs are submitted."""

import json
import shutil
import subprocess
import time
from pathlib import Path

from tests.support.places import ROOT

CLEARED = 15  # seconds


class Site:
    """A checkout on the cluster, with its own runs and logs."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self._environment = environment
        self._back: dict[str, float] = {}  # job -> since when it is back in the queue
        for name in ("launch", "configs", ".venv"):
            (folder / name).symlink_to(ROOT / name)
        shutil.copytree(ROOT / "slurm", folder / "slurm", ignore=shutil.ignore_patterns("*.txt"))

    def call(self, *words: str, **settings: str) -> str:
        """Output of a command in the root of the checkout."""
        environment = self._environment | {"FSS_DATA": str(ROOT / "data")} | settings
        done = subprocess.run(words, cwd=self.folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def sbatch(self, *words: str, **settings: str) -> str:
        """Submit a job; returns its id."""
        return self.call("sbatch", "--parsable", *words, **settings).strip()

    def log(self) -> str:
        return "".join(path.read_text() for path in sorted((self.folder / "slurm" / "logs").glob("*.txt")))

    def state(self) -> str:
        """Logs, jobs and nodes, for messages of failures."""
        return "\n".join([self.log(), self.call("scontrol", "show", "jobs"), self.call("scontrol", "show", "nodes")])

    def until(self, text: str, timeout: float = 300) -> None:
        """Wait until `text` is in the logs."""
        end = time.monotonic() + timeout
        while text not in self.log():
            assert time.monotonic() < end, f"{text!r} never came: {self.state()}"
            self.waiting()
            time.sleep(0.2)

    def finish(self, timeout: float = 600) -> None:
        """Wait until the queue is empty."""
        end = time.monotonic() + timeout
        while jobs := self.waiting():
            assert time.monotonic() < end, f"{jobs}: {self.state()}"
            time.sleep(0.5)

    def waiting(self) -> list[str]:
        """Jobs that are not done; one that was put back into the queue need not wait its two minutes, but for some
        seconds in which slurmd clears up what the first start left."""
        jobs = self.call("squeue", "--noheader", "--array", "--format", "%i %r").splitlines()
        self._back = {job: since for job, since in self._back.items() if f"{job} BeginTime" in jobs}
        for job, reason in (line.split(maxsplit=1) for line in jobs):
            if reason != "BeginTime":
                continue
            if time.monotonic() - self._back.setdefault(job, time.monotonic()) > CLEARED:
                # It may begin by itself between the two commands.
                self.call("bash", "-c", f"scontrol update JobId={job} StartTime=now || true")
        return jobs

    def status(self, run: str) -> str:
        path = self.folder / "runs" / run / "status.json"
        return json.loads(path.read_text())["status"] if path.exists() else f"no {path}: {self.log()}"
