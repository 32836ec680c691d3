"""The run directory: the configuration of a run, its environment, its log, its status and its files.

config.yaml          the resolved configuration; with another --run.dir, `--config config.yaml` repeats the run
run.json             the identity of the run: what must be equal for a resume
environment.jsonl    one line a start: versions, git commit, ranks, machine, command
metrics.jsonl        one line a logged step; a resumed run drops the lines past its checkpoint
status.json          running, interrupted, finished or failed
checkpoints/         of a training, see fss.train.checkpoint
episodes/            of an evaluation, see fss.evaluate.record
episodes.tsv         the same episodes, as a list that `--eval.episode_list` reads
results.json         its scores and its protocol
NAME.safetensors     the last weights of method NAME, for other jobs; best.safetensors: those of the best validation
validation/          pictures of the same few episodes at every validation
report/              the page to look at
wandb/, tensorboard/ files of the trackers, see fss.tracking.log; wandb.id and *.sent: the id there, the values sent
nonfinite/           dump of a NaN or infinite loss: batch, keys, report
"""

import fcntl
import json
import time
from pathlib import Path
from typing import IO, Any, Literal

import torch

from fss.compat import ENVIRONMENT, current_fields, current_log_keys, current_options
from fss.errors import RunError
from fss.provenance import environment
from shards.format import write_whole

Status = Literal["running", "interrupted", "finished", "failed"]


class RunDir:
    """A run directory, opened by rank 0 only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.metrics = folder / "metrics.jsonl"
        self.report = folder / "report"
        self._lock: IO[str] | None = None

    def open(self, identity: dict[str, Any], config_yaml: str) -> None:
        """Create the directory, or check that it contains this very run, and lock it.

        identity: flat {key: value} of everything that decides the result. Raises RunError if the directory contains
        something else, or is in use by a running job.
        """
        identity = json.loads(json.dumps(identity))  # a tuple becomes a list, as in the file
        record = self.folder / "run.json"
        leftovers = {".lock", "config.yaml"}  # of a start that was killed before run.json
        if not record.exists() and self.folder.exists() and {p.name for p in self.folder.iterdir()} - leftovers:
            raise RunError(f"run.dir {self.folder} is not empty and not a run directory: choose another --run.dir")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._acquire_lock()
        if record.exists() and self.begun():
            self._check_identity(current_options(json.loads(record.read_text())), identity)
        else:  # there is no checkpoint yet: a start that failed may be repeated with other options
            write_whole(self.folder / "config.yaml", config_yaml.encode())
            write_whole(record, json.dumps(identity, indent=1).encode())
        self.report.mkdir(exist_ok=True)

    def begun(self) -> bool:
        """Return whether the directory contains work that must not be mixed with another run's."""
        return any(self.checkpoints.glob("step_*"))

    def _acquire_lock(self) -> None:
        self._lock = open(self.folder / ".lock", "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"run.dir {self.folder} is in use by a running job: stop it or choose another") from None
        except OSError:  # some network file systems lack locks; the identity is still checked
            pass

    def _check_identity(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
        if changed:
            key = changed[0]
            raise RunError(
                f"run.dir {self.folder} holds another run: {key} is {before.get(key)!r} there and {now.get(key)!r} here"
                + (f" ({len(changed)} differences)" if len(changed) > 1 else "")
                + ": choose another --run.dir, or repeat the run's own options to resume it"
            )

    def close(self) -> None:
        """Release the lock."""
        if self._lock:
            self._lock.close()

    def record_environment(self, world_size: int, device: torch.device, precision: str) -> dict[str, Any]:
        """Append a line to environment.jsonl, and return it. precision: `run.precision`."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        facts = {"time": now, "world_size": world_size, **environment(device, precision)}
        with open(self.folder / "environment.jsonl", "a") as file:
            file.write(json.dumps(facts) + "\n")
        return facts

    def set_status(self, status: Status) -> None:
        """Write status.json."""
        write_whole(self.folder / "status.json", json.dumps({"status": status}).encode())

    def rows(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl under the keys of today; a last line that a kill truncated is left out."""
        if not self.metrics.exists():
            return []
        rows = []
        for line in self.metrics.read_text().splitlines():
            try:
                rows.append(current_log_keys(json.loads(line)))
            except ValueError:
                break
        return rows

    def rewind(self, step: int) -> None:
        """Drop the lines after `step`, from which the run continues."""
        lines = [json.dumps(row) + "\n" for row in self.rows() if row["step"] <= step]
        write_whole(self.metrics, "".join(lines).encode())


def last_environment(folder: Path) -> dict[str, Any]:
    """The environment that a run directory recorded at its last start."""
    lines = (folder / "environment.jsonl").read_text().splitlines()
    return current_fields(json.loads(lines[-1]), ENVIRONMENT)


def resume_command(command: str, world_size: int, device: str) -> str:
    """The command that, typed in the same folder, resumes a run that `command` started."""
    several = f"--multi_gpu --num_processes {world_size} " if world_size > 1 else "--num_processes 1 "
    return f"{'ACCELERATE_USE_CPU=true ' if device == 'cpu' else ''}accelerate launch {several}{command}"
